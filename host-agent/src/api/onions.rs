//! Onion services and keys for those of others.

use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, State,
        rejection::{JsonRejection, PathRejection},
    },
    http::StatusCode,
};
use utoipa_axum::{router::OpenApiRouter, routes};
use wire::{
    VmName,
    onion::{OnionAddress, ServiceName},
};

use super::{Answer, OfAgent, object::Object};
use crate::{
    agent::Agent,
    status::{NewAuthorisation, NewOnionService, OnionServiceStatus, Problem},
};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Arc<Agent>> {
    OpenApiRouter::new()
        .routes(routes!(list, publish))
        .routes(routes!(unpublish))
        .routes(routes!(authorised, authorise))
        .routes(routes!(deauthorise))
}

/// The onion services of all VMs.
#[utoipa::path(get, path = "/onions", responses((status = 200, body = [OnionServiceStatus])))]
async fn list(State(agent): OfAgent) -> Json<Vec<OnionServiceStatus>> {
    Json(agent.onions())
}

/// Publishes an onion service of a VM.
#[utoipa::path(post, path = "/onions", request_body = NewOnionService, responses(
    (status = 201, body = OnionServiceStatus),
    (status = 404, description = "There is no such VM", body = Problem),
    (status = 409, description = "The VM has a service of that name, or as many as it may have", body = Problem),
    (status = 422, description = "Something in it is not what it should be", body = Problem),
))]
async fn publish(
    State(agent): OfAgent,
    body: Result<Json<Object<NewOnionService>>, JsonRejection>,
) -> Answer<(StatusCode, Json<OnionServiceStatus>)> {
    let Json(Object(new)) = body?;
    let published = tokio::spawn(async move { agent.publish_onion(new).await }).await??;
    Ok((StatusCode::CREATED, Json(published)))
}

/// Ends an onion service. Its address is not used again.
#[utoipa::path(delete, path = "/onions/{vm}/{name}", params(("vm" = String, Path), ("name" = String, Path)), responses(
    (status = 204),
    (status = 404, description = "There is no such VM, or it has no such service", body = Problem),
))]
async fn unpublish(
    State(agent): OfAgent,
    path: Result<Path<(VmName, ServiceName)>, PathRejection>,
) -> Answer<StatusCode> {
    let Path((vm, name)) = path?;
    tokio::spawn(async move { agent.unpublish_onion(&vm, &name).await }).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// The restricted onion services that a VM has a key for.
#[utoipa::path(get, path = "/vms/{vm}/authorisations", params(("vm" = String, Path)), responses(
    (status = 200, body = [String]),
    (status = 404, description = "There is no such VM", body = Problem),
))]
async fn authorised(
    State(agent): OfAgent,
    path: Result<Path<VmName>, PathRejection>,
) -> Answer<Json<Vec<OnionAddress>>> {
    let Path(vm) = path?;
    Ok(Json(agent.authorised(&vm)?))
}

/// Gives a VM a key for a restricted onion service, for as long as the agent runs.
#[utoipa::path(post, path = "/vms/{vm}/authorisations", params(("vm" = String, Path)), request_body = NewAuthorisation,
    responses(
        (status = 204),
        (status = 404, description = "There is no such VM", body = Problem),
        (status = 409, description = "It has as many as it may have", body = Problem),
        (status = 422, description = "Something in it is not what it should be", body = Problem),
    ))]
async fn authorise(
    State(agent): OfAgent,
    path: Result<Path<VmName>, PathRejection>,
    body: Result<Json<Object<NewAuthorisation>>, JsonRejection>,
) -> Answer<StatusCode> {
    let (Path(vm), Json(Object(NewAuthorisation { onion, key }))) = (path?, body?);
    tokio::spawn(async move { agent.authorise(&vm, onion, Some(key)).await }).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a VM's key for a restricted onion service away.
#[utoipa::path(delete, path = "/vms/{vm}/authorisations/{onion}", params(("vm" = String, Path), ("onion" = String, Path)),
    responses(
        (status = 204),
        (status = 404, description = "There is no such VM, or it has no such key", body = Problem),
    ))]
async fn deauthorise(
    State(agent): OfAgent,
    path: Result<Path<(VmName, OnionAddress)>, PathRejection>,
) -> Answer<StatusCode> {
    let Path((vm, onion)) = path?;
    tokio::spawn(async move { agent.authorise(&vm, onion, None).await }).await??;
    Ok(StatusCode::NO_CONTENT)
}

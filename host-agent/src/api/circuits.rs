//! New circuits.

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use utoipa_axum::{router::OpenApiRouter, routes};
use wire::VmName;

use super::{Answer, OfAgent};
use crate::{agent::Agent, status::Problem};

/// What there is.
pub(super) fn routes() -> OpenApiRouter<std::sync::Arc<Agent>> {
    OpenApiRouter::new().routes(routes!(of_one)).routes(routes!(of_all))
}

/// New streams of a VM take new circuits; those that are open go on.
#[utoipa::path(post, path = "/vms/{name}/new-circuits", params(("name" = String, Path)), responses(
    (status = 202, description = "The router is not there; it will obey when it is"),
    (status = 204),
    (status = 404, description = "There is no such VM", body = Problem),
))]
async fn of_one(State(agent): OfAgent, name: Result<Path<VmName>, PathRejection>) -> Answer<StatusCode> {
    let Path(name) = name?;
    Ok(status(agent.new_circuits(Some(&name)).await?))
}

/// New streams of all VMs take new circuits; those that are open go on.
#[utoipa::path(post, path = "/new-circuits", responses(
    (status = 202, description = "The router is not there; it will obey when it is"),
    (status = 204),
))]
async fn of_all(State(agent): OfAgent) -> Answer<StatusCode> {
    Ok(status(agent.new_circuits(None).await?))
}

fn status(is_obeyed: bool) -> StatusCode {
    if is_obeyed { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED }
}

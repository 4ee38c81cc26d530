//! The HTTP API on an AF_UNIX socket.
//!
//! Who may ask what, [`access`] says. Every error is a problem document (RFC 9457), those of the framework too. Bodies are
//! bounded by [`BODY_BYTES_MAX`], connections by [`listener`].

pub mod access;
mod circuits;
mod description;
mod events;
mod keys;
pub mod listener;
mod object;
mod onions;
pub mod problem;
mod routes;
mod tokens;

use std::{future::Future, io, os::unix::net::UnixListener, sync::Arc};

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, Path, Query, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};
use wire::VmName;

use crate::{
    agent::Agent,
    attach, metrics,
    nature::Nature,
    status::{Attachment, CircuitStatus, NewVm, Problem, Status, VmStatus},
};
pub(crate) use keys::{Revoked, SealedRoot, SetUpDone, UnlockedBy};
use listener::{Peer, PeerListener};
use object::Object;
use problem::Failed;

/// Bytes of the longest request body: a VM's name.
pub const BODY_BYTES_MAX: usize = 16 << 10;

type Answer<T> = Result<T, Failed>;
type OfAgent = State<Arc<Agent>>;

#[derive(OpenApi)]
#[openapi(info(title = "Onion router host agent", description = "Controls the onion router VM of this host."))]
struct Description;

/// The API of `agent`.
fn router(agent: Arc<Agent>) -> Router {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status))
        .routes(routes!(metrics))
        .routes(routes!(vm_list, vm_add))
        .routes(routes!(vm_remove))
        .routes(routes!(vm_attachment))
        .merge(onions::routes())
        .routes(routes!(circuits))
        .routes(routes!(events::events))
        .routes(routes!(tokens::mint))
        .routes(routes!(tokens::revoke))
        .routes(routes!(shut_down))
        .merge(circuits::routes())
        .merge(keys::routes())
        .merge(routes::router())
        .split_for_parts();
    // Fails only for maps whose keys are no texts.
    let description = description::complete(&description).unwrap_or_default();
    router
        .route("/openapi.json", axum::routing::get(move || std::future::ready(Json(description.clone()))))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&agent), access::check))
        .with_state(agent)
}

/// Serves the API of `agent` on a socket, for ever.
///
/// # Errors
/// When the socket cannot be made asynchronous.
pub fn serve(socket: UnixListener, agent: Arc<Agent>) -> io::Result<impl Future<Output = ()>> {
    socket.set_nonblocking(true)?;
    let listener = PeerListener::new(tokio::net::UnixListener::from_std(socket)?);
    let service = router(agent).into_make_service_with_connect_info::<Peer>();
    Ok(async move {
        // Accepting never fails for good.
        let _ = axum::serve(listener, service).await;
    })
}

/// How everything is.
#[utoipa::path(get, path = "/status", responses((status = 200, body = Status)))]
async fn status(State(agent): OfAgent) -> Json<Status> {
    Json(agent.status())
}

/// What can be counted and measured, for Prometheus.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text", description = "\
        OpenMetrics 1.0 text. For each VM, with the label `vm`: `oht_vm_link_up`, `oht_vm_flows`, `oht_vm_circuits`, \
        `oht_vm_retries_total`, `oht_vm_bytes_total` (label `direction`: `from_vm`, `to_vm`), `oht_vm_drops_total` \
        (label `reason`). For the rest: `oht_router_ready`, `oht_router_restarts_total`, \
        `oht_router_memory_available_bytes`, `oht_router_resident_bytes`, `oht_tor_usable`, \
        `oht_process_restarts_total` (label `process`), `oht_failures_total`. Values that are not known are left out."),
))]
async fn metrics(State(agent): OfAgent) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::text(&agent.status()))
}

/// The VMs.
#[utoipa::path(get, path = "/vms", responses((status = 200, body = [VmStatus])))]
async fn vm_list(State(agent): OfAgent) -> Json<Vec<VmStatus>> {
    Json(agent.vms())
}

/// Adds a VM.
#[utoipa::path(post, path = "/vms", request_body = NewVm, responses(
    (status = 201, body = VmStatus),
    (status = 409, description = "The name is taken, or there are as many VMs as there may be", body = Problem),
    (status = 422, description = "The name is none, or a field is unknown", body = Problem),
))]
async fn vm_add(
    State(agent): OfAgent,
    body: Result<Json<Object<NewVm>>, JsonRejection>,
) -> Answer<(StatusCode, Json<VmStatus>)> {
    let Json(Object(new)) = body?;
    let nature = Nature { kind: new.kind, ephemeral: new.ephemeral };
    // A task of its own: a client that hangs up must not leave half of it done.
    let added = tokio::spawn(async move { agent.add_vm(new.name, nature).await }).await??;
    Ok((StatusCode::CREATED, Json(added)))
}

/// Removes a VM; one that is attached loses its network.
#[utoipa::path(delete, path = "/vms/{name}", params(("name" = String, Path)), responses(
    (status = 204),
    (status = 404, description = "There is no such VM", body = Problem),
))]
async fn vm_remove(State(agent): OfAgent, name: Result<Path<VmName>, PathRejection>) -> Answer<StatusCode> {
    let Path(name) = name?;
    tokio::spawn(async move { agent.remove_vm(&name).await }).await??;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct AttachmentQuery {
    /// Memory of the VM in MiB, equal to its `-m`; 512 where not given.
    #[param(minimum = 1, maximum = 1_048_576)]
    memory_mib: Option<u32>,
    /// MTU that the guest is told; guests take 1500 where none is given.
    #[param(minimum = 576, maximum = 65520)]
    mtu: Option<u16>,
}

/// What attaches the VM.
#[utoipa::path(get, path = "/vms/{name}/attach", params(("name" = String, Path), AttachmentQuery), responses(
    (status = 200, body = Attachment),
    (status = 404, description = "There is no such VM", body = Problem),
))]
async fn vm_attachment(
    State(agent): OfAgent,
    name: Result<Path<VmName>, PathRejection>,
    query: Result<Query<AttachmentQuery>, QueryRejection>,
) -> Answer<Json<Attachment>> {
    let (Path(name), Query(query)) = (name?, query?);
    let memory_mib = query.memory_mib.unwrap_or(512);
    if !(1..=qemu::machine::MEMORY_MIB_MAX).contains(&memory_mib) {
        return Err(Failed::new(StatusCode::BAD_REQUEST, qemu::MachineError::Memory(memory_mib).to_string()));
    }
    if let Some(mtu) = query.mtu.filter(|mtu| !attach::MTU.contains(mtu)) {
        let problem = format!("an MTU of {mtu} cannot be had: from {} to {}", attach::MTU.start(), attach::MTU.end());
        return Err(Failed::new(StatusCode::BAD_REQUEST, problem));
    }
    Ok(Json(agent.attachment(&name, memory_mib, query.mtu)?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct CircuitsQuery {
    /// Only this VM's.
    #[param(value_type = Option<String>)]
    vm: Option<VmName>,
}

/// The circuits that carry, or carried, the VMs' streams.
#[utoipa::path(get, path = "/circuits", params(CircuitsQuery), responses(
    (status = 200, body = [CircuitStatus]),
    (status = 404, description = "There is no such VM"),
))]
async fn circuits(
    State(agent): OfAgent,
    query: Result<Query<CircuitsQuery>, QueryRejection>,
) -> Answer<Json<Vec<CircuitStatus>>> {
    let Query(query) = query?;
    Ok(Json(agent.circuits(query.vm.as_ref())?))
}

/// Ends everything.
#[utoipa::path(post, path = "/shutdown", responses((status = 202)))]
async fn shut_down(State(agent): OfAgent) -> StatusCode {
    agent.shut_down();
    StatusCode::ACCEPTED
}

//! The API of the routes.

use std::sync::Arc;

use axum::{
    Json,
    extract::{
        DefaultBodyLimit, Path, State,
        rejection::{JsonRejection, PathRejection},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};
use wire::route;

use super::{Answer, OfAgent, object::Object};
use crate::{
    agent::Agent,
    routes::{Changed, RoutesError, files::TEXT_BYTES_MAX},
    status::Problem,
    status::routes::{
        NewRoute, RouteAnswer, RouteChange, RouteFinding, RouteFindings, RouteLine, RouteList, RouteQuestion, RouteText,
    },
};

/// The part of the API that is about routes.
pub(super) fn router() -> OpenApiRouter<Arc<Agent>> {
    let all = OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(remove)).routes(routes!(reload));
    let all = all.routes(routes!(test)).routes(routes!(check));
    // The text in JSON, whose escapes are longer than what they stand for.
    let set = OpenApiRouter::new().routes(routes!(set)).layer(DefaultBodyLimit::max(2 * TEXT_BYTES_MAX));
    all.merge(set)
}

/// The routes in force, in order: drop-ins and those of the API. Without the passwords of proxies.
#[utoipa::path(get, path = "/routes", responses((status = 200, body = RouteList)))]
async fn list(State(agent): OfAgent) -> Json<RouteList> {
    let table = agent.routes().table();
    let lines = table.lines.iter().map(RouteLine::from).collect();
    Json(RouteList { lines, problems: table.problems.clone(), blocked: table.blocked })
}

/// Adds a route to those of the API. Answered once it is on the disk and, if a router is connected, in force.
#[utoipa::path(post, path = "/routes", request_body = NewRoute, responses(
    (status = 200, body = RouteChange),
    (status = 409, description = "The files are wrong, so that nothing may change before they are mended", body = Problem),
    (status = 422, description = "It is no route", body = Problem),
))]
async fn add(State(agent): OfAgent, body: Result<Json<Object<NewRoute>>, JsonRejection>) -> Answer<Json<RouteChange>> {
    let Json(Object(new)) = body?;
    // Tasks of their own, here and below: a client that hangs up must not leave half of it done.
    let changed = tokio::spawn(async move {
        let changed = agent.routes().add(&new.route, new.first).await;
        in_force(&agent, changed).await
    });
    Ok(Json(changed.await??))
}

/// Puts a text in the place of all routes of the API. Answered as an addition.
#[utoipa::path(put, path = "/routes", request_body = RouteText, responses(
    (status = 200, body = RouteChange),
    (status = 409, description = "The files are wrong, so that nothing may change before they are mended", body = Problem),
    (status = 422, description = "A line is no route", body = Problem),
))]
async fn set(State(agent): OfAgent, body: Result<Json<Object<RouteText>>, JsonRejection>) -> Answer<Json<RouteChange>> {
    let Json(Object(new)) = body?;
    let changed = tokio::spawn(async move {
        let changed = agent.routes().set(new.text).await;
        in_force(&agent, changed).await
    });
    Ok(Json(changed.await??))
}

/// Removes the route on a line of the API's. Answered as an addition.
#[utoipa::path(delete, path = "/routes/{line}", params(("line" = u32, Path)), responses(
    (status = 200, body = RouteChange),
    (status = 404, description = "There is no route on that line", body = Problem),
    (status = 409, description = "The files are wrong, so that nothing may change before they are mended", body = Problem),
))]
async fn remove(State(agent): OfAgent, line: Result<Path<u32>, PathRejection>) -> Answer<Json<RouteChange>> {
    let Path(line) = line?;
    let changed = tokio::spawn(async move {
        let changed = agent.routes().remove(line).await;
        in_force(&agent, changed).await
    });
    Ok(Json(changed.await??))
}

/// Reads the drop-ins again. If one is wrong, the routes stay as they were.
#[utoipa::path(post, path = "/routes/reload", responses(
    (status = 200, body = RouteChange),
    (status = 409, description = "A file is wrong", body = Problem),
))]
async fn reload(State(agent): OfAgent) -> Answer<Json<RouteChange>> {
    let changed = tokio::spawn(async move {
        let changed = agent.routes().reload().await;
        in_force(&agent, changed).await
    });
    Ok(Json(changed.await??))
}

async fn in_force(
    agent: &Agent,
    changed: Result<Changed, RoutesError>,
) -> Result<RouteChange, crate::agent::AgentError> {
    let Changed { table, line } = changed?;
    Ok(RouteChange { line, in_force: agent.routes_applied(table).await })
}

/// Says what happens to a connection, which line decides, and why.
#[utoipa::path(post, path = "/routes/test", request_body = RouteQuestion, responses(
    (status = 200, body = RouteAnswer),
    (status = 422, description = "There can be no such VM or target", body = Problem),
))]
async fn test(
    State(agent): OfAgent,
    body: Result<Json<Object<RouteQuestion>>, JsonRejection>,
) -> Answer<Json<RouteAnswer>> {
    let Json(Object(RouteQuestion { vm, target })) = body?;
    let wrong = |problem: route::Problem| {
        let detail =
            format!("{target:?} is no target, such as example.org:443, 192.0.2.1:80 or [2001:db8::1]:80: {problem}");
        super::Failed::new(axum::http::StatusCode::UNPROCESSABLE_ENTITY, detail)
    };
    let destination: route::Destination = target.parse().map_err(wrong)?;
    let table = agent.routes().table();
    let why = route::explain(&table.lines, &vm, destination.host(), destination.port());
    Ok(Json(RouteAnswer {
        passes: !matches!(why.verdict, route::Verdict::Block(_)),
        verdict: why.verdict.to_string(),
        line: why.line.map(RouteLine::from),
        not: why.misses.iter().map(ToString::to_string).collect(),
        notes: why.notes.iter().map(ToString::to_string).collect(),
        text: why.to_string(),
    }))
}

/// Finds lines that can never match, and those that are for no VM that there is.
#[utoipa::path(get, path = "/routes/check", responses((status = 200, body = RouteFindings)))]
async fn check(State(agent): OfAgent) -> Json<RouteFindings> {
    let table = agent.routes().table();
    let vms: Vec<wire::VmName> = agent.vms().into_iter().filter_map(|vm| vm.name.parse().ok()).collect();
    let findings = route::check(&table.lines, Some(&vms));
    let finding = |finding: &route::Finding<'_>| {
        let (line, never_matches) = match finding {
            route::Finding::Repeats { line, .. } | route::Finding::Covered { line, .. } => (line, true),
            route::Finding::NoVm { line, .. } => (line, false),
        };
        RouteFinding { line: RouteLine::from(*line), never_matches, text: finding.to_string() }
    };
    Json(RouteFindings { findings: findings.iter().map(finding).collect(), problems: table.problems.clone() })
}

//! Who may ask what of the API.
//!
//! | who | may |
//! | --- | --- |
//! | who shows a token (`Authorization: Bearer …`) | what the token allows, whoever shows it |
//! | the user who runs the agent, root, members of the group that the settings name | everything |
//! | everybody else | nothing |
//!
//! The kernel says who the peer is. Membership of a group is looked up at each request, so that it can be taken away.

use std::sync::Arc;

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use key_tree::ApiRequest;
use nix::unistd::Uid;

use super::{listener::Peer, problem::Failed};
use crate::{accounts::Accounts, agent::Agent};

/// What no token shows: the sealed root, and routes, which may have a proxy's password.
const SECRETS: [&str; 2] = ["/keys/root", "/routes"];

/// Lets a request pass, or answers it with a problem.
pub(super) async fn check(
    State(agent): State<Arc<Agent>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match judge(&agent, peer, &request) {
        Ok(()) => next.run(request).await,
        Err(failed) => failed.into_response(),
    }
}

fn judge(agent: &Agent, peer: Peer, request: &Request) -> Result<(), Failed> {
    if let Some(authorization) = request.headers().get(header::AUTHORIZATION) {
        let token = authorization.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| {
            Failed::new(StatusCode::UNAUTHORIZED, "the Authorization header is to be `Bearer` and a token")
        })?;
        let path = request.uri().path();
        if SECRETS
            .iter()
            .any(|secret| path.strip_prefix(secret).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        {
            return Err(Failed::new(StatusCode::FORBIDDEN, format!("{path} is shown to nobody for a token")));
        }
        let (path, query) = (request.uri().path(), request.uri().query());
        let asked = ApiRequest { method: request.method().as_str(), path, vm: vm_of(path, query) };
        return agent.tokens().permits(token, asked, agent.now()).map_err(|error| {
            Failed::new(StatusCode::FORBIDDEN, format!("the token is refused: {}", crate::router_vm::words(&error)))
        });
    }
    if is_trusted(peer, agent.group()) {
        return Ok(());
    }
    let who = Accounts::read().user(peer.uid).unwrap_or_else(|| peer.uid.to_string());
    let remedy = match agent.group() {
        Some(group) => format!("join the group {group}, or show a token"),
        None => "show a token".into(),
    };
    Err(Failed::new(
        StatusCode::FORBIDDEN,
        format!("the user {who} may not use this agent: {remedy} (`oht token new`, by somebody who may)"),
    ))
}

/// Whether the peer may do everything.
fn is_trusted(peer: Peer, group: Option<&str>) -> bool {
    if peer.uid == Uid::effective() || peer.uid.is_root() {
        return true;
    }
    group.is_some_and(|group| Accounts::read().is_member(peer.uid, peer.gid, group))
}

/// The one VM that a request is about. A `vm` of the query says so only where all that is answered is about that VM.
fn vm_of<'a>(path: &'a str, query: Option<&'a str>) -> Option<&'a str> {
    if let Some(rest) = path.strip_prefix("/vms/") {
        return rest.split('/').next().filter(|vm| !vm.is_empty());
    }
    if !["/circuits", "/events"].contains(&path) {
        return None;
    }
    // Twice the same key is refused by who answers.
    query?.split('&').find_map(|pair| pair.strip_prefix("vm="))
}

#[cfg(test)]
mod tests {
    use nix::unistd::Gid;

    use super::*;

    #[test]
    fn a_request_is_about_a_vm_only_if_all_of_its_answer_is() {
        for (path, query, vm) in [
            ("/vms/web", None, Some("web")),
            ("/vms/web/attach", Some("vm=bank"), Some("web")),
            ("/circuits", Some("vm=web"), Some("web")),
            ("/events", Some("log=true&vm=web"), Some("web")),
            ("/circuits", None, None),
            ("/vms/", None, None),
            ("/vms", Some("vm=web"), None),
            ("/status", Some("vm=web"), None),
            ("/shutdown", Some("vm=web"), None),
            ("/tokens", Some("vm=web"), None),
        ] {
            assert_eq!(vm_of(path, query), vm, "{path} {query:?}");
        }
    }

    #[test]
    fn strangers_are_not_trusted() {
        let own = Peer { uid: Uid::effective(), gid: Gid::effective() };
        let stranger = Peer { uid: Uid::from_raw(4_000_000_000), gid: Gid::from_raw(4_000_000_000) };
        assert!(is_trusted(own, None));
        assert!(!is_trusted(stranger, None) && !is_trusted(stranger, Some("no-such-group")));
    }
}

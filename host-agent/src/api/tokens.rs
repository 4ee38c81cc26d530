//! `/tokens`: making and revoking API tokens.

use axum::{
    Json,
    extract::{
        Path, State,
        rejection::{JsonRejection, PathRejection},
    },
    http::StatusCode,
};
use key_tree::{RevocationId, Scope, TokenError};

use super::{Answer, OfAgent, object::Object, problem::Failed};
use crate::status::{MintedToken, NewToken, Problem};

/// The longest time that a token may be good for: 31 days.
pub(crate) const TOKEN_SECONDS_MAX: u32 = 31 * 86_400;

/// Makes a token for a client that may do less than everything.
#[utoipa::path(post, path = "/tokens", request_body = NewToken, responses(
    (status = 201, body = MintedToken),
    (status = 422, description = "It would last too long, or a field is unknown", body = Problem),
))]
pub(super) async fn mint(
    State(agent): OfAgent,
    body: Result<Json<Object<NewToken>>, JsonRejection>,
) -> Answer<(StatusCode, Json<MintedToken>)> {
    let Json(Object(new)) = body?;
    let (scope, seconds) = match new {
        NewToken::Monitor { seconds } => (Scope::Monitor, seconds),
        NewToken::Vm { name, seconds } => (Scope::Vm(name.as_str().parse().map_err(internal)?), seconds),
    };
    if !(1..=TOKEN_SECONDS_MAX).contains(&seconds) {
        let problem = format!("a token lasts 1 to {TOKEN_SECONDS_MAX} seconds, not {seconds}");
        return Err(Failed::new(StatusCode::UNPROCESSABLE_ENTITY, problem));
    }
    let minted = agent.tokens().mint(&scope, seconds.into(), agent.now())?;
    let (id, until) = (minted.id.to_string(), minted.until.as_unix());
    Ok((StatusCode::CREATED, Json(MintedToken { token: minted.token, id, until })))
}

/// Makes a token worthless at once, and those that were narrowed from it.
#[utoipa::path(delete, path = "/tokens/{id}", params(("id" = String, Path, pattern = "^[0-9a-f]{128}$")), responses(
    (status = 204),
    (status = 400, description = "This identifies no token", body = Problem),
))]
pub(super) async fn revoke(State(agent): OfAgent, id: Result<Path<String>, PathRejection>) -> Answer<StatusCode> {
    let Path(id) = id?;
    let id: RevocationId =
        id.parse().map_err(|error| Failed::new(StatusCode::BAD_REQUEST, format!("{id:?}: {error}")))?;
    agent.tokens().revoke(&id);
    Ok(StatusCode::NO_CONTENT)
}

/// A VM's name is always a name of the key tree.
fn internal(error: impl std::fmt::Display) -> Failed {
    Failed::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

impl From<TokenError> for Failed {
    fn from(error: TokenError) -> Failed {
        internal(error)
    }
}

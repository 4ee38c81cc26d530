//! Errors as problem documents (RFC 9457).

use axum::{
    extract::{
        rejection::{JsonRejection, PathRejection, QueryRejection},
        ws::rejection::WebSocketUpgradeRejection,
    },
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use tokio::task::JoinError;

use wire::onion::TermsError;

use crate::{
    agent::AgentError, onion_services::ServiceError, router_vm::words, routes::RoutesError, status::Problem,
    vms::VmError,
};

/// A request that failed.
#[derive(Debug)]
pub struct Failed {
    status: StatusCode,
    detail: String,
}

impl Failed {
    /// A failure with a status and an explanation.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Failed {
        Failed { status, detail: detail.into() }
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error").into();
        let problem = Problem { kind: "about:blank".into(), title, status: self.status.as_u16(), detail: self.detail };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}

impl From<AgentError> for Failed {
    fn from(error: AgentError) -> Failed {
        let status = match &error {
            AgentError::Vm(VmError::Exists(_) | VmError::Full) | AgentError::Socket(_) => StatusCode::CONFLICT,
            AgentError::Vm(VmError::Unknown(_)) | AgentError::Routes(RoutesError::NoLine(_)) => StatusCode::NOT_FOUND,
            AgentError::Routes(RoutesError::Lines(_) | RoutesError::TooLong) => StatusCode::UNPROCESSABLE_ENTITY,
            AgentError::Routes(RoutesError::Files(_)) => StatusCode::CONFLICT,
            AgentError::Onion(error) => onion_status(error),
            AgentError::Path(crate::paths::PathError::Long { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
            AgentError::Keys(error) => super::keys::status_of(error),
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failed::new(status, words(&error))
    }
}

fn onion_status(error: &ServiceError) -> StatusCode {
    match error {
        ServiceError::Exists(..) | ServiceError::Terms(TermsError::Services | TermsError::Authorised) => {
            StatusCode::CONFLICT
        }
        ServiceError::Unknown(..) | ServiceError::NotAuthorised(..) => StatusCode::NOT_FOUND,
        ServiceError::Terms(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ServiceError::File { .. } | ServiceError::Content { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<JoinError> for Failed {
    fn from(error: JoinError) -> Failed {
        Failed::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the request was not carried out: {error}"))
    }
}

impl From<JsonRejection> for Failed {
    fn from(rejection: JsonRejection) -> Failed {
        Failed::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Failed {
    fn from(rejection: PathRejection) -> Failed {
        Failed::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Failed {
    fn from(rejection: QueryRejection) -> Failed {
        Failed::new(rejection.status(), rejection.body_text())
    }
}

impl From<WebSocketUpgradeRejection> for Failed {
    fn from(rejection: WebSocketUpgradeRejection) -> Failed {
        Failed::new(rejection.status(), format!("{}: /events is a WebSocket", rejection.body_text()))
    }
}

/// For paths that are none.
pub(super) async fn not_found(uri: Uri) -> Failed {
    Failed::new(StatusCode::NOT_FOUND, format!("there is nothing at {}; /openapi.json says what there is", uri.path()))
}

/// For methods that a path does not have.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Failed {
    Failed::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} cannot be asked with {method}", uri.path()))
}

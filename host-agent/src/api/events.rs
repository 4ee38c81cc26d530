//! `GET /events`: what happens, over a WebSocket (RFC 6455), each event a text message of JSON.

use axum::{
    extract::{
        Query, State, WebSocketUpgrade,
        rejection::QueryRejection,
        ws::{Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use serde::Deserialize;
use utoipa::IntoParams;
use wire::VmName;

use super::{Answer, OfAgent};
use crate::{
    events::{Event, Listener},
    status::{Problem, Status},
};

/// Bytes of the longest message of a listener, who has nothing to say.
const MESSAGE_BYTES_MAX: usize = 1024;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Only what is about this VM.
    #[param(value_type = Option<String>)]
    vm: Option<VmName>,
    /// The agent's log too.
    #[serde(default)]
    log: bool,
}

/// What happens, as it happens; first how everything is, unless only one VM is asked about.
#[utoipa::path(get, path = "/events", params(EventsQuery), responses(
    (status = 101, description = "A WebSocket, on which each text message is an event", body = Event),
    (status = 400, description = "This is no request for a WebSocket", body = Problem),
    (status = 426, description = "This connection cannot become a WebSocket", body = Problem),
))]
pub(super) async fn events(
    State(agent): OfAgent,
    query: Result<Query<EventsQuery>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let (Query(query), upgrade) = (query?, upgrade?);
    Ok(upgrade.max_message_size(MESSAGE_BYTES_MAX).on_upgrade(move |socket| async move {
        let (status, listener) = agent.watch();
        drop(agent);
        // Fails when the listener goes, which is its right.
        let _ = send_all(socket, status, listener, &query).await;
    }))
}

async fn send_all(
    mut socket: WebSocket,
    status: Status,
    mut listener: Listener,
    query: &EventsQuery,
) -> Result<(), axum::Error> {
    if query.vm.is_none() {
        send(&mut socket, &Event::Status { status: Box::new(status) }).await?;
    }
    loop {
        tokio::select! {
            event = listener.next() => match event {
                Some(event) if query.wants(&event) => send(&mut socket, &event).await?,
                Some(_) => {}
                None => return Ok(()),
            },
            // Pings are answered by this; what else is said is not listened to.
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(said) => drop(said?),
            },
        }
    }
}

async fn send(socket: &mut WebSocket, event: &Event) -> Result<(), axum::Error> {
    let json = serde_json::to_string(event).map_err(axum::Error::new)?;
    socket.send(Message::Text(json.into())).await
}

impl EventsQuery {
    fn wants(&self, event: &Event) -> bool {
        let about = match (&self.vm, event) {
            (None, _) | (_, Event::Lost { .. }) => true,
            (Some(vm), event) => event.vm() == Some(vm.as_str()),
        };
        about && (self.log || !matches!(event, Event::Log { .. }))
    }
}

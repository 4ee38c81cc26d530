//! What happens, as it happens: the events that `GET /events` sends and `oht events` prints.
//!
//! The model announces what changes in it, the log what is said ([`LogEvents`]). Whoever listens has a bounded queue
//! ([`QUEUE_EVENTS`]); one who reads too slowly is told how many events were lost, and holds nobody up. Nobody listening
//! costs nothing. No event names what a VM connects to.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tracing::{Event as LogRecord, Subscriber, field::Field};
use tracing_subscriber::{Layer, layer::Context};
use utoipa::ToSchema;

use crate::{
    keys::report::KeyTree,
    status::{CircuitStatus, RouterState, Status, TorStatus, VmUsage},
};

/// Events that wait for a listener.
pub const QUEUE_EVENTS: usize = 1024;

/// Bytes of the longest line of the log that is sent.
const LOG_BYTES_MAX: usize = 2000;

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How everything is: the first event, unless only one VM is asked about.
    Status {
        /// That.
        status: Box<Status>,
    },
    /// A VM was added.
    VmAdded {
        /// Its name.
        vm: String,
    },
    /// A VM was removed.
    VmRemoved {
        /// Its name.
        vm: String,
    },
    /// The link of a VM was connected or lost.
    Link {
        /// The VM.
        vm: String,
        /// Whether it stands.
        up: bool,
    },
    /// What a VM uses and has used: every few seconds.
    Usage {
        /// The VM.
        vm: String,
        /// That.
        usage: VmUsage,
    },
    /// A stream of a VM was attached to a circuit.
    Stream {
        /// The circuit, with this stream.
        circuit: CircuitStatus,
    },
    /// The Tor client has come further, or has lost what it had.
    Tor {
        /// How it is.
        tor: TorStatus,
    },
    /// The router VM does something else.
    Router {
        /// What.
        state: RouterState,
    },
    /// A helper process was started or has ended.
    Process {
        /// Its name, as in the status.
        name: String,
        /// Its process ID; none when it has ended.
        pid: Option<u32>,
    },
    /// Something was done with the keys, or a minute has passed.
    Keys {
        /// How they are.
        tree: Box<KeyTree>,
    },
    /// Something failed.
    Failure {
        /// What was attempted and why it failed.
        what: String,
    },
    /// The agent's log says something.
    Log {
        /// `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`.
        level: String,
        /// The part of the program that says it.
        part: String,
        /// What it says.
        text: String,
    },
    /// This listener was too slow.
    Lost {
        /// So many events were left out here.
        events: u64,
    },
}

impl Event {
    /// The VM that this is about, if it is about one.
    #[must_use]
    pub fn vm(&self) -> Option<&str> {
        match self {
            Event::VmAdded { vm } | Event::VmRemoved { vm } | Event::Link { vm, .. } | Event::Usage { vm, .. } => {
                Some(vm)
            }
            Event::Stream { circuit } => Some(&circuit.vm),
            _ => None,
        }
    }
}

/// Where events go. Clones are the same.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Events {
        Events(broadcast::Sender::new(QUEUE_EVENTS))
    }
}

impl Events {
    /// Announces what `event` makes; it is not called when nobody listens.
    pub fn announce(&self, event: impl FnOnce() -> Event) {
        if self.are_heard() {
            let _nobody_listens_any_more = self.0.send(event());
        }
    }

    /// Whether somebody listens.
    #[must_use]
    pub fn are_heard(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Listens from now on.
    #[must_use]
    pub fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

/// Somebody who listens.
#[derive(Debug)]
pub struct Listener(broadcast::Receiver<Event>);

impl Listener {
    /// The next event; `None` once there will be none. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(events)) => Some(Event::Lost { events }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// A layer of the log that announces what is logged.
#[derive(Debug)]
pub struct LogEvents(pub Events);

impl<S: Subscriber> Layer<S> for LogEvents {
    fn on_event(&self, record: &LogRecord<'_>, _: Context<'_, S>) {
        self.0.announce(|| {
            let mut line = Line::default();
            record.record(&mut line);
            let metadata = record.metadata();
            Event::Log { level: metadata.level().to_string(), part: metadata.target().into(), text: line.0 }
        });
    }
}

/// The message and the fields of a record, as `message name=value`.
#[derive(Default)]
struct Line(String);

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.0.len() < LOG_BYTES_MAX {
            let name = field.name();
            let _strings_take_everything = match name {
                "message" => write!(self.0, "{value:?}"),
                name => write!(self.0, " {name}={value:?}"),
            };
            let end = self.0.floor_char_boundary(LOG_BYTES_MAX);
            self.0.truncate(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn failure(what: impl Into<String>) -> Event {
        Event::Failure { what: what.into() }
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told_how_much_is_lost_and_hears_the_rest() {
        let events = Events::default();
        events.announce(|| panic!("nobody listens: no event is made"));
        let mut listener = events.listen();
        for number in 0..QUEUE_EVENTS + 5 {
            events.announce(|| failure(number.to_string()));
        }
        assert!(matches!(listener.next().await, Some(Event::Lost { events: 5 })));
        assert!(matches!(listener.next().await, Some(Event::Failure { what }) if what == "5"));
        drop(events);
        for _ in 6..QUEUE_EVENTS + 5 {
            assert!(listener.next().await.is_some());
        }
        assert!(listener.next().await.is_none());
    }

    #[tokio::test]
    async fn the_log_is_announced_in_lines_that_are_bounded() {
        let events = Events::default();
        let mut listener = events.listen();
        let subscriber = tracing_subscriber::registry().with(LogEvents(events));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!("careful: {}", "ä".repeat(LOG_BYTES_MAX));
            tracing::info!(pid = 3, "started");
        });
        let Some(Event::Log { level, text, .. }) = listener.next().await else { panic!("a line of the log") };
        assert_eq!((level.as_str(), text.len()), ("WARN", LOG_BYTES_MAX - 1), "cut between characters");
        let Some(Event::Log { text, .. }) = listener.next().await else { panic!("a line of the log") };
        assert_eq!(text, "started pid=3");
    }

    #[test]
    fn an_event_says_what_it_is() {
        let json = serde_json::to_value(Event::Link { vm: "web".into(), up: true }).unwrap();
        assert_eq!(json, serde_json::json!({ "event": "link", "vm": "web", "up": true }));
    }
}

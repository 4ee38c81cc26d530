//! The control connections: guest-init and the router program of the VM, on the control port.
//!
//! Both connect to us, each greeted by role. There is one of each at a time: a new one replaces the one before, which
//! is the dead end of a program or VM that was restarted. A peer that misbehaves is disconnected, and that is a failure
//! on record. The VM is not trusted: every message is bounded by `wire`, and what it says is only shown or, for relays,
//! filtered.
//!
//! ```text
//! Init:   hello ─► Provision ─► (Ready | Failure | ProgramEnded)* ─► PowerOff ─► PoweringOff ─► closed by us
//! Router: hello ─► Configure ─► Routes ─► Attach and Onions for each VM ─► Attach, Detach, Onions, Routes and Countries as
//!         things change; NewCircuits until obeyed; Ask ─► Answer; notices and reports at any time
//! ```

mod asks;
mod countries;
mod init;
mod renewals;
mod router;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, broadcast, watch},
    task::AbortHandle,
    time::timeout,
};
use wire::{
    bridge::Transport,
    control::{ControlError, ToRouter, body_bytes, encode},
    entry::TorEntry,
    hello::{Hello, Role},
    network::TorNetwork,
};

use self::{asks::Asks, countries::Countries, renewals::Renewals};
use crate::{
    greeting::{self, GreetingError},
    keys::Keys,
    onion_services::Wanted,
    relays::Relays,
    router_vm::words,
    routes::Table,
    supervise::Shared,
    vms::Vms,
};

/// Control connections at one time: two are needed, and as many again while a program is being restarted.
const CONNECTIONS_MAX: usize = 8;

/// Notices that wait for the router, which misses the oldest when there are more.
const NOTICES_MAX: usize = 256;

/// How long the router may take to obey other routes.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the control connections need, and what they offer.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    shared: Shared,
    network: TorNetwork,
    entry: TorEntry,
    vms: watch::Receiver<Vms>,
    routes: watch::Receiver<Arc<Table>>,
    /// The table that the router obeys, none while it is not connected, 0 until it obeys one.
    applied: watch::Sender<Option<u64>>,
    countries: watch::Sender<Option<Arc<Countries>>>,
    onions: watch::Receiver<Wanted>,
    renewals: watch::Sender<Renewals>,
    asks: Asks,
    relays: Mutex<Relays>,
    relays_kept: PathBuf,
    allowed: watch::Sender<Vec<u8>>,
    power_off: watch::Sender<bool>,
    notices: broadcast::Sender<ToRouter>,
    sessions: Mutex<Sessions>,
}

/// The tasks of the connections that count.
#[derive(Default)]
struct Sessions {
    init: Option<AbortHandle>,
    router: Option<AbortHandle>,
}

/// Why a control connection ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    #[error("a {0:?} has no business on the control port")]
    Role(Role),
    #[error(transparent)]
    Message(#[from] ControlError),
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

impl Control {
    /// Control for a network and how it is entered, `vms`, their `routes` and `onions`; the relays' allow list of before is at
    /// `relays_kept`; VMs are answered out of `keys`.
    #[must_use]
    pub fn new(
        shared: Shared,
        (network, entry): (TorNetwork, TorEntry),
        vms: watch::Receiver<Vms>,
        routes: watch::Receiver<Arc<Table>>,
        onions: watch::Receiver<Wanted>,
        relays_kept: PathBuf,
        keys: Arc<Keys>,
    ) -> Control {
        let relays = Relays::load(network.clone(), &entry, &relays_kept);
        let (allowed, _) = watch::channel(relays.line());
        let (power_off, _) = watch::channel(false);
        let (notices, _) = broadcast::channel(NOTICES_MAX);
        let relays = Mutex::new(relays);
        let sessions = Mutex::default();
        let (applied, countries) = (watch::channel(None).0, watch::channel(None).0);
        Control(Arc::new(Inner {
            shared,
            network,
            entry,
            vms,
            routes,
            applied,
            countries,
            onions,
            renewals: watch::channel(Renewals::default()).0,
            asks: Asks::new(keys),
            relays,
            relays_kept,
            allowed,
            power_off,
            notices,
            sessions,
        }))
    }

    /// Waits until the router obeys this table of routes, or a later one. False when it is not connected, so that it will
    /// begin with that table, or does not say so in time.
    pub async fn routes_applied(&self, table: u64) -> bool {
        let mut applied = self.0.applied.subscribe();
        let done = applied.wait_for(|applied| applied.is_none_or(|applied| applied >= table));
        matches!(timeout(APPLY_TIMEOUT, done).await, Ok(Ok(applied)) if applied.is_some())
    }

    /// Tells the router what it should know now; not one that connects later, for which it is no news.
    pub fn notify(&self, notice: ToRouter) {
        let _nobody_is_there = self.0.notices.send(notice);
    }

    /// The allow list as a line, and every later one.
    #[must_use]
    pub fn allowed(&self) -> watch::Receiver<Vec<u8>> {
        self.0.allowed.subscribe()
    }

    /// Tells where a transport listens, or that it does not; the uplink dials it instead of its stand-in.
    pub(crate) fn transport_is(&self, transport: &Transport, listens: Option<SocketAddr>) {
        let mut relays = self.0.relays.lock().unwrap_or_else(PoisonError::into_inner);
        relays.transport_is(transport, listens);
        self.0.allow(relays.line());
    }

    /// Asks guest-init to power off; `false` when it is not there to be asked.
    #[must_use]
    pub fn power_off(&self) -> bool {
        let sessions = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let there = sessions.init.as_ref().is_some_and(|session| !session.is_finished());
        if there {
            self.0.power_off.send_replace(true);
        }
        there
    }

    /// Serves the control port for ever.
    pub async fn serve(self, listener: UnixListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection; trying again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
            let control = self.clone();
            tokio::spawn(async move {
                control.session(stream).await;
                drop(permit);
            });
        }
    }

    async fn session(self, mut stream: UnixStream) {
        let role = match greeting::greet(&mut stream, &Hello::new(Role::Agent)).await {
            Ok(hello) => hello.role,
            Err(error) => return self.ended("a peer", Err(error.into())),
        };
        let control = self.clone();
        // A task of its own, so that a newer connection can end it.
        let task = match role {
            Role::Init => tokio::spawn(async move { init::run(&control.0, stream).await }),
            Role::Router => tokio::spawn(async move { router::run(&control.0, stream).await }),
            role => return self.ended("a peer", Err(SessionError::Role(role))),
        };
        {
            let mut sessions = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = if role == Role::Init { &mut sessions.init } else { &mut sessions.router };
            if let Some(before) = slot.replace(task.abort_handle()) {
                before.abort();
            }
        }
        let id = task.id();
        if let Ok(result) = task.await {
            let sessions = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            let current = sessions.router.as_ref().is_some_and(|session| session.id() == id);
            drop(sessions);
            if current {
                self.0.applied.send_replace(None);
                self.0.shared.model().program_lost();
            }
            self.ended(if role == Role::Init { "guest-init" } else { "the router program" }, result);
        }
    }

    fn ended(&self, who: &str, result: Result<(), SessionError>) {
        match result {
            Ok(()) => tracing::info!("the control connection of {who} has ended"),
            Err(error) => self.0.shared.model().failure(format!("control connection of {who}: {}", words(&error))),
        }
    }
}

impl Inner {
    /// Gives the uplink this allow list, if it is another than before.
    fn allow(&self, new: Vec<u8>) {
        self.allowed.send_if_modified(|line| {
            let changed = *line != new;
            *line = new;
            changed
        });
    }
}

/// Reads one message; `None` at a clean end. Not for `select!`: a dropped read loses what it has read.
async fn read<M: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<M>, SessionError> {
    let mut prefix = [0; 4];
    if stream.read(&mut prefix[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..]).await?;
    let mut body = vec![0; body_bytes(prefix)?];
    stream.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body).map_err(ControlError::Json)?))
}

async fn write<M: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &M) -> Result<(), SessionError> {
    Ok(stream.write_all(&encode(message)?).await?)
}

#[cfg(test)]
mod tests;

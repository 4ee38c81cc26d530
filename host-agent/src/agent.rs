//! The agent: puts the parts together, runs until told to end, and ends them in order.
//!
//! ```text
//! locks ─► predecessors ended ─► VM table ─► API, control, uplink, one port per VM, router VM ─► end wanted
//!       ─► ports ended ─► router VM powered off ─► uplink ended ─► sockets removed
//! ```
//!
//! The locks come first: from then on every socket in the run directory is ours or stale.

mod circuits;
mod keys;
mod onions;
mod vms;

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    sync::{Notify, watch},
    task::{AbortHandle, JoinHandle},
};
use wire::{CONTROL_PORT, UPLINK_PORT, VmName, control::ToRouter};

use self::onions::OnionState;
use crate::{
    children::Children,
    config::{ConfigError, Settings},
    control::Control,
    events::{Events, Listener},
    keys::{Keys, KeysError, time::TimeSource},
    lock::{self, Lock, LockError},
    model::Model,
    onion_services::{ServiceError, ServiceTable, Wanted},
    paths::PathError,
    programs::{self, Programs},
    router_vm::RouterVm,
    routes::{self, Routes, RoutesError},
    sockets::{self, SocketError},
    spawn::Spawn,
    status::{AgentStatus, Status},
    supervise::{self, Shared, Stop, Stopper, Supervised},
    tokens::Tokens,
    transports::Transports,
    vms::{Vm, VmError, VmTable, Vms},
};

/// Why the agent does not start, or a request fails.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A directory cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Another agent is there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The VM table does not do it.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The routes do not change.
    #[error(transparent)]
    Routes(#[from] RoutesError),
    /// An onion service cannot be had or changed.
    #[error(transparent)]
    Onion(#[from] ServiceError),
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A program is missing, or QEMU too old.
    #[error(transparent)]
    Missing(#[from] programs::Missing),
    /// QEMU cannot be used.
    #[error(transparent)]
    Version(#[from] qemu::VersionError),
    /// The keys do not do it.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A socket cannot be made asynchronous.
    #[error("cannot use a socket")]
    Io(#[from] io::Error),
}

/// A running agent.
pub struct Agent {
    settings: Settings,
    programs: Programs,
    shared: Shared,
    started: Instant,
    table: Mutex<VmTable>,
    /// Held while a VM is added or removed, so that these happen one after the other.
    changing: tokio::sync::Mutex<BTreeMap<VmName, Port>>,
    vms: watch::Sender<Vms>,
    routes: Arc<Routes>,
    onions: Mutex<OnionState>,
    control: Control,
    tokens: Tokens,
    keys: Arc<Keys>,
    /// Something was done with the keys.
    keys_used: Notify,
    end: Stopper,
    _locks: [Lock; 2],
}

/// What runs besides the ports.
pub struct Parts {
    router: (Stopper, JoinHandle<()>),
    uplink: (Stopper, JoinHandle<()>),
    /// Serving the control port, and what tells the router of routes and countries.
    control: [JoinHandle<()>; 3],
    keys: JoinHandle<()>,
    transports: Transports,
}

/// The port of one VM.
struct Port {
    stopper: Stopper,
    task: JoinHandle<()>,
}

impl Agent {
    /// Starts everything; what happens is announced to `events`. Returns the agent, what it runs, the API's sockets and the
    /// wish to end.
    ///
    /// # Errors
    /// When another agent is there, or something that is needed is not. Nothing is left running then.
    pub async fn start(
        settings: Settings,
        events: Events,
        time: Box<dyn TimeSource>,
    ) -> Result<(Agent, Parts, Vec<UnixListener>, Stop), AgentError> {
        settings.run.check()?;
        settings.state.create()?;
        settings.run.create()?;
        let locks = [lock::take(&settings.state.lock())?, lock::take(&settings.run.lock())?];
        let programs = Programs::new(&settings.programs);
        for (name, _) in programs::HELPERS {
            programs.find(name)?;
        }
        let qemu = programs.find(programs::QEMU)?;
        qemu::version::check(&qemu).await?;
        let network = settings.network()?;
        let table = VmTable::load(&settings.state.vms())?;
        let routes = Arc::new(Routes::load(settings.routes_dir.clone(), settings.state.routes()));
        let services = ServiceTable::load(&settings.state.onions())?;

        let shared = Shared::new(Model::new(events), Children::open(settings.state.children()));
        let predecessors = shared.end_predecessors().await;
        if !predecessors.is_empty() {
            let names = predecessors.join(", ");
            shared
                .model()
                .failure(format!("the agent before this one was killed; its processes are replaced: {names}"));
        }
        {
            let tor = &mut shared.model().tor;
            (tor.network, tor.bridges) = (network.name.clone(), settings.entry.bridges.len());
        }
        let decision = qemu::accel::choose(settings.accel, &qemu).await;
        tracing::info!(accel = %decision.accelerator, reason = decision.reason, "acceleration");
        shared.model().router.accel = (decision.accelerator.to_string(), decision.reason.clone());

        let mut api = vec![sockets::listen(&settings.run.api())?];
        if let Some(shared) = &settings.shared_socket {
            api.push(sockets::listen_for_all(shared)?);
        }
        let keys = keys::open(&settings, time).await?;
        let (vms, watched) = watch::channel(Vms::new());
        let (onions, onions_watched) = watch::channel(Wanted::new());
        if !routes.table().problems.is_empty() {
            let problems = routes.table().problems.join("; ");
            let what = format!("every VM is blocked, as the routes are wrong; mend them: {problems}");
            shared.model().failure(what);
        }
        let kept = settings.state.relays();
        let entered = (network, settings.entry.clone());
        let tables = routes.tables();
        let control = Control::new(shared.clone(), entered, watched, tables, onions_watched, kept, Arc::clone(&keys));
        let listener = asynchronous(sockets::listen(&settings.run.vsock_port(CONTROL_PORT))?)?;
        let (uplink_stopper, uplink_stop) = Stopper::new();
        let uplink_listener = sockets::listen(&settings.run.vsock_port(UPLINK_PORT))?;
        let (router_stopper, router_stop) = Stopper::new();
        let (end, end_wanted) = Stopper::new();
        let agent = Agent {
            programs: programs.clone(),
            shared: shared.clone(),
            started: Instant::now(),
            table: Mutex::new(VmTable::default()),
            changing: tokio::sync::Mutex::default(),
            vms,
            routes: Arc::clone(&routes),
            onions: Mutex::new(OnionState::new(services, table.all(), onions)),
            control: control.clone(),
            tokens: Tokens::default(),
            keys,
            keys_used: Notify::new(),
            end,
            settings: settings.clone(),
            _locks: locks,
        };
        agent.adopt(table).await;
        agent.reconcile_keys().await;
        let turning = agent.turn_keys();
        agent.adopt_onions();
        agent.refresh_onions().await;
        let allowed = control.allowed();
        let serving = [
            tokio::spawn(control.clone().serve(listener)),
            tokio::spawn(control.clone().keep_countries(settings.geoip_dir.clone())),
            tokio::spawn(routes::watch::run(routes, shared.clone())),
        ];
        let transports = Transports::start(&settings, &shared, &control);
        let uplink = uplink(settings.clone(), programs.clone(), uplink_listener, allowed, control.clone());
        let uplink = supervise::keep_running(shared.clone(), "uplink".into(), uplink_stop, uplink);
        let router = RouterVm { settings, programs, decision, shared, control };
        let parts = Parts {
            router: (router_stopper, tokio::spawn(router.run(router_stop))),
            uplink: (uplink_stopper, tokio::spawn(uplink)),
            control: serving,
            keys: turning,
            transports,
        };
        Ok((agent, parts, api, end_wanted))
    }

    /// The routes.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Waits until the router obeys this table of routes; false when it is not there to do so.
    pub async fn routes_applied(&self, table: u64) -> bool {
        self.control.routes_applied(table).await
    }

    /// How everything is.
    #[must_use]
    pub fn status(&self) -> Status {
        let now = Instant::now();
        let model = self.shared.model();
        let (failures, failures_total) = model.failures();
        Status {
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_s: self.started.elapsed().as_secs_f64(),
                state_dir: self.settings.state.path().display().to_string(),
                run_dir: self.settings.run.path().display().to_string(),
            },
            router: model.router_status(),
            tor: model.tor.clone(),
            processes: model.processes(now),
            vms: model.vms(&self.settings.run),
            keys: self.keys.status(),
            failures,
            failures_total,
        }
    }

    /// The tokens for clients who may not do everything.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The group whose members may do everything, if there is one.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.settings.group.as_deref()
    }

    /// How everything is, and what happens from then on.
    #[must_use]
    pub fn watch(&self) -> (Status, Listener) {
        // First to listen: what happens in between is in both, rather than in none.
        let listener = self.shared.model().events.listen();
        (self.status(), listener)
    }

    /// Asks the agent to end.
    pub fn shut_down(&self) {
        self.end.stop();
    }

    /// Ends everything, in order.
    pub async fn end(&self, parts: Parts) {
        let began = SystemTime::now();
        let ports = std::mem::take(&mut *self.changing.lock().await);
        let tasks: Vec<_> = ports.into_values().map(|port| tokio::spawn(port.end())).collect();
        for task in tasks {
            let _ = task.await;
        }
        parts.router.0.stop();
        let _ = parts.router.1.await;
        parts.uplink.0.stop();
        let _ = parts.uplink.1.await;
        parts.transports.end().await;
        parts.control.iter().chain([&parts.keys]).for_each(JoinHandle::abort);
        let run = &self.settings.run;
        for (name, Vm { link_port, .. }) in self.table().all() {
            self.remove_sockets(name, *link_port);
        }
        let own = [run.vsock_port(CONTROL_PORT), run.vsock_port(UPLINK_PORT), run.api()];
        for path in own.iter().chain(&self.settings.shared_socket) {
            let _ = std::fs::remove_file(path);
        }
        tracing::info!(took_s = began.elapsed().unwrap_or_default().as_secs_f64(), "everything has ended");
    }

    fn publish(&self, table: VmTable) {
        self.vms.send_replace(table.all().clone());
        *self.table() = table;
    }

    fn table(&self) -> std::sync::MutexGuard<'_, VmTable> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Starts the uplink, each time with a pipe of its own on which it gets the allow list and every later one.
fn uplink(
    settings: Settings,
    programs: Programs,
    listener: UnixListener,
    allowed: watch::Receiver<Vec<u8>>,
    control: Control,
) -> impl FnMut(&Shared, &str) -> io::Result<Supervised> {
    let listener = OwnedFd::from(listener);
    let log = settings.run.process_log("uplink");
    let mut feeding: Option<AbortHandle> = None;
    move |shared, name| {
        if let Some(before) = feeding.take() {
            before.abort();
            control.notify(ToRouter::UplinkEnded);
        }
        let program = programs.find(programs::UPLINK).map_err(io::Error::other)?;
        let (sender, receiver) = pipe::pipe()?;
        let receiver = receiver.into_blocking_fd()?;
        let fds = [listener.as_raw_fd(), receiver.as_raw_fd()].map(|fd| fd.to_string());
        let arguments = ["--listen-fd", &fds[0], "--allow-fd", &fds[1]].map(Into::into).to_vec();
        let process = shared.start(name, Spawn { program, arguments, log: log.clone() }, &[&listener, &receiver])?;
        feeding = Some(tokio::spawn(feed(sender, allowed.clone())).abort_handle());
        Ok(process)
    }
}

/// Writes every allow list until the uplink is gone.
async fn feed(mut pipe: pipe::Sender, mut allowed: watch::Receiver<Vec<u8>>) {
    loop {
        let line = allowed.borrow_and_update().clone();
        if pipe.write_all(&line).await.is_err() || allowed.changed().await.is_err() {
            return;
        }
    }
}

fn asynchronous(listener: UnixListener) -> io::Result<tokio::net::UnixListener> {
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

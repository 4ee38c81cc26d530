//! The agent: puts the parts together, runs until told to end, and ends them in order.
//!
//! ```text
//! locks ─► predecessors ended ─► VM table ─► API, control, uplink, one port per VM, router VM ─► end wanted
//!       ─► ports ended ─► router VM powered off ─► uplink ended ─► sockets removed
//! ```
//!
//! The locks come first: from then on every socket in the run directory is ours or stale.

mod onions;

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::Mutex,
    time::{Instant, SystemTime},
};

use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    sync::watch,
    task::{AbortHandle, JoinHandle},
};
use wire::{
    CONTROL_PORT, UPLINK_PORT, VmName,
    control::{ToRouter, VmOptions},
};

use self::onions::OnionState;
use crate::{
    children::Children,
    config::{ConfigError, Settings},
    control::Control,
    lock::{self, Lock, LockError},
    model::Model,
    onion_services::{ServiceError, ServiceTable, Wanted},
    paths::PathError,
    programs::{self, Programs},
    router_vm::{RouterVm, words},
    sockets::{self, SocketError},
    spawn::Spawn,
    status::{AgentStatus, Attachment, CircuitStatus, Status, VmStatus},
    supervise::{self, Shared, Stop, Stopper, Supervised},
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
    onions: Mutex<OnionState>,
    control: Control,
    end: Stopper,
    _locks: [Lock; 2],
}

/// What runs besides the ports.
pub struct Parts {
    router: (Stopper, JoinHandle<()>),
    uplink: (Stopper, JoinHandle<()>),
    control: JoinHandle<()>,
}

/// The port of one VM.
struct Port {
    stopper: Stopper,
    task: JoinHandle<()>,
}

impl Agent {
    /// Starts everything. Returns the agent, what it runs, the API's socket and the wish to end.
    ///
    /// # Errors
    /// When another agent is there, or something that is needed is not. Nothing is left running then.
    pub async fn start(settings: Settings) -> Result<(Agent, Parts, UnixListener, Stop), AgentError> {
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
        let services = ServiceTable::load(&settings.state.onions())?;

        let shared = Shared::new(Model::default(), Children::open(settings.state.children()));
        let predecessors = shared.end_predecessors().await;
        if !predecessors.is_empty() {
            let names = predecessors.join(", ");
            shared
                .model()
                .failure(format!("the agent before this one was killed; its processes are replaced: {names}"));
        }
        shared.model().tor.network = network.name.clone();
        let decision = qemu::accel::choose(settings.accel, &qemu).await;
        tracing::info!(accel = %decision.accelerator, reason = decision.reason, "acceleration");
        shared.model().router.accel = (decision.accelerator.to_string(), decision.reason.clone());

        let api = sockets::listen(&settings.run.api())?;
        let (vms, watched) = watch::channel(Vms::new());
        let (onions, onions_watched) = watch::channel(Wanted::new());
        let control = Control::new(shared.clone(), network, watched, onions_watched, settings.state.relays());
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
            onions: Mutex::new(OnionState::new(services, table.all(), onions)),
            control: control.clone(),
            end,
            settings: settings.clone(),
            _locks: locks,
        };
        agent.adopt(table).await;
        agent.adopt_onions();
        let allowed = control.allowed();
        let serving = tokio::spawn(control.clone().serve(listener));
        let uplink = uplink(settings.clone(), programs.clone(), uplink_listener, allowed, control.clone());
        let uplink = supervise::keep_running(shared.clone(), "uplink".into(), uplink_stop, uplink);
        let router = RouterVm { settings, programs, decision, shared, control };
        let parts = Parts {
            router: (router_stopper, tokio::spawn(router.run(router_stop))),
            uplink: (uplink_stopper, tokio::spawn(uplink)),
            control: serving,
        };
        Ok((agent, parts, api, end_wanted))
    }

    /// Starts the ports of the VMs that there were. One that cannot be had does not take the others with it.
    async fn adopt(&self, table: VmTable) {
        let mut ports = self.changing.lock().await;
        for (name, vm) in table.all() {
            match self.start_port(name, vm.link_port) {
                Ok(port) => drop(ports.insert(name.clone(), port)),
                Err(error) => self.shared.model().failure(format!("VM {name} has no port: {}", words(&error))),
            }
            self.shared.model().vm_added(name.clone(), vm.options);
        }
        self.publish(table);
    }

    /// Adds a VM and starts its port.
    ///
    /// # Errors
    /// When the name is taken, the table full, or the sockets cannot be had; nothing has changed then.
    pub async fn add_vm(&self, vm: VmName, options: VmOptions) -> Result<VmStatus, AgentError> {
        let mut ports = self.changing.lock().await;
        let mut table = self.table().clone();
        let link_port = table.add(vm.clone(), options)?;
        let port = self.start_port(&vm, link_port)?;
        if let Err(error) = table.save(&self.settings.state.vms()) {
            port.end().await;
            self.remove_sockets(&vm, link_port);
            return Err(error.into());
        }
        ports.insert(vm.clone(), port);
        self.shared.model().vm_added(vm.clone(), options);
        self.publish(table);
        let socket = self.settings.run.vm_socket(&vm)?.display().to_string();
        let VmOptions { optimistic, resolve } = options;
        let name = vm.to_string();
        Ok(VmStatus { name, link_up: false, port_pid: None, socket, optimistic, resolve, usage: None })
    }

    /// Removes a VM: the router stops serving it, its port ends, its sockets go.
    ///
    /// # Errors
    /// When there is no such VM, or the table cannot be written; nothing has changed then.
    pub async fn remove_vm(&self, vm: &VmName) -> Result<(), AgentError> {
        let mut ports = self.changing.lock().await;
        let mut table = self.table().clone();
        let link_port = table.remove(vm)?;
        table.save(&self.settings.state.vms())?;
        self.publish(table);
        if let Some(port) = ports.remove(vm) {
            port.end().await;
        }
        self.forget_onions(vm);
        self.shared.model().vm_removed(vm);
        self.remove_sockets(vm, link_port);
        Ok(())
    }

    /// What attaches a QEMU of `memory_mib` to the VM's port, with a guest that is told `mtu`.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn attachment(&self, vm: &VmName, memory_mib: u32, mtu: Option<u16>) -> Result<Attachment, AgentError> {
        if !self.table().all().contains_key(vm) {
            return Err(VmError::Unknown(vm.clone()).into());
        }
        let socket = self.settings.run.vm_socket(vm)?.display().to_string();
        Ok(Attachment { qemu: crate::attach::qemu_arguments(&socket, memory_mib, mtu), socket })
    }

    /// The VMs.
    #[must_use]
    pub fn vms(&self) -> Vec<VmStatus> {
        self.shared.model().vms(&self.settings.run)
    }

    /// The circuits of one VM, or of all.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn circuits(&self, vm: Option<&VmName>) -> Result<Vec<CircuitStatus>, AgentError> {
        match vm.filter(|vm| !self.table().all().contains_key(vm)) {
            Some(unknown) => Err(VmError::Unknown(unknown.clone()).into()),
            None => Ok(self.shared.model().circuits(vm)),
        }
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
            failures,
            failures_total,
        }
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
        parts.control.abort();
        let run = &self.settings.run;
        for (name, Vm { link_port, .. }) in self.table().all() {
            self.remove_sockets(name, *link_port);
        }
        for path in [run.vsock_port(CONTROL_PORT), run.vsock_port(UPLINK_PORT), run.api()] {
            let _ = std::fs::remove_file(path);
        }
        tracing::info!(took_s = began.elapsed().unwrap_or_default().as_secs_f64(), "everything has ended");
    }

    fn start_port(&self, vm: &VmName, link_port: u32) -> Result<Port, AgentError> {
        let run = &self.settings.run;
        let socket = run.vm_socket(vm)?;
        let directory = run.vm(vm);
        let failed = |source| PathError::Directory { path: directory.clone(), option: "--run-dir", source };
        std::fs::create_dir_all(&directory).map_err(failed)?;
        // The agent keeps both listeners: while a port is being restarted, who connects waits instead of failing.
        let vhost_user = OwnedFd::from(sockets::listen(&socket)?);
        let link = OwnedFd::from(sockets::listen(&run.vsock_port(link_port))?);
        let name = format!("port:{vm}");
        let (program, log) = (self.programs.find(programs::PORT)?, run.process_log(&name));
        let (vm, control) = (vm.clone(), self.control.clone());
        let mut is_successor = false;
        let start = move |shared: &Shared, name: &str| -> io::Result<Supervised> {
            if std::mem::replace(&mut is_successor, true) {
                control.notify(ToRouter::PortEnded { vm: vm.clone() });
            }
            let fds = [vhost_user.as_raw_fd(), link.as_raw_fd()].map(|fd| fd.to_string());
            let arguments =
                ["--vm", vm.as_str(), "--vhost-user-fd", &fds[0], "--link-fd", &fds[1]].map(Into::into).to_vec();
            shared.start(name, Spawn { program: program.clone(), arguments, log: log.clone() }, &[&vhost_user, &link])
        };
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(supervise::keep_running(self.shared.clone(), name, stop, start));
        Ok(Port { stopper, task })
    }

    fn publish(&self, table: VmTable) {
        self.vms.send_replace(table.all().clone());
        *self.table() = table;
    }

    fn table(&self) -> std::sync::MutexGuard<'_, VmTable> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn remove_sockets(&self, vm: &VmName, link_port: u32) {
        let run = &self.settings.run;
        let _ = std::fs::remove_file(run.vsock_port(link_port));
        let _ = std::fs::remove_file(run.vm(vm).join("net.sock"));
        let _ = std::fs::remove_dir(run.vm(vm));
    }
}

impl Port {
    async fn end(self) {
        self.stopper.stop();
        let _ = self.task.await;
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

//! The router VM: three processes that live and die together.
//!
//! QEMU needs the vsock device and virtiofsd before it starts; virtiofsd ends when QEMU does; and when the vsock device
//! dies the guest never notices. So when any of the three ends, the other two are killed and all three are started
//! again, with back-off. The guest's state is on the host and takes a loss of power at any moment.
//!
//! ```text
//! image checked ─► vsock device, virtiofsd ─► sockets there ─► QEMU ─► Ready (READY_S_MAX) ─► … any end ─► back-off
//! ```

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use qemu::{Accelerator, Decision, Device, Kernel, Machine, Serial};
use tokio::time::timeout;

use crate::{
    backoff::Backoff,
    config::Settings,
    control::Control,
    image::{INITRAMFS, Image, ImageError, KERNEL},
    paths::is_root,
    programs::{self, Programs},
    sockets::{self, SocketError},
    spawn::Spawn,
    status::RouterState,
    supervise::{Shared, Stop, Supervised},
};

/// The router VM's context identifier (any from 3 on; it is the only guest of its vsock device).
pub const CID: u32 = 42;

/// How long the VM may take from QEMU's start to ready: emulated on a busy host it takes a tenth of this.
const READY_S_MAX: u64 = 90;

/// How long the vsock device may take to listen.
const DEVICE_S_MAX: u64 = 10;

/// How long the VM may take to power itself off.
const POWER_OFF_GRACE: Duration = Duration::from_secs(4);

/// The kernel's command line: no spurious panic on a loaded host, and a panic ends QEMU. The root file system is a ramfs,
/// since a tmpfs would be bounded by half of the memory, and with 64 MiB the image would not fit.
const APPEND: &str = "console=ttyS0 quiet no_timer_check panic=-1 rootfstype=ramfs";

/// Why the VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The image is not whole.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A helper program is missing.
    #[error(transparent)]
    Missing(#[from] programs::Missing),
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The machine cannot be described.
    #[error(transparent)]
    Machine(#[from] qemu::MachineError),
    /// A process cannot be started.
    #[error("cannot start the router VM")]
    Spawn(#[from] io::Error),
    /// The vsock device does not come up.
    #[error("{0}")]
    Device(String),
}

/// Runs the router VM until stopped.
pub struct RouterVm {
    /// What was chosen.
    pub settings: Settings,
    /// Where the programs are.
    pub programs: Programs,
    /// How it is executed.
    pub decision: Decision,
    /// What is known, and what runs.
    pub shared: Shared,
    /// The connection to guest-init.
    pub control: Control,
}

/// The three processes.
struct Group {
    vsock: Supervised,
    virtiofsd: Supervised,
    qemu: Supervised,
}

impl RouterVm {
    /// Keeps the VM running until stopped, then powers it off.
    pub async fn run(self, mut stop: Stop) {
        let mut backoff = Backoff::default();
        loop {
            self.shared.model().router_starting(Instant::now());
            let began = Instant::now();
            match self.start().await {
                Ok(mut group) => {
                    let why = tokio::select! {
                        how = group.any_ended() => how,
                        how = self.never_ready() => how,
                        () = stop.wanted() => {
                            self.power_off(group).await;
                            break;
                        }
                    };
                    self.shared.model().failure(why);
                    group.end(Signal::SIGKILL).await;
                }
                Err(error) => self.shared.model().failure(words(&error)),
            }
            self.shared.model().router_lost(RouterState::Failed);
            if stop.sleep(backoff.delay(began.elapsed())).await {
                break;
            }
            self.shared.model().router.restarts += 1;
        }
        self.shared.model().router_lost(RouterState::Stopped);
        self.remove_sockets();
    }

    async fn start(&self) -> Result<Group, StartError> {
        let run = &self.settings.run;
        self.remove_sockets();
        let image = Image::find(self.settings.image.as_deref())?;
        let checked = image.clone();
        let check = tokio::task::spawn_blocking(move || checked.check());
        let vsock = self.spawn(programs::VSOCK_DEVICE, "vsock", vec!["--vm".into(), self.vsock_arguments()])?;
        let mut vsock = self.shared.start("vsock", vsock, &[])?;
        let result = async {
            // virtiofsd inherits its listening socket, so that QEMU need not wait for it.
            let listener = sockets::listen(&run.virtiofs())?;
            let virtiofsd = self.spawn(programs::VIRTIOFSD, "virtiofsd", self.virtiofsd_arguments(&listener))?;
            let virtiofsd = self.shared.start("virtiofsd", virtiofsd, &[&OwnedFd::from(listener)])?;
            let socket = run.vhost_user_vsock();
            let ready = tokio::join!(listening(&mut vsock, &socket), check);
            let checked = ready.1.unwrap_or_else(|error| {
                Err(ImageError::Read { path: image.path().into(), source: io::Error::other(error) })
            });
            let qemu = match (ready.0, checked) {
                (Ok(()), Ok(())) => self.start_qemu(&image),
                (Err(error), _) => Err(error),
                (_, Err(error)) => Err(error.into()),
            };
            match qemu {
                Ok(qemu) => Ok((virtiofsd, qemu)),
                Err(error) => {
                    virtiofsd.end(Signal::SIGKILL).await;
                    Err(error)
                }
            }
        }
        .await;
        match result {
            Ok((virtiofsd, qemu)) => Ok(Group { vsock, virtiofsd, qemu }),
            Err(error) => {
                vsock.end(Signal::SIGKILL).await;
                Err(error)
            }
        }
    }

    fn start_qemu(&self, image: &Image) -> Result<Supervised, StartError> {
        let log = self.settings.run.router_log();
        // QEMU truncates the log; what the boot before said is what explains its end.
        let _ = std::fs::rename(&log, log.with_extension("log.1"));
        let qemu = self.spawn(programs::QEMU, "qemu", self.machine(image).command_line()?)?;
        self.shared.model().router_starting(Instant::now());
        Ok(self.shared.start("qemu", qemu, &[])?)
    }

    fn machine(&self, image: &Image) -> Machine {
        let run = &self.settings.run;
        Machine {
            kernel: Some(Kernel {
                image: image.file(KERNEL),
                initrd: Some(image.file(INITRAMFS)),
                append: APPEND.into(),
            }),
            // Emulated processors wait for each other more than they help.
            cpus: if self.decision.accelerator == Accelerator::Kvm { 2 } else { 1 },
            devices: vec![
                Device::Vsock { socket: run.vhost_user_vsock() },
                Device::Fs { socket: run.virtiofs(), tag: "state".into() },
                Device::Rng,
            ],
            serial: Serial::File(run.router_log()),
            qmp: Some(run.qmp()),
            ..Machine::new("onion-router", self.settings.memory_mib, self.decision.accelerator)
        }
    }

    fn vsock_arguments(&self) -> OsString {
        // A write of 64 KiB hangs without this buffer size: longer descriptor chains are refused by the device.
        let run = &self.settings.run;
        let mut arguments = OsString::from(format!("guest-cid={CID},tx-buffer-size=32000,socket="));
        arguments.push(run.vhost_user_vsock());
        arguments.push(",uds-path=");
        arguments.push(run.vsock());
        arguments
    }

    fn virtiofsd_arguments(&self, listener: &UnixListener) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--fd".into(), listener.as_raw_fd().to_string().into()];
        arguments.extend(["--shared-dir".into(), self.settings.state.router().into_os_string()]);
        arguments
            .extend(["--log-level", "warn", "--inode-file-handles=never", "--rlimit-nofile=0"].map(OsString::from));
        if is_root() {
            arguments.extend(["--sandbox", "chroot"].map(OsString::from));
        } else {
            // An ordinary user can make files only as itself: the guest's root is that user here.
            let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
            arguments.extend(["--sandbox", "none", "--translate-uid"].map(OsString::from));
            arguments.extend(
                [format!("map:0:{uid}:1"), "--translate-gid".into(), format!("map:0:{gid}:1")].map(OsString::from),
            );
        }
        arguments
    }

    fn spawn(&self, program: &str, name: &str, arguments: Vec<OsString>) -> Result<Spawn, StartError> {
        Ok(Spawn { program: self.programs.find(program)?, arguments, log: self.settings.run.process_log(name) })
    }

    /// Returns only when the VM did not become ready in time.
    async fn never_ready(&self) -> String {
        tokio::time::sleep(Duration::from_secs(READY_S_MAX)).await;
        if self.shared.model().router.ready.is_some() {
            std::future::pending::<()>().await;
        }
        let log = self.settings.run.router_log();
        let said = crate::spawn::last_line(&log);
        format!("the router VM was not ready within {READY_S_MAX} s; its log {} ends: {said}", log.display())
    }

    /// Asks guest-init, then QEMU, then nobody.
    async fn power_off(&self, mut group: Group) {
        if self.control.power_off() && timeout(POWER_OFF_GRACE, group.qemu.ended()).await.is_ok() {
            tracing::info!("the router VM has powered off");
        } else if let Ok(qmp) = qemu::Qmp::connect(&self.settings.run.qmp()).await {
            let _ = qmp.quit().await;
        }
        group.end(Signal::SIGTERM).await;
    }

    fn remove_sockets(&self) {
        let run = &self.settings.run;
        for path in [run.vsock(), run.vhost_user_vsock(), run.virtiofs(), run.qmp()] {
            // Only this agent's processes use them, and these have ended: it holds the lock on the directory.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Group {
    async fn any_ended(&mut self) -> String {
        tokio::select! {
            how = self.vsock.ended() => how,
            how = self.qemu.ended() => how,
            // It ends right after QEMU, which then says more.
            how = self.virtiofsd.ended() => timeout(Duration::from_millis(50), self.qemu.ended()).await.unwrap_or(how),
        }
    }

    async fn end(self, signal: Signal) {
        tokio::join!(self.qemu.end(signal), self.vsock.end(signal), self.virtiofsd.end(signal));
    }
}

/// Waits until the device has made its socket, or has ended.
async fn listening(device: &mut Supervised, socket: &Path) -> Result<(), StartError> {
    let appeared = async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        how = device.ended() => Err(StartError::Device(how)),
        appeared = timeout(Duration::from_secs(DEVICE_S_MAX), appeared) => {
            appeared.map_err(|_| StartError::Device(format!("the vsock device did not listen within {DEVICE_S_MAX} s")))
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

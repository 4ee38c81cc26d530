#![allow(unsafe_code, reason = "that QEMU ends with us needs a step between fork and exec")]
//! `oht vm run`: a VM in the foreground, attached to the router and to no other network.
//!
//! ```text
//! VM added where it is none ─► QEMU started ─► its end, or a signal that it is told ─► ephemeral VM removed ─► its code
//! ```
//!
//! QEMU stays in our process group and on our terminal. It ends when we do, however we end; a VM that was ephemeral is
//! then the agent's until it ends.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::ExitStatusExt as _,
    path::Path,
};

use anyhow::{Context as _, bail};
use clap::Args;
use hyper::Method;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use qemu::{CpuList, Machine, Memory, Serial};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};
use wire::VmName;

use super::{Places, attach::attachment};
use crate::{
    client::Client,
    nature::Kind,
    programs::{self, Programs},
    status::{NewVm, VmStatus},
};

/// Options of `oht vm run`.
#[derive(Debug, Args)]
#[command(after_help = "\
The VM has a processor, memory, a serial console on this terminal (Ctrl-A X ends it, Ctrl-A C leads to QEMU's monitor)
and the network card of the router. Everything else, such as disks and a display, comes from QEMU-ARGS:
  oht vm run web --memory 2048 -- -drive file=web.qcow2,if=virtio -display gtk -device virtio-vga
Another network card would be a way around the router, so -nic, -net and -netdev are refused.

Exit status: that of QEMU, or 128 and the number of the signal that ended it.")]
pub struct Run {
    /// Which; it is added where there is none.
    name: VmName,
    /// Add it for this run alone: it is removed when QEMU ends.
    #[arg(long)]
    ephemeral: bool,
    /// What it is for, where it is added.
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// Memory of the VM in MiB.
    #[arg(long = "memory", value_name = "MIB", default_value_t = 512)]
    memory_mib: u32,
    /// Largest IP packet of the VM in bytes; guests take 1500 where nothing is said.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
    /// Processors of the VM.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// Processors of this host that QEMU may run on, as in 2,3 or 4-7.
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// How the VM is executed: auto, kvm or tcg.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    accel: qemu::Accel,
    #[command(flatten)]
    places: Places,
    /// Arguments for QEMU.
    #[arg(last = true, value_name = "QEMU-ARGS")]
    arguments: Vec<OsString>,
}

/// Runs a VM until its end; returns QEMU's exit code.
///
/// # Errors
/// When the agent refuses or is not there, or QEMU cannot be started.
pub(super) async fn run(run: Run, config: Option<&Path>) -> anyhow::Result<u8> {
    refuse_networks(&run.arguments)?;
    let settings = run.places.clone().settings(config)?;
    let program = Programs::new(&settings.programs).find(programs::QEMU)?;
    qemu::version::check(&program).await?;
    let accelerator = qemu::accel::choose(run.accel, &program).await.accelerator;
    let client = run.places.clone().client(config)?;
    add(&client, &run).await?;
    let ended = async {
        let attachment = attachment(&client, &run.name, run.memory_mib, run.mtu).await?;
        let machine = run.machine(accelerator, attachment.qemu);
        wait(run.start(&program, &machine)?).await
    }
    .await;
    if run.ephemeral {
        let removed = client.order(Method::DELETE, &format!("/vms/{}", run.name)).await;
        removed.with_context(|| format!("the VM {} has ended, and cannot be removed", run.name))?;
    }
    ended
}

/// An ephemeral VM is new: one that is there already is not ours to remove.
async fn add(client: &Client, run: &Run) -> anyhow::Result<()> {
    let vms: Vec<VmStatus> = client.get("/vms").await?;
    if run.ephemeral || !vms.iter().any(|vm| vm.name == run.name.as_str()) {
        let new = NewVm { kind: run.kind, ephemeral: run.ephemeral, ..NewVm::new(run.name.clone()) };
        client.post::<VmStatus>("/vms", &new).await?;
    }
    Ok(())
}

impl Run {
    fn machine(&self, accelerator: qemu::Accelerator, attachment: Vec<String>) -> Machine {
        let has_serial = self.arguments.iter().any(|argument| is_option(argument, &["serial", "nographic"]));
        let own = attachment.into_iter().map(OsString::from);
        Machine {
            memory: Memory::Elsewhere,
            cpus: self.vcpus,
            serial: if has_serial { Serial::None } else { Serial::Console },
            reboot: true,
            extra: own.chain(self.arguments.iter().cloned()).collect(),
            ..Machine::new(self.name.as_str(), self.memory_mib, accelerator)
        }
    }

    fn start(&self, program: &Path, machine: &Machine) -> anyhow::Result<Child> {
        if let Some(cpus) = &self.cpus {
            bind(cpus).with_context(|| format!("QEMU cannot be bound to the processors {cpus} (--cpus)"))?;
        }
        let mut command = Command::new(program);
        command.args(machine.command_line()?).kill_on_drop(true);
        // SAFETY: prctl(2) is async-signal-safe, and nothing is allocated.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?));
        }
        command.spawn().with_context(|| format!("cannot start {}", program.display()))
    }
}

/// Binds this process, whose child inherits it.
fn bind(cpus: &CpuList) -> nix::Result<()> {
    let mut set = CpuSet::new();
    cpus.cpus().iter().try_for_each(|&cpu| set.set(cpu))?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Waits for the end of QEMU, which is told to end when we are.
async fn wait(mut qemu: Child) -> anyhow::Result<u8> {
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [terminate, interrupt, hangup] = &mut signals;
    let (Ok(terminate), Ok(interrupt), Ok(hangup)) = (terminate, interrupt, hangup) else {
        bail!("cannot listen to signals");
    };
    loop {
        tokio::select! {
            status = qemu.wait() => return Ok(code(status?)),
            _ = terminate.recv() => end(&qemu),
            _ = interrupt.recv() => end(&qemu),
            _ = hangup.recv() => end(&qemu),
        }
    }
}

/// SIGTERM is what QEMU ends in order at, whichever signal we had.
fn end(qemu: &Child) {
    // `id` is none once it was reaped, so the number is not another's.
    if let Some(pid) = qemu.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

/// As a shell says it.
fn code(status: std::process::ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// A second NIC would lead past the router.
fn refuse_networks(arguments: &[OsString]) -> anyhow::Result<()> {
    match arguments.iter().find(|argument| is_option(argument, &["nic", "net", "netdev"])) {
        Some(found) => bail!(
            "{} would give the VM a way around the router: leave it out, or start QEMU by hand with what \
             `oht vm attach --qemu` prints",
            found.display()
        ),
        None => Ok(()),
    }
}

/// Whether the argument is one of QEMU's options, which begin with one hyphen or two.
fn is_option(argument: &OsStr, names: &[&str]) -> bool {
    let Some(option) = argument.to_str().and_then(|text| text.strip_prefix('-')) else { return false };
    names.contains(&option.strip_prefix('-').unwrap_or(option))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_around_the_router_is_refused() {
        for option in ["-nic", "--nic", "-net", "-netdev", "--netdev"] {
            let error = refuse_networks(&["-drive".into(), option.into(), "user".into()]).unwrap_err();
            assert!(error.to_string().contains(option), "{error}");
        }
        assert!(refuse_networks(&["-network".into(), "nic".into(), "-drive".into()]).is_ok());
    }

    #[test]
    fn how_qemu_ended_is_how_we_end() {
        let status = std::process::ExitStatus::from_raw;
        assert_eq!([status(0), status(3 << 8), status(15), status(9)].map(code), [0, 3, 143, 137]);
    }
}

//! What can be wrong with this host.

use std::{fs, path::Path};

use nix::unistd::{AccessFlags, access};

use super::{Check, is_silent};
use crate::{
    client::ClientError,
    config::Settings,
    image::Image,
    lock::{self, LockError},
    programs::{self, Programs},
    router_vm::words,
    sockets,
    status::{RouterState, Status},
    vms::VmTable,
};

/// QEMU is there and new enough.
pub(super) async fn qemu(settings: &Settings) -> Check {
    let remedy = programs::HELPERS[0].1;
    match Programs::new(&settings.programs).find(programs::QEMU) {
        Err(missing) => Check::problem("QEMU", missing.to_string(), remedy),
        Ok(program) => match qemu::version::check(&program).await {
            Ok(version) => Check::ok("QEMU", format!("{} is version {version}", program.display())),
            Err(error) => Check::problem("QEMU", words(&error), remedy),
        },
    }
}

/// KVM works; that it does not is only slow.
pub(super) async fn acceleration(settings: &Settings) -> Check {
    let program = Programs::new(&settings.programs).find(programs::QEMU).unwrap_or_else(|_| programs::QEMU.into());
    let decision = qemu::accel::choose(qemu::Accel::Auto, program).await;
    match decision.accelerator {
        qemu::Accelerator::Kvm => Check::ok("KVM", decision.reason),
        qemu::Accelerator::Tcg => {
            let remedy = if decision.reason.contains("group kvm") {
                "add yourself to the group kvm (`adduser USER kvm`) and log in again"
            } else {
                "none needed: the router VM is emulated, which is slower; for speed, switch on virtualisation in the \
                 firmware (or nesting in the hypervisor)"
            };
            Check::note("KVM", format!("not usable: {}", decision.reason), remedy)
        }
    }
}

/// The other programs are there.
pub(super) fn programs(settings: &Settings) -> Vec<Check> {
    let programs = Programs::new(&settings.programs);
    let others = programs::HELPERS.iter().skip(1);
    others
        .map(|(name, remedy)| match programs.find(name) {
            Ok(path) => Check::ok("program", format!("{name} is {}", path.display())),
            Err(_) => Check::problem("program", format!("{name} is nowhere to be found"), *remedy),
        })
        .collect()
}

/// The image is there and whole.
pub(super) fn image(settings: &Settings) -> Check {
    let checked = Image::find(settings.image.as_deref()).and_then(|image| image.check().map(|()| image));
    match checked {
        Ok(image) => Check::ok("image", format!("{} is whole", image.path().display())),
        Err(error) => Check::problem("image", words(&error), "cargo run -p image-build -- build --out target/image"),
    }
}

/// A directory is there and ours, or can be made.
pub(super) fn directory(check: &'static str, path: &Path, option: &str) -> Check {
    let shown = path.display();
    if path.is_dir() {
        return match access(path, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) => Check::ok(check, format!("{shown} is there and writable")),
            Err(errno) => {
                let remedy = format!("give it to the user who runs the agent (chown), or name another with {option}");
                Check::problem(check, format!("{shown} cannot be written: {errno}"), remedy)
            }
        };
    }
    if path.exists() {
        return Check::problem(check, format!("{shown} is no directory"), format!("name another with {option}"));
    }
    let parent = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    match access(parent, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => {
            Check::note(check, format!("{shown} is not there yet"), "none needed: `oht up` makes it at the first start")
        }
        Err(_) => {
            let remedy = format!("create it for this user, or name another with {option}");
            Check::problem(check, format!("{shown} is not there and {} cannot be written", parent.display()), remedy)
        }
    }
}

/// No agent but the one that answers has the state directory.
pub(super) fn lock(settings: &Settings, running: Option<&Status>) -> Check {
    let path = settings.state.lock();
    if let Some(status) = running {
        return Check::ok("lock", format!("the agent with PID {} runs", status.agent.pid));
    }
    if !path.exists() {
        return Check::ok("lock", "no agent uses the state directory");
    }
    match lock::peek(&path) {
        Ok(()) => Check::ok("lock", "no agent uses the state directory"),
        Err(LockError::Held { pid, .. }) => {
            let detail = format!("the agent with PID {pid} uses the state directory and does not answer here");
            let remedy = "use the --run-dir that it has, or end it (`kill PID`), or give --state-dir another directory";
            Check::problem("lock", detail, remedy)
        }
        Err(error) => Check::problem("lock", words(&error), "make the file readable for this user"),
    }
}

/// Somebody answers on the API's socket, or it is not there.
pub(super) fn api_socket(settings: &Settings, error: Option<&ClientError>) -> Check {
    let path = settings.run.api();
    let shown = path.display();
    match error {
        None => Check::ok("API socket", format!("the agent answers on {shown}")),
        Some(ClientError::Forbidden(_)) => {
            Check::problem("API socket", format!("{shown} may not be opened"), "run as the user who runs the agent")
        }
        Some(error) if is_silent(error) => {
            Check::problem("API socket", words(error), "see the agent's log in the run directory, then `oht down`")
        }
        Some(_) if sockets::is_stale(&path) => {
            let remedy = "`oht up` (replaces it) or `oht down` (removes it and what a killed agent has left running)";
            Check::problem("API socket", format!("{shown} is stale: nobody answers on it"), remedy)
        }
        Some(_) => Check::ok("API socket", "no agent is running"),
    }
}

/// The VMs' sockets are ours to take.
pub(super) fn vm_sockets(settings: &Settings, running: Option<&Status>) -> Vec<Check> {
    let table = match VmTable::load(&settings.state.vms()) {
        Ok(table) => table,
        Err(error) => return vec![Check::problem("VMs", words(&error), "mend the file, or move it away")],
    };
    let mut checks = vec![Check::ok("VMs", format!("{} are known", table.all().len()))];
    for vm in running.iter().flat_map(|status| &status.vms).filter(|vm| vm.port_pid.is_none()) {
        let detail = format!("the port of VM {} is not running ({})", vm.name, vm.socket);
        checks.push(Check::problem(
            "VM socket",
            detail,
            "see the failures in `oht status`; then `oht down` and `oht up`",
        ));
    }
    for (name, vm) in table.all() {
        let sockets = settings.run.vm_socket(name).map(|socket| [socket, settings.run.vsock_port(vm.link_port)]);
        match sockets {
            Err(error) => checks.push(Check::problem("VM socket", words(&error), "give a shorter --run-dir")),
            Ok(sockets) => {
                let taken = sockets.iter().find(|socket| running.is_none() && sockets::is_served(socket));
                checks.extend(taken.map(|socket| {
                    let detail = format!("another process serves the port of VM {name}: {}", socket.display());
                    let remedy = "`oht down` ends what a killed agent has left; else end that process (`ss -xlp`)";
                    Check::problem("VM socket", detail, remedy)
                }));
            }
        }
    }
    checks
}

/// The router VM is up.
pub(super) fn router(status: &Status) -> Check {
    let last = status.failures.last().map_or_else(String::new, |failure| format!("; last failure: {failure}"));
    let run = &status.agent.run_dir;
    match status.router.state {
        RouterState::Ready => Check::ok("router VM", format!("ready, started again {} times", status.router.restarts)),
        RouterState::Starting => Check::note("router VM", format!("is starting{last}"), "wait a moment"),
        RouterState::Failed | RouterState::Stopped => {
            let remedy = format!("read {run}/router.log and {run}/qemu.log");
            Check::problem("router VM", format!("is not running{last}"), remedy)
        }
    }
}

/// The time of the newest thing that the router wrote into its state, in seconds since the Unix epoch.
pub(super) fn newest_state(settings: &Settings) -> Option<u64> {
    newest(&settings.state.router(), 4)
}

/// Bounded in depth; arti's state has two levels.
fn newest(directory: &Path, depth: u32) -> Option<u64> {
    let entries = fs::read_dir(directory).ok()?.flatten().take(1000);
    let time = |entry: fs::DirEntry| {
        let metadata = entry.metadata().ok()?;
        if metadata.is_dir() && depth > 0 {
            return newest(&entry.path(), depth - 1);
        }
        let modified = metadata.is_file().then(|| metadata.modified().ok())??;
        Some(modified.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs())
    };
    entries.filter_map(time).max()
}

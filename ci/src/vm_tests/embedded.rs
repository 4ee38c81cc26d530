//! Embedded mode: the router program serves a VM's NIC on the host, with neither router VM nor agent.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Stage, Tests};
use crate::{
    app_vm::{AppVm, Spec},
    cache,
    netns::Netns,
    origin,
    processes::{Lifetime, Plan, Process},
};

pub(super) const TESTS: Tests = &[("embedded_mode_serves_a_vm", embedded_mode_serves_a_vm)];

const VM: &str = "embedded";
const START_TIME: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);

fn embedded_mode_serves_a_vm(stage: &mut Stage<'_>) -> Result<String> {
    let network = stage.world.tor.description();
    serve_a_vm(&stage.dir, &network, stage.world.host(), &stage.page_url())
}

fn serve_a_vm(dir: &Path, network: &Path, netns: Option<&Netns>, url: &str) -> Result<String> {
    let socket = dir.join("embedded.sock");
    let mut router = start_router(dir, network, netns, &socket)?;
    let spec =
        Spec { name: VM, dir, attach: attach(&socket), disk: None, netns, lifetime: Lifetime::Ours, ledger: dir };
    let vm = AppVm::start(spec)?;
    let lease = vm.lease(MINUTE).with_context(|| format!("the router said: {}", router.last_words()))?;
    let hash = origin::sha256(&origin::page());
    let end = Instant::now() + 2 * MINUTE;
    loop {
        let answer = vm.run(&format!("timeout 20 wget -q -O - {url} | sha256sum"), MINUTE)?;
        if answer.output.starts_with(&hash) {
            ensure!(router.exited().is_none(), "the router ended: {}", router.last_words());
            let lease_s = lease.0.as_secs_f64();
            return Ok(format!("lease after {lease_s:.1} s, page in {} ms", answer.time.as_millis()));
        }
        if Instant::now() > end {
            bail!("no page: {}; the router said: {}", answer.output, router.last_words());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Starts the router program in embedded mode and waits for its socket.
pub(crate) fn start_router(dir: &Path, network: &Path, netns: Option<&Netns>, socket: &Path) -> Result<Process> {
    let state = dir.join("embedded-state");
    for old in [socket, &state] {
        let _ = fs::remove_file(old).or_else(|_| fs::remove_dir_all(old));
    }
    fs::create_dir(&state).with_context(|| format!("cannot create {}", state.display()))?;
    fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let program = text(&cache::program("oht-router")?);
    let options = [("--vhost-user", socket), ("--tor-network", network), ("--state", &state)];
    let options = options.into_iter().flat_map(|(option, path)| [option.to_owned(), text(path)]);
    let mut router = Plan {
        name: "oht-router".into(),
        argv: [program, "--embedded".into()].into_iter().chain(options).collect(),
        log: dir.join("embedded.log"),
        netns,
        lifetime: Lifetime::Ours,
        ledger: dir.to_owned(),
    }
    .spawn()?;
    let end = Instant::now() + START_TIME;
    while !socket.exists() {
        if let Some(failure) = router.failure() {
            return Err(failure);
        }
        ensure!(Instant::now() < end, "the router makes no socket: {}", router.last_words());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(router)
}

/// As the README says for QEMU by hand.
pub(crate) fn attach(socket: &Path) -> Vec<String> {
    let memory = crate::app_vm::MEMORY_MIB;
    [
        "-object".into(),
        format!("memory-backend-memfd,id=oht-mem,size={memory}M,share=on"),
        "-machine".into(),
        "memory-backend=oht-mem".into(),
        "-chardev".into(),
        format!("socket,id=oht-net,path={},reconnect-ms=500", socket.display()),
        "-netdev".into(),
        "vhost-user,id=oht-net0,chardev=oht-net".into(),
        "-device".into(),
        "virtio-net-pci,netdev=oht-net0,mac=52:54:00:12:34:56".into(),
    ]
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    #[test]
    #[ignore = "boots a virtual machine: `cargo test -p ci -- --ignored`"]
    fn on_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::on_loopback(dir.path(), Lifetime::Ours).unwrap();
        let url = format!("http://origin.test:{}/", world.addresses.origin().port());
        println!("{}", serve_a_vm(dir.path(), &world.tor.description(), None, &url).unwrap());
    }
}

//! Each part of the appliance is killed (SIGKILL) while a VM fetches in a loop; nobody touches the VM, and its fetches
//! work again within [`RECOVERY_MAX`]. Recovered means: the part has a successor, and a fetch that began after that
//! was seen works, in both VMs.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{Stage, Tests};
use crate::{app_vm::AppVm, processes};

pub(super) const TESTS: Tests = &[
    ("kill_port", |stage| kill(stage, "port:a")),
    ("kill_uplink", |stage| kill(stage, "uplink")),
    ("kill_hung_port", |stage| kill_hung(stage, "port:a")),
    ("kill_hung_uplink", |stage| kill_hung(stage, "uplink")),
    ("kill_vsock_device", |stage| kill(stage, "vsock")),
    ("kill_virtiofsd", |stage| kill(stage, "virtiofsd")),
    ("kill_router_qemu", |stage| kill(stage, "qemu")),
    ("kill_host_agent", kill_host_agent),
    ("kill_everything", kill_everything),
];

/// Under emulation; with KVM the router VM is back in about a second.
const RECOVERY_MAX: Duration = Duration::from_secs(15);
/// After that the test gives up waiting, so that the next one finds a world that works again.
const RECOVERY_GIVE_UP: Duration = Duration::from_secs(90);
/// How long the traffic lasts during which a hung process is killed.
const TRAFFIC_S: u32 = 20;
/// Of one fetch: a program in the VM that gives up sooner than TCP does.
const FETCH_S: u32 = 3;

fn kill(stage: &mut Stage<'_>, name: &str) -> Result<String> {
    let old = stage.appliance.pid(name)?;
    during_fetches(stage, |stage| {
        murder(old);
        wait_for_successor(stage, name, old)
    })
}

/// A process that dies with bytes unread: the vsock device finds an error where it expects an end, and leaves the
/// connection open. Bytes go both ways meanwhile, so that it surely has some unread.
fn kill_hung(stage: &mut Stage<'_>, name: &str) -> Result<String> {
    let old = stage.appliance.pid(name)?;
    let (url, port) = (stage.url("origin.test", "/file/1024"), stage.world.addresses.origin().port());
    let traffic = format!(
        "timeout {TRAFFIC_S} wget -q -O /dev/null {url} & \
         {{ printf 'POST /upload HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 1000000000\\r\\n\\r\\n'; cat /dev/zero; }} \
         | timeout {TRAFFIC_S} nc origin.test {port} & wait"
    );
    stage.warm_up(&stage.a)?;
    let traffic = stage.a.shell.begin(&traffic, RECOVERY_GIVE_UP)?;
    thread::sleep(Duration::from_secs(1));
    let seen = during_fetches(stage, |stage| {
        processes::signal(old, Signal::SIGSTOP);
        thread::sleep(Duration::from_secs(1));
        murder(old);
        wait_for_successor(stage, name, old)
    })?;
    traffic.wait()?;
    Ok(seen)
}

/// What `systemd` or a person does then is start it again.
fn kill_host_agent(stage: &mut Stage<'_>) -> Result<String> {
    let old = stage.appliance.pid("host-agent")?;
    let before = stage.appliance.pids()?;
    let seen = during_fetches(stage, |stage| {
        murder(old);
        stage.appliance.up().context("oht up after the agent was killed")?;
        wait_for_successor(stage, "host-agent", old)
    })?;
    let after = stage.appliance.pids()?;
    let kept: Vec<&str> =
        after.iter().filter(|process| before.contains(process)).map(|(name, _)| name.as_str()).collect();
    let stray: Vec<_> = before
        .iter()
        .filter(|process| !after.contains(process) && processes::start_time(process.1).is_some())
        .collect();
    ensure!(stray.is_empty(), "processes of the old agent that nobody watches: {stray:?}");
    let what = if kept.is_empty() { "all replaced".to_owned() } else { format!("taken over: {}", kept.join(", ")) };
    Ok(format!("{seen}; {what}"))
}

/// The host's worst day short of a power cut.
fn kill_everything(stage: &mut Stage<'_>) -> Result<String> {
    let all = stage.appliance.pids()?;
    during_fetches(stage, |stage| {
        // The agent first, or it starts successors meanwhile.
        for (_, pid) in &all {
            murder(*pid);
        }
        stage.appliance.up().context("oht up after everything was killed")
    })
}

/// Runs a fetch loop in VM a, lets `disturb` kill something, and waits until fetches work again in both VMs.
fn during_fetches(stage: &Stage<'_>, disturb: impl FnOnce(&Stage<'_>) -> Result<()>) -> Result<String> {
    for vm in stage.vms() {
        stage.warm_up(vm)?;
    }
    let looping = format!(
        "rm -f stop; while [ ! -e stop ]; do timeout {FETCH_S} wget -q -O /dev/null {} 2>/dev/null && echo worked || echo failed; done | sort | uniq -c",
        stage.page_url()
    );
    let looping = stage.a.shell.begin(&looping, 3 * RECOVERY_GIVE_UP)?;
    thread::sleep(Duration::from_millis(500)); // so that the kill comes during a fetch, not before the first
    let began = Instant::now();
    let disturbed = disturb(stage);
    let recovered = disturbed.and_then(|()| stage.vms().iter().try_for_each(|vm| wait_for_fetch(stage, vm, began)));
    let time = began.elapsed();
    stage.a.run("touch stop", RECOVERY_MAX)?;
    let counts = looping.wait()?.ok()?;
    recovered?;
    ensure!(time <= RECOVERY_MAX, "recovered only after {:.1} s", time.as_secs_f64());
    let counts = counts.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(format!("fetches work {:.1} s after the kill ({counts} in the loop)", time.as_secs_f64()))
}

/// SIGKILL; returns when the process is no more.
fn murder(pid: u32) {
    processes::signal(pid, Signal::SIGKILL);
    while processes::start_time(pid).is_some() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn wait_for_successor(stage: &Stage<'_>, name: &str, old: u32) -> Result<()> {
    let end = Instant::now() + RECOVERY_GIVE_UP;
    loop {
        match stage.appliance.pid(name) {
            Ok(pid) if pid != old => return Ok(()),
            _ if Instant::now() > end => bail!("{name} has no successor; failures: {:?}", stage.appliance.status()),
            _ => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn wait_for_fetch(stage: &Stage<'_>, vm: &AppVm, began: Instant) -> Result<()> {
    let command = format!("timeout {FETCH_S} wget -q -O /dev/null {}", stage.page_url());
    loop {
        let answer = vm.run(&command, RECOVERY_MAX)?;
        if answer.status == 0 {
            return Ok(());
        }
        if began.elapsed() > RECOVERY_GIVE_UP {
            bail!("no fetch of VM {} works: {}; {:?}", vm.name, answer.output, stage.appliance.status());
        }
    }
}

//! Promise 1: no packet of a VM enters a kernel's network stack, and nothing but relays is spoken to.

use std::{collections::BTreeSet, fs, path::Path, process::Stdio, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Stage, Tests, kernel_config, sockets};
use crate::{
    capture::{Capture, Report, Rules},
    netns::{self, Netns},
};

pub(super) const WHILE_RUNNING: Tests = &[
    ("no_interface_of_a_vm_exists_on_the_host", no_interface_of_a_vm_exists_on_the_host),
    ("only_the_uplink_owns_network_sockets", only_the_uplink_owns_network_sockets),
    ("the_images_kernel_has_no_inet", the_images_kernel_has_no_inet),
];

pub(super) const AT_THE_END: Tests = &[
    ("the_capture_shows_relays_only", the_capture_shows_relays_only),
    ("the_capture_catches_planted_leaks", the_capture_catches_planted_leaks),
];

fn no_interface_of_a_vm_exists_on_the_host(stage: &mut Stage<'_>) -> Result<String> {
    for vm in stage.vms() {
        ensure!(fs::metadata(format!("/proc/{}", vm.pid())).is_ok(), "VM {} does not run", vm.name);
    }
    let inside = host(stage)?.interfaces()?;
    ensure!(inside == ["lo", "wire"], "the appliance's namespace has {inside:?}");
    let outside = netns::own_interfaces()?;
    let before = &stage.interfaces_before;
    ensure!(outside == *before, "the machine had {before:?} and now has {outside:?}");
    Ok(format!("two VMs run, and there is only {}", inside.join(" and ")))
}

fn only_the_uplink_owns_network_sockets(stage: &mut Stage<'_>) -> Result<String> {
    stage.warm_up(&stage.a)?;
    let owners = sockets::owners(host(stage)?)?;
    let others: Vec<_> = owners.iter().filter(|(name, _)| name != "oht-uplink" && name != "tcpdump").collect();
    ensure!(others.is_empty(), "other processes own sockets: {others:?}");
    let own: BTreeSet<&str> =
        owners.iter().filter(|(name, _)| name == "oht-uplink").map(|(_, table)| table.as_str()).collect();
    ensure!(own == BTreeSet::from(["tcp"]), "the uplink owns sockets of {own:?}");
    Ok(format!("{} TCP sockets, all of oht-uplink", owners.iter().filter(|(_, table)| table == "tcp").count()))
}

fn the_images_kernel_has_no_inet(stage: &mut Stage<'_>) -> Result<String> {
    let config = kernel_config::read(&stage.appliance.image().join("vmlinuz"))?;
    let set: BTreeSet<&str> = config.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    ensure!(set.contains("CONFIG_VIRTIO_VSOCKETS"), "this is not the router's configuration: no vsock");
    let unwanted = [
        "CONFIG_INET",
        "CONFIG_IPV6",
        "CONFIG_PACKET",
        "CONFIG_VIRTIO_NET",
        "CONFIG_MODULES",
        "CONFIG_BRIDGE",
        "CONFIG_TUN",
    ];
    let found: Vec<&&str> = unwanted.iter().filter(|option| set.contains(**option)).collect();
    ensure!(found.is_empty(), "the kernel has {found:?}");
    Ok(format!("{} options are set, and none of {}", set.len(), unwanted.join(", ")))
}

fn host<'a>(stage: &Stage<'a>) -> Result<&'a Netns> {
    stage.world.host().context("the world has no namespaces")
}

fn rules(stage: &Stage<'_>) -> Rules {
    Rules { own: netns::JOINED_SECOND, relays: stage.world.addresses.or_ports().into_iter().collect() }
}

fn the_capture_shows_relays_only(stage: &mut Stage<'_>) -> Result<String> {
    let rules = rules(stage);
    let report = stage.capture.take().context("it was judged already")?.finish(&rules)?;
    ensure!(report.others.is_empty(), "{} packets to relays, and these leaks: {:?}", report.allowed, report.others);
    ensure!(report.allowed > 0, "nothing was captured at all");
    Ok(format!("{} packets, all between the uplink and {} relays", report.allowed, report.relays.len()))
}

fn the_capture_catches_planted_leaks(stage: &mut Stage<'_>) -> Result<String> {
    plant_leaks(host(stage)?, &stage.dir, &rules(stage))
}

/// One of each kind that a mistake could let out.
fn plant_leaks(host: &Netns, dir: &Path, rules: &Rules) -> Result<String> {
    let leaks = [
        ("UDP to port 53, 10.19.0.2 to 9.9.9.9", "exec 3<>/dev/udp/9.9.9.9/53; printf leak >&3"),
        ("TCP 10.19.0.2 to 9.9.9.9:443", "timeout 0.3 bash -c 'exec 3<>/dev/tcp/9.9.9.9/443'"),
        ("TCP 10.19.0.2 to 10.20.0.1:7000", "timeout 0.3 bash -c 'exec 3<>/dev/tcp/10.20.0.1/7000'"),
        ("lo: UDP to port 53", "exec 3<>/dev/udp/127.0.0.1/53; printf leak >&3"),
    ];
    for (name, command) in leaks {
        let report = captured(host, dir, rules, command)?;
        if !report.others.keys().any(|other| other.contains(name)) {
            bail!("{name} was planted and not caught: {:?}", report.others);
        }
    }
    Ok(format!("{0} of {0} caught", leaks.len()))
}

/// A capture during which `command` runs in the appliance's namespace.
fn captured(host: &Netns, dir: &Path, rules: &Rules, command: &str) -> Result<Report> {
    let capture = Capture::start(host, dir, "planted")?;
    // Its status says nothing: that nobody answers is as it should be.
    host.command("bash").args(["-c", command]).stdin(Stdio::null()).stderr(Stdio::null()).status()?;
    thread::sleep(CAPTURE_LAG);
    capture.finish(rules)
}

/// tcpdump is handed a block of packets when it is full, or after a second.
const CAPTURE_LAG: Duration = Duration::from_millis(1200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: `cargo test -p ci -- --ignored`"]
    fn leaks_are_caught_and_quiet_is_quiet() {
        let dir = tempfile::tempdir().unwrap();
        let (tor, host) = (Netns::new().unwrap(), Netns::new().unwrap());
        netns::join(&tor, &host).unwrap();
        tor.ip("addr add 10.20.0.1/32 dev lo\n").unwrap();
        assert_eq!(host.interfaces().unwrap(), ["lo", "wire"]);
        let rules = Rules { own: netns::JOINED_SECOND, relays: BTreeSet::from(["10.20.0.1:5000".parse().unwrap()]) };
        plant_leaks(&host, dir.path(), &rules).unwrap();
        let quiet = captured(&host, dir.path(), &rules, "true").unwrap();
        assert_eq!((quiet.allowed, quiet.others.len()), (0, 0));
        let relay = "timeout 0.3 bash -c 'exec 3<>/dev/tcp/10.20.0.1/5000'";
        let spoken = captured(&host, dir.path(), &rules, relay).unwrap();
        assert_eq!((spoken.allowed, spoken.others.len()), (2, 0), "a SYN and its RST: {spoken:?}");
    }
}

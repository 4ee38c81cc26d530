//! VMs are kept apart: no circuit ever serves two of them, and no VM reaches another. The streams of one are spread.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Stage, Tests};

pub(super) const TESTS: Tests = &[
    ("parallel_streams_take_several_circuits", parallel_streams_take_several_circuits),
    ("vms_never_share_a_circuit", vms_never_share_a_circuit),
    ("vms_cannot_reach_each_other", vms_cannot_reach_each_other),
];

/// Frames that one VM sends to all while the other is looked at, at least.
const BROADCASTS_MIN: u64 = 5;

const MINUTE: Duration = Duration::from_secs(60);

/// Eight connections of one VM to one host, held open together; what the status says of them is what a person sees.
fn parallel_streams_take_several_circuits(stage: &mut Stage<'_>) -> Result<String> {
    stage.warm_up(&stage.a)?;
    let port = stage.world.addresses.origin().port();
    let hold = format!(
        "rm -f stop; for i in 1 2 3 4 5 6 7 8; do \
         {{ while [ ! -e stop ]; do sleep 1; done; }} | nc origin.test {port} >/dev/null & done; wait"
    );
    let held = stage.a.shell.begin(&hold, 3 * MINUTE)?;
    let end = Instant::now() + 2 * MINUTE;
    let seen = loop {
        let usage = usage(stage, "a")?;
        // Two streams a circuit are few enough for one destination.
        if usage["flows"].as_u64() >= Some(8) && usage["circuits"].as_u64() >= Some(4) {
            break usage;
        }
        ensure!(Instant::now() < end, "no eight flows on four circuits: {usage}");
        thread::sleep(Duration::from_millis(200));
    };
    stage.a.run("touch stop", MINUTE)?.ok()?;
    held.wait()?.ok()?;
    for (what, at_least) in [("bytes_from_vm", 100), ("bytes_to_vm", 1000)] {
        ensure!(seen[what].as_u64() >= Some(at_least), "{what} after a page was fetched: {seen}");
    }
    ensure!(seen["retries"].is_u64() && seen["drops"].is_object(), "{seen}");
    Ok(format!("{} flows on {} circuits, {} retries", seen["flows"], seen["circuits"], seen["retries"]))
}

/// What the status says that a VM uses.
fn usage(stage: &Stage<'_>, vm: &str) -> Result<Value> {
    let status = stage.appliance.status()?;
    let vms = status["vms"].as_array().context("the status lists no VMs")?;
    let found = vms.iter().find(|known| known["name"] == vm).with_context(|| format!("no VM {vm} in {status}"))?;
    Ok(found["usage"].clone())
}

fn vms_never_share_a_circuit(stage: &mut Stage<'_>) -> Result<String> {
    // The same destination at the same time is what would share one.
    let command = format!("for i in 1 2 3 4; do wget -q -O /dev/null {} || exit 1; done", stage.page_url());
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    let [a, b] = stage.vms().map(|vm| vm.shell.begin(&command, MINUTE));
    a?.wait()?.ok()?;
    b?.wait()?.ok()?;

    let mut by_vm: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut vms_of: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for circuit in stage.appliance.circuits()? {
        let distinct: BTreeSet<&String> = circuit.relays.iter().collect();
        ensure!(distinct.len() == circuit.relays.len(), "a relay stands twice in {circuit:?}");
        ensure!(circuit.onion || circuit.relays.len() == 3, "{circuit:?} has not three relays");
        for relay in &circuit.relays {
            let known = circuit.onion || stage.world.tor.relay(relay).is_some();
            ensure!(known, "{relay} of {circuit:?} is no relay of this network");
        }
        vms_of.entry(circuit.circuit.to_string()).or_default().insert(circuit.vm.clone());
        by_vm.entry(circuit.vm).or_default().insert(circuit.circuit.to_string());
    }
    let shared: Vec<_> = vms_of.iter().filter(|(_, vms)| vms.len() > 1).collect();
    ensure!(shared.is_empty(), "circuits that serve two VMs: {shared:?}");
    let count =
        |vm: &str| by_vm.get(vm).map(BTreeSet::len).with_context(|| format!("VM {vm} has no circuit: {by_vm:?}"));
    Ok(format!("{} circuits of a, {} of b, none in common", count("a")?, count("b")?))
}

fn vms_cannot_reach_each_other(stage: &mut Stage<'_>) -> Result<String> {
    // Every VM has the same address, so there is none to try but neighbours on the same link; and a frame to all.
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    let received = "cat /sys/class/net/eth0/statistics/rx_packets";
    let received_by_b = || stage.b.run(received, MINUTE)?.ok()?.trim().parse::<u64>().context("no number of packets");
    let before = received_by_b()?;
    stage.a.run("arping -b -c 3 -w 4 -I eth0 10.0.2.16; ping -c 3 -W 1 255.255.255.255; true", MINUTE)?.ok()?;
    let found = stage.a.run("arping -c 2 -w 3 -I eth0 10.0.2.16", MINUTE)?;
    ensure!(found.output.contains("Received 0 "), "somebody has 10.0.2.16: {}", found.output);
    let more = received_by_b()? - before;
    // The gateway's own advertisement comes every few minutes.
    ensure!(more < BROADCASTS_MIN, "b received {more} packets while a broadcast");
    Ok(format!("broadcasts of a do not reach b, which received {more} packets meanwhile"))
}

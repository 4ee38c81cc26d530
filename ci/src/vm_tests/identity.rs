//! A VM asks who it is, signs, and becomes somebody else.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Stage, Tests};
use crate::app_vm::AppVm;

pub(super) const TESTS: Tests = &[
    ("a_vm_is_told_who_it_is_and_signs", a_vm_is_told_who_it_is_and_signs),
    ("a_new_identity_has_another_key_and_other_circuits", a_new_identity_has_another_key_and_other_circuits),
];

const MINUTE: Duration = Duration::from_secs(60);

const GATEWAY: &str = "10.0.2.2";

/// What a VM is told at a path.
fn told(vm: &AppVm, path: &str) -> Result<Value> {
    let command = format!("timeout 20 wget -q -O - 'http://{GATEWAY}{path}'");
    let said = vm.run(&command, MINUTE)?.ok().with_context(|| format!("VM {} asks for {path}", vm.name))?;
    serde_json::from_str(&said).with_context(|| format!("{path} says {said}"))
}

fn key(vm: &AppVm) -> Result<String> {
    let identity = told(vm, "/identity")?;
    Ok(identity["key"].as_str().with_context(|| format!("no key in {identity}"))?.to_owned())
}

fn a_vm_is_told_who_it_is_and_signs(stage: &mut Stage<'_>) -> Result<String> {
    let stage = &*stage;
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    for vm in stage.vms() {
        let identity = told(vm, "/identity")?;
        ensure!(identity["name"] == vm.name.as_str(), "VM {} is told that it is {identity}", vm.name);
    }
    ensure!(key(&stage.a)? != key(&stage.b)?, "two VMs have one key");
    let onions = told(&stage.a, "/identity/onions")?;
    ensure!(onions.as_array().is_some_and(Vec::is_empty), "onion services that nobody published: {onions}");

    let text = "a text that the VM signs";
    let sign = format!("wget -q -O - --post-data '{text}' http://{GATEWAY}/identity/sign");
    let signature = stage.a.run(&sign, MINUTE)?.ok().context("VM a has a text signed")?;
    let [file, signed] = ["text", "text.sig"].map(|name| stage.dir.join(name));
    fs::write(&file, text)?;
    fs::write(&signed, &signature)?;
    let root: Value = serde_json::from_str(&signature).with_context(|| format!("no signature: {signature}"))?;
    let root = root["root"].as_str().context("a signature names its root")?;
    let (file_path, signed) = (file.to_string_lossy().into_owned(), signed.to_string_lossy().into_owned());
    let verified = stage.appliance.oht(&["key", "verify", &file_path, &signed, "--root", root])?;
    ensure!(verified["grants"].to_string().contains("vm a"), "verified as {verified}");
    fs::write(&file, "another text")?;
    let forged = stage.appliance.oht_output(&["key", "verify", &file_path, &signed, "--root", root])?;
    ensure!(!forged.status.success(), "the signature fits another text");
    Ok(format!("each is told its own name; a signature of {} bytes is good on the host", signature.len()))
}

/// The circuits of a VM that the agent knows.
fn circuits(stage: &Stage<'_>, vm: &str) -> Result<BTreeSet<String>> {
    let all = stage.appliance.circuits()?;
    Ok(all.into_iter().filter(|circuit| circuit.vm == vm).map(|circuit| circuit.circuit.to_string()).collect())
}

/// Fetches some pages, so that the VM has circuits; gives those that were not known before.
fn new_circuits(stage: &Stage<'_>, vm: &AppVm, before: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    stage.warm_up(vm)?;
    let fetch = format!("for i in 1 2 3 4; do timeout 30 wget -q -O /dev/null {} || exit 1; done", stage.page_url());
    vm.run(&fetch, 2 * MINUTE)?.ok()?;
    Ok(circuits(stage, &vm.name)?.difference(before).cloned().collect())
}

/// How many streams the agent has seen on these circuits.
fn streams_on(stage: &Stage<'_>, circuits: &BTreeSet<String>) -> Result<u64> {
    let all = stage.appliance.oht(&["circuits"])?;
    let all = all.as_array().context("the circuits are no list")?;
    let of = all.iter().filter(|circuit| circuits.contains(&circuit["circuit"].to_string()));
    of.map(|circuit| circuit["streams"].as_u64().context("a circuit does not count its streams")).sum()
}

fn a_new_identity_has_another_key_and_other_circuits(stage: &mut Stage<'_>) -> Result<String> {
    let stage = &*stage;
    stage.vms().iter().try_for_each(|vm| stage.warm_up(vm))?;
    let (key_a, key_b) = (key(&stage.a)?, key(&stage.b)?);
    let before = circuits(stage, "a")?;
    let streams = streams_on(stage, &before)?;
    ensure!(!before.is_empty() && streams > 0, "a has no circuits");
    let slow = format!("set -o pipefail; wget -q -O - {} | wc -l", stage.url("origin.test", "/slow/60"));
    let open = stage.a.shell.begin(&slow, 2 * MINUTE)?;
    let kept =
        stage.b.shell.begin(&format!("wget -q -O - {} | wc -l", stage.url("origin.test", "/slow/10")), 2 * MINUTE)?;
    let end = Instant::now() + MINUTE;
    while circuits(stage, "a")?.is_subset(&before) && streams_on(stage, &before)? == streams {
        ensure!(Instant::now() < end, "a has opened no stream");
        std::thread::sleep(Duration::from_millis(200));
    }
    let before = circuits(stage, "a")?;
    let fresh = stage.appliance.oht(&["vm", "new-identity", "a"])?;
    let streams = streams_on(stage, &before)?;
    let cut = open.wait()?;
    ensure!(cut.status != 0 && cut.time < MINUTE, "a stream of the old identity went on: {cut:?}");
    let key_now = key(&stage.a)?;
    ensure!(key_now != key_a && fresh["key"] == key_now.as_str(), "the VM has the key {key_now}, of old {key_a}");
    ensure!(key(&stage.b)? == key_b, "another VM has another key, too");
    let after = new_circuits(stage, &stage.a, &before)?;
    ensure!(!after.is_empty(), "no new circuit of a in {:?}", circuits(stage, "a")?);
    ensure!(streams_on(stage, &before)? == streams, "a stream went by a circuit of the old identity");
    ensure!(kept.wait()?.ok()?.trim() == "10", "the stream of b was cut");

    // Circuits alone: the key stays.
    let before = circuits(stage, "a")?;
    stage.appliance.oht(&["vm", "new-circuits", "a"])?;
    let streams = streams_on(stage, &before)?;
    let again = new_circuits(stage, &stage.a, &before)?;
    ensure!(!again.is_empty() && streams_on(stage, &before)? == streams, "new circuits are the old ones");
    ensure!(key(&stage.a)? == key_now, "new circuits changed the key");
    Ok(format!("{} circuits of old, {} of the new identity, then {} more", before.len(), after.len(), again.len()))
}

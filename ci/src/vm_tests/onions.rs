//! Onion services of VMs: published by one, reached by another, through Tor.

use std::{
    io::Write as _,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{LEASE_TIME, Stage, Tests};
use crate::{app_vm::AppVm, processes, world::appliance::said};

pub(super) const TESTS: Tests = &[
    ("onion_service_of_a_vm_answers_another", answers),
    ("onion_service_with_clients_wants_their_key", wants_key),
    ("onion_service_survives_the_router", survives),
    ("onion_service_leaves_no_key_in_the_state", leaves_no_key),
];

const MINUTE: Duration = Duration::from_secs(60);

/// Descriptors travel slowly in a young network.
const PATIENCE: Duration = Duration::from_secs(150);

/// What the VM serves.
const PAGE: &str = "a page out of a VM";

fn answers(stage: &mut Stage<'_>) -> Result<String> {
    prepare(stage)?;
    let onion = publish(stage, &["80:8080", "81:8081", "--name", "site"])?;
    let seen = (|| {
        let began = Instant::now();
        until(PATIENCE, || fetches(&stage.b, &onion)).context("the other VM gets no page")?;
        let after = began.elapsed();
        until(PATIENCE, || Ok(reachability(stage, "site")? == "reachable")).context("it never counts as reachable")?;
        until(PATIENCE, || fetches_by_c_tor(stage, &onion)).context("C tor gets no page")?;
        for (port, why) in [(81, "where the VM listens on nothing"), (82, "that the service does not have")] {
            let answer = stage.b.run(&format!("nc -w 30 {onion} {port} </dev/null"), MINUTE)?;
            ensure!(answer.output.contains("Connection refused"), "port {port}, {why}: {}", answer.output);
        }
        Ok(format!("{onion}, {:.1} s after it was published", after.as_secs_f64()))
    })();
    stage.appliance.oht(&["onion", "unpublish", "a", "site"])?;
    let seen = seen?;
    until(PATIENCE, || Ok(!fetches(&stage.b, &onion)?)).context("it answers after it was unpublished")?;
    ensure!(!listed(stage)?.iter().any(|service| service["name"] == "site"), "it is still listed");
    Ok(seen)
}

/// Neither the other VM nor the serving one gets in without the key, nor a C tor without any; with it, who has it does.
fn wants_key(stage: &mut Stage<'_>) -> Result<String> {
    prepare(stage)?;
    let (key, line) = new_client(stage)?;
    let onion = publish(stage, &["80:8080", "--name", "private", "--client", &key])?;
    let seen = (|| {
        until(PATIENCE, || Ok(reachability(stage, "private")? == "reachable"))
            .context("its own router is no client")?;
        let c_tor = stage.world.fetch_by_c_tor(&format!("http://{onion}/"))?;
        ensure!(!c_tor.status.success(), "C tor gets in without a key");
        for vm in stage.vms() {
            let answer = vm.run(&format!("nc -w 30 {onion} 80 </dev/null"), MINUTE)?;
            ensure!(answer.output.contains("No route to host"), "without a key: {}", answer.output);
        }
        authorise(stage, &onion, &line)?;
        let began = Instant::now();
        until(PATIENCE, || fetches(&stage.b, &onion)).context("no page with the key")?;
        let after = began.elapsed();
        ensure!(!fetches(&stage.a, &onion)?, "another VM gets in with the key of this one");
        stage.appliance.oht(&["onion", "deauthorise", "b", &onion])?;
        until(MINUTE, || Ok(!fetches(&stage.b, &onion)?)).context("it gets in after its key was taken away")?;
        authorise(stage, &onion, &new_client(stage)?.1)?;
        ensure!(!fetches(&stage.b, &onion)?, "it gets in with a key of somebody else");
        stage.appliance.oht(&["onion", "deauthorise", "b", &onion])?;
        Ok(format!("a page {:.1} s after the key was given", after.as_secs_f64()))
    })();
    stage.appliance.oht(&["onion", "unpublish", "a", "private"])?;
    seen
}

/// The router VM is killed, and the service is back under its address, for clients that knew it before too.
fn survives(stage: &mut Stage<'_>) -> Result<String> {
    prepare(stage)?;
    let onion = publish(stage, &["80:8080", "--name", "lasting"])?;
    let seen = (|| {
        let c_tor = || fetches_by_c_tor(stage, &onion);
        until(PATIENCE, c_tor).context("C tor gets no page")?;
        let old = stage.appliance.pid("qemu")?;
        processes::signal(old, Signal::SIGKILL);
        until(MINUTE, || Ok(stage.appliance.pid("qemu").is_ok_and(|pid| pid != old))).context("no new router VM")?;
        let began = Instant::now();
        until(PATIENCE, || fetches(&stage.b, &onion)).context("the other VM gets no page any more")?;
        let after = began.elapsed();
        until(PATIENCE, c_tor).context("C tor, which knew the service before, gets no page any more")?;
        Ok(format!("a page {:.1} s after QEMU was started again", after.as_secs_f64()))
    })();
    stage.appliance.oht(&["onion", "unpublish", "a", "lasting"])?;
    seen
}

/// What the router keeps on the host holds no key: neither where arti would keep them, nor under another name.
fn leaves_no_key(stage: &mut Stage<'_>) -> Result<String> {
    fn walk(dir: &Path, seen: &mut Vec<String>) -> Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            seen.push(path.display().to_string());
            if path.is_dir() && !path.is_symlink() {
                walk(&path, seen)?;
            }
        }
        Ok(())
    }
    let mut seen = vec![];
    walk(stage.appliance.state_dir(), &mut seen)?;
    // Names of arti's keystore and its files.
    let is_key = |path: &&String| ["keystore", "ks_", "_private"].iter().any(|part| path.contains(part));
    let keys: Vec<_> = seen.iter().filter(is_key).collect();
    ensure!(keys.is_empty(), "keys are in the state: {keys:?}");
    ensure!(seen.iter().any(|path| path.contains("/hss/")), "arti keeps nothing of services, so this looks elsewhere");
    Ok(format!("{} files", seen.len()))
}

/// Both VMs have a network, and the first serves.
fn prepare(stage: &Stage<'_>) -> Result<()> {
    stage.vms().iter().try_for_each(|vm| vm.lease(LEASE_TIME).map(drop))?;
    let serve = format!(
        "mkdir -p /www && echo '{PAGE}' > /www/index.html && (netstat -ltn | grep -q :8080 || httpd -p 8080 -h /www)"
    );
    stage.a.run(&serve, MINUTE)?.ok().context("the VM does not serve")?;
    Ok(())
}

/// A new key: a line for the service and one for the client.
fn new_client(stage: &Stage<'_>) -> Result<(String, String)> {
    let made = said(stage.appliance.command("oht")?.args(["onion", "client", "new", "--json"]).output()?)?;
    let made: Value = serde_json::from_str(&made)?;
    Ok((text(&made, "service")?, text(&made, "client")?))
}

/// Publishes a service of the first VM; gives its address.
fn publish(stage: &Stage<'_>, how: &[&str]) -> Result<String> {
    let published = stage.appliance.oht(&[&["onion", "publish", "a"], how].concat())?;
    text(&published, "onion")
}

fn text(json: &Value, field: &str) -> Result<String> {
    Ok(json[field].as_str().with_context(|| format!("no {field} in {json}"))?.to_owned())
}

fn listed(stage: &Stage<'_>) -> Result<Vec<Value>> {
    stage.appliance.oht(&["onion", "list"])?.as_array().cloned().context("no list")
}

fn reachability(stage: &Stage<'_>, name: &str) -> Result<String> {
    let service = listed(stage)?.into_iter().find(|service| service["name"] == name).context("it is not listed")?;
    text(&service, "reachability")
}

/// Gives the second VM a key.
fn authorise(stage: &Stage<'_>, onion: &str, line: &str) -> Result<()> {
    let mut command = stage.appliance.oht_command(&["onion", "authorise", "b", onion, "--key-stdin"])?;
    let mut oht = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    oht.stdin.take().context("no standard input")?.write_all(line.as_bytes())?;
    said(oht.wait_with_output()?).map(drop)
}

fn fetches(vm: &AppVm, onion: &str) -> Result<bool> {
    let answer = vm.run(&format!("timeout 30 wget -q -O - http://{onion}/"), MINUTE)?;
    Ok(answer.output.contains(PAGE))
}

fn fetches_by_c_tor(stage: &Stage<'_>, onion: &str) -> Result<bool> {
    Ok(stage.world.fetch_by_c_tor(&format!("http://{onion}/"))?.stdout.starts_with(PAGE.as_bytes()))
}

fn until(patience: Duration, done: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + patience;
    while !done()? {
        if Instant::now() > end {
            bail!("not within {} s", patience.as_secs());
        }
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

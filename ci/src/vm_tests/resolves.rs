//! A VM whose names are resolved (a route with `resolve`).

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::{LEASE_TIME, Stage, Tests};
use crate::{
    app_vm::{AppVm, Spec},
    origin,
    processes::Lifetime,
};

pub(super) const TESTS: Tests = &[("names_are_resolved_for_a_vm_that_wants_it", names_are_resolved)];

const VM: &str = "resolves";
const MINUTE: Duration = Duration::from_secs(60);

/// It sees the origin's own address and which name does not exist, as the exits' name server says; and the page comes.
fn names_are_resolved(stage: &mut Stage<'_>) -> Result<String> {
    stage.appliance.oht(&["vm", "add", VM])?;
    let added = stage.appliance.oht(&["route", "add", VM, "*", "resolve"])?;
    let seen = see(stage);
    stage.appliance.oht(&["route", "rm", &added["line"].to_string()])?;
    stage.appliance.oht(&["vm", "rm", VM])?;
    seen
}

fn see(stage: &Stage<'_>) -> Result<String> {
    let attach = stage.appliance.attach(VM)?;
    let (dir, netns) = (&stage.dir, stage.world.host());
    let spec = Spec { name: VM, dir, attach, disk: None, netns, lifetime: Lifetime::Ours, ledger: dir };
    let vm = AppVm::start(spec)?;
    vm.lease(LEASE_TIME)?;
    let address = stage.world.addresses.origin().ip().to_string();
    let end = Instant::now() + 2 * MINUTE;
    // Exits refuse when they are young, and busybox asks few times.
    while !vm.run("nslookup -type=a origin.test", MINUTE)?.output.contains(&address) {
        if Instant::now() > end {
            bail!("origin.test is not {address}: {}", vm.run("nslookup -type=a origin.test", MINUTE)?.output);
        }
        thread::sleep(Duration::from_secs(1));
    }
    let nothing = vm.run("nslookup -type=a nx.test", MINUTE)?.output;
    ensure!(nothing.contains("NXDOMAIN"), "nslookup says of a name that does not exist: {nothing}");
    let page = vm.run(&format!("wget -q -O - {} | sha256sum", stage.page_url()), MINUTE)?.ok()?;
    ensure!(page.starts_with(&origin::sha256(&origin::page())), "the page is not the origin's: {page}");
    Ok(format!("origin.test is {address}, nx.test does not exist"))
}

//! `cargo ci vm [FILTER…]`: what the appliance promises, tried with two application VMs at once.
//!
//! All of it runs in the two network namespaces of [`World::in_namespaces`], with every packet of the appliance's side
//! captured from before its start to the end; the last tests judge that capture, and see that it would catch a leak.
//!
//! | module | tests |
//! | --- | --- |
//! | [`reach`] | what a VM reaches, what it is refused, and how |
//! | [`onions`] | onion services that VMs publish |
//! | [`transfers`] | many, and large |
//! | [`embedded`] | the router program without a router VM |
//! | [`libvirt`] | an ordinary user's agent and libvirt |
//! | [`vm_run`] | a VM that the command starts |
//! | [`resolves`] | a VM whose names are resolved |
//! | [`identity`] | a VM asks who it is, signs, and becomes somebody else |
//! | [`routes`] | VMs with opposite routes, and routes that change while VMs connect |
//! | [`programs`] | real programs in a Debian guest |
//! | [`apart`] | VMs share no circuit, and take several; no VM reaches another |
//! | [`promise_one`] | no packet of a VM in a kernel's network stack; only relays are spoken to |
//! | [`bridges`] | an appliance that knows the Tor network by a bridge only |
//! | [`kills`] | each part killed in turn |
//! | [`doctor`] | what `oht doctor` finds |
//! | [`bad_input`] | names, images, disks and requests that are wrong |
//!
//! Each test is a line `ok NAME (seconds): what was seen` or `FAILED NAME: why`; the last line counts. Needs root.

mod apart;
mod bad_input;
mod bridges;
mod doctor;
pub(crate) mod embedded;
mod identity;
mod kernel_config;
mod kills;
mod libvirt;
mod onions;
mod programs;
mod promise_one;
mod reach;
mod resolves;
mod routes;
mod sockets;
mod transfers;
mod vm_run;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    app_vm::{AppVm, Spec},
    capture::Capture,
    netns,
    processes::{self, Lifetime},
    world::{
        World,
        appliance::{Appliance, exclusive_dir},
        interruption,
    },
};

const LEASE_TIME: Duration = Duration::from_secs(60);

/// Options of `cargo ci vm`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose names contain one of these.
    filter: Vec<String>,
    /// Name the tests and do nothing.
    #[arg(long)]
    list: bool,
    /// Stop at the first test that fails.
    #[arg(long)]
    fail_fast: bool,
    /// Go on after a test that failed; this is the default.
    #[arg(long)]
    keep_going: bool,
}

/// A test: what it saw, in words for a person, or why it failed.
struct Test {
    name: &'static str,
    run: fn(&mut Stage<'_>) -> Result<String>,
}

/// What tests play on.
pub(crate) struct Stage<'a> {
    world: &'a World,
    appliance: Appliance<'a>,
    a: AppVm,
    b: AppVm,
    /// Once a test has asked for it, and until the last such test ended it.
    debian: Option<Result<programs::Guest, String>>,
    /// Until a test judges it.
    capture: Option<Capture>,
    /// The machine's own interfaces before anything began.
    interfaces_before: Vec<String>,
    dir: PathBuf,
}

/// Order matters: the capture is judged after everything that could leak, the appliance's kills before that.
fn all() -> Vec<Test> {
    [
        reach::TESTS,
        onions::TESTS,
        transfers::TESTS,
        apart::TESTS,
        embedded::TESTS,
        vm_run::TESTS,
        libvirt::TESTS,
        resolves::TESTS,
        identity::TESTS,
        routes::TESTS,
        programs::TESTS,
        promise_one::WHILE_RUNNING,
        bridges::TESTS,
        kills::TESTS,
        bad_input::TESTS,
        doctor::TESTS,
        promise_one::AT_THE_END,
    ]
    .into_iter()
    .flatten()
    .map(|&(name, run)| Test { name, run })
    .collect()
}

/// The tests of a module.
type Tests = &'static [(&'static str, fn(&mut Stage<'_>) -> Result<String>)];

/// Runs `cargo ci vm`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted =
        |test: &Test| args.filter.is_empty() || args.filter.iter().any(|part| test.name.contains(part.as_str()));
    let tests: Vec<Test> = all().into_iter().filter(wanted).collect();
    if args.list {
        tests.iter().for_each(|test| println!("{}", test.name));
        return Ok(());
    }
    if tests.is_empty() {
        bail!("no test has a name like that: `cargo ci vm --list` names them");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the VM tests make network namespaces: run them as root");
    }
    let dir = exclusive_dir("vm-tests")?;
    clean(&dir)?;
    let to_clean = dir.clone();
    interruption::on_signal(move || {
        let _ = clean(&to_clean);
    })?;
    let interfaces_before = netns::own_interfaces()?;
    println!("starting the private Tor network in {}", dir.display());
    let world = World::in_namespaces(&dir)?;
    println!("consensus after {:.1} s; starting the appliance and two VMs", world.tor.consensus_time.as_secs_f64());
    let mut stage = Stage::set(&world, dir, interfaces_before)?;
    let failed = tests.len() - play(&tests, &mut stage, args.fail_fast && !args.keep_going);
    if failed > 0 {
        bail!("{failed} VM tests failed; logs are in {}", stage.dir.display());
    }
    Ok(())
}

/// Ends what an earlier run, or this one when it is interrupted, has running.
fn clean(dir: &Path) -> Result<()> {
    Appliance::in_dir(&dir.join("appliance")).down();
    processes::clear(dir).map(drop)
}

/// Runs the tests; gives how many passed.
fn play(tests: &[Test], stage: &mut Stage<'_>, fail_fast: bool) -> usize {
    let (mut passed, mut failed) = (0, 0);
    for test in tests {
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (test.run)(stage)));
        match outcome.unwrap_or_else(|_| Err(anyhow!("it panicked"))) {
            Ok(seen) => {
                passed += 1;
                println!("ok {} ({:.1} s): {seen}", test.name, began.elapsed().as_secs_f64());
            }
            Err(error) => {
                failed += 1;
                println!("FAILED {}: {error:#}", test.name);
                if fail_fast {
                    break;
                }
            }
        }
    }
    println!("vm: {passed} passed, {failed} failed");
    passed
}

impl<'a> Stage<'a> {
    fn set(world: &'a World, dir: PathBuf, interfaces_before: Vec<String>) -> Result<Stage<'a>> {
        let host = world.host().context("the world has no namespaces")?;
        let capture = Some(Capture::start(host, &dir, "all")?);
        let appliance = Appliance::new(&dir.join("appliance"), world)?;
        for path in [appliance.run_dir(), appliance.state_dir()] {
            let _ = std::fs::remove_dir_all(path);
        }
        // What an earlier run left may be of earlier sources.
        let _ = std::fs::remove_file(dir.join("app-vm.cpio"));
        appliance.up().context("oht up")?;
        let start = |name: &str| -> Result<AppVm> {
            AppVm::start(Spec {
                name,
                dir: &dir,
                attach: appliance.attach(name)?,
                disk: None,
                netns: Some(host),
                lifetime: Lifetime::Ours,
                ledger: &dir,
            })
        };
        let (a, b) = (start("a")?, start("b")?);
        println!("VMs booted in {:.1} and {:.1} s", a.boot_time.as_secs_f64(), b.boot_time.as_secs_f64());
        Ok(Stage { world, appliance, a, b, debian: None, capture, interfaces_before, dir })
    }

    /// The address of the origin's page, by name.
    fn page_url(&self) -> String {
        self.url("origin.test", "/")
    }

    /// A URL of the origin.
    fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.world.addresses.origin().port())
    }

    /// Fetches until one works: right after the start, exits sometimes refuse a stream.
    fn warm_up(&self, vm: &AppVm) -> Result<()> {
        vm.lease(LEASE_TIME)?;
        let command = format!(
            "for i in 1 2 3 4 5 6 7 8; do timeout 20 wget -q -O /dev/null {} && exit 0; sleep 1; done; exit 1",
            self.page_url()
        );
        vm.run(&command, Duration::from_secs(120))?.ok().context("no fetch works")?;
        Ok(())
    }

    /// Both VMs.
    fn vms(&self) -> [&AppVm; 2] {
        [&self.a, &self.b]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_has_a_name_of_its_own() {
        let mut names: Vec<&str> = all().iter().map(|test| test.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

//! `cargo ci demo`: what a newcomer sees first. A virtual machine with a stock Debian kernel fetches a page through the
//! router VM and a Tor network of real relays, all on this machine; every figure that is shown was just measured.
//!
//! `ci/demo` installs and builds what is needed and then calls this. It needs no root. Files and logs are in a directory
//! of its own (`/tmp/oht-demo-UID`), so nothing of an appliance in use is touched.

use std::{
    fs,
    io::{self, BufRead as _, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    app_vm::{self, AppVm, Shell, Spec},
    cache, origin,
    processes::{self, Lifetime},
    world::{
        World,
        appliance::{Appliance, own_dir},
        interruption,
    },
};

const VM: &str = "demo";
const FILE_MIB: u64 = 16;
const MINUTE: Duration = Duration::from_secs(60);
/// A fetch right after the network's start may be refused, and an onion service may not be published yet.
const FIRST_TIME: Duration = Duration::from_secs(120);

/// Options of `cargo ci demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave everything running, and say how to look around.
    #[arg(long)]
    keep: bool,
    /// End and remove what --keep left.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
    /// Type commands into the virtual machine that --keep left.
    #[arg(long, conflicts_with_all = ["keep", "clean"])]
    shell: bool,
}

/// Runs `cargo ci demo`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let dir = own_dir("demo")?;
    if args.shell {
        return type_into(&dir);
    }
    let removed = clean(&dir)?;
    if args.clean {
        println!("demo: {removed} processes ended, {} removed", dir.display());
        return Ok(());
    }
    let dir = own_dir("demo")?;
    let to_clean = dir.clone();
    interruption::on_signal(move || {
        let _ = clean(&to_clean);
    })?;
    show(&dir, args.keep).map_err(|error| {
        error.context(format!(
            "the demo failed (its logs are in {}; `oht doctor` finds what is wrong with a machine)",
            dir.display()
        ))
    })
}

/// Ends what runs and removes the directory; gives the number of processes.
fn clean(dir: &Path) -> Result<usize> {
    let agent = Appliance::in_dir(dir);
    let count = agent.pids().map_or(0, |pids| pids.len());
    agent.down();
    let count = count + processes::clear(dir)?;
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(count)
}

fn show(dir: &Path, keep: bool) -> Result<()> {
    let lifetime = if keep { Lifetime::Kept } else { Lifetime::Ours };
    let began = Instant::now();
    let say = |what: &str| println!("demo: {:5.1} s  {what}", began.elapsed().as_secs_f64());
    say("starting a private Tor network on loopback: 3 authorities, 6 exits");
    let world = World::on_loopback(dir, lifetime)?;
    say(&format!("its relays have a consensus ({:.1} s); starting the router VM", seconds(world.tor.consensus_time)));
    let appliance = Appliance::new(dir, &world)?;
    appliance.up().context("oht up")?;
    say("the router VM is up and Tor is usable; starting an application VM with Debian's stock kernel");
    let attach = appliance.attach(VM)?;
    let vm = AppVm::start(Spec { name: VM, dir, attach, disk: None, netns: None, lifetime, ledger: dir })?;
    let (lease_time, lease) = vm.lease(MINUTE)?;
    say(&format!("it booted and has a lease after {:.1} s ({lease}); fetching", seconds(lease_time)));
    let table = measure(&world, &appliance, &vm)?;
    println!();
    for (what, value) in table {
        println!("  {what:<24} {value}");
    }
    println!();
    if keep {
        how_to_look_around(dir, &appliance, &world)?;
        vm.leave();
        appliance.leave();
        world.leave();
    }
    println!(
        "demo: ok, a virtual machine read a page through the router VM and Tor ({:.0} s)",
        seconds(began.elapsed())
    );
    Ok(())
}

fn measure(world: &World, appliance: &Appliance<'_>, vm: &AppVm) -> Result<Vec<(&'static str, String)>> {
    let port = world.addresses.origin().port();
    let url = |path: &str| format!("http://origin.test:{port}{path}");
    let page_hash = origin::sha256(&origin::page());

    let page = fetch_hash(vm, &url("/"), &page_hash)?;
    let carrier = world.visits().last().and_then(|visit| visit.by.clone()).context("the origin saw nobody")?;
    ensure!(carrier.starts_with("exit"), "the page was carried by {carrier:?}, which is no exit");
    let path = path_to(world, appliance, &carrier)?;
    let first_byte = first_byte(vm, &url("/"))?;

    let began = Instant::now();
    let file = vm.run(&format!("wget -q -O - {} | sha256sum", url(&format!("/file/{FILE_MIB}"))), FIRST_TIME)?;
    let file_time = began.elapsed();
    ensure!(file.clone().ok()?.starts_with(&origin::file_sha256(FILE_MIB)), "the file is not the origin's: {file:?}");

    let onion = world.tor.onion()?;
    fetch_hash(vm, &format!("http://{onion}/"), &page_hash).context("the page from the onion service")?;

    let status = appliance.status()?;
    let number = |value: &serde_json::Value| value.as_f64().map_or("?".into(), |n| format!("{n:.2} s"));
    let accel = status["router"]["accel"].as_str().unwrap_or("?");
    let reason = status["router"]["accel_reason"].as_str().unwrap_or("?");
    Ok(vec![
        ("router VM boots", format!("{} ({accel}: {reason})", number(&status["router"]["boot_s"]))),
        ("application VM boots", format!("{:.2} s", seconds(vm.boot_time))),
        ("Tor bootstraps", number(&status["tor"]["bootstrap_s"])),
        ("the page", format!("{page} bytes, SHA-256 {page_hash}, equal to the origin's")),
        ("carried by the exit", format!("{carrier} ({path})")),
        ("time to first byte", format!("{:.0} ms", seconds(first_byte) * 1000.0)),
        ("a file of 16 MiB", format!("{:.1} MiB/s, equal to the origin's", FILE_MIB as f64 / seconds(file_time))),
        ("from an onion service", format!("the same page, http://{onion}/")),
    ])
}

/// Fetches until the hash is right; gives the number of bytes.
fn fetch_hash(vm: &AppVm, url: &str, hash: &str) -> Result<u64> {
    let end = Instant::now() + FIRST_TIME;
    loop {
        let answer = vm.run(&format!("timeout 20 wget -q -O page {url} && sha256sum <page && wc -c <page"), MINUTE)?;
        if answer.status == 0 {
            let said = answer.ok()?;
            ensure!(said.starts_with(hash), "{url} is not what the origin has: {said}");
            return said.lines().last().and_then(|n| n.trim().parse().ok()).context("no length");
        }
        if Instant::now() > end {
            bail!("{url} cannot be fetched: {}", answer.output.trim());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// From the start of wget, so with name resolution and connect, to the first byte of the answer.
fn first_byte(vm: &AppVm, url: &str) -> Result<Duration> {
    let command = format!("echo $EPOCHREALTIME; wget -q -O - {url} | {{ head -c 1 >/dev/null; echo $EPOCHREALTIME; }}");
    let said = vm.run(&command, MINUTE)?.ok()?;
    let times: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let [from, to] = times[..] else { bail!("the VM's clock said {said}") };
    Ok(Duration::from_secs_f64((to - from).max(0.0)))
}

/// The circuit of the VM that ends at this exit, by its relays' nicknames.
fn path_to(world: &World, appliance: &Appliance<'_>, exit: &str) -> Result<String> {
    let nickname = |rsa: &String| world.tor.relay(rsa).map_or("?", |relay| relay.nickname.as_str());
    let paths = appliance.circuits()?.into_iter().filter(|circuit| circuit.vm == VM && !circuit.onion);
    let mut paths = paths.map(|circuit| circuit.relays.iter().map(nickname).collect::<Vec<_>>());
    let path = paths.find(|path| path.last() == Some(&exit));
    Ok(path.with_context(|| format!("`oht circuits` lists no circuit that ends at {exit}"))?.join(" → "))
}

fn how_to_look_around(dir: &Path, appliance: &Appliance<'_>, world: &World) -> Result<()> {
    let oht = cache::program("oht")?;
    let run_dir = appliance.run_dir().display();
    println!("  Everything goes on. To look around:");
    println!("    {} status --run-dir {run_dir}", oht.display());
    println!("    {} circuits --run-dir {run_dir}", oht.display());
    println!("    ci/demo --shell          types commands into the virtual machine, such as");
    println!("                             wget -O - http://origin.test:{}/", world.addresses.origin().port());
    println!("    {}      logs", dir.display());
    println!("    ci/demo --clean          ends and removes all of it");
    println!();
    Ok(())
}

/// Lines from standard input to the VM's shell, and what comes back.
fn type_into(dir: &Path) -> Result<()> {
    let socket: PathBuf = app_vm::shell_socket(dir, VM);
    ensure!(socket.exists(), "no virtual machine is there: `ci/demo --keep` leaves one");
    let shell = Shell::connect(&socket, || Ok(()))?;
    println!("Commands run in the virtual machine one by one, a minute each; ^D ends.");
    let mut lines = io::stdin().lock().lines();
    loop {
        print!("vm# ");
        io::stdout().flush()?;
        let Some(line) = lines.next() else { break };
        let answer = shell.run(&line?, MINUTE)?;
        print!("{}", answer.output);
        if answer.status != 0 {
            println!("(status {})", answer.status);
        }
    }
    println!();
    Ok(())
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

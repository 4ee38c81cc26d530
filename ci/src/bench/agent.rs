//! What the host agent costs: its answers, its memory, a VM's way to a socket, a decision about a route.
//!
//! *agent_status*: from the start of `oht status` until it has ended, as a person waits for it, with all VMs there.
//! *agent_vm_add*: from the start of `oht vm add` until a front-end can connect to the VM's socket.
//! *agent_memory*: resident memory of `host-agent` with 64 VMs, their ports running.
//! *agent_route_decision*: the slowest kind of question of `wire/examples/routes.rs`, with 10,000 lines.
//!
//! All of them have budgets; there is no peer that does the same.

use std::{
    borrow::Cow,
    fs,
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::PATIENCE;
use crate::{
    cache,
    figures::{Better, Figure, Samples},
    processes,
    world::{World, appliance::Appliance},
};

/// As many as a router serves.
const VMS: u32 = 64;

const STATUS_MS_MAX: f64 = 20.0;
const VM_ADD_MS_MAX: f64 = 50.0;
const MEMORY_MIB_MAX: f64 = 32.0;
const DECISION_NS_MAX: f64 = 200.0;
const LINES: u64 = 10_000;

/// Measures.
pub(super) fn run(dir: &Path, world: &World, runs: u32) -> Result<()> {
    decision(runs)?;
    fs::create_dir_all(dir).context("cannot create a directory")?;
    let appliance = Appliance::new(dir, world)?;
    let log = fs::File::create(dir.join("agent.log")).context("cannot write a log")?;
    let mut agent = appliance.agent_command()?.stdout(Stdio::null()).stderr(log).spawn().context("host-agent")?;
    let measured = measure(&appliance, runs);
    appliance.down();
    let _ = agent.kill(); // It has ended in order, or never will.
    agent.wait().context("cannot wait for host-agent")?;
    measured.with_context(|| processes::last_lines(&dir.join("agent.log"), 5))
}

fn measure(appliance: &Appliance<'_>, runs: u32) -> Result<()> {
    // Until the router VM is there: its boot takes the processors.
    let end = Instant::now() + PATIENCE;
    while !appliance.status().is_ok_and(|status| status["tor"]["usable"] == true) {
        ensure!(Instant::now() < end, "Tor is not usable after {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(250));
    }
    let mut adding = Vec::new();
    for number in 0..VMS {
        let name = format!("vm{number}");
        let began = Instant::now();
        let added = appliance.oht(&["vm", "add", &name])?;
        let socket = added["socket"].as_str().context("`oht vm add` tells no socket")?;
        UnixStream::connect(socket).with_context(|| format!("nobody answers on {socket}"))?;
        adding.push(milliseconds(began));
    }
    budget("agent_vm_add", "ms", VM_ADD_MS_MAX, adding)?;
    let mut answers = Vec::new();
    for _ in 0..runs.max(5) * 4 {
        let began = Instant::now();
        let status = appliance.status()?;
        answers.push(milliseconds(began));
        ensure!(status["vms"].as_array().is_some_and(|vms| vms.len() == VMS as usize), "VMs are missing: {status}");
    }
    budget("agent_status", "ms", STATUS_MS_MAX, answers)?;
    let resident = processes::resident_kib(appliance.pid("host-agent")?)?;
    budget("agent_memory", "MiB", MEMORY_MIB_MAX, vec![resident as f64 / 1024.0])
}

/// The slowest kind of question, each run the median of many.
fn decision(runs: u32) -> Result<()> {
    let program = cache::programs()?.join("examples/routes");
    ensure!(program.is_file(), "{} is not built: run `cargo build --workspace --all-targets`", program.display());
    let mut slowest = Vec::new();
    for _ in 0..runs {
        let done = Command::new(&program).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let done = done.context("cannot start the example routes")?;
        ensure!(done.status.success(), "the example routes failed ({})", done.status);
        let lines = String::from_utf8_lossy(&done.stdout);
        let lines: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let of_many = lines.iter().filter(|line| line["lines"] == LINES).filter_map(|line| line["ns"].as_f64());
        slowest.push(of_many.max_by(f64::total_cmp).context("the example tells nothing about so many lines")?);
    }
    budget("agent_route_decision", "ns", DECISION_NS_MAX, slowest)
}

fn budget(name: &'static str, unit: &'static str, max: f64, ours: Vec<f64>) -> Result<()> {
    let figure = Figure { name: Cow::Borrowed(name), unit, peer: "budget", better: Better::Lower, goal: Some(1.0) };
    figure.print(&Samples { peer: vec![max; ours.len()], ours })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

//! `cargo ci bench`: what the appliance costs, against the best peer that can be had in the same run.
//!
//! | command | figures | module |
//! | --- | --- | --- |
//! | `bench boot` | `boot_ready`, `tor_usable` | [`boot`] |
//! | | `image_size` | here |
//! | | `router_memory` | [`memory`] |
//! | `bench path` | `path_first_byte`, `path_rate` | [`path`] |
//! | `bench embedded` | `embedded_first_byte`, `embedded_rate`: the router program on the host | [`path`] |
//! | `bench gateway` | `gateway_…`: the path without Tor, against passt | [`gateway`] |
//! | `bench flows` | `flows_…`: what open flows cost | [`flows`] |
//! | `bench gateway-vm` | `gateway_vm_…`: a VM behind ours, against one behind a gateway VM with C tor | [`gateway_vm`] |
//! | `bench tor` | `tor_…`: bulk downloads, against C tor's SOCKS and TransPort | [`tor`] |
//! | `bench agent` | `agent_…`: the host agent's answers, memory, new VMs and routes | [`agent`] |
//! | `bench pps` | `pps_…`: packets per second of the port | [`pps`] |
//!
//! `bench all` is every one.
//!
//! Figures go to stdout and nothing else does ([`crate::figures`]); what happens meanwhile goes to stderr. A figure
//! that cannot be had is a line that says why, and the next one is taken: one broken peer hides nothing else.

mod agent;
mod back_end;
mod boot;
mod c_tor;
mod flows;
mod gateway;
mod gateway_vm;
mod generators;
mod guest;
mod iperf;
mod memory;
mod path;
mod pps;
mod tor;

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cache,
    figures::{Better, Figure, Samples},
    processes::Lifetime,
    world::{
        World,
        appliance::{self, Appliance},
        interruption,
    },
};

/// Options of `cargo ci bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure.
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// How often each side of a comparison runs.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Boot, bootstrap, image, memory.
    Boot,
    /// First byte and rate.
    Path,
    /// The same without a router VM.
    Embedded,
    /// The path without Tor, against passt.
    Gateway,
    /// A VM behind the router VM, against one behind a gateway VM with C tor; needs root.
    GatewayVm,
    /// What open flows cost the gateway.
    Flows,
    /// Bulk downloads through Tor, against C tor.
    Tor,
    /// Packets per second of the port.
    Pps,
    /// The host agent: its answers, its memory, new VMs, routes.
    Agent,
    /// Every one. The first time it takes some minutes more, to make what the peers need.
    All,
}

/// The image's budget in MB (10⁶ bytes): kernel and initramfs.
const IMAGE_MB_MAX: f64 = 16.0;

const IMAGE_SIZE: Figure =
    Figure { name: Cow::Borrowed("image_size"), unit: "MB", peer: "budget", better: Better::Lower, goal: Some(1.0) };

/// How long a private Tor network and what stands on it may take to come up, and other things that should be quick.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures.
pub(crate) fn run(args: &Args) -> Result<()> {
    let dir = appliance::exclusive_dir("bench")?;
    clear(&dir)?;
    let to_end = dir.clone();
    interruption::on_signal(move || end_appliances(&to_end))?;
    let wanted = |what| args.what == what || args.what == What::All;
    let mut failed = vec![];
    let mut take = |name: &'static str, done: Result<()>| {
        if let Err(error) = done {
            eprintln!("bench: {name} failed: {error:#}");
            failed.push(name);
        }
    };
    if [What::Boot, What::Path, What::Embedded, What::Tor, What::Agent].into_iter().any(wanted) {
        if wanted(What::Boot) {
            image_size()?;
        }
        eprintln!("bench: starting a private Tor network");
        let world = World::on_loopback(&dir.join("world"), Lifetime::Ours)?;
        if wanted(What::Boot) {
            take("boot", boot::run(&dir.join("boot"), &world, args.runs));
            take("memory", memory::run(&dir.join("memory"), &world));
        }
        if wanted(What::Path) {
            take("path", path::run(&dir.join("path"), &world, args.runs));
        }
        if wanted(What::Embedded) {
            take("embedded", path::run_embedded(&dir.join("embedded"), &world, args.runs));
        }
        if wanted(What::Agent) {
            take("agent", agent::run(&dir.join("agent"), &world, args.runs));
        }
        if wanted(What::Tor) {
            take("tor", tor::run(&dir.join("tor"), &world, args.runs));
        }
    }
    if wanted(What::GatewayVm) {
        take("gateway-vm", gateway_vm::run(&dir.join("gateway-vm"), args.runs));
    }
    if wanted(What::Gateway) {
        take("gateway", gateway::run(&dir.join("gateway"), args.runs));
    }
    if wanted(What::Flows) {
        take("flows", flows::run(args.runs));
    }
    if wanted(What::Pps) {
        take("pps", pps::run(args.runs));
    }
    if !failed.is_empty() {
        bail!("{} could not be measured; the logs are in {}", failed.join(" and "), dir.display());
    }
    clear(&dir)
}

/// All else that is started ends with this program.
fn end_appliances(dir: &Path) {
    let benches = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    benches.filter(|bench| bench.join("run").exists()).for_each(|bench| Appliance::in_dir(&bench).down());
}

fn clear(dir: &PathBuf) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?.flatten() {
        let path = entry.path();
        let done = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        done.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn image_size() -> Result<()> {
    let image = cache::image()?;
    let mut bytes = 0;
    for name in ["vmlinuz", "initramfs.cpio.zst"] {
        bytes += fs::metadata(image.join(name)).with_context(|| format!("the image has no {name}"))?.len();
    }
    IMAGE_SIZE.print(&Samples::against_budget(bytes as f64 / 1e6, IMAGE_MB_MAX))
}

//! An application VM through the router VM, against the same application VM behind a gateway VM as Whonix has it
//! ([`peer`]): both sides are emulated alike, on the same private network, and take turns.
//!
//! A rate is of one file, or of eight at once. The CPU time is of everything on the host that a side has and an
//! application VM without Tor would not have: of ours the router VM's QEMU, the vsock device, virtiofsd, the uplink, the
//! port and the agent; of the peer the gateway VM's QEMU alone. The application VM's own QEMU is counted on neither side,
//! although with the peer it does what the port does with us. The memory is what the QEMU of the router VM and of the
//! gateway VM have in RAM after the last run. The link's share is the CPU time of the port and of the vsock device, which
//! carries the relays' bytes too, in that of all of ours during the downloads of one file.

mod peer;

use std::{borrow::Cow, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    PATIENCE,
    path::{self, NOW},
};
use crate::{
    app_vm::AppVm,
    figures::{Better, Figure, Samples, mib_per_second},
    processes,
    world::{World, appliance::Appliance},
};
use peer::Peer;

const fn figure(name: &'static str, unit: &'static str, better: Better, goal: Option<f64>) -> Figure {
    Figure { name: Cow::Borrowed(name), unit, peer: "Debian gateway VM with C tor", better, goal }
}

const FIRST_BYTE: Figure = figure("gateway_vm_first_byte", "s", Better::Lower, None);
const MEMORY: Figure = figure("gateway_vm_memory", "MiB", Better::Lower, None);
const LINK: Figure = Figure {
    name: Cow::Borrowed("gateway_vm_link_share"),
    unit: "of our CPU time",
    peer: "budget",
    better: Better::Lower,
    goal: Some(1.0),
};
const LINK_SHARE_MAX: f64 = 0.15;
const LOADS: [Load; 2] = [
    Load {
        streams: 1,
        mib: 16,
        rate: figure("gateway_vm_rate", "MiB/s", Better::Higher, Some(1.0)),
        cpu: figure("gateway_vm_cpu", "CPU-s/Gbit", Better::Lower, None),
    },
    Load {
        streams: 8,
        mib: 4,
        rate: figure("gateway_vm_rate_8", "MiB/s", Better::Higher, Some(1.0)),
        cpu: figure("gateway_vm_cpu_8", "CPU-s/Gbit", Better::Lower, None),
    },
];

/// So many files of so many MiB at once.
struct Load {
    streams: u32,
    mib: u32,
    rate: Figure,
    cpu: Figure,
}

/// How long a page and a load may take.
const PAGE_TIME_MAX: Duration = Duration::from_secs(20);
const LOAD_TIME_MAX: Duration = Duration::from_secs(160);

/// One side: the VM that fetches, and who works for it.
struct Side<'a> {
    vm: &'a AppVm,
    processes: Vec<u32>,
    /// Those of them that carry frames between the VM and whoever serves it.
    link: Vec<u32>,
    qemu: u32,
}

/// What a load came to.
#[derive(Clone, Copy, Debug)]
struct Download {
    mib_s: f64,
    cpu_s_per_gbit: f64,
    link_share: f64,
}

/// Measures, in a world of its own in namespaces, where packets of a gateway VM can be routed. Needs root.
pub(super) fn run(dir: &Path, runs: u32) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let mut figures = LOADS.into_iter().flat_map(|load| [load.rate, load.cpu]).chain([FIRST_BYTE, MEMORY]);
        return figures.try_for_each(|figure| figure.print_skipped(&[], "needs root, for namespaces"));
    }
    fs::create_dir_all(dir).context("cannot create a directory")?;
    eprintln!("bench: starting a private Tor network in namespaces, the gateway VM, the router VM and two VMs");
    let world = World::in_namespaces(&dir.join("world"))?;
    let peer = Peer::start(dir, &world)?;
    let appliance = Appliance::new(dir, &world)?;
    appliance.up()?;
    let vm = path::application_vm(&appliance, dir, &world)?;
    let processes = appliance.pids()?;
    let is_link = |name: &str| name == "vsock" || name.starts_with("port:");
    let link = processes.iter().filter(|(name, _)| is_link(name)).map(|&(_, pid)| pid).collect();
    let processes = processes.into_iter().map(|(_, pid)| pid).collect();
    let ours = Side { vm: &vm, processes, link, qemu: appliance.pid("qemu")? };
    let gateway = peer.gateway.pid();
    let theirs = Side { vm: &peer.app, processes: vec![gateway], link: vec![], qemu: gateway };
    measure(&mut (ours, theirs), runs)
}

fn measure(sides: &mut (Side<'_>, Side<'_>), runs: u32) -> Result<()> {
    for side in [&sides.0, &sides.1] {
        path::first_page(side.vm, PATIENCE)?;
    }
    let (mut first_byte, mut link) = (Samples::default(), Samples::default());
    let mut loads = LOADS.map(|load| (load, Samples::default(), Samples::default()));
    for run in 0..runs {
        eprintln!("bench: gateway-vm {} of {runs}", run + 1);
        first_byte.pair(sides, |sides| sides.0.first_byte(), |sides| sides.1.first_byte())?;
        for (load, rate, cpu) in &mut loads {
            let (mut own, mut other) = (None, None);
            let rate_of = |side: &Side<'_>, done: &mut Option<Download>| {
                let download = side.download(load)?;
                eprintln!("bench: {} streams, {}: {download:.3?}", load.streams, side.vm.name);
                Ok(done.insert(download).mib_s)
            };
            rate.pair(sides, |sides| rate_of(&sides.0, &mut own), |sides| rate_of(&sides.1, &mut other))?;
            cpu.ours.extend(own.map(|download| download.cpu_s_per_gbit));
            if load.streams == 1 {
                link.ours.extend(own.map(|download| download.link_share));
                link.peer.push(LINK_SHARE_MAX);
            }
            cpu.peer.extend(other.map(|download| download.cpu_s_per_gbit));
        }
    }
    FIRST_BYTE.print(&first_byte)?;
    for (load, rate, cpu) in &loads {
        load.rate.print(rate)?;
        load.cpu.print(cpu)?;
    }
    LINK.print(&link)?;
    MEMORY.print(&Samples { ours: vec![sides.0.memory_mib()?], peer: vec![sides.1.memory_mib()?] })
}

impl Side<'_> {
    /// Seconds until the first byte of a page.
    fn first_byte(&self) -> Result<f64> {
        Ok(path::fetch_in(self.vm, "/", PAGE_TIME_MAX)?.first_byte.as_secs_f64())
    }

    fn download(&self, load: &Load) -> Result<Download> {
        let script = format!(
            "{NOW}now\nfor i in $(seq {0}); do {{ wget -q -O /dev/null {1} && echo >/tmp/.fetched.$i; }} & done; wait\n\
             now\nfor i in $(seq {0}); do rm /tmp/.fetched.$i || exit 1; done\n",
            load.streams,
            path::url(&format!("/file/{}", load.mib))
        );
        let before = (cpu(&self.processes)?, cpu(&self.link)?);
        let said = self.vm.run(&script, LOAD_TIME_MAX)?.ok()?;
        let all = cpu(&self.processes)?.saturating_sub(before.0);
        let link = cpu(&self.link)?.saturating_sub(before.1);
        let [began, ended] = path::clock(&said)?;
        let bytes = u64::from(load.streams * load.mib) << 20;
        Ok(Download {
            mib_s: mib_per_second(bytes, ended.saturating_sub(began)),
            cpu_s_per_gbit: all.as_secs_f64() / (bytes as f64 * 8e-9),
            link_share: link.as_secs_f64() / all.as_secs_f64(),
        })
    }

    fn memory_mib(&self) -> Result<f64> {
        Ok(processes::resident_kib(self.qemu)? as f64 / 1024.0)
    }
}

fn cpu(processes: &[u32]) -> Result<Duration> {
    processes.iter().map(|&pid| processes::cpu(pid)).sum()
}

//! What a VM gets out of the path: the first byte of a page, and MiB/s of a large file, against C tor's SOCKS on the
//! host, on the same network and in the same run.
//!
//! In the VM the clock is the kernel's, read by the shell itself from `/proc/timer_list`, as busybox has no clock finer
//! than a second. Its time includes starting `wget`, resolving the name and connecting; curl's on the host includes the
//! SOCKS exchange. Both sides fetch once before anything counts, so that both have a circuit.

use std::{
    borrow::Cow,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    PATIENCE,
    c_tor::{self, Fetch},
};
use crate::{
    app_vm::{AppVm, Spec},
    figures::{Better, Figure, Samples, mib_per_second},
    processes::Lifetime,
    vm_tests::embedded,
    world::{World, addresses::ORIGIN_PORT, appliance::Appliance},
};

/// The two figures of a path.
struct Figures {
    first_byte: Figure,
    rate: Figure,
}

const THROUGH_THE_ROUTER_VM: Figures = figures("path_first_byte", "path_rate");
const EMBEDDED: Figures = figures("embedded_first_byte", "embedded_rate");

const fn figures(first_byte: &'static str, rate: &'static str) -> Figures {
    let peer = "C tor SOCKS on the host";
    Figures {
        first_byte: Figure { name: Cow::Borrowed(first_byte), unit: "s", peer, better: Better::Lower, goal: None },
        rate: Figure { name: Cow::Borrowed(rate), unit: "MiB/s", peer, better: Better::Higher, goal: None },
    }
}

/// The large file.
const FILE_MIB: u32 = 16;
/// How long it may take: 0.2 MiB/s.
const FILE_TIME_MAX: Duration = Duration::from_secs(80);
const PAGE_TIME_MAX: Duration = Duration::from_secs(20);

/// Measures through the router VM.
pub(super) fn run(dir: &Path, world: &World, runs: u32) -> Result<()> {
    fs::create_dir_all(dir).context("cannot create a directory")?;
    let appliance = Appliance::new(dir, world)?;
    eprintln!("bench: starting the router and a VM");
    appliance.up()?;
    let vm = application_vm(&appliance, dir, world)?;
    measure(&THROUGH_THE_ROUTER_VM, &vm, world, runs)
}

/// Measures with the router program on the host: what the router VM costs is the difference.
pub(super) fn run_embedded(dir: &Path, world: &World, runs: u32) -> Result<()> {
    fs::create_dir_all(dir).context("cannot create a directory")?;
    eprintln!("bench: starting the embedded router and a VM");
    let socket = dir.join("embedded.sock");
    let _router = embedded::start_router(dir, &world.tor.description(), world.host(), &socket)?;
    let vm = start(embedded::attach(&socket), dir, world)?;
    measure(&EMBEDDED, &vm, world, runs)
}

fn measure(figures: &Figures, vm: &AppVm, world: &World, runs: u32) -> Result<()> {
    first_page(vm, PATIENCE)?;
    c_tor::fetch(world, &url("/"), PATIENCE)?;
    let (mut first_byte, mut rate) = (Samples::default(), Samples::default());
    let mut both = (vm, world);
    for run in 0..runs {
        eprintln!("bench: path {} of {runs}", run + 1);
        let seconds = |fetch: Fetch| fetch.first_byte.as_secs_f64();
        first_byte.pair(
            &mut both,
            |(vm, _)| fetch_in(vm, "/", PAGE_TIME_MAX).map(seconds),
            |(_, world)| c_tor::fetch(world, &url("/"), PAGE_TIME_MAX).map(seconds),
        )?;
        let file = format!("/file/{FILE_MIB}");
        let mib_s = |fetch: Fetch| mib_per_second(u64::from(FILE_MIB) << 20, fetch.whole);
        rate.pair(
            &mut both,
            |(vm, _)| fetch_in(vm, &file, FILE_TIME_MAX).map(mib_s),
            |(_, world)| c_tor::fetch(world, &url(&file), FILE_TIME_MAX).map(mib_s),
        )?;
    }
    figures.first_byte.print(&first_byte)?;
    figures.rate.print(&rate)
}

/// Starts an application VM and waits for its address.
pub(super) fn application_vm(appliance: &Appliance<'_>, dir: &Path, world: &World) -> Result<AppVm> {
    start(appliance.attach("bench")?, dir, world)
}

fn start(attach: Vec<String>, dir: &Path, world: &World) -> Result<AppVm> {
    let netns = world.host();
    let vm =
        AppVm::start(Spec { name: "bench", dir, attach, disk: None, netns, lifetime: Lifetime::Ours, ledger: dir })?;
    vm.lease(PATIENCE).context("the VM gets no address")?;
    Ok(vm)
}

/// Fetches a page, again and again until it comes: exits refuse streams when they are young.
pub(super) fn first_page(vm: &AppVm, time_max: Duration) -> Result<()> {
    let end = Instant::now() + time_max;
    loop {
        match fetch_in(vm, "/", PAGE_TIME_MAX) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}

/// The address of a path of the origin, by name.
pub(super) fn url(path: &str) -> String {
    format!("http://origin.test:{ORIGIN_PORT}{path}")
}

/// Fetches a path of the origin in the VM.
pub(super) fn fetch_in(vm: &AppVm, path: &str, time_max: Duration) -> Result<Fetch> {
    let script = format!(
        "{NOW}now\n\
         {{ wget -q -O - {} && echo >/tmp/.fetched; }} | {{ head -c 1 >/dev/null; now; cat >/dev/null; now; }}\n\
         rm /tmp/.fetched\n",
        url(path)
    );
    let said = vm.run(&script, time_max)?.ok().with_context(|| format!("the VM does not get {path}"))?;
    let [before, first, after] = clock(&said)?;
    Ok(Fetch { first_byte: first - before, whole: after - before })
}

/// A function of the VM's shell that prints the kernel's clock. `read` is the shell's own, so reading the clock starts no
/// program. Line 3 is "now at N nsecs".
pub(super) const NOW: &str = "now() { { read -r _; read -r _; read -r _ _ ns _; } </proc/timer_list; echo $ns; }\n";

/// What `now` printed, `N` times: lines of nanoseconds since the VM's boot.
///
/// # Errors
/// When it is something else, or the clock goes backwards.
pub(super) fn clock<const N: usize>(said: &str) -> Result<[Duration; N]> {
    let times: Vec<_> = said.lines().filter_map(|line| line.trim().parse().ok()).map(Duration::from_nanos).collect();
    let times = <[Duration; N]>::try_from(times).ok().filter(|times| times.is_sorted());
    times.with_context(|| format!("{N} times in order were expected, the VM printed {said:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_vm_is_read() {
        assert_eq!(clock("1000\n5000\n901000\n").unwrap(), [1, 5, 901].map(Duration::from_micros));
        assert!(clock::<3>("1000\n5000\n").is_err());
        assert!(clock::<3>("5000\n1000\n2000\n").is_err());
    }
}

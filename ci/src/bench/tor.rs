//! Bulk downloads through a private Tor network, on one stream and on eight: ours in embedded mode against C tor's SOCKS
//! and its TransPort, each with and without conflux.
//!
//! Our side has a guest under User Mode Linux, which alone moves some hundred times what the network does, and so is
//! not what limits. C tor's clients run on the host: no guest at all, which is to their advantage.
//!
//! C tor's TransPort is reached without a packet filter: in its TPROXY mode it takes the address that was connected to
//! for the destination. So it listens at an address of the loopback that is mapped to the origin's name. That needs
//! root; without, those figures are skipped.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{PATIENCE, guest::Guest};
use crate::{
    cache,
    figures::{Better, Figure, Samples},
    processes::{Lifetime, Plan, Process},
    vm_tests::embedded,
    world::{World, addresses::ORIGIN_PORT},
};

/// The world's name for it.
const ORIGIN_NAME: &str = "origin.test";
/// Streams, and MiB of each.
const LOADS: [(u32, u32); 2] = [(1, 16), (8, 8)];
/// How long a download may take: 0.5 MiB/s.
const TIME_MAX: Duration = Duration::from_secs(130);

/// A peer: how it is reached, and whether with conflux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    transparent: bool,
    conflux: bool,
}

/// C tor as a client.
struct CTor {
    way: Way,
    process: Process,
    socks: SocketAddr,
    /// What stands for the origin when it is transparent.
    origin: Ipv4Addr,
}

/// What a download came to.
#[derive(Clone, Copy, Debug)]
struct Download {
    mib_s: f64,
    cpu_s_per_gbit: f64,
}

/// Measures.
pub(super) fn run(dir: &Path, world: &World, runs: u32) -> Result<()> {
    fs::create_dir_all(dir).context("cannot create a directory")?;
    let socket = dir.join("embedded.sock");
    let router = embedded::start_router(dir, &world.tor.description(), world.host(), &socket)?;
    let mut guest = Guest::boot(dir, &socket, 1500)?;
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    let ways = ways.map(|(transparent, conflux)| Way { transparent, conflux });
    let peers = ways.map(|way| CTor::start(way, dir, world));
    until_it_works(|| ours(&mut guest, &router, 1, 1))?;
    for peer in peers.iter().flatten() {
        until_it_works(|| peer.fetch(1, 1))?;
    }
    let mut table: BTreeMap<(u32, usize), [Samples; 2]> = BTreeMap::new();
    for run in 0..runs {
        eprintln!("bench: tor {} of {runs}", run + 1);
        for (streams, mib) in LOADS {
            let mut own = ours(&mut guest, &router, streams, mib)?;
            for (index, peer) in peers.iter().enumerate() {
                let Ok(peer) = peer else { continue };
                let theirs = peer.fetch(streams, mib)?;
                eprintln!("bench: {streams} streams: ours {own:.3?}, {:?} {theirs:.3?}", peer.way);
                let [rate, cpu] = table.entry((streams, index)).or_default();
                rate.ours.push(own.mib_s);
                rate.peer.push(theirs.mib_s);
                cpu.ours.push(own.cpu_s_per_gbit);
                cpu.peer.push(theirs.cpu_s_per_gbit);
                if index + 1 < peers.len() {
                    own = ours(&mut guest, &router, streams, mib)?;
                }
            }
        }
    }
    for (streams, _) in LOADS {
        for (index, peer) in peers.iter().enumerate() {
            let figures = figures(ways[index], streams);
            match (peer, table.get(&(streams, index))) {
                (Ok(_), Some(samples)) => figures.iter().zip(samples).try_for_each(|(f, samples)| f.print(samples))?,
                (Err(error), _) => figures.iter().try_for_each(|f| f.print_skipped(&[], &format!("{error:#}")))?,
                (Ok(_), None) => bail!("nothing was measured"),
            }
        }
    }
    Ok(())
}

/// Rate and CPU time.
fn figures(way: Way, streams: u32) -> [Figure; 2] {
    let (peer, by) = match (way.transparent, way.conflux) {
        (false, false) => ("C tor SOCKS without conflux", "socks"),
        (false, true) => ("C tor SOCKS with conflux", "socks_conflux"),
        (true, false) => ("C tor TransPort without conflux", "transport"),
        (true, true) => ("C tor TransPort with conflux", "transport_conflux"),
    };
    let goal = match (streams, way.conflux) {
        (1, false) => Some(1.0),
        (8, true) => Some(2.0),
        _ => None,
    };
    let figure = |what: &str, unit, better, goal| Figure {
        name: Cow::Owned(format!("tor_{streams}_{by}_{what}")),
        unit,
        peer,
        better,
        goal,
    };
    [figure("rate", "MiB/s", Better::Higher, goal), figure("cpu", "CPU-s/Gbit", Better::Lower, None)]
}

/// Young exits refuse streams.
fn until_it_works(mut fetch: impl FnMut() -> Result<Download>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while let Err(error) = fetch() {
        if Instant::now() > end {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

fn ours(guest: &mut Guest, router: &Process, streams: u32, mib: u32) -> Result<Download> {
    let program = own_program()?;
    let line =
        format!("{program} load fetch {ORIGIN_NAME} {ORIGIN_PORT} /file/{mib} --streams {streams} --resolver 10.0.2.2");
    measure(router, || guest.run(&line, TIME_MAX))
}

fn own_program() -> Result<String> {
    let program = env::current_exe().context("cannot find out where this program is")?;
    Ok(program.to_string_lossy().into_owned())
}

fn measure(process: &Process, load: impl FnOnce() -> Result<String>) -> Result<Download> {
    let before = process.cpu()?;
    let said = load()?;
    let cpu = process.cpu()?.saturating_sub(before);
    let report: Value = serde_json::from_str(&said).with_context(|| format!("the load printed {said:?}"))?;
    let field = |name: &str| report[name].as_f64().with_context(|| format!("the load reports no {name}"));
    let (bytes, seconds) = (field("bytes")?, field("seconds")?);
    Ok(Download { mib_s: bytes / f64::from(1 << 20) / seconds, cpu_s_per_gbit: cpu.as_secs_f64() / (bytes * 8e-9) })
}

impl CTor {
    /// Starts a client with the configuration of the world's first one, and waits until it has a circuit.
    fn start(way: Way, dir: &Path, world: &World) -> Result<CTor> {
        let number = 1 + u8::from(way.transparent) * 2 + u8::from(way.conflux);
        let origin = Ipv4Addr::new(127, 250, 0, number);
        let socks = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?.local_addr()?;
        let data = dir.join(format!("c-tor-{number}"));
        let log = dir.join(format!("c-tor-{number}.log"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut argv = vec![text(&cache::tor()?), "-f".into(), text(&world.dir().join("nodes/client0/torrc"))];
        let mut option = |name: &str, value: String| argv.extend([format!("--{name}"), value]);
        option("DataDirectory", text(&data));
        option("SocksPort", socks.to_string());
        option("ConfluxEnabled", u8::from(way.conflux).to_string());
        option("Log", "notice stdout".into());
        if way.transparent {
            option("TransPort", format!("{origin}:{ORIGIN_PORT}"));
            option("TransProxyType", "TPROXY".into());
            option("MapAddress", format!("{origin} {ORIGIN_NAME}"));
        }
        let name = format!("c-tor-{number}");
        let plan = Plan { name, argv, log: log.clone(), netns: None, lifetime: Lifetime::Ours, ledger: dir.to_owned() };
        let mut tor = CTor { way, process: plan.spawn()?, socks, origin };
        let end = Instant::now() + PATIENCE;
        while !fs::read_to_string(&log).unwrap_or_default().contains("Bootstrapped 100%") {
            if let Some(failure) = tor.process.failure() {
                return Err(failure);
            }
            ensure!(Instant::now() < end, "C tor does not bootstrap: {}", tor.process.last_words());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(tor)
    }

    fn fetch(&self, streams: u32, mib: u32) -> Result<Download> {
        let mut command = Command::new(own_program()?);
        command.args(["load", "fetch"]);
        if self.way.transparent {
            command.arg(self.origin.to_string());
        } else {
            command.args([ORIGIN_NAME, "--socks", &self.socks.to_string()]);
        }
        command.args([&ORIGIN_PORT.to_string(), &format!("/file/{mib}"), "--streams", &streams.to_string()]);
        measure(&self.process, || {
            let done = command.output().context("cannot start the load")?;
            ensure!(done.status.success(), "through C tor: {}", String::from_utf8_lossy(&done.stderr).trim());
            Ok(String::from_utf8_lossy(&done.stdout).into_owned())
        })
    }
}

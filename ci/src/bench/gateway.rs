//! What the path costs on the host without Tor: our back-end with plain sockets against passt, under User Mode Linux.
//!
//! For each run and each back-end a guest is booted, at MTU 1500 and 65520, and iperf3 moves bytes both ways on one and
//! on eight streams; then come round trips of one byte, and connections; these on the host itself too, to see what the
//! first byte takes longer in the guest. Whose turn is first alternates. The guest, the
//! back-end and the far end share the machine's processors, so what counts is less how fast it was than what the
//! back-end took for it: CPU time from the scheduler, of the back-end alone.

use std::{borrow::Cow, collections::BTreeMap, env, fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    back_end::{BackEnd, HOST, Kind},
    guest::Guest,
    iperf::{self, Direction, Server},
};
use crate::{
    figures::{Better, Figure, Samples},
    load,
};

const PEER: &str = "passt --vhost-user";
const MTUS: [u32; 2] = [1500, 65520];
const STREAMS: [u32; 2] = [1, 8];
/// Of each transfer.
const SECONDS: u32 = 1;
const ROUND_TRIPS: u32 = 5000;
const CONNECTIONS: u32 = 1000;
/// How long one measurement may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// What the path may add to the time from a guest's connect to its first byte.
const FIRST_BYTE_ADDED_MS_MAX: f64 = 1.0;
const FIRST_BYTE_ADDED: Figure = Figure {
    name: Cow::Borrowed("gateway_first_byte_added"),
    unit: "ms",
    peer: "budget",
    better: Better::Lower,
    goal: Some(1.0),
};

/// The samples of each figure, by name.
type Table = BTreeMap<String, (Figure, Samples)>;

/// What one back-end is measured with.
struct Bench<'a> {
    dir: &'a Path,
    server: Server,
    echo: SocketAddr,
    figures: Table,
    /// What the first byte takes longer in the guest than on the host.
    added_ms: Vec<f64>,
}

/// Measures.
pub(super) fn run(dir: &Path, runs: u32) -> Result<()> {
    fs::create_dir_all(dir).context("cannot create a directory")?;
    let mut bench = Bench {
        dir,
        server: Server::start(dir)?,
        echo: load::echo_server()?,
        figures: Table::default(),
        added_ms: vec![],
    };
    let mut no_peer = None;
    for run in 0..runs {
        eprintln!("bench: gateway {} of {runs}", run + 1);
        let mut turns = [Kind::Ours, Kind::Passt];
        if run % 2 == 1 {
            turns.reverse(); // Whoever is always first would always find the caches cold.
        }
        for kind in turns {
            match bench.turn(kind) {
                Err(error) if kind == Kind::Passt => no_peer = Some(format!("{error:#}")),
                done => done?,
            }
        }
    }
    for (figure, samples) in bench.figures.values() {
        match &no_peer {
            None => figure.print(samples)?,
            Some(why) => figure.print_skipped(&samples.ours, why)?,
        }
    }
    let budget = vec![FIRST_BYTE_ADDED_MS_MAX; bench.added_ms.len()];
    FIRST_BYTE_ADDED.print(&Samples { ours: bench.added_ms, peer: budget })
}

impl Bench<'_> {
    fn turn(&mut self, kind: Kind) -> Result<()> {
        for mtu in MTUS {
            let back_end = BackEnd::start(kind, self.dir)?;
            let mut guest = Guest::boot(self.dir, back_end.socket(), mtu)?;
            for streams in STREAMS {
                for direction in [Direction::Out, Direction::In] {
                    self.transfer(kind, &back_end, &mut guest, (direction, streams, mtu))?;
                }
            }
            if mtu == MTUS[0] {
                self.series(kind, &back_end, &mut guest, "round_trip", "round-trips", ROUND_TRIPS)?;
                self.series(kind, &back_end, &mut guest, "connection", "connections", CONNECTIONS)?;
            }
            drop(guest);
            eprintln!("bench: {kind:?} at MTU {mtu} ended: {}", back_end.finish().trim());
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        kind: Kind,
        back_end: &BackEnd,
        guest: &mut Guest,
        (direction, streams, mtu): (Direction, u32, u32),
    ) -> Result<()> {
        let before = back_end.cpu()?;
        let said = guest.run(&self.server.client(HOST, direction, streams, SECONDS), TIME_MAX)?;
        let cpu = back_end.cpu()?.saturating_sub(before);
        let moved = iperf::parse(&said)?;
        let gbit = moved.bytes as f64 * 8e-9;
        let way = if direction == Direction::Out { "out" } else { "in" };
        let name = format!("gateway_{way}_{streams}_mtu{mtu}");
        eprintln!(
            "bench: {kind:?} {name}: {:.2} Gbit/s, {:.4} CPU-s per Gbit, {} retransmits",
            gbit / moved.seconds,
            cpu.as_secs_f64() / gbit,
            moved.retransmits
        );
        // Out of the guest with large frames, passt is close to the limit of the socket itself.
        let goal = if direction == Direction::Out && mtu == MTUS[1] { 1.0 } else { 1.5 };
        let better = Better::Higher;
        self.take(kind, format!("{name}_per_cpu"), "Gbit/CPU-s", better, Some(goal), gbit / cpu.as_secs_f64());
        self.take(kind, format!("{name}_rate"), "Mbit/s", better, None, 1e3 * gbit / moved.seconds);
        Ok(())
    }

    fn series(
        &mut self,
        kind: Kind,
        back_end: &BackEnd,
        guest: &mut Guest,
        name: &str,
        load: &str,
        count: u32,
    ) -> Result<()> {
        let program = env::current_exe().context("cannot find out where this program is")?;
        let line = format!("{} load {load} {HOST}:{} --count {count}", program.display(), self.echo.port());
        let before = back_end.cpu()?;
        let said = guest.run(&line, TIME_MAX)?;
        let cpu_us = back_end.cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / f64::from(count);
        let report: Value = serde_json::from_str(&said).with_context(|| format!("the load printed {said:?}"))?;
        let seconds = report["seconds"].as_f64().context("the load reports no time")?;
        let goal = if name == "connection" { Some(0.5) } else { None };
        eprintln!("bench: {kind:?} {name}: {:.0} a second, {cpu_us:.1} µs of CPU", f64::from(count) / seconds);
        self.take(kind, format!("gateway_{name}_cpu"), "µs", Better::Lower, goal, cpu_us);
        self.take(kind, format!("gateway_{name}s"), "1/s", Better::Higher, None, f64::from(count) / seconds);
        if let Some(first_byte) = report["first_byte_seconds"].as_f64() {
            self.take(kind, "gateway_first_byte".into(), "ms", Better::Lower, None, 1e3 * first_byte);
            if kind == Kind::Ours {
                let direct = load::connections(self.echo, count)?["first_byte_seconds"].as_f64();
                self.added_ms.push(1e3 * (first_byte - direct.context("the load reports no first byte")?));
            }
        }
        Ok(())
    }

    fn take(&mut self, kind: Kind, name: String, unit: &'static str, better: Better, goal: Option<f64>, value: f64) {
        let figure = Figure { name: Cow::Owned(name.clone()), unit, peer: PEER, better, goal };
        let (_, samples) = self.figures.entry(name).or_insert((figure, Samples::default()));
        match kind {
            Kind::Ours => samples.ours.push(value),
            Kind::Passt => samples.peer.push(value),
        }
    }
}

//! What open flows cost the gateway: CPU per packet with few and with many of them, and memory of an idle one.
//!
//! The example `flows` of the gateway measures itself; here its lines become figures. With many flows the peer is the
//! gateway with one.

use std::{
    borrow::Cow,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    cache,
    figures::{Better, Figure, Samples},
};

const FLOW_COUNTS: [u64; 4] = [1, 100, 1_000, 10_000];

/// Figures of bulk transfers, and how the example names their directions.
const BULK: [(&str, &str); 2] = [("flows_bulk_out", "from the VM"), ("flows_bulk_in", "to the VM")];

/// A packet with 10,000 flows may take so many times what it takes with one.
const COST_GOAL: f64 = 1.1;

const IDLE_BYTES_MAX: f64 = 2048.0;

const IDLE: Figure = Figure {
    name: Cow::Borrowed("flows_idle_memory"),
    unit: "B",
    peer: "budget",
    better: Better::Lower,
    goal: Some(1.0),
};

/// Measures.
pub(super) fn run(runs: u32) -> Result<()> {
    let program = cache::programs()?.join("examples/flows");
    ensure!(program.is_file(), "{} is not built: run `cargo build --workspace --all-targets`", program.display());
    let mut costs = vec![vec![]; FLOW_COUNTS.len()];
    let (mut idle, mut bulk) = (0.0, BULK.map(|_| vec![]));
    for run in 0..runs {
        eprintln!("bench: flows {} of {runs}", run + 1);
        let done = Command::new(&program).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let done = done.context("cannot start the example flows")?;
        ensure!(done.status.success(), "the example flows failed ({})", done.status);
        let said = parse(&String::from_utf8_lossy(&done.stdout))?;
        costs.iter_mut().zip(said.costs_ns).for_each(|(costs, cost)| costs.push(cost));
        bulk.iter_mut().zip(said.bulk_gbit_s).for_each(|(bulk, rate)| bulk.push(rate));
        idle = said.idle_bytes;
    }
    for (index, count) in FLOW_COUNTS.iter().enumerate() {
        let figure = Figure {
            name: Cow::Owned(format!("flows_packet_cost_{count}")),
            unit: "ns",
            peer: "the same with one flow",
            better: Better::Lower,
            goal: Some(COST_GOAL),
        };
        figure.print(&Samples { ours: costs[index].clone(), peer: costs[0].clone() })?;
    }
    for ((name, _), rates) in BULK.iter().zip(&bulk) {
        let figure =
            Figure { name: Cow::Borrowed(name), unit: "Gbit/CPU-s", peer: "none", better: Better::Higher, goal: None };
        figure.print_skipped(rates, "the gateway alone, without rings and sockets: there is no such part of a peer")?;
    }
    IDLE.print(&Samples::against_budget(idle, IDLE_BYTES_MAX))
}

#[derive(Debug, PartialEq)]
struct Said {
    /// For each of [`FLOW_COUNTS`].
    costs_ns: Vec<f64>,
    /// With the most flows.
    idle_bytes: f64,
    /// For each of [`BULK`].
    bulk_gbit_s: Vec<f64>,
}

/// Reads the example's lines.
fn parse(text: &str) -> Result<Said> {
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let field = |key: &str, value: Value, name: &str| {
        let line = lines.iter().find(|line| line[key] == value);
        line.and_then(|line| line[name].as_f64()).with_context(|| format!("the example tells no {name} of {value}"))
    };
    let most = FLOW_COUNTS[FLOW_COUNTS.len() - 1];
    Ok(Said {
        costs_ns: FLOW_COUNTS
            .iter()
            .map(|&count| field("flows", count.into(), "ns_per_packet"))
            .collect::<Result<_>>()?,
        idle_bytes: field("flows", most.into(), "bytes_per_flow")?,
        bulk_gbit_s: BULK
            .iter()
            .map(|&(_, way)| field("direction", way.into(), "gbit_per_s"))
            .collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_understood() {
        let flows = [1, 100, 1000, 10000].map(|count| {
            format!("{{\"figure\":\"flows\",\"flows\":{count},\"ns_per_packet\":{count}.5,\"bytes_per_flow\":900}}\n")
        });
        let bulk = ["from the VM", "to the VM"]
            .map(|way| format!("{{\"figure\":\"bulk\",\"direction\":\"{way}\",\"gbit_per_s\":40.5}}\n"));
        let text = flows.concat() + &bulk.concat();
        let costs_ns = vec![1.5, 100.5, 1000.5, 10000.5];
        assert_eq!(parse(&text).unwrap(), Said { costs_ns, idle_bytes: 900.0, bulk_gbit_s: vec![40.5, 40.5] });
        assert!(parse(&flows.concat()).is_err());
        assert!(parse(&text[flows[0].len()..]).is_err());
        assert!(parse("no JSON").is_err());
    }
}

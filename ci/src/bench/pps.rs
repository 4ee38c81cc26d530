//! Packets per second of the port, with DPDK's virtio_user for a driver, which costs next to nothing itself.
//!
//! The port's example `echo_check` sends numbered frames, `testpmd` sends them back, and every one is checked: a frame
//! counts when it has gone both ways. Neither has a peer that takes the same frames.

use std::{
    borrow::Cow,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::generators;
use crate::{
    cache,
    figures::{Better, Figure},
};

const FRAMES: &str = "2000000";
/// Of a frame.
const BYTES: [u32; 2] = [64, 1500];
const CARRIERS: [&str; 2] = ["link", "in-process"];

/// Measures.
pub(super) fn run(runs: u32) -> Result<()> {
    for bytes in BYTES {
        for carrier in CARRIERS {
            let (mut rate, mut cpu) = (vec![], vec![]);
            for run in 0..runs {
                eprintln!("bench: {bytes} bytes, {carrier}, {} of {runs}", run + 1);
                let echoed = echo(bytes, carrier)?;
                rate.push(echoed.mpps);
                cpu.push(echoed.cpu_ns);
            }
            let name = format!("pps_{bytes}_{}", carrier.replace('-', "_"));
            print(format!("{name}_rate"), "Mpps", Better::Higher, &rate)?;
            print(format!("{name}_cpu"), "ns/frame", Better::Lower, &cpu)?;
        }
    }
    Ok(())
}

fn print(name: String, unit: &'static str, better: Better, values: &[f64]) -> Result<()> {
    let figure = Figure { name: Cow::Owned(name), unit, peer: "none", better, goal: None };
    figure.print_skipped(values, "no other back-end takes these frames and sends them back")
}

#[derive(Debug, PartialEq)]
struct Echoed {
    mpps: f64,
    cpu_ns: f64,
}

fn echo(bytes: u32, carrier: &str) -> Result<Echoed> {
    let program = cache::programs()?.join("examples/echo_check");
    ensure!(program.is_file(), "{} is not built: run `cargo build --workspace --all-targets`", program.display());
    let done = Command::new(&program)
        .arg("--testpmd")
        .arg(generators::path("testpmd")?)
        .args(["--frames", FRAMES, "--bytes", &bytes.to_string(), "--carrier", carrier])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the example echo_check")?;
    ensure!(done.status.success(), "frames were lost, or testpmd does not run: see above");
    parse(&String::from_utf8_lossy(&done.stdout))
}

fn parse(text: &str) -> Result<Echoed> {
    let line: Value = serde_json::from_str(text).with_context(|| format!("echo_check printed {text:?}"))?;
    let field = |name: &str| line[name].as_f64().with_context(|| format!("echo_check reports no {name}"));
    let (received, seconds) = (field("received")?, field("seconds")?);
    Ok(Echoed { mpps: received / seconds / 1e6, cpu_ns: field("port_cpu_seconds")? * 1e9 / received })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_understood() {
        let text = "{\"carrier\":\"link\",\"bytes\":64,\"frames\":2000000,\"received\":2000000,\"lost\":0,\
                    \"seconds\":4.0,\"port_cpu_seconds\":1.0}\n";
        assert_eq!(parse(text).unwrap(), Echoed { mpps: 0.5, cpu_ns: 500.0 });
        assert!(parse("{}").is_err());
    }
}

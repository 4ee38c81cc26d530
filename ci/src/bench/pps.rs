//! Packets per second of the port, with DPDK's virtio_user for a driver, which costs next to nothing itself, and with
//! Linux's in User Mode Linux, which costs a lot.
//!
//! The port's example `echo_check` sends numbered frames, `testpmd` or the Linux guest sends them back, and every one is
//! checked: a frame counts when it has gone both ways. There is no peer that takes the same frames.

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

/// Of a frame.
const BYTES: [u32; 2] = [64, 1500];
const CARRIERS: [&str; 2] = ["link", "in-process"];

/// What sends the frames back.
struct FrontEnd {
    name: &'static str,
    /// The example's option that takes the program.
    option: &'static str,
    /// What `ci/generators` calls it.
    program: &'static str,
    frames: &'static str,
}

const FRONT_ENDS: [FrontEnd; 2] = [
    FrontEnd { name: "dpdk", option: "--testpmd", program: "testpmd", frames: "2000000" },
    FrontEnd { name: "linux", option: "--linux", program: "uml", frames: "500000" },
];

/// Measures.
pub(super) fn run(runs: u32) -> Result<()> {
    for front_end in &FRONT_ENDS {
        for (bytes, carrier) in BYTES.into_iter().flat_map(|bytes| CARRIERS.map(|carrier| (bytes, carrier))) {
            let name = format!("pps_{}_{bytes}_{}", front_end.name, carrier.replace('-', "_"));
            let (mut rate, mut cpu) = (vec![], vec![]);
            for run in 0..runs {
                eprintln!("bench: {name}, {} of {runs}", run + 1);
                let echoed = echo(front_end, bytes, carrier)?;
                rate.push(echoed.mpps);
                cpu.push(echoed.cpu_ns);
            }
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

fn echo(front_end: &FrontEnd, bytes: u32, carrier: &str) -> Result<Echoed> {
    let program = cache::programs()?.join("examples/echo_check");
    ensure!(program.is_file(), "{} is not built: run `cargo build --workspace --all-targets`", program.display());
    let done = Command::new(&program)
        .arg(front_end.option)
        .arg(generators::path(front_end.program)?)
        .args(["--frames", front_end.frames, "--bytes", &bytes.to_string(), "--carrier", carrier])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the example echo_check")?;
    ensure!(done.status.success(), "frames were lost, or the front-end does not run: see above");
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

//! iperf3: a server on the host's loopback, and what its client prints.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::generators;
use crate::processes::{Lifetime, Plan, Process};

const START_TIME: Duration = Duration::from_secs(20);

/// Which way the bytes go, from the guest's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Guest to host.
    Out,
    /// Host to guest.
    In,
}

/// What one run of the client moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moved {
    /// Bytes that arrived.
    pub(super) bytes: u64,
    /// In so many seconds.
    pub(super) seconds: f64,
    /// Segments that the sender sent again, when it could tell.
    pub(super) retransmits: u64,
}

/// A server that runs.
pub(super) struct Server {
    /// Held so that it goes on.
    _process: Process,
    program: PathBuf,
    port: u16,
}

impl Server {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When iperf3 cannot be had, or does not listen.
    pub(super) fn start(dir: &Path) -> Result<Server> {
        let program = generators::path("iperf3")?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?.local_addr()?.port();
        let log = dir.join("iperf3.log");
        let mut argv = command(&program);
        argv.extend(["--server", "--bind", "127.0.0.1", "--forceflush", "--port"].map(String::from));
        argv.push(port.to_string());
        let plan = Plan {
            name: "iperf3".into(),
            argv,
            log: log.clone(),
            netns: None,
            lifetime: Lifetime::Ours,
            ledger: dir.to_owned(),
        };
        let mut process = plan.spawn()?;
        let end = Instant::now() + START_TIME;
        while !fs::read_to_string(&log).unwrap_or_default().contains("Server listening") {
            if let Some(failure) = process.failure() {
                return Err(failure);
            }
            ensure!(Instant::now() < end, "iperf3 does not listen: {}", process.last_words());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Server { _process: process, program, port })
    }

    /// The line that runs a client in a guest, against this server at `host`.
    pub(super) fn client(&self, host: &str, direction: Direction, streams: u32, seconds: u32) -> String {
        let reverse = if direction == Direction::In { " --reverse" } else { "" };
        format!(
            "{} --client {host} --port {} --parallel {streams} --time {seconds} --interval 0 --json{reverse}",
            command(&self.program).join(" "),
            self.port,
        )
    }
}

/// iperf3 with its libraries beside it.
fn command(program: &Path) -> Vec<String> {
    let libraries = program.ancestors().nth(2).unwrap_or(program).join("lib/x86_64-linux-gnu");
    let program = program.to_string_lossy().into_owned();
    ["env".into(), format!("LD_LIBRARY_PATH={}", libraries.display()), program].into()
}

/// Reads what a client printed.
///
/// # Errors
/// When it is no report, or the report of a failure.
pub(super) fn parse(said: &str) -> Result<Moved> {
    let report: Value = serde_json::from_str(said).with_context(|| format!("iperf3 printed {said:?}"))?;
    if let Some(error) = report["error"].as_str() {
        anyhow::bail!("iperf3: {error}");
    }
    let (sent, received) = (&report["end"]["sum_sent"], &report["end"]["sum_received"]);
    Ok(Moved {
        bytes: received["bytes"].as_u64().context("iperf3 reports no bytes")?,
        seconds: received["seconds"].as_f64().context("iperf3 reports no time")?,
        retransmits: sent["retransmits"].as_u64().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let said = r#"{"start":{},"end":{"sum_sent":{"bytes":1200,"seconds":1.0,"retransmits":3},
            "sum_received":{"bytes":1000,"seconds":1.01}}}"#;
        assert_eq!(parse(said).unwrap(), Moved { bytes: 1000, seconds: 1.01, retransmits: 3 });
    }

    #[test]
    fn failures_are_errors() {
        assert!(parse("").is_err());
        assert!(parse("{}").is_err());
        let error = parse(r#"{"end":{},"error":"unable to connect to server"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error}");
    }
}

//! `cargo ci churn`: a day of flows, leases and VMs in some minutes, in one process; its memory and its descriptors
//! must stay as they are. The work is the example `churn` of the crate `vhost-net-onion`.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache;

/// Options of `cargo ci churn`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// How long, for those who have no minutes.
    #[arg(long, conflicts_with = "minutes")]
    seconds: Option<u64>,
}

/// Runs `cargo ci churn`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let seconds = args.seconds.unwrap_or(args.minutes * 60);
    let status = Command::new(cache::program("examples/churn")?).arg(seconds.to_string()).status();
    if !status.context("cannot start the example churn")?.success() {
        bail!("memory or descriptors did not stay as they were; see the line above");
    }
    println!("churn: 1 passed, 0 failed");
    Ok(())
}

//! The daemon.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use host_agent::{
    config::{Options, Settings},
    daemon,
    events::Events,
    keys::time::SystemTime,
    log,
};

/// Runs the onion router VM of this host.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run in the foreground until SIGTERM, SIGINT or `oht down`.
    Run {
        #[command(flatten)]
        options: Box<Options>,
        /// Configuration file, in place of /etc/oht/agent.toml or ~/.config/oht/agent.toml.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In one line, for `oht up` and the journal; a backtrace says nothing to who can mend it.
            eprintln!("host-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let What::Run { options, config } = Command::parse().what;
    let settings = Settings::new(*options, config.as_deref())?;
    let events = Events::default();
    log::to_stderr(&settings.log, events.clone()).context("--log")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok(runtime.context("no runtime")?.block_on(daemon::run(settings, events, Box::new(SystemTime)))?)
}

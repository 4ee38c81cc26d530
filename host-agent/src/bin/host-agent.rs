//! The daemon.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::{Parser, Subcommand};
use host_agent::{
    agent::Agent,
    api,
    config::{Options, Settings},
    events::Events,
    log,
};
use tokio::signal::unix::{SignalKind, signal};

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
    runtime.context("no runtime")?.block_on(run(settings, events))
}

async fn run(settings: Settings, events: Events) -> anyhow::Result<()> {
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (agent, parts, sockets, mut end) = Agent::start(settings, events).await?;
    let agent = Arc::new(agent);
    let serving = sockets
        .into_iter()
        .map(|socket| Ok(tokio::spawn(api::serve(socket, Arc::clone(&agent))?)))
        .collect::<std::io::Result<Vec<_>>>()?;
    tokio::select! {
        () = end.wanted() => tracing::info!("asked to end"),
        _ = terminated.recv() => tracing::info!("SIGTERM"),
        _ = interrupted.recv() => tracing::info!("SIGINT"),
    }
    agent.end(parts).await;
    serving.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

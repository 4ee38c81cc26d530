//! The daemon.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::{Parser, Subcommand};
use host_agent::{
    agent::Agent,
    api,
    config::{Options, Settings},
    log, notify,
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
    log::to_stderr(&settings.log).context("--log")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("no runtime")?.block_on(run(settings))
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (agent, parts, socket, mut end) = Agent::start(settings).await?;
    let agent = Arc::new(agent);
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixListener::from_std(socket)?;
    let serving = axum::serve(socket, api::router(Arc::clone(&agent)));
    let serving = tokio::spawn(async move { serving.await });
    notify::ready();
    tokio::select! {
        () = notify::feed_watchdog() => {}
        () = end.wanted() => tracing::info!("asked to end"),
        _ = terminated.recv() => tracing::info!("SIGTERM"),
        _ = interrupted.recv() => tracing::info!("SIGINT"),
    }
    notify::stopping();
    agent.end(parts).await;
    serving.abort();
    Ok(())
}

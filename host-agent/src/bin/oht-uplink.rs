//! The uplink process: takes its sockets from the host agent, and dials the relays that it may dial.

use std::{fs::File, os::unix::net::UnixListener, process::ExitCode, thread, time::Duration};

use anyhow::Context;
use clap::Parser;
use host_agent::{events::Events, inherited, log, uplink};

/// Dials Tor relays for the router VM, and nothing else. Started by host-agent.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Descriptor of the listening AF_UNIX socket that the router's connections arrive at.
    #[arg(long, value_name = "N")]
    listen_fd: i32,
    /// Descriptor to read the allow list from: a JSON array of "address:port" a line, each replacing the last.
    #[arg(long, value_name = "N")]
    allow_fd: i32,
    /// How many connections are served at once.
    #[arg(long, value_name = "N", default_value_t = 512)]
    connections_max: usize,
    /// Seconds that a relay may take to answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    dial_timeout_s: u64,
    /// Write the addresses that are dialled to the log: they say which guards this machine uses.
    #[arg(long)]
    log_addresses: bool,
    /// What to log: error, warn, info, debug.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    eprintln!("oht-uplink: {error:#}");
    ExitCode::FAILURE
}

fn run() -> anyhow::Result<()> {
    let options = Options::parse();
    let listener = UnixListener::from(inherited::take(options.listen_fd).context("--listen-fd")?);
    let allow = File::from(inherited::take(options.allow_fd).context("--allow-fd")?);
    log::to_stderr(&options.log, Events::default())?;
    let allowed = uplink::allow_list::AllowList::default();
    let followed = allowed.clone();
    thread::spawn(move || match followed.follow(allow) {
        Ok(()) => tracing::info!("the allow list has ended; the last one stays"),
        Err(error) => tracing::error!(%error, "the allow list is followed no more; the last one stays"),
    });
    let settings = uplink::Options {
        connections_max: options.connections_max,
        dial_timeout: Duration::from_secs(options.dial_timeout_s),
        log_addresses: options.log_addresses,
    };
    // One thread: its work is waiting and copying, and one core copies more than Tor carries.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener).context("--listen-fd is no AF_UNIX listener")?;
        uplink::serve(listener, allowed, settings).await;
        Ok(())
    })
}

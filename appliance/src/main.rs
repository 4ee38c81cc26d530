//! The router program of the appliance: it takes the frames of VMs and carries what they say through Tor.
//!
//! Without options it runs inside the router VM, where everything comes and goes over vsock ([`router`]). With
//! `--embedded` it serves one VM on the host ([`embedded`]). `--self-test` tries its parts without either.

mod asks;
mod control;
mod embedded;
mod latest;
mod panics;
mod router;
mod self_test;
mod services;
mod tor;
mod usage;
mod vm;
mod vsock;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use mimalloc::MiMalloc;
use tracing_subscriber::EnvFilter;

/// The C library's allocator gives the memory of long chunks back to the kernel and takes it again, page by page: with
/// eight bulk streams that was two fifths of the CPU time of the whole path.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// What is logged unless `RUST_LOG` says otherwise. Arti's network directory warns at every choice among few relays,
/// which in a small private network is every second.
const LOG_DEFAULT: &str = "warn,tor_netdir=error";

/// Carries the network of virtual machines through Tor.
#[derive(Parser)]
#[command(name = "oht-router", version)]
struct Arguments {
    /// Serve one VM on this host, without a router VM.
    #[arg(long, requires_all = ["vhost_user", "tor_network", "state"])]
    embedded: bool,
    /// With --embedded: the vhost-user socket to make for the VM.
    #[arg(long, value_name = "PATH")]
    vhost_user: Option<PathBuf>,
    /// With --embedded: a file that describes the Tor network; --print-public-network makes one.
    #[arg(long, value_name = "FILE")]
    tor_network: Option<PathBuf>,
    /// With --embedded: a directory for Tor's state, ours alone.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print the description of the public Tor network as JSON.
    #[arg(long, conflicts_with_all = ["embedded", "self_test"])]
    print_public_network: bool,
    /// Try the program's parts without a VM and without a network; one line for each.
    #[arg(long, conflicts_with = "embedded")]
    self_test: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    if arguments.print_public_network {
        println!("{}", serde_json::to_string_pretty(&vhost_net_onion::onion::public_network())?);
        return Ok(());
    }
    if arguments.self_test {
        return self_test::run();
    }
    panics::end_the_program();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    match (arguments.vhost_user, arguments.tor_network, arguments.state) {
        (Some(vhost_user), Some(network), Some(state)) if arguments.embedded => {
            runtime.block_on(embedded::run(&vhost_user, &network, &state))
        }
        _ => runtime.block_on(router::run()),
    }
}

//! Embedded mode with plain sockets in Tor's place: the path of a VM's bytes, measured without Tor.
//!
//! ```text
//! cargo run --example direct -- --vhost-user /tmp/vm.sock --map 192.0.2.1=127.0.0.1
//! ```
//!
//! Everything a VM connects to is connected to **directly**, without Tor and without any protection: for benchmarks and
//! tests alone. It is an example, so that no program of the appliance can contain it. Runs until SIGTERM or SIGINT,
//! then prints one JSON object: the CPU seconds that it took, the bytes of TCP each way, what was dropped.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use mimalloc::MiMalloc;
use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeVal,
};
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::filter::LevelFilter;
use vhost_net_onion::{
    Egress, Session, Stats,
    egress::Request,
    embedded,
    gateway::{Config, Failure, Host, Unresolved},
    port::Options,
};

/// As in the router program.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The gateway's choices need not be unpredictable to a VM that is our own load generator.
const SEED: [u8; 32] = [7; 32];

/// How long the far end may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves one VM with plain sockets instead of Tor. For benchmarks and tests: nothing is hidden.
#[derive(Parser)]
struct Arguments {
    /// The vhost-user socket to make for the VM.
    #[arg(long, value_name = "SOCKET")]
    vhost_user: PathBuf,
    /// Bytes of the longest IP packet that the VM may send whole.
    #[arg(long, default_value_t = port::MTU_MAX)]
    mtu: u16,
    /// Where a name or an address that the VM asks for is; others are looked up, or connected to as they are.
    #[arg(long, value_name = "HOST=ADDRESS", value_parser = mapping)]
    map: Vec<(String, IpAddr)>,
    /// What is logged to stderr.
    #[arg(long, default_value = "warn")]
    log: LevelFilter,
}

fn mapping(text: &str) -> Result<(String, IpAddr), String> {
    let (host, address) = text.split_once('=').ok_or("HOST=ADDRESS is expected")?;
    Ok((host.to_owned(), address.parse().map_err(|error| format!("{address}: {error}"))?))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_max_level(arguments.log).with_writer(io::stderr).init();
    let stats = Arc::<Stats>::default();
    let egress = Direct { map: arguments.map.into_iter().collect() };
    let session = Session::new(egress, Config::default(), SEED, Arc::clone(&stats));
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let options = Options { mtu: arguments.mtu };
    tokio::select! {
        served = embedded::serve(&arguments.vhost_user, options, session) => served?,
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    print(&stats)
}

/// Plain sockets.
struct Direct {
    map: HashMap<String, IpAddr>,
}

impl Egress for Direct {
    type Stream = TcpStream;

    async fn connect(&self, Request { target, .. }: Request) -> Result<TcpStream, Failure> {
        let host = match target.host {
            Host::Name(name) => name,
            Host::Address(address) => address.to_string(),
        };
        let stream = match self.map.get(&host) {
            Some(&address) => connect(SocketAddr::new(address, target.port)).await,
            None => connect((host, target.port)).await,
        };
        stream.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            io::ErrorKind::TimedOut => Failure::TimedOut,
            _ => Failure::Unreachable,
        })
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        match self.map.get(name) {
            Some(&address) => Ok(vec![address]),
            None => look_up(name).await,
        }
    }
}

async fn look_up(name: &str) -> Result<Vec<IpAddr>, Unresolved> {
    let found = tokio::net::lookup_host((name, 0)).await;
    found.map(|addresses| addresses.map(|address| address.ip()).collect()).map_err(|_| Unresolved::NoSuchName)
}

async fn connect(to: impl tokio::net::ToSocketAddrs) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn print(stats: &Stats) -> anyhow::Result<()> {
    let usage: Usage = getrusage(UsageWho::RUSAGE_SELF).context("cannot ask for the CPU time")?;
    let seconds = |time: TimeVal| Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64);
    let (user, system) = (seconds(usage.user_time()), seconds(usage.system_time()));
    let done = stats.snapshot();
    println!(
        "{}",
        serde_json::json!({
            "user_s": user.as_secs_f64(),
            "system_s": system.as_secs_f64(),
            "bytes_from_vm": done.bytes_from_vm,
            "bytes_to_vm": done.bytes_to_vm,
            "drops": done.drops.into_iter().collect::<HashMap<_, _>>(),
        })
    );
    Ok(())
}

//! `--self-test`: tries the program's parts where it stands, without a VM, a network or rights.
//!
//! The image's smoke test runs this under QEMU's user mode, so it touches what a wrong build would break: the
//! configuration, randomness, the TLS provider, threads and timers, the frame link, and the gateway with a whole TCP
//! stack as its VM.

use std::{io::Write, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use futures::StreamExt;
use tokio::io::DuplexStream;
use vhost_net_onion::{
    Session, StreamCarrier,
    egress::{Egress, Request},
    gateway::{Config, Failure, Host, Target},
    memory_vm::MemoryVm,
    onion::{Dial, DialledStream, Onion, Settings},
};
use wire::link::{Decoder, Message, Offload, encode};

/// How long the whole test may take, also under emulation on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs every check and prints a line for each.
///
/// # Errors
/// With the first check that fails.
pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("runtime")?;
    check("randomness", randomness())?;
    check("frame link", frame_link())?;
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, async {
            check("runtime", timers().await)?;
            check("TLS provider, configuration and directory", tor_client().await)?;
            check("gateway: DHCP, DNS and a TCP exchange", gateway().await)
        })
        .await
        .context("the self-test hangs")?
    })
}

fn check(what: &str, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
    outcome.with_context(|| format!("self-test: {what}"))?;
    println!("self-test: ok: {what}");
    std::io::stdout().flush().context("standard output")
}

fn randomness() -> anyhow::Result<()> {
    let (mut one, mut other) = ([0; 32], [0; 32]);
    getrandom::fill(&mut one)?;
    getrandom::fill(&mut other)?;
    ensure!(one != other && one != [0; 32], "the kernel gives the same bytes twice");
    Ok(())
}

fn frame_link() -> anyhow::Result<()> {
    let frame: Vec<u8> = (0..1514_u16).map(|n| n as u8).collect();
    let mut stream = vec![];
    encode(&frame, Offload::default(), &mut stream)?;
    let mut decoder = Decoder::default();
    decoder.spare()[..stream.len()].copy_from_slice(&stream);
    decoder.filled(stream.len());
    let sent = Message::Frame(Offload::default(), &frame);
    ensure!(decoder.next_message()? == Some(sent), "the frame came out changed");
    Ok(())
}

async fn timers() -> anyhow::Result<()> {
    let naps = (0..8).map(|_| tokio::spawn(tokio::time::sleep(Duration::from_millis(5))));
    for nap in naps.collect::<Vec<_>>() {
        nap.await?;
    }
    Ok(())
}

/// Makes a Tor client for the public network that has no network: it must start, and say that it knows nothing yet.
async fn tor_client() -> anyhow::Result<()> {
    struct Nowhere;
    #[async_trait::async_trait]
    impl Dial for Nowhere {
        async fn dial(&self, _: std::net::SocketAddr) -> std::io::Result<Box<dyn DialledStream>> {
            Err(std::io::ErrorKind::NetworkUnreachable.into())
        }
    }
    let state_dir = std::env::temp_dir().join(format!("oht-router-self-test-{}", std::process::id()));
    let network = vhost_net_onion::onion::public_network();
    let settings = Settings { network, entry: Default::default(), state_dir: state_dir.clone() };
    let onion = Onion::new(&settings, Arc::new(Nowhere)).await;
    let status = match &onion {
        Ok(onion) => std::pin::pin!(onion.statuses()).next().await,
        Err(_) => None,
    };
    drop(std::fs::remove_dir_all(&state_dir));
    onion?;
    ensure!(status.is_some_and(|status| !status.usable), "a Tor client without a network says that it is usable");
    Ok(())
}

/// A VM in memory gets an address, the address of a name, and an echo, through a session.
async fn gateway() -> anyhow::Result<()> {
    let (link, cable) = tokio::io::duplex(1 << 20);
    let mut session = Session::new(Echo, Config::default(), [7; 32], Arc::default());
    let mut carrier = StreamCarrier::new(link);
    tokio::select! {
        served = session.serve(&mut carrier) => Ok(served?),
        exchanged = exchange(MemoryVm::new(cable)) => exchanged,
    }
}

/// The far end of the gateway's test: echoes at one name and port, refuses everywhere else.
struct Echo;

const NAME: &str = "self-test.onion";
const PORT: u16 = 7;
const MESSAGE: &[u8] = b"as far as the far end and back";

impl Egress for Echo {
    type Stream = DuplexStream;

    async fn connect(&self, Request { target, .. }: Request) -> Result<DuplexStream, Failure> {
        if target != (Target { host: Host::Name(NAME.into()), port: PORT }) {
            return Err(Failure::Refused);
        }
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(theirs);
            tokio::io::copy(&mut read, &mut write).await
        });
        Ok(ours)
    }
}

async fn exchange(mut vm: MemoryVm<DuplexStream>) -> anyhow::Result<()> {
    let server = vm.lease().await.context("DHCP")?;
    let address = vm.resolve(server, NAME).await.context("DNS")?;
    let connection = vm.connect(address, PORT).await.context("TCP")?;
    ensure!(vm.send(connection, MESSAGE) == MESSAGE.len(), "a fresh connection takes no bytes");
    let mut echo = vec![];
    while echo.len() < MESSAGE.len() {
        vm.turn().await?;
        echo.extend(vm.recv(connection).context("the connection ended early")?);
    }
    ensure!(echo == MESSAGE, "the echo is not what was sent");
    let refused = vm.connect(address, PORT + 1).await;
    ensure!(refused.is_err(), "a port that refuses was connected");
    Ok(())
}

//! The only wire out of the router VM: vsock connections to the host.

use std::{io, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_vsock::{VsockAddr, VsockStream};
use vhost_net_onion::{
    handshake::{HandshakeError, greet},
    onion::{Dial, DialledStream},
};
use wire::{
    HOST_CID, UPLINK_PORT,
    hello::{Hello, Role},
    uplink::{DialAnswer, DialRequest},
};

/// How long the uplink may take to answer: longer than it waits for the relay.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens a connection to `port` of the host and exchanges hellos.
///
/// # Errors
/// When nobody is there, or not who should be.
pub(crate) async fn connect(port: u32, ours: &Hello, theirs: &Hello) -> Result<VsockStream, HandshakeError> {
    let mut stream = VsockStream::connect(VsockAddr::new(HOST_CID, port)).await?;
    greet(&mut stream, ours, theirs).await?;
    Ok(stream)
}

/// Dials relays through the host's uplink process.
pub(crate) struct Uplink;

#[async_trait]
impl Dial for Uplink {
    async fn dial(&self, addr: SocketAddr) -> io::Result<Box<dyn DialledStream>> {
        tokio::time::timeout(DIAL_TIMEOUT, dial(addr)).await?
    }
}

async fn dial(addr: SocketAddr) -> io::Result<Box<dyn DialledStream>> {
    let connected = connect(UPLINK_PORT, &Hello::new(Role::Router), &Hello::new(Role::Uplink)).await;
    let mut stream = connected.map_err(io::Error::other)?;
    stream.write_all(&DialRequest(addr).encode()).await?;
    match DialAnswer::try_from(stream.read_u8().await?).map_err(io::Error::other)? {
        DialAnswer::Connected => Ok(Box::new(stream)),
        DialAnswer::Forbidden => Err(io::ErrorKind::PermissionDenied.into()),
        DialAnswer::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
        DialAnswer::Unreachable => Err(io::ErrorKind::HostUnreachable.into()),
        DialAnswer::TimedOut => Err(io::ErrorKind::TimedOut.into()),
        DialAnswer::Busy => Err(io::ErrorKind::ResourceBusy.into()),
    }
}

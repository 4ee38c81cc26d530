//! The only wire out of the router VM: vsock connections to the host.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
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
#[derive(Default)]
pub(crate) struct Uplink {
    /// The sockets of the streams that are in use, to be shut down from here.
    streams: Mutex<Vec<Weak<OwnedFd>>>,
}

impl Uplink {
    /// The process at the other end of every stream is gone: whoever uses one learns of it.
    pub(crate) fn forget_streams(&self) {
        for socket in self.streams().drain(..).filter_map(|stream| stream.upgrade()) {
            // It fails for one that is no longer connected.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }

    fn remember(&self, stream: &VsockStream) -> io::Result<Arc<OwnedFd>> {
        let socket = Arc::new(stream.as_fd().try_clone_to_owned()?);
        let mut streams = self.streams();
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(&socket));
        Ok(socket)
    }

    fn streams(&self) -> MutexGuard<'_, Vec<Weak<OwnedFd>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, addr: SocketAddr) -> io::Result<Box<dyn DialledStream>> {
        let mut stream = VsockStream::connect(VsockAddr::new(HOST_CID, UPLINK_PORT)).await?;
        let socket = self.remember(&stream)?;
        let greeted = greet(&mut stream, &Hello::new(Role::Router), &Hello::new(Role::Uplink)).await;
        greeted.map_err(io::Error::other)?;
        stream.write_all(&DialRequest(addr).encode()).await?;
        answered(stream.read_u8().await?)?;
        Ok(Box::new(UplinkStream { stream, _socket: socket }))
    }
}

#[async_trait]
impl Dial for Uplink {
    async fn dial(&self, addr: SocketAddr) -> io::Result<Box<dyn DialledStream>> {
        tokio::time::timeout(DIAL_TIMEOUT, self.open(addr)).await?
    }
}

/// What the uplink's answer means, in the errors of a TCP connection.
fn answered(answer: u8) -> io::Result<()> {
    match DialAnswer::try_from(answer).map_err(io::Error::other)? {
        DialAnswer::Connected => Ok(()),
        DialAnswer::Forbidden => Err(io::ErrorKind::PermissionDenied.into()),
        DialAnswer::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
        DialAnswer::Unreachable => Err(io::ErrorKind::HostUnreachable.into()),
        DialAnswer::TimedOut => Err(io::ErrorKind::TimedOut.into()),
        DialAnswer::Busy => Err(io::ErrorKind::ResourceBusy.into()),
    }
}

/// A connection to a relay, on record for as long as it is used.
struct UplinkStream {
    stream: VsockStream,
    _socket: Arc<OwnedFd>,
}

impl AsyncRead for UplinkStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for UplinkStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

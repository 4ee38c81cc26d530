//! A TCP provider for arti's runtime that dials through [`Dial`] and never listens.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures::{AsyncRead, AsyncWrite, stream};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use tor_rtcompat::{NetStreamListener, NetStreamProvider, StreamOps, TcpListenOptions};

/// Opens connections to relays on behalf of arti.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Opens one connection to `addr`.
    ///
    /// # Errors
    /// As for a TCP connection: arti judges a relay by the error's kind.
    async fn dial(&self, addr: SocketAddr) -> io::Result<Box<dyn DialledStream>>;
}

/// A connection that a [`Dial`] has opened.
pub trait DialledStream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + Unpin + 'static {}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + Unpin + 'static> DialledStream for S {}

/// What arti's runtime takes for TCP.
#[derive(Clone)]
pub(crate) struct DiallerProvider(pub(crate) Arc<dyn Dial>);

#[async_trait]
impl NetStreamProvider<SocketAddr> for DiallerProvider {
    type Stream = RelayStream;
    type Listener = NeverListens;
    type ConnectOptions = ();
    type ListenOptions = TcpListenOptions;

    async fn connect(&self, addr: &SocketAddr, _: &()) -> io::Result<RelayStream> {
        self.0.dial(*addr).await.map(|stream| RelayStream(stream.compat()))
    }

    async fn listen(&self, _: &SocketAddr, _: &TcpListenOptions) -> io::Result<NeverListens> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A dialled connection in the traits that arti wants. None of the TCP options of [`StreamOps`] can be set on it.
pub(crate) struct RelayStream(Compat<Box<dyn DialledStream>>);

impl StreamOps for RelayStream {}

impl AsyncRead for RelayStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// The router listens on nothing; no value of this type exists.
pub(crate) enum NeverListens {}

impl NetStreamListener<SocketAddr> for NeverListens {
    type Stream = RelayStream;
    type Incoming = stream::Pending<io::Result<(RelayStream, SocketAddr)>>;

    fn incoming(self) -> Self::Incoming {
        match self {}
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match *self {}
    }
}

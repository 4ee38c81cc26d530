//! Accepting the API's connections: each with its peer's credentials, and not too many of one user.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use nix::unistd::{Gid, Uid};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
};

/// Connections that one user may have at a time; a further one is closed at once. Each listener of events has one.
const CONNECTIONS_OF_USER_MAX: usize = 128;

/// Who is at the other end, as the kernel says (unix(7), `SO_PEERCRED`): credentials of the time of the connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: Uid,
    /// The primary group.
    pub gid: Gid,
}

/// A listener that knows its peers.
#[derive(Debug)]
pub struct PeerListener {
    listener: UnixListener,
    counts: Counts,
}

/// Connections that are open, by user.
type Counts = Arc<Mutex<HashMap<Uid, usize>>>;

/// A connection; it counts until it is dropped.
#[derive(Debug)]
pub struct PeerStream {
    stream: UnixStream,
    _counted: Counted,
}

#[derive(Debug)]
struct Counted {
    uid: Uid,
    counts: Counts,
}

impl PeerListener {
    /// Accepts from `listener`.
    #[must_use]
    pub fn new(listener: UnixListener) -> PeerListener {
        PeerListener { listener, counts: Counts::default() }
    }

    async fn try_accept(&self) -> io::Result<Option<(PeerStream, Peer)>> {
        let (stream, _) = self.listener.accept().await?;
        let credentials = stream.peer_cred()?;
        let peer = Peer { uid: Uid::from_raw(credentials.uid()), gid: Gid::from_raw(credentials.gid()) };
        let counted = Counted::new(peer.uid, &self.counts);
        Ok(counted.map(|_counted| (PeerStream { stream, _counted }, peer)))
    }
}

impl axum::serve::Listener for PeerListener {
    type Io = PeerStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (PeerStream, Peer) {
        loop {
            match self.try_accept().await {
                Ok(Some(accepted)) => return accepted,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the API; trying again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { uid: Uid::effective(), gid: Gid::effective() })
    }
}

impl Connected<IncomingStream<'_, PeerListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, PeerListener>) -> Peer {
        *stream.remote_addr()
    }
}

impl Counted {
    /// Counts a connection of this user, unless there are too many.
    fn new(uid: Uid, counts: &Counts) -> Option<Counted> {
        let mut open = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(uid).or_default();
        let room = *count < CONNECTIONS_OF_USER_MAX;
        *count += usize::from(room);
        room.then(|| Counted { uid, counts: Arc::clone(counts) })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_has_so_many_connections_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = PeerListener::new(UnixListener::bind(&path).unwrap());
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_OF_USER_MAX {
            let client = UnixStream::connect(&path).await.unwrap();
            let (server, peer) = listener.try_accept().await.unwrap().unwrap();
            assert_eq!(peer.uid, Uid::effective());
            held.push((client, server));
        }
        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(listener.try_accept().await.unwrap().is_none(), "one too many");
        held.pop();
        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(listener.try_accept().await.unwrap().is_some());
        held.clear();
        assert!(listener.counts.lock().unwrap().is_empty(), "nothing is remembered of who has gone");
    }
}

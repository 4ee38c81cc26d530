//! Embedded mode: port and session in one process on the host, without a router VM.
//!
//! For development, benchmarks, and hosts that cannot nest. The code is the same as with a router VM, but there is no
//! link: one task looks after the VM's rings and its gateway, and a frame goes from one to the other by a single copy.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    panic::resume_unwind,
    path::Path,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use gateway::Frame;
use onion::{Dial, DialledStream};
use port::{Options, Port, Put, TxFrame};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
    task::JoinSet,
};
use wire::link::{Abilities, Message};

use crate::{
    carrier::{Arrival, Carrier, LinkError},
    egress::Egress,
    session::Session,
};

/// How long a relay may take to accept a TCP connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// Frames that are moved at once, either way; then the rest of the session has its turn.
const FRAMES_PER_TURN: usize = 64;

/// Why the embedded port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The socket could not be made.
    #[error("cannot listen on {0}")]
    Listen(String, #[source] io::Error),
    /// The port could not be set up.
    #[error("cannot set up the port")]
    Port(#[from] port::PortError),
    /// The port cannot be watched.
    #[error("cannot watch the port")]
    Watch(#[from] io::Error),
    /// The port failed later.
    #[error("the port ended")]
    Link(#[from] LinkError),
}

/// Serves a VM on the vhost-user socket `vhost_user` until the port fails; the path is replaced if it exists.
///
/// The session runs as a task of its own, because it wakes itself often, and waking what a runtime blocks on is a system
/// call each time. It ends when the returned future is dropped.
///
/// # Errors
/// When the socket cannot be made, or the port fails.
pub async fn serve<E: Egress>(
    vhost_user: &Path,
    options: Options,
    mut session: Session<E>,
) -> Result<(), EmbeddedError> {
    let port = Port::new(listen(vhost_user)?, options)?;
    #[allow(deprecated, reason = "its successor is unsafe code; an OwnedFd is the same open file until it is dropped")]
    let watched = AsyncFd::with_interest(port.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
    let mut carrier = PortCarrier {
        port,
        watched,
        abilities: None,
        kept: None,
        more_requests: true,
        more_frames: true,
        no_buffers: false,
    };
    let mut task = JoinSet::new();
    task.spawn(async move { session.serve(&mut carrier).await });
    match task.join_next().await.expect("there is a task") {
        Ok(served) => Ok(served?),
        Err(crash) => resume_unwind(crash.into_panic()),
    }
}

/// The rings of a VM as a carrier.
struct PortCarrier {
    port: Port,
    /// The port's descriptor.
    watched: AsyncFd<OwnedFd>,
    /// What the gateway was told.
    abilities: Option<Abilities>,
    /// A frame that found no buffers.
    kept: Option<Frame>,
    /// The front-end may have more requests, without an event.
    more_requests: bool,
    /// The driver may have more frames, without an event.
    more_frames: bool,
    /// The driver must give buffers, which is an event, before frames can go on.
    no_buffers: bool,
}

impl Carrier for PortCarrier {
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(Arrival<'_>),
    ) -> Poll<Result<bool, LinkError>> {
        match self.watched.poll_read_ready(cx)? {
            Poll::Ready(mut happened) => {
                happened.clear_ready();
                self.more_requests = true;
            }
            Poll::Pending if self.more_requests || self.more_frames => {}
            Poll::Pending => return Poll::Pending,
        }
        if self.more_requests {
            self.more_requests = self.port.turn()?;
            self.no_buffers = false;
            let abilities = self.port.abilities();
            if self.abilities.replace(abilities) != Some(abilities) {
                take(Arrival::Message(Message::Abilities(abilities)));
            }
        }
        self.more_frames = self.port.take_tx(FRAMES_PER_TURN, |offload, frame| match frame {
            TxFrame::Lent(frame) => take(Arrival::Message(Message::Frame(offload, frame))),
            TxFrame::Given(frame) => take(Arrival::Frame(offload, frame)),
        });
        Poll::Ready(Ok(true))
    }

    fn poll_send(
        &mut self,
        _: &mut Context<'_>,
        next: &mut dyn FnMut() -> Option<Frame>,
    ) -> Poll<Result<(), LinkError>> {
        let mut sent = 0;
        while !self.no_buffers
            && sent < FRAMES_PER_TURN
            && let Some(frame) = self.kept.take().or_else(&mut *next)
        {
            match self.port.put_rx(frame.offload, &frame.head, &frame.body) {
                Put::Delivered | Put::Dropped => sent += 1,
                Put::NoBuffers => (self.kept, self.no_buffers) = (Some(frame), true),
            }
        }
        self.port.publish();
        if sent > 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

fn listen(path: &Path) -> Result<UnixListener, EmbeddedError> {
    let failed = |error| EmbeddedError::Listen(path.display().to_string(), error);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(failed)
}

/// Dials relays with the host's own TCP.
pub struct HostTcp;

#[async_trait]
impl Dial for HostTcp {
    async fn dial(&self, addr: std::net::SocketAddr) -> io::Result<Box<dyn DialledStream>> {
        let stream = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(addr)).await??;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

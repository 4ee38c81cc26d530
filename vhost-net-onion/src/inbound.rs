//! Streams that come to a VM: who brings them hands them to an [`Inbound`], and the VM's session takes them from there.
//!
//! ```text
//! call ─▶ queue ─▶ session: SYN to the VM ─▶ SYN-ACK: accept ─▶ bytes
//!                                        └▶ RST, silence: refuse
//! ```
//!
//! A stream is accepted only once the VM has accepted (a connect that succeeds out there has succeeded in the VM). The
//! queue outlives a session that crashed, and waits while the VM's link is down. It holds [`WAITING_MAX`] calls; who
//! brings another one is refused.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use gateway::Failure;
use tokio::io::{AsyncRead, AsyncWrite};

/// Calls that wait for the session at most.
const WAITING_MAX: usize = 64;

/// The bytes of a stream that was accepted.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytes for S {}

/// What becomes of a stream once the VM has accepted.
pub type Accepted = Pin<Box<dyn Future<Output = io::Result<Box<dyn Bytes>>> + Send>>;

/// A stream that waits for the VM's answer.
pub trait Incoming: Send {
    /// The VM has accepted.
    fn accept(self: Box<Self>) -> Accepted;

    /// The VM has not, and for this reason.
    fn refuse(self: Box<Self>, why: Failure);
}

/// A stream and the VM's port that it is for.
pub(crate) struct Call {
    pub(crate) port: u16,
    pub(crate) incoming: Box<dyn Incoming>,
}

/// The streams on their way to one VM.
#[derive(Default)]
pub struct Inbound(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    calls: VecDeque<Call>,
    session: Option<Waker>,
}

impl Inbound {
    /// Brings a stream for a port of the VM. When too many wait, it is refused.
    pub fn call(&self, port: u16, incoming: Box<dyn Incoming>) {
        let mut waiting = self.lock();
        if waiting.calls.len() >= WAITING_MAX {
            drop(waiting);
            return incoming.refuse(Failure::Refused);
        }
        waiting.calls.push_back(Call { port, incoming });
        if let Some(session) = waiting.session.take() {
            session.wake();
        }
    }

    /// Takes the next call, or wakes the session when there is one.
    pub(crate) fn poll_call(&self, cx: &mut Context<'_>) -> Poll<Call> {
        let mut waiting = self.lock();
        if let Some(call) = waiting.calls.pop_front() {
            return Poll::Ready(call);
        }
        waiting.session = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    struct Counting(Arc<AtomicUsize>);

    impl Incoming for Counting {
        fn accept(self: Box<Self>) -> Accepted {
            Box::pin(async { Err(io::ErrorKind::NotConnected.into()) })
        }

        fn refuse(self: Box<Self>, why: Failure) {
            assert_eq!(why, Failure::Refused);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn calls_wait_in_order_and_too_many_are_refused() {
        let (inbound, refused) = (Inbound::default(), Arc::new(AtomicUsize::new(0)));
        for port in 0..100 {
            inbound.call(port, Box::new(Counting(Arc::clone(&refused))));
        }
        assert_eq!(refused.load(Ordering::Relaxed), 100 - WAITING_MAX);
        let mut cx = Context::from_waker(Waker::noop());
        for port in 0..WAITING_MAX as u16 {
            let Poll::Ready(call) = inbound.poll_call(&mut cx) else { panic!("{port} is missing") };
            assert_eq!(call.port, port);
        }
        assert!(inbound.poll_call(&mut cx).is_pending());
    }
}

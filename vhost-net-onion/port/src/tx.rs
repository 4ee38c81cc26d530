//! From the VM's tx ring to the link.
//!
//! Chains are copied into one buffer as link messages, and the buffer is written. A chain is completed when its message
//! has been written whole; until then it can be given back to the ring. So nothing is lost when the stream is full,
//! when the link is lost, or when this process is killed.
//!
//! What the driver can receive is told between the messages, always when no chain is taken: so it is never given back.
//!
//! Between two calls the buffer is empty, or the stream would take no more.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Write},
    os::unix::net::UnixStream,
};

use wire::link::{self, Abilities, FRAME_BYTES_MAX, HEADER_BYTES, MESSAGE_BYTES_MAX};

use crate::{
    counters::{Counters, DropReason},
    device::Active,
    fetch::fetch,
    ring::RingError,
};

/// Bytes that are collected before they are written: what the vsock device behind the link does well with.
const BATCH_BYTES: usize = 64 * 1024;

/// Chains that are collected before their messages are written.
const BATCH_CHAINS: usize = 256;

/// Batches of one [`Tx::pump`]; then others have their turn.
const BATCHES: usize = 4;

/// How a pass over the ring ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TxState {
    /// The ring is empty; the driver kicks when there is more.
    Idle,
    /// The stream is full: go on when it can be written.
    Full,
    /// There is more to do right away.
    More,
}

/// Why a pass over the ring failed.
#[derive(Debug)]
pub(crate) enum TxError {
    /// The ring is broken.
    Ring(RingError),
    /// The link is lost.
    Link(io::Error),
}

impl From<RingError> for TxError {
    fn from(e: RingError) -> TxError {
        TxError::Ring(e)
    }
}

/// A chain that was taken and is not completed.
struct Taken {
    head: u16,
    /// Where its message begins in the buffer, and where it ends.
    start: usize,
    end: usize,
    /// Bytes of the frame, or why there is none.
    frame: Result<usize, DropReason>,
}

/// Link messages on their way.
pub(crate) struct Tx {
    bytes: Box<[u8]>,
    /// Bytes in the buffer.
    held: usize,
    /// How many of them are written.
    written: usize,
    taken: VecDeque<Taken>,
    /// What the router was told last, on this link.
    told: Option<Abilities>,
    /// Where in the buffer it was told, while it is the last thing there and may still be replaced.
    told_at: Option<usize>,
}

impl Tx {
    pub(crate) fn new() -> Tx {
        Tx {
            bytes: vec![0; BATCH_BYTES + MESSAGE_BYTES_MAX].into_boxed_slice(),
            held: 0,
            written: 0,
            taken: VecDeque::with_capacity(BATCH_CHAINS),
            told: None,
            told_at: None,
        }
    }

    /// Tells the router what the driver can receive, if it does not know. No chain may be taken.
    ///
    /// A message that was not begun to be written is replaced: a front-end that changes its mind without end fills
    /// nothing.
    pub(crate) fn tell(&mut self, abilities: Abilities) {
        if self.told.replace(abilities) == Some(abilities) {
            return;
        }
        let at = self.told_at.filter(|at| self.written <= *at && at + HEADER_BYTES == self.held).unwrap_or(self.held);
        self.bytes[at..][..HEADER_BYTES].copy_from_slice(&abilities.to_message());
        self.held = at + HEADER_BYTES;
        self.told_at = Some(at);
    }

    /// Carries frames until the ring is empty, the stream full, or the pass long enough.
    pub(crate) fn pump(
        &mut self,
        active: &mut Active<'_>,
        stream: &UnixStream,
        counters: &mut Counters,
    ) -> Result<TxState, TxError> {
        active.ring.no_kicks(active.memory)?;
        for _ in 0..BATCHES {
            self.fill(active)?;
            if self.taken.is_empty() && self.held == 0 {
                let seen = active.ring.next_avail();
                if !active.ring.ask_for_kick(active.memory, seen)? {
                    return Ok(TxState::Idle);
                }
                continue;
            }
            let full = self.write(stream).map_err(TxError::Link)?;
            self.complete_written(active, counters)?;
            if full {
                return Ok(TxState::Full);
            }
        }
        Ok(TxState::More)
    }

    /// Writes what [`Tx::give_back`] left, when there is no ring to work on.
    pub(crate) fn flush(&mut self, stream: &UnixStream) -> Result<TxState, TxError> {
        if self.write(stream).map_err(TxError::Link)? {
            return Ok(TxState::Full);
        }
        self.forget_written();
        Ok(TxState::Idle)
    }

    /// Gives every chain back to the ring whose message has not begun to be written, and completes the one that has:
    /// the rest of its bytes stays here. After that no chain is taken.
    pub(crate) fn give_back(&mut self, active: Option<Active<'_>>, counters: &mut Counters) -> Result<(), RingError> {
        // Messages that are written whole have left `taken`, so that only the first can have begun.
        let begun = self.taken.pop_front().map(|first| (self.written > first.start, first));
        self.taken.clear();
        self.held = match &begun {
            Some((true, first)) => first.end,
            Some((false, first)) => first.start,
            None => self.held,
        };
        self.forget_written();
        let Some(mut active) = active else { return Ok(()) };
        if let Some((true, first)) = begun {
            counters.count_tx(first.frame);
            active.ring.complete(active.memory, first.head, 0)?;
            active.publish()?;
        }
        active.ring.give_back();
        Ok(())
    }

    /// The link is lost: gives every chain back to the ring.
    pub(crate) fn link_lost(&mut self, active: Option<Active<'_>>) {
        (self.held, self.written) = (0, 0);
        (self.told, self.told_at) = (None, None);
        self.taken.clear();
        if let Some(active) = active {
            active.ring.give_back();
        }
    }

    /// Takes chains until there are enough for one write.
    fn fill(&mut self, active: &mut Active<'_>) -> Result<(), RingError> {
        while self.held < BATCH_BYTES && self.taken.len() < BATCH_CHAINS {
            let Some(chain) = active.ring.take(active.memory)? else { break };
            let head = chain.head_index();
            let start = self.held;
            let mut room = &mut self.bytes[start + HEADER_BYTES..][..FRAME_BYTES_MAX];
            let frame = fetch(chain, active.memory, &active.ring.layout, &mut room).and_then(|(offload, bytes)| {
                let header = link::header(bytes, offload).map_err(|_| DropReason::TooShort)?;
                self.bytes[start..][..HEADER_BYTES].copy_from_slice(&header);
                self.held += HEADER_BYTES + bytes;
                Ok(bytes)
            });
            self.taken.push_back(Taken { head, start, end: self.held, frame });
        }
        Ok(())
    }

    /// Writes what is held. Returns whether the stream is full.
    fn write(&mut self, mut stream: &UnixStream) -> io::Result<bool> {
        while self.written < self.held {
            match stream.write(&self.bytes[self.written..self.held]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    /// Completes the chains whose messages are written.
    fn complete_written(&mut self, active: &mut Active<'_>, counters: &mut Counters) -> Result<(), RingError> {
        let before = self.taken.len();
        while self.taken.front().is_some_and(|first| first.end <= self.written) {
            let Some(first) = self.taken.pop_front() else { break };
            counters.count_tx(first.frame);
            active.ring.complete(active.memory, first.head, 0)?;
        }
        if self.taken.len() < before {
            active.publish()?;
        }
        self.forget_written();
        Ok(())
    }

    /// An empty buffer is filled from its front again.
    fn forget_written(&mut self) {
        if self.written == self.held {
            (self.held, self.written) = (0, 0);
            self.told_at = None;
        }
    }
}

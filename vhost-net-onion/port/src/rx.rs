//! From the link to the VM's rx ring.
//!
//! A frame takes as many chains as it needs or waits, and everything behind it with it, until the driver has made
//! enough of them available.

use std::{
    io::{self, ErrorKind, Read},
    os::unix::net::UnixStream,
};

use wire::link::{Decoder, FRAME_BYTES_MAX, LinkError, Message, Offload};

use crate::{
    counters::{Counters, DropReason},
    deliver::{Gathered, Outcome},
    device::Active,
    ring::RingError,
};

/// Frames of one [`Rx::pump`]; then others have their turn.
const FRAMES: usize = 256;

/// How a pass over the link ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RxState {
    /// There is nothing more to read.
    Idle,
    /// A frame waits for buffers: go on when the driver kicks.
    NoBuffers,
    /// There is more to do right away.
    More,
}

/// Why a pass over the link failed.
#[derive(Debug)]
pub(crate) enum RxError {
    /// The ring is broken.
    Ring(RingError),
    /// The link is lost.
    Link(LinkLost),
}

/// Why a link is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkLost {
    #[error("the router closed the link")]
    Closed,
    #[error("cannot read or write the link")]
    Io(#[from] io::Error),
    #[error("the router broke the link's protocol")]
    Protocol(#[from] LinkError),
}

impl From<RingError> for RxError {
    fn from(e: RingError) -> RxError {
        RxError::Ring(e)
    }
}

/// Frames on their way.
pub(crate) struct Rx {
    decoder: Decoder,
    /// A frame that waits for buffers is kept in `kept_frame`.
    kept: Option<Offload>,
    kept_frame: Vec<u8>,
    gathered: Gathered,
    /// Chains were completed that the driver cannot see yet.
    unpublished: bool,
    /// The last read brought less than there was room for: there is no use in another one before epoll says so.
    drained: bool,
}

impl Rx {
    pub(crate) fn new() -> Rx {
        Rx {
            decoder: Decoder::default(),
            kept: None,
            kept_frame: Vec::with_capacity(FRAME_BYTES_MAX),
            gathered: Gathered::new(),
            unpublished: false,
            drained: false,
        }
    }

    /// Carries frames until nothing is left to read, the driver has no buffers, or the pass is long enough.
    pub(crate) fn pump(
        &mut self,
        mut active: Option<Active<'_>>,
        stream: &UnixStream,
        counters: &mut Counters,
    ) -> Result<RxState, RxError> {
        (self.unpublished, self.drained) = (false, false);
        let ended = self.carry(&mut active, stream, counters);
        if !matches!(ended, Err(RxError::Ring(_))) {
            self.publish(&mut active)?;
        }
        ended
    }

    /// Forgets what came from a link that is gone.
    pub(crate) fn link_lost(&mut self) {
        self.decoder.clear();
        self.kept = None;
    }

    fn carry(
        &mut self,
        active: &mut Option<Active<'_>>,
        stream: &UnixStream,
        counters: &mut Counters,
    ) -> Result<RxState, RxError> {
        if let Some(active) = active {
            active.ring.no_kicks(active.memory)?;
        }
        for _ in 0..FRAMES {
            let seen = match self.carry_one(active, counters)? {
                Carried::Frame => continue,
                Carried::NoRoom { seen } => seen,
                Carried::Nothing => {
                    // What is there should not wait for what comes.
                    self.publish(active)?;
                    if self.read(stream).map_err(RxError::Link)? { continue } else { return Ok(RxState::Idle) }
                }
            };
            if let Some(active) = active
                && !active.ring.ask_for_kick(active.memory, seen)?
            {
                return Ok(RxState::NoBuffers);
            }
        }
        Ok(RxState::More)
    }

    /// Carries the next whole frame, if there is one.
    fn carry_one(&mut self, active: &mut Option<Active<'_>>, counters: &mut Counters) -> Result<Carried, RxError> {
        let outcome = if let Some(offload) = self.kept {
            deliver(&mut self.gathered, active, offload, &self.kept_frame, counters)?
        } else {
            let (offload, frame) = match self.decoder.next_message().map_err(|e| RxError::Link(e.into()))? {
                Some(Message::Frame(offload, frame)) => (offload, frame),
                // The router's own abilities do not matter: it takes whatever a driver may send.
                Some(Message::Abilities(_)) => return Ok(Carried::Frame),
                None => return Ok(Carried::Nothing),
            };
            let outcome = deliver(&mut self.gathered, active, offload, frame, counters)?;
            if matches!(outcome, Outcome::NoRoom { .. }) {
                self.kept = Some(offload);
                self.kept_frame.clear();
                self.kept_frame.extend_from_slice(frame);
            }
            outcome
        };
        match outcome {
            Outcome::NoRoom { seen } => return Ok(Carried::NoRoom { seen }),
            Outcome::Delivered => self.unpublished = true,
            Outcome::Dropped(_) => {}
        }
        self.kept = None;
        Ok(Carried::Frame)
    }

    fn publish(&mut self, active: &mut Option<Active<'_>>) -> Result<(), RxError> {
        if std::mem::take(&mut self.unpublished)
            && let Some(active) = active
        {
            active.publish()?;
        }
        Ok(())
    }

    /// Reads from the stream once. Returns whether anything was there.
    fn read(&mut self, mut stream: &UnixStream) -> Result<bool, LinkLost> {
        if self.drained {
            return Ok(false);
        }
        let spare = self.decoder.spare();
        let room = spare.len();
        match stream.read(spare) {
            Ok(0) => Err(LinkLost::Closed),
            Ok(count) => {
                self.drained = count < room;
                self.decoder.filled(count);
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(e) => Err(LinkLost::Io(e)),
        }
    }
}

enum Carried {
    Frame,
    Nothing,
    NoRoom { seen: u16 },
}

/// Delivers a frame, if there is a driver.
fn deliver(
    gathered: &mut Gathered,
    active: &mut Option<Active<'_>>,
    offload: Offload,
    frame: &[u8],
    counters: &mut Counters,
) -> Result<Outcome, RingError> {
    match active {
        Some(active) => gathered.deliver(active, offload, frame, &[], counters),
        None => {
            counters.drop_one(DropReason::NoDriver);
            Ok(Outcome::Dropped(DropReason::NoDriver))
        }
    }
}

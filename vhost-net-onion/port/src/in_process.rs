//! The port without a stream: whoever has the gateway in the same process moves the frames itself.
//!
//! ```text
//! loop {
//!     let mut more = port.turn()?;                        // when as_fd() was readable, or the last one said so
//!     more |= port.take_tx(budget, |offload, frame| …);   // always: a look at the ring costs little
//!     while port.put_rx(offload, head, body) == Put::Delivered { … }
//!     port.publish();
//!     if !more { wait until as_fd() is readable }
//! }
//! ```
//!
//! Nothing blocks, and nothing wakes up without a reason: [`Port::take_tx`] leaves a ring that it has found empty with
//! the wish to be kicked, and so does [`Port::put_rx`] with a ring that has no buffers. The descriptor may be watched
//! edge-triggered (as tokio does) on the condition that is written there: wait only when neither `turn` nor `take_tx`
//! said that there is more.
//!
//! A frame is copied once each way; a long one from the VM is given away in the buffer that it was copied to. Between two
//! calls no chain is taken and not completed, so that the front-end may
//! change anything at any time, and a process that dies here loses what it had taken out of the ring and not sent on:
//! nobody outlives it who could have got it.

use std::{
    ops::Deref,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
};

use bytes::Bytes;
use nix::sys::epoll::EpollTimeout;
use wire::link::{Abilities, FRAME_BYTES_MAX, Offload};

use crate::{
    control::ControlPlane,
    counters::{Counters, DropReason},
    deliver::{CHAINS_MAX, Gathered, Outcome},
    device::{Active, RX, TX},
    fetch::fetch,
    options::{Options, PortError},
    poller::{Poller, Token},
    ring::RingError,
};

/// Requests of the front-end that [`Port::turn`] serves at once.
const REQUESTS: usize = 32;

/// From this length on a frame of the VM is given away: its buffer is then at most twice as long.
const GIVEN_FROM: usize = FRAME_BYTES_MAX / 2;

/// A frame of the VM.
#[derive(Debug)]
pub enum TxFrame<'a> {
    /// A short one, to be looked at or copied.
    Lent(&'a [u8]),
    /// A long one, to be kept for as long as it is of use.
    Given(Bytes),
}

impl Deref for TxFrame<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            TxFrame::Lent(frame) => frame,
            TxFrame::Given(frame) => frame,
        }
    }
}

/// What became of a frame for the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is in the ring.
    Delivered,
    /// The driver has too few buffers at present. Keep the frame; try again when the port's descriptor has become
    /// readable and [`Port::turn`] was called.
    NoBuffers,
    /// It cannot be delivered, and was counted.
    Dropped,
}

/// The port of one VM, driven by its caller.
pub struct Port {
    poller: Poller,
    control: ControlPlane,
    gathered: Gathered,
    /// Where a frame of the VM is copied to: room for the longest.
    frame: Vec<u8>,
    /// Buffers were filled that the driver cannot see yet.
    unpublished: bool,
}

impl Port {
    /// A port that serves the front-ends that connect to `vhost_user`, one after the other.
    ///
    /// # Errors
    /// When the process lacks what it needs, or the socket is no listening one.
    pub fn new(vhost_user: UnixListener, options: Options) -> Result<Port, PortError> {
        let poller = Poller::new().map_err(PortError::Setup)?;
        let control = ControlPlane::new(&poller, vhost_user, options)?;
        let frame = Vec::with_capacity(FRAME_BYTES_MAX);
        Ok(Port { poller, control, gathered: Gathered::new(), frame, unpublished: false })
    }

    /// Takes note of kicks, and serves the front-end's requests. Returns whether there are more: then call it again
    /// before waiting.
    ///
    /// # Errors
    /// When the events cannot be had. Not for anything that a front-end or a driver does.
    pub fn turn(&mut self) -> Result<bool, PortError> {
        let happened = self.poller.wait(EpollTimeout::ZERO).map_err(PortError::Wait)?;
        let more = happened.on(Token::FrontEnd).is_some() && self.serve_front_end();
        self.control.accept(&happened).map_err(PortError::Wait)?;
        Ok(more)
    }

    /// Hands at most `budget` frames of the VM to `each`, with what is yet to be done to them. Returns whether there
    /// may be more: then call it again before waiting.
    ///
    /// The driver gets its buffers back all at once, before this returns. It is asked for kicks only when nothing was
    /// found: one that goes on sending while its frames are worked on need not kick, and wakes nobody.
    pub fn take_tx(&mut self, budget: usize, each: impl FnMut(Offload, TxFrame<'_>)) -> bool {
        let (active, counters) = self.control.active(TX);
        let Some(mut active) = active else { return false };
        match take(&mut active, counters, &mut self.frame, budget, each) {
            Ok(more) => more,
            Err(e) => {
                self.control.stop_broken(TX, &e);
                false
            }
        }
    }

    /// Puts a frame into the VM's buffers: the bytes of `head`, then those of `body`. The driver need not see it before
    /// [`Port::publish`].
    pub fn put_rx(&mut self, offload: Offload, head: &[u8], body: &[u8]) -> Put {
        let (mut active, counters) = self.control.active(RX);
        let Some(active) = &mut active else {
            counters.drop_one(DropReason::NoDriver);
            return Put::Dropped;
        };
        let put = put(active, &mut self.gathered, counters, &mut self.unpublished, (offload, head, body));
        put.unwrap_or_else(|e| self.rx_broken(&e))
    }

    /// Shows the driver all frames that were put since the last call, and signals it once if it wants that.
    pub fn publish(&mut self) {
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        if let (Some(mut active), _) = self.control.active(RX)
            && let Err(e) = active.publish()
        {
            self.rx_broken(&e);
        }
    }

    /// What the driver can receive at present. It changes only in [`Port::turn`].
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        self.control.abilities()
    }

    /// What was counted since the port was made.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.control.counters
    }

    fn serve_front_end(&mut self) -> bool {
        for _ in 0..REQUESTS {
            let Some(step) = self.control.next() else { return false };
            self.publish();
            self.control.apply(step);
        }
        true
    }

    /// Stops the rx ring; the frame that was for it is lost.
    fn rx_broken(&mut self, e: &RingError) -> Put {
        self.control.stop_broken(RX, e);
        self.control.counters.drop_one(DropReason::NoDriver);
        self.unpublished = false;
        Put::Dropped
    }
}

impl AsFd for Port {
    /// Becomes readable when there is something to do: call [`Port::turn`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

/// Takes at most `budget` chains. Returns whether there may be more.
fn take(
    active: &mut Active<'_>,
    counters: &mut Counters,
    room: &mut Vec<u8>,
    budget: usize,
    mut each: impl FnMut(Offload, TxFrame<'_>),
) -> Result<bool, RingError> {
    let mut taken = 0;
    let mut more = true;
    active.ring.no_kicks(active.memory)?;
    // A look at the empty ring counts too: a driver that plays with its index keeps nobody here.
    for _ in 0..budget {
        let Some(chain) = active.ring.take(active.memory)? else {
            if taken > 0 {
                break;
            }
            let seen = active.ring.next_avail();
            more = active.ring.ask_for_kick(active.memory, seen)?;
            if more { continue } else { break }
        };
        let head = chain.head_index();
        room.clear();
        room.reserve(FRAME_BYTES_MAX); // does nothing unless the last buffer was given away
        let fetched = fetch(chain, active.memory, &active.ring.layout, room);
        match fetched {
            Ok((offload, GIVEN_FROM..)) => each(offload, TxFrame::Given(std::mem::take(room).into())),
            Ok((offload, _)) => each(offload, TxFrame::Lent(room)),
            Err(_) => {}
        }
        counters.count_tx(fetched.map(|(_, bytes)| bytes));
        active.ring.complete(active.memory, head, 0)?;
        taken += 1;
    }
    if taken > 0 {
        active.publish()?;
    }
    Ok(more)
}

/// Puts a frame (offload fields, head, body) into the ring, or leaves the ring with the wish to be kicked.
fn put(
    active: &mut Active<'_>,
    gathered: &mut Gathered,
    counters: &mut Counters,
    unpublished: &mut bool,
    (offload, head, body): (Offload, &[u8], &[u8]),
) -> Result<Put, RingError> {
    // A driver that gives one buffer at a time needs a look for each; one that plays with its index gets no more.
    for _ in 0..=CHAINS_MAX {
        let seen = match gathered.deliver(active, offload, head, body, counters)? {
            Outcome::Delivered => {
                *unpublished = true;
                return Ok(Put::Delivered);
            }
            Outcome::Dropped(_) => return Ok(Put::Dropped),
            Outcome::NoRoom { seen } => seen,
        };
        // The driver must see what it has got, or it may never give new buffers.
        if std::mem::take(unpublished) {
            active.publish()?;
        }
        if !active.ring.ask_for_kick(active.memory, seen)? {
            break;
        }
    }
    Ok(Put::NoBuffers)
}

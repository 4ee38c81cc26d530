//! A frame into as many chains of the rx ring as it needs (`VIRTIO_NET_F_MRG_RXBUF`, virtio 1.2, section 5.1.6.3.2).
//!
//! A chain that is wrong breaks the ring: it could not be skipped in the middle of a frame.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use wire::link::{OFFLOAD_BYTES, Offload};

use crate::{
    counters::{Counters, DropReason},
    device::Active,
    offload,
    ring::{BadChain, RingError, walk},
};

/// How many chains a frame may take: a driver whose buffers hold a frame of MTU 1500 each needs 44 for the longest.
pub(crate) const CHAINS_MAX: usize = 64;

/// What became of a frame.
pub(crate) enum Outcome {
    /// It is in the ring, not yet visible to the driver.
    Delivered,
    /// It cannot be delivered.
    Dropped(DropReason),
    /// There are too few buffers, up to the available index `seen`. None was taken.
    NoRoom {
        /// Behind it nothing was looked for.
        seen: u16,
    },
}

/// The chains gathered for one frame. Kept to spare the allocations; grows to a MiB at most, with a driver that makes
/// [`CHAINS_MAX`] chains of [`CHAIN_DESCRIPTORS_MAX`](crate::ring::CHAIN_DESCRIPTORS_MAX) tiny descriptors each.
pub(crate) struct Gathered {
    chains: Vec<Chain>,
    spans: Vec<(GuestAddress, usize)>,
}

struct Chain {
    head: u16,
    /// How many of the spans are its own.
    spans: usize,
}

impl Gathered {
    pub(crate) fn new() -> Gathered {
        // A chain is nearly always one descriptor, or two of which the first holds the header.
        Gathered { chains: Vec::with_capacity(CHAINS_MAX), spans: Vec::with_capacity(2 * CHAINS_MAX) }
    }

    /// Writes the frame that `head` and `body` are together to the next chains and completes them, or says why not;
    /// what became of it is counted.
    pub(crate) fn deliver(
        &mut self,
        active: &mut Active<'_>,
        offload: Offload,
        head: &[u8],
        body: &[u8],
        counters: &mut Counters,
    ) -> Result<Outcome, RingError> {
        let outcome = self.write(active, offload, head, body)?;
        match outcome {
            Outcome::Delivered => {
                counters.rx_frames += 1;
                counters.rx_bytes += (head.len() + body.len()) as u64;
            }
            Outcome::Dropped(reason) => counters.drop_one(reason),
            Outcome::NoRoom { .. } => {}
        }
        Ok(outcome)
    }

    fn write(
        &mut self,
        active: &mut Active<'_>,
        offload: Offload,
        head: &[u8],
        body: &[u8],
    ) -> Result<Outcome, RingError> {
        let layout = active.ring.layout;
        let frame_bytes = head.len() + body.len();
        let offload = match offload::for_driver(offload, layout.abilities, frame_bytes) {
            Ok(offload) => offload,
            Err(reason) => return Ok(Outcome::Dropped(reason)),
        };
        if let Some(outcome) = self.gather(active, layout.header_bytes + frame_bytes)? {
            active.ring.give_back();
            return Ok(outcome);
        }
        let mut header = [0; 12];
        header[..OFFLOAD_BYTES].copy_from_slice(&offload.to_bytes());
        let chains = u16::try_from(self.chains.len()).expect("at most CHAINS_MAX");
        header[OFFLOAD_BYTES..].copy_from_slice(&chains.to_le_bytes());
        let mut rest = Rest([&header[..layout.header_bytes], head, body]);
        let mut spans = self.spans.iter();
        for chain in &self.chains {
            let mut written = 0;
            for (addr, bytes) in spans.by_ref().take(chain.spans) {
                written += rest.write(active.memory, *addr, *bytes)?;
            }
            let written = u32::try_from(written).expect("a frame is shorter");
            active.ring.complete(active.memory, chain.head, written)?;
        }
        Ok(Outcome::Delivered)
    }

    /// Takes chains until they hold `wanted` bytes. Says why if that cannot be.
    fn gather(&mut self, active: &mut Active<'_>, wanted: usize) -> Result<Option<Outcome>, RingError> {
        let layout = active.ring.layout;
        let chains_max = if layout.mergeable { CHAINS_MAX } else { 1 };
        self.chains.clear();
        self.spans.clear();
        let mut room = 0;
        while room < wanted {
            if self.chains.len() == chains_max {
                return Ok(Some(Outcome::Dropped(DropReason::BuffersTooSmall)));
            }
            let Some(chain) = active.ring.take(active.memory)? else {
                return Ok(Some(Outcome::NoRoom { seen: active.ring.next_avail() }));
            };
            let head = chain.head_index();
            let walked = walk(chain, true, |descriptor| {
                self.spans.push((descriptor.addr(), descriptor.len() as usize));
                room += descriptor.len() as usize;
                Ok(())
            });
            let spans = walked.map_err(|BadChain| RingError::Buffer)?;
            if self.chains.is_empty() && room < layout.header_bytes {
                return Ok(Some(Outcome::Dropped(DropReason::BuffersTooSmall)));
            }
            self.chains.push(Chain { head, spans });
        }
        Ok(None)
    }
}

/// What is still to be written: header, head and body of a frame.
struct Rest<'a>([&'a [u8]; 3]);

impl Rest<'_> {
    /// Writes as much as fits into `room` bytes at `addr`. Returns how much that was.
    fn write(&mut self, memory: &GuestMemoryMmap, addr: GuestAddress, room: usize) -> Result<usize, RingError> {
        let mut written = 0;
        for part in &mut self.0 {
            let now = part.len().min(room - written);
            if now > 0 {
                let to = addr.0.checked_add(written as u64).ok_or(RingError::Outside)?;
                memory.write_slice(&part[..now], GuestAddress(to)).map_err(RingError::Memory)?;
                *part = &part[now..];
                written += now;
            }
        }
        Ok(written)
    }
}

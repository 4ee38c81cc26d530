//! What the port counts. Nothing about what is in the frames.

use std::fmt;

/// Why a frame or a chain was not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// rx: the VM has no driver, or it has not enabled the ring.
    NoDriver,
    /// rx: the driver's buffers cannot hold the frame, however many of them there are.
    BuffersTooSmall,
    /// rx: the driver has not negotiated what the frame asks of it (a checksum, or cutting it into segments).
    Ability,
    /// rx: the frame's offload fields point out of it, or contradict each other.
    BadOffload,
    /// tx: a chain that is cyclic, too long, outside the memory, or has parts for the device to write to.
    TxChain,
    /// tx: shorter than a virtio-net header and an Ethernet header.
    TooShort,
    /// tx: longer than the MTU, or the longest segmented frame, allows.
    TooLong,
}

/// How many [`DropReason`]s there are.
const DROP_REASONS: usize = 7;

/// Counters since the port was started. tx and rx are the driver's: tx goes from the VM to the router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames carried from the VM to the router.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames carried from the router to the VM.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Front-ends that connected.
    pub front_ends: u64,
    /// Front-ends whose connection was closed because they broke the protocol.
    pub front_end_errors: u64,
    /// Links that said their hello rightly.
    pub links: u64,
    /// Rings stopped because the driver broke them.
    pub broken_rings: u64,
    dropped: [u64; DROP_REASONS],
}

impl Counters {
    /// Frames (rx) or chains (tx) dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Counts a chain of the tx ring that is done with: the bytes of its frame, or why it has none.
    pub(crate) fn count_tx(&mut self, frame: Result<usize, DropReason>) {
        match frame {
            Ok(bytes) => {
                self.tx_frames += 1;
                self.tx_bytes += bytes as u64;
            }
            Err(reason) => self.drop_one(reason),
        }
    }

    pub(crate) fn drop_one(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tx {} frames {} bytes, rx {} frames {} bytes, front-ends {} (errors {}), links {}, broken rings {}, dropped:",
            self.tx_frames,
            self.tx_bytes,
            self.rx_frames,
            self.rx_bytes,
            self.front_ends,
            self.front_end_errors,
            self.links,
            self.broken_rings
        )?;
        use DropReason::{Ability, BadOffload, BuffersTooSmall, NoDriver, TooLong, TooShort, TxChain};
        for reason in [NoDriver, BuffersTooSmall, Ability, BadOffload, TxChain, TooShort, TooLong] {
            write!(f, " {reason:?} {}", self.dropped(reason))?;
        }
        Ok(())
    }
}

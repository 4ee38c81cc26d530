//! The half of a connection that goes to the VM: what is sent when (RFC 9293, section 3.8).
//!
//! The SYN, the bytes and the FIN are one row of numbers: `una` is the first that is not acknowledged, `next` the one
//! to be sent next, `max` the one after the last that was ever sent. After a timeout `next` goes back to `una`.
//!
//! Losses: NewReno (RFC 6582) with limited transmit (RFC 3042). The link loses nothing but when one of its parts is
//! started again, and nothing on it is shared; so the congestion window begins large and is in nobody's way then.

use std::time::Instant;

use bytes::Bytes;

use super::{number::Seq, queue::Queue, rto::Rto};
use crate::counters::Counters;

/// Bytes of the congestion window at first. More than the 10 segments of RFC 6928 for a VM with an MTU of 1500: what
/// that bounds is the queue of a router, and here is none.
const WINDOW_BYTES_INITIAL: u32 = 64 << 10;

/// Bytes of the congestion window at most.
const WINDOW_BYTES_MAX: u32 = 1 << 24;

/// Duplicate acknowledgements that mean a loss (RFC 5681, section 3.2).
const DUPLICATES: u32 = 3;

/// What is sent to the VM.
#[derive(Debug)]
pub(super) struct Sender {
    queue: Queue,
    /// The number of the first byte in the queue.
    base: Seq,
    una: Seq,
    next: Seq,
    max: Seq,
    is_established: bool,
    /// The FIN is to follow the bytes.
    fin: bool,
    /// SND.WND, the largest ever, and where it comes from (SND.WL1, SND.WL2).
    window: u32,
    window_max: u32,
    told: (Seq, Seq),
    scale: u8,
    mss: u16,
    congestion: u32,
    threshold: u32,
    duplicates: u32,
    /// In fast recovery, until this is acknowledged.
    recover: Option<Seq>,
    /// No fast retransmit before this is acknowledged (RFC 6582, section 3.2, step 1).
    recovered: Seq,
    /// The first unacknowledged segment is to be sent again.
    again: bool,
    /// Something is to be sent whatever the windows say: the timer has expired.
    forced: bool,
    rto: Rto,
    timer: Option<Instant>,
}

/// A segment's part of the row.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) seq: Seq,
    pub(super) syn: bool,
    pub(super) data: Bytes,
    /// Nothing follows for now.
    pub(super) push: bool,
    pub(super) fin: bool,
}

/// What a segment from the VM tells the sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledgement {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) window: u16,
    /// Nothing in it but the acknowledgement.
    pub(super) is_bare: bool,
}

impl Sender {
    /// Begins with a SYN of the number `iss`, for a VM that has told a window, its scale and an MSS.
    pub(super) fn new(iss: Seq, window: u16, scale: u8, mss: u16, seq: Seq) -> Sender {
        Sender {
            queue: Queue::default(),
            base: iss + 1,
            una: iss,
            next: iss,
            max: iss,
            is_established: false,
            fin: false,
            window: window.into(),
            window_max: window.into(),
            told: (seq, iss),
            scale,
            mss,
            congestion: WINDOW_BYTES_INITIAL.max(2 * u32::from(mss)),
            threshold: WINDOW_BYTES_MAX,
            duplicates: 0,
            recover: None,
            recovered: iss,
            again: false,
            forced: false,
            rto: Rto::new(),
            timer: None,
        }
    }

    /// The SYN was sent by other means, and the VM has acknowledged it.
    pub(super) fn establish(&mut self) {
        self.is_established = true;
        (self.una, self.next, self.max, self.recovered) = (self.base, self.base, self.base, self.base);
        self.told.1 = self.base;
    }

    /// Whether the VM has acknowledged the SYN.
    pub(super) fn is_established(&self) -> bool {
        self.is_established
    }

    /// Payload bytes of a segment.
    pub(super) fn mss(&self) -> usize {
        self.mss.into()
    }

    /// The number of a segment without anything in it: the one after the last that was sent, but not beyond the VM's
    /// window, where it would not be looked at.
    pub(super) fn next(&self) -> Seq {
        let edge = self.una + self.window;
        if self.is_established && edge.is_before(self.max) { edge } else { self.max }
    }

    /// Bytes that are not acknowledged, sent or not.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Adds bytes to be sent.
    pub(super) fn push(&mut self, data: Bytes) {
        self.queue.push(data);
    }

    /// Nothing is added any more.
    pub(super) fn finish(&mut self) {
        self.fin = true;
    }

    /// Whether the FIN was sent.
    pub(super) fn has_sent_fin(&self) -> bool {
        self.fin && self.end().is_before(self.max)
    }

    /// Whether the VM has acknowledged everything, and the FIN.
    pub(super) fn is_finished(&self) -> bool {
        self.fin && self.end().is_before(self.una)
    }

    /// When [`Sender::expire`] is due.
    pub(super) fn timer(&self) -> Option<Instant> {
        self.timer
    }

    /// Whether an acknowledgement is about what was sent, now or not too long ago (RFC 5961, section 5.2).
    pub(super) fn is_plausible(&self, ack: Seq) -> bool {
        let earliest = Seq(self.una.0.wrapping_sub(self.window_max));
        if !self.is_established {
            return ack == self.base && self.una != self.max;
        }
        !self.max.is_before(ack) && !ack.is_before(earliest)
    }

    /// Whether a number was sent and is not acknowledged.
    pub(super) fn is_on_its_way(&self, seq: Seq) -> bool {
        seq.since(self.una) < self.max.since(self.una)
    }

    /// Segments are too large somewhere behind the VM. Returns whether it was not known that they are to be so small.
    /// Then what is on its way is sent again, at first one segment; it was not congestion (RFC 1191, section 6.5).
    pub(super) fn lower_mss(&mut self, mss: u16) -> bool {
        if mss >= self.mss || !self.is_established {
            return false;
        }
        self.mss = mss;
        self.congestion = mss.into();
        self.go_back();
        true
    }

    /// What is on its way is to be sent again.
    fn go_back(&mut self) {
        self.next = self.una;
        self.recover = None;
        self.recovered = self.max;
        self.duplicates = 0;
        self.again = false;
    }

    /// The VM has sent its SYN again: so must we.
    pub(super) fn repeat_syn(&mut self) {
        self.next = self.una;
    }

    /// The number after the last byte.
    fn end(&self) -> Seq {
        self.base + self.queue.len() as u32
    }

    /// Bytes that are on their way.
    fn flight(&self) -> u32 {
        self.next.since(self.una)
    }

    /// Handles an acknowledgement that is plausible.
    pub(super) fn acknowledge(&mut self, now: Instant, segment: Acknowledgement, counters: &mut Counters) {
        let Acknowledgement { seq, ack, .. } = segment;
        let window = u32::from(segment.window) << self.scale;
        if self.una.is_before(ack) {
            self.advance(now, ack, counters);
        } else if ack == self.una && segment.is_bare && window == self.window && self.una != self.max {
            self.duplicate(counters);
        }
        let (told_seq, told_ack) = self.told;
        if told_seq.is_before(seq) || (told_seq == seq && !ack.is_before(told_ack)) {
            if self.window == 0 && window > 0 {
                self.rto.heard();
            }
            self.window = window;
            self.window_max = self.window_max.max(window);
            self.told = (seq, ack);
        }
    }

    fn advance(&mut self, now: Instant, ack: Seq, counters: &mut Counters) {
        let acknowledged = ack.since(self.una);
        if !self.is_established {
            self.is_established = true;
            self.rto.established();
        }
        let bytes = (ack.since(self.base) as usize).min(self.queue.len());
        self.queue.drop_front(bytes);
        self.base = self.base + bytes as u32;
        counters.bytes_to_vm += bytes as u64;
        self.una = ack;
        self.next = self.next.later(ack);
        self.rto.acknowledged(ack, now);
        self.duplicates = 0;
        let mss = u32::from(self.mss);
        match self.recover {
            Some(recover) if ack.is_before(recover) => {
                self.again = true;
                self.congestion = self.congestion.saturating_sub(acknowledged).saturating_add(mss).max(mss);
            }
            Some(_) => {
                self.recover = None;
                self.congestion = self.threshold.min(self.flight().max(mss) + mss);
            }
            None if self.congestion < self.threshold => self.congestion += acknowledged,
            None => {
                self.congestion += (u64::from(mss) * u64::from(acknowledged) / u64::from(self.congestion)) as u32 + 1
            }
        }
        self.congestion = self.congestion.min(WINDOW_BYTES_MAX);
        self.timer = (self.una != self.max).then(|| now + self.rto.timeout());
    }

    fn duplicate(&mut self, counters: &mut Counters) {
        let mss = u32::from(self.mss);
        self.duplicates += 1;
        if self.recover.is_some() {
            self.congestion = self.congestion.saturating_add(mss).min(WINDOW_BYTES_MAX);
        } else if self.duplicates == DUPLICATES && !self.una.is_before(self.recovered) {
            counters.fast_retransmits += 1;
            self.threshold = (self.flight() / 2).max(2 * mss);
            self.congestion = self.threshold + DUPLICATES * mss;
            (self.recover, self.recovered) = (Some(self.max), self.max);
            self.again = true;
        }
    }

    /// The timer has expired: something is sent again, or the window is probed (RFC 9293, section 3.8.6.1).
    pub(super) fn expire(&mut self, now: Instant, counters: &mut Counters) {
        let mss = u32::from(self.mss);
        if self.una != self.max && self.window > 0 {
            counters.timeouts += 1;
            // RFC 5681, section 3.1: once for the same segment.
            if self.congestion > mss {
                self.threshold = (self.flight() / 2).max(2 * mss);
            }
            self.congestion = mss;
        }
        self.go_back();
        self.forced = true;
        self.rto.expired();
        self.timer = Some(now + self.rto.timeout());
    }

    /// The next segment that may be sent, with up to `burst` bytes.
    pub(super) fn poll(&mut self, now: Instant, burst: usize, counters: &mut Counters) -> Option<Piece> {
        if !self.is_established {
            return self.poll_syn(now, counters);
        }
        if std::mem::take(&mut self.again) {
            let bytes = (self.end().since(self.una) as usize).min(self.mss.into());
            // A FIN that is acknowledged leaves nothing, and then nothing is to be sent again.
            let bytes = if self.end().is_before(self.una) { 0 } else { bytes };
            counters.retransmits += 1;
            self.rto.sent_again();
            self.timer = Some(now + self.rto.timeout());
            let piece = self.cut(self.una, bytes);
            self.next = self.next.later(piece.end());
            self.max = self.max.later(self.next);
            return Some(piece);
        }
        let left = if self.end().is_before(self.next) { 0 } else { self.end().since(self.next) };
        let bytes = self.allowed(left, burst as u32);
        let forced = std::mem::take(&mut self.forced);
        let fin_due = self.fin && left == bytes && !self.end().is_before(self.next);
        if bytes > 0 || fin_due {
            return Some(self.transmit(now, bytes, counters));
        }
        if left > 0 && forced {
            return Some(self.probe(now, left, counters));
        }
        if left > 0 && self.una == self.max && self.timer.is_none() {
            self.timer = Some(now + self.rto.timeout());
        }
        None
    }

    fn poll_syn(&mut self, now: Instant, counters: &mut Counters) -> Option<Piece> {
        if self.next != self.una {
            return None;
        }
        self.forced = false;
        if self.max == self.una {
            self.rto.sent(self.base, now);
        } else {
            counters.retransmits += 1;
            self.rto.sent_again();
        }
        (self.next, self.max) = (self.base, self.base);
        self.timer = Some(now + self.rto.timeout());
        Some(Piece { seq: self.una, syn: true, data: Bytes::new(), push: false, fin: false })
    }

    /// How many of the `left` bytes may be sent now (RFC 9293, section 3.8.6.2.1): all of them, or a whole segment, or
    /// half of what the VM ever takes. While an acknowledgement is to come anyhow, more is waited for: a quarter of the
    /// window at once makes a few large frames of what would be many small ones.
    fn allowed(&self, left: u32, burst: u32) -> u32 {
        let mss = u32::from(self.mss);
        let flight = self.flight();
        let limited_transmit = if self.recover.is_none() { mss * self.duplicates.min(DUPLICATES - 1) } else { 0 };
        let window = (self.congestion + limited_transmit).min(self.window);
        let usable = window.saturating_sub(flight);
        let bytes = left.min(burst).min(usable);
        if bytes == left || bytes == burst {
            return bytes;
        }
        let worth = if flight > 0 { burst.min(mss.max(window / 4)) } else { mss.min(self.window_max / 2).max(1) };
        if bytes < worth {
            0
        } else if bytes > mss {
            bytes / mss * mss
        } else {
            bytes
        }
    }

    fn transmit(&mut self, now: Instant, bytes: u32, counters: &mut Counters) -> Piece {
        let piece = self.cut(self.next, bytes as usize);
        // One byte of it may have been a probe of the window, which is no retransmission.
        if self.max.since(piece.seq) > 1 && piece.seq.is_before(self.max) {
            counters.retransmits += 1;
            self.rto.sent_again();
        } else {
            self.rto.sent(piece.end(), now);
        }
        if self.flight() == 0 {
            self.timer = Some(now + self.rto.timeout());
        }
        self.next = piece.end();
        self.max = self.max.later(self.next);
        piece
    }

    /// Sends a byte, or what little the window allows, to hear of the window.
    fn probe(&mut self, now: Instant, left: u32, counters: &mut Counters) -> Piece {
        counters.window_probes += 1;
        let usable = self.window.saturating_sub(self.flight()).min(self.mss.into());
        let piece = self.cut(self.next, left.min(usable.max(1)) as usize);
        self.max = self.max.later(piece.end());
        self.rto.sent_again();
        self.timer.get_or_insert(now + self.rto.timeout());
        piece
    }

    fn cut(&mut self, seq: Seq, bytes: usize) -> Piece {
        let data = if bytes == 0 { Bytes::new() } else { self.queue.read(seq.since(self.base) as usize, bytes) };
        let is_last = seq + data.len() as u32 == self.end();
        Piece { seq, syn: false, push: is_last && !data.is_empty(), fin: is_last && self.fin, data }
    }
}

impl Piece {
    /// The number after its last.
    fn end(&self) -> Seq {
        self.seq + self.data.len() as u32 + u32::from(self.syn) + u32::from(self.fin)
    }
}

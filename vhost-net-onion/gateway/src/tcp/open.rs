//! A connection to the VM: RFC 9293, section 3.10.7.4, on two halves that know nothing of each other.
//!
//! The states of RFC 9293 are not kept but follow from the halves:
//!
//! | state | our SYN acknowledged | our FIN sent | acknowledged | the VM's FIN here |
//! | --- | --- | --- | --- | --- |
//! | SYN-RECEIVED | no | | | |
//! | ESTABLISHED | yes | no | | no |
//! | FIN-WAIT-1, FIN-WAIT-2 | yes | yes | no, yes | no |
//! | CLOSE-WAIT | yes | no | | yes |
//! | CLOSING, LAST-ACK | yes | yes | no | yes |
//! | TIME-WAIT, CLOSED | yes | yes | yes | yes |
//!
//! CLOSING leads to TIME-WAIT and LAST-ACK to CLOSED: it counts whose FIN was first. Data that the pump has not taken
//! outlives both.

use std::time::Instant;

use bytes::Bytes;

use super::{
    budget::Share,
    emit::Header,
    flow::{HALF_CLOSED_IDLE, HANDSHAKE, SERVICE_IDLE, UNANSWERED},
    number::Seq,
    receiver::{Arrival, Receiver},
    segment::{self, Segment, Syn},
    sender::{Acknowledgement, Piece, Sender},
};
use crate::counters::Counters;

/// Acknowledgements of what came early that wait to be sent; more tell nothing new.
const DUPLICATES_OWED_MAX: u8 = 16;

/// What becomes of the flow after a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Kept,
    /// The segment acknowledges a SYN that was never sent: it gets an RST.
    Refused,
    /// The segment is suspicious: it gets an acknowledgement, if not too many were sent (RFC 5961).
    Challenged,
    /// The VM has broken it off.
    Broken,
}

/// A flow whose SYN is answered.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) share: Share,
    /// The number of the VM's SYN, and what it is answered with.
    irs: Seq,
    scale: Option<u8>,
    /// Acknowledgements that are owed: one for all that came in order, and one for each segment that came early.
    owed: bool,
    owed_duplicates: u8,
    /// The VM's FIN came before ours was sent.
    vm_was_first: bool,
    /// Since when the VM owes an answer, if it owes one.
    heard: Instant,
    /// False only of an optimistic flow, whose SYN is answered before.
    pub(super) far_end_accepted: bool,
    /// The pump was told that there are bytes, and has not taken all.
    pub(super) readable_told: bool,
    /// The pump offered more bytes than were taken.
    pub(super) write_wanted: bool,
    /// The pump was told that the VM's data is complete.
    pub(super) finished_told: bool,
    /// The pump has no more data.
    pub(super) is_finishing: bool,
    /// A service of the gateway's own waits for what the VM will say.
    pub(super) is_awaited: bool,
}

/// How a connection begins.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) syn: Syn,
    /// Our number.
    pub(super) iss: Seq,
    /// Payload bytes of a segment to the VM.
    pub(super) mss: u16,
    /// Bytes of the largest window that it may ever have.
    pub(super) window_max: usize,
    pub(super) share: Share,
}

impl Open {
    /// Answers a SYN.
    pub(super) fn new(opening: Opening, now: Instant) -> Open {
        let Opening { syn, iss, mss, window_max, share } = opening;
        let scale = syn.options.window_scale.map(|_| scale(window_max));
        let window = u16::try_from(share.recv()).unwrap_or(u16::MAX);
        Open {
            sender: Sender::new(iss, syn.window, syn.options.window_scale.unwrap_or(0), mss, syn.seq),
            receiver: Receiver::new(syn.seq + 1, window, scale.unwrap_or(0)),
            share,
            irs: syn.seq,
            scale,
            owed: false,
            owed_duplicates: 0,
            vm_was_first: false,
            heard: now,
            far_end_accepted: true,
            readable_told: false,
            write_wanted: false,
            finished_told: false,
            is_finishing: false,
            is_awaited: false,
        }
    }

    /// Takes the VM's answer to our SYN, of the number `iss`.
    pub(super) fn answered(opening: Opening, now: Instant) -> Open {
        let mut open = Open::new(opening, now);
        open.sender.establish();
        open.owed = true;
        open
    }

    /// Handles a segment of the VM.
    pub(super) fn handle(&mut self, now: Instant, segment: &Segment<'_>, counters: &mut Counters) -> Verdict {
        if segment.has(segment::SYN) && segment.seq == self.irs && !self.sender.is_established() {
            self.sender.repeat_syn();
            return Verdict::Kept;
        }
        if !self.is_acceptable(segment) {
            return self.handle_unacceptable(now, segment, counters);
        }
        if segment.has(segment::RST) {
            return self.handle_reset(segment, counters);
        }
        if segment.has(segment::SYN) {
            return Verdict::Challenged;
        }
        if !segment.has(segment::ACK) {
            counters.dropped_unacceptable += 1;
            return Verdict::Kept;
        }
        if !self.sender.is_plausible(segment.ack) {
            counters.dropped_unacceptable += 1;
            return if self.sender.is_established() { Verdict::Challenged } else { Verdict::Refused };
        }
        self.heard = now;
        self.acknowledge(now, segment, counters);
        if segment.length() > 0 {
            self.take(segment, counters);
        }
        Verdict::Kept
    }

    /// RFC 9293, section 3.10.7.4, first step. A segment without data may also stand at the right edge of the window:
    /// it does when the VM has filled the window and some of it was lost.
    fn is_acceptable(&self, segment: &Segment<'_>) -> bool {
        let (next, window) = (self.receiver.next(), self.receiver.window());
        let length = if segment.has(segment::RST) { 0 } else { segment.length() };
        if length == 0 {
            return segment.seq.since(next) <= window;
        }
        let begins_before_edge = segment.seq.is_before(next + window);
        window > 0 && begins_before_edge && next.is_before(segment.seq + length)
    }

    fn handle_unacceptable(&mut self, now: Instant, segment: &Segment<'_>, counters: &mut Counters) -> Verdict {
        if segment.has(segment::RST) {
            counters.dropped_unacceptable += 1;
            return Verdict::Kept;
        }
        let next = self.receiver.next();
        if segment.seq.is_before(next) {
            counters.duplicates += 1;
        } else {
            counters.dropped_unacceptable += 1;
        }
        self.owed = true;
        let is_right = segment.seq == next && segment.flags & (segment::SYN | segment::ACK) == segment::ACK;
        if is_right && self.sender.is_established() && self.sender.is_plausible(segment.ack) {
            // A probe of a closed window: what it acknowledges counts.
            self.heard = now;
            self.acknowledge(now, segment, counters);
        }
        Verdict::Kept
    }

    /// RFC 5961, section 3.2: only the exact number resets. Nothing is left to be reset when both ends are done.
    fn handle_reset(&mut self, segment: &Segment<'_>, counters: &mut Counters) -> Verdict {
        if self.is_over() {
            counters.dropped_unacceptable += 1;
            Verdict::Kept
        } else if segment.seq == self.receiver.next() {
            Verdict::Broken
        } else {
            Verdict::Challenged
        }
    }

    fn acknowledge(&mut self, now: Instant, segment: &Segment<'_>, counters: &mut Counters) {
        let (seq, ack, window) = (segment.seq, segment.ack, segment.window);
        let is_bare = segment.length() == 0;
        self.sender.acknowledge(now, Acknowledgement { seq, ack, window, is_bare }, counters);
    }

    fn take(&mut self, segment: &Segment<'_>, counters: &mut Counters) {
        let queued = self.receiver.queued();
        let arrival = self.receiver.take(segment.seq, segment.payload, segment.has(segment::FIN), segment.frame);
        counters.bytes_from_vm += (self.receiver.queued() - queued) as u64;
        match arrival {
            Arrival::InOrder => {}
            Arrival::Again => counters.duplicates += 1,
            Arrival::Early => counters.out_of_order += 1,
            Arrival::NoRoom => counters.dropped_out_of_order += 1,
        }
        if matches!(arrival, Arrival::Early | Arrival::NoRoom) {
            self.owed_duplicates = (self.owed_duplicates + 1).min(DUPLICATES_OWED_MAX);
        } else {
            self.owed = true;
        }
        if self.receiver.is_finished() && !self.sender.has_sent_fin() {
            self.vm_was_first = true;
        }
    }

    /// An acknowledgement is to be sent.
    pub(super) fn owe(&mut self) {
        self.owed = true;
    }

    /// The pump offers bytes.
    pub(super) fn push(&mut self, now: Instant, data: Bytes) {
        if self.sender.queued() == 0 {
            self.heard = now;
        }
        self.sender.push(data);
    }

    /// The next segment to the VM, with at most `burst` bytes: its header and its payload.
    pub(super) fn poll(&mut self, now: Instant, burst: usize, counters: &mut Counters) -> Option<(Header, Bytes)> {
        if let Some(piece) = self.sender.poll(now, burst, counters) {
            return Some(self.with_header(piece));
        }
        let wants_update =
            self.sender.is_established() && self.receiver.wants_update(self.share.recv(), self.sender.mss());
        if self.owed || wants_update {
            self.owed = false;
        } else {
            self.owed_duplicates = self.owed_duplicates.checked_sub(1)?;
        }
        Some((self.acknowledgement(), Bytes::new()))
    }

    fn with_header(&mut self, piece: Piece) -> (Header, Bytes) {
        self.owed = false;
        let mut flags = segment::ACK;
        for (set, flag) in [(piece.syn, segment::SYN), (piece.push, segment::PSH), (piece.fin, segment::FIN)] {
            flags |= if set { flag } else { 0 };
        }
        let mut header = Header { seq: piece.seq, flags, ..self.acknowledgement() };
        if piece.syn {
            // Not scaled, and what was promised at the beginning (RFC 7323, section 2.2).
            header.window = u16::try_from(self.receiver.window()).unwrap_or(u16::MAX);
            header.syn = Some(self.scale);
        }
        (header, piece.data)
    }

    /// The header of a segment without anything in it.
    pub(super) fn acknowledgement(&mut self) -> Header {
        let window = self.receiver.announce(self.share.recv(), self.sender.mss());
        let (seq, ack) = (self.sender.next(), self.receiver.next());
        Header { seq, ack, flags: segment::ACK, window, syn: None }
    }

    /// The RST that breaks it off.
    pub(super) fn reset(&self) -> Header {
        let (seq, ack) = (self.sender.next(), self.receiver.next());
        Header { seq, ack, flags: segment::RST | segment::ACK, ..Header::default() }
    }

    /// Whether both ends are done: TIME-WAIT or CLOSED.
    pub(super) fn is_over(&self) -> bool {
        self.receiver.is_finished() && self.sender.is_finished()
    }

    /// Whether there is a TIME-WAIT to go through: our FIN was first, or both were at once.
    pub(super) fn has_time_wait(&self) -> bool {
        !self.vm_was_first
    }

    /// Whether an acknowledgement is yet to be sent.
    pub(super) fn owes(&self) -> bool {
        self.owed
    }

    /// When the flow is given up if nothing happens.
    pub(super) fn end(&self, used: Instant) -> Option<Instant> {
        if !self.sender.is_established() {
            return Some(self.heard + HANDSHAKE);
        }
        if !self.far_end_accepted {
            return None;
        }
        match (self.is_finishing || self.receiver.is_finished(), self.sender.queued()) {
            (true, _) => Some(used + HALF_CLOSED_IDLE),
            (false, 0) if self.is_awaited => Some(used + SERVICE_IDLE),
            (false, 0) => None,
            (false, _) => Some(self.heard + UNANSWERED),
        }
    }
}

/// By how many bits windows are to be shifted, so that the largest one fits (RFC 7323, section 2.2).
pub(super) fn scale(window_max: usize) -> u8 {
    (0..14).find(|shift| window_max >> shift <= usize::from(u16::MAX)).unwrap_or(14)
}

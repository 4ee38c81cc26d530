//! The half of a connection that comes from the VM: what has arrived, and the window (RFC 9293, section 3.8.6).
//!
//! What comes in order goes to the pump's queue. What comes early is held, a few ranges of it, within the window that
//! was promised. The right edge of the window never moves back; scaling may round it down by less than one unit of
//! the scale, and only once the slack above the limit is used up.

use bytes::{Bytes, BytesMut};

use super::{chunks::Chunks, number::Seq};

/// Ranges that are held until what is missing before them comes.
const HELD_MAX: usize = 32;

/// How far rounding may move the right edge beyond the limit, in units of the window's scale.
const SLACK_UNITS: u32 = 128;

/// What became of a segment's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Some were the next ones.
    InOrder,
    /// They came early, and are held.
    Early,
    /// They came early, and there are too many ranges.
    NoRoom,
    /// All have been here before.
    Again,
}

/// Bytes that came early.
#[derive(Debug)]
struct Range {
    begin: Seq,
    data: BytesMut,
}

impl Range {
    fn end(&self) -> Seq {
        self.begin + self.data.len() as u32
    }
}

/// What comes from the VM.
#[derive(Debug)]
pub(super) struct Receiver {
    /// RCV.NXT.
    next: Seq,
    /// The farthest right edge that the VM was told.
    edge: Seq,
    scale: u8,
    queue: Chunks,
    held: Vec<Range>,
    /// Where the VM's FIN is, if it was seen.
    fin: Option<Seq>,
    /// The FIN and all before it have come.
    finished: bool,
}

impl Receiver {
    /// Begins after a SYN whose number is before `next`, and promises `window` bytes, at most 65,535.
    pub(super) fn new(next: Seq, window: u16, scale: u8) -> Receiver {
        let edge = next + u32::from(window);
        Receiver { next, edge, scale, queue: Chunks::default(), held: Vec::new(), fin: None, finished: false }
    }

    /// The next number that is missing.
    pub(super) fn next(&self) -> Seq {
        self.next
    }

    /// Bytes that the VM may still send.
    pub(super) fn window(&self) -> u32 {
        if self.finished { 0 } else { self.edge.since(self.next) }
    }

    /// Whether everything up to the FIN has come.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Bytes that wait for the pump.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Takes the next bytes in order.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        self.queue.pop()
    }

    /// Takes the part of a segment that is new and in the window. The data lies in `frame`, if there is one.
    pub(super) fn take(&mut self, mut seq: Seq, mut data: &[u8], fin: bool, frame: Option<&Bytes>) -> Arrival {
        if self.finished {
            return Arrival::Again;
        }
        let mut end = seq + data.len() as u32;
        if end.is_before(self.next) {
            return Arrival::Again;
        }
        if seq.is_before(self.next) {
            data = &data[self.next.since(seq) as usize..];
            seq = self.next;
        }
        let room = self.edge.since(seq).min(self.fin.map_or(u32::MAX, |fin| fin.since(seq))) as usize;
        let cut = data.len() > room;
        data = &data[..data.len().min(room)];
        end = seq + data.len() as u32;
        if fin && !cut && self.fin.is_none() {
            self.fin = Some(end);
        }
        let arrival = self.place(seq, data, frame);
        if self.fin == Some(self.next) {
            self.finished = true;
            self.next = self.next + 1;
            self.held = Vec::new();
            return Arrival::InOrder;
        }
        arrival
    }

    fn place(&mut self, seq: Seq, data: &[u8], frame: Option<&Bytes>) -> Arrival {
        if data.is_empty() {
            return if seq == self.next { Arrival::Again } else { Arrival::Early };
        }
        if seq != self.next {
            return self.hold(seq, data);
        }
        match frame.filter(|frame| data.len() >= frame.len() / 2) {
            Some(frame) => self.queue.push(frame.slice_ref(data)),
            None => self.queue.copy(data),
        }
        self.next = seq + data.len() as u32;
        self.release();
        Arrival::InOrder
    }

    /// Keeps what came early. What overlaps is kept once; what lies beyond the next range comes again anyhow.
    fn hold(&mut self, mut seq: Seq, mut data: &[u8]) -> Arrival {
        let at = self.held.iter().position(|range| seq.is_before(range.begin)).unwrap_or(self.held.len());
        if let Some(before) = at.checked_sub(1).map(|n| self.held[n].end())
            && seq.is_before(before)
        {
            data = &data[data.len().min(before.since(seq) as usize)..];
            seq = before;
        }
        if let Some(after) = self.held.get(at) {
            data = &data[..data.len().min(after.begin.since(seq) as usize)];
        }
        if data.is_empty() {
            return Arrival::Again;
        }
        if at > 0 && self.held[at - 1].end() == seq {
            self.held[at - 1].data.extend_from_slice(data);
        } else if self.held.len() < HELD_MAX {
            self.held.insert(at, Range { begin: seq, data: BytesMut::from(data) });
        } else {
            return Arrival::NoRoom;
        }
        Arrival::Early
    }

    /// Moves what is no longer early.
    fn release(&mut self) {
        while let Some(range) = self.held.first()
            && !self.next.is_before(range.begin)
        {
            let Range { begin, data } = self.held.remove(0);
            let mut data = data.freeze();
            let known = self.next.since(begin) as usize;
            if known < data.len() {
                let fresh = data.split_off(known);
                self.next = self.next + fresh.len() as u32;
                self.queue.push(fresh);
            }
            if self.held.is_empty() {
                self.held = Vec::new();
            }
        }
    }

    /// The number of the first byte that waits for the pump.
    fn read(&self) -> Seq {
        Seq(self.next.0.wrapping_sub(u32::from(self.finished))) + (self.queue.len() as u32).wrapping_neg()
    }

    /// By how many bytes the right edge could move, when `limit` bytes may be promised or wait.
    fn gain(&self, limit: usize) -> u32 {
        let edge = self.read() + limit as u32;
        if self.finished || edge.is_before(self.edge) { 0 } else { edge.since(self.edge) }
    }

    /// Whether the VM should be told at once that it may send more: a quarter of the limit is worth a segment, or less
    /// when the VM may be waiting for it.
    pub(super) fn wants_update(&self, limit: usize, mss: usize) -> bool {
        let gain = self.gain(limit) as usize;
        gain >= mss.min(limit / 2).max(1) && (gain >= limit / 4 || (self.window() as usize) < 2 * mss)
    }

    /// The window for a header that is sent now. Avoids silly windows: the edge moves by a segment or half the limit,
    /// or not at all (RFC 9293, section 3.8.6.2.2, MUST-39).
    pub(super) fn announce(&mut self, limit: usize, mss: usize) -> u16 {
        if self.finished {
            return 0;
        }
        let gain = self.gain(limit);
        if gain as usize >= mss.min(limit / 2).max(1) {
            self.edge = self.edge + gain;
        }
        let window = self.edge.since(self.next);
        let unit = 1u32 << self.scale;
        let slack = self.read() + limit as u32 + SLACK_UNITS * unit;
        let up = self.next + window.div_ceil(unit) * unit;
        let units = if slack.is_before(up) { window / unit } else { window.div_ceil(unit) };
        let units = units.min(u32::from(u16::MAX));
        self.edge = self.edge.later(self.next + units * unit);
        units as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(receiver: &mut Receiver) -> Vec<u8> {
        std::iter::from_fn(|| receiver.pop()).collect::<Vec<_>>().concat()
    }

    #[test]
    fn every_order_of_overlapping_pieces_gives_the_same_bytes() {
        let whole: Vec<u8> = (0..60).collect();
        let pieces = [(0, 15), (10, 25), (20, 30), (30, 40), (12, 44), (40, 60), (0, 60)];
        let mut orders = 0;
        for mut seed in 0..2000usize {
            let mut left: Vec<_> = pieces.to_vec();
            let begin = Seq(u32::MAX - 20);
            let mut receiver = Receiver::new(begin, 1000, 0);
            while !left.is_empty() {
                let (from, to) = left.remove(seed % left.len());
                seed = seed / 3 + 7 * seed % 11;
                let frame = Bytes::copy_from_slice(&whole[from..to]);
                let may_be_kept = seed % 2 == 0;
                receiver.take(begin + from as u32, &frame, to == 60, may_be_kept.then_some(&frame));
            }
            assert_eq!(drained(&mut receiver), whole);
            assert!(receiver.is_finished());
            assert_eq!(receiver.next(), begin + 61);
            orders += 1;
        }
        assert_eq!(orders, 2000);
    }

    #[test]
    fn what_is_beyond_the_window_or_the_fin_is_not_taken() {
        let mut receiver = Receiver::new(Seq(100), 10, 0);
        assert_eq!(receiver.take(Seq(100), &[1; 20], true, None), Arrival::InOrder);
        assert_eq!((receiver.next(), receiver.window(), receiver.is_finished()), (Seq(110), 0, false));
        assert_eq!(receiver.announce(20, 1), 10);
        assert_eq!(receiver.take(Seq(115), &[], true, None), Arrival::Early);
        assert_eq!(receiver.take(Seq(110), &[2; 10], false, None), Arrival::InOrder);
        assert_eq!((receiver.next(), receiver.is_finished()), (Seq(116), true));
        assert_eq!(receiver.take(Seq(116), &[3; 10], true, None), Arrival::Again);
        assert_eq!(drained(&mut receiver).len(), 15);
    }

    #[test]
    fn a_frame_is_kept_if_most_of_it_is_data() {
        let frame = Bytes::from(vec![7; 1000]);
        for (header, is_kept) in [(0, true), (54, true), (500, true), (501, false)] {
            let mut receiver = Receiver::new(Seq(0), 60_000, 0);
            assert_eq!(receiver.take(Seq(0), &frame[header..], false, Some(&frame)), Arrival::InOrder);
            let data = receiver.pop().unwrap();
            assert_eq!(data, frame[header..]);
            assert_eq!(data.as_ptr() == frame[header..].as_ptr(), is_kept, "behind {header} bytes");
        }
    }

    #[test]
    fn ranges_that_are_held_are_few() {
        let mut receiver = Receiver::new(Seq(0), 60_000, 0);
        let arrivals: Vec<_> = (1..100u32).map(|n| receiver.take(Seq(n * 10), &[1], false, None)).collect();
        assert_eq!(arrivals.iter().filter(|arrival| **arrival == Arrival::Early).count(), HELD_MAX);
        assert_eq!(arrivals[50], Arrival::NoRoom);
    }

    #[test]
    fn the_window_moves_in_large_steps_and_never_back() {
        let mut receiver = Receiver::new(Seq(0), 8000, 3);
        assert_eq!(receiver.announce(8000, 1460), 1000);
        let mut edge = 8000;
        for _ in 0..85 {
            receiver.take(receiver.next(), &[7; 101], false, None);
            let told = receiver.next() + 8 * u32::from(receiver.announce(8000, 1460));
            assert!(told.0 >= edge, "{} after {edge}", told.0);
            edge = told.0;
        }
        assert!((8000..8000 + 8 * SLACK_UNITS).contains(&edge));
        assert!(!receiver.wants_update(8000, 1460));
        let mut told = 0;
        while let Some(chunk) = receiver.pop() {
            told += usize::from(receiver.wants_update(8000, 1460));
            assert!(!chunk.is_empty());
        }
        assert!(told > 0);
        assert!(receiver.next() + 8 * u32::from(receiver.announce(8000, 1460)) != Seq(edge));
    }

    #[test]
    fn a_deaf_pump_and_single_bytes_do_not_make_the_window_creep() {
        let mut receiver = Receiver::new(Seq(0), 4096, 4);
        for _ in 0..20_000 {
            receiver.take(receiver.next(), &[1], false, None);
            receiver.announce(4096, 1460);
        }
        assert!(receiver.queued() <= 4096 + 16 * SLACK_UNITS as usize + 16, "{}", receiver.queued());
    }
}

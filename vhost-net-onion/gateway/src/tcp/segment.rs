//! Segments from the VM: what a segment must be before anything looks into it.
//!
//! Checked once: lengths, checksum unless the VM's driver left it out, ports, flags that do not contradict each other.
//! Options are read from a SYN only, as none that is understood may come later; one of an illegal length breaks the
//! segment (RFC 9293, section 3.1, MUST-7). The urgent pointer is not looked at: urgent data is data (RFC 6093).

use bytes::Bytes;

use super::number::Seq;
use crate::{checksum, counters::Counters, ip};

/// The protocol number of TCP.
pub(super) const PROTOCOL: u8 = 6;

/// Bytes of a header without options.
pub(super) const HEADER_BYTES: usize = 20;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;

/// A segment that passed the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: u8,
    /// As it stands in the header, not scaled.
    pub(super) window: u16,
    pub(super) options: Options,
    pub(super) payload: &'a [u8],
    /// The frame in which the payload lies, if it may be kept.
    pub(super) frame: Option<&'a Bytes>,
}

/// What a SYN tells in its options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// RFC 9293, section 3.7.1.
    pub(super) mss: Option<u16>,
    /// RFC 7323, section 2.2, at most 14.
    pub(super) window_scale: Option<u8>,
}

/// A SYN as it is kept while the far end is asked: without data, which the VM sends again when it is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Syn {
    pub(super) seq: Seq,
    pub(super) window: u16,
    pub(super) options: Options,
}

impl<'a> Segment<'a> {
    /// Checks the segment in a packet, or counts why it is none.
    pub(super) fn parse(packet: &ip::Packet<'a>, counters: &mut Counters) -> Option<Segment<'a>> {
        let Some((segment, options)) = Segment::split(packet.payload) else {
            counters.dropped_malformed += 1;
            return None;
        };
        if packet.has_checksum() && !is_intact(packet) {
            counters.dropped_checksum += 1;
            return None;
        }
        let options = if segment.has(SYN) { Options::parse(options) } else { Some(Options::default()) };
        counters.dropped_malformed += u64::from(options.is_none());
        Some(Segment { options: options?, ..segment })
    }

    /// The fields, and the bytes of the options.
    fn split(bytes: &'a [u8]) -> Option<(Segment<'a>, &'a [u8])> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let short = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let long = |at: usize| u32::from_be_bytes(std::array::from_fn(|n| header[at + n]));
        let header_bytes = usize::from(header[12] >> 4) * 4;
        let (options, payload) = rest.split_at_checked(header_bytes.checked_sub(HEADER_BYTES)?)?;
        let segment = Segment {
            source_port: short(0),
            destination_port: short(2),
            seq: Seq(long(4)),
            ack: Seq(long(8)),
            flags: header[13],
            window: short(14),
            options: Options::default(),
            payload,
            frame: None,
        };
        let contradicts = (segment.flags & (SYN | FIN | RST)).count_ones() > 1;
        let sound = segment.source_port != 0 && segment.destination_port != 0 && !contradicts;
        sound.then_some((segment, options))
    }

    /// Whether any of the flags is set.
    pub(super) fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Whether the segment asks for a new connection.
    pub(super) fn is_first(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// How many sequence numbers it takes.
    pub(super) fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// The number after its last.
    pub(super) fn end(&self) -> Seq {
        self.seq + self.length()
    }

    /// What is kept of a SYN.
    pub(super) fn syn(&self) -> Syn {
        Syn { seq: self.seq, window: self.window, options: self.options }
    }
}

fn is_intact(packet: &ip::Packet<'_>) -> bool {
    let sum = checksum::pseudo_header(packet.source, packet.destination, PROTOCOL, packet.payload.len());
    checksum::add(sum, packet.payload) == 0xffff
}

impl Options {
    /// Reads the options; those that are unknown are skipped. `None` when a length is illegal.
    fn parse(mut bytes: &[u8]) -> Option<Options> {
        let mut options = Options::default();
        while let [kind, rest @ ..] = bytes {
            bytes = match kind {
                0 => break,
                1 => rest,
                _ => {
                    let length = usize::from(*rest.first()?);
                    let (value, rest) = rest.get(1..)?.split_at_checked(length.checked_sub(2)?)?;
                    match (kind, value) {
                        (2, [a, b]) => options.mss = Some(u16::from_be_bytes([*a, *b])),
                        // RFC 7323, section 2.3: what is larger means 14.
                        (3, [shift]) => options.window_scale = Some((*shift).min(14)),
                        (2 | 3, _) => return None,
                        _ => {}
                    }
                    rest
                }
            };
        }
        Some(options)
    }
}

#[cfg(test)]
mod tests {
    use wire::link::Offload;

    use super::*;

    const WHOLE: [u8; 32] = [
        0x03, 0xe8, 0, 80, 0, 0, 0, 9, 0, 0, 0, 7, 0x70, SYN, 0x12, 0x34, 0, 0, 0, 0, // ports 1000 and 80
        2, 4, 5, 0xb4, 1, 3, 3, 99, b'd', b'a', b't', b'a',
    ];

    fn parsed(bytes: &[u8], flags: u8) -> (Option<Segment<'_>>, Counters) {
        let mut counters = Counters::default();
        let address = |n| std::net::Ipv4Addr::new(10, 0, 2, n).into();
        let offload = Offload { flags, ..Offload::default() };
        let protocol = smoltcp::wire::IpProtocol::Tcp;
        let (source, destination) = (address(15), address(2));
        let packet = ip::Packet { source, destination, protocol, bytes, payload: bytes, offload };
        (Segment::parse(&packet, &mut counters), counters)
    }

    #[test]
    fn a_syn_is_read_and_a_checksum_that_was_left_out_is_not_looked_at() {
        let segment = parsed(&WHOLE, ip::NEEDS_CHECKSUM).0.unwrap();
        assert_eq!((segment.source_port, segment.destination_port), (1000, 80));
        assert_eq!((segment.seq, segment.ack, segment.window), (Seq(9), Seq(7), 0x1234));
        assert_eq!(segment.options, Options { mss: Some(1460), window_scale: Some(14) });
        assert_eq!((segment.payload, segment.end(), segment.is_first()), (&b"data"[..], Seq(14), true));
        assert!(parsed(&WHOLE, ip::DATA_VALID).0.is_some());
        assert_eq!(parsed(&WHOLE, 0).1.dropped_checksum, 1);
    }

    #[test]
    fn truncated_and_contradicting_segments_are_dropped() {
        for length in 0..28 {
            assert_eq!(parsed(&WHOLE[..length], 1).1.dropped_malformed, 1, "{length}");
        }
        for (at, value) in [(13, SYN | FIN), (13, SYN | RST), (13, FIN | RST), (12, 0x40), (12, 0xf0), (1, 0), (3, 0)] {
            let mut bytes = WHOLE;
            bytes[at] = value;
            bytes[0] = if at == 1 { 0 } else { 3 };
            assert_eq!(parsed(&bytes, 1).1.dropped_malformed, 1, "{at}: {value}");
        }
    }

    #[test]
    fn options_of_illegal_lengths_break_a_syn_and_unknown_ones_do_not() {
        let of = |options: &[u8]| Options::parse(options);
        assert_eq!(
            of(&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 2, 0]),
            Some(Options { mss: Some(512), window_scale: None })
        );
        assert_eq!(of(&[0, 2, 4]), Some(Options::default()), "nothing after the end");
        for broken in [&[2, 0][..], &[2, 1], &[2], &[2, 3, 1], &[3, 4, 1, 1], &[9, 0], &[9, 5, 0, 0]] {
            assert_eq!(of(broken), None, "{broken:?}");
        }
    }
}

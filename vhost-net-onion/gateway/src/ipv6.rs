//! IPv6 (RFC 8200): what a packet must be before anything looks into it, and how packets to the VM are built.
//!
//! A packet is checked in two steps. [`parse`] looks at the fixed header, which tells whom an error would go to.
//! [`Outer::open`] then walks the extension headers up to TCP, UDP or ICMPv6:
//!
//! | extension | what becomes of it |
//! | --- | --- |
//! | hop-by-hop options (first only), destination options | skipped; an unknown option acts as its two highest bits say (section 4.2) |
//! | routing, type 0 | dropped (RFC 5095) |
//! | routing, other types | skipped with no segments left, else a parameter problem (section 4.4) |
//! | fragment | dropped: a link of this MTU needs none |
//! | no next header | dropped |
//! | any other next header | a parameter problem (RFC 4443, section 3.4, code 1) |
//!
//! The walk is bounded by [`EXTENSIONS_MAX`] headers of [`EXTENSION_BYTES_MAX`] bytes together (RFC 8504, section 5.3,
//! allows such limits).

use std::net::Ipv6Addr;

use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol, Ipv6Packet};
use wire::link::Offload;

use crate::{counters::Counters, ip};

/// Extension headers of one packet.
const EXTENSIONS_MAX: usize = 8;

/// Bytes of all extension headers of one packet.
const EXTENSION_BYTES_MAX: usize = 512;

/// Where the fixed header has its next-header field.
const NEXT_HEADER_AT: usize = 6;

/// Extension headers come in units of so many bytes (RFC 8200, section 4).
const EXTENSION_UNIT: usize = 8;

/// A packet whose fixed header is in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer<'a> {
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    /// Without what pads the frame.
    pub(crate) bytes: &'a [u8],
}

/// Why a packet cannot be processed, for the sender (RFC 4443, section 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// 0: erroneous field, 1: unrecognised next header, 2: unrecognised option.
    pub(crate) code: u8,
    /// Where in the packet.
    pub(crate) pointer: usize,
    /// Also for packets to a group.
    pub(crate) to_group: bool,
}

/// What becomes of an option.
enum Verdict {
    Skip,
    Drop,
    Tell { to_group: bool },
}

/// Checks the fixed header, or counts what is wrong.
pub(crate) fn parse<'a>(bytes: &'a [u8], counters: &mut Counters) -> Option<Outer<'a>> {
    let Some(packet) = Ipv6Packet::new_checked(bytes).ok().filter(|packet| packet.version() == 6) else {
        counters.dropped_malformed += 1;
        return None;
    };
    let (source, destination) = (packet.src_addr(), packet.dst_addr());
    Some(Outer { source, destination, bytes: &bytes[..packet.total_len()] })
}

/// The hop limit of a packet from [`Outer::open`].
pub(crate) fn hop_limit(packet: &ip::Packet<'_>) -> u8 {
    packet.bytes[NEXT_HEADER_AT + 1]
}

impl<'a> Outer<'a> {
    /// Walks the extension headers.
    ///
    /// # Errors
    /// What is wrong has been counted, and may be for the sender to know.
    pub(crate) fn open(&self, offload: Offload, counters: &mut Counters) -> Result<ip::Packet<'a>, Option<Problem>> {
        let (mut field_at, mut at) = (NEXT_HEADER_AT, IPV6_HEADER_LEN);
        for _ in 0..=EXTENSIONS_MAX {
            let protocol = IpProtocol::from(self.bytes[field_at]);
            let length = match protocol {
                IpProtocol::Tcp | IpProtocol::Udp | IpProtocol::Icmpv6 => {
                    return Ok(self.packet(protocol, at, offload));
                }
                IpProtocol::HopByHop if field_at == NEXT_HEADER_AT => self.skip_options(at, counters)?,
                IpProtocol::Ipv6Opts => self.skip_options(at, counters)?,
                IpProtocol::Ipv6Route => self.skip_routing(at, counters)?,
                IpProtocol::Ipv6Frag => {
                    counters.dropped_fragment += 1;
                    return Err(None);
                }
                IpProtocol::Ipv6NoNxt => break,
                _ => {
                    counters.dropped_extension += 1;
                    return Err(Some(Problem { code: 1, pointer: field_at, to_group: false }));
                }
            };
            (field_at, at) = (at, at + length);
            if at - IPV6_HEADER_LEN > EXTENSION_BYTES_MAX {
                break;
            }
        }
        counters.dropped_extension += 1;
        Err(None)
    }

    fn packet(&self, protocol: IpProtocol, at: usize, offload: Offload) -> ip::Packet<'a> {
        ip::Packet {
            source: self.source.into(),
            destination: self.destination.into(),
            protocol,
            bytes: self.bytes,
            payload: &self.bytes[at..],
            offload,
        }
    }

    /// The bytes of the extension header that begins at `at`.
    fn extension(&self, at: usize, counters: &mut Counters) -> Result<&'a [u8], Option<Problem>> {
        let rest = &self.bytes[at..];
        let length = rest.get(1).map(|units| (usize::from(*units) + 1) * EXTENSION_UNIT);
        length.and_then(|length| rest.get(..length)).ok_or_else(|| {
            counters.dropped_malformed += 1;
            None
        })
    }

    fn skip_options(&self, at: usize, counters: &mut Counters) -> Result<usize, Option<Problem>> {
        let header = self.extension(at, counters)?;
        let mut option_at = 2;
        while option_at < header.len() {
            let kind = header[option_at];
            // Pad1 has no length.
            if kind == 0 {
                option_at += 1;
                continue;
            }
            let end = header.get(option_at + 1).map(|length| option_at + 2 + usize::from(*length));
            let Some(end) = end.filter(|end| *end <= header.len()) else {
                counters.dropped_malformed += 1;
                return Err(None);
            };
            match verdict(kind) {
                Verdict::Skip => option_at = end,
                Verdict::Drop => {
                    counters.dropped_extension += 1;
                    return Err(None);
                }
                Verdict::Tell { to_group } => {
                    counters.dropped_extension += 1;
                    return Err(Some(Problem { code: 2, pointer: at + option_at, to_group }));
                }
            }
        }
        Ok(header.len())
    }

    fn skip_routing(&self, at: usize, counters: &mut Counters) -> Result<usize, Option<Problem>> {
        let header = self.extension(at, counters)?;
        match header[2..4] {
            [kind, 0] if kind != 0 => Ok(header.len()),
            [kind, _] => {
                counters.dropped_extension += 1;
                Err((kind != 0).then_some(Problem { code: 0, pointer: at + 2, to_group: false }))
            }
            _ => Err(None),
        }
    }
}

/// What becomes of an option that nothing here acts on (RFC 8200, section 4.2).
fn verdict(kind: u8) -> Verdict {
    match kind >> 6 {
        0 => Verdict::Skip,
        1 => Verdict::Drop,
        2 => Verdict::Tell { to_group: true },
        _ => Verdict::Tell { to_group: false },
    }
}

/// Writes a header, without extensions, to the start of `bytes`.
pub(crate) fn header(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: IpProtocol,
    hop_limit: u8,
    payload_bytes: usize,
    bytes: &mut [u8],
) {
    let mut packet = Ipv6Packet::new_unchecked(bytes);
    packet.set_version(6);
    packet.set_traffic_class(0);
    packet.set_flow_label(0);
    // Whoever sends more has lost count already; the outbox takes no such frame.
    packet.set_payload_len(u16::try_from(payload_bytes).unwrap_or(u16::MAX));
    packet.set_next_header(protocol);
    packet.set_hop_limit(hop_limit);
    packet.set_src_addr(source);
    packet.set_dst_addr(destination);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GATEWAY_ADDRESS_V6;

    const VM: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x6874, 1, 0, 0, 0, 0, 7);

    /// A packet with these extension headers before eight bytes of UDP.
    fn packet(first: u8, extensions: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IPV6_HEADER_LEN];
        header(VM, GATEWAY_ADDRESS_V6, IpProtocol::from(first), 64, extensions.len() + 8, &mut bytes);
        bytes.extend(extensions);
        bytes.extend([7; 8]);
        bytes
    }

    fn opened(bytes: &[u8]) -> (Result<Vec<u8>, Option<Problem>>, Counters) {
        let mut counters = Counters::default();
        let outer = parse(bytes, &mut counters).unwrap();
        (outer.open(Offload::default(), &mut counters).map(|packet| packet.payload.to_vec()), counters)
    }

    #[test]
    fn padding_is_cut_off() {
        let mut bytes = packet(17, &[]);
        bytes.resize(90, 0xee);
        assert_eq!(parse(&bytes, &mut Counters::default()).unwrap().bytes.len(), 48);
        assert_eq!(opened(&bytes).0, Ok(vec![7; 8]));
    }

    #[test]
    fn every_truncation_is_dropped() {
        let extensions = [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 5, 2, 0, 0, 1, 0];
        let whole = packet(0, &extensions);
        assert_eq!(opened(&whole).0, Ok(vec![7; 8]));
        for length in 0..whole.len() {
            let mut counters = Counters::default();
            assert!(parse(&whole[..length], &mut counters).is_none());
            assert_eq!(counters.dropped_malformed, 1, "{length}");
        }
        // Cut, and the length told accordingly.
        for length in 0..extensions.len() {
            let mut bytes = whole[..IPV6_HEADER_LEN + length].to_vec();
            bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            let (result, counters) = opened(&bytes);
            assert_eq!((result, counters.dropped_malformed), (Err(None), 1), "{length}");
        }
    }

    #[test]
    fn a_wrong_version_is_dropped() {
        let mut bytes = packet(17, &[]);
        bytes[0] = 0x45;
        let mut counters = Counters::default();
        assert!(parse(&bytes, &mut counters).is_none());
        assert_eq!(counters.dropped_malformed, 1);
    }

    #[test]
    fn unknown_options_act_as_their_highest_bits_say() {
        let with = |kind| opened(&packet(60, &[17, 0, kind, 4, 0, 0, 0, 0])).0;
        assert_eq!(with(0x1e), Ok(vec![7; 8]));
        assert_eq!(with(0x5e), Err(None));
        assert_eq!(with(0x9e), Err(Some(Problem { code: 2, pointer: 42, to_group: true })));
        assert_eq!(with(0xc2), Err(Some(Problem { code: 2, pointer: 42, to_group: false })), "a jumbogram");
        let (result, counters) = opened(&packet(60, &[17, 0, 1, 5, 0, 0, 0, 0]));
        assert_eq!((result, counters.dropped_malformed), (Err(None), 1), "longer than its header");
    }

    #[test]
    fn routing_headers_lead_nowhere() {
        let with = |kind, left| opened(&packet(43, &[17, 0, kind, left, 0, 0, 0, 0]));
        for left in [0, 1, 255] {
            let (result, counters) = with(0, left);
            assert_eq!((result, counters.dropped_extension), (Err(None), 1));
        }
        assert_eq!(with(4, 0).0, Ok(vec![7; 8]));
        assert_eq!(with(4, 1).0, Err(Some(Problem { code: 0, pointer: 42, to_group: false })));
    }

    #[test]
    fn fragments_are_dropped_even_whole_ones() {
        let (result, counters) = opened(&packet(44, &[17, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!((result, counters.dropped_fragment), (Err(None), 1));
    }

    #[test]
    fn what_is_unknown_is_told_and_the_walk_is_bounded() {
        assert_eq!(opened(&packet(132, &[])).0, Err(Some(Problem { code: 1, pointer: 6, to_group: false })));
        let padding = [60, 0, 1, 4, 0, 0, 0, 0];
        let hop_by_hop_later = [&[0, 0, 1, 4, 0, 0, 0, 0][..], &padding].concat();
        assert_eq!(
            opened(&packet(60, &hop_by_hop_later)).0,
            Err(Some(Problem { code: 1, pointer: 40, to_group: false }))
        );
        let (result, counters) = opened(&packet(59, &[]));
        assert_eq!((result, counters.dropped_extension), (Err(None), 1), "no next header");
        for (count, fits) in [(EXTENSIONS_MAX, true), (EXTENSIONS_MAX + 1, false), (100, false)] {
            let mut chain = padding.repeat(count);
            chain[8 * (count - 1)] = 17;
            assert_eq!(opened(&packet(60, &chain)).0.is_ok(), fits, "{count} headers");
        }
        for (units, fits) in [(63, true), (64, false), (255, false)] {
            let mut long = vec![0; (usize::from(units) + 1) * EXTENSION_UNIT];
            (long[0], long[1]) = (17, units);
            assert_eq!(opened(&packet(60, &long)).0.is_ok(), fits, "{units} units");
        }
    }
}

//! IPv4 (RFC 791): what a packet must be before anything looks into it, and how packets to the VM are built.
//!
//! Every packet is checked here once: version, lengths, header checksum, no fragment. Options are skipped, none of
//! them acts (source routes would, and have no way to go here). The length in the header counts, not the frame's:
//! short frames are padded.

use std::net::Ipv4Addr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IPV4_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv4Repr},
};
use wire::link::Offload;

use crate::{counters::Counters, ip};

/// Checks a packet, or counts why it is none.
pub(crate) fn parse<'a>(bytes: &'a [u8], offload: Offload, counters: &mut Counters) -> Option<ip::Packet<'a>> {
    let checked = Ipv4Packet::new_checked(bytes)
        .ok()
        .filter(|packet| packet.version() == 4 && usize::from(packet.header_len()) >= IPV4_HEADER_LEN);
    let Some(packet) = checked else {
        counters.dropped_malformed += 1;
        return None;
    };
    if !packet.verify_checksum() {
        counters.dropped_checksum += 1;
        return None;
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        counters.dropped_fragment += 1;
        return None;
    }
    Some(ip::Packet {
        source: packet.src_addr().into(),
        destination: packet.dst_addr().into(),
        protocol: packet.next_header(),
        bytes: &bytes[..usize::from(packet.total_len())],
        payload: &bytes[usize::from(packet.header_len())..usize::from(packet.total_len())],
        offload,
    })
}

/// Writes a header, without options, to the start of `bytes`.
pub(crate) fn header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpProtocol,
    payload_bytes: usize,
    bytes: &mut [u8],
) {
    let repr = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: protocol,
        payload_len: payload_bytes,
        hop_limit: ip::HOP_LIMIT,
    };
    repr.emit(&mut Ipv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![7; 30];
        header(Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(1, 2, 3, 4), IpProtocol::Udp, 10, &mut bytes);
        bytes
    }

    fn changed(change: impl FnOnce(&mut Ipv4Packet<&mut [u8]>)) -> (bool, Counters) {
        let mut bytes = sample();
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        change(&mut packet);
        packet.fill_checksum();
        let mut counters = Counters::default();
        (parse(&bytes, Offload::default(), &mut counters).is_some(), counters)
    }

    #[test]
    fn padding_is_cut_off() {
        let mut bytes = sample();
        bytes.resize(46, 0xee);
        let packet = parse(&bytes, Offload::default(), &mut Counters::default()).unwrap();
        assert_eq!((packet.payload, packet.bytes.len()), (&[7; 10][..], 30));
    }

    #[test]
    fn every_truncation_is_dropped() {
        let bytes = sample();
        for length in 0..bytes.len() {
            let mut counters = Counters::default();
            assert!(parse(&bytes[..length], Offload::default(), &mut counters).is_none());
            assert_eq!(counters.dropped_malformed, 1);
        }
    }

    #[test]
    fn what_is_wrong_is_counted_by_its_reason() {
        assert!(changed(|_| {}).0);
        assert_eq!(changed(|p| p.set_version(6)).1.dropped_malformed, 1);
        assert_eq!(changed(|p| p.set_header_len(16)).1.dropped_malformed, 1);
        assert_eq!(changed(|p| p.set_total_len(19)).1.dropped_malformed, 1);
        assert_eq!(changed(|p| p.set_total_len(31)).1.dropped_malformed, 1);
        assert_eq!(changed(|p| p.set_more_frags(true)).1.dropped_fragment, 1);
        assert_eq!(changed(|p| p.set_frag_offset(8)).1.dropped_fragment, 1);
        let mut bytes = sample();
        bytes[10] ^= 1;
        let mut counters = Counters::default();
        assert!(parse(&bytes, Offload::default(), &mut counters).is_none());
        assert_eq!(counters.dropped_checksum, 1);
    }

    #[test]
    fn options_are_skipped() {
        let mut bytes = sample();
        bytes[0] = 0x46;
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.fill_checksum();
        let packet = parse(&bytes, Offload::default(), &mut Counters::default()).unwrap();
        assert_eq!(packet.payload.len(), 6);
    }
}

//! UDP (RFC 768): checked on the way in, built on the way out.

use std::net::IpAddr;

use smoltcp::wire::{EthernetAddress, IpProtocol, UDP_HEADER_LEN, UdpPacket};

use crate::{
    counters::Counters,
    ip::{self, Envelope},
    outbox::Outbox,
};

/// A datagram that passed the checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) payload: &'a [u8],
}

/// Checks the datagram in a packet, or counts why it is none.
pub(crate) fn parse<'a>(packet: &ip::Packet<'a>, counters: &mut Counters) -> Option<Datagram<'a>> {
    let Ok(datagram) = UdpPacket::new_checked(packet.payload) else {
        counters.dropped_malformed += 1;
        return None;
    };
    if packet.has_checksum() && !is_checksum_right(packet, &datagram) {
        counters.dropped_checksum += 1;
        return None;
    }
    Some(Datagram {
        source_port: datagram.src_port(),
        destination_port: datagram.dst_port(),
        payload: &packet.payload[UDP_HEADER_LEN..usize::from(datagram.len())],
    })
}

/// No checksum at all, a zero in its place, is allowed in IPv4 only (RFC 8200, section 8.1); smoltcp always takes it.
fn is_checksum_right(packet: &ip::Packet<'_>, datagram: &UdpPacket<&[u8]>) -> bool {
    let is_allowed = packet.source.is_ipv4() || datagram.checksum() != 0;
    is_allowed && datagram.verify_checksum(&packet.source.into(), &packet.destination.into())
}

/// Sends a datagram from the gateway.
pub(crate) fn send(
    outbox: &mut Outbox,
    counters: &mut Counters,
    mac: EthernetAddress,
    (source, source_port): (IpAddr, u16),
    (destination, destination_port): (IpAddr, u16),
    payload: &[u8],
) {
    let length = UDP_HEADER_LEN + payload.len();
    let Ok(length_field) = u16::try_from(length) else { return };
    let envelope = Envelope { mac, source, destination, protocol: IpProtocol::Udp };
    ip::send(outbox, counters, envelope, length, |bytes| {
        let mut datagram = UdpPacket::new_unchecked(bytes);
        datagram.set_src_port(source_port);
        datagram.set_dst_port(destination_port);
        datagram.set_len(length_field);
        datagram.payload_mut().copy_from_slice(payload);
        datagram.fill_checksum(&source.into(), &destination.into());
    });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use wire::link::Offload;

    use super::*;
    use crate::{
        config::{GATEWAY_ADDRESS, GATEWAY_ADDRESS_V6, VM_ADDRESS},
        ipv4, ipv6,
    };

    const VM_V6: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x6874, 1, 0, 0, 0, 0, 7);

    fn sent(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Vec<u8> {
        let mut outbox = Outbox::new(1);
        let mut counters = Counters::default();
        let (source, destination) = (source.into(), destination.into());
        send(&mut outbox, &mut counters, EthernetAddress::BROADCAST, (source, 53), (destination, 1234), b"hello");
        outbox.pop().unwrap().to_vec().split_off(14)
    }

    fn sample() -> Vec<u8> {
        sent(GATEWAY_ADDRESS, VM_ADDRESS)
    }

    fn parsed_with(offload: Offload, bytes: &[u8]) -> (Option<Vec<u8>>, Counters) {
        let mut counters = Counters::default();
        let packet = match bytes[0] >> 4 {
            4 => ipv4::parse(bytes, offload, &mut counters).unwrap(),
            _ => ipv6::parse(bytes, &mut counters).unwrap().open(offload, &mut counters).unwrap(),
        };
        (parse(&packet, &mut counters).map(|d| d.payload.to_vec()), counters)
    }

    fn parsed(bytes: &[u8]) -> (Option<Vec<u8>>, Counters) {
        parsed_with(Offload::default(), bytes)
    }

    #[test]
    fn a_datagram_survives_the_wire() {
        assert_eq!(parsed(&sample()).0.unwrap(), b"hello");
        assert_eq!(parsed(&sent(GATEWAY_ADDRESS_V6, VM_V6)).0.unwrap(), b"hello");
    }

    #[test]
    fn over_ipv6_the_checksum_must_be_there() {
        let mut bytes = sent(GATEWAY_ADDRESS_V6, VM_V6);
        bytes[47] ^= 1;
        assert_eq!(parsed(&bytes).1.dropped_checksum, 1);
        bytes[46..48].fill(0);
        assert_eq!(parsed(&bytes).1.dropped_checksum, 1);
    }

    #[test]
    fn what_the_driver_left_to_do_or_vouches_for_is_not_verified() {
        for mut bytes in [sample(), sent(GATEWAY_ADDRESS_V6, VM_V6)] {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            for (flags, is_taken) in [(0, false), (1, true), (2, true), (3, true), (4, false)] {
                let offload = Offload { flags, ..Offload::default() };
                assert_eq!(parsed_with(offload, &bytes).0.is_some(), is_taken, "flags {flags}");
            }
        }
    }

    #[test]
    fn wrong_lengths_and_checksums_are_dropped() {
        for length in [0u16, 7, 14, 0xffff] {
            let mut bytes = sample();
            bytes[24..26].copy_from_slice(&length.to_be_bytes());
            assert_eq!(parsed(&bytes).1.dropped_malformed, 1, "{length}");
        }
        let mut bytes = sample();
        bytes[28] ^= 1;
        assert_eq!(parsed(&bytes).1.dropped_checksum, 1);
        bytes[26..28].fill(0);
        assert!(parsed(&bytes).0.is_some(), "no checksum is allowed");
    }

    #[test]
    fn too_short_for_a_header() {
        for length in 0..8 {
            let mut bytes = vec![0; 20 + length];
            ipv4::header(VM_ADDRESS, GATEWAY_ADDRESS, IpProtocol::Udp, length, &mut bytes);
            assert_eq!(parsed(&bytes).1.dropped_malformed, 1);
        }
    }
}

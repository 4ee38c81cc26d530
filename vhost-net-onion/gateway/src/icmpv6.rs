//! ICMPv6 (RFC 4443): what [`crate::icmp`] does, for IPv6.
//!
//! Errors carry as much of the packet as fits 1,280 bytes, and are never about a packet to a group (save those that
//! RFC 4443, section 2.4, excepts), from no host, or with an ICMPv6 error in it: whoever asks for one looks at that.
//! Neighbour and router discovery are in [`crate::ndp`].

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{
    EthernetAddress, EthernetProtocol, IPV6_HEADER_LEN, Icmpv6Message, Icmpv6Packet, IpProtocol, Ipv6Packet,
};

use crate::{
    address,
    config::{GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL},
    counters::Counters,
    icmp::Unreachable,
    ip, ipv6,
    ipv6::Problem,
    outbox::Outbox,
};

/// Bytes of the shortest message that means something.
const HEADER_BYTES: usize = 8;

/// Bytes of the longest ICMPv6 error: the least MTU of IPv6 (RFC 4443, section 2.4 (c)).
const ERROR_BYTES_MAX: usize = 1280;

/// Multicast listener discovery: query, report, done (RFC 2710), report of version 2 (RFC 3810).
const LISTENER_DISCOVERY: [u8; 4] = [130, 131, 132, 143];

/// What a message from the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    EchoRequest,
    /// RFC 4861.
    Discovery,
    /// Which groups the VM listens to; the gateway sends to one only, which all nodes are in.
    Listener,
    /// Errors, perhaps about segments of TCP; answers to questions never asked; types that are not known.
    Other,
}

/// Checks the message in a packet, or counts why it is none.
pub(crate) fn parse(packet: &ip::Packet<'_>, counters: &mut Counters) -> Option<Message> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else { return None };
    if packet.payload.len() < HEADER_BYTES {
        counters.dropped_malformed += 1;
        return None;
    }
    let message = Icmpv6Packet::new_unchecked(packet.payload);
    if packet.has_checksum() && !message.verify_checksum(&source, &destination) {
        counters.dropped_checksum += 1;
        return None;
    }
    Some(match (u8::from(message.msg_type()), message.msg_code()) {
        (128, 0) => Message::EchoRequest,
        (133..=137, _) => Message::Discovery,
        (kind, _) if LISTENER_DISCOVERY.contains(&kind) => Message::Listener,
        _ => Message::Other,
    })
}

/// Answers an echo request to the gateway, or to all nodes or routers (RFC 4443, section 4.2).
pub(crate) fn echo(packet: &ip::Packet<'_>, outbox: &mut Outbox, counters: &mut Counters) {
    let (IpAddr::V6(asker), IpAddr::V6(asked)) = (packet.source, packet.destination) else { return };
    let source = match asked {
        group if group.is_multicast() && asker.is_unicast_link_local() => GATEWAY_LINK_LOCAL,
        group if group.is_multicast() => GATEWAY_ADDRESS_V6,
        own => own,
    };
    let envelope = Envelope { mac: outbox.vm_mac(), source, destination: asker, hop_limit: ip::HOP_LIMIT };
    send(outbox, counters, envelope, packet.payload.len(), |bytes| {
        bytes.copy_from_slice(packet.payload);
        bytes[0] = Icmpv6Message::EchoReply.into();
    });
    counters.echo_replies += 1;
}

/// Sends "destination unreachable" about `packet`.
pub(crate) fn unreachable(code: Unreachable, packet: &[u8], outbox: &mut Outbox, counters: &mut Counters) {
    let Ok(about) = Ipv6Packet::new_checked(packet) else { return };
    let code = match code {
        Unreachable::Host if address::has_route(about.dst_addr()) || about.dst_addr().is_unicast_link_local() => 3,
        Unreachable::Host => 0,
        // Unknown protocols are a parameter problem in IPv6.
        Unreachable::Prohibited | Unreachable::Protocol => 1,
        Unreachable::Port => 4,
    };
    error(1, code, 0, packet, outbox, counters);
}

/// Sends "parameter problem" about `packet`.
pub(crate) fn problem(problem: Problem, packet: &[u8], outbox: &mut Outbox, counters: &mut Counters) {
    let pointer = u32::try_from(problem.pointer).unwrap_or(u32::MAX);
    error(4, problem.code, pointer, packet, outbox, counters);
}

fn error(kind: u8, code: u8, detail: u32, packet: &[u8], outbox: &mut Outbox, counters: &mut Counters) {
    let Ok(about) = Ipv6Packet::new_checked(packet) else { return };
    let destination = about.src_addr();
    // From the address that the packet was for, if it was for one of ours; on the link if it came from there.
    let source = match about.dst_addr() {
        own @ (GATEWAY_ADDRESS_V6 | GATEWAY_LINK_LOCAL) => own,
        _ if destination.is_unicast_link_local() => GATEWAY_LINK_LOCAL,
        _ => GATEWAY_ADDRESS_V6,
    };
    let quoted = &packet[..packet.len().min(ERROR_BYTES_MAX - IPV6_HEADER_LEN - HEADER_BYTES)];
    let envelope = Envelope { mac: outbox.vm_mac(), source, destination, hop_limit: ip::HOP_LIMIT };
    send(outbox, counters, envelope, HEADER_BYTES + quoted.len(), |bytes| {
        bytes[..2].copy_from_slice(&[kind, code]);
        bytes[4..HEADER_BYTES].copy_from_slice(&detail.to_be_bytes());
        bytes[HEADER_BYTES..].copy_from_slice(quoted);
    });
}

/// Where a message to the VM comes from and goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub(crate) mac: EthernetAddress,
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    pub(crate) hop_limit: u8,
}

/// Sends a message that `fill` writes all of but the checksum.
pub(crate) fn send(
    outbox: &mut Outbox,
    counters: &mut Counters,
    envelope: Envelope,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let Envelope { mac, source, destination, hop_limit } = envelope;
    outbox.push(counters, mac, EthernetProtocol::Ipv6, IPV6_HEADER_LEN + length, |bytes| {
        ipv6::header(source, destination, IpProtocol::Icmpv6, hop_limit, length, bytes);
        let message = &mut bytes[IPV6_HEADER_LEN..];
        fill(message);
        Icmpv6Packet::new_unchecked(message).fill_checksum(&source, &destination);
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use wire::link::Offload;

    use super::*;
    use crate::icmp::Errors;

    pub(crate) const VM: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x6874, 1, 0, 0, 0, 0, 7);
    pub(crate) const VM_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);

    /// A whole packet with this message, its checksum filled in.
    pub(crate) fn packet(source: Ipv6Addr, destination: Ipv6Addr, hop_limit: u8, message: &[u8]) -> Vec<u8> {
        let (mut outbox, mut counters) = (Outbox::new(1), Counters::default());
        let envelope = Envelope { mac: EthernetAddress::BROADCAST, source, destination, hop_limit };
        send(&mut outbox, &mut counters, envelope, message.len(), |bytes| bytes.copy_from_slice(message));
        outbox.pop().unwrap().to_vec().split_off(14)
    }

    fn parsed(bytes: &[u8]) -> (Option<Message>, Counters) {
        let mut counters = Counters::default();
        let packet = ipv6::parse(bytes, &mut counters).unwrap().open(Offload::default(), &mut counters).unwrap();
        (parse(&packet, &mut counters), counters)
    }

    fn replied(destination: Ipv6Addr, source: Ipv6Addr) -> Vec<u8> {
        let bytes = packet(source, destination, 64, b"\x80\0\0\0\x12\x34\0\x01ping");
        let (mut outbox, mut counters) = (Outbox::new(4), Counters::default());
        let packet = ipv6::parse(&bytes, &mut counters).unwrap().open(Offload::default(), &mut counters).unwrap();
        echo(&packet, &mut outbox, &mut counters);
        assert_eq!(counters.echo_replies, 1);
        outbox.pop().unwrap().to_vec().split_off(14)
    }

    #[test]
    fn echo_comes_back_from_where_it_went() {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        for (asked, asker, from) in [
            (GATEWAY_ADDRESS_V6, VM, GATEWAY_ADDRESS_V6),
            (GATEWAY_LINK_LOCAL, VM_LINK_LOCAL, GATEWAY_LINK_LOCAL),
            (all_nodes, VM_LINK_LOCAL, GATEWAY_LINK_LOCAL),
            (all_nodes, VM, GATEWAY_ADDRESS_V6),
        ] {
            let bytes = replied(asked, asker);
            assert_eq!(parsed(&bytes).0, Some(Message::Other), "a checksum in place, and no request");
            let reply = Ipv6Packet::new_checked(&bytes[..]).unwrap();
            assert_eq!((reply.src_addr(), reply.dst_addr()), (from, asker));
            assert_eq!((reply.payload()[0], &reply.payload()[4..]), (129, &b"\x12\x34\0\x01ping"[..]));
        }
    }

    #[test]
    fn messages_are_told_apart() {
        for kind in 0..=255u8 {
            let expected = match kind {
                128 => Message::EchoRequest,
                133..=137 => Message::Discovery,
                130..=132 | 143 => Message::Listener,
                _ => Message::Other,
            };
            let bytes = packet(VM, GATEWAY_ADDRESS_V6, 64, &[kind, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(parsed(&bytes).0, Some(expected), "{kind}");
        }
        for length in 0..HEADER_BYTES {
            let mut bytes = packet(VM, GATEWAY_ADDRESS_V6, 64, &[0x80; 8]);
            bytes.truncate(IPV6_HEADER_LEN + length);
            bytes[5] = length as u8;
            assert_eq!(parsed(&bytes).1.dropped_malformed, 1);
        }
        let mut bytes = packet(VM, GATEWAY_ADDRESS_V6, 64, b"\x80\0\0\0\x12\x34\0\x01ping");
        bytes[50] ^= 1;
        assert_eq!(parsed(&bytes).1.dropped_checksum, 1);
    }

    #[test]
    fn errors_have_the_codes_of_rfc_4443_and_are_cut() {
        let now = Instant::now();
        let (mut outbox, mut counters) = (Outbox::new(10), Counters::default());
        let mut errors = Errors::new(now);
        let mut told = |to: Ipv6Addr, code| {
            let mut about = vec![0x55; 4000];
            ipv6::header(VM, to, IpProtocol::Udp, 64, 4000 - IPV6_HEADER_LEN, &mut about);
            errors.send(now, code, &about, &mut outbox, &mut counters);
            let bytes = outbox.pop().unwrap().to_vec().split_off(14);
            let error = Ipv6Packet::new_checked(&bytes[..]).unwrap();
            assert_eq!((error.src_addr(), error.dst_addr()), (GATEWAY_ADDRESS_V6, VM));
            assert_eq!(bytes.len(), ERROR_BYTES_MAX);
            assert_eq!(bytes[48..], about[..ERROR_BYTES_MAX - 48]);
            assert_eq!(parsed(&bytes).0, Some(Message::Other), "a checksum in place");
            (bytes[40], bytes[41])
        };
        let remote = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
        assert_eq!(told(remote, Unreachable::Host), (1, 3));
        assert_eq!(told(Ipv6Addr::new(0x4000, 0, 0, 0, 0, 0, 0, 7), Unreachable::Host), (1, 0));
        assert_eq!(told(remote, Unreachable::Port), (1, 4));
        assert_eq!(told(GATEWAY_ADDRESS_V6, Unreachable::Port), (1, 4));
        assert_eq!(told(remote, Unreachable::Prohibited), (1, 1));
        assert_eq!(counters.unreachables, 5);
    }

    #[test]
    fn a_problem_points_at_its_byte() {
        let now = Instant::now();
        let (mut outbox, mut counters) = (Outbox::new(10), Counters::default());
        let mut about = vec![0x55; 48];
        ipv6::header(VM_LINK_LOCAL, GATEWAY_LINK_LOCAL, IpProtocol::Unknown(132), 64, 8, &mut about);
        let problem = Problem { code: 1, pointer: 6, to_group: false };
        Errors::new(now).send_problem(now, problem, &about, &mut outbox, &mut counters);
        let bytes = outbox.pop().unwrap().to_vec().split_off(14);
        assert_eq!((&bytes[40..42], &bytes[44..48]), (&[4, 1][..], &[0, 0, 0, 6][..]));
        assert_eq!((bytes.len(), counters.parameter_problems), (40 + 8 + 48, 1));
    }
}

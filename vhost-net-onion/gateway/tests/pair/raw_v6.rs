//! The same as `raw`, over IPv6.

use std::net::Ipv6Addr;

use gateway::config::{GATEWAY_MAC, PREFIX_V6};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv6Packet, IpAddress, IpProtocol, Ipv6Packet, Ipv6Repr, UdpPacket,
};

use crate::{raw, world::VM_MAC};

/// The address that the VM made for itself, and its link-local one.
pub(crate) const VM: Ipv6Addr = Ipv6Addr::from_bits(PREFIX_V6.to_bits() | 0x5054_00ff_fe12_3456);
pub(crate) const VM_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
pub(crate) const REMOTE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

pub(crate) fn ip(from: Ipv6Addr, to: Ipv6Addr, protocol: IpProtocol, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv6Repr { src_addr: from, dst_addr: to, next_header: protocol, payload_len: payload.len(), hop_limit };
    let mut bytes = vec![0; 40 + payload.len()];
    repr.emit(&mut Ipv6Packet::new_unchecked(&mut bytes[..]));
    bytes[40..].copy_from_slice(payload);
    raw::frame(EthernetProtocol::Ipv6, &bytes)
}

pub(crate) fn udp(from: Ipv6Addr, to: Ipv6Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8 + payload.len()];
    let mut datagram = UdpPacket::new_unchecked(&mut bytes[..]);
    datagram.set_src_port(ports.0);
    datagram.set_dst_port(ports.1);
    datagram.set_len(u16::try_from(8 + payload.len()).unwrap());
    datagram.payload_mut().copy_from_slice(payload);
    datagram.fill_checksum(&IpAddress::Ipv6(from), &IpAddress::Ipv6(to));
    ip(from, to, IpProtocol::Udp, 64, &bytes)
}

/// A message of ICMPv6, whose checksum is filled in.
pub(crate) fn icmp(from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    Icmpv6Packet::new_unchecked(&mut message[..]).fill_checksum(&from, &to);
    ip(from, to, IpProtocol::Icmpv6, hop_limit, &message)
}

pub(crate) fn ip_of(frame: &[u8], protocol: IpProtocol) -> Ipv6Packet<&[u8]> {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!((frame.src_addr(), frame.dst_addr()), (GATEWAY_MAC, VM_MAC));
    let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
    assert_eq!(packet.next_header(), protocol);
    packet
}

/// Type and code of the ICMPv6 message in a frame to the VM, and what follows its header.
pub(crate) fn icmp_of(frame: &[u8]) -> ((u8, u8), Vec<u8>) {
    let packet = ip_of(frame, IpProtocol::Icmpv6);
    let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    assert!(message.verify_checksum(&packet.src_addr(), &packet.dst_addr()));
    ((message.msg_type().into(), message.msg_code()), packet.payload()[8..].to_vec())
}

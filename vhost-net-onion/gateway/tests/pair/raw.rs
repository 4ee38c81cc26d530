//! Frames of a VM that builds them by hand, and what it reads out of the answers.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gateway::{Config, Event, FlowId, Gateway, config::GATEWAY_MAC};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        EthernetFrame, EthernetProtocol, Icmpv4Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet,
        TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
    },
};
use wire::link::Offload;

use crate::world::{REMOTE, VM, VM_MAC};

/// A gateway with nothing around it, which has already said that it is there.
pub(crate) struct Bare {
    pub(crate) gateway: Gateway,
    pub(crate) now: Instant,
}

impl Bare {
    pub(crate) fn new(config: Config) -> Bare {
        let now = Instant::now();
        let mut bare = Bare { gateway: Gateway::new(config, [3; 32], now), now };
        bare.pass(Duration::from_secs(33));
        assert_eq!(bare.gateway.counters().router_advertisements, 3);
        bare
    }

    /// Hands a frame over and takes all answers.
    pub(crate) fn exchange(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.hand_over(frame);
        self.frames()
    }

    pub(crate) fn frames(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.gateway.poll_frame()).map(|frame| plain(frame.to_vec())).collect()
    }

    /// Hands a complete frame over.
    pub(crate) fn hand_over(&mut self, frame: &[u8]) {
        self.gateway.handle_frame(self.now, Offload::default(), frame);
    }

    /// Offers bytes for the VM and returns how many were taken.
    pub(crate) fn send(&mut self, flow: FlowId, bytes: &[u8]) -> usize {
        let mut data = Bytes::copy_from_slice(bytes);
        self.gateway.send(self.now, flow, &mut data);
        bytes.len() - data.len()
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.gateway.poll_event()).collect()
    }

    /// Lets time pass, with every timer on the way.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.gateway.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.gateway.handle_timeout(self.now);
            self.frames();
        }
        self.now = end;
        self.gateway.handle_timeout(end);
    }

    /// A flow whose far end has accepted and whose handshake is done; the gateway's next sequence number with it.
    pub(crate) fn established(&mut self, port: u16) -> (FlowId, TcpSeqNumber) {
        let syn = TcpRepr { max_seg_size: Some(1460), ..segment(TcpControl::Syn, port, 1000, None) };
        assert!(self.exchange(&tcp(REMOTE, &syn)).is_empty(), "not before the far end has accepted");
        let flow = match self.events()[..] {
            [Event::Connect { flow, .. }] => flow,
            ref other => panic!("{other:?}"),
        };
        self.gateway.connected(self.now, flow);
        let frames = self.frames();
        let answer = tcp_of(&frames[0]);
        assert_eq!((answer.control, answer.ack_number), (TcpControl::Syn, Some(TcpSeqNumber(1001))));
        let next = answer.seq_number + 1;
        self.exchange(&tcp(REMOTE, &segment(TcpControl::None, port, 1001, Some(next))));
        (flow, next)
    }
}

/// The same frame, to the VM: its IP header has no DiffServ, and the usual hops (RFC 9293, MUST-48 and MUST-49), but of
/// neighbour discovery the most (RFC 4861, section 7.1).
pub(crate) fn plain(frame: Vec<u8>) -> Vec<u8> {
    let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
            assert_eq!((packet.dscp(), packet.ecn(), packet.hop_limit()), (0, 0, 64));
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
            let is_discovery = packet.next_header() == IpProtocol::Icmpv6 && (133..=137).contains(&packet.payload()[0]);
            assert_eq!((packet.traffic_class(), packet.hop_limit()), (0, if is_discovery { 255 } else { 64 }));
        }
        _ => {}
    }
    frame
}

/// Whether nothing is due but what never ends: a router advertisement.
pub(crate) fn is_at_rest(gateway: &mut Gateway) -> bool {
    let before = gateway.counters().clone();
    let Some(at) = gateway.poll_timeout() else { return false };
    gateway.handle_timeout(at);
    let after = gateway.counters();
    after.router_advertisements == before.router_advertisements + 1 && after.frames_out == before.frames_out + 1
}

pub(crate) fn frame(ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(VM_MAC);
    frame.set_dst_addr(GATEWAY_MAC);
    frame.set_ethertype(ethertype);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

pub(crate) fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr =
        Ipv4Repr { src_addr: from, dst_addr: to, next_header: protocol, payload_len: payload.len(), hop_limit: 64 };
    let mut bytes = vec![0; 20 + payload.len()];
    repr.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &ChecksumCapabilities::default());
    bytes[20..].copy_from_slice(payload);
    frame(EthernetProtocol::Ipv4, &bytes)
}

pub(crate) fn udp(to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8 + payload.len()];
    let mut datagram = UdpPacket::new_unchecked(&mut bytes[..]);
    datagram.set_src_port(ports.0);
    datagram.set_dst_port(ports.1);
    datagram.set_len(u16::try_from(8 + payload.len()).unwrap());
    datagram.payload_mut().copy_from_slice(payload);
    datagram.fill_checksum(&IpAddress::Ipv4(VM), &IpAddress::Ipv4(to));
    ip(VM, to, IpProtocol::Udp, &bytes)
}

/// A segment from a port of the VM to port 80.
pub(crate) fn segment(control: TcpControl, port: u16, seq: i32, ack: Option<TcpSeqNumber>) -> TcpRepr<'static> {
    TcpRepr {
        src_port: port,
        dst_port: 80,
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: ack,
        window_len: 65_535,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

pub(crate) fn tcp(to: Ipv4Addr, repr: &TcpRepr) -> Vec<u8> {
    tcp_from(VM, to, repr)
}

pub(crate) fn tcp_from(from: Ipv4Addr, to: Ipv4Addr, repr: &TcpRepr) -> Vec<u8> {
    let mut bytes = vec![0; repr.buffer_len()];
    let (source, destination) = (IpAddress::Ipv4(from), IpAddress::Ipv4(to));
    repr.emit(&mut TcpPacket::new_unchecked(&mut bytes[..]), &source, &destination, &ChecksumCapabilities::default());
    ip(from, to, IpProtocol::Tcp, &bytes)
}

/// The segment in a frame to the VM, checksums checked.
pub(crate) fn tcp_of(frame: &[u8]) -> TcpRepr<'_> {
    let packet = ip_of(frame, IpProtocol::Tcp);
    let (source, destination) = (IpAddress::Ipv4(packet.src_addr()), IpAddress::Ipv4(packet.dst_addr()));
    let segment = TcpPacket::new_checked(packet.payload()).unwrap();
    TcpRepr::parse(&segment, &source, &destination, &ChecksumCapabilities::default()).unwrap()
}

/// Type and code of the ICMP message in a frame to the VM, and the packet it quotes.
pub(crate) fn icmp_of(frame: &[u8]) -> ((u8, u8), Vec<u8>) {
    let packet = ip_of(frame, IpProtocol::Icmp);
    let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
    assert!(message.verify_checksum());
    ((message.msg_type().into(), message.msg_code()), message.data().to_vec())
}

pub(crate) fn ip_of(frame: &[u8], protocol: IpProtocol) -> Ipv4Packet<&[u8]> {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!((frame.src_addr(), frame.dst_addr()), (GATEWAY_MAC, VM_MAC));
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    assert!(packet.verify_checksum());
    assert_eq!((packet.next_header(), packet.dst_addr()), (protocol, VM));
    packet
}

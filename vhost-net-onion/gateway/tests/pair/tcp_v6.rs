//! TCP over IPv6, and large frames from the VM over both versions.

use gateway::{Config, Event, Failure, FlowId, Host};
use hickory_proto::{
    op::Message,
    rr::{RData, RecordType, rdata::AAAA},
};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket},
};
use std::net::Ipv6Addr;
use wire::link::Offload;

use crate::{
    driver::{self, ALL, Driver},
    raw::{self, Bare, segment},
    raw_v6::{self, REMOTE, VM, icmp_of, ip_of},
    services::question,
    world::pattern,
};

pub(crate) fn tcp(from: Ipv6Addr, to: Ipv6Addr, repr: &TcpRepr) -> Vec<u8> {
    let mut bytes = vec![0; repr.buffer_len()];
    let (source, destination) = (from.into(), to.into());
    repr.emit(&mut TcpPacket::new_unchecked(&mut bytes[..]), &source, &destination, &ChecksumCapabilities::default());
    raw_v6::ip(from, to, IpProtocol::Tcp, 64, &bytes)
}

/// The segment in a frame to the VM, checksum checked.
pub(crate) fn tcp_of(frame: &[u8]) -> TcpRepr<'_> {
    let packet = ip_of(frame, IpProtocol::Tcp);
    let (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
    let segment = TcpPacket::new_checked(packet.payload()).unwrap();
    TcpRepr::parse(&segment, &source, &destination, &ChecksumCapabilities::default()).unwrap()
}

/// A flow from one of the VM's addresses, and our next number.
pub(crate) fn established(bare: &mut Bare, from: Ipv6Addr, mss: Option<u16>) -> (FlowId, TcpSeqNumber) {
    let syn = TcpRepr { max_seg_size: mss, ..segment(TcpControl::Syn, 1000, 1000, None) };
    assert!(bare.exchange(&tcp(from, REMOTE, &syn)).is_empty());
    let Some(Event::Connect { flow, target, .. }) = bare.gateway.poll_event() else { panic!() };
    assert_eq!((target.host, target.port), (Host::Address(REMOTE.into()), 80));
    bare.gateway.connected(bare.now, flow);
    let frames = bare.frames();
    let answer = tcp_of(&frames[0]);
    assert_eq!((answer.control, answer.max_seg_size), (TcpControl::Syn, Some(65_535 - 60)));
    assert_eq!(ip_of(&frames[0], IpProtocol::Tcp).dst_addr(), from);
    let next = answer.seq_number + 1;
    bare.exchange(&tcp(from, REMOTE, &segment(TcpControl::None, 1000, 1001, Some(next))));
    (flow, next)
}

#[test]
fn data_both_ways_from_two_addresses_with_the_same_port() {
    let mut bare = Bare::new(Config::default());
    let other = Ipv6Addr::from_bits(VM.to_bits() ^ 0xffff);
    for from in [VM, other] {
        let (flow, next) = established(&mut bare, from, Some(1440));
        let data = TcpRepr { payload: b"question", ..segment(TcpControl::Psh, 1000, 1001, Some(next)) };
        assert_eq!(tcp_of(&bare.exchange(&tcp(from, REMOTE, &data))[0]).ack_number, Some(TcpSeqNumber(1009)));
        assert_eq!(bare.gateway.recv(bare.now, flow).as_deref(), Some(&b"question"[..]));
        bare.send(flow, b"answer");
        let frames = bare.frames();
        assert_eq!((tcp_of(&frames[0]).payload, ip_of(&frames[0], IpProtocol::Tcp).dst_addr()), (&b"answer"[..], from));
        bare.events();
    }
    assert_eq!(bare.gateway.flows(), 2);
    let unknown = segment(TcpControl::None, 77, 1, Some(TcpSeqNumber(9)));
    let frames = bare.exchange(&tcp(VM, REMOTE, &unknown));
    assert_eq!((tcp_of(&frames[0]).control, tcp_of(&frames[0]).seq_number), (TcpControl::Rst, TcpSeqNumber(9)));
}

#[test]
fn segments_are_as_long_as_the_vm_says_or_1220_bytes() {
    for (mss, expected) in [(Some(1440), 1440), (None, 1220), (Some(65_535), 65_475)] {
        let mut bare = Bare::new(Config::default());
        let (flow, next) = established(&mut bare, VM, mss);
        let wide = TcpRepr { window_len: 65_535, ..segment(TcpControl::None, 1000, 1001, Some(next)) };
        bare.exchange(&tcp(VM, REMOTE, &wide));
        bare.send(flow, &pattern(100_000));
        assert_eq!(tcp_of(&bare.frames()[0]).payload.len(), expected);
    }
}

#[test]
fn large_frames_to_the_vm_are_cut_by_its_driver() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = established(&mut bare, VM, Some(1440));
    bare.gateway.set_abilities(ALL);
    let data = pattern(50_000);
    bare.send(flow, &data);
    let frame = bare.gateway.poll_frame().unwrap();
    assert_eq!((frame.offload.gso_type, frame.offload.gso_size, frame.offload.hdr_len), (4, 1440, 74));
    let driver = Driver { abilities: ALL, ..Driver::default() };
    let (mut received, mut seq) = (vec![], next);
    for frame in driver::receive(&driver, frame.offload, &frame.to_vec()) {
        let segment = tcp_of(&frame);
        assert_eq!(segment.seq_number, seq);
        seq += segment.payload.len();
        received.extend_from_slice(segment.payload);
    }
    assert!(received == data);
}

#[test]
fn names_and_failures() {
    let mut bare = Bare::new(Config::default());
    let query = question("name.example.", RecordType::AAAA);
    let frames = bare.exchange(&raw_v6::udp(VM, gateway::config::GATEWAY_ADDRESS_V6, (4000, 53), &query));
    let packet = ip_of(&frames[0], IpProtocol::Udp);
    let reply = UdpPacket::new_checked(packet.payload()).unwrap().payload().to_vec();
    let RData::AAAA(AAAA(made_up)) = Message::from_vec(&reply).unwrap().answers[0].data else { panic!("no address") };
    let syn = segment(TcpControl::Syn, 1000, 1000, None);
    bare.exchange(&tcp(VM, made_up, &syn));
    let Some(Event::Connect { flow, target, .. }) = bare.gateway.poll_event() else { panic!() };
    assert_eq!(target.host, Host::Name("name.example".into()));
    bare.gateway.failed(bare.now, flow, Failure::Unreachable);
    let (kind, quoted) = icmp_of(&bare.frames()[0]);
    assert_eq!((kind.0, &quoted[8..24], &quoted[24..40]), (1, &VM.octets()[..], &made_up.octets()[..]));
    assert_eq!(quoted[40..48], [3, 232, 0, 80, 0, 0, 3, 232], "what a kernel finds its socket by");

    bare.exchange(&tcp(VM, made_up, &syn));
    let events = bare.events();
    let [Event::Closed(_), Event::Connect { flow, .. }] = events[..] else { panic!("{events:?}") };
    bare.gateway.failed(bare.now, flow, Failure::Refused);
    assert_eq!(tcp_of(&bare.frames()[0]).ack_number, Some(TcpSeqNumber(1001)));
}

#[test]
fn large_frames_from_the_vm_are_taken_whole_and_their_offload_is_not_believed() {
    let payload = pattern(12_000);
    let data = |next| TcpRepr { payload: &payload, ..segment(TcpControl::Psh, 1000, 1001, Some(next)) };
    let wild = [
        Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 },
        Offload { flags: 2, gso_type: 4, ..Offload::default() },
        Offload { flags: 1, gso_type: 255, hdr_len: 0, gso_size: 0, csum_start: u16::MAX, csum_offset: u16::MAX },
        Offload { flags: 255, gso_type: 1, hdr_len: u16::MAX, gso_size: u16::MAX, csum_start: 0, csum_offset: 0 },
    ];
    for offload in wild {
        for is_v4 in [false, true] {
            let mut bare = Bare::new(Config::default());
            let (flow, mut frame) = if is_v4 {
                let (flow, next) = bare.established(1000);
                (flow, raw::tcp(crate::world::REMOTE, &data(next)))
            } else {
                let (flow, next) = established(&mut bare, VM, Some(1440));
                (flow, tcp(VM, REMOTE, &data(next)))
            };
            let checksum_at = if is_v4 { 50 } else { 70 };
            frame[checksum_at] ^= 0xff;
            bare.gateway.handle_frame(bare.now, Offload::default(), &frame);
            assert_eq!(bare.gateway.counters().dropped_checksum, 1, "it is looked at when it is there");
            bare.gateway.handle_frame(bare.now, offload, &frame);
            assert_eq!(bare.gateway.recv(bare.now, flow).as_deref(), Some(&payload[..]));
        }
    }
}

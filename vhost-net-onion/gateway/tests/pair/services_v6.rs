//! Discovery, DNS, time, ICMPv6 and UDP over IPv6, as a VM uses them.

use std::{
    net::Ipv6Addr,
    time::{Duration, Instant},
};

use gateway::{
    Config, Gateway, Host, Target,
    config::{GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL, GATEWAY_MAC, PREFIX_V6},
};
use hickory_proto::{
    op::Message,
    rr::{RData, RecordType, rdata::AAAA},
};
use smoltcp::{
    socket::tcp,
    wire::{IpProtocol, UdpPacket},
};
use wire::link::Offload;

use crate::{
    raw::{self, Bare},
    raw_v6::{REMOTE, VM, VM_LINK_LOCAL, icmp, icmp_of, ip, ip_of, udp},
    services::{question, resolve},
    world::{World, pattern},
};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const MDNS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const PING: &[u8] = b"\x80\0\0\0\x12\x34\0\x01ping";

/// Sends a datagram and returns the payload of the answer, whose checksum must be right.
fn answer(bare: &mut Bare, to: Ipv6Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let frames = bare.exchange(&udp(VM, to, (4000, port), payload));
    let packet = ip_of(&frames[0], IpProtocol::Udp);
    assert_eq!((packet.src_addr(), packet.dst_addr()), (to, VM));
    let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
    assert!(datagram.checksum() != 0 && datagram.verify_checksum(&to.into(), &VM.into()));
    assert_eq!((datagram.src_port(), datagram.dst_port()), (port, 4000));
    datagram.payload().to_vec()
}

#[test]
fn a_new_gateway_says_that_it_is_there() {
    let now = Instant::now();
    let mut bare = Bare { gateway: Gateway::new(Config::default(), [1; 32], now), now };
    assert_eq!(bare.gateway.poll_timeout(), Some(now));
    bare.gateway.handle_timeout(bare.now);
    let frames = bare.frames();
    assert_eq!(
        (frames.len(), &frames[0][..6], &frames[0][6..12]),
        (1, &[0x33, 0x33, 0, 0, 0, 1][..], &GATEWAY_MAC.0[..])
    );
    assert_eq!((frames[0][54], &frames[0][22..38]), (134, &GATEWAY_LINK_LOCAL.octets()[..]));
    bare.pass(Duration::from_secs(33));
    assert_eq!(bare.gateway.counters().router_advertisements, 3);
}

#[test]
fn a_vm_learns_where_the_gateway_is_and_makes_its_address() {
    let mut bare = Bare::new(Config::default());
    let solicit = |from, target: Ipv6Addr| {
        let group = Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | target.to_bits() & 0xff_ffff);
        icmp(from, group, 255, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat())
    };
    let frames = bare.exchange(&icmp(VM_LINK_LOCAL, ALL_ROUTERS, 255, &[133, 0, 0, 0, 0, 0, 0, 0]));
    let (kind, body) = icmp_of(&frames[0]);
    assert_eq!(kind, (134, 0));
    assert!(body.windows(16).any(|window| window == PREFIX_V6.octets()));
    for own in [VM, VM_LINK_LOCAL] {
        assert!(bare.exchange(&solicit(Ipv6Addr::UNSPECIFIED, own)).is_empty(), "{own} is free");
    }
    for asked in [GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL] {
        assert_eq!(icmp_of(&bare.exchange(&solicit(VM, asked))[0]).0, (136, 0));
    }
    assert_eq!(bare.gateway.counters().neighbour_advertisements, 2);
}

#[test]
fn a_name_has_one_address_of_each_version() {
    let mut bare = Bare::new(Config::default());
    for server in [GATEWAY_ADDRESS_V6, GATEWAY_LINK_LOCAL] {
        let reply = answer(&mut bare, server, 53, &question("name.example.", RecordType::AAAA));
        let RData::AAAA(AAAA(v6)) = Message::from_vec(&reply).unwrap().answers[0].data else { panic!("no address") };
        let v4 = resolve(&mut bare, "name.example.");
        assert_eq!(v6.segments()[..6], [0xfd6f, 0x6874, 2, 0, 0, 0]);
        assert_eq!(v6.to_bits() as u32, v4.to_bits());
    }
}

#[test]
fn a_vm_without_ipv4_makes_its_address_and_reaches_names() {
    let mut world = World::autoconfigured();
    let reply = {
        let query = question("name.example.", RecordType::AAAA);
        let frame = udp(VM, GATEWAY_ADDRESS_V6, (4000, 53), &query);
        world.gateway.handle_frame(world.now, Offload::default(), &frame);
        let frame = world.gateway.poll_frame().unwrap().to_vec();
        Message::from_vec(&frame[62..]).unwrap()
    };
    let RData::AAAA(AAAA(made_up)) = reply.answers[0].data else { panic!("no address") };
    for (to, port, host) in
        [(made_up, 80, Host::Name("name.example".into())), (REMOTE, 443, Host::Address(REMOTE.into()))]
    {
        let handle = world.connect(to, port);
        world.run_until(10, |world| world.socket(handle).state() == tcp::State::Established);
        let flow = *world.flows.last_key_value().unwrap().0;
        assert_eq!(world.far(flow).target, Some(Target { host, port }));
        let (up, down) = (pattern(100_000), pattern(80_000));
        world.far(flow).to_send.extend(&down);
        world.far(flow).finish = true;
        assert!(world.talk(handle, &up, |received| received.len() >= down.len()) == down);
        world.socket(handle).close();
        world.run_until(60, |world| world.gateway.flows() == 0);
        assert!(world.far(flow).received == up);
    }
    let handle = world.connect(GATEWAY_ADDRESS_V6, 9050);
    let greeted = world.talk(handle, b"\x05\x01\0", |received| received.len() == 2);
    assert_eq!(greeted, [5, 0]);
    let counters = world.gateway.counters();
    assert_eq!((counters.dropped_source, counters.dropped_malformed, counters.dropped_checksum), (0, 0, 0));
}

#[test]
fn a_made_up_address_that_means_nothing_is_unreachable() {
    let mut world = World::autoconfigured();
    world.connect(Ipv6Addr::new(0xfd6f, 0x6874, 2, 0, 0, 0, 0x0ac8, 1), 80);
    world.connect(Ipv6Addr::new(0xfd6f, 0x6874, 2, 0, 1, 0, 0x0ac8, 1), 80);
    world.run_until(5, |world| world.gateway.counters().unreachables == 2);
    assert!(world.flows.is_empty());
}

#[test]
fn the_time_is_told_once_it_is_known() {
    let mut bare = Bare::new(Config::default());
    let request = [&[0x23][..], &[0; 47]].concat();
    assert_eq!(answer(&mut bare, GATEWAY_ADDRESS_V6, 123, &request)[0] >> 6, 3, "not synchronised");
    assert!(bare.exchange(&udp(VM, GATEWAY_ADDRESS_V6, (4000, 37), b"")).is_empty());
    bare.gateway.set_clock(bare.now, Duration::from_secs(1_700_000_000));
    bare.pass(Duration::from_secs(5));
    let expected = (1_700_000_005u64 + 2_208_988_800) as u32;
    let reply = answer(&mut bare, GATEWAY_ADDRESS_V6, 123, &request);
    assert_eq!((reply[0], &reply[40..44]), (0x24, &expected.to_be_bytes()[..]));
    assert_eq!(answer(&mut bare, GATEWAY_ADDRESS_V6, 37, b""), expected.to_be_bytes());

    // And over IPv4.
    let frames = bare.exchange(&raw::udp(crate::world::GATEWAY, (4000, 37), b""));
    let packet = raw::ip_of(&frames[0], IpProtocol::Udp);
    assert_eq!(packet.payload()[8..], expected.to_be_bytes());
    assert_eq!((bare.gateway.counters().ntp_replies, bare.gateway.counters().time_replies), (2, 2));
}

#[test]
fn ping_answers_for_the_gateway_alone() {
    let mut bare = Bare::new(Config::default());
    for (from, to) in [
        (VM, GATEWAY_ADDRESS_V6),
        (VM, GATEWAY_LINK_LOCAL),
        (VM_LINK_LOCAL, GATEWAY_LINK_LOCAL),
        (VM_LINK_LOCAL, ALL_NODES),
        (VM_LINK_LOCAL, ALL_ROUTERS),
    ] {
        assert_eq!(icmp_of(&bare.exchange(&icmp(from, to, 64, PING))[0]), ((129, 0), b"ping".to_vec()), "{to}");
    }
    assert_eq!(icmp_of(&bare.exchange(&icmp(VM, REMOTE, 64, PING))[0]).0, (1, 1));
    assert!(bare.exchange(&icmp(VM, MDNS, 64, PING)).is_empty());
    assert!(bare.exchange(&icmp(Ipv6Addr::UNSPECIFIED, ALL_NODES, 64, PING)).is_empty());
}

#[test]
fn udp_elsewhere_is_refused_at_once() {
    let mut bare = Bare::new(Config::default());
    let made_up = Ipv6Addr::new(0xfd6f, 0x6874, 2, 0, 0, 0, 0x0ac8, 1);
    for (to, port) in [(REMOTE, 443), (REMOTE, 53), (GATEWAY_ADDRESS_V6, 547), (GATEWAY_LINK_LOCAL, 67), (made_up, 53)]
    {
        let (kind, quoted) = icmp_of(&bare.exchange(&udp(VM, to, (4000, port), b"quic?"))[0]);
        assert_eq!(kind, (1, 4), "{to}:{port}");
        assert_eq!(&quoted[48..], b"quic?");
    }
    assert!(bare.exchange(&udp(VM, MDNS, (5353, 5353), b"hello all")).is_empty());
    assert_eq!(bare.gateway.counters().refused_udp, 5);
}

#[test]
fn other_protocols_are_a_problem_and_groups_are_not_told() {
    let mut bare = Bare::new(Config::default());
    let sctp = IpProtocol::Unknown(132);
    let (kind, about) = icmp_of(&bare.exchange(&ip(VM, REMOTE, sctp, 64, &[0; 12]))[0]);
    assert_eq!((kind, about.len()), ((4, 1), 52));
    assert!(bare.exchange(&ip(VM, MDNS, sctp, 64, &[0; 12])).is_empty());
    // An option that wants it told even to senders to groups, and one that does not.
    let option = |kind| ip(VM, MDNS, IpProtocol::Ipv6Opts, 64, &[17, 0, kind, 4, 0, 0, 0, 0]);
    assert_eq!(icmp_of(&bare.exchange(&option(0x80))[0]).0, (4, 2));
    assert!(bare.exchange(&option(0xc0)).is_empty());
    assert!(bare.exchange(&ip(Ipv6Addr::UNSPECIFIED, REMOTE, sctp, 64, &[0; 12])).is_empty());
    assert!(bare.exchange(&ip(VM, Ipv6Addr::LOCALHOST, sctp, 64, &[0; 12])).is_empty());
    let counters = bare.gateway.counters();
    assert_eq!((counters.dropped_extension, counters.parameter_problems), (6, 2));
}

#[test]
fn wrong_senders_are_dropped() {
    let mut bare = Bare::new(Config::default());
    let query = question("name.example.", RecordType::A);
    for from in [
        Ipv6Addr::UNSPECIFIED,
        Ipv6Addr::LOCALHOST,
        GATEWAY_ADDRESS_V6,
        GATEWAY_LINK_LOCAL,
        VM_LINK_LOCAL,
        PREFIX_V6,
        REMOTE,
        ALL_NODES,
        Ipv6Addr::new(0xfd6f, 0x6874, 2, 0, 0, 0, 0, 1),
    ] {
        assert!(bare.exchange(&udp(from, GATEWAY_ADDRESS_V6, (4000, 53), &query)).is_empty(), "{from}");
    }
    assert_eq!(bare.gateway.counters().dropped_source, 9);
}

#[test]
fn a_frame_for_all_with_a_packet_for_one_is_dropped() {
    let mut bare = Bare::new(Config::default());
    let mut frame = udp(VM, REMOTE, (4000, 443), b"quic?");
    frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    assert!(bare.exchange(&frame).is_empty());
    assert_eq!(bare.gateway.counters().dropped_destination, 1);
}

#[test]
fn listener_reports_are_heard_and_nothing_more() {
    let mut bare = Bare::new(Config::default());
    let mut report = [0; 36];
    // Hop-by-hop options with a router alert (RFC 2711), then a report of version 2 without records.
    report[..8].copy_from_slice(&[58, 0, 5, 2, 0, 0, 1, 0]);
    report[8] = 143;
    let all_routers_v2 = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    for from in [Ipv6Addr::UNSPECIFIED, VM_LINK_LOCAL] {
        let mut message = smoltcp::wire::Icmpv6Packet::new_unchecked(&mut report[8..]);
        message.fill_checksum(&from, &all_routers_v2);
        assert!(bare.exchange(&ip(from, all_routers_v2, IpProtocol::HopByHop, 1, &report)).is_empty());
    }
    assert_eq!(bare.gateway.counters().ignored_listener, 2);
}

#[test]
fn every_truncation_of_a_packet_is_survived() {
    let whole =
        icmp(VM_LINK_LOCAL, ALL_ROUTERS, 255, &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &[1, 1, 2, 0, 0, 0, 0, 9]].concat());
    let mut bare = Bare::new(Config::default());
    assert_eq!(bare.exchange(&whole).len(), 1);
    for length in 0..whole.len() {
        assert!(bare.exchange(&whole[..length]).is_empty(), "{length}");
        // And with a length that agrees.
        if length >= 54 {
            let mut cut = whole[..length].to_vec();
            cut[18..20].copy_from_slice(&(length as u16 - 54).to_be_bytes());
            assert!(bare.exchange(&cut).is_empty(), "{length}");
        }
    }
}

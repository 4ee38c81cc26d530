//! DHCP, ARP, DNS, ICMP and UDP, as a VM uses them.

use std::{net::Ipv4Addr, time::Duration};

use gateway::{Config, Host, config::GATEWAY_MAC};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType, rdata::A},
};
use smoltcp::{
    socket::dhcpv4,
    wire::{EthernetProtocol, Icmpv4Message, Icmpv4Packet, IpCidr, IpProtocol, TcpControl},
};

use crate::{
    raw::{self, Bare, icmp_of, ip_of, segment},
    world::{Answer, GATEWAY, REMOTE, VM, World},
};

pub(crate) fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Asks for the address of a name.
pub(crate) fn resolve(bare: &mut Bare, name: &str) -> Ipv4Addr {
    let frames = bare.exchange(&raw::udp(GATEWAY, (5353, 53), &question(name, RecordType::A)));
    let packet = ip_of(&frames[0], IpProtocol::Udp);
    assert_eq!((packet.src_addr(), &packet.payload()[..4]), (GATEWAY, &[0, 53, 20, 233][..]));
    match Message::from_vec(&packet.payload()[8..]).unwrap().answers[0].data {
        RData::A(A(address)) => address,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_vm_gets_its_lease() {
    let mut world = World::unconfigured(Config::default());
    let handle = world.sockets.add(dhcpv4::Socket::new());
    let mut lease = None;
    for _ in 0..200 {
        world.run_for(Duration::from_millis(10));
        if let Some(dhcpv4::Event::Configured(config)) = world.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            lease = Some((config.address, config.router, config.dns_servers.to_vec()));
            break;
        }
    }
    let (address, router, dns) = lease.expect("a lease within two seconds");
    assert_eq!((address.address(), address.prefix_len()), (VM, 24));
    assert_eq!((router, &dns[..]), (Some(GATEWAY), &[GATEWAY][..]));

    // And with it the VM connects, which takes ARP first.
    world.configure(address.into(), router.unwrap());
    world.established();
    assert_eq!(world.gateway.counters().arp_replies, 1);
}

#[test]
fn a_lease_is_renewed_and_stays_the_same() {
    let mut world = World::unconfigured(Config::default());
    let handle = world.sockets.add(dhcpv4::Socket::new());
    world.run_until(5, |world| world.gateway.counters().dhcp_replies == 2);
    world.configure(IpCidr::new(VM.into(), 24), GATEWAY);
    world.run_for(Duration::from_secs(25 * 60 * 60));
    let counters = world.gateway.counters();
    assert!(counters.dhcp_replies >= 4, "offered, granted, renewed twice: {counters:?}");
    assert_eq!((counters.dhcp_naks, counters.dhcp_ignored), (0, 0));
    // Had it been lost at any time, the last event would not be the one that began it.
    let event = world.sockets.get_mut::<dhcpv4::Socket>(handle).poll();
    assert!(matches!(event, Some(dhcpv4::Event::Configured(config)) if config.address.address() == VM), "it was lost");
}

#[test]
fn the_name_travels_not_the_address() {
    let mut bare = Bare::new(Config::default());
    let onion = format!("{}.onion", "q".repeat(56));
    let address = resolve(&mut bare, &format!("{onion}."));
    bare.exchange(&raw::tcp(address, &segment(TcpControl::Syn, 1000, 1, None)));
    let events = bare.events();
    assert!(matches!(&events[..], [gateway::Event::Connect { target, .. }]
            if target.host == Host::Name(onion) && target.port == 80));
}

#[test]
fn a_made_up_address_that_means_nothing_is_unreachable() {
    let mut bare = Bare::new(Config::default());
    let frames = bare.exchange(&raw::tcp(Ipv4Addr::new(10, 200, 1, 1), &segment(TcpControl::Syn, 1000, 1, None)));
    let (kind, quoted) = icmp_of(&frames[0]);
    assert_eq!(kind, (3, 1));
    assert_eq!((quoted[9], &quoted[16..20]), (6, &[10, 200, 1, 1][..]));
    assert!(bare.events().is_empty());
}

#[test]
fn ping_answers_for_the_gateway_alone() {
    let mut bare = Bare::new(Config::default());
    let mut echo = [8, 0, 0, 0, 1, 2, 3, 4, b'p', b'i', b'n', b'g'];
    Icmpv4Packet::new_unchecked(&mut echo[..]).fill_checksum();
    let frames = bare.exchange(&raw::ip(VM, GATEWAY, IpProtocol::Icmp, &echo));
    let packet = ip_of(&frames[0], IpProtocol::Icmp);
    assert_eq!((packet.src_addr(), packet.payload()[0], &packet.payload()[4..]), (GATEWAY, 0, &echo[4..]));
    let frames = bare.exchange(&raw::ip(VM, REMOTE, IpProtocol::Icmp, &echo));
    assert_eq!(icmp_of(&frames[0]).0, (3, 13));
    assert!(bare.exchange(&raw::ip(VM, Ipv4Addr::new(10, 0, 2, 255), IpProtocol::Icmp, &echo)).is_empty());
}

#[test]
fn udp_elsewhere_is_refused_at_once() {
    let mut bare = Bare::new(Config::default());
    for (to, port) in [(REMOTE, 53), (REMOTE, 443), (GATEWAY, 54), (GATEWAY, 67), (Ipv4Addr::new(10, 200, 0, 1), 53)] {
        let frames = bare.exchange(&raw::udp(to, (4000, port), b"quic?"));
        let (kind, quoted) = icmp_of(&frames[0]);
        assert_eq!(kind, (3, 3), "{to}:{port}");
        assert_eq!(&quoted[28..], b"quic?");
    }
    for group in [Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(10, 0, 2, 255), Ipv4Addr::BROADCAST] {
        assert!(bare.exchange(&raw::udp(group, (4000, 137), b"hello all")).is_empty(), "{group}");
    }
}

#[test]
fn other_protocols_and_errors_about_errors() {
    let mut bare = Bare::new(Config::default());
    let frames = bare.exchange(&raw::ip(VM, REMOTE, IpProtocol::Unknown(132), &[0; 20]));
    assert_eq!(icmp_of(&frames[0]).0, (3, 2));
    for kind in [Icmpv4Message::DstUnreachable, Icmpv4Message::TimeExceeded, Icmpv4Message::Redirect] {
        let mut error = [0; 36];
        let mut message = Icmpv4Packet::new_unchecked(&mut error[..]);
        message.set_msg_type(kind);
        message.fill_checksum();
        assert!(bare.exchange(&raw::ip(VM, REMOTE, IpProtocol::Icmp, &error)).is_empty());
    }
    assert!(bare.exchange(&raw::frame(EthernetProtocol::Unknown(0x8100), &[0; 60])).is_empty());
    let counters = bare.gateway.counters();
    assert_eq!((counters.dropped_ethertype, counters.dropped_icmp), (1, 3));
}

#[test]
fn frames_for_others_and_from_others_are_dropped() {
    let mut bare = Bare::new(Config::default());
    let syn = segment(TcpControl::Syn, 1000, 1, None);
    let mut to_other = raw::tcp(REMOTE, &syn);
    to_other[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    assert!(bare.exchange(&to_other).is_empty());
    let mut from_group = raw::tcp(REMOTE, &syn);
    from_group[6] |= 1;
    assert!(bare.exchange(&from_group).is_empty());
    for source in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 2, 16), GATEWAY, REMOTE, Ipv4Addr::BROADCAST] {
        assert!(bare.exchange(&raw::tcp_from(source, REMOTE, &syn)).is_empty(), "{source}");
    }
    let counters = bare.gateway.counters();
    assert_eq!((counters.dropped_destination, counters.dropped_source), (1, 6));
    assert!(bare.events().is_empty());
}

#[test]
fn answers_go_to_where_the_vm_is_now() {
    let mut bare = Bare::new(Config::default());
    let mut ping = vec![8, 0, 0, 0, 0, 0, 0, 0];
    Icmpv4Packet::new_unchecked(&mut ping[..]).fill_checksum();
    let mut frame = raw::ip(VM, GATEWAY, IpProtocol::Icmp, &ping);
    frame[6..12].copy_from_slice(&[2, 1, 1, 1, 1, 1]);
    let frames = bare.exchange(&frame);
    assert_eq!(frames[0][..6], [2, 1, 1, 1, 1, 1]);
    assert_eq!(frames[0][6..12], GATEWAY_MAC.0);
}

#[test]
fn a_name_stays_while_a_flow_to_it_is_open() {
    let mut bare = Bare::new(Config { names_max: 4, ..Config::default() });
    let held = resolve(&mut bare, "held.example.");
    bare.exchange(&raw::tcp(held, &segment(TcpControl::Syn, 1000, 1, None)));
    for n in 0..50 {
        resolve(&mut bare, &format!("n{n}.example."));
    }
    assert_eq!(resolve(&mut bare, "held.example."), held);
    assert_eq!(bare.gateway.counters().names_evicted, 47);
}

#[test]
fn nothing_but_the_router_is_due_in_an_idle_network() {
    let mut world = World::new();
    world.answer = Answer::Later;
    world.established_soon();
    let before = world.gateway.counters().clone();
    world.run_for(Duration::from_secs(3600));
    let after = world.gateway.counters();
    let advertised = after.router_advertisements - before.router_advertisements;
    assert!((6..=19).contains(&advertised), "{advertised} advertisements in an hour");
    assert_eq!(after.frames_out - before.frames_out, advertised, "an idle flow needs no timer");
}

impl World {
    fn established_soon(&mut self) {
        self.answer = Answer::Connected;
        self.established();
        self.run_for(Duration::from_secs(60));
    }
}

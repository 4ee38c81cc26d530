//! Connections to the VM.

use std::time::Duration;

use gateway::{Config, Event, Failure, config::GATEWAY_MAC};
use smoltcp::{
    socket::tcp,
    wire::{ArpOperation, ArpPacket, ArpRepr, EthernetFrame, Icmpv4Packet, IpProtocol, TcpControl, TcpRepr},
};

use crate::{
    raw::{self, Bare, is_at_rest, segment, tcp_of},
    world::{GATEWAY, Link, REMOTE, VM, VM_MAC, World, pattern},
};

#[test]
fn the_vm_accepts_and_bytes_go_both_ways() {
    let mut world = World::new();
    let handle = world.listen(80);
    let flow = world.call(80).unwrap();
    world.run_until(5, |world| world.far(flow).events.contains(&Event::Accepted(flow)));
    world.run_until(5, |world| world.socket(handle).state() == tcp::State::Established);
    let remote = world.socket(handle).remote_endpoint().unwrap();
    assert_eq!(remote.addr, GATEWAY.into());
    assert!(remote.port >= 49_152);
    world.socket(handle).send_slice(b"220 ready").unwrap();
    world.run_until(5, |world| world.far(flow).received == b"220 ready");
    let data = pattern(200_000);
    world.far(flow).to_send.extend(&data);
    world.far(flow).finish = true;
    let mut received = vec![];
    while received.len() < data.len() {
        world.run_for(Duration::from_millis(1));
        world.socket(handle).recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
    }
    assert!(received == data);
    world.run_until(5, |world| world.socket(handle).state() == tcp::State::CloseWait);
    world.socket(handle).close();
    world.run_until(60, |world| world.far(flow).has(Event::Closed, flow));
    assert!(world.far(flow).has(Event::Finished, flow), "a clean end");
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.gateway.flows(), 0);
}

#[test]
fn a_vm_that_does_not_listen_refuses_at_once() {
    let mut world = World::new();
    let flow = world.call(81).unwrap();
    world.run_until(1, |world| world.far(flow).has(Event::Closed, flow));
    assert_eq!(world.far(flow).events, [Event::Declined(flow, Failure::Refused), Event::Closed(flow)]);
    assert_eq!((world.gateway.counters().inbound_refused, world.gateway.flows()), (1, 0));
}

#[test]
fn a_vm_that_has_said_nothing_yet_is_asked_for_by_arp() {
    // It speaks IPv4 with a fixed address, and so never said a word.
    let mut world = World::new();
    world.interface.routes_mut().remove_default_ipv4_route();
    let handle = world.listen(22);
    let flow = world.call(22).unwrap();
    world.run_until(1, |world| world.socket(handle).state() == tcp::State::Established);
    assert!(world.far(flow).events.contains(&Event::Accepted(flow)));
    let asked = world.seen.iter().find(|frame| frame[12..14] == [8, 6]).unwrap();
    let ethernet = EthernetFrame::new_checked(&asked[..]).unwrap();
    assert!(ethernet.dst_addr().is_broadcast() && ethernet.src_addr() == GATEWAY_MAC);
    let ArpRepr::EthernetIpv4 { operation, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(ethernet.payload()).unwrap()).unwrap()
    else {
        panic!("no ARP")
    };
    assert_eq!((operation, source_protocol_addr, target_protocol_addr), (ArpOperation::Request, GATEWAY, VM));
}

#[test]
fn the_handshake_survives_a_bad_link() {
    let mut connected = 0;
    for seed in 0..40 {
        let mut world = World::new();
        world.link = Link { lost: 200, twice: 100, late: 200 };
        for _ in 0..seed {
            world.run_for(Duration::from_millis(1));
        }
        let handle = world.listen(80);
        let flow = world.call(80).unwrap();
        world.run_until(20, |world| {
            world.far(flow).events.iter().any(|e| matches!(e, Event::Accepted(_) | Event::Closed(_)))
        });
        if world.far(flow).events.contains(&Event::Accepted(flow)) {
            connected += 1;
            world.run_until(300, |world| world.socket(handle).state() == tcp::State::Established);
        }
    }
    assert!(connected > 30, "only {connected} of 40");
}

#[test]
fn a_silent_vm_times_out_after_three_syns() {
    let mut bare = Bare::new(Config::default());
    // Where it is, it has told.
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, 1, None)));
    let flow = bare.gateway.open(bare.now, 80).unwrap();
    let first = bare.frames();
    let syn = tcp_of(&first[0]);
    assert_eq!((syn.control, syn.dst_port, syn.ack_number), (TcpControl::Syn, 80, None));
    let (mut syns, mut events) = (vec![], vec![]);
    for _ in 0..80 {
        let at = bare.gateway.poll_timeout().unwrap();
        bare.now = at;
        bare.gateway.handle_timeout(at);
        syns.extend(bare.frames().into_iter().filter(|frame| frame[12..14] == [8, 0]));
        events.extend(bare.events());
        if !events.is_empty() {
            break;
        }
    }
    assert_eq!(events, [Event::Declined(flow, Failure::TimedOut), Event::Closed(flow)]);
    assert_eq!(syns.len(), 2);
    assert!(syns.iter().all(|frame| tcp_of(frame).seq_number == syn.seq_number));
    let counters = bare.gateway.counters();
    assert_eq!((counters.inbound_timed_out, counters.arp_requests), (1, 2));
    assert_eq!(bare.gateway.flows(), 0);
    assert!(is_at_rest(&mut bare.gateway));
    // Late, it is told that there is nothing any more.
    let late =
        TcpRepr { src_port: 80, dst_port: syn.src_port, ..segment(TcpControl::Syn, 80, 9, Some(syn.seq_number + 1)) };
    let frames = bare.exchange(&raw::tcp(GATEWAY, &late));
    assert_eq!(tcp_of(frames.last().unwrap()).control, TcpControl::Rst);
}

/// A gateway that knows where the VM is and has just sent a SYN to its port 80.
fn calling() -> (Bare, gateway::FlowId, TcpRepr<'static>) {
    let mut bare = Bare::new(Config::default());
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, 1, None)));
    let flow = bare.gateway.open(bare.now, 80).unwrap();
    let frames = bare.frames();
    let syn = tcp_of(&frames[0]);
    assert_eq!(EthernetFrame::new_checked(&frames[0][..]).unwrap().dst_addr(), VM_MAC);
    let answer = TcpRepr { dst_port: syn.src_port, ..segment(TcpControl::Syn, 80, 7000, Some(syn.seq_number + 1)) };
    (bare, flow, answer)
}

#[test]
fn only_what_answers_the_syn_counts() {
    let (mut bare, flow, answer) = calling();
    let ack = answer.ack_number.unwrap();
    // An old connection's acknowledgement gets an RST, an RST for something else nothing, and neither ends the call.
    let old = TcpRepr { control: TcpControl::None, ack_number: Some(ack + 1000), ..answer };
    let frames = bare.exchange(&raw::tcp(GATEWAY, &old));
    assert_eq!((tcp_of(&frames[0]).control, tcp_of(&frames[0]).seq_number), (TcpControl::Rst, ack + 1000));
    for (control, ack_number) in [
        (TcpControl::Rst, None),
        (TcpControl::Rst, Some(ack + 1)),
        (TcpControl::Syn, None),
        (TcpControl::None, Some(ack)),
        (TcpControl::Fin, Some(ack)),
    ] {
        let frames = bare.exchange(&raw::tcp(GATEWAY, &TcpRepr { control, ack_number, ..answer }));
        assert!(frames.is_empty() || tcp_of(&frames[0]).control == TcpControl::Rst, "{control:?} {ack_number:?}");
        assert!(bare.events().is_empty(), "{control:?} {ack_number:?}");
    }
    let frames = bare.exchange(&raw::tcp(GATEWAY, &answer));
    assert_eq!((tcp_of(&frames[0]).control, tcp_of(&frames[0]).ack_number.unwrap().0), (TcpControl::None, 7001));
    assert_eq!(bare.events(), [Event::Accepted(flow)]);
    // The SYN-ACK again is acknowledged again.
    let frames = bare.exchange(&raw::tcp(GATEWAY, &answer));
    assert_eq!(tcp_of(&frames[0]).ack_number.unwrap().0, 7001);
    // The window is scaled from the first segment on.
    assert_eq!(bare.send(flow, b"hello"), 5);
    assert_eq!(tcp_of(&bare.frames()[0]).payload, b"hello");
}

#[test]
fn a_refusal_a_firewall_and_a_pump_that_gives_up_end_it() {
    let (mut bare, flow, answer) = calling();
    let rst = TcpRepr { control: TcpControl::Rst, seq_number: smoltcp::wire::TcpSeqNumber(0), ..answer };
    assert!(bare.exchange(&raw::tcp(GATEWAY, &rst)).is_empty());
    assert_eq!(bare.events(), [Event::Declined(flow, Failure::Refused), Event::Closed(flow)]);

    let (mut bare, flow, answer) = calling();
    bare.gateway.reset(bare.now, flow);
    assert_eq!(bare.events(), [Event::Closed(flow)]);
    let frames = bare.exchange(&raw::tcp(GATEWAY, &answer));
    assert_eq!(tcp_of(&frames[0]).control, TcpControl::Rst);
    assert_eq!(bare.gateway.flows(), 0);

    let (mut bare, flow, _) = calling();
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 2000, 1, None)));
    let syn = bare.gateway.open(bare.now, 80).map(|_| bare.frames()).unwrap();
    // Port unreachable about the second call's SYN: the first is not meant.
    let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
    error.extend(&syn.last().unwrap()[14..14 + 28]);
    Icmpv4Packet::new_unchecked(&mut error[..]).fill_checksum();
    bare.exchange(&raw::ip(VM, GATEWAY, IpProtocol::Icmp, &error));
    let events = bare.events();
    assert!(
        matches!(events[1..], [Event::Declined(other, Failure::Refused), Event::Closed(_)] if other != flow),
        "{events:?}"
    );
}

#[test]
fn calls_are_bounded_and_leave_the_vm_room_for_its_own() {
    let mut bare = Bare::new(Config { calling_max: 3, inbound_max: 5, flows_max: 8, ..Config::default() });
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, 1, None)));
    let mut ports = std::collections::BTreeSet::new();
    let mut open = vec![];
    for _ in 0..5 {
        open.push(bare.gateway.open(bare.now, 80).unwrap());
        let syn = bare.frames();
        let syn = tcp_of(&syn[0]);
        assert!(ports.insert(syn.src_port), "a port was used twice");
        let answer = TcpRepr { dst_port: syn.src_port, ..segment(TcpControl::Syn, 80, 1, Some(syn.seq_number + 1)) };
        bare.exchange(&raw::tcp(GATEWAY, &answer));
    }
    assert_eq!(bare.gateway.open(bare.now, 80), None, "five are open");
    bare.events();
    bare.gateway.reset(bare.now, open[0]);
    let calls: Vec<_> = std::iter::from_fn(|| bare.gateway.open(bare.now, 80)).collect();
    assert_eq!(calls.len(), 1, "one of five ended");
    for flow in open.into_iter().chain(calls) {
        bare.gateway.reset(bare.now, flow);
    }
    let calls: Vec<_> = std::iter::from_fn(|| bare.gateway.open(bare.now, 80)).collect();
    assert_eq!(calls.len(), 3, "three wait for an answer");
    bare.frames();
    bare.events();
    for port in 0..8 {
        bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 3000 + port, 1, None)));
    }
    assert_eq!(bare.events().len(), 5, "the VM's own, as far as there is room: calls are not evicted");
    assert_eq!(bare.gateway.counters().inbound_limited, 3);
}

#[test]
fn a_call_never_evicts() {
    let mut bare = Bare::new(Config { flows_max: 2, ..Config::default() });
    let (first, _) = bare.established(1000);
    bare.established(1001);
    assert_eq!(bare.gateway.open(bare.now, 80), None);
    assert_eq!(bare.send(first, b"x"), 1);
}

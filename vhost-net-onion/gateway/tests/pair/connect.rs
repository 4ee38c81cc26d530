//! A connect that succeeds in the VM has succeeded at the far end; one that fails says how.

use std::{net::Ipv4Addr, time::Duration};

use gateway::{Config, Event, Failure, Host};
use smoltcp::{
    socket::tcp,
    wire::{TcpControl, TcpRepr, TcpSeqNumber},
};

use crate::{
    raw::{self, Bare, icmp_of, segment, tcp_of},
    world::{Answer, GATEWAY, REMOTE, World},
};

#[test]
fn accepted_only_after_the_far_end() {
    let mut world = World::new();
    world.answer = Answer::Later;
    let handle = world.connect(REMOTE, 80);
    world.run_for(Duration::from_secs(10));
    assert_eq!(world.socket(handle).state(), tcp::State::SynSent);
    assert_eq!(world.flows.len(), 1, "the SYNs that came again are no flows of their own");
    let (flow, far) = world.flows.first_key_value().unwrap();
    let (flow, target) = (*flow, far.target.clone().unwrap());
    assert_eq!((target.host, target.port), (Host::Address(REMOTE.into()), 80));

    world.gateway.connected(world.now, flow);
    let before = world.now;
    world.run_until(1, |world| world.socket(handle).state() == tcp::State::Established);
    assert!(world.now - before < Duration::from_millis(10), "at once, not with the next SYN");
}

#[test]
fn refused_is_refused() {
    let mut world = World::new();
    world.answer = Answer::Fail(Failure::Refused);
    let handle = world.connect(REMOTE, 80);
    world.run_until(1, |world| world.socket(handle).state() == tcp::State::Closed);
    let (flow, far) = world.flows.first_key_value().unwrap();
    assert!(far.has(Event::Closed, *flow));
    assert_eq!((world.gateway.flows(), world.gateway.counters().flows_failed), (0, 1));
}

#[test]
fn unreachable_is_told_by_icmp_about_that_very_syn() {
    let mut bare = Bare::new(Config::default());
    let syn = segment(TcpControl::Syn, 1234, 99, None);
    bare.exchange(&raw::tcp(REMOTE, &syn));
    let Some(Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
    bare.gateway.failed(bare.now, flow, Failure::Unreachable);
    let frames = bare.frames();
    let (kind, quoted) = icmp_of(&frames[0]);
    assert_eq!((frames.len(), kind), (1, (3, 1)));
    // What a kernel finds its socket by: addresses, ports, sequence number.
    assert_eq!(quoted[12..20], [10, 0, 2, 15, 198, 51, 100, 7]);
    assert_eq!(quoted[20..28], [4, 210, 0, 80, 0, 0, 0, 99]);
    assert_eq!(bare.events(), [Event::Closed(flow)]);
    bare.exchange(&raw::tcp(REMOTE, &syn));
    assert!(matches!(bare.events()[..], [Event::Connect { .. }]), "a later try is a new flow");
}

#[test]
fn silence_is_silence_and_may_be_tried_again_later() {
    let mut world = World::new();
    world.answer = Answer::Fail(Failure::TimedOut);
    let handle = world.connect(REMOTE, 80);
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.socket(handle).state(), tcp::State::SynSent);
    assert_eq!(world.flows.len(), 1, "asked once");
    let (flow, far) = world.flows.first_key_value().unwrap();
    assert!(far.has(Event::Closed, *flow));
    world.answer = Answer::Connected;
    world.run_until(60, |world| world.socket(handle).state() == tcp::State::Established);
    assert_eq!(world.flows.len(), 2);
}

#[test]
fn the_gateway_itself_and_nobody() {
    let mut bare = Bare::new(Config::default());
    for port in [54u16, 81] {
        let syn = TcpRepr { dst_port: port, ..segment(TcpControl::Syn, 1000, 5, None) };
        let frames = bare.exchange(&raw::tcp(GATEWAY, &syn));
        let rst = tcp_of(&frames[0]);
        assert_eq!((rst.control, rst.ack_number), (TcpControl::Rst, Some(TcpSeqNumber(6))));
    }
    let syn = segment(TcpControl::Syn, 1000, 5, None);
    for nobody in [Ipv4Addr::new(10, 0, 2, 9), Ipv4Addr::new(169, 254, 169, 254)] {
        let frames = bare.exchange(&raw::tcp(nobody, &syn));
        assert_eq!(icmp_of(&frames[0]).0, (3, 1), "{nobody}");
    }
    for silent in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "10.0.2.255"] {
        assert!(bare.exchange(&raw::tcp(silent.parse().unwrap(), &syn)).is_empty(), "{silent}");
    }
    assert!(bare.events().is_empty());
}

#[test]
fn segments_of_no_flow_get_the_rst_of_rfc_9293() {
    let mut bare = Bare::new(Config::default());
    let data = TcpRepr { payload: b"GET /", ..segment(TcpControl::Psh, 1000, 500, Some(TcpSeqNumber(900))) };
    let frames = bare.exchange(&raw::tcp(REMOTE, &data));
    let rst = tcp_of(&frames[0]);
    assert_eq!((rst.control, rst.seq_number, rst.ack_number), (TcpControl::Rst, TcpSeqNumber(900), None));
    assert_eq!((rst.src_port, rst.dst_port), (80, 1000));

    let without_ack = TcpRepr { ack_number: None, ..data };
    let frames = bare.exchange(&raw::tcp(REMOTE, &without_ack));
    let rst = tcp_of(&frames[0]);
    assert_eq!((rst.seq_number, rst.ack_number), (TcpSeqNumber(0), Some(TcpSeqNumber(505))));

    let frames = bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 1000, 1, Some(TcpSeqNumber(2)))));
    assert_eq!(tcp_of(&frames[0]).control, TcpControl::Rst, "SYN-ACK");
    assert!(bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, 1, None))).is_empty(), "never to an RST");
    assert!(bare.events().is_empty());
}

#[test]
fn connections_from_before_a_restart_end_at_once() {
    let mut world = World::new();
    let (handle, _) = world.established();
    world.gateway = gateway::Gateway::new(Config::default(), [8; 32], world.now);
    world.flows.clear();
    world.socket(handle).send_slice(b"still there?").unwrap();
    world.run_until(1, |world| world.socket(handle).state() == tcp::State::Closed);
}

#[test]
fn a_vm_that_gives_up_cancels() {
    let mut bare = Bare::new(Config::default());
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 1000, 1, None)));
    let Some(Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
    assert!(bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, 2, None))).is_empty());
    assert_eq!(bare.events(), [Event::Closed(flow)]);
    // The pump may not have noticed yet; nothing comes of it.
    bare.gateway.connected(bare.now, flow);
    bare.gateway.failed(bare.now, flow, Failure::Refused);
    assert!(bare.frames().is_empty() && bare.events().is_empty());

    // A flow that the pump never heard of leaves nothing behind.
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 1001, 1, None)));
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1001, 2, None)));
    assert!(bare.events().is_empty());
}

#[test]
fn a_port_used_again_while_the_far_end_is_asked() {
    let mut bare = Bare::new(Config::default());
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 1000, 1, None)));
    let Some(Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 1000, 70_000, None)));
    assert!(bare.events().is_empty());
    bare.gateway.connected(bare.now, flow);
    let frames = bare.frames();
    assert_eq!(tcp_of(&frames[0]).ack_number, Some(TcpSeqNumber(70_001)));
}

#[test]
fn a_vm_that_is_gone_when_the_far_end_accepts() {
    let mut bare = Bare::new(Config::default());
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 1000, 1, None)));
    let Some(Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
    bare.gateway.connected(bare.now, flow);
    let frames = bare.frames();
    let ack = tcp_of(&frames[0]).seq_number + 1;
    // It has forgotten the socket: RST to the SYN-ACK.
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, 2, Some(ack))));
    assert_eq!(bare.events(), [Event::Closed(flow)]);
    assert_eq!(bare.gateway.flows(), 0);

    // Or it says nothing at all, for ever.
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 1000, 1, None)));
    let Some(Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
    bare.gateway.connected(bare.now, flow);
    bare.pass(Duration::from_secs(190));
    assert_eq!(bare.events(), [Event::Closed(flow)]);
    assert_eq!(bare.gateway.flows(), 0);
    assert!(raw::is_at_rest(&mut bare.gateway));
}

#[test]
fn the_far_end_may_speak_first_and_at_once() {
    let mut world = World::new();
    world.answer = Answer::Later;
    let handle = world.connect(REMOTE, 22);
    world.run_until(1, |world| !world.flows.is_empty());
    let flow = *world.flows.first_key_value().unwrap().0;
    world.gateway.connected(world.now, flow);
    world.far(flow).to_send.extend(b"SSH-2.0-hello\r\n");
    world.run_until(1, |world| world.socket(handle).recv_queue() == 15);
}

#[test]
fn the_handshake_survives_a_bad_link() {
    for seed in 0..20 {
        let mut world = World::new();
        world.link = crate::world::Link { lost: 300, twice: 100, late: 200 };
        for _ in 0..seed {
            world.run_for(Duration::from_millis(1));
        }
        let handle = world.connect(REMOTE, 80);
        world.run_until(200, |world| world.socket(handle).state() == tcp::State::Established);
    }
}

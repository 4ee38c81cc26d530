//! SYNs that are answered before the far end was asked.

use std::sync::Arc;

use gateway::{Config, Event, Failure, FlowId, Policy, Target};
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use crate::{
    raw::{self, Bare, segment, tcp_of},
    world::{Answer, REMOTE, World},
};

#[derive(Debug)]
struct Optimist;

impl Policy for Optimist {
    fn is_optimistic(&self, target: &Target) -> bool {
        target.port != TRUTHFUL
    }
}

/// The port of which nothing is said before it is true.
const TRUTHFUL: u16 = 444;

fn config() -> Config {
    Config { policy: Arc::new(Optimist), ..Config::default() }
}

/// A connection that the VM believes in, with data of it, before the pump has heard of it.
fn early(bare: &mut Bare, port: u16) -> TcpSeqNumber {
    let frames = bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, port, 1000, None)));
    let answer = tcp_of(&frames[0]);
    assert_eq!((answer.control, answer.ack_number), (TcpControl::Syn, Some(TcpSeqNumber(1001))));
    let next = answer.seq_number + 1;
    let data = TcpRepr { payload: b"GET /", ..segment(TcpControl::Psh, port, 1001, Some(next)) };
    assert_eq!(tcp_of(&bare.exchange(&raw::tcp(REMOTE, &data))[0]).ack_number, Some(TcpSeqNumber(1006)));
    next
}

fn connect_event(bare: &mut Bare) -> FlowId {
    let events = bare.events();
    let [Event::Connect { flow, .. }, Event::Readable(readable)] = events[..] else { panic!("{events:?}") };
    assert_eq!(flow, readable);
    flow
}

#[test]
fn early_data_is_there_before_the_far_end() {
    let mut bare = Bare::new(config());
    early(&mut bare, 1000);
    let flow = connect_event(&mut bare);
    assert_eq!(bare.gateway.recv(bare.now, flow).as_deref(), Some(&b"GET /"[..]));
    assert_eq!(bare.gateway.counters().flows_connected, 0);
    bare.gateway.connected(bare.now, flow);
    bare.gateway.connected(bare.now, flow);
    assert_eq!(bare.gateway.counters().flows_connected, 1);
    bare.send(flow, b"200 OK");
    assert_eq!(tcp_of(&bare.frames()[0]).payload, b"200 OK");
}

#[test]
fn what_the_far_end_does_not_take_becomes_a_reset() {
    for why in [Failure::Refused, Failure::Unreachable, Failure::TimedOut] {
        let mut bare = Bare::new(config());
        let next = early(&mut bare, 1000);
        let flow = connect_event(&mut bare);
        bare.gateway.failed(bare.now, flow, why);
        let frames = bare.frames();
        let rst = tcp_of(&frames[0]);
        assert_eq!((rst.control, rst.seq_number, frames.len()), (TcpControl::Rst, next, 1));
        assert_eq!(bare.events(), [Event::Closed(flow)]);
        assert_eq!((bare.gateway.flows(), bare.gateway.counters().flows_failed), (0, 1));
    }
}

#[test]
fn early_data_and_half_open_flows_are_bounded() {
    let mut bare = Bare::new(Config { half_open_max: 10, flows_max: 20, ..config() });
    let next = early(&mut bare, 1000);
    let payload = [7; 1460];
    for n in 0..100 {
        let seq = 1006 + n * 1460;
        let data = TcpRepr { payload: &payload, ..segment(TcpControl::None, 1000, seq, Some(next)) };
        bare.exchange(&raw::tcp(REMOTE, &data));
    }
    let flow = connect_event(&mut bare);
    let mut bytes = 0;
    while let Some(data) = bare.gateway.recv(bare.now, flow) {
        bytes += data.len();
    }
    assert!(bytes <= 17 << 10, "{bytes} bytes");
    for port in 2000..3000 {
        bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, port, 1, None)));
    }
    assert_eq!((bare.gateway.flows(), bare.gateway.counters().ignored_half_open), (10, 991));
    bare.gateway.connected(bare.now, flow);
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 4000, 1, None)));
    assert_eq!(bare.gateway.flows(), 11);
}

#[test]
fn a_vm_that_gives_up_before_the_far_end_answers() {
    let mut bare = Bare::new(config());
    early(&mut bare, 1000);
    let flow = connect_event(&mut bare);
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, 1006, None)));
    assert_eq!(bare.events(), [Event::Closed(flow)]);
    bare.gateway.connected(bare.now, flow);
    assert!(bare.frames().is_empty() && bare.gateway.flows() == 0);
}

#[test]
fn a_whole_stack_sees_nothing_unusual() {
    let mut world = World::with(config());
    world.answer = Answer::Later;
    let (handle, flow) = world.established();
    world.socket(handle).send_slice(b"early").unwrap();
    world.run_until(1, |world| world.far(flow).received == b"early");
    world.gateway.connected(world.now, flow);
    world.far(flow).to_send.extend(b"late");
    world.run_until(1, |world| world.socket(handle).recv_queue() == 4);
}

#[test]
fn a_flow_of_which_the_policy_says_otherwise_waits_for_the_far_end() {
    let mut bare = Bare::new(config());
    let syn = TcpRepr { dst_port: TRUTHFUL, ..segment(TcpControl::Syn, 1000, 1000, None) };
    assert!(bare.exchange(&raw::tcp(REMOTE, &syn)).is_empty());
    let events = bare.events();
    let [Event::Connect { flow, .. }] = events[..] else { panic!("{events:?}") };
    bare.gateway.connected(bare.now, flow);
    assert_eq!(tcp_of(&bare.frames()[0]).control, TcpControl::Syn);
}

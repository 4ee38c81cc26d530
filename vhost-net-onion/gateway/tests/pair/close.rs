//! How flows end: cleanly from either side, half at a time, broken, forgotten.

use std::time::Duration;

use gateway::{Config, Event, FlowId};
use smoltcp::{
    iface::SocketHandle,
    socket::tcp::State,
    wire::{TcpControl, TcpRepr, TcpSeqNumber},
};

use crate::{
    raw::{self, Bare, segment, tcp_of},
    world::{REMOTE, World, pattern},
};

fn state(world: &mut World, handle: SocketHandle) -> State {
    world.socket(handle).state()
}

fn is_closed(world: &mut World, flow: FlowId) -> bool {
    world.far(flow).has(Event::Closed, flow)
}

#[test]
fn the_vm_finishes_first_and_the_far_end_goes_on() {
    let mut world = World::new();
    let (handle, flow) = world.established();
    world.socket(handle).send_slice(b"request").unwrap();
    world.socket(handle).close();
    world.run_until(1, |world| world.far(flow).has(Event::Finished, flow));
    assert_eq!(world.far(flow).received, b"request");
    let answer = pattern(200_000);
    world.far(flow).to_send.extend(&answer);
    world.far(flow).finish = true;
    let mut received = vec![];
    while received.len() < answer.len() {
        assert!(world.elapsed() < Duration::from_secs(10));
        let socket = world.socket(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
        }
        world.run_for(Duration::from_micros(500));
    }
    assert!(received == answer);
    world.run_until(1, |world| is_closed(world, flow));
    assert_eq!((world.gateway.flows(), state(&mut world, handle)), (0, State::TimeWait));
}

#[test]
fn the_far_end_finishes_first_and_the_vm_goes_on() {
    let mut world = World::new();
    let (handle, flow) = world.established();
    world.far(flow).to_send.extend(b"greeting");
    world.far(flow).finish = true;
    world.run_until(1, |world| state(world, handle) == State::CloseWait);
    assert_eq!(world.socket(handle).recv_queue(), 8);
    let upload = pattern(200_000);
    let mut sent = 0;
    while sent < upload.len() {
        assert!(world.elapsed() < Duration::from_secs(10));
        sent += world.socket(handle).send_slice(&upload[sent..]).unwrap();
        world.run_for(Duration::from_micros(500));
    }
    world.socket(handle).close();
    world.run_until(1, |world| is_closed(world, flow));
    assert!(world.far(flow).received == upload);
    assert!(world.far(flow).has(Event::Finished, flow));
    world.run_until(1, |world| state(world, handle) == State::Closed);
    // What is left of it is small, and goes by itself.
    assert_eq!(world.gateway.flows(), 1);
    world.run_for(Duration::from_secs(11));
    assert_eq!(world.gateway.flows(), 0);
    assert!(raw::is_at_rest(&mut world.gateway));
}

#[test]
fn both_finish_at_once() {
    let mut world = World::new();
    let (handle, flow) = world.established();
    world.socket(handle).close();
    world.far(flow).finish = true;
    world.run_until(2, |world| is_closed(world, flow));
    assert!(world.far(flow).has(Event::Finished, flow));
    world.run_for(Duration::from_secs(20));
    assert_eq!((state(&mut world, handle), world.gateway.flows()), (State::Closed, 0));
}

#[test]
fn finishing_before_the_handshake_is_done() {
    let mut world = World::new();
    world.answer = crate::world::Answer::Later;
    let handle = world.connect(REMOTE, 80);
    world.run_until(1, |world| !world.flows.is_empty());
    let flow = *world.flows.first_key_value().unwrap().0;
    world.gateway.connected(world.now, flow);
    world.gateway.finish(world.now, flow);
    world.run_until(2, |world| state(world, handle) == State::CloseWait);
    world.socket(handle).close();
    world.run_until(2, |world| is_closed(world, flow));
}

#[test]
fn data_is_not_lost_when_both_are_done_before_it_is_taken() {
    // By LAST-ACK and by TIME-WAIT, and taken only long after.
    for far_end_first in [false, true] {
        let mut world = World::new();
        let (handle, flow) = world.established();
        world.far(flow).deaf = true;
        world.far(flow).finish = far_end_first;
        world.pump();
        world.run_for(Duration::from_millis(10));
        world.socket(handle).send_slice(b"last words").unwrap();
        world.socket(handle).close();
        world.run_for(Duration::from_millis(10));
        world.far(flow).finish = true;
        world.pump();
        world.run_for(Duration::from_secs(100));
        assert!(!is_closed(&mut world, flow) && !world.far(flow).has(Event::Finished, flow));
        world.far(flow).deaf = false;
        world.pump();
        world.run_until(1, |world| is_closed(world, flow));
        assert_eq!(world.far(flow).received, b"last words");
        let events = &world.far(flow).events;
        assert_eq!(events[events.len() - 2..], [Event::Finished(flow), Event::Closed(flow)]);
    }
}

#[test]
fn a_lost_last_acknowledgement_is_said_again() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    bare.gateway.finish(bare.now, flow);
    let frames = bare.frames();
    assert_eq!(tcp_of(&frames[0]).control, TcpControl::Fin);
    let fin = segment(TcpControl::Fin, 1000, 1001, Some(next + 1));
    let frames = bare.exchange(&raw::tcp(REMOTE, &fin));
    let last = tcp_of(&frames[0]);
    assert_eq!((last.seq_number, last.ack_number), (next + 1, Some(TcpSeqNumber(1002))));
    assert_eq!(bare.events(), [Event::Finished(flow), Event::Closed(flow)]);
    for _ in 0..3 {
        let frames = bare.exchange(&raw::tcp(REMOTE, &fin));
        assert_eq!((frames.len(), tcp_of(&frames[0]).ack_number), (1, Some(TcpSeqNumber(1002))));
    }
    let pure_ack = segment(TcpControl::None, 1000, 1002, Some(next + 1));
    assert!(bare.exchange(&raw::tcp(REMOTE, &pure_ack)).is_empty(), "no war of acknowledgements");
    // A new connection of the same numbers need not wait.
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Syn, 1000, 5000, None)));
    assert!(matches!(bare.events()[..], [Event::Connect { .. }]));
    assert_eq!(bare.gateway.flows(), 1);
}

#[test]
fn resets_travel_both_ways() {
    let mut world = World::new();
    let (handle, flow) = world.established();
    world.socket(handle).abort();
    world.run_until(1, |world| is_closed(world, flow));
    assert!(!world.far(flow).has(Event::Finished, flow));

    let (handle, flow) = world.established();
    world.gateway.reset(world.now, flow);
    world.run_until(1, |world| state(world, handle) == State::Closed);
    assert!(is_closed(&mut world, flow));
    assert_eq!(world.gateway.flows(), 0);
}

#[test]
fn a_reset_while_the_vm_only_reads() {
    let mut world = World::new();
    let (handle, flow) = world.established();
    world.socket(handle).close();
    world.run_until(1, |world| world.far(flow).has(Event::Finished, flow));
    world.gateway.reset(world.now, flow);
    world.run_until(1, |world| state(world, handle) == State::Closed);
}

#[test]
fn a_reset_before_the_stream_is_open() {
    let mut world = World::new();
    world.answer = crate::world::Answer::Later;
    let handle = world.connect(REMOTE, 80);
    world.run_until(1, |world| !world.flows.is_empty());
    let flow = *world.flows.first_key_value().unwrap().0;
    world.gateway.reset(world.now, flow);
    world.run_until(1, |world| state(world, handle) == State::Closed);
}

#[test]
fn half_closed_and_idle_ends_some_day_and_idle_alone_does_not() {
    let mut world = World::new();
    let (idle, flow_idle) = world.established();
    let (half, flow_half) = world.established();
    world.socket(half).close();
    world.run_for(Duration::from_secs(290));
    assert!(!is_closed(&mut world, flow_half));
    world.run_for(Duration::from_secs(20));
    assert!(is_closed(&mut world, flow_half));
    assert_eq!(world.gateway.counters().flows_expired, 1);
    world.run_for(Duration::from_secs(24 * 3600));
    assert!(!is_closed(&mut world, flow_idle));
    // Data after a long silence is not taken for data that was not answered for so long.
    world.far(flow_idle).to_send.extend(b"good morning");
    world.pump();
    world.run_until(1, |world| world.socket(idle).recv_queue() == 12);
    world.run_for(Duration::from_secs(1));
    assert!(!is_closed(&mut world, flow_idle));
}

#[test]
fn a_vm_that_is_gone_is_noticed_when_there_is_data_for_it() {
    let mut bare = Bare::new(Config::default());
    let (flow, _) = bare.established(1000);
    assert_eq!(bare.send(flow, b"anybody?"), 8);
    bare.pass(Duration::from_secs(290));
    assert!(bare.events().is_empty());
    bare.pass(Duration::from_secs(20));
    assert_eq!(bare.events(), [Event::Closed(flow)]);
    assert_eq!(bare.gateway.flows(), 0);
    assert!(raw::is_at_rest(&mut bare.gateway));
}

#[test]
fn a_vm_that_boots_anew_and_uses_a_port_again() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    // A SYN into the old connection: challenged (RFC 5961, section 4), and the VM's RST ends the old one.
    let syn = segment(TcpControl::Syn, 1000, 77_000, None);
    bare.now += Duration::from_secs(2);
    let frames = bare.exchange(&raw::tcp(REMOTE, &TcpRepr { ack_number: Some(next), ..syn }));
    let rst_seq = tcp_of(&frames[0]).ack_number.unwrap();
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, rst_seq.0, Some(next))));
    assert_eq!(bare.events(), [Event::Closed(flow)]);
    bare.exchange(&raw::tcp(REMOTE, &syn));
    assert!(matches!(bare.events()[..], [Event::Connect { .. }]));
}

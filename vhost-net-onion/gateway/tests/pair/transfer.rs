//! Bytes both ways, over good and bad links, and back-pressure.

use std::time::Duration;

use gateway::{Config, Counters};
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};
use wire::link::Abilities;

use crate::{
    driver::{ALL, Driver},
    raw::{self, Bare, segment, tcp_of},
    world::{Link, REMOTE, World, pattern},
};

/// Sends `length` bytes both ways at once and checks them. Returns the simulated time.
fn both_ways(world: &mut World, length: usize, seconds: u64) -> Duration {
    let (handle, flow) = world.established();
    let began = world.now;
    let (up, down) = (pattern(length), pattern(length + 1));
    world.far(flow).to_send.extend(&down);
    world.far(flow).finish = true;
    let (mut sent, mut received) = (0, vec![]);
    let end = world.now + Duration::from_secs(seconds);
    while received.len() < down.len() || world.far(flow).received.len() < up.len() {
        assert!(world.now < end, "{} up, {} down", world.far(flow).received.len(), received.len());
        let socket = world.socket(handle);
        if sent < up.len() && socket.can_send() {
            sent += socket.send_slice(&up[sent..]).unwrap();
        }
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
        }
        world.run_for(Duration::from_micros(200));
    }
    assert!(world.far(flow).received == up);
    assert!(received == down);
    world.now - began
}

/// Every MTU with every driver.
fn drivers() -> impl Iterator<Item = Driver> {
    let checksum = Abilities { checksum: true, ..Abilities::default() };
    [1500, 65_520].into_iter().flat_map(move |mtu| {
        [(Abilities::default(), false), (checksum, false), (ALL, false), (ALL, true), (Abilities::default(), true)]
            .map(|(abilities, bursts)| Driver { mtu, abilities, bursts })
    })
}

/// What tells of losses.
fn losses(counters: &Counters) -> [u64; 6] {
    let Counters { retransmits, timeouts, duplicates, out_of_order, dropped_unacceptable, window_probes, .. } =
        counters;
    [*retransmits, *timeouts, *duplicates, *out_of_order, *dropped_unacceptable, *window_probes]
}

#[test]
fn a_mebibyte_both_ways_loses_nothing_and_waits_for_nothing() {
    for driver in drivers() {
        let mut world = World::with_driver(Config::default(), driver);
        let time = both_ways(&mut world, 1 << 20, 60);
        assert!(time < Duration::from_millis(500), "{time:?}: something waited for a timer");
        assert_eq!(losses(world.gateway.counters()), [0; 6], "MTU {}, bursts {}", driver.mtu, driver.bursts);
        assert_eq!(world.gateway.counters().bytes_from_vm, 1 << 20);
    }
}

#[test]
fn over_a_link_that_loses_repeats_and_reorders() {
    for driver in drivers() {
        let mut world = World::with_driver(Config::default(), driver);
        world.link = Link { lost: 10, twice: 10, late: 20 };
        both_ways(&mut world, 1 << 20, 2000);
    }
}

#[test]
fn over_a_link_that_hardly_works() {
    let mut world = World::new();
    world.link = Link { lost: 150, twice: 100, late: 200 };
    both_ways(&mut world, 100_000, 20_000);
    assert!(world.gateway.counters().retransmits > 0 && world.gateway.counters().out_of_order > 0);
}

#[test]
fn a_loss_among_many_is_mended_without_a_timeout() {
    let mut world = World::new();
    world.link = Link { lost: 5, ..Link::default() };
    both_ways(&mut world, 4 << 20, 2000);
    let counters = world.gateway.counters();
    assert!(counters.fast_retransmits > counters.timeouts, "{counters:?}");
}

#[test]
fn abilities_may_change_at_any_time() {
    let mut world = World::with_driver(Config::default(), Driver { abilities: ALL, ..Driver::default() });
    let (handle, flow) = world.established();
    let down = pattern(600_000);
    world.far(flow).to_send.extend(&down);
    let mut received = vec![];
    let mut round = 0;
    while received.len() < down.len() {
        assert!(world.elapsed() < Duration::from_secs(100));
        // What is on its way was made for the driver before; it still takes all of it.
        round += 1;
        let some = Abilities { checksum: round % 2 == 0, tso4: round % 4 == 0, tso6: false };
        world.gateway.set_abilities(some);
        let socket = world.socket(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
        }
        world.run_for(Duration::from_micros(100));
    }
    assert!(received == down);
    assert_eq!(losses(world.gateway.counters()), [0; 6]);
}

#[test]
fn a_driver_that_can_cut_gets_large_frames_with_the_right_size() {
    let mut bare = Bare::new(Config::default());
    let (flow, _) = bare.established(1000);
    bare.gateway.set_abilities(ALL);
    bare.send(flow, &pattern(60_000));
    let frame = bare.gateway.poll_frame().unwrap();
    assert_eq!((frame.offload.gso_type, frame.offload.gso_size, frame.offload.hdr_len), (1, 1460, 54));
    assert_eq!((frame.offload.flags, frame.offload.csum_start, frame.offload.csum_offset), (1, 34, 16));
    assert_eq!((frame.head.len(), frame.body.len()), (54, 60_000));
}

#[test]
fn what_the_pump_gives_in_one_piece_is_not_copied() {
    let mut bare = Bare::new(Config::default());
    let (flow, _) = bare.established(1000);
    bare.gateway.set_abilities(ALL);
    let data = bytes::Bytes::from(pattern(30_000));
    bare.gateway.send(bare.now, flow, &mut data.clone());
    assert_eq!(bare.gateway.poll_frame().unwrap().body.as_ptr(), data.as_ptr());
}

#[test]
fn the_window_never_shrinks_and_opens_when_the_pump_takes() {
    let mut bare = Bare::new(Config::default());
    let syn = TcpRepr { window_scale: Some(0), max_seg_size: Some(1460), ..segment(TcpControl::Syn, 1000, 1000, None) };
    bare.exchange(&raw::tcp(REMOTE, &syn));
    let Some(gateway::Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
    bare.gateway.connected(bare.now, flow);
    let frames = bare.frames();
    let answer = tcp_of(&frames[0]);
    let (next, scale) = (answer.seq_number + 1, answer.window_scale.unwrap());
    let (mut seq, mut edge, mut taken) = (TcpSeqNumber(1001), TcpSeqNumber(1001) + usize::from(answer.window_len), 0);
    bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::None, 1000, 1001, Some(next))));
    let payload = pattern(1460);
    for round in 0..2_000 {
        let count = payload.len().min(usize::try_from(edge.0 - seq.0).unwrap());
        let data = TcpRepr { payload: &payload[..count], ..segment(TcpControl::Psh, 1000, seq.0, Some(next)) };
        let mut frames = if count > 0 { bare.exchange(&raw::tcp(REMOTE, &data)) } else { vec![] };
        seq += count;
        if round % 100 >= 60 {
            taken += bare.gateway.recv(bare.now, flow).map_or(0, |bytes| bytes.len());
            frames.extend(bare.frames());
        }
        for frame in &frames {
            let ack = tcp_of(frame);
            assert_eq!(ack.ack_number, Some(seq), "all that fits is taken");
            let told = seq + (usize::from(ack.window_len) << scale);
            assert!(told >= edge, "from {edge} back to {told}");
            edge = told;
        }
    }
    let pending = seq.0 as usize - 1001 - taken;
    assert!(taken > 100_000 && pending <= 257 << 10, "{taken} taken, {pending} wait");
}

#[test]
fn a_closed_window_is_probed_ever_more_seldom_and_for_ever() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    let closed = TcpRepr { window_len: 0, ..segment(TcpControl::None, 1000, 1001, Some(next)) };
    bare.exchange(&raw::tcp(REMOTE, &closed));
    bare.send(flow, b"data that does not fit");
    assert!(bare.frames().is_empty());
    let (mut probes, mut gaps) = (0, vec![]);
    let began = bare.now;
    let mut last = bare.now;
    while bare.now - began < Duration::from_secs(3600) {
        let at = bare.gateway.poll_timeout().unwrap();
        bare.now = bare.now.max(at);
        bare.gateway.handle_timeout(bare.now);
        for frame in bare.frames().iter().filter(|frame| frame[12..14] == [8, 0]) {
            let probe = tcp_of(frame);
            assert_eq!((probe.seq_number, probe.payload), (next, &b"d"[..]));
            probes += 1;
            gaps.push(bare.now - last);
            last = bare.now;
            bare.exchange(&raw::tcp(REMOTE, &closed));
        }
    }
    assert!((60..80).contains(&probes), "{probes} probes in an hour");
    assert!(
        gaps.windows(2).all(|pair| pair[0] <= pair[1] + Duration::from_millis(2)) && gaps[0] < Duration::from_secs(2)
    );
    assert_eq!(bare.gateway.counters().window_probes, probes);
    assert_eq!((bare.gateway.flows(), bare.gateway.counters().retransmits), (1, 0), "while it answers, it goes on");
    // It opens: all goes out at once.
    let frames = bare.exchange(&raw::tcp(REMOTE, &segment(TcpControl::None, 1000, 1001, Some(next))));
    assert_eq!(tcp_of(&frames[0]).payload, b"data that does not fit");
}

#[test]
fn silly_windows_are_avoided_both_ways() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    let update = |window, ack| {
        raw::tcp(REMOTE, &TcpRepr { window_len: window, ..segment(TcpControl::None, 1000, 1001, Some(ack)) })
    };
    bare.exchange(&update(5000, next));
    bare.send(flow, &pattern(20_000));
    let sent: usize = bare.frames().iter().map(|frame| tcp_of(frame).payload.len()).sum();
    assert!((3 * 1460..=5000).contains(&sent));
    // Acknowledged, and little room after it: nothing is sent for it.
    assert!(bare.exchange(&update(100, next + sent)).is_empty());
    assert!(bare.exchange(&update(900, next + sent)).is_empty());
    assert_eq!(tcp_of(&bare.exchange(&update(1460, next + sent))[0]).payload.len(), 1460);
}

#[test]
fn an_acknowledgement_for_all_that_came_at_once() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    for n in 0..8 {
        let data = TcpRepr { payload: &[7; 1000], ..segment(TcpControl::None, 1000, 1001 + n * 1000, Some(next)) };
        bare.hand_over(&raw::tcp(REMOTE, &data));
    }
    bare.send(flow, b"answer");
    let frames = bare.frames();
    assert_eq!(frames.len(), 1);
    let answer = tcp_of(&frames[0]);
    assert_eq!((answer.ack_number, answer.payload), (Some(TcpSeqNumber(9001)), &b"answer"[..]));
}

#[test]
fn tiny_queues_only_slow_it_down() {
    let config = Config { frames_max: 2, recv_bytes_max: 4096, send_bytes_max: 4096, ..Config::default() };
    both_ways(&mut World::with(config), 200_000, 60);
}

#[test]
fn a_pump_that_does_not_take_closes_the_window_and_opens_it() {
    let mut world = World::new();
    let (handle, flow) = world.established();
    world.far(flow).deaf = true;
    let up = pattern(300_000);
    let mut sent = 0;
    for _ in 0..2000 {
        sent += world.socket(handle).send_slice(&up[sent..]).unwrap();
        world.run_for(Duration::from_millis(1));
    }
    // Our window, which does not grow when nothing is taken, and the VM's buffer.
    assert!((64 << 10..=(128 << 10) + 1500).contains(&sent), "{sent}");
    assert_eq!(world.far(flow).events.iter().filter(|e| matches!(e, gateway::Event::Readable(_))).count(), 1);

    world.run_for(Duration::from_secs(400));
    world.far(flow).deaf = false;
    let before = world.now;
    while world.far(flow).received.len() < up.len() {
        assert!(world.elapsed() < Duration::from_secs(500));
        sent += world.socket(handle).send_slice(&up[sent..]).unwrap();
        world.run_for(Duration::from_micros(200));
    }
    assert!(world.far(flow).received == up);
    assert!(world.now - before < Duration::from_secs(2), "the opened window was told at once");
}

#[test]
fn a_vm_that_does_not_take_makes_the_pump_wait() {
    let mut world = World::new();
    let (handle, flow) = world.established();
    let down = pattern(500_000);
    world.far(flow).to_send.extend(&down);
    world.run_for(Duration::from_secs(100));
    let taken = down.len() - world.far(flow).to_send.len();
    assert!((64 << 10..=(321 << 10)).contains(&taken), "{taken}: bounded by the two buffers");
    let mut received = vec![];
    while received.len() < down.len() {
        assert!(world.elapsed() < Duration::from_secs(500), "{}", received.len());
        let socket = world.socket(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
        }
        world.run_for(Duration::from_millis(1));
    }
    assert!(received == down);
}

#[test]
fn small_messages_do_not_wait_for_each_other() {
    let mut world = World::new();
    let (handle, flow) = world.established();
    let before = world.now;
    for n in 1..=50usize {
        world.socket(handle).send_slice(b"?").unwrap();
        world.run_until(1, |world| world.far(flow).received.len() == n);
        world.far(flow).to_send.push_back(b'!');
        world.pump();
        world.run_until(1, |world| world.socket(handle).recv_queue() == n);
    }
    let time = world.now - before;
    assert!(time < Duration::from_millis(50), "{time:?} for 50 round trips");
}

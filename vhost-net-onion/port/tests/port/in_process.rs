//! The port without a stream: the test drives it as the router's program does in embedded mode.

use std::{
    os::fd::AsFd,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::Relaxed},
};

use nix::sys::epoll;
use port::{DropReason, Port, Put, TxFrame};
use wire::link::{Abilities, FRAME_BYTES_MAX, Offload};

use crate::{
    front_end::*,
    port::Sockets,
    router::{number, numbered},
};

const PLAIN: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
const TSO: Offload = Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };
const ALL: Abilities = Abilities { checksum: true, tso4: true, tso6: true };

/// A task may move to another thread with its port.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Port>();
};

/// Serves the port while something else talks to it, until that is done.
fn serve_while<T: Send>(port: &mut Port, other: impl FnOnce() -> T + Send) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let result = other();
            done.store(true, Relaxed);
            result
        });
        while !done.load(Relaxed) {
            wait(port.as_fd(), 10);
            while port.turn().unwrap() {}
        }
        other.join().unwrap()
    })
}

/// A port whose front-end has handed over the rings of a VM.
pub fn started(features: u64) -> (Sockets, Vm, Port, FrontEnd) {
    let (sockets, vm) = (Sockets::new(), Vm::new());
    let mut port = sockets.in_process();
    let front_end = serve_while(&mut port, || {
        let mut front_end = FrontEnd::connect(&sockets.vhost_user);
        front_end.negotiate(&vm);
        front_end.start(&vm, features);
        front_end
    });
    (sockets, vm, port, front_end)
}

/// All frames that the VM has sent.
fn taken(port: &mut Port) -> Vec<(Offload, Vec<u8>)> {
    let mut frames = vec![];
    while port.take_tx(8, |offload, frame| frames.push((offload, frame.to_vec()))) {}
    frames
}

#[test]
fn frames_of_every_size_pass_both_ways() {
    let (_sockets, mut vm, mut port, _front_end) = started(FEATURES);
    for bytes in [54, 60, 1514, 1518, 1900] {
        let frame = numbered(bytes as u32, bytes);
        assert!(vm.send(TSO, &frame));
        assert!(taken(&mut port) == [(TSO, frame.clone())]);
        assert_eq!(vm.wait_completed(TX), (vm.offered(TX) - 1, 0));
        // In two parts, cut anywhere.
        for cut in [0, 14, 54] {
            vm.give_buffers(1, 2048);
            assert_eq!(port.put_rx(TSO, &frame[..cut], &frame[cut..]), Put::Delivered);
            assert!(vm.completed(RX).is_none(), "not before it is published");
            port.publish();
            assert!(vm.receive() == (TSO, frame.clone(), 1));
        }
    }
    let frame = numbered(1, FRAME_BYTES_MAX);
    vm.give_buffers(44, 1526);
    assert_eq!(port.put_rx(TSO, &frame[..66], &frame[66..]), Put::Delivered);
    port.publish();
    assert!(vm.receive() == (TSO, frame, 43));
    assert_eq!((port.counters().tx_frames, port.counters().rx_frames), (5, 16));
}

/// Large segments, whole and cut where the driver likes; what the VM sends next leaves them as they are.
#[test]
fn long_frames_are_given_away_whole() {
    let (_sockets, mut vm, mut port, _front_end) = started(FEATURES);
    let mut given = vec![];
    for (number, bytes) in [(1, 60), (2, FRAME_BYTES_MAX), (3, 40_000), (4, 30_000), (5, FRAME_BYTES_MAX)] {
        assert!(vm.send(TSO, &numbered(number, bytes)));
        while port.take_tx(8, |_, frame| match frame {
            TxFrame::Given(frame) => given.push(frame),
            TxFrame::Lent(frame) => assert!(frame == numbered(number, bytes)),
        }) {}
    }
    let expected = [(2, FRAME_BYTES_MAX), (3, 40_000), (5, FRAME_BYTES_MAX)];
    assert!(given == expected.map(|(number, bytes)| numbered(number, bytes)));
}

#[test]
fn a_batch_is_one_signal_and_the_budget_is_kept() {
    let (_sockets, mut vm, mut port, _front_end) = started(FEATURES);
    let signals = |vm: &Vm, ring: usize| vm.rings[ring].call.read().unwrap_or(0);
    // What was signalled when the rings started is not of interest.
    signals(&vm, RX);
    signals(&vm, TX);
    for i in 0..100 {
        assert!(vm.send(PLAIN, &numbered(i, 60)));
    }
    let mut next = 0;
    for _ in 0..3 {
        let more = port.take_tx(30, |_, frame| {
            assert_eq!(number(&frame), next);
            next += 1;
        });
        assert!(more);
    }
    assert_eq!(next, 90);
    assert_eq!(taken(&mut port).len(), 10);
    assert_eq!(signals(&vm, TX), 1, "the driver asked for the first completion only");
    vm.give_buffers(100, 1530);
    for i in 0..100 {
        assert_eq!(port.put_rx(PLAIN, &numbered(i, 60), &[]), Put::Delivered);
    }
    assert_eq!(vm.used_index(RX), 0);
    port.publish();
    port.publish();
    assert_eq!((vm.used_index(RX), signals(&vm, RX)), (100, 1));
}

#[test]
fn an_idle_port_is_silent_and_each_kick_wakes_it_once() {
    let (_sockets, mut vm, mut port, _front_end) = started(FEATURES);
    // As tokio watches it: edge-triggered.
    let outer = epoll::Epoll::new(epoll::EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let interest = epoll::EpollFlags::EPOLLIN | epoll::EpollFlags::EPOLLET;
    outer.add(&port, epoll::EpollEvent::new(interest, 0)).unwrap();
    let wakes = |ms: u16| outer.wait(&mut [epoll::EpollEvent::empty()], ms).unwrap() > 0;
    wakes(0);
    assert!(!port.turn().unwrap());
    assert!(taken(&mut port).is_empty());
    for i in 0..100 {
        assert!(!wakes(0), "idle");
        assert!(!wait(port.as_fd(), 0), "idle");
        assert!(vm.send(PLAIN, &numbered(i, 60)));
        assert!(wakes(20_000), "kicked");
        assert!(!port.turn().unwrap());
        assert_eq!(taken(&mut port).len(), 1);
        // Without buffers a frame waits, and the driver's next buffer is reported.
        assert_eq!(port.put_rx(PLAIN, &numbered(i, 60), &[]), Put::NoBuffers);
        assert!(!wakes(0), "waiting for buffers");
        vm.give_buffers(1, 1530);
        assert!(wakes(20_000), "kicked");
        assert!(!port.turn().unwrap());
        assert_eq!(port.put_rx(PLAIN, &numbered(i, 60), &[]), Put::Delivered);
        port.publish();
        assert_eq!(number(&vm.receive().1), i);
    }
}

#[test]
fn the_driver_sees_what_it_has_got_before_it_is_asked_for_more() {
    let (_sockets, mut vm, mut port, _front_end) = started(FEATURES);
    vm.give_buffers(3, 1530);
    for i in 0..3 {
        assert_eq!(port.put_rx(PLAIN, &numbered(i, 60), &[]), Put::Delivered);
    }
    assert_eq!(port.put_rx(PLAIN, &numbered(3, 60), &[]), Put::NoBuffers);
    assert_eq!(vm.used_index(RX), 3);
    // One buffer at a time for a frame that needs three: each is looked at once.
    let large = numbered(4, 4000);
    for _ in 0..2 {
        vm.give_buffers(1, 1530);
        assert_eq!(port.put_rx(PLAIN, &large, &[]), Put::NoBuffers);
    }
    vm.give_buffers(1, 1530);
    assert_eq!(port.put_rx(PLAIN, &large, &[]), Put::Delivered);
    port.publish();
    for i in 0..3 {
        assert_eq!(number(&vm.receive().1), i);
    }
    assert!(vm.receive() == (PLAIN, large, 3));
}

#[test]
fn abilities_follow_the_driver() {
    let (sockets, vm) = (Sockets::new(), Vm::new());
    let mut port = sockets.in_process();
    assert_eq!(port.abilities(), Abilities::default());
    assert_eq!(port.put_rx(PLAIN, &numbered(0, 60), &[]), Put::Dropped);
    assert_eq!(port.counters().dropped(DropReason::NoDriver), 1);
    let mut front_end = serve_while(&mut port, || FrontEnd::with(&sockets.vhost_user, &vm));
    assert_eq!(port.abilities(), ALL);
    for (features, abilities) in [
        (FEATURES & !F_GUEST_TSO6, Abilities { tso6: false, ..ALL }),
        (FEATURES & !F_GUEST_TSO4, Abilities { tso4: false, ..ALL }),
        (FEATURES & !F_GUEST_CSUM, Abilities::default()),
        (FEATURES & !OFFLOADS, Abilities::default()),
        (FEATURES, ALL),
    ] {
        serve_while(&mut port, || {
            front_end.stop();
            front_end.start(&vm, features);
        });
        assert_eq!(port.abilities(), abilities);
    }
    drop(front_end);
    while port.abilities() == ALL {
        assert!(wait(port.as_fd(), 20_000));
        port.turn().unwrap();
    }
    assert_eq!(port.abilities(), Abilities::default());
    assert_eq!(port.put_rx(PLAIN, &numbered(0, 60), &[]), Put::Dropped);
    assert!(!port.take_tx(8, |_, _| panic!("no driver, no frame")));
}

#[test]
fn what_was_put_survives_a_change_by_the_front_end() {
    let (_sockets, mut vm, mut port, mut front_end) = started(FEATURES);
    vm.give_buffers(4, 1530);
    for i in 0..4 {
        assert_eq!(port.put_rx(PLAIN, &numbered(i, 60), &[]), Put::Delivered);
        let table = mem_table();
        serve_while(&mut port, || assert!(front_end.acknowledged(SET_MEM_TABLE, &table, &[vm.file.as_fd()])));
    }
    port.publish();
    for i in 0..4 {
        assert_eq!(number(&vm.receive().1), i);
    }
}

#[test]
fn a_broken_ring_is_left_alone() {
    let (_sockets, mut vm, mut port, _front_end) = started(FEATURES);
    vm.offer(TX, RING);
    assert!(!port.take_tx(8, |_, _| panic!("no frame")));
    vm.offer(RX, u16::MAX);
    assert_eq!(port.put_rx(PLAIN, &numbered(0, 60), &[]), Put::Dropped);
    assert_eq!(port.put_rx(PLAIN, &numbered(0, 60), &[]), Put::Dropped);
    port.publish();
    assert_eq!((port.counters().broken_rings, port.counters().dropped(DropReason::NoDriver)), (2, 2));
    for ring in [RX, TX] {
        assert_eq!(vm.rings[ring].err.read().unwrap(), 1, "the front-end is told");
    }
}

#[test]
fn a_driver_that_plays_with_its_index_keeps_nobody() {
    let (_sockets, vm, mut port, _front_end) = started(FEATURES);
    let vm = Arc::new(vm);
    let stop = Arc::new(AtomicBool::new(false));
    let (player, stopped) = (vm.clone(), stop.clone());
    let player = std::thread::spawn(move || {
        while !stopped.load(Relaxed) {
            for ring in [RX, TX] {
                player.set_avail_index(ring, player.used_index(ring).wrapping_add(1));
                player.set_avail_index(ring, player.used_index(ring));
            }
        }
    });
    for _ in 0..10_000 {
        port.take_tx(64, |_, _| {});
        port.put_rx(PLAIN, &[0; 4000], &[]);
        port.publish();
    }
    stop.store(true, Relaxed);
    player.join().unwrap();
}

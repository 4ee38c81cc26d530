//! Frames both ways, and what happens when one side is slow.

use std::os::fd::AsFd;

use port::{DropReason, Options};
use wire::link::{FRAME_BYTES_MAX, Offload};

use crate::{
    front_end::*,
    port::Sockets,
    router::{Router, number, numbered},
};

const OFFLOAD: Offload =
    Offload { flags: 1, gso_type: 4, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };

const PLAIN: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

#[test]
fn frames_of_every_size_pass_both_ways() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    vm.give_buffers(RING, 1530);
    for bytes in 14..=1518 {
        let frame = numbered(bytes as u32, bytes);
        assert!(vm.send(OFFLOAD, &frame));
        assert!(router.receive() == Some((OFFLOAD, frame.clone())), "tx, {bytes} bytes");
        vm.wait_completed(TX);
        // Towards the VM its fields must lie within the frame.
        let offload = if bytes < usize::from(OFFLOAD.hdr_len) { PLAIN } else { OFFLOAD };
        router.send(offload, &frame);
        assert!(vm.receive() == (offload, frame, 1), "rx, {bytes} bytes");
        vm.give_buffers(1, 1530);
    }
    let counters = port.stop();
    assert_eq!((counters.tx_frames, counters.rx_frames, counters.broken_rings), (1505, 1505, 0));
    assert_eq!(counters.tx_bytes, (14..=1518).sum::<u64>());
}

#[test]
fn event_index_and_enabling_are_optional() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::connect(&sockets.vhost_user);
    let mut router = Router::connect(&sockets.link);
    for features in [FEATURES & !F_EVENT_IDX, FEATURES & !F_MERGEABLE] {
        vm.reset();
        front_end.stop();
        front_end.negotiate(&vm);
        front_end.start(&vm, features);
        vm.give_buffers(8, 1530);
        vm.kick(RX);
        for i in 0..8 {
            assert!(vm.send(PLAIN, &numbered(i, 64)));
            vm.kick(TX);
            assert_eq!(router.receive_number(), Some(i));
            router.send(PLAIN, &numbered(i, 64));
            assert_eq!(number(&vm.receive().1), i);
        }
    }
    port.stop();
}

#[test]
fn a_large_frame_takes_many_buffers() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    let frame = numbered(7, FRAME_BYTES_MAX);
    // One buffer is missing: the frame waits, and so does what follows.
    vm.give_buffers(43, 1526);
    router.send(OFFLOAD, &frame);
    router.send(PLAIN, &numbered(8, 60));
    assert!(vm.stalls(RX));
    vm.give_buffers(1, 1526);
    assert!(vm.receive() == (OFFLOAD, frame.clone(), 43), "exactly filled");
    assert!(vm.receive() == (PLAIN, numbered(8, 60), 1));
    // Buffers too small to hold it in as many as a frame may take.
    vm.give_buffers(RING, 512);
    router.send(OFFLOAD, &frame);
    router.send(PLAIN, &numbered(9, 60));
    assert!(vm.receive() == (PLAIN, numbered(9, 60), 1));
    let counters = port.stop();
    assert_eq!(counters.dropped(DropReason::BuffersTooSmall), 1);
}

#[test]
fn without_mergeable_buffers_a_frame_takes_one() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::connect(&sockets.vhost_user);
    front_end.negotiate(&vm);
    front_end.start(&vm, FEATURES & !F_MERGEABLE);
    let mut router = Router::connect(&sockets.link);
    vm.give_buffers(16, 112);
    router.send(PLAIN, &numbered(0, 101));
    router.send(PLAIN, &numbered(1, 100));
    assert!(vm.receive() == (PLAIN, numbered(1, 100), 1));
    assert_eq!(port.stop().dropped(DropReason::BuffersTooSmall), 1);
}

#[test]
fn a_full_link_stops_the_ring_and_loses_nothing() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    let mut sent = 0;
    loop {
        while vm.send(PLAIN, &numbered(sent, 1514)) {
            sent += 1;
        }
        // The driver feels it: its ring is full and stays so.
        if vm.stalls(TX) && vm.in_flight(TX) == RING {
            break;
        }
    }
    let stalled_at = sent;
    for i in 0..stalled_at + 1000 {
        assert_eq!(router.receive_number(), Some(i));
        sent += u32::from(sent < stalled_at + 1000 && vm.send(PLAIN, &numbered(sent, 1514)));
    }
    while vm.in_flight(TX) > 0 {
        vm.wait_completed(TX);
    }
    let counters = port.stop();
    assert_eq!(counters.tx_frames, u64::from(stalled_at) + 1000);
}

#[test]
fn a_vm_without_buffers_stops_the_link_and_loses_nothing() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    let frames = 5000;
    let mut sender = router.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for i in 0..frames {
            let mut bytes = vec![];
            wire::link::encode(&numbered(i, 1000), PLAIN, &mut bytes).unwrap();
            std::io::Write::write_all(&mut sender, &bytes).unwrap();
        }
    });
    assert!(vm.stalls(RX));
    assert!(!sender.is_finished(), "5 MB do not fit into a socket");
    for i in 0..frames {
        if vm.in_flight(RX) == 0 {
            vm.give_buffers(1 + (i % 7) as u16, 1530);
        }
        assert_eq!(number(&vm.receive().1), i);
    }
    sender.join().unwrap();
    // The other direction never stopped.
    assert!(vm.send(PLAIN, &numbered(1, 60)));
    assert_eq!(router.receive_number(), Some(1));
    port.stop();
}

#[test]
fn frames_for_a_vm_without_a_driver_are_dropped_and_counted() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut router = Router::connect(&sockets.link);
    for i in 0..10_000 {
        router.send(PLAIN, &numbered(i, 1500));
    }
    let mut front_end = FrontEnd::connect(&sockets.vhost_user);
    front_end.negotiate(&vm);
    front_end.start(&vm, FEATURES);
    vm.give_buffers(4, 1530);
    // Those that are still on their way may arrive; the last one does.
    router.send(PLAIN, &numbered(10_000, 60));
    vm.give_buffers(RING - 4, 1530);
    let mut received = 1;
    while number(&vm.receive().1) != 10_000 {
        received += 1;
        vm.give_buffers(1, 1530);
    }
    assert_eq!(port.stop().dropped(DropReason::NoDriver), 10_001 - received);
}

#[test]
fn a_disabled_ring_is_left_alone() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    front_end.tell(SET_VRING_ENABLE, &state(TX, 0), &[]);
    front_end.sync();
    for i in 0..4 {
        assert!(vm.send(PLAIN, &numbered(i, 60)));
        vm.kick(TX);
    }
    assert!(vm.stalls(TX));
    front_end.tell(SET_VRING_ENABLE, &state(TX, 1), &[]);
    for i in 0..4 {
        assert_eq!(router.receive_number(), Some(i));
    }
    port.stop();
}

#[test]
fn the_mtu_is_the_front_ends_to_lower() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread_with(Options { mtu: 1500 });
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    assert!(front_end.acknowledged(NET_SET_MTU, &1280u64.to_ne_bytes(), &[]));
    assert!(front_end.acknowledged(NET_SET_MTU, &1500u64.to_ne_bytes(), &[]));
    assert!(!front_end.acknowledged(NET_SET_MTU, &1501u64.to_ne_bytes(), &[]));
    assert!(!front_end.acknowledged(NET_SET_MTU, &67u64.to_ne_bytes(), &[]));
    assert!(front_end.acknowledged(SET_BACKEND_REQ_FD, &[], &[vm.rings[0].err.as_fd()]));
    let mut router = Router::connect(&sockets.link);
    assert!(vm.send(PLAIN, &numbered(0, 1519)));
    assert!(vm.send(PLAIN, &numbered(1, 1518)));
    assert_eq!(router.receive_number(), Some(1));
    assert_eq!(port.stop().dropped(DropReason::TooLong), 1);
}

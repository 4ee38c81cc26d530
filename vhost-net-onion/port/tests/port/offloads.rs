//! Offload fields, and frames that are longer than the MTU because of them.

use port::{DropReason, Options};
use vm_memory::{Bytes, GuestAddress};
use wire::link::{Abilities, FRAME_BYTES_MAX, Offload};

use crate::{
    front_end::*,
    port::Sockets,
    router::{Router, number, numbered},
};

const PLAIN: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
const TSO4: Offload = Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };
const TSO6: Offload = Offload { gso_type: 4, hdr_len: 74, csum_start: 54, ..TSO4 };
const PARTIAL: Offload = Offload { gso_type: 0, gso_size: 0, ..TSO4 };
const ALL: Abilities = Abilities { checksum: true, tso4: true, tso6: true };

/// Writes a message to the front of the tx buffers and describes it with descriptors of `lengths`, in the ring or in an
/// indirect table. Returns whether it was accepted.
fn describe(vm: &Vm, offload: Offload, frame: &[u8], lengths: &[u32], indirect: bool) {
    let message = [&offload.to_bytes()[..], &[0, 0], frame].concat();
    let buffer = vm.buffer(TX, 0);
    vm.memory.write_slice(&message, GuestAddress(buffer)).unwrap();
    let mut at = buffer;
    for (i, bytes) in (0u16..).zip(lengths) {
        let flags = if usize::from(i) + 1 < lengths.len() { NEXT } else { 0 };
        let table = if indirect { vm.spare(TX) } else { vm.spare(TX) - SPARE };
        vm.set(table, i, at, *bytes, flags, i + 1);
        at += u64::from(*bytes);
    }
    if indirect {
        vm.set_descriptor(TX, 0, vm.spare(TX), 16 * lengths.len() as u32, INDIRECT, 0);
    }
}

/// A net header, and then as many descriptors as it takes.
fn in_pieces_of(piece: u32, frame: &[u8]) -> Vec<u32> {
    let rest = frame.chunks(piece as usize).map(|piece| piece.len() as u32);
    std::iter::once(12).chain(rest).collect()
}

#[test]
fn the_router_is_told_what_the_driver_can_receive() {
    let (sockets, vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut router = Router::connect(&sockets.link);
    assert_eq!(router.receive_abilities(), Abilities::default(), "no driver yet");
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    assert_eq!(router.receive_abilities(), ALL);
    // A new link is told at once, after a hello of its own.
    let mut router = Router::connect(&sockets.link);
    assert_eq!(router.receive_abilities(), ALL);
    for (features, abilities) in [
        (FEATURES & !F_GUEST_TSO6, Abilities { tso6: false, ..ALL }),
        (FEATURES & !F_GUEST_TSO4, Abilities { tso4: false, ..ALL }),
        // Segments without checksums there are not.
        (FEATURES & !F_GUEST_CSUM, Abilities::default()),
        (FEATURES, ALL),
    ] {
        front_end.stop();
        front_end.start(&vm, features);
        assert_eq!(router.receive_abilities(), abilities);
    }
    drop(front_end);
    assert_eq!(router.receive_abilities(), Abilities::default());
    port.stop();
}

#[test]
fn a_front_end_that_changes_its_mind_without_end_fills_nothing() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    // The link is full, with a message that is half written.
    while vm.send(PLAIN, &numbered(0, 1514)) || !vm.stalls(TX) {}
    for i in 0..20_000u64 {
        let features = if i % 2 == 0 { FEATURES & !OFFLOADS } else { FEATURES };
        front_end.tell(SET_FEATURES, &features.to_ne_bytes(), &[]);
    }
    front_end.tell(SET_FEATURES, &(FEATURES & !F_GUEST_TSO6).to_ne_bytes(), &[]);
    front_end.sync();
    assert_eq!(router.receive_abilities(), ALL);
    let mut told = 0;
    while router.receive_abilities() != (Abilities { tso6: false, ..ALL }) {
        told += 1;
    }
    // Those that the socket took before it was full, a few hundred at most, and the last one.
    assert!(told < 2000, "{told} changes were kept");
    port.stop();
}

#[test]
fn what_was_not_negotiated_is_dropped() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::connect(&sockets.vhost_user);
    front_end.negotiate(&vm);
    let mut router = Router::connect(&sockets.link);
    let mut dropped = 0;
    for (features, fit, unfit) in [
        (FEATURES, &[PARTIAL, TSO4, TSO6][..], &[][..]),
        (FEATURES & !F_GUEST_TSO4, &[PARTIAL, TSO6], &[TSO4]),
        (FEATURES & !F_GUEST_TSO6, &[PARTIAL, TSO4], &[TSO6]),
        (FEATURES & !(F_GUEST_TSO4 | F_GUEST_TSO6), &[PARTIAL], &[TSO4, TSO6]),
        (FEATURES & !F_GUEST_CSUM, &[], &[PARTIAL, TSO4, TSO6]),
    ] {
        vm.reset();
        front_end.stop();
        front_end.start(&vm, features);
        vm.give_buffers(64, 1530);
        vm.kick(RX);
        for offload in unfit {
            router.send(*offload, &numbered(0, 4000));
            dropped += 1;
        }
        for offload in fit {
            router.send(*offload, &numbered(1, 4000));
            assert!(vm.receive() == (*offload, numbered(1, 4000), 3));
        }
        router.send(PLAIN, &numbered(2, 60));
        assert!(vm.receive() == (PLAIN, numbered(2, 60), 1));
    }
    assert_eq!(port.stop().dropped(DropReason::Ability), dropped);
}

#[test]
fn every_field_at_its_edges_passes_to_the_router_and_is_checked_for_the_driver() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    vm.give_buffers(RING, 1530);
    let (mut sent, mut received) = (0u64, 0u64);
    for bytes in [14u16, 60, 1514] {
        let frame = numbered(7, bytes.into());
        for base in [PLAIN, PARTIAL, TSO4, TSO6] {
            for value in [0, 1, 2, 13, 14, bytes - 2, bytes - 1, bytes, bytes + 1, 0x7fff, 0x8000, 0xfffe, 0xffff] {
                let edges = [
                    Offload { flags: value as u8, ..base },
                    Offload { gso_type: value as u8, ..base },
                    Offload { hdr_len: value, ..base },
                    Offload { gso_size: value, ..base },
                    Offload { csum_start: value, ..base },
                    Offload { csum_offset: value, ..base },
                ];
                for offload in edges {
                    assert!(vm.send(offload, &frame));
                    assert!(router.receive() == Some((offload, frame.clone())), "unchanged");
                    vm.wait_completed(TX);
                    router.send(offload, &frame);
                    router.send(PLAIN, &numbered(8, 60));
                    sent += 1;
                    let (got, frame, buffers) = vm.receive();
                    vm.give_buffers(buffers, 1530);
                    if number(&frame) == 8 {
                        continue;
                    }
                    assert_eq!(number(&vm.receive().1), 8);
                    vm.give_buffers(1, 1530);
                    received += 1;
                    assert!(got.flags & !3 == 0 && [0, 1, 4].contains(&got.gso_type), "{got:?}");
                    let end = u32::from(got.csum_start) + u32::from(got.csum_offset) + 2;
                    assert!(got.flags & 1 == 0 || end <= bytes.into(), "{got:?} in {bytes} bytes");
                    let segments = got.gso_size > 0 && got.hdr_len <= bytes && got.flags & 1 == 1;
                    assert!(got.gso_type == 0 || segments, "{got:?} in {bytes} bytes");
                }
            }
        }
    }
    let counters = port.stop();
    let dropped = counters.dropped(DropReason::Ability) + counters.dropped(DropReason::BadOffload);
    assert_eq!((sent, counters.broken_rings), (received + dropped, 0));
    assert!(received > 300 && dropped > 300, "{received} of {sent}");
}

#[test]
fn a_segmented_frame_comes_in_as_many_descriptors_as_may_be() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    let frame = numbered(5, FRAME_BYTES_MAX);
    let large: Vec<_> = [(4096, true), (4096, false), (1448, true), (300, false), (65, true)].to_vec();
    for (piece, indirect) in large {
        let lengths = in_pieces_of(piece, &frame);
        assert!(lengths.len() > 16);
        describe(&vm, TSO6, &frame, &lengths, indirect);
        vm.offer(TX, 0);
        vm.kick(TX);
        assert!(router.receive() == Some((TSO6, frame.clone())), "pieces of {piece}");
        assert_eq!(vm.wait_completed(TX), (0, 0));
    }
    // Exactly as many as a chain may have, the net header in twelve of them; and one more.
    for (count, whole) in [(1024usize, true), (1025, false)] {
        let mut lengths = vec![1; count - 1];
        let frame = numbered(6, 60_000);
        lengths.push(12 + frame.len() as u32 - (count as u32 - 1));
        describe(&vm, TSO4, &frame, &lengths, true);
        vm.offer(TX, 0);
        vm.kick(TX);
        assert_eq!(vm.wait_completed(TX), (0, 0));
        if whole {
            assert!(router.receive() == Some((TSO4, frame)));
        }
    }
    assert_eq!(port.stop().dropped(DropReason::TxChain), 1);
}

#[test]
fn only_what_is_to_be_cut_may_be_longer_than_the_mtu() {
    for (features, longest_cut) in [(FEATURES, FRAME_BYTES_MAX), (FEATURES & !F_HOST_TSO, 1518)] {
        let (sockets, mut vm) = (Sockets::new(), Vm::new());
        let port = sockets.thread_with(Options { mtu: 1500 });
        let mut front_end = FrontEnd::connect(&sockets.vhost_user);
        front_end.negotiate(&vm);
        front_end.start(&vm, features);
        let mut router = Router::connect(&sockets.link);
        for (offload, longest) in [(PLAIN, 1518), (PARTIAL, 1518), (TSO4, longest_cut), (TSO6, longest_cut)] {
            for (bytes, whole) in [(longest + 1, false), (longest, true)] {
                let frame = numbered(bytes as u32, bytes);
                describe(&vm, offload, &frame, &in_pieces_of(60_000, &frame), false);
                vm.offer(TX, 0);
                vm.kick(TX);
                assert_eq!(vm.wait_completed(TX), (0, 0));
                if whole {
                    assert!(router.receive() == Some((offload, frame)), "{offload:?}");
                }
            }
        }
        let counters = port.stop();
        assert_eq!((counters.dropped(DropReason::TooLong), counters.tx_frames), (4, 4));
    }
}

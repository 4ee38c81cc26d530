//! Drivers and front-ends that do what they should not.

use std::os::fd::{AsFd, BorrowedFd};

use port::DropReason;
use vm_memory::{Bytes, GuestAddress};
use wire::link::Offload;

use crate::{
    front_end::*,
    port::{Sockets, Thread},
    router::{Router, number, numbered},
};

const PLAIN: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

struct Setup {
    sockets: Sockets,
    vm: Vm,
    port: Thread,
    front_end: FrontEnd,
    router: Router,
}

fn setup() -> Setup {
    let (sockets, vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let router = Router::connect(&sockets.link);
    Setup { sockets, vm, port, front_end, router }
}

impl Setup {
    /// Offers the chain that begins with descriptor 0 of the tx ring, and waits until it is completed.
    fn send_chain(&mut self) {
        self.vm.offer(TX, 0);
        self.vm.kick(TX);
        assert_eq!(self.vm.wait_completed(TX), (0, 0));
    }

    /// That a frame sent the usual way comes out next.
    fn assert_works(&mut self, number: u32) {
        assert!(self.vm.send(PLAIN, &numbered(number, 60)));
        assert_eq!(self.router.receive_number(), Some(number));
        self.vm.wait_completed(TX);
    }
}

#[test]
fn a_frame_in_descriptors_of_one_byte_is_a_frame() {
    let mut s = setup();
    let frame = numbered(3, 100);
    let message = [&[0; 12][..], &frame].concat();
    let (buffer, count) = (s.vm.buffer(TX, 0), message.len() as u16);
    s.vm.memory.write_slice(&message, GuestAddress(buffer)).unwrap();
    for i in 0..count {
        let flags = if i + 1 < count { NEXT } else { 0 };
        s.vm.set_descriptor(TX, i, buffer + u64::from(i), 1, flags, i + 1);
    }
    s.send_chain();
    assert_eq!(s.router.receive_number(), Some(3));

    // The same in an indirect table, with empty descriptors in between.
    let table = s.vm.spare(TX);
    for i in 0..count {
        s.vm.set(table, 2 * i, buffer, 0, NEXT, 2 * i + 1);
        s.vm.set(table, 2 * i + 1, buffer + u64::from(i), 1, if i + 1 < count { NEXT } else { 0 }, 2 * i + 2);
    }
    s.vm.set_descriptor(TX, 0, table, 16 * 2 * u32::from(count), INDIRECT, 0);
    s.send_chain();
    assert_eq!(s.router.receive_number(), Some(3));

    // And towards the VM.
    let table = s.vm.spare(RX);
    for i in 0..count {
        s.vm.set(table, i, s.vm.buffer(RX, 0) + u64::from(i), 1, WRITE | if i + 1 < count { NEXT } else { 0 }, i + 1);
    }
    s.vm.set_descriptor(RX, 0, table, 16 * u32::from(count), INDIRECT, 0);
    s.vm.offer(RX, 0);
    s.vm.kick(RX);
    s.router.send(PLAIN, &frame);
    assert_eq!(number(&s.vm.receive().1), 3);
    assert_eq!(s.port.stop().tx_frames, 2);
}

#[test]
fn a_bad_chain_costs_itself_and_nothing_else() {
    let mut s = setup();
    let buffer = s.vm.buffer(TX, 0);
    let end = GUEST_BASE + MEMORY_BYTES;
    let chain = |s: &mut Setup, descriptors: &[(u64, u32, u16, u16)]| {
        // The usual sending uses the descriptor whose turn it is: begin where it is the first one.
        for (i, (addr, bytes, flags, next)) in descriptors.iter().enumerate() {
            s.vm.set_descriptor(TX, i as u16, *addr, *bytes, *flags, *next);
        }
        s.send_chain();
        s.assert_works(1);
    };
    let bad: &[&[(u64, u32, u16, u16)]] = &[
        &[(buffer, 1, NEXT, 0)],
        &[(buffer, 60, NEXT, 1), (buffer, 60, NEXT, 0)],
        &[(buffer, 0, NEXT, 1), (buffer, 0, NEXT, 0)],
        &[(buffer, 60, NEXT, 300)],
        &[(buffer, 60, NEXT, u16::MAX)],
        &[(buffer, 60, WRITE, 0)],
        &[(buffer, 60, NEXT, 1), (buffer, 60, WRITE, 0)],
        &[(end - 30, 60, 0, 0)],
        &[(end, 60, 0, 0)],
        &[(0, 60, 0, 0)],
        &[(u64::MAX - 8, 60, 0, 0)],
        &[(u64::MAX - 20, 12, NEXT, 1), (u64::MAX, 60, 0, 0)],
        &[(end, 16, INDIRECT, 0)],
        &[(buffer, u32::MAX, INDIRECT, 0)],
    ];
    for descriptors in bad {
        chain(&mut s, descriptors);
    }
    let short: &[&[(u64, u32, u16, u16)]] =
        &[&[(buffer, 0, 0, 0)], &[(buffer, 11, 0, 0)], &[(buffer, 12, 0, 0)], &[(buffer, 25, 0, 0)]];
    for descriptors in short {
        chain(&mut s, descriptors);
    }
    let long: &[&[(u64, u32, u16, u16)]] = &[
        &[(buffer, 12 + 65_539, 0, 0)],
        &[(buffer, u32::MAX, 0, 0)],
        &[(buffer, 300, NEXT, 1), (buffer, 300, NEXT, 0)],
        &[(buffer, 60_000, NEXT, 1), (buffer, 60_000, 0, 0)],
        &[(buffer, u32::MAX, NEXT, 1), (buffer, u32::MAX, 0, 0)],
    ];
    for descriptors in long {
        chain(&mut s, descriptors);
    }
    let counters = s.port.stop();
    assert_eq!(counters.dropped(DropReason::TxChain), bad.len() as u64);
    assert_eq!(counters.dropped(DropReason::TooShort), short.len() as u64);
    assert_eq!(counters.dropped(DropReason::TooLong), long.len() as u64);
    assert_eq!((counters.broken_rings, counters.front_end_errors), (0, 0));
}

#[test]
fn a_broken_ring_stops_until_it_is_set_up_again() {
    let mut s = setup();
    let break_tx: [fn(&mut Vm); 2] = [
        |vm| vm.offer(TX, RING),
        |vm| {
            let offered = vm.offered(TX);
            vm.set_avail_index(TX, offered.wrapping_add(RING + 1));
        },
    ];
    let break_rx: [fn(&mut Vm); 5] = [
        |vm| vm.set_descriptor(RX, 0, vm.buffer(RX, 0), 1, WRITE | NEXT, 0),
        |vm| {
            // A table of a thousand descriptors and one more, the last of which names the next.
            (0..1025).for_each(|i| vm.set(vm.spare(RX), i, vm.buffer(RX, 0), 0, WRITE | NEXT, i + 1));
            vm.set_descriptor(RX, 0, vm.spare(RX), 16 * 1025, INDIRECT, 0);
        },
        |vm| vm.offer(RX, u16::MAX),
        |vm| vm.set_descriptor(RX, 0, vm.buffer(RX, 0), 1530, 0, 0),
        |vm| vm.set_descriptor(RX, 0, GUEST_BASE + MEMORY_BYTES - 5, 1530, WRITE, 0),
    ];
    for (ring, broken) in break_tx.iter().map(|b| (TX, b)).chain(break_rx.iter().map(|b| (RX, b))) {
        broken(&mut s.vm);
        if ring == RX && s.vm.offered(RX) == 0 {
            s.vm.offer(RX, 0);
        }
        s.router.send(PLAIN, &numbered(0, 60));
        s.vm.kick(ring);
        assert!(wait(s.vm.rings[ring].err.as_fd(), 20_000), "the front-end is told");
        s.vm.rings[ring].err.read().unwrap();
        // The driver is loaded again.
        s.front_end.stop();
        s.vm.reset();
        s.front_end.start(&s.vm, FEATURES);
        s.assert_works(9);
    }
    let counters = s.port.stop();
    assert_eq!((counters.broken_rings, counters.front_end_errors), (7, 0));
}

#[test]
fn an_endless_ring_does_not_keep_the_port_from_its_other_work() {
    let mut s = setup();
    // A driver that is always ahead: it overwrites the index without waiting.
    s.vm.give_buffers(RING, 1530);
    let (memory, mut avail) = (s.vm.memory.clone(), s.vm.offered(TX));
    for i in 0..RING {
        s.vm.set_descriptor(TX, i, s.vm.buffer(TX, i), 5, 0, 0);
        let ring = GUEST_BASE + (1 << 20) + 0x10000 + 4 + 2 * u64::from(i);
        s.vm.memory.write_obj(i, GuestAddress(ring)).unwrap();
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let driver = std::thread::spawn(move || {
        let base = GUEST_BASE + (1 << 20);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let used: u16 = memory.read_obj(GuestAddress(base + 0x20000 + 2)).unwrap();
            if avail.wrapping_sub(used) < RING {
                avail = used.wrapping_add(RING);
                memory.write_obj(avail, GuestAddress(base + 0x10000 + 2)).unwrap();
            }
        }
    });
    s.vm.kick(TX);
    for i in 0..2000 {
        s.router.send(PLAIN, &numbered(i, 60));
        assert_eq!(number(&s.vm.receive().1), i);
        s.vm.give_buffers(1, 1530);
        s.front_end.sync();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    driver.join().unwrap();
    assert!(s.port.stop().dropped(DropReason::TooShort) > 2000);
}

#[test]
fn a_driver_that_writes_while_the_port_reads_cannot_break_the_link() {
    const LAST: u8 = 0xee;
    let mut s = setup();
    let (memory, stop) = (s.vm.memory.clone(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let (table, buffer, stopped) = (GUEST_BASE + (1 << 20), s.vm.buffer(TX, 0), stop.clone());
    // All descriptors but the first, which sends, change all the time: length, flags, next, and the header they point to.
    let driver = std::thread::spawn(move || {
        let mut i = 1u64;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            i = i.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let [length, flags, next] =
                [(i >> 20) as u32 % 2000, [0, NEXT, WRITE, INDIRECT][(i >> 40) as usize % 4].into(), (i >> 50) as u32];
            let descriptor = GuestAddress(table + 16 * (1 + (i >> 33) % 7));
            memory.write_obj(buffer, descriptor).unwrap();
            memory.write_obj([length, flags | (next % 9) << 16], GuestAddress(descriptor.0 + 8)).unwrap();
            memory.write_obj(i, GuestAddress(buffer + (i >> 36) % 64)).unwrap();
        }
    });
    let mut reader = s.router;
    let counting = std::thread::spawn(move || {
        // Whatever comes is a frame within the bounds; the last one is known by bytes that no other buffer holds.
        while !reader.receive().expect("the link stands").1.ends_with(&[LAST; 100]) {}
    });
    for round in 0..20_000 {
        let head = round % 8;
        if head == 0 {
            s.vm.set_descriptor(TX, 0, buffer, 40, NEXT, 1 + round / 8 % 7);
        }
        s.vm.offer(TX, head);
        s.vm.kick(TX);
        s.vm.wait_completed(TX);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    driver.join().unwrap();
    let last = s.vm.buffer(TX, 9);
    s.vm.memory.write_slice(&[LAST; 1013], GuestAddress(last)).unwrap();
    s.vm.set_descriptor(TX, 0, last, 1013, 0, 0);
    s.vm.offer(TX, 0);
    s.vm.kick(TX);
    counting.join().unwrap();
    let counters = s.port.stop();
    assert_eq!((counters.broken_rings, counters.links), (0, 1));
    assert!(counters.tx_frames > 100 && counters.dropped(DropReason::TxChain) > 100, "{counters}");
}

#[test]
fn wrong_requests_close_the_connection_and_nothing_else() {
    let Setup { sockets, mut vm, port, front_end, mut router } = setup();
    drop(front_end);
    let page = [[GUEST_BASE, 4096, USER_BASE, 0]];
    let pipe = nix::unistd::pipe().unwrap();
    let file = vm.file.try_clone().unwrap();
    let file = file.as_fd();
    let wrong: Vec<(u32, Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        (SET_FEATURES, (1u64 << 63).to_ne_bytes().to_vec(), vec![]),
        (SET_PROTOCOL_FEATURES, 1u64.to_ne_bytes().to_vec(), vec![]),
        (SET_MEM_TABLE, mem_table_of(&page), vec![]),
        (SET_MEM_TABLE, mem_table_of(&page), vec![file, file]),
        (SET_MEM_TABLE, mem_table_of(&page), vec![pipe.0.as_fd()]),
        (SET_MEM_TABLE, mem_table_of(&[[0; 4]]), vec![file]),
        (SET_MEM_TABLE, mem_table_of(&[[GUEST_BASE, MEMORY_BYTES + OFFSET + 1, USER_BASE, 0]]), vec![file]),
        (SET_MEM_TABLE, mem_table_of(&[[GUEST_BASE, u64::MAX, USER_BASE, 4096]]), vec![file]),
        (SET_MEM_TABLE, mem_table_of(&[page[0], page[0]]), vec![file, file]),
        (SET_MEM_TABLE, mem_table_of(&[page[0]; 8])[..100].to_vec(), vec![file; 8]),
        (SET_MEM_TABLE, mem_table_of(&[page[0]; 9]), vec![file; 9]),
        (SET_VRING_NUM, state(TX, 0), vec![]),
        (SET_VRING_NUM, state(TX, 255), vec![]),
        (SET_VRING_NUM, state(TX, 65536), vec![]),
        (SET_VRING_NUM, state(TX, u32::MAX), vec![]),
        (SET_VRING_NUM, state(2, 256), vec![]),
        (SET_VRING_BASE, state(TX, 65536), vec![]),
        (SET_VRING_KICK, 0u64.to_ne_bytes().to_vec(), vec![]),
        (SET_VRING_KICK, 0u64.to_ne_bytes().to_vec(), vec![file]),
        (SET_VRING_KICK, 2u64.to_ne_bytes().to_vec(), vec![pipe.0.as_fd()]),
        (SET_VRING_CALL, 0u64.to_ne_bytes().to_vec(), vec![file; 30]),
        (GET_VRING_BASE, state(7, 0), vec![]),
        (0, vec![], vec![]),
        (999, vec![], vec![]),
    ];
    let count = wrong.len() as u64;
    for (code, payload, fds) in wrong {
        let mut front_end = FrontEnd::connect(&sockets.vhost_user);
        front_end.negotiate(&vm);
        front_end.tell(code, &payload, &fds);
        assert!(front_end.closed(), "request {code} with {payload:x?}");
    }
    // Rings that cannot be are only found when they start; the connection stays.
    let mut front_end = FrontEnd::connect(&sockets.vhost_user);
    front_end.negotiate(&vm);
    front_end.start(&vm, FEATURES);
    for (at, change) in
        [(8, 8), (16, 2), (24, 1), (8, 1 << 40), (16, MEMORY_BYTES - (1 << 20) - 0x20000 - 4), (24, u64::MAX)]
    {
        let mut payload = addr(TX);
        let word = u64::from_ne_bytes(payload[at..at + 8].try_into().unwrap()).wrapping_add(change);
        payload[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        front_end.tell(SET_VRING_ADDR, &payload, &[]);
        front_end.tell(SET_VRING_KICK, &1u64.to_ne_bytes(), &[vm.rings[TX].kick.as_fd()]);
        assert!(wait(vm.rings[TX].err.as_fd(), 20_000), "address {at} off by {change:#x}");
        vm.rings[TX].err.read().unwrap();
    }
    front_end.stop();
    front_end.start(&vm, FEATURES);
    assert!(vm.send(PLAIN, &numbered(1, 60)));
    assert_eq!(router.receive_number(), Some(1));
    let counters = port.stop();
    assert_eq!((counters.front_end_errors, counters.broken_rings), (count, 6));
}

#[test]
fn repeated_messages_leak_nothing() {
    let (sockets, vm) = (Sockets::new(), Vm::new());
    let port = sockets.process();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let _router = Router::connect(&sockets.link);
    front_end.acknowledged(SET_BACKEND_REQ_FD, &[], &[vm.rings[0].err.as_fd()]);
    front_end.sync();
    let before = port.holds();
    let repeat = std::env::var("PORT_REPEAT").map_or(2_000, |n| n.parse().unwrap());
    for _ in 0..repeat {
        for index in [RX, TX] {
            let ring = &vm.rings[index];
            front_end.tell(SET_VRING_KICK, &(index as u64).to_ne_bytes(), &[ring.kick.as_fd()]);
            front_end.tell(SET_VRING_CALL, &(index as u64).to_ne_bytes(), &[ring.call.as_fd()]);
            front_end.tell(SET_VRING_ERR, &(index as u64).to_ne_bytes(), &[ring.err.as_fd()]);
        }
        front_end.tell(SET_BACKEND_REQ_FD, &[], &[vm.rings[0].err.as_fd()]);
        // Descriptors that nobody asked for, and a table with some.
        front_end.tell(SET_OWNER, &[], &[vm.file.as_fd(); 8]);
        assert!(front_end.acknowledged(SET_MEM_TABLE, &mem_table(), &[vm.file.as_fd()]));
    }
    front_end.sync();
    assert_eq!(port.holds(), before);

    // Connections, with and without faults, leave nothing either.
    drop(front_end);
    for i in 0..500 {
        let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
        if i % 2 == 0 {
            front_end.tell(SET_OWNER, &[], &[vm.file.as_fd(); 50]);
            assert!(front_end.closed());
        }
        drop(Router::connect(&sockets.link));
    }
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let _router = Router::connect(&sockets.link);
    front_end.acknowledged(SET_BACKEND_REQ_FD, &[], &[vm.rings[0].err.as_fd()]);
    assert_eq!(port.holds(), before);
}

#[test]
fn garbage_never_ends_the_process() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let mut port = sockets.process();
    // A fixed sequence (xorshift), so that what fails once fails again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut front_end = FrontEnd::connect(&sockets.vhost_user);
        if round % 3 > 0 {
            front_end.negotiate(&vm);
            front_end.start(&vm, FEATURES);
        }
        for _ in 0..50 {
            let words = random() % 8;
            let mut message = vec![];
            // Mostly well-formed headers with senseless payloads: the others do not get far.
            let code = (random() % 45) as u32;
            let size = if random() % 16 == 0 { random() as u32 } else { words as u32 * 8 };
            [code, 1 | (random() as u32 & 8), size].iter().for_each(|word| message.extend(word.to_ne_bytes()));
            for _ in 0..words {
                let word = match random() % 4 {
                    0 => random(),
                    1 => random() % 4,
                    2 => USER_BASE + random() % MEMORY_BYTES,
                    _ => 1 << (random() % 64),
                };
                message.extend(word.to_ne_bytes());
            }
            let fds = [vm.file.as_fd(), vm.rings[0].kick.as_fd()];
            let fds = &fds[..(random() % 3) as usize];
            if front_end.send_raw(&message, fds).is_err() {
                break;
            }
        }
        vm.set_avail_index(TX, random() as u16);
        vm.kick(TX);
    }
    assert!(port.runs());
    vm.reset();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    assert!(vm.send(PLAIN, &numbered(5, 60)));
    assert_eq!(router.receive_number(), Some(5));
}

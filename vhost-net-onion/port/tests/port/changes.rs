//! What a front-end may change while frames flow: memory and features.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use port::DropReason;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use wire::link::{Abilities, Offload};

use crate::{
    front_end::*,
    port::Sockets,
    router::{Router, number, numbered},
};

const PLAIN: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
const PARTIAL: Offload = Offload { flags: 1, csum_start: 34, csum_offset: 16, ..PLAIN };
const ALL: Abilities = Abilities { checksum: true, tso4: true, tso6: true };

const DIMM_BYTES: u64 = 1 << 20;

/// A memory module that is plugged into a running VM.
struct Dimm {
    guest_addr: u64,
    memory: GuestMemoryMmap,
    file: OwnedFd,
}

impl Dimm {
    fn new(index: u64) -> Dimm {
        let guest_addr = GUEST_BASE + MEMORY_BYTES + 16 * DIMM_BYTES * (index + 1);
        let file = memfd_create("dimm", MFdFlags::MFD_CLOEXEC).unwrap();
        let memory = File::from(file.try_clone().unwrap());
        memory.set_len(DIMM_BYTES).unwrap();
        let mapping = MmapRegion::from_file(FileOffset::new(memory, 0), DIMM_BYTES as usize).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(guest_addr)).unwrap();
        Dimm { guest_addr, memory: GuestMemoryMmap::from_regions(vec![region]).unwrap(), file }
    }

    fn region(&self) -> [u64; 4] {
        [self.guest_addr, DIMM_BYTES, USER_BASE + (self.guest_addr - GUEST_BASE), 0]
    }

    /// Has the driver send a frame out of this memory, and waits until the port is done with it.
    fn send(&self, vm: &mut Vm, frame: &[u8]) {
        let message = [&[0; 12][..], frame].concat();
        self.memory.write_slice(&message, GuestAddress(self.guest_addr)).unwrap();
        let head = vm.offered(TX) % RING;
        vm.set_descriptor(TX, head, self.guest_addr, message.len() as u32, 0, 0);
        vm.offer(TX, head);
        vm.kick(TX);
        assert_eq!(vm.wait_completed(TX), (head, 0));
    }

    /// Has the port write a frame into this memory.
    fn receive(&self, vm: &mut Vm, router: &mut Router, frame: &[u8]) {
        let head = vm.offered(RX) % RING;
        vm.set_descriptor(RX, head, self.guest_addr, 4096, WRITE, 0);
        vm.offer(RX, head);
        vm.kick(RX);
        router.send(PLAIN, frame);
        let bytes = 12 + frame.len() as u32;
        assert_eq!(vm.wait_completed(RX), (head, bytes));
        let mut message = vec![0; bytes as usize];
        self.memory.read_slice(&mut message, GuestAddress(self.guest_addr)).unwrap();
        assert_eq!(&message[12..], frame);
    }
}

/// Hands over the VM's memory with these modules.
fn hand_over(front_end: &mut FrontEnd, vm: &Vm, dimms: &[Dimm]) {
    let first = [GUEST_BASE, MEMORY_BYTES, USER_BASE, OFFSET];
    let regions: Vec<_> = std::iter::once(first).chain(dimms.iter().map(Dimm::region)).collect();
    let files = std::iter::once(vm.file.as_fd()).chain(dimms.iter().map(|dimm| dimm.file.as_fd()));
    let files: Vec<BorrowedFd<'_>> = files.collect();
    assert!(front_end.acknowledged(SET_MEM_TABLE, &mem_table_of(&regions), &files));
}

#[test]
fn memory_that_is_plugged_in_is_used_and_unplugged_is_not() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    let mut dimms = vec![];
    for i in 0..7 {
        let dimm = Dimm::new(i);
        // Not yet there: the chain is bad, and nothing else is harmed.
        dimm.send(&mut vm, &numbered(100, 1000));
        dimms.push(dimm);
        hand_over(&mut front_end, &vm, &dimms);
        for dimm in &dimms {
            dimm.send(&mut vm, &numbered(i as u32, 1000));
            assert_eq!(router.receive_number(), Some(i as u32));
            dimm.receive(&mut vm, &mut router, &numbered(i as u32, 1000));
        }
    }
    while let Some(dimm) = dimms.pop() {
        hand_over(&mut front_end, &vm, &dimms);
        dimm.send(&mut vm, &numbered(100, 1000));
    }
    assert!(vm.send(PLAIN, &numbered(9, 60)));
    assert_eq!(router.receive_number(), Some(9));
    let counters = port.stop();
    assert_eq!(counters.dropped(DropReason::TxChain), 14);
    assert_eq!((counters.front_end_errors, counters.broken_rings), (0, 0));
}

#[test]
fn memory_is_plugged_in_under_load_without_a_loss() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    let dimms: Vec<_> = (0..7).map(Dimm::new).collect();
    let mut sender = router.stream.try_clone().unwrap();
    let frames = 5000;
    vm.give_buffers(16, 1530);
    let towards_vm = std::thread::spawn(move || {
        for i in 0..frames {
            let mut bytes = vec![];
            wire::link::encode(&numbered(i, 60 + (i % 1400) as usize), PLAIN, &mut bytes).unwrap();
            std::io::Write::write_all(&mut sender, &bytes).unwrap();
        }
    });
    for i in 0..frames {
        while !vm.send(PLAIN, &numbered(i, 60)) {
            vm.wait_completed(TX);
        }
        if i % 10 == 0 {
            hand_over(&mut front_end, &vm, &dimms[..(i / 10 % 8) as usize]);
        }
        assert_eq!(number(&vm.receive().1), i);
        vm.give_buffers(1, 1530);
        assert_eq!(router.receive_number(), Some(i));
    }
    towards_vm.join().unwrap();
    assert_eq!(port.stop().front_end_errors, 0);
}

#[test]
fn features_that_change_under_load_cost_no_frame() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    assert_eq!(router.receive_abilities(), ALL);
    vm.give_buffers(RING, 1530);
    for i in 0..500 {
        let (features, abilities) =
            if i % 2 == 0 { (FEATURES & !OFFLOADS, Abilities::default()) } else { (FEATURES, ALL) };
        for _ in 0..4 {
            router.send(PLAIN, &numbered(i, 200));
        }
        front_end.tell(SET_FEATURES, &features.to_ne_bytes(), &[]);
        assert_eq!(router.receive_abilities(), abilities);
        // What the driver can is looked at from now on.
        router.send(PARTIAL, &numbered(i, 200));
        assert!(vm.send(PLAIN, &numbered(i, 60)));
        assert_eq!(router.receive_number(), Some(i));
        vm.wait_completed(TX);
        for _ in 0..4 + u32::from(abilities.checksum) {
            assert_eq!(number(&vm.receive().1), i);
            vm.give_buffers(1, 1530);
        }
    }
    // The last one that was dropped may still be on its way.
    router.send(PLAIN, &numbered(0, 60));
    vm.receive();
    let counters = port.stop();
    assert_eq!((counters.rx_frames, counters.tx_frames, counters.front_end_errors), (2251, 500, 0));
    assert_eq!(counters.dropped(DropReason::Ability), 250);
}

#[test]
fn a_driver_that_is_loaded_again_may_want_something_else() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    // A boot loader that can nothing, a kernel, another one, and a driver of virtio before version 1.
    let plain = FEATURES & !(OFFLOADS | F_MERGEABLE);
    for features in [plain, FEATURES, FEATURES & !F_EVENT_IDX, plain & !F_EVENT_IDX, FEATURES & !F_MERGEABLE, FEATURES]
    {
        front_end.stop();
        vm.reset();
        front_end.start(&vm, features);
        vm.give_buffers(32, 2048);
        vm.kick(RX);
        for i in 0..32 {
            assert!(vm.send(PLAIN, &numbered(i, 60)));
            vm.kick(TX);
            assert_eq!(router.receive_number(), Some(i));
            vm.wait_completed(TX);
            router.send(PLAIN, &numbered(i, 1514));
            assert_eq!(number(&vm.receive().1), i);
        }
    }
    let counters = port.stop();
    assert_eq!((counters.front_end_errors, counters.broken_rings), (0, 0));
}

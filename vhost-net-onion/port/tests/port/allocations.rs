//! That frames cost no allocation: the threads that say so are counted.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use port::Put;
use wire::link::Offload;

use crate::{
    front_end::*,
    in_process::started,
    port::Sockets,
    router::{Router, number, numbered},
};

const PLAIN: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
const TSO: Offload = Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };

/// Frames before anything is counted: they make whatever is made once.
const WARM_UP: u32 = 600;

/// Frames that are counted.
const FRAMES: u32 = 3000;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// Counts what this thread allocates from now on, or not.
pub fn count_this_thread(counted: bool) {
    COUNTED.set(counted);
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[allow(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: everything is the system allocator's; the counting touches no memory of its own but a cell and an atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.get() {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn frames_cost_no_allocation() {
    // One after the other: they share the counter.
    over_the_link();
    in_process();
}

fn over_the_link() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.counted_thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    vm.give_buffers(RING, 1530);
    let mut before = 0;
    for i in 0..WARM_UP + FRAMES {
        if i == WARM_UP {
            before = ALLOCATIONS.load(Relaxed);
        }
        assert!(vm.send(PLAIN, &numbered(i, 60 + (i % 1400) as usize)));
        assert_eq!(router.receive_number(), Some(i));
        vm.wait_completed(TX);
        // Now and then frames that take many buffers, and more of them than there are buffers for.
        let (offload, bytes, frames) = if i % 100 == 0 { (TSO, 60_000, 8) } else { (PLAIN, 60, 1) };
        for _ in 0..frames {
            router.send(offload, &numbered(i, bytes));
        }
        for _ in 0..frames {
            receive(&mut vm, i);
        }
    }
    assert_eq!(ALLOCATIONS.load(Relaxed) - before, 0, "allocations for {FRAMES} frames each way");
    assert_eq!(port.stop().tx_frames, u64::from(WARM_UP + FRAMES));
}

/// Receives a frame and gives its buffers back.
fn receive(vm: &mut Vm, expected: u32) {
    let (_, frame, buffers) = vm.receive();
    assert_eq!(number(&frame), expected);
    vm.give_buffers(buffers, 1530);
}

fn in_process() {
    let (_sockets, mut vm, mut port, _front_end) = started(FEATURES);
    vm.give_buffers(RING, 1530);
    let before = ALLOCATIONS.load(Relaxed);
    for i in 0..FRAMES {
        let frame = numbered(i, if i % 10 == 0 { 60_000 } else { 60 });
        let offload = if i % 10 == 0 { TSO } else { PLAIN };
        assert!(vm.send(PLAIN, &numbered(i, 60)));
        count_this_thread(true);
        port.turn().unwrap();
        port.take_tx(8, |_, frame| assert_eq!(frame.len(), 60));
        let put = port.put_rx(offload, &frame[..54], &frame[54..]);
        port.publish();
        count_this_thread(false);
        assert_eq!(put, Put::Delivered);
        vm.wait_completed(TX);
        receive(&mut vm, i);
    }
    assert_eq!(ALLOCATIONS.load(Relaxed) - before, 0, "allocations for {FRAMES} frames each way, in-process");
}

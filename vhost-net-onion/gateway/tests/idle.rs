//! What a flow costs that does nothing. A program of its own, as its allocator counts for all threads.

#[path = "../examples/flows/allocator.rs"]
mod allocator;
#[path = "../examples/flows/vm.rs"]
#[allow(dead_code, reason = "the example needs more of it")]
mod vm;

use std::time::Duration;

use bytes::Bytes;
use gateway::Config;

use crate::vm::{Connection, Vm};

/// Bytes that an idle flow may cost, all tables and timers included.
const IDLE_BYTES_MAX: usize = 2048;

const FLOWS: usize = 10_000;

/// Runs with no other test beside it: what they allocate would be counted.
#[test]
fn an_idle_flow_costs_little_also_after_it_was_busy() {
    let mut vm = Vm::new(Config { flows_max: FLOWS, ..Config::default() });
    let before = allocator::allocated();
    let mut connections: Vec<Connection> = (0..FLOWS).map(|n| vm.connect(n as u32)).collect();
    let of_test = connections.capacity() * size_of::<Connection>();
    let bytes = |vm: &Vm| {
        assert_eq!(vm.gateway.flows(), FLOWS);
        (allocator::allocated() - before - of_test) / FLOWS
    };
    let fresh = bytes(&vm);
    assert!(fresh <= IDLE_BYTES_MAX, "{fresh} bytes a flow");

    let payload = Bytes::from(vec![7; 500]);
    for connection in &mut connections {
        for _ in 0..20 {
            vm.send(connection, &payload);
            assert_eq!(vm.take(connection), 500);
            assert_eq!(vm.give(connection, &payload), 0);
            while vm.poll_frame().is_some() {}
            vm.acknowledge(connection, 500);
            while vm.gateway.poll_event().is_some() {}
        }
    }
    vm.wait(Duration::from_secs(1000));
    let used = bytes(&vm);
    eprintln!("{fresh} bytes a flow, {used} after it was busy");
    assert!(used <= IDLE_BYTES_MAX, "{used} bytes a flow");
    drop(payload);
}

//! What the gateway costs, alone: a packet among so many flows, an idle flow, and a byte each way.
//!
//! Prints a JSON line for each figure. Nothing is on the wire: frames are handed over in this process, by a driver that
//! leaves checksums and segmentation to whoever comes next. The time is the CPU's, as there is one thread.

mod allocator;
mod vm;

use std::time::Duration;

use bytes::Bytes;
use gateway::Config;

use crate::vm::{Connection, Vm};

/// Flows that are used in turn, while the others are idle.
const ACTIVE: usize = 16;

/// How often each figure is taken; the least is printed, as whatever else the machine does only adds to it.
const REPEATS: usize = 5;

/// Payload of the packets whose cost is measured.
const PACKET_BYTES: usize = 1000;

/// Payload of the frames of a bulk transfer.
const BULK_BYTES: usize = 44 * 1460;

fn main() {
    for flows in [1, 100, 1_000, 10_000] {
        let (ns, bytes) = packet(flows);
        println!(r#"{{"figure":"flows","flows":{flows},"ns_per_packet":{ns:.1},"bytes_per_flow":{bytes}}}"#);
    }
    println!(r#"{{"figure":"bulk","direction":"from the VM","gbit_per_s":{:.1}}}"#, best(from_vm));
    println!(r#"{{"figure":"bulk","direction":"to the VM","gbit_per_s":{:.1}}}"#, best(to_vm));
}

fn config(flows: usize) -> Config {
    Config { flows_max: flows + 1, buffers_bytes_max: (16 << 20).max(flows << 16), ..Config::default() }
}

/// Nanoseconds of a packet when there are so many flows, and bytes of one that is idle.
fn packet(flows: usize) -> (f64, usize) {
    let mut vm = Vm::new(config(flows));
    let before = allocator::allocated();
    let mut connections: Vec<Connection> = (0..flows).map(|n| vm.connect(n as u32)).collect();
    vm.wait(Duration::from_secs(600));
    let of_test = connections.capacity() * size_of::<Connection>();
    let bytes = (allocator::allocated() - before - of_test) / flows;
    let active = connections.len().min(ACTIVE);
    let rounds = 200_000 / active;
    let ns = (0..REPEATS).map(|_| round_robin(&mut vm, &mut connections[..active], rounds)).fold(f64::MAX, f64::min);
    (ns, bytes)
}

/// Nanoseconds of a packet: data from the VM, its acknowledgement, data to the VM, its acknowledgement.
fn round_robin(vm: &mut Vm, connections: &mut [Connection], rounds: usize) -> f64 {
    let payload = Bytes::from(vec![7; PACKET_BYTES]);
    let began = cpu_time();
    for _ in 0..rounds {
        for connection in connections.iter_mut() {
            vm.send(connection, &payload);
            assert_eq!(vm.take(connection), PACKET_BYTES);
            assert!(vm.poll_frame().is_some());
            assert_eq!(vm.give(connection, &payload), 0);
            assert_eq!(vm.poll_frame().map(|frame| frame.body.len()), Some(PACKET_BYTES));
            vm.acknowledge(connection, PACKET_BYTES);
            while vm.gateway.poll_event().is_some() {}
        }
        vm.wait(Duration::from_micros(50));
    }
    (cpu_time() - began).as_nanos() as f64 / (4 * rounds * connections.len()) as f64
}

fn best(measure: fn() -> f64) -> f64 {
    (0..REPEATS).map(|_| measure()).fold(0.0, f64::max)
}

/// Gigabits a second from the VM: frames that are yet to be cut into segments.
fn from_vm() -> f64 {
    let mut vm = Vm::new(config(1));
    let mut connection = vm.connect(0);
    let payload = vec![7; BULK_BYTES];
    let mut room = 16 << 10;
    let (mut bytes, mut began) = (0, cpu_time());
    for round in 0..21_000 {
        if round == 1_000 {
            // The window has grown by now.
            (bytes, began) = (0, cpu_time());
        }
        let count = BULK_BYTES.min(room);
        vm.send(&mut connection, &payload[..count]);
        assert_eq!(vm.take(&connection), count);
        while let Some(frame) = vm.poll_frame() {
            room = usize::from(u16::from_be_bytes([frame.head[48], frame.head[49]])) << 3;
        }
        while vm.gateway.poll_event().is_some() {}
        bytes += count;
    }
    gigabits(bytes, cpu_time() - began)
}

/// Gigabits a second to the VM, in frames that its driver cuts into segments.
fn to_vm() -> f64 {
    let mut vm = Vm::new(config(1));
    let mut connection = vm.connect(0);
    let payload = Bytes::from(vec![7; 64 << 10]);
    let (mut bytes, mut given) = (0, 0);
    let began = cpu_time();
    while bytes < 20_000 * payload.len() {
        while vm.give(&connection, &payload) == 0 {
            given += 1;
        }
        let mut sent = 0;
        while let Some(frame) = vm.poll_frame() {
            sent += frame.body.len();
        }
        vm.acknowledge(&mut connection, sent);
        bytes += sent;
        while vm.gateway.poll_event().is_some() {}
    }
    assert!(given > 0 && vm.gateway.counters().retransmits == 0);
    gigabits(bytes, cpu_time() - began)
}

fn gigabits(bytes: usize, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_nanos() as f64
}

/// Time that this thread has had a processor, as the kernel counts it.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let ns = text.split(' ').next().and_then(|field| field.parse().ok()).expect("its first field is a number");
    Duration::from_nanos(ns)
}

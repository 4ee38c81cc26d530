//! What the port costs for a frame on its link, in CPU time.
//!
//! A driver and a router in this process, on threads of their own, exchange frames through a port on a third one, named
//! `port`: as many at once as the ring holds (`bulk`), or one after the other (`single`). Prints a JSON line for each
//! size and direction. For the system calls run it under `perf trace -s`, which counts them by thread, with the number
//! of a line as argument.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]

#[path = "../tests/port/front_end.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests need more of it")]
mod front_end;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::mpsc,
    time::Instant,
};

use front_end::{BUFFER_BYTES, FrontEnd, RING, TX, Vm};
use nix::sys::resource;
use port::{Options, Stop, serve};
use wire::{
    VmName,
    hello::{Hello, Role},
    link::{Decoder, Message, Offload, encode},
};

const TSO: Offload = Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };

/// Bytes that the router collects for one write.
const BATCH_BYTES: usize = 64 * 1024;

fn main() {
    let only: Option<u32> = std::env::args().nth(1).map(|number| number.parse().unwrap());
    let mut line = 0;
    let mut measure = |direction, mode, bytes, frames, exchange: &dyn Fn(&mut Vm, UnixStream)| {
        line += 1;
        if only.is_none_or(|only| only == line) {
            measure(direction, mode, bytes, frames, exchange);
        }
    };
    for (bytes, frames) in [(64, 1_000_000), (1514, 500_000), (65_000, 50_000)] {
        for (mode, in_flight, frames) in [("bulk", RING, frames), ("single", 1, frames / 20)] {
            measure("tx", mode, bytes, frames, &|vm, stream| transmit(vm, stream, bytes, frames, in_flight));
            measure("rx", mode, bytes, frames, &|vm, stream| receive(vm, stream, bytes, frames, in_flight));
        }
    }
}

/// Runs `exchange` with a port and prints what that cost the port.
fn measure(direction: &str, mode: &str, bytes: usize, frames: u32, exchange: &dyn Fn(&mut Vm, UnixStream)) {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["net", "link"].map(|name| dir.path().join(name));
    let listeners = [0, 1].map(|i| UnixListener::bind(&paths[i]).unwrap());
    let stop = Stop::new().unwrap();
    let stopped = stop.clone();
    let port = std::thread::Builder::new().name("port".into()).spawn(move || {
        let [vhost_user, link] = listeners;
        serve(&name(), vhost_user, link, Options::default(), &stopped).unwrap();
        let usage = resource::getrusage(resource::UsageWho::RUSAGE_THREAD).unwrap();
        [usage.user_time(), usage.system_time()].map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
    });
    let mut vm = Vm::new();
    let _front_end = FrontEnd::with(&paths[0], &vm);
    let stream = greeted(&paths[1]);
    let began = Instant::now();
    exchange(&mut vm, stream);
    let seconds = began.elapsed().as_secs_f64();
    stop.stop();
    let cpu_seconds: f64 = port.unwrap().join().unwrap().iter().sum();
    println!(
        "{{\"direction\":\"{direction}\",\"mode\":\"{mode}\",\"bytes\":{bytes},\"frames\":{frames},\
         \"seconds\":{seconds:.3},\"port_cpu_us_per_frame\":{:.3}}}",
        cpu_seconds * 1e6 / f64::from(frames),
    );
}

fn name() -> VmName {
    "cost".parse().unwrap()
}

fn greeted(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(&Hello::for_vm(Role::Router, name()).encode()).unwrap();
    let mut answer = vec![0; Hello::for_vm(Role::Port, name()).encode().len()];
    stream.read_exact(&mut answer).unwrap();
    stream
}

/// The driver sends, with at most `in_flight` chains under way, and the router reads.
fn transmit(vm: &mut Vm, mut stream: UnixStream, bytes: usize, frames: u32, in_flight: u16) {
    let router = std::thread::spawn(move || {
        let (mut decoder, mut received) = (Decoder::default(), 0);
        while received < frames {
            let count = stream.read(decoder.spare()).unwrap();
            decoder.filled(count);
            while let Some(message) = decoder.next_message().unwrap() {
                received += u32::from(matches!(message, Message::Frame(..)));
            }
        }
    });
    let header = [&TSO.to_bytes()[..], &[0, 0]].concat();
    let buffer = vm.buffer(TX, 0);
    vm_memory::Bytes::write_slice(&vm.memory, &header, vm_memory::GuestAddress(buffer)).unwrap();
    for _ in 0..frames {
        while vm.in_flight(TX) >= in_flight {
            vm.wait_completed(TX);
        }
        let before = vm.offered(TX);
        vm.set_descriptor(TX, before % RING, buffer, (header.len() + bytes) as u32, 0, 0);
        vm.offer(TX, before % RING);
        vm.kick_if_wanted(TX, before);
    }
    router.join().unwrap();
}

/// The router writes, at most `in_flight` frames ahead, and the driver takes.
fn receive(vm: &mut Vm, mut stream: UnixStream, bytes: usize, frames: u32, in_flight: u16) {
    let mut message = vec![];
    encode(&vec![0; bytes], TSO, &mut message).unwrap();
    let per_write = (BATCH_BYTES / message.len()).clamp(1, usize::from(in_flight / 2).max(1)) as u32;
    let batch = message.repeat(per_write as usize);
    let (permit, permits) = mpsc::sync_channel(usize::from(in_flight));
    let router = std::thread::spawn(move || {
        let mut sent = 0;
        while sent < frames {
            let now = per_write.min(frames - sent);
            (0..now).for_each(|_| permits.recv().unwrap());
            stream.write_all(&batch[..now as usize * message.len()]).unwrap();
            sent += now;
        }
        // The link stays until everything has arrived.
        while permits.recv().is_ok() {}
    });
    (0..in_flight).for_each(|_| permit.send(()).unwrap());
    vm.give_buffers(RING, BUFFER_BYTES);
    for _ in 0..frames {
        let (_, _, buffers) = vm.receive();
        vm.give_buffers(buffers, BUFFER_BYTES);
        // The router may have ended by now.
        let _ = permit.send(());
    }
    drop(permit);
    router.join().unwrap();
}

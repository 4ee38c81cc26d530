//! Every part is restarted while frames flow; the VM notices nothing but a pause.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::mpsc,
};

use wire::{
    hello::{Hello, Role},
    link::Offload,
};

use crate::{
    front_end::*,
    port::{Sockets, vm as vm_name},
    router::{Router, number, numbered},
};

const PLAIN: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

/// Frames that are sent between two restarts.
const ROUND: u32 = 3000;

/// Reads a link to its end on a thread, and reports every number.
fn read_to_the_end(mut router: Router, numbers: mpsc::Sender<u32>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while let Some(number) = router.receive_number() {
            numbers.send(number).unwrap();
        }
    })
}

/// Frames may come twice after a restart, but every one comes, and each first time in order.
fn assert_complete(numbers: impl IntoIterator<Item = u32>, count: u32) {
    let mut next = 0;
    for number in numbers {
        assert!(number <= next, "{number} came, {next} is missing");
        next = next.max(number + 1);
    }
    assert_eq!(next, count);
}

fn send_round(vm: &mut Vm, from: u32, count: u32) {
    for i in from..from + count {
        while !vm.send(PLAIN, &numbered(i, 60 + (i % 1400) as usize)) {
            vm.wait_completed(TX);
        }
    }
}

#[test]
fn a_killed_port_loses_nothing() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let (sender, numbers) = mpsc::channel();
    let rounds = 10;
    for round in 0..rounds {
        let port = sockets.process();
        let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
        let reader = read_to_the_end(Router::connect(&sockets.link), sender.clone());
        send_round(&mut vm, round * ROUND, ROUND);
        if round + 1 == rounds {
            while vm.in_flight(TX) > 0 {
                vm.wait_completed(TX);
            }
        }
        // In the middle of what is in the ring.
        port.kill();
        reader.join().unwrap();
    }
    drop(sender);
    assert_complete(numbers, rounds * ROUND);
}

#[test]
fn a_killed_port_goes_on_receiving() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    vm.give_buffers(RING, 1530);
    let mut next = 0;
    for _ in 0..5 {
        let port = sockets.process();
        let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
        let mut router = Router::connect(&sockets.link);
        for _ in 0..1000 {
            router.send(PLAIN, &numbered(next, 200));
            assert_eq!(number(&vm.receive().1), next);
            vm.give_buffers(1, 1530);
            next += 1;
        }
        port.kill();
    }
}

#[test]
fn a_front_end_that_comes_back_goes_on() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let (sender, numbers) = mpsc::channel();
    let reader = read_to_the_end(Router::connect(&sockets.link), sender);
    let rounds = 10;
    for round in 0..rounds {
        let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
        send_round(&mut vm, round * ROUND, ROUND);
        if round % 2 == 0 {
            // Orderly: the port says where it stopped, and every chain before that is complete.
            assert_eq!(front_end.stop()[TX], u64::from(vm.used_index(TX)));
            front_end.start(&vm, FEATURES);
        }
        while round + 1 == rounds && vm.in_flight(TX) > 0 {
            vm.wait_completed(TX);
        }
    }
    let counters = port.stop();
    reader.join().unwrap();
    assert_complete(numbers, rounds * ROUND);
    assert_eq!((counters.front_ends, counters.front_end_errors), (10, 0));
}

#[test]
fn a_driver_that_is_loaded_again_begins_afresh() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    for round in 0..20 {
        vm.give_buffers(16, 1530);
        for i in 0..16 {
            assert!(vm.send(PLAIN, &numbered(round * 16 + i, 60)));
            assert_eq!(router.receive_number(), Some(round * 16 + i));
            router.send(PLAIN, &numbered(i, 60));
            assert_eq!(number(&vm.receive().1), i);
            vm.wait_completed(TX);
        }
        assert_eq!(front_end.stop(), [16, 16]);
        vm.reset();
        front_end.start(&vm, FEATURES);
    }
    assert_eq!(port.stop().front_end_errors, 0);
}

#[test]
fn memory_that_is_handed_over_again_changes_nothing() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let mut front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    for i in 0..100 {
        use std::os::fd::AsFd;
        assert!(vm.send(PLAIN, &numbered(i, 60)));
        assert!(front_end.acknowledged(SET_MEM_TABLE, &mem_table(), &[vm.file.as_fd()]));
        assert_eq!(router.receive_number(), Some(i));
        vm.wait_completed(TX);
    }
    port.stop();
}

#[test]
fn a_ring_filled_without_a_link_is_carried_when_it_comes() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    for i in 0..u32::from(RING) {
        assert!(vm.send(PLAIN, &numbered(i, 60)));
    }
    assert!(!vm.send(PLAIN, &numbered(0, 60)), "full");
    let mut router = Router::connect(&sockets.link);
    for i in 0..u32::from(RING) {
        assert_eq!(router.receive_number(), Some(i));
    }
    vm.wait_completed(TX);
    port.stop();
}

#[test]
fn the_newest_link_counts_and_begins_with_a_whole_message() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let (sender, numbers) = mpsc::channel();
    vm.give_buffers(RING, 1530);
    let mut sent = 0;
    for round in 0..10 {
        let mut old = Router::connect(&sockets.link);
        // The old link is full: what the port has begun to write on it ends in the middle of a message.
        while vm.send(PLAIN, &numbered(sent, 1514)) || !vm.stalls(TX) {
            sent += u32::from(vm.in_flight(TX) > 0 && number_in_ring(&vm) == sent);
        }
        // Half a message towards the VM is forgotten with the link.
        old.stream.write_all(&[100, 0, 0, 0, 1, 2, 3]).unwrap();
        let mut new = Router::connect(&sockets.link);
        new.send(PLAIN, &numbered(round, 60));
        assert_eq!(number(&vm.receive().1), round);
        // The old one is closed, after what was written to it; a message that was cut off is not taken for one.
        read_to_the_end(old, sender.clone()).join().unwrap();
        let last = loop {
            let number = new.receive_number().unwrap();
            sender.send(number).unwrap();
            if number + 1 == sent {
                break number;
            }
        };
        assert_eq!(last + 1, sent);
        while vm.in_flight(TX) > 0 {
            vm.wait_completed(TX);
        }
    }
    drop(sender);
    assert_complete(numbers, sent);
    assert_eq!(port.stop().links, 20);
}

/// The number in the frame that was sent last.
fn number_in_ring(vm: &Vm) -> u32 {
    use vm_memory::{Bytes, GuestAddress};
    let last = vm.offered(TX).wrapping_sub(1) % RING;
    vm.memory.read_obj(GuestAddress(vm.buffer(TX, last) + 12)).unwrap()
}

#[test]
fn strangers_do_not_disturb_the_link() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let mut router = Router::connect(&sockets.link);
    let other = Hello::for_vm(Role::Router, "mail".parse().unwrap()).encode();
    let not_router = Hello::for_vm(Role::Init, vm_name()).encode();
    let mut silent = vec![];
    for (i, hello) in [&b"GET / HTTP/1.1\r\n"[..], &other, &not_router, b""].iter().cycle().take(100).enumerate() {
        let mut stranger = UnixStream::connect(&sockets.link).unwrap();
        let _ = stranger.write_all(hello);
        if hello.is_empty() {
            silent.push(stranger);
        } else {
            assert!(matches!(stranger.read(&mut [0; 64]), Ok(0) | Err(_)), "closed without an answer");
        }
        assert!(vm.send(PLAIN, &numbered(i as u32, 60)));
        assert_eq!(router.receive_number(), Some(i as u32));
        vm.wait_completed(TX);
    }
    // The silent ones do not keep the next router out.
    let mut router = Router::connect(&sockets.link);
    assert!(vm.send(PLAIN, &numbered(7, 60)));
    assert_eq!(router.receive_number(), Some(7));
    port.stop();
}

#[test]
fn a_router_that_breaks_the_protocol_loses_its_link_only() {
    let (sockets, mut vm) = (Sockets::new(), Vm::new());
    let port = sockets.thread();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    for length in [0u32, 9, 23, 65_564, u32::MAX] {
        let mut router = Router::connect(&sockets.link);
        router.stream.write_all(&length.to_le_bytes()).unwrap();
        assert!(router.receive().is_none(), "closed for length {length}");
    }
    let mut router = Router::connect(&sockets.link);
    assert!(vm.send(PLAIN, &numbered(7, 60)));
    assert_eq!(router.receive_number(), Some(7));
    port.stop();
}

#[test]
fn the_process_ends_when_asked_to() {
    let (sockets, vm) = (Sockets::new(), Vm::new());
    let port = sockets.process();
    let _front_end = FrontEnd::with(&sockets.vhost_user, &vm);
    let _router = Router::connect(&sockets.link);
    assert!(port.terminate().success());
}

#[test]
fn wrong_arguments_say_what_is_wrong() {
    let refused = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_oht-port")).args(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = PathBuf::from("/nonexistent/socket").display().to_string();
    assert!(refused(&["--vm", "../web"]).contains("VM name"));
    assert!(refused(&["--vm", "web", "--link", "x"]).contains("--vhost-user"));
    assert!(refused(&["--vm", "web", "--vhost-user-fd", "77", "--link-fd", "78"]).contains("77 is not open"));
    assert!(refused(&["--vm", "web", "--vhost-user-fd", "1", "--link-fd", "78"]).contains("standard"));
    assert!(refused(&["--vm", "web", "--vhost-user-fd", "7", "--link-fd", "7"]).contains("different"));
    assert!(refused(&["--vm", "web", "--vhost-user", &missing, "--link", &missing]).contains(&missing));
}

//! Whole histories of a gateway: frames, time, and what a pump may do, in any order.
//!
//! `cargo +nightly fuzz run frames` in the folder above. Frames are free bytes, or segments with numbers that fit their
//! flow, or errors of ICMP about such: most of TCP's states are out of reach of free bytes. Checksums are not looked at: the VM's driver left them out, and
//! smoltcp takes those of IP for right when it is built for fuzzing.

#![no_main]

use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use gateway::{Config, Event, Failure, FlowId, Gateway, config::GATEWAY_MAC};
use libfuzzer_sys::fuzz_target;
use wire::link::{Abilities, OFFLOAD_BYTES, Offload};

/// The driver has checked the checksum, as it says (`VIRTIO_NET_HDR_F_DATA_VALID`).
const DATA_VALID: Offload = Offload { flags: 2, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

/// Frames that all flows and the queue of answers can have: of each flow 256 KiB in segments of 48 bytes.
const FRAMES_MAX: usize = 7 * ((256 << 10) / 48 + 20);

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Frame(&'a [u8], [u8; OFFLOAD_BYTES]),
    /// An IP packet, in a frame that is for the gateway.
    Packet {
        protocol: u8,
        destination: u8,
        payload: &'a [u8],
    },
    /// The same, of IPv6.
    PacketV6 {
        protocol: u8,
        source: u8,
        destination: u8,
        hop_limit: u8,
        payload: &'a [u8],
    },
    /// Bytes for one of the gateway's services by TCP, on a connection that is new if it is to be.
    Service {
        which: u8,
        is_new: bool,
        data: &'a [u8],
    },
    Segment {
        port: u8,
        flags: Flags,
        seq: Delta,
        ack: Delta,
        window: u16,
        length: u16,
    },
    /// With options, which free bytes seldom are.
    Options {
        port: u8,
        flags: Flags,
        options: [u8; 12],
    },
    /// An error of ICMP, with such a header, about a segment to the VM: the last byte that was sent, or another one.
    Error {
        port: u8,
        header: [u8; 8],
        seq: Delta,
    },
    /// The VM's part of a connection that is established, if the pump plays its own.
    Handshake(u8),
    /// A stream comes to the VM, and what the VM says to the one that came last.
    Open,
    Answer {
        flags: Flags,
        seq: Delta,
        ack: Delta,
        data: &'a [u8],
    },
    Name(&'a [u8]),
    Wait(u16),
    Connected(u8),
    Failed(u8, u8),
    Send(u8, u16),
    Recv(u8),
    Finish(u8),
    Reset(u8),
    /// The VM's driver changes.
    Abilities {
        checksum: bool,
        tso4: bool,
        tso6: bool,
    },
    /// The pump stops, or goes on, taking events or frames.
    Stall {
        events: bool,
        frames: bool,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Flags {
    Syn,
    Ack,
    Push,
    Finish,
    Reset,
    ResetAck,
    SynAck,
    Free(u8),
}

impl Flags {
    fn bits(self) -> u8 {
        match self {
            Flags::Syn => 0x02,
            Flags::Ack => 0x10,
            Flags::Push => 0x18,
            Flags::Finish => 0x11,
            Flags::Reset => 0x04,
            Flags::ResetAck => 0x14,
            Flags::SynAck => 0x12,
            Flags::Free(bits) => bits,
        }
    }
}

/// How far a number is from the right one.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Delta {
    Right,
    AlsoRight,
    Near(i8),
    Far(i32),
}

impl Delta {
    fn from(self, right: u32) -> u32 {
        match self {
            Delta::Right | Delta::AlsoRight => right,
            Delta::Near(by) => right.wrapping_add_signed(by.into()),
            Delta::Far(by) => right.wrapping_add_signed(by),
        }
    }
}

/// The VM's port that streams come to.
const CALLED: u8 = 200;

/// Ports of the gateway's services by TCP.
const SERVICES: [u16; 4] = [53, 80, 8118, 9050];

struct World {
    gateway: Gateway,
    now: Instant,
    flows: Vec<FlowId>,
    /// By the VM's port: its next sequence number, and the gateway's.
    next: [(u32, u32); 4],
    /// The same for the connections to [`SERVICES`].
    next_of_service: [(u32, u32); 4],
    /// The same for the connection to [`CALLED`] that was asked for last, and its port of the gateway.
    call: (u16, u32, u32),
    stall_events: bool,
    stall_frames: bool,
    connects: usize,
    closes: usize,
}

fuzz_target!(|steps: Vec<Step>| {
    let now = Instant::now();
    let config = Config { flows_max: 6, half_open_max: 4, names_max: 4, frames_max: 8, ..Config::default() };
    let gateway = Gateway::new(config, [5; 32], now);
    let mut world = World {
        gateway,
        now,
        flows: vec![],
        next: [(0, 0); 4],
        next_of_service: [(0, 0); 4],
        call: (0, 0, 0),
        stall_events: false,
        stall_frames: false,
        connects: 0,
        closes: 0,
    };
    for step in steps {
        world.act(step);
        if !world.stall_frames {
            world.take_frames();
        }
        if !world.stall_events {
            world.take_events();
        }
        assert!(world.gateway.flows() <= 6);
    }
    world.end();
});

impl World {
    fn act(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Frame(bytes, offload) => self.gateway.handle_frame(now, Offload::from_bytes(offload), bytes),
            Step::Abilities { checksum, tso4, tso6 } => {
                self.gateway.set_abilities(Abilities { checksum, tso4, tso6 });
            }
            Step::Packet { protocol, destination, payload } => {
                self.gateway.handle_frame(now, DATA_VALID, &packet(protocol, address(destination), payload));
            }
            Step::PacketV6 { protocol, source, destination, hop_limit, payload } => {
                let (source, destination) = (address_v6(source), address_v6(destination));
                let frame = packet_v6(protocol, hop_limit, source, destination, payload);
                self.gateway.handle_frame(now, DATA_VALID, &frame);
            }
            Step::Service { which, is_new, data } => self.service(usize::from(which % 4), is_new, data),
            Step::Segment { port, flags, seq, ack, window, length } => {
                let (next_seq, next_ack) = self.next[usize::from(port % 4)];
                let payload = vec![port; usize::from(length) % 65_000];
                self.segment(port, flags, (seq.from(next_seq), ack.from(next_ack)), window, &[], &payload);
            }
            Step::Options { port, flags, options } => {
                let numbers = self.next[usize::from(port % 4)];
                self.segment(port, flags, numbers, 1000, &options, &[]);
            }
            Step::Error { port, header, seq } => {
                let (_, next) = self.next[usize::from(port % 4)];
                let segment = [&[0, 80, 0, port % 4 + 1][..], &seq.from(next.wrapping_sub(1)).to_be_bytes()].concat();
                let about = packet_from_to(6, address(3), address(4), &segment);
                let error = [&header[..], &about[14..]].concat();
                self.gateway.handle_frame(now, DATA_VALID, &packet(1, address(3), &error));
            }
            Step::Handshake(port) => {
                self.segment(port, Flags::Syn, (7, 0), u16::MAX, &[2, 4, 5, 0xb4], &[]);
                self.take_events();
                if let Some(flow) = self.flows.last() {
                    self.gateway.connected(now, *flow);
                }
                self.take_frames();
                let numbers = self.next[usize::from(port % 4)];
                self.segment(port, Flags::Ack, numbers, u16::MAX, &[], &[]);
            }
            Step::Open => {
                if let Some(flow) = self.gateway.open(now, CALLED.into()) {
                    self.flows.push(flow);
                    self.connects += 1;
                }
            }
            Step::Answer { flags, seq, ack, data } => {
                let (port, next_seq, next_ack) = self.call;
                let data = &data[..data.len().min(1400)];
                self.to_gateway(CALLED, port, flags, (seq.from(next_seq), ack.from(next_ack)), data);
            }
            Step::Name(query) => {
                let mut datagram = vec![1, 1, 0, 53];
                datagram.extend((query.len() as u16).wrapping_add(8).to_be_bytes());
                datagram.extend([0, 0]);
                datagram.extend(query);
                self.gateway.handle_frame(now, DATA_VALID, &packet(17, address(0), &datagram));
            }
            Step::Wait(ms) => {
                self.now += Duration::from_millis(u64::from(ms) * 10);
                self.gateway.handle_timeout(self.now);
            }
            Step::Stall { events, frames } => (self.stall_events, self.stall_frames) = (events, frames),
            Step::Connected(n) => self.with(n, |gateway, flow| gateway.connected(now, flow)),
            Step::Failed(n, why) => {
                let why = [Failure::Refused, Failure::Unreachable, Failure::TimedOut][usize::from(why % 3)];
                self.with(n, |gateway, flow| gateway.failed(now, flow, why));
            }
            Step::Send(n, length) => self.with(n, |gateway, flow| {
                gateway.send(now, flow, &mut vec![7; length.into()].into());
            }),
            Step::Recv(n) => self.with(n, |gateway, flow| {
                assert!(gateway.recv(now, flow).is_none_or(|bytes| !bytes.is_empty()));
            }),
            Step::Finish(n) => self.with(n, |gateway, flow| gateway.finish(now, flow)),
            Step::Reset(n) => self.with(n, |gateway, flow| gateway.reset(now, flow)),
        }
    }

    fn service(&mut self, which: usize, is_new: bool, data: &[u8]) {
        if is_new {
            self.to_service(which, Flags::Syn, (7, 0), &[]);
            self.take_events();
            self.take_frames();
            self.to_service(which, Flags::Ack, self.next_of_service[which], &[]);
        }
        let (seq, ack) = self.next_of_service[which];
        for data in data.chunks(1400) {
            self.to_service(which, Flags::Push, (seq, ack), data);
        }
    }

    fn to_service(&mut self, which: usize, flags: Flags, (seq, ack): (u32, u32), data: &[u8]) {
        self.to_gateway(101 + which as u8, SERVICES[which], flags, (seq, ack), data);
        let control = u32::from(flags.bits() & 3 != 0);
        self.next_of_service[which].0 = seq.wrapping_add(data.len() as u32 + control);
    }

    fn to_gateway(&mut self, from: u8, to: u16, flags: Flags, (seq, ack): (u32, u32), data: &[u8]) {
        let mut segment = vec![0, from];
        segment.extend(to.to_be_bytes());
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([0x50, flags.bits(), 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(data);
        self.gateway.handle_frame(self.now, DATA_VALID, &packet(6, address(0), &segment));
    }

    fn segment(&mut self, port: u8, flags: Flags, (seq, ack): (u32, u32), window: u16, options: &[u8], data: &[u8]) {
        let mut segment = vec![0, port % 4 + 1, 0, 80];
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([0x50 + (options.len() as u8 / 4 * 16), flags.bits()]);
        segment.extend(window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options);
        segment.extend(data);
        self.gateway.handle_owned_frame(self.now, DATA_VALID, packet(6, address(3), &segment).into());
    }

    fn with(&mut self, n: u8, act: impl FnOnce(&mut Gateway, FlowId)) {
        if !self.flows.is_empty() {
            let flow = self.flows[usize::from(n) % self.flows.len()];
            act(&mut self.gateway, flow);
        }
    }

    fn take_events(&mut self) {
        while let Some((ask, _)) = self.gateway.poll_ask() {
            self.gateway.answered(self.now, ask, &wire::identity::Answer::Onions(vec![]));
        }
        while let Some(event) = self.gateway.poll_event() {
            match event {
                Event::Connect { flow, target, .. } => {
                    assert!(target.port != 0 && !self.flows.contains(&flow));
                    self.connects += 1;
                    self.flows.push(flow);
                }
                Event::Closed(flow) => {
                    assert!(self.flows.contains(&flow));
                    self.flows.retain(|known| *known != flow);
                    self.closes += 1;
                }
                Event::Accepted(flow) | Event::Declined(flow, _) => assert!(self.flows.contains(&flow)),
                Event::Readable(flow) | Event::Writable(flow) | Event::Finished(flow) => {
                    assert!(self.flows.contains(&flow));
                }
            }
        }
    }

    fn take_frames(&mut self) {
        for _ in 0..FRAMES_MAX {
            let Some(frame) = self.gateway.poll_frame() else { return };
            let frame = frame.to_vec();
            assert!((34..=14 + 65_535).contains(&frame.len()) || frame[12..14] == [8, 6], "{frame:?}");
            if frame[12..14] == [8, 0] && frame[23] == 6 {
                let number = |at: usize| u32::from_be_bytes(std::array::from_fn(|n| frame[at + n]));
                let length = frame.len() - 34 - usize::from(frame[46] >> 4) * 4;
                let control = u32::from(frame[47] & 3 != 0);
                let next = (number(42), number(38).wrapping_add(length as u32 + control));
                match frame[37] {
                    CALLED => self.call = (u16::from_be_bytes([frame[34], frame[35]]), next.0, next.1),
                    port @ 101..=104 => self.next_of_service[usize::from(port - 101)].1 = next.1,
                    port => self.next[usize::from(port.wrapping_sub(1) % 4)] = next,
                }
            }
        }
        panic!("more frames than there can be");
    }

    /// Left alone, with everything reset, it comes to rest.
    fn end(mut self) {
        self.take_events();
        for flow in self.flows.clone() {
            self.gateway.reset(self.now, flow);
        }
        self.take_events();
        assert_eq!(self.connects, self.closes);
        // Connections to services that the pump knows nothing of, and whose numbers nobody does, give way to others,
        // which the VM resets.
        for port in 110..120 {
            self.to_gateway(port, SERVICES[3], Flags::Syn, (7, 0), &[]);
            self.take_events();
            self.take_frames();
        }
        for port in 110..120 {
            self.to_gateway(port, SERVICES[3], Flags::Reset, (8, 0), &[]);
        }
        for _ in 0..10_000 {
            self.take_events();
            self.take_frames();
            let Some(at) = self.gateway.poll_timeout().filter(|_| self.gateway.flows() > 0) else { break };
            self.now = self.now.max(at);
            self.gateway.handle_timeout(self.now);
        }
        // Nothing is left to be done but to advertise the router.
        let (before, at) = (self.gateway.counters().clone(), self.gateway.poll_timeout());
        self.gateway.handle_timeout(at.expect("the router is always advertised again"));
        let after = self.gateway.counters();
        assert_eq!(after.router_advertisements, before.router_advertisements + 1);
        assert_eq!(self.gateway.flows(), 0);
    }
}

fn address(n: u8) -> [u8; 4] {
    [
        [10, 0, 2, 2],
        [10, 192, 0, 1],
        [255; 4],
        [198, 51, 100, 7],
        [10, 0, 2, 15],
        [0; 4],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
    ][usize::from(n % 8)]
}

fn address_v6(n: u8) -> [u8; 16] {
    let [link, made_up] = [1, 2].map(|net| [0xfd, 0x6f, 0x68, 0x74, 0, net, 0, 0, 0, 0, 0, 0]);
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let group = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let remote = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0];
    let (head, tail) = [
        (link, 2),
        (link, 7),
        (link_local, 1),
        (link_local, 7),
        (group, 1),
        (group, 2),
        (remote, 7),
        (made_up, 1),
        ([0; 12], 0),
        ([0; 12], 1),
    ][usize::from(n % 10)];
    std::array::from_fn(|at| {
        if at < 12 {
            head[at]
        } else if at == 15 {
            tail
        } else {
            0
        }
    })
}

fn packet_v6(protocol: u8, hop_limit: u8, source: [u8; 16], destination: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let mut frame = GATEWAY_MAC.0.to_vec();
    frame.extend([0x52, 0x54, 0, 1, 2, 3, 0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([protocol, hop_limit]);
    frame.extend(source);
    frame.extend(destination);
    frame.extend(payload);
    frame
}

fn packet(protocol: u8, destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    packet_from_to(protocol, [10, 0, 2, 15], destination, payload)
}

fn packet_from_to(protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = GATEWAY_MAC.0.to_vec();
    frame.extend([0x52, 0x54, 0, 1, 2, 3, 8, 0, 0x45, 0]);
    frame.extend((payload.len() as u16).wrapping_add(20).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(source);
    frame.extend(destination);
    frame.extend(payload);
    frame
}

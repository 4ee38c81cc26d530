//! A VM whose driver leaves all checksums out, so that what is measured is the gateway.

use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway::{Config, Event, FlowId, Frame, Gateway, config::GATEWAY_MAC};
use wire::link::{Abilities, Offload};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Bytes of the headers of a segment without options.
const HEADERS_BYTES: usize = 54;

/// A gateway, and a VM with some connections.
pub(crate) struct Vm {
    /// The gateway.
    pub(crate) gateway: Gateway,
    /// The time.
    pub(crate) now: Instant,
    /// The frame that is written next.
    frame: Vec<u8>,
}

/// One connection of the VM.
#[derive(Clone, Copy)]
pub(crate) struct Connection {
    /// Its flow.
    pub(crate) flow: FlowId,
    number: u32,
    seq: u32,
    ack: u32,
}

impl Vm {
    /// A VM with a driver that can do everything.
    pub(crate) fn new(config: Config) -> Vm {
        let now = Instant::now();
        let mut gateway = Gateway::new(config, [1; 32], now);
        gateway.set_abilities(Abilities { checksum: true, tso4: true, tso6: true });
        let mut vm = Vm { gateway, now, frame: Vec::with_capacity(70_000) };
        vm.wait(Duration::from_secs(60));
        vm
    }

    /// Lets time pass.
    pub(crate) fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.gateway.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.gateway.handle_timeout(self.now);
            while self.gateway.poll_frame().is_some() {}
        }
        self.now = end;
    }

    /// Opens the connection of a number below 2^26.
    pub(crate) fn connect(&mut self, number: u32) -> Connection {
        self.segment(number, SYN, (99, 0), &[2, 4, 5, 0xb4, 3, 3, 7, 0], &[]);
        let event = self.gateway.poll_event();
        let Some(Event::Connect { flow, .. }) = event else { panic!("{event:?}") };
        self.gateway.connected(self.now, flow);
        let answer = self.gateway.poll_frame().expect("the SYN is answered");
        let ack = u32::from_be_bytes(answer.head[38..42].try_into().expect("four bytes")).wrapping_add(1);
        let connection = Connection { flow, number, seq: 100, ack };
        self.segment(number, ACK, (100, ack), &[], &[]);
        assert!(self.gateway.poll_frame().is_none());
        connection
    }

    /// Sends data on a connection, in one frame.
    pub(crate) fn send(&mut self, connection: &mut Connection, data: &[u8]) {
        self.segment(connection.number, ACK, (connection.seq, connection.ack), &[], data);
        connection.seq = connection.seq.wrapping_add(data.len() as u32);
    }

    /// Acknowledges so many bytes.
    pub(crate) fn acknowledge(&mut self, connection: &mut Connection, bytes: usize) {
        connection.ack = connection.ack.wrapping_add(bytes as u32);
        self.segment(connection.number, ACK, (connection.seq, connection.ack), &[], &[]);
    }

    /// Everything that the VM has sent on a connection.
    pub(crate) fn take(&mut self, connection: &Connection) -> usize {
        let mut bytes = 0;
        while let Some(data) = self.gateway.recv(self.now, connection.flow) {
            bytes += data.len();
        }
        bytes
    }

    /// Gives the gateway bytes for the VM. Returns how many it did not take.
    pub(crate) fn give(&mut self, connection: &Connection, data: &Bytes) -> usize {
        let mut data = data.clone();
        self.gateway.send(self.now, connection.flow, &mut data);
        data.len()
    }

    fn segment(&mut self, number: u32, flags: u8, (seq, ack): (u32, u32), options: &[u8], data: &[u8]) {
        let (port, remote) = (10_000 + (number % 50_000) as u16, (number / 50_000) as u8);
        let frame = &mut self.frame;
        frame.clear();
        frame.extend(GATEWAY_MAC.0);
        frame.extend([0x52, 0x54, 0, 1, 2, 3, 8, 0, 0x45, 0]);
        let length = HEADERS_BYTES - 14 + options.len() + data.len();
        frame.extend((length as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 198, 51, 100, 1 + remote]);
        let sum: u32 = frame[14..34].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        let sum = !(((sum >> 16) + sum) as u16);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend([0, 80]);
        frame.extend(seq.to_be_bytes());
        frame.extend(ack.to_be_bytes());
        frame.extend([0x50 + (options.len() as u8 / 4 * 16), flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(options);
        frame.extend(data);
        let offload = Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };
        self.gateway.handle_frame(self.now, offload, frame);
    }

    /// The next frame to the VM.
    pub(crate) fn poll_frame(&mut self) -> Option<Frame> {
        self.gateway.poll_frame()
    }
}

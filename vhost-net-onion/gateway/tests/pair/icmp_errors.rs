//! Errors of ICMP and ICMPv6 about our segments (RFC 9293, section 3.9.2.2): from a VM's firewall, from a VM that
//! forwards, and forged.

use std::time::Duration;

use gateway::{Config, Event, FlowId};
use smoltcp::wire::{Icmpv4Packet, IpProtocol, TcpControl, TcpRepr, TcpSeqNumber};

use crate::{
    driver::ALL,
    raw::{self, Bare, segment},
    raw_v6, tcp_v6,
    world::{REMOTE, VM, pattern},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    V4,
    V6,
}

const BOTH: [Version; 2] = [Version::V4, Version::V6];

/// Types and codes of hard errors, RFC 1122, section 4.2.3.9, and RFC 5461, section 2, and what firewalls send.
const HARD_V4: [(u8, u8); 5] = [(3, 2), (3, 3), (3, 9), (3, 10), (3, 13)];
const HARD_V6: [(u8, u8); 4] = [(1, 1), (1, 4), (1, 5), (1, 6)];

/// Of soft ones.
const SOFT_V4: [(u8, u8); 6] = [(3, 0), (3, 1), (3, 5), (11, 0), (11, 1), (12, 0)];
const SOFT_V6: [(u8, u8); 7] = [(1, 0), (1, 3), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)];

/// Of fragmentation needed and packet too big.
const TOO_BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];

/// A gateway with a flow of the VM's port 1000, with segments of 1,460 bytes.
struct Flow {
    bare: Bare,
    flow: FlowId,
    version: Version,
    /// Our next number at the beginning.
    next: TcpSeqNumber,
}

impl Flow {
    fn new(version: Version) -> Flow {
        let mut bare = Bare::new(Config::default());
        let (flow, next) = match version {
            Version::V4 => bare.established(1000),
            Version::V6 => tcp_v6::established(&mut bare, raw_v6::VM, Some(1460)),
        };
        let mut flow = Flow { bare, flow, version, next };
        // The window of the SYN is not scaled, and the one of the handshake neither.
        flow.acknowledge(0);
        flow
    }

    /// Acknowledges so many bytes.
    fn acknowledge(&mut self, bytes: usize) {
        let ack = segment(TcpControl::None, 1000, 1001, Some(self.next + bytes));
        self.bare.hand_over(&match self.version {
            Version::V4 => raw::tcp(REMOTE, &ack),
            Version::V6 => tcp_v6::tcp(raw_v6::VM, raw_v6::REMOTE, &ack),
        });
    }

    /// The frames of data to the VM.
    fn send(&mut self, data: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(self.bare.send(self.flow, data), data.len());
        self.bare.frames()
    }

    fn tcp_of<'a>(&self, frame: &'a [u8]) -> TcpRepr<'a> {
        match self.version {
            Version::V4 => raw::tcp_of(frame),
            Version::V6 => tcp_v6::tcp_of(frame),
        }
    }

    /// The answers to an error about a frame.
    fn complain(&mut self, (kind, code): (u8, u8), detail: u32, about: &[u8]) -> Vec<Vec<u8>> {
        self.bare.exchange(&error(self.version, (kind, code), detail, about))
    }

    fn is_untouched(&mut self) -> bool {
        self.bare.events().is_empty() && self.bare.gateway.flows() == 1
    }
}

/// An error of the VM's about a frame, of which it quotes the IP header and 8 bytes.
fn error(version: Version, (kind, code): (u8, u8), detail: u32, about: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(detail.to_be_bytes());
    match version {
        Version::V4 => {
            message.extend(&about[14..14 + 20 + 8]);
            Icmpv4Packet::new_unchecked(&mut message[..]).fill_checksum();
            raw::ip(VM, REMOTE, IpProtocol::Icmp, &message)
        }
        Version::V6 => {
            message.extend(&about[14..14 + 40 + 8]);
            raw_v6::icmp(raw_v6::VM, raw_v6::REMOTE, 64, &message)
        }
    }
}

#[test]
fn a_rejected_segment_ends_its_flow() {
    let codes = HARD_V4.map(|code| (Version::V4, code)).into_iter().chain(HARD_V6.map(|code| (Version::V6, code)));
    for (version, code) in codes {
        let mut flow = Flow::new(version);
        let frames = flow.send(b"anybody?");
        let answers = flow.complain(code, 0, &frames[0]);
        let rst = flow.tcp_of(&answers[0]);
        assert_eq!((answers.len(), rst.control, rst.seq_number), (1, TcpControl::Rst, flow.next + 8), "{code:?}");
        assert_eq!(flow.bare.events(), [Event::Closed(flow.flow)], "{version:?} {code:?}");
        assert_eq!((flow.bare.gateway.flows(), flow.bare.gateway.counters().flows_rejected), (0, 1));
        // The VM's firewall rejects the RST too.
        assert!(flow.complain(code, 0, &answers[0]).is_empty());
        assert_eq!(flow.bare.gateway.counters().dropped_icmp, 1);
        assert!(raw::is_at_rest(&mut flow.bare.gateway));
    }
}

#[test]
fn a_rejected_answer_to_a_syn_ends_its_flow() {
    let mut bare = Bare::new(Config::default());
    let syn = TcpRepr { max_seg_size: Some(1460), ..segment(TcpControl::Syn, 1000, 1000, None) };
    bare.exchange(&raw::tcp(REMOTE, &syn));
    let Some(Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
    bare.gateway.connected(bare.now, flow);
    let frames = bare.frames();
    // It is not too big, whatever is said.
    assert!(bare.exchange(&error(Version::V4, TOO_BIG[0], 576, &frames[0])).is_empty());
    assert!(bare.events().is_empty());
    bare.exchange(&error(Version::V4, (3, 10), 0, &frames[0]));
    assert_eq!(bare.events(), [Event::Closed(flow)]);
}

#[test]
fn soft_errors_and_source_quench_change_nothing() {
    for version in BOTH {
        let mut flow = Flow::new(version);
        let frames = flow.send(b"anybody?");
        let codes = if version == Version::V4 { &SOFT_V4[..] } else { &SOFT_V6[..] };
        for code in codes {
            assert!(flow.complain(*code, 0, &frames[0]).is_empty(), "{version:?} {code:?}");
        }
        assert_eq!(flow.bare.gateway.counters().icmp_soft, codes.len() as u64);
        assert!(flow.complain((4, if version == Version::V4 { 0 } else { 9 }), 0, &frames[0]).is_empty());
        assert!(flow.is_untouched());
        assert_eq!(flow.bare.gateway.counters().retransmits, 0);
        flow.bare.pass(Duration::from_secs(2));
        assert!(flow.bare.gateway.counters().retransmits > 0, "it goes on as without them");
    }
}

/// The same frame with another sequence number.
fn with_seq(frame: &[u8], version: Version, seq: TcpSeqNumber) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[14 + ip_bytes(version) + 4..][..4].copy_from_slice(&seq.0.to_be_bytes());
    frame
}

fn ip_bytes(version: Version) -> usize {
    if version == Version::V4 { 20 } else { 40 }
}

#[test]
fn forged_errors_harm_nobody() {
    for (version, codes) in [(Version::V4, [(3, 3), TOO_BIG[0], (3, 1)]), (Version::V6, [(1, 4), TOO_BIG[1], (1, 0)])] {
        let mut flow = Flow::new(version);
        let (frames, next) = (flow.send(&pattern(3000)), flow.next);
        flow.acknowledge(1000);
        let wrong_numbers =
            [0, 999, 3000, 3001, 1 << 20, i32::MAX as usize].map(|by| with_seq(&frames[0], version, next + by));
        // Version, protocol, source, destination; ports.
        let (ip, tcp, protocol_at) = (14, 14 + ip_bytes(version), if version == Version::V4 { 9 } else { 6 });
        let places = [ip, ip + protocol_at, tcp - 5, tcp - 1, tcp, tcp + 1, tcp + 2, tcp + 3];
        let wrong_places = places.map(|at| {
            let mut frame = with_seq(&frames[0], version, next + 1000);
            frame[at] ^= 0x10;
            frame
        });
        for about in wrong_numbers.iter().chain(&wrong_places) {
            for code in codes {
                assert!(flow.complain(code, 1300, about).is_empty());
            }
        }
        let forged = codes.len() * (wrong_numbers.len() + wrong_places.len());
        assert_eq!(flow.bare.gateway.counters().dropped_icmp, forged as u64);
        assert!(flow.is_untouched());
        // The first and the last number that are on their way.
        for by in [1000, 2999] {
            flow.complain(codes[2], 0, &with_seq(&frames[0], version, next + by));
        }
        assert_eq!(flow.bare.gateway.counters().icmp_soft, 2);
    }
}

#[test]
fn errors_that_are_cut_short_are_survived() {
    for (version, code) in [(Version::V4, (3, 3)), (Version::V6, (1, 4))] {
        let mut flow = Flow::new(version);
        let about = flow.send(b"anybody?").remove(0);
        let whole = error(version, code, 0, &about);
        let message = &whole[14 + ip_bytes(version)..];
        for length in 8..message.len() {
            let mut cut = message[..length].to_vec();
            let cut = match version {
                Version::V4 => {
                    Icmpv4Packet::new_unchecked(&mut cut[..]).fill_checksum();
                    raw::ip(VM, REMOTE, IpProtocol::Icmp, &cut)
                }
                Version::V6 => raw_v6::icmp(raw_v6::VM, raw_v6::REMOTE, 64, &cut),
            };
            assert!(flow.bare.exchange(&cut).is_empty());
        }
        assert_eq!(flow.bare.gateway.counters().dropped_icmp, message.len() as u64 - 8);
        assert!(flow.is_untouched());
        flow.bare.exchange(&whole);
        assert_eq!(flow.bare.events(), [Event::Closed(flow.flow)]);
    }
}

#[test]
fn segments_become_as_small_as_they_must_be() {
    for (version, mtu, expected) in [
        (Version::V4, 1400, 1360),
        (Version::V4, 576, 536),
        // Of a router that does not know, and of one that lies.
        (Version::V4, 0, 536),
        (Version::V4, 68, 536),
        (Version::V6, 1400, 1340),
        (Version::V6, 1280, 1220),
    ] {
        let code = TOO_BIG[version as usize];
        let mut flow = Flow::new(version);
        let data = pattern(20_000);
        let frames = flow.send(&data);
        assert!(flow.complain(code, 9000, &frames[1]).is_empty(), "no news");
        let (mut received, mut answers) = (vec![], flow.complain(code, mtu, &frames[0]));
        assert_eq!(answers.len(), 1, "one segment until it is acknowledged");
        // The other segments were too large as well.
        for frame in &frames[1..] {
            assert!(flow.complain(code, mtu, frame).is_empty());
        }
        while !answers.is_empty() {
            for frame in &answers {
                let segment = flow.tcp_of(frame);
                assert_eq!(segment.seq_number, flow.next + received.len());
                assert_eq!(segment.payload.len(), expected.min(data.len() - received.len()), "{version:?}: {mtu}");
                received.extend_from_slice(segment.payload);
            }
            flow.acknowledge(received.len());
            answers = flow.bare.frames();
        }
        assert!(received == data);
        assert!(flow.is_untouched());
        let counters = flow.bare.gateway.counters();
        assert_eq!((counters.mss_lowered, counters.timeouts), (1, 0));
    }
}

#[test]
fn large_frames_are_cut_smaller_and_impossible_sizes_are_not_believed() {
    let mut flow = Flow::new(Version::V6);
    flow.bare.gateway.set_abilities(ALL);
    assert_eq!(flow.bare.send(flow.flow, &pattern(50_000)), 50_000);
    let frame = flow.bare.gateway.poll_frame().unwrap();
    assert_eq!(frame.offload.gso_size, 1460);
    flow.bare.frames();
    let about = frame.to_vec();
    // Less than what every link carries (RFC 8201, section 4).
    for mtu in [0, 68, 1279] {
        assert!(flow.complain(TOO_BIG[1], mtu, &about).is_empty());
    }
    assert_eq!(flow.bare.gateway.counters().mss_lowered, 0);
    assert_eq!(flow.complain(TOO_BIG[1], 1280, &about).len(), 1);
    flow.acknowledge(1220);
    assert_eq!(flow.bare.gateway.poll_frame().unwrap().offload.gso_size, 1220);
}

//! What has gone wrong in networks like this one: every class has its test here.

use std::{net::Ipv4Addr, time::Duration};

use gateway::{Config, Event, Failure, FlowId, config::GATEWAY_MAC};
use hickory_proto::rr::RecordType;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpControl, TcpPacket,
    TcpRepr,
};

use crate::{
    raw::{self, Bare, segment, tcp_of},
    services::{question, resolve},
    world::{GATEWAY, REMOTE, VM, VM_MAC},
};

#[test]
fn a_syn_from_nowhere() {
    let mut bare = Bare::new(Config::default());
    for source in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST, GATEWAY] {
        assert!(bare.exchange(&raw::tcp_from(source, REMOTE, &segment(TcpControl::Syn, 1, 1, None))).is_empty());
    }
    assert!(bare.events().is_empty());
}

#[test]
fn segment_sizes_of_nothing_and_of_too_much() {
    for mss in [0, 1, 47, 48, 535, 1460, 9000, u16::MAX] {
        let mut bare = Bare::new(Config::default());
        let syn = TcpRepr { max_seg_size: Some(mss), window_scale: Some(14), ..segment(TcpControl::Syn, 1, 1, None) };
        bare.exchange(&raw::tcp(REMOTE, &syn));
        let Some(Event::Connect { flow, .. }) = bare.gateway.poll_event() else { panic!() };
        bare.gateway.connected(bare.now, flow);
        let frames = bare.frames();
        let ack = tcp_of(&frames[0]).seq_number + 1;
        let done = TcpRepr { window_len: u16::MAX, ..segment(TcpControl::None, 1, 2, Some(ack)) };
        bare.exchange(&raw::tcp(REMOTE, &done));
        assert_eq!(bare.send(flow, &[1; 5000]), 5000, "{mss}");
        let frames = bare.frames();
        let largest = frames.iter().map(|frame| tcp_of(frame).payload.len()).max().unwrap();
        assert!((48..=usize::from(mss).max(48)).contains(&largest), "{mss}: {largest}");
        assert!(frames.len() <= 5000 / 48 + 1, "{mss}: {} frames", frames.len());
    }
}

#[test]
fn urgent_data_is_data() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    let mut frame =
        raw::tcp(REMOTE, &TcpRepr { payload: b"urgent", ..segment(TcpControl::Psh, 1000, 1001, Some(next)) });
    for urgent_at in [0, 1, 6, 7, u16::MAX] {
        let mut segment = TcpPacket::new_unchecked(&mut frame[34..]);
        segment.set_urg(true);
        segment.set_urgent_at(urgent_at);
        segment.fill_checksum(&VM.into(), &REMOTE.into());
        bare.exchange(&frame);
    }
    assert_eq!(bare.gateway.recv(bare.now, flow).as_deref(), Some(&b"urgent"[..]));
}

#[test]
fn fragments_short_datagrams_and_wrong_checksums_are_dropped() {
    let mut bare = Bare::new(Config::default());
    let changed = |change: &dyn Fn(&mut Ipv4Packet<&mut [u8]>)| {
        let mut frame = raw::udp(GATEWAY, (5353, 53), &question("a.example.", RecordType::A));
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        change(&mut packet);
        packet.fill_checksum();
        frame
    };
    assert_eq!(bare.exchange(&changed(&|_| {})).len(), 1);
    assert!(bare.exchange(&changed(&|p| p.set_more_frags(true))).is_empty());
    assert!(bare.exchange(&changed(&|p| p.set_frag_offset(8))).is_empty());
    assert!(bare.exchange(&changed(&|p| p.set_frag_offset(65_528))).is_empty());
    assert_eq!(bare.gateway.counters().dropped_fragment, 3);
    for length in 0..8usize {
        assert!(bare.exchange(&raw::ip(VM, GATEWAY, IpProtocol::Udp, &[0; 8][..length])).is_empty());
    }
    assert_eq!(bare.gateway.counters().dropped_malformed, 8);
    let mut bad = changed(&|_| {});
    *bad.last_mut().unwrap() ^= 1;
    assert!(bare.exchange(&bad).is_empty());
    assert_eq!(bare.gateway.counters().dropped_checksum, 1);
}

#[test]
fn contradicting_flags() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    for flags in 0..64u8 {
        let mut frame = raw::tcp(REMOTE, &segment(TcpControl::None, 1000, 1001, Some(next)));
        // Not RST, which ends it, nor FIN, which half-ends it.
        frame[34 + 13] = flags & !0x05;
        TcpPacket::new_unchecked(&mut frame[34..]).fill_checksum(&VM.into(), &REMOTE.into());
        bare.exchange(&frame);
    }
    assert!(!bare.events().contains(&Event::Closed(flow)));
    assert_eq!(bare.gateway.flows(), 1);
}

#[test]
fn numbers_far_away() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    bare.send(flow, b"data");
    bare.frames();
    for seq in [0, 1, 1000, 1002, 70_000, i32::MAX, i32::MIN, -1] {
        for ack in [i32::MIN, -1, 0, 1, next.0.wrapping_sub(1), next.0.wrapping_add(5), next.0.wrapping_add(i32::MAX)] {
            for control in [TcpControl::None, TcpControl::Syn, TcpControl::Fin, TcpControl::Psh] {
                let ack = smoltcp::wire::TcpSeqNumber(ack);
                let wild = TcpRepr { payload: b"wild", ..segment(control, 1000, seq, Some(ack)) };
                bare.exchange(&raw::tcp(REMOTE, &wild));
                bare.pass(Duration::from_millis(20));
            }
        }
    }
    assert!(!bare.events().contains(&Event::Closed(flow)), "nothing of this was in the window");
}

#[test]
fn windows_that_shrink_and_close() {
    let mut bare = Bare::new(Config::default());
    let (flow, next) = bare.established(1000);
    for window in [65_535, 1, 0, 3000, 0, 10, 65_535] {
        let update = TcpRepr { window_len: window, ..segment(TcpControl::None, 1000, 1001, Some(next)) };
        bare.exchange(&raw::tcp(REMOTE, &update));
        bare.send(flow, &[7; 5000]);
        bare.pass(Duration::from_secs(3));
    }
    assert!(!bare.events().contains(&Event::Closed(flow)));
}

/// Frames of every kind that the gateway knows, to be cut and changed.
fn corpus(bare: &mut Bare) -> Vec<Vec<u8>> {
    let name = resolve(bare, "corpus.example.");
    let (_, next) = bare.established(1000);
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: VM_MAC,
        source_protocol_addr: VM,
        target_hardware_addr: GATEWAY_MAC,
        target_protocol_addr: GATEWAY,
    };
    let mut arp_bytes = vec![0; arp.buffer_len()];
    arp.emit(&mut ArpPacket::new_unchecked(&mut arp_bytes[..]));
    let mut discover = vec![0u8; 300];
    discover[..4].copy_from_slice(&[1, 1, 6, 0]);
    discover[28..34].copy_from_slice(&VM_MAC.0);
    discover[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    discover[240..247].copy_from_slice(&[53, 1, 1, 61, 2, 1, 2]);
    discover[247] = 255;
    let options = TcpRepr {
        max_seg_size: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        ..segment(TcpControl::Syn, 1001, 1, None)
    };
    vec![
        raw::frame(EthernetProtocol::Arp, &arp_bytes),
        raw::udp(Ipv4Addr::BROADCAST, (68, 67), &discover),
        raw::udp(GATEWAY, (5353, 53), &question("www.corpus.example.", RecordType::A)),
        raw::udp(REMOTE, (5353, 53), b"elsewhere"),
        raw::ip(VM, GATEWAY, IpProtocol::Icmp, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        raw::tcp(name, &options),
        raw::tcp(REMOTE, &options),
        raw::tcp(REMOTE, &TcpRepr { payload: b"data", ..segment(TcpControl::Psh, 1000, 1001, Some(next)) }),
        raw::tcp(REMOTE, &segment(TcpControl::Fin, 1000, 1005, Some(next))),
        raw::tcp(REMOTE, &segment(TcpControl::Rst, 1000, 1006, Some(next))),
    ]
}

#[test]
fn truncated_everything() {
    let mut bare = Bare::new(Config::default());
    for frame in corpus(&mut bare) {
        for length in 0..frame.len() {
            bare.exchange(&frame[..length]);
        }
        // Cut, but with lengths that agree again.
        for length in 34..frame.len() {
            let mut cut = frame[..length].to_vec();
            if EthernetFrame::new_unchecked(&cut[..]).ethertype() == EthernetProtocol::Ipv4 {
                let mut packet = Ipv4Packet::new_unchecked(&mut cut[14..]);
                packet.set_total_len(u16::try_from(length - 14).unwrap());
                packet.fill_checksum();
            }
            bare.exchange(&cut);
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Makes the checksums right, so that what was changed is looked at.
fn fix_checksums(frame: &mut [u8]) {
    let Some(bytes) = frame.get_mut(14..).filter(|bytes| Ipv4Packet::new_checked(&**bytes).is_ok()) else { return };
    let mut packet = Ipv4Packet::new_unchecked(&mut *bytes);
    packet.fill_checksum();
    let (from, to, protocol) = (packet.src_addr().into(), packet.dst_addr().into(), packet.next_header());
    let payload = packet.payload_mut();
    if protocol == IpProtocol::Tcp && TcpPacket::new_checked(&*payload).is_ok() {
        TcpPacket::new_unchecked(payload).fill_checksum(&from, &to);
    } else if protocol == IpProtocol::Udp && payload.len() >= 8 {
        payload[6..8].fill(0);
    }
}

#[test]
fn a_hundred_thousand_wrong_frames_and_a_pump_that_reacts_at_random() {
    for seed in 1..=10u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let config = Config { flows_max: 20, half_open_max: 10, names_max: 8, frames_max: 16, ..Config::default() };
        let mut bare = Bare::new(config);
        let corpus = corpus(&mut bare);
        let mut flows: Vec<FlowId> = vec![];
        let mut recent: Vec<Vec<u8>> = vec![];
        let (mut connects, mut closes) = (1, 0);
        for _ in 0..10_000 {
            let mut frame = match random.below(8) {
                0 => answer_to(recent.get(random.below(recent.len().max(1)))).unwrap_or_default(),
                _ => corpus[random.below(corpus.len())].clone(),
            };
            for _ in 0..random.below(4) {
                if frame.is_empty() {
                    break;
                }
                let at = random.below(frame.len());
                match random.below(4) {
                    0 => frame[at] = random.below(256) as u8,
                    1 => frame[at] ^= 1 << random.below(8),
                    2 => frame.truncate(at),
                    _ => frame.insert(at, random.below(256) as u8),
                }
            }
            if random.below(4) > 0 {
                fix_checksums(&mut frame);
            }
            bare.hand_over(&frame);
            if random.below(3) > 0 {
                for event in bare.events() {
                    match event {
                        Event::Connect { flow, .. } => {
                            connects += 1;
                            flows.push(flow);
                        }
                        Event::Closed(_) => closes += 1,
                        _ => {}
                    }
                }
            }
            if !flows.is_empty() {
                let flow = flows[random.below(flows.len())];
                react(&mut bare, flow, &mut random);
            }
            if random.below(3) > 0 {
                recent.extend(bare.frames());
                recent.drain(..recent.len().saturating_sub(8));
            }
            if random.below(10) == 0 {
                bare.now += Duration::from_millis(random.below(40_000) as u64);
                bare.gateway.handle_timeout(bare.now);
            }
            assert!(bare.gateway.flows() <= 20);
        }
        // What is left ends by itself or is reset, and every flow is closed exactly once.
        for flow in flows {
            bare.gateway.failed(bare.now, flow, Failure::Refused);
            bare.gateway.reset(bare.now, flow);
        }
        for event in bare.events() {
            match event {
                Event::Connect { flow, .. } => {
                    connects += 1;
                    bare.gateway.failed(bare.now, flow, Failure::TimedOut);
                }
                Event::Closed(_) => closes += 1,
                _ => {}
            }
        }
        closes += bare.events().iter().filter(|event| matches!(event, Event::Closed(_))).count();
        assert!(connects - closes <= 1, "seed {seed}: {connects} connects, {closes} closes");
        bare.pass(Duration::from_secs(1000));
        assert!(bare.gateway.flows() <= 1, "seed {seed}: {}", bare.gateway.flows());
    }
}

/// The acknowledgement that a VM would send to a frame with TCP in it.
fn answer_to(frame: Option<&Vec<u8>>) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_checked(&frame?[..]).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let theirs = TcpPacket::new_checked(packet.payload()).ok()?;
    let ours = TcpRepr {
        dst_port: theirs.src_port(),
        ..segment(
            TcpControl::None,
            theirs.dst_port(),
            theirs.ack_number().0,
            Some(theirs.seq_number() + theirs.segment_len()),
        )
    };
    Some(raw::tcp(packet.src_addr(), &ours))
}

fn react(bare: &mut Bare, flow: FlowId, random: &mut Random) {
    let now = bare.now;
    match random.below(12) {
        0..=3 => bare.gateway.connected(now, flow),
        4 => bare.gateway.failed(now, flow, Failure::Refused),
        5 => bare.gateway.failed(now, flow, Failure::Unreachable),
        6 => bare.gateway.failed(now, flow, Failure::TimedOut),
        7 => bare.gateway.finish(now, flow),
        8 => bare.gateway.reset(now, flow),
        9 => {
            bare.gateway.recv(now, flow);
        }
        _ => {
            bare.send(flow, &[b'x'; 5000]);
        }
    }
}

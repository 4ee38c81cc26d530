//! The VM's driver and its kernel's offloads: what smoltcp does not do itself.
//!
//! Towards the VM, frames are cut into segments and checksums completed as a kernel does it (virtio 1.2, section
//! 5.1.6.4); smoltcp then checks them. From the VM, segments that follow each other become one frame that is yet to be
//! cut, without its checksum.

use std::collections::VecDeque;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};
use wire::link::{Abilities, Offload};

/// What the VM's driver can do.
#[derive(Clone, Copy)]
pub(crate) struct Driver {
    pub(crate) mtu: usize,
    pub(crate) abilities: Abilities,
    /// It leaves segmentation and checksums to the gateway.
    pub(crate) bursts: bool,
}

impl Default for Driver {
    fn default() -> Driver {
        Driver { mtu: 1500, abilities: Abilities::default(), bursts: false }
    }
}

pub(crate) const ALL: Abilities = Abilities { checksum: true, tso4: true, tso6: true };

/// The frames that the VM sees of one from the gateway.
pub(crate) fn receive(driver: &Driver, offload: Offload, frame: &[u8]) -> Vec<Vec<u8>> {
    let Driver { mtu, abilities, .. } = *driver;
    if offload == Offload::default() {
        assert!(frame.len() <= 14 + mtu, "{} bytes for an MTU of {mtu}", frame.len());
        return vec![frame.to_vec()];
    }
    assert!(offload.flags == 1 && abilities.checksum, "{offload:?}");
    if offload.gso_type == 0 {
        assert!(frame.len() <= 14 + mtu);
        return vec![with_checksum(frame, offload)];
    }
    let is_v4 = frame[12..14] == [8, 0];
    assert_eq!(offload.gso_type, if is_v4 { 1 } else { 4 });
    assert!(if is_v4 { abilities.tso4 } else { abilities.tso6 });
    cut(frame, offload).into_iter().map(|frame| with_checksum(&frame, offload)).collect()
}

/// Adds what stands in the place of the checksum to the bytes from `csum_start` on, as virtio says.
fn with_checksum(frame: &[u8], offload: Offload) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (start, at) = (usize::from(offload.csum_start), usize::from(offload.csum_start + offload.csum_offset));
    let mut sum: u32 = frame[start..]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    frame[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame
}

/// Cuts a frame into segments whose place of the checksum holds the sum of the pseudo-header.
fn cut(frame: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let (head, payload) = frame.split_at(offload.hdr_len.into());
    let size = usize::from(offload.gso_size);
    let tcp = usize::from(offload.csum_start);
    assert_eq!(head.len(), tcp + usize::from(frame[tcp + 12] >> 4) * 4, "the headers are what is repeated");
    assert!(size > 0 && payload.len() > size);
    let sum_at = tcp + usize::from(offload.csum_offset);
    let whole_sum = u16::from_be_bytes([head[sum_at], head[sum_at + 1]]);
    let pieces = payload.chunks(size).count();
    payload
        .chunks(size)
        .enumerate()
        .map(|(n, piece)| {
            let mut frame = [head, piece].concat();
            set_length(&mut frame);
            let mut segment = TcpPacket::new_unchecked(&mut frame[tcp..]);
            let seq = segment.seq_number() + n * size;
            segment.set_seq_number(seq);
            if n + 1 < pieces {
                segment.set_psh(false);
                segment.set_fin(false);
            }
            // The pseudo-header has the length in it, which is less now.
            let less = (payload.len() - piece.len()) as u16;
            let sum = u32::from(whole_sum) + u32::from(!less);
            frame[sum_at..sum_at + 2].copy_from_slice(&((sum as u16) + (sum >> 16) as u16).to_be_bytes());
            frame
        })
        .collect()
}

/// Makes the length in the IP header that of the frame.
fn set_length(frame: &mut [u8]) {
    let length = frame.len() - 14;
    if frame[12..14] == [8, 0] {
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        packet.set_total_len(length as u16);
        packet.fill_checksum();
    } else {
        Ipv6Packet::new_unchecked(&mut frame[14..]).set_payload_len((length - 40) as u16);
    }
}

/// The frames that the VM's driver hands over for those that its kernel has made.
pub(crate) fn transmit(driver: &Driver, frames: VecDeque<Vec<u8>>) -> Vec<(Offload, Vec<u8>)> {
    let mut out: Vec<(Offload, Vec<u8>)> = vec![];
    for frame in frames {
        let Some((_, last)) = out.last_mut().filter(|(_, last)| driver.bursts && follows(last, &frame)) else {
            out.push((Offload::default(), frame));
            continue;
        };
        last.extend_from_slice(&frame[head_bytes(&frame)..]);
        last[47] = frame[47];
        set_length(last);
    }
    for (offload, frame) in &mut out {
        if driver.bursts && is_tcp(frame) {
            let gso_size = driver.mtu as u16 - 40;
            let gso_type = u8::from(frame.len() > 14 + driver.mtu);
            let hdr_len = head_bytes(frame) as u16;
            *offload = Offload { flags: 1, gso_type, hdr_len, gso_size, csum_start: 34, csum_offset: 16 };
            frame[50..52].copy_from_slice(&[0xde, 0xad]);
        }
    }
    out
}

fn is_tcp(frame: &[u8]) -> bool {
    EthernetFrame::new_unchecked(frame).ethertype() == EthernetProtocol::Ipv4 && frame[23] == 6
}

fn head_bytes(frame: &[u8]) -> usize {
    34 + usize::from(frame[46] >> 4) * 4
}

/// Whether a segment continues the last one of a frame, and may be one with it.
fn follows(frame: &[u8], segment: &[u8]) -> bool {
    if !is_tcp(frame) || !is_tcp(segment) || frame.len() + segment.len() > 65_000 {
        return false;
    }
    let (first, second) = (TcpPacket::new_unchecked(&frame[34..]), TcpPacket::new_unchecked(&segment[34..]));
    let is_plain = |packet: &TcpPacket<&[u8]>| !packet.syn() && !packet.rst() && !packet.fin();
    is_plain(&first)
        && is_plain(&second)
        && frame[26..38] == segment[26..38]
        && first.ack_number() == second.ack_number()
        && !second.payload().is_empty()
        && first.seq_number() + first.payload().len() == second.seq_number()
}

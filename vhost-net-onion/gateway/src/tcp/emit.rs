//! Segments to the VM: the frames that carry them.
//!
//! The payload is not copied: it is the body of the frame, and the headers are its head. What the VM's driver can do
//! is left to it: the checksum, then only the sum of the pseudo-header is in place; and cutting a payload of up to
//! 64 KiB into segments (virtio 1.2, section 5.1.6.4).

use std::net::IpAddr;

use bytes::Bytes;
use smoltcp::wire::EthernetAddress;
use wire::link::{Abilities, Offload};

use super::{
    flow::Key,
    number::Seq,
    segment::{ACK, HEADER_BYTES, PROTOCOL, RST, Segment},
};
use crate::{
    checksum,
    config::GATEWAY_MAC,
    frame::{Frame, Head},
    ip,
    outbox::ETHERNET_BYTES,
};

/// `VIRTIO_NET_HDR_GSO_TCPV4` and `VIRTIO_NET_HDR_GSO_TCPV6` (virtio 1.2, section 5.1.6).
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Bytes of an IP packet at most, the header of IPv6 included, as links count.
const PACKET_BYTES_MAX: usize = 65_535;

/// Hops that a segment may take (RFC 1700's default).
const HOP_LIMIT: u8 = 64;

/// Where the checksum is in the header.
const CHECKSUM_OFFSET: u16 = 16;

/// The fields of a segment to the VM.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// For a SYN: the window's scale, if the VM scales its own.
    pub(super) syn: Option<Option<u8>>,
}

/// Bytes of the headers of IP and TCP, without options.
pub(super) fn header_bytes(key: &Key) -> usize {
    if key.remote.is_ipv4() { 20 + HEADER_BYTES } else { 40 + HEADER_BYTES }
}

/// The largest payload of any segment: what is told to the VM as the MSS, and the bound of what it tells.
pub(super) fn payload_bytes_max(key: &Key) -> usize {
    PACKET_BYTES_MAX - header_bytes(key)
}

/// The largest payload that may be given to the VM's driver at once, when a segment takes `mss`.
pub(super) fn burst_bytes_max(key: &Key, mss: usize, abilities: Abilities) -> usize {
    let cuts = if key.remote.is_ipv4() { abilities.tso4 } else { abilities.tso6 };
    if cuts && abilities.checksum { payload_bytes_max(key) / mss * mss } else { mss }
}

/// The RST that refuses a segment (RFC 9293, section 3.10.7.1).
pub(super) fn reset(refused: &Segment<'_>) -> Header {
    if refused.has(ACK) {
        return Header { seq: refused.ack, flags: RST, ..Header::default() };
    }
    Header { ack: refused.end(), flags: RST | ACK, ..Header::default() }
}

/// The frame of a segment. `mss` says where it is to be cut when the payload is longer.
pub(super) fn frame(
    key: &Key,
    mac: EthernetAddress,
    header: &Header,
    body: Bytes,
    mss: usize,
    abilities: Abilities,
) -> Frame {
    let mut options = [0; 8];
    let mut option_bytes = 0;
    if let Some(window_scale) = header.syn {
        let mss = (payload_bytes_max(key) as u16).to_be_bytes();
        options = [2, 4, mss[0], mss[1], 1, 3, 3, window_scale.unwrap_or(0)];
        option_bytes = if window_scale.is_some() { 8 } else { 4 };
    }
    let ip_bytes = header_bytes(key) - HEADER_BYTES;
    let tcp_bytes = HEADER_BYTES + option_bytes;
    let mut head = Head::zeroed(ETHERNET_BYTES + ip_bytes + tcp_bytes);
    let (ethernet, rest) = head.as_mut().split_at_mut(ETHERNET_BYTES);
    let (ip, tcp) = rest.split_at_mut(ip_bytes);
    write_ethernet(ethernet, mac, key);
    write_ip(ip, key, tcp_bytes + body.len());
    tcp[..2].copy_from_slice(&key.remote_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&key.vm_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&header.seq.0.to_be_bytes());
    tcp[8..12].copy_from_slice(&header.ack.0.to_be_bytes());
    tcp[12] = (tcp_bytes as u8 / 4) << 4;
    tcp[13] = header.flags;
    tcp[14..16].copy_from_slice(&header.window.to_be_bytes());
    tcp[20..].copy_from_slice(&options[..option_bytes]);

    let sum = checksum::pseudo_header(key.remote, key.vm, PROTOCOL, tcp_bytes + body.len());
    let mut offload = Offload::default();
    if abilities.checksum {
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        offload.flags = ip::NEEDS_CHECKSUM;
        offload.csum_start = (ETHERNET_BYTES + ip_bytes) as u16;
        offload.csum_offset = CHECKSUM_OFFSET;
    } else {
        let sum = checksum::add(checksum::add(sum, tcp), &body);
        tcp[16..18].copy_from_slice(&(!sum).to_be_bytes());
    }
    if body.len() > mss {
        offload.gso_type = if key.remote.is_ipv4() { GSO_TCPV4 } else { GSO_TCPV6 };
        offload.gso_size = mss as u16;
        offload.hdr_len = head.len() as u16;
    }
    Frame { offload, head, body }
}

/// The packet of a SYN from the VM, written anew, for an ICMP error to quote.
pub(super) fn packet_from_vm(key: &Key, seq: Seq, window: u16) -> Vec<u8> {
    let turned = Key { vm: key.remote, vm_port: key.remote_port, remote: key.vm, remote_port: key.vm_port };
    let header = Header { seq, flags: super::segment::SYN, window, ..Header::default() };
    let frame = frame(&turned, GATEWAY_MAC, &header, Bytes::new(), 1, Abilities::default());
    frame.head[ETHERNET_BYTES..].to_vec()
}

fn write_ethernet(bytes: &mut [u8], mac: EthernetAddress, key: &Key) {
    bytes[..6].copy_from_slice(&mac.0);
    bytes[6..12].copy_from_slice(&GATEWAY_MAC.0);
    bytes[12..].copy_from_slice(if key.remote.is_ipv4() { &[0x08, 0x00] } else { &[0x86, 0xdd] });
}

/// IPv4 (RFC 791): no identification, as it is never to be fragmented (RFC 6864). IPv6 (RFC 8200).
fn write_ip(bytes: &mut [u8], key: &Key, payload_bytes: usize) {
    match (key.remote, key.vm) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&((20 + payload_bytes) as u16).to_be_bytes());
            bytes[6] = 0x40;
            (bytes[8], bytes[9]) = (HOP_LIMIT, PROTOCOL);
            bytes[12..16].copy_from_slice(&source.octets());
            bytes[16..20].copy_from_slice(&destination.octets());
            let sum = checksum::add(0, bytes);
            bytes[10..12].copy_from_slice(&(!sum).to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
            (bytes[6], bytes[7]) = (PROTOCOL, HOP_LIMIT);
            bytes[8..24].copy_from_slice(&source.octets());
            bytes[24..40].copy_from_slice(&destination.octets());
        }
        _ => unreachable!("both addresses came from one packet"),
    }
}

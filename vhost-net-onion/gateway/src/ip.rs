//! What IPv4 and IPv6 have in common for everything above them: a packet that passed the checks, and the way back.

use std::net::IpAddr;

use smoltcp::wire::{EthernetAddress, EthernetProtocol, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol};
use wire::link::Offload;

use crate::{counters::Counters, ipv4, ipv6, outbox::Outbox};

/// Hop limit of packets to the VM (RFC 1700's default).
pub(crate) const HOP_LIMIT: u8 = 64;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` (virtio 1.2, section 5.1.6): the checksum is yet to be completed.
pub(crate) const NEEDS_CHECKSUM: u8 = 1;

/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum was found right.
pub(crate) const DATA_VALID: u8 = 2;

/// A packet from the VM that passed the checks of [`ipv4`] or [`ipv6`]. Source and destination are of one version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: IpProtocol,
    /// From the first byte of the IP header, without what pads the frame.
    pub(crate) bytes: &'a [u8],
    /// What follows the IP headers, those of extensions and options included.
    pub(crate) payload: &'a [u8],
    /// What the VM's driver left to do.
    pub(crate) offload: Offload,
}

impl Packet<'_> {
    /// Whether the checksum of the payload's own protocol stands in the packet. If not, the VM's driver left it to be
    /// filled in, or vouches for the data: between the VM's memory and here there is no wire that could spoil it.
    pub(crate) fn has_checksum(&self) -> bool {
        self.offload.flags & (NEEDS_CHECKSUM | DATA_VALID) == 0
    }
}

/// Where a packet to the VM comes from and goes to. Both addresses are of one version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub(crate) mac: EthernetAddress,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: IpProtocol,
}

/// Sends a packet whose payload `fill` writes.
pub(crate) fn send(
    outbox: &mut Outbox,
    counters: &mut Counters,
    envelope: Envelope,
    payload_bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let Envelope { mac, source, destination, protocol } = envelope;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = IPV4_HEADER_LEN + payload_bytes;
            outbox.push(counters, mac, EthernetProtocol::Ipv4, length, |bytes| {
                ipv4::header(source, destination, protocol, payload_bytes, bytes);
                fill(&mut bytes[IPV4_HEADER_LEN..]);
            });
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = IPV6_HEADER_LEN + payload_bytes;
            outbox.push(counters, mac, EthernetProtocol::Ipv6, length, |bytes| {
                ipv6::header(source, destination, protocol, HOP_LIMIT, payload_bytes, bytes);
                fill(&mut bytes[IPV6_HEADER_LEN..]);
            });
        }
        _ => debug_assert!(false, "{source} and {destination} are of two versions"),
    }
}

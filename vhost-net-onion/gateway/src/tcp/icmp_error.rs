//! Errors of ICMP and ICMPv6 about segments of ours (RFC 9293, section 3.9.2.2).
//!
//! A VM sends them when its firewall rejects what comes, or when it forwards for others. Those others may forge them, so
//! one counts only if it quotes a number that is on its way (RFC 5927, section 4.1).
//!
//! | message | IPv4 | IPv6 | what becomes of the flow |
//! | --- | --- | --- | --- |
//! | protocol or port unreachable, prohibited | 3: 2, 3, 9, 10, 13 | 1: 1, 4, 5, 6 | a *hard* error: it is reset |
//! | fragmentation needed, packet too big | 3: 4 | 2 | it sends smaller segments (RFC 1191, RFC 8201) |
//! | unreachable otherwise, time exceeded, parameter problem | 3, 11, 12 | 1, 3, 4 | a *soft* error: nothing (MUST-56) |
//! | source quench | 4 | | nothing (MUST-55) |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Around, MSS_DEFAULT_V4, Tcp, emit, flow::Key, number::Seq, segment::PROTOCOL};
use crate::ip;

/// Bytes of an ICMP header.
const HEADER_BYTES: usize = 8;

/// Bytes of the quoted segment that every error has (RFC 792): its ports and its number.
const SEGMENT_BYTES: usize = 8;

/// Bytes of a packet that every link of IPv6 carries (RFC 8200, section 5).
const MTU_MIN_V6: u32 = 1280;

/// What an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Hard,
    Soft,
    /// Packets may have so many bytes, or it is not known how many: 0 (RFC 1191, section 5).
    TooBig(u32),
}

/// An error about a segment of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IcmpError {
    kind: Kind,
    /// The flow and the number of the segment.
    key: Key,
    seq: Seq,
}

impl Tcp {
    /// Handles an ICMP or ICMPv6 message, whose checksum is right, that is no request.
    pub(crate) fn handle_icmp(&mut self, around: &mut Around<'_>, packet: &ip::Packet<'_>) {
        let error = IcmpError::parse(packet);
        if let Some(IcmpError { kind: Kind::Hard, key, seq }) = &error
            && self.reject_call(around, key, *seq)
        {
            return;
        }
        let found = error.and_then(|error| {
            let id = self.table.find(&error.key)?;
            let open = self.open_flow(id).filter(|open| open.sender.is_on_its_way(error.seq))?;
            Some((error, id, open))
        });
        let Some((IcmpError { kind, key, .. }, id, open)) = found else {
            around.counters.dropped_icmp += 1;
            return;
        };
        match kind {
            Kind::Hard => {
                around.counters.flows_rejected += 1;
                self.abort(around, id);
                self.remove(around, id);
            }
            Kind::TooBig(mtu) if open.sender.lower_mss(mss(&key, mtu)) => {
                around.counters.mss_lowered += 1;
                self.make_ready(id);
            }
            Kind::TooBig(_) | Kind::Soft => around.counters.icmp_soft += 1,
        }
    }
}

/// The payload of a segment in packets of `mtu` bytes, but not less than fits the 576 bytes that RFC 1191, section 5, has
/// for a size that is not known.
fn mss(key: &Key, mtu: u32) -> u16 {
    let fits = (mtu as usize).saturating_sub(emit::header_bytes(key));
    u16::try_from(fits).unwrap_or(u16::MAX).max(MSS_DEFAULT_V4)
}

impl IcmpError {
    fn parse(packet: &ip::Packet<'_>) -> Option<IcmpError> {
        let (header, quoted) = packet.payload.split_first_chunk::<HEADER_BYTES>()?;
        let (kind, (remote, vm, segment)) = match packet.destination {
            IpAddr::V4(_) => (kind_v4(header)?, quoted_v4(quoted)?),
            IpAddr::V6(_) => (kind_v6(header)?, quoted_v6(quoted)?),
        };
        let [r0, r1, v0, v1, seq @ ..] = *segment;
        let (remote_port, vm_port) = (u16::from_be_bytes([r0, r1]), u16::from_be_bytes([v0, v1]));
        Some(IcmpError { kind, key: Key { vm, vm_port, remote, remote_port }, seq: Seq(u32::from_be_bytes(seq)) })
    }
}

/// RFC 792; RFC 1122, section 4.2.3.9; for what is prohibited RFC 1812, section 5.2.7.1.
fn kind_v4(header: &[u8; HEADER_BYTES]) -> Option<Kind> {
    match header[..2] {
        [3, 2 | 3 | 9 | 10 | 13] => Some(Kind::Hard),
        [3, 4] => Some(Kind::TooBig(u16::from_be_bytes([header[6], header[7]]).into())),
        [3 | 11 | 12, _] => Some(Kind::Soft),
        _ => None,
    }
}

/// RFC 4443, section 3, whose codes 5 and 6 are kinds of 1; RFC 5461, section 2. A size below the least is not to be
/// believed (RFC 8201, section 4).
fn kind_v6(header: &[u8; HEADER_BYTES]) -> Option<Kind> {
    match header[..2] {
        [1, 1 | 4 | 5 | 6] => Some(Kind::Hard),
        [2, _] => {
            let mtu = u32::from_be_bytes(std::array::from_fn(|n| header[4 + n]));
            (mtu >= MTU_MIN_V6).then_some(Kind::TooBig(mtu))
        }
        [1 | 3 | 4, _] => Some(Kind::Soft),
        _ => None,
    }
}

/// Source, destination and the start of the segment.
type Quoted<'a> = (IpAddr, IpAddr, &'a [u8; SEGMENT_BYTES]);

/// Reads a packet as we send them: without options.
fn quoted_v4(bytes: &[u8]) -> Option<Quoted<'_>> {
    let (header, rest) = bytes.split_first_chunk::<20>()?;
    let address = |at: usize| Ipv4Addr::from_octets(std::array::from_fn(|n| header[at + n])).into();
    let is_ours = header[0] == 0x45 && header[9] == PROTOCOL;
    is_ours.then_some((address(12), address(16), rest.first_chunk()?))
}

/// The same, without extensions.
fn quoted_v6(bytes: &[u8]) -> Option<Quoted<'_>> {
    let (header, rest) = bytes.split_first_chunk::<40>()?;
    let address = |at: usize| Ipv6Addr::from_octets(std::array::from_fn(|n| header[at + n])).into();
    let is_ours = header[0] >> 4 == 6 && header[6] == PROTOCOL;
    is_ours.then_some((address(8), address(24), rest.first_chunk()?))
}

//! Which offloads a driver can be given.
//!
//! The router fills the offload fields of a frame; the driver behind the ring may have been told something else
//! meanwhile, or the router may be hostile. So nothing reaches the driver that it did not negotiate (virtio 1.2,
//! section 5.1.6.4.1), and no field that points out of its frame.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};
use wire::link::{Abilities, Offload};

use crate::counters::DropReason;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;

/// Bytes of a checksum.
const CHECKSUM_BYTES: usize = 2;

/// The offload fields that a driver with `abilities` gets with a frame of `frame_bytes` bytes, or why it does not get
/// the frame.
pub(crate) fn for_driver(offload: Offload, abilities: Abilities, frame_bytes: usize) -> Result<Offload, DropReason> {
    let segments = match offload.gso_type {
        GSO_NONE => false,
        GSO_TCPV4 if abilities.tso4 => true,
        GSO_TCPV6 if abilities.tso6 => true,
        _ => return Err(DropReason::Ability),
    };
    let checksum = offload.flags & NEEDS_CSUM != 0;
    if checksum && !abilities.checksum {
        return Err(DropReason::Ability);
    }
    let checksum_end = usize::from(offload.csum_start) + usize::from(offload.csum_offset) + CHECKSUM_BYTES;
    if checksum && checksum_end > frame_bytes {
        return Err(DropReason::BadOffload);
    }
    // A segment repeats the headers, and its checksum is always to be made (section 5.1.6.2).
    if segments && (offload.gso_size == 0 || !checksum || usize::from(offload.hdr_len) > frame_bytes) {
        return Err(DropReason::BadOffload);
    }
    // That the data are valid is only a hint, and what else there may be is unknown to the driver.
    let known = if abilities.checksum { NEEDS_CSUM | DATA_VALID } else { NEEDS_CSUM };
    Ok(Offload { flags: offload.flags & known, ..offload })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Abilities = Abilities { checksum: false, tso4: false, tso6: false };
    const ALL: Abilities = Abilities { checksum: true, tso4: true, tso6: true };
    const TSO: Offload =
        Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };

    #[test]
    fn a_driver_gets_what_it_negotiated() {
        let plain = Offload::default();
        let partial = Offload { gso_type: 0, gso_size: 0, ..TSO };
        let tso6 = Offload { gso_type: 4, ..TSO };
        for (offload, needs) in [
            (plain, NONE),
            (partial, Abilities { checksum: true, ..NONE }),
            (TSO, Abilities { tso6: false, ..ALL }),
            (tso6, Abilities { tso4: false, ..ALL }),
        ] {
            for bits in 0..8 {
                let has = Abilities { checksum: bits & 1 != 0, tso4: bits & 2 != 0, tso6: bits & 4 != 0 };
                let lacks = needs.checksum && !has.checksum || needs.tso4 && !has.tso4 || needs.tso6 && !has.tso6;
                let expected = if lacks { Err(DropReason::Ability) } else { Ok(offload) };
                assert_eq!(for_driver(offload, has, 4000), expected, "{offload:?} for {has:?}");
            }
        }
        // UDP fragmentation, UDP segmentation, ECN: not offered.
        for gso_type in [2, 3, 5, 0x80, 0x81, 0x84, 0xff] {
            assert_eq!(for_driver(Offload { gso_type, ..TSO }, ALL, 4000), Err(DropReason::Ability));
        }
    }

    #[test]
    fn flags_that_the_driver_does_not_know_are_cleared() {
        let flags = |flags, abilities| {
            let offload = Offload { flags, csum_start: 34, csum_offset: 16, ..Offload::default() };
            for_driver(offload, abilities, 60).map(|offload| offload.flags)
        };
        assert_eq!(flags(0xfe, NONE), Ok(0));
        assert_eq!(flags(0xfe, ALL), Ok(2));
        assert_eq!(flags(0xff, ALL), Ok(3));
    }

    #[test]
    fn fields_stay_within_the_frame() {
        let bad = |offload, frame_bytes| for_driver(offload, ALL, frame_bytes) == Err(DropReason::BadOffload);
        assert!(!bad(TSO, 54));
        assert!(bad(TSO, 53), "hdr_len");
        let short = Offload { hdr_len: 0, ..TSO };
        assert!(!bad(short, 52));
        assert!(bad(short, 51), "the checksum is the last thing in the frame");
        assert!(bad(Offload { csum_start: u16::MAX, ..TSO }, 65_552));
        assert!(bad(Offload { csum_offset: u16::MAX, ..TSO }, 65_553));
        assert!(bad(Offload { csum_start: u16::MAX, csum_offset: u16::MAX, ..TSO }, 65_553));
        assert!(bad(Offload { gso_size: 0, ..TSO }, 4000));
        assert!(bad(Offload { flags: 0, ..TSO }, 4000));
        // Without a flag that makes them matter the fields are the router's own affair.
        assert!(!bad(Offload { flags: 0, gso_type: 0, csum_start: u16::MAX, ..TSO }, 60));
    }
}

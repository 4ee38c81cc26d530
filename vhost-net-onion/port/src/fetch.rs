//! A frame out of a chain of the tx ring: copied once, checked in the copy.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, WriteVolatile};
use wire::link::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, OFFLOAD_BYTES, Offload};

use crate::{
    counters::DropReason,
    ring::{BadChain, Layout, walk},
};

/// Bytes of the longest virtio-net header.
const NET_HEADER_BYTES_MAX: usize = 12;

/// Copies the frame of `chain` to `room`, which must take the longest frame; what it takes when this fails is no frame.
/// Returns its offload fields and how many bytes it has.
///
/// Of the offload fields only those are looked at that decide how long the frame may be: the gateway, which acts on
/// the others, checks them against the frame.
pub(crate) fn fetch(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    layout: &Layout,
    room: &mut impl WriteVolatile,
) -> Result<(Offload, usize), DropReason> {
    let mut net_header = [0; NET_HEADER_BYTES_MAX];
    let net_header = &mut net_header[..layout.header_bytes];
    let mut bytes = 0;
    let mut too_long = false;
    let walked = walk(chain, false, |descriptor| {
        let length = descriptor.len() as usize;
        if length > layout.header_bytes + FRAME_BYTES_MAX - bytes {
            too_long = true;
            return Err(BadChain);
        }
        copy_out(memory, descriptor.addr(), length, bytes, net_header, room)?;
        bytes += length;
        Ok(())
    });
    walked.map_err(|BadChain| if too_long { DropReason::TooLong } else { DropReason::TxChain })?;
    let frame_bytes = bytes.saturating_sub(layout.header_bytes);
    let offload = net_header.first_chunk::<OFFLOAD_BYTES>().expect("a net header has at least ten bytes");
    let offload = Offload::from_bytes(*offload);
    let bytes_max = if offload.gso_type == 0 { layout.frame_bytes_max } else { layout.segmented_bytes_max };
    if frame_bytes < FRAME_BYTES_MIN {
        return Err(DropReason::TooShort);
    }
    if frame_bytes > bytes_max {
        return Err(DropReason::TooLong);
    }
    Ok((offload, frame_bytes))
}

/// Copies the part of a chain that begins after `at` bytes of it: first the net header, then the frame.
fn copy_out(
    memory: &GuestMemoryMmap,
    addr: GuestAddress,
    length: usize,
    at: usize,
    net_header: &mut [u8],
    room: &mut impl WriteVolatile,
) -> Result<(), BadChain> {
    let of_header = net_header.len().saturating_sub(at).min(length);
    if of_header > 0 {
        memory.read_slice(&mut net_header[at..at + of_header], addr).map_err(|_| BadChain)?;
    }
    let rest = length - of_header;
    if rest > 0 {
        let from = GuestAddress(addr.0.checked_add(of_header as u64).ok_or(BadChain)?);
        memory.write_all_volatile_to(from, room, rest).map_err(|_| BadChain)?;
    }
    Ok(())
}

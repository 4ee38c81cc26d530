//! One running split virtqueue (virtio 1.2, section 2.7).
//!
//! A ring is built from a layout when it starts, and never changed: another layout makes another ring. The available
//! side is `virtio-queue`'s. The used side is our own, because chains that belong to one frame must become visible
//! with one store of the index: a driver that sees the first buffer of a frame expects the others.
//!
//! Chains are completed in the order in which they were taken, so that `next_used` is all there is to know about a
//! ring: what lies between it and the available index is to be done, by us or by our successor.

use std::{
    num::Wrapping,
    sync::atomic::{Ordering, fence},
};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT, desc::split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use wire::link::Abilities;

/// How many descriptors a chain has at most, as in QEMU (`VIRTQUEUE_MAX_SIZE`).
pub(crate) const CHAIN_DESCRIPTORS_MAX: usize = 1024;

/// Where a ring lies and how it works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) size: u16,
    pub(crate) descriptors: GuestAddress,
    pub(crate) available: GuestAddress,
    pub(crate) used: GuestAddress,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub(crate) event_idx: bool,
    /// Bytes of the virtio-net header.
    pub(crate) header_bytes: usize,
    /// `VIRTIO_NET_F_MRG_RXBUF` was negotiated.
    pub(crate) mergeable: bool,
    /// Bytes of the longest frame that the driver may send whole.
    pub(crate) frame_bytes_max: usize,
    /// Bytes of the longest frame that the driver may send to be cut into segments.
    pub(crate) segmented_bytes_max: usize,
    /// What the driver can receive.
    pub(crate) abilities: Abilities,
}

/// Why a ring cannot be started, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("the ring does not lie within the VM's memory")]
    Outside,
    #[error("the ring has a wrong size or alignment, or its index is out of bounds")]
    Queue(#[source] virtio_queue::Error),
    #[error("the ring names descriptor {0}, which does not exist")]
    Head(u16),
    #[error("the ring has a buffer that is cyclic, too long, or not for the device to write to")]
    Buffer,
    #[error("the ring or its buffers cannot be accessed")]
    Memory(#[source] GuestMemoryError),
}

/// A chain is cyclic, too long, outside the memory, or has parts for the wrong direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadChain;

/// A ring that runs.
pub(crate) struct Ring {
    queue: Queue,
    pub(crate) layout: Layout,
    /// Where the driver was last considered for a signal; `None` when it must be signalled with the next completion.
    signalled: Option<Wrapping<u16>>,
}

impl Ring {
    /// Starts a ring at its used index: everything before it is done, nothing behind it is.
    pub(crate) fn start(layout: Layout, memory: &GuestMemoryMmap) -> Result<Ring, RingError> {
        let mut queue = Queue::new(layout.size).map_err(RingError::Queue)?;
        queue.try_set_desc_table_address(layout.descriptors).map_err(RingError::Queue)?;
        queue.try_set_avail_ring_address(layout.available).map_err(RingError::Queue)?;
        queue.try_set_used_ring_address(layout.used).map_err(RingError::Queue)?;
        queue.set_event_idx(layout.event_idx);
        queue.set_ready(true);
        if !queue.is_valid(memory) {
            return Err(RingError::Outside);
        }
        let used = queue.used_idx(memory, Ordering::Acquire).map_err(RingError::Queue)?;
        queue.set_next_avail(used.0);
        queue.set_next_used(used.0);
        Ok(Ring { queue, layout, signalled: None })
    }

    /// Takes the next chain. Its head is a descriptor of this ring; nothing else about it has been checked.
    pub(crate) fn take<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, RingError> {
        let chain = self.queue.iter(memory).map_err(RingError::Queue)?.next();
        match chain {
            Some(chain) if chain.head_index() >= self.layout.size => Err(RingError::Head(chain.head_index())),
            chain => Ok(chain),
        }
    }

    /// The index of the next chain to take.
    pub(crate) fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Gives back every chain that was taken and not completed.
    pub(crate) fn give_back(&mut self) {
        self.queue.set_next_avail(self.queue.next_used());
    }

    /// Completes a chain, not yet visible to the driver.
    pub(crate) fn complete(&mut self, memory: &GuestMemoryMmap, head: u16, bytes: u32) -> Result<(), RingError> {
        let at = u64::from(self.queue.next_used() % self.layout.size);
        let element = GuestAddress(self.layout.used.0 + 4 + 8 * at);
        let id_and_length = u64::from(head) | u64::from(bytes) << 32;
        memory.write_obj(id_and_length.to_le(), element).map_err(RingError::Memory)?;
        self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        Ok(())
    }

    /// Makes the completed chains visible. Returns whether the driver wants a signal.
    pub(crate) fn publish(&mut self, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        let new = Wrapping(self.queue.next_used());
        let index = GuestAddress(self.layout.used.0 + 2);
        memory.store(new.0.to_le(), index, Ordering::Release).map_err(RingError::Memory)?;
        // The index must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        let old = self.signalled.replace(new);
        if !self.layout.event_idx {
            let flags: u16 = memory.load(self.layout.available, Ordering::Relaxed).map_err(RingError::Memory)?;
            return Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = GuestAddress(self.layout.available.0 + 4 + 2 * u64::from(self.layout.size));
        let event: u16 = memory.load(event, Ordering::Relaxed).map_err(RingError::Memory)?;
        let passed = |old: Wrapping<u16>| new - Wrapping(u16::from_le(event)) - Wrapping(1) < new - old;
        Ok(old.is_none_or(passed))
    }

    /// Asks the driver for a kick when there is more behind index `seen`. Returns whether there is already.
    pub(crate) fn ask_for_kick(&mut self, memory: &GuestMemoryMmap, seen: u16) -> Result<bool, RingError> {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(seen);
        let more = self.queue.enable_notification(memory);
        self.queue.set_next_avail(next);
        more.map_err(RingError::Queue)
    }

    /// Tells the driver that kicks are not needed for now.
    pub(crate) fn no_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<(), RingError> {
        self.queue.disable_notification(memory).map_err(RingError::Queue)
    }
}

/// Calls `each` for the descriptors of a chain, all of which must be for the device to write to (`writable`) or all to
/// read from. Returns how many there were.
///
/// `virtio-queue` ends a chain silently when something is wrong with it; it shows by the last one having a next.
pub(crate) fn walk(
    chain: DescriptorChain<&GuestMemoryMmap>,
    writable: bool,
    mut each: impl FnMut(&Descriptor) -> Result<(), BadChain>,
) -> Result<usize, BadChain> {
    let mut count = 0;
    let mut ended = false;
    for descriptor in chain.take(CHAIN_DESCRIPTORS_MAX) {
        if descriptor.is_write_only() != writable {
            return Err(BadChain);
        }
        each(&descriptor)?;
        ended = !descriptor.has_next();
        count += 1;
    }
    if ended { Ok(count) } else { Err(BadChain) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    const DESCRIPTORS: u64 = 0;
    const AVAILABLE: u64 = 0x1000;
    const USED: u64 = 0x2000;

    fn layout(event_idx: bool) -> Layout {
        Layout {
            size: 8,
            descriptors: GuestAddress(DESCRIPTORS),
            available: GuestAddress(AVAILABLE),
            used: GuestAddress(USED),
            event_idx,
            header_bytes: 12,
            mergeable: true,
            frame_bytes_max: 1518,
            segmented_bytes_max: 65_553,
            abilities: Abilities::default(),
        }
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
    }

    fn put(memory: &GuestMemoryMmap, table: u64, index: u64, descriptor: Descriptor) {
        memory.write_obj(descriptor, GuestAddress(table + 16 * index)).unwrap();
    }

    fn offer(memory: &GuestMemoryMmap, heads: &[u16]) {
        for (i, head) in heads.iter().enumerate() {
            memory.write_obj(*head, GuestAddress(AVAILABLE + 4 + 2 * i as u64)).unwrap();
        }
        memory.write_obj(heads.len() as u16, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    #[test]
    fn a_ring_goes_on_at_its_used_index() {
        let memory = memory();
        offer(&memory, &[5, 6, 7]);
        memory.write_obj(1u16, GuestAddress(USED + 2)).unwrap();
        let mut ring = Ring::start(layout(true), &memory).unwrap();
        assert_eq!(ring.take(&memory).unwrap().unwrap().head_index(), 6);
        assert_eq!(ring.take(&memory).unwrap().unwrap().head_index(), 7);
        assert!(ring.take(&memory).unwrap().is_none());
        ring.complete(&memory, 6, 0).unwrap();
        ring.give_back();
        assert_eq!(ring.take(&memory).unwrap().unwrap().head_index(), 7, "what was not completed comes again");
    }

    #[test]
    fn completions_show_all_at_once() {
        let memory = memory();
        let mut ring = Ring::start(layout(true), &memory).unwrap();
        let index = || memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap();
        ring.complete(&memory, 3, 100).unwrap();
        ring.complete(&memory, 4, 200).unwrap();
        assert_eq!(index(), 0);
        assert!(ring.publish(&memory).unwrap(), "the first time always signals");
        assert_eq!(index(), 2);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(USED + 12)).unwrap(), 4 | 200 << 32);
    }

    #[test]
    fn the_driver_is_signalled_when_it_asks_for_it() {
        let memory = memory();
        let mut ring = Ring::start(layout(true), &memory).unwrap();
        let mut done = |event: u16| {
            memory.write_obj(event, GuestAddress(AVAILABLE + 4 + 16)).unwrap();
            ring.complete(&memory, 0, 0).unwrap();
            ring.publish(&memory).unwrap()
        };
        assert!(done(0));
        assert!(!done(2), "1 → 2, asked at 3");
        assert!(done(2), "2 → 3");
        assert!(!done(2), "3 → 4, already told");

        let mut ring = Ring::start(layout(false), &memory).unwrap();
        assert!(ring.publish(&memory).unwrap());
        memory.write_obj(1u16, GuestAddress(AVAILABLE)).unwrap();
        assert!(!ring.publish(&memory).unwrap());
    }

    #[test]
    fn broken_rings_are_refused() {
        let memory = memory();
        let start = |change: fn(&mut Layout)| {
            let mut layout = layout(true);
            change(&mut layout);
            Ring::start(layout, &memory).err().expect("refused")
        };
        assert!(matches!(start(|l| l.size = 0), RingError::Queue(_)));
        assert!(matches!(start(|l| l.size = 7), RingError::Queue(_)));
        assert!(matches!(start(|l| l.size = 65535), RingError::Queue(_)));
        assert!(matches!(start(|l| l.descriptors.0 = 1), RingError::Queue(_)));
        assert!(matches!(start(|l| l.used.0 = 0xf_fff0), RingError::Outside));
        assert!(matches!(start(|l| l.available.0 = u64::MAX - 1), RingError::Outside));

        let mut ring = Ring::start(layout(true), &memory).unwrap();
        offer(&memory, &[8]);
        assert!(matches!(ring.take(&memory), Err(RingError::Head(8))));
        memory.write_obj(9u16, GuestAddress(AVAILABLE + 2)).unwrap();
        let mut ring = Ring::start(layout(true), &memory).unwrap();
        assert!(matches!(ring.take(&memory), Err(RingError::Queue(_))), "an index too far ahead");
    }

    fn walked(memory: &GuestMemoryMmap, writable: bool) -> Result<usize, BadChain> {
        offer(memory, &[0]);
        let mut ring = Ring::start(layout(true), memory).unwrap();
        walk(ring.take(memory).unwrap().unwrap(), writable, |_| Ok(()))
    }

    #[test]
    fn chains_that_do_not_end_well_are_bad() {
        let memory = memory();
        let direct = |i, flags, next| put(&memory, DESCRIPTORS, i, Descriptor::new(0x8000, 1, flags, next));
        direct(0, NEXT, 1);
        direct(1, 0, 0);
        assert_eq!(walked(&memory, false), Ok(2));
        assert_eq!(walked(&memory, true), Err(BadChain), "wrong direction");
        direct(1, WRITE, 0);
        assert_eq!(walked(&memory, false), Err(BadChain), "mixed directions");
        direct(1, NEXT, 0);
        assert_eq!(walked(&memory, false), Err(BadChain), "cyclic");
        direct(1, NEXT, 8);
        assert_eq!(walked(&memory, false), Err(BadChain), "out of the table");
        direct(0, NEXT, 0);
        assert_eq!(walked(&memory, false), Err(BadChain), "its own next");
    }

    #[test]
    fn indirect_tables_are_followed_once_and_bounded() {
        let memory = memory();
        let table = |bytes| put(&memory, DESCRIPTORS, 0, Descriptor::new(0x8000, bytes, INDIRECT, 0));
        for i in 0..2048 {
            put(&memory, 0x8000, i, Descriptor::new(0x1000, 1, NEXT, i as u16 + 1));
        }
        put(&memory, 0x8000, 1023, Descriptor::new(0x1000, 1, 0, 0));
        table(16 * 1024);
        assert_eq!(walked(&memory, false), Ok(1024), "longer than the ring, as long as allowed");
        table(16 * 1023);
        assert_eq!(walked(&memory, false), Err(BadChain), "out of the table");
        put(&memory, 0x8000, 1023, Descriptor::new(0x1000, 1, NEXT, 1024));
        table(16 * 2048);
        assert_eq!(walked(&memory, false), Err(BadChain), "too long");
        for bytes in [0, 15, 17, u32::MAX, 0xffff_fff0] {
            table(bytes);
            assert_eq!(walked(&memory, false), Err(BadChain), "table of {bytes} bytes");
        }
        put(&memory, 0x8000, 0, Descriptor::new(0x8000, 16, INDIRECT, 0));
        table(16);
        assert_eq!(walked(&memory, false), Err(BadChain), "a table in a table");
        put(&memory, DESCRIPTORS, 0, Descriptor::new(0x10_0000, 16, INDIRECT, 0));
        assert_eq!(walked(&memory, false), Err(BadChain), "a table outside the memory");
    }
}

//! The VM's memory: the regions that the front-end hands over, mapped and bounded.

use std::{fs::File, io, os::fd::OwnedFd};

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// How many regions a table has at most. Without `CONFIGURE_MEM_SLOTS` front-ends send no more (vhost-user protocol,
/// "Memory regions description").
pub(crate) const REGIONS_MAX: usize = 8;

/// Guest addresses and file offsets must be multiples of this, so that whatever is aligned for the guest is aligned
/// here. It is also what `mmap` asks for.
const PAGE_BYTES: u64 = 4096;

/// A region as the front-end describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    /// Guest physical address.
    pub(crate) guest_addr: u64,
    /// Bytes.
    pub(crate) bytes: u64,
    /// Where the front-end has mapped it: ring addresses are given so.
    pub(crate) user_addr: u64,
    /// Where it begins in its file.
    pub(crate) offset: u64,
}

/// Why a memory table cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("a memory region wraps around, is empty, or is not page-aligned: {0:x?}")]
    Bounds(Region),
    #[error("a memory region ends at {end:#x}, behind the end of its file at {file_bytes:#x}")]
    BehindFile { end: u64, file_bytes: u64 },
    #[error("a memory region's descriptor is no regular file")]
    NoFile,
    #[error("cannot inspect a memory region's file")]
    Inspect(#[source] io::Error),
    #[error("cannot map a memory region")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
    #[error("the memory regions overlap")]
    Overlap(#[source] vm_memory::GuestRegionCollectionError),
}

/// The mapped memory.
pub(crate) struct Memory {
    pub(crate) guest: GuestMemoryMmap,
    regions: Vec<Region>,
}

impl Memory {
    /// Maps a table.
    pub(crate) fn map(mut table: Vec<(Region, OwnedFd)>) -> Result<Memory, MemoryError> {
        table.sort_by_key(|(region, _)| region.guest_addr);
        let regions = table.iter().map(|(region, _)| *region).collect();
        let mapped = table.into_iter().map(|(region, fd)| map_region(region, fd)).collect::<Result<Vec<_>, _>>()?;
        let guest = GuestMemoryMmap::from_regions(mapped).map_err(MemoryError::Overlap)?;
        Ok(Memory { guest, regions })
    }

    /// The guest physical address of an address of the front-end.
    pub(crate) fn guest_addr(&self, user_addr: u64) -> Option<GuestAddress> {
        let inside = |region: &&Region| user_addr.wrapping_sub(region.user_addr) < region.bytes;
        let region = self.regions.iter().find(inside)?;
        Some(GuestAddress(region.guest_addr + (user_addr - region.user_addr)))
    }
}

fn map_region(region: Region, fd: OwnedFd) -> Result<GuestRegionMmap, MemoryError> {
    let bounds = || MemoryError::Bounds(region);
    let end = region.offset.checked_add(region.bytes).ok_or_else(bounds)?;
    let wraps =
        region.guest_addr.checked_add(region.bytes).is_none() || region.user_addr.checked_add(region.bytes).is_none();
    let aligned = region.guest_addr.is_multiple_of(PAGE_BYTES) && region.offset.is_multiple_of(PAGE_BYTES);
    if wraps || region.bytes == 0 || !aligned {
        return Err(bounds());
    }
    let file = File::from(fd);
    let metadata = file.metadata().map_err(MemoryError::Inspect)?;
    if !metadata.is_file() {
        return Err(MemoryError::NoFile);
    }
    if end > metadata.len() {
        return Err(MemoryError::BehindFile { end, file_bytes: metadata.len() });
    }
    let bytes = usize::try_from(region.bytes).map_err(|_| bounds())?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, region.offset), bytes).map_err(MemoryError::Map)?;
    GuestRegionMmap::new(mapping, GuestAddress(region.guest_addr)).ok_or_else(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::{Bytes, GuestMemoryBackend};

    const MIB: u64 = 1 << 20;

    fn file(bytes: u64) -> OwnedFd {
        let fd = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
        File::from(fd.try_clone().unwrap()).set_len(bytes).unwrap();
        fd
    }

    fn region(guest_addr: u64, bytes: u64, user_addr: u64, offset: u64) -> Region {
        Region { guest_addr, bytes, user_addr, offset }
    }

    #[test]
    fn addresses_of_the_front_end_become_guest_addresses() {
        let table = vec![
            (region(16 * MIB, MIB, 0x7f00_0010_0000, MIB), file(2 * MIB)),
            (region(0, MIB, 0x7f00_0000_0000, 0), file(2 * MIB)),
        ];
        let memory = Memory::map(table).unwrap();
        assert_eq!(memory.guest_addr(0x7f00_0000_0000), Some(GuestAddress(0)));
        assert_eq!(memory.guest_addr(0x7f00_0010_0004), Some(GuestAddress(16 * MIB + 4)));
        assert_eq!(memory.guest_addr(0x7f00_0020_0000), None);
        assert_eq!(memory.guest_addr(0), None);
        assert_eq!(memory.guest.num_regions(), 2);
        assert!(memory.guest.read_obj::<u64>(GuestAddress(17 * MIB - 8)).is_ok());
        assert!(memory.guest.read_obj::<u64>(GuestAddress(MIB - 4)).is_err(), "across the hole");
    }

    #[test]
    fn regions_outside_their_file_or_the_address_space_are_refused() {
        let refused = |region| Memory::map(vec![(region, file(MIB))]).err().expect("refused").to_string();
        assert!(refused(region(0, 2 * MIB, 0, 0)).contains("behind the end"));
        assert!(refused(region(0, MIB, 0, 4096)).contains("behind the end"));
        for wrong in [
            region(0, 0, 0, 0),
            region(0, u64::MAX, 0, 4096),
            region(u64::MAX - 4095, 8192, 0, 0),
            region(0, 8192, u64::MAX - 4096, 0),
            region(1, 4096, 0, 0),
            region(0, 4096, 0, 1),
        ] {
            assert!(refused(wrong).contains("wraps around"), "{wrong:?}");
        }
        let overlap = vec![(region(0, MIB, 0, 0), file(MIB)), (region(4096, MIB, MIB, 0), file(MIB))];
        assert!(matches!(Memory::map(overlap), Err(MemoryError::Overlap(_))));
        let (pipe, _) = nix::unistd::pipe().unwrap();
        assert!(matches!(Memory::map(vec![(region(0, 4096, 0, 0), pipe)]), Err(MemoryError::NoFile)));
    }
}

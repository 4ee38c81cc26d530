//! The initramfs: a cpio archive (newc) with every field fixed, compressed with zstd.
//!
//! The order is that of the archive's members in [`members`], and it matters: when memory is short the kernel stops in
//! the middle and goes on, so what guest-init needs to report that comes first and the big router program last.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Read as _, Write as _},
};

use cpio::newc;

use crate::manifest::{Inner, InnerEntry, Member as Listed, VERSION, json};

/// The router program's place.
pub(crate) const ROUTER: &str = "bin/oht-router";
/// guest-init's place; the kernel starts it.
pub(crate) const INIT: &str = "init";
/// The manifest that guest-init reads.
pub(crate) const INNER_MANIFEST: &str = "etc/manifest.json";

/// Bytes of the largest initramfs that is unpacked: ten times what we build.
const UNPACKED_BYTES_MAX: u64 = 256 << 20;

/// zstd's level; 19 is the highest that needs no more memory to unpack than the window.
const LEVEL: i32 = 19;
/// Base-2 logarithm of zstd's window in bytes. The kernel allocates the window while both the archive and what comes
/// out of it are in memory too, so it adds to the least memory that the VM can have; the default at this level is 23.
const WINDOW_LOG: u32 = 21;

const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;

/// The programs, stripped.
pub(crate) struct Contents {
    pub(crate) init: Vec<u8>,
    pub(crate) router: Vec<u8>,
}

/// A member of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Path without a leading slash.
    pub(crate) path: String,
    /// Kind and permissions.
    pub(crate) mode: u32,
    /// Major and minor number of a device node.
    pub(crate) device: (u32, u32),
    /// Content of a regular file.
    pub(crate) bytes: Vec<u8>,
}

/// Why an archive cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitramfsError {
    #[error("cannot pack {path} into the initramfs")]
    Pack { path: String, source: io::Error },
    #[error("{0} is too large for a cpio archive")]
    TooLarge(String),
    #[error("the initramfs cannot be unpacked")]
    Zstd(#[source] io::Error),
    #[error("the initramfs is no whole cpio archive")]
    Cpio(#[source] io::Error),
    #[error("the initramfs has more than {UNPACKED_BYTES_MAX} bytes")]
    TooLong,
}

impl Member {
    fn regular(path: &str, mode: u32, bytes: &[u8]) -> Member {
        Member { path: path.to_owned(), mode: REGULAR | mode, device: (0, 0), bytes: bytes.to_owned() }
    }

    fn directory(path: &str, mode: u32) -> Member {
        Member { path: path.to_owned(), mode: DIRECTORY | mode, device: (0, 0), bytes: Vec::new() }
    }

    fn character(path: &str, mode: u32, device: (u32, u32)) -> Member {
        Member { path: path.to_owned(), mode: CHARACTER | mode, device, bytes: Vec::new() }
    }

    /// Whether it is a regular file.
    pub(crate) fn is_regular(&self) -> bool {
        self.mode & KIND == REGULAR
    }

    /// Permission bits.
    pub(crate) fn permissions(&self) -> u32 {
        self.mode & !KIND
    }
}

/// Everything that is in the initramfs, in the order of the archive.
pub(crate) fn members(contents: &Contents) -> Result<Vec<Member>, InitramfsError> {
    let files = [
        // Libraries of the router program ask who they run as.
        Member::regular("etc/group", 0o644, b"root:x:0:\n"),
        Member::regular("etc/passwd", 0o644, b"root:x:0:0::/:\n"),
        Member::regular(INIT, 0o755, &contents.init),
        Member::regular(ROUTER, 0o755, &contents.router),
    ];
    let inner = inner_manifest(&files);
    let mut members = vec![
        Member::directory("bin", 0o755),
        Member::directory("dev", 0o755),
        // PID 1 has no standard streams without the one, and Rust programs do not start then without the other.
        Member::character("dev/console", 0o600, (5, 1)),
        Member::character("dev/null", 0o666, (1, 3)),
        Member::directory("etc", 0o755),
        Member::directory("proc", 0o555),
        Member::directory("run", 0o755),
        Member::directory("state", 0o755),
        Member::directory("sys", 0o555),
        Member::directory("tmp", 0o1777),
        Member::regular(INNER_MANIFEST, 0o644, &json(&inner)),
    ];
    members.extend(files);
    Ok(members)
}

/// The manifest that lists these files.
pub(crate) fn inner_manifest<'a>(files: impl IntoIterator<Item = &'a Member>) -> Inner {
    let entry = |file: &Member| (file.path.clone(), InnerEntry::of(&file.bytes, file.permissions()));
    Inner { version: VERSION, files: files.into_iter().map(entry).collect() }
}

/// What the image's manifest says about the regular files.
pub(crate) fn entries(members: &[Member]) -> BTreeMap<String, Listed> {
    let listed = |member: &Member| {
        let InnerEntry { sha256, bytes, mode, .. } = InnerEntry::of(&member.bytes, member.permissions());
        (member.path.clone(), Listed { sha256, bytes, mode })
    };
    members.iter().filter(|member| member.is_regular()).map(listed).collect()
}

/// The compressed archive of these members: the same bytes for the same members.
pub(crate) fn pack(members: &[Member]) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Vec::new();
    for (ino, member) in (1..).zip(members) {
        let length = u32::try_from(member.bytes.len()).map_err(|_| InitramfsError::TooLarge(member.path.clone()))?;
        let nlink = if member.mode & KIND == DIRECTORY { 2 } else { 1 };
        let (major, minor) = member.device;
        // Owner, group, time and the device that holds the file are zero in a new header.
        let header = newc::Builder::new(&member.path).ino(ino).mode(member.mode).nlink(nlink);
        let mut writer = header.rdev_major(major).rdev_minor(minor).write(&mut archive, length);
        writer
            .write_all(&member.bytes)
            .and_then(|()| writer.finish().map(drop))
            .map_err(|source| InitramfsError::Pack { path: member.path.clone(), source })?;
    }
    newc::trailer(&mut archive).map_err(InitramfsError::Cpio)?;
    compress(&archive).map_err(InitramfsError::Zstd)
}

/// The members of a compressed archive.
pub(crate) fn unpack(compressed: &[u8]) -> Result<Vec<Member>, InitramfsError> {
    let mut archive = Vec::new();
    zstd::Decoder::new(compressed)
        .and_then(|decoder| decoder.take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut archive))
        .map_err(InitramfsError::Zstd)?;
    if archive.len() as u64 > UNPACKED_BYTES_MAX {
        return Err(InitramfsError::TooLong);
    }
    let mut rest = Cursor::new(archive.as_slice());
    let mut members = Vec::new();
    loop {
        let mut reader = newc::Reader::new(rest).map_err(InitramfsError::Cpio)?;
        let entry = reader.entry().clone();
        if entry.is_trailer() {
            return Ok(members);
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(InitramfsError::Cpio)?;
        if bytes.len() != entry.file_size() as usize {
            return Err(InitramfsError::Cpio(io::ErrorKind::UnexpectedEof.into()));
        }
        rest = reader.finish().map_err(InitramfsError::Cpio)?;
        let device = (entry.rdev_major(), entry.rdev_minor());
        members.push(Member { path: entry.name().to_owned(), mode: entry.mode(), device, bytes });
    }
}

/// One frame, made by one thread, with a checksum: the kernel says so on its console when it does not fit.
fn compress(archive: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.set_pledged_src_size(Some(archive.len() as u64))?;
    encoder.write_all(archive)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let noise = |seed: u32, length: u32| {
            (0..length).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
        };
        Contents { init: noise(1, 10_001), router: noise(2, 300_003) }
    }

    #[test]
    fn made_twice_it_has_the_same_bytes() {
        let make = || pack(&members(&contents()).unwrap()).unwrap();
        assert_eq!(make(), make());
        let other = Contents { init: vec![1], ..contents() };
        assert_ne!(make(), pack(&members(&other).unwrap()).unwrap(), "the comparison can fail");
    }

    #[test]
    fn unpacked_it_is_what_was_packed_and_the_router_comes_last() {
        let packed = members(&contents()).unwrap();
        let unpacked = unpack(&pack(&packed).unwrap()).unwrap();
        assert_eq!(unpacked, packed);
        assert_eq!(unpacked.last().map(|member| member.path.as_str()), Some(ROUTER));
    }

    #[test]
    fn nothing_of_this_machine_is_in_the_headers() {
        let mut archive = Vec::new();
        let compressed = pack(&members(&contents()).unwrap()).unwrap();
        zstd::Decoder::new(compressed.as_slice()).unwrap().read_to_end(&mut archive).unwrap();
        let mut rest = Cursor::new(archive.as_slice());
        for ino in 1.. {
            let reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                return;
            }
            let of_machine = [entry.uid(), entry.gid(), entry.mtime(), entry.dev_major(), entry.dev_minor()];
            assert_eq!((of_machine, entry.ino()), ([0; 5], ino), "{}", entry.name());
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn damaged_and_cut_archives_are_errors() {
        let compressed = pack(&members(&contents()).unwrap()).unwrap();
        for cut in [0, 1, 4, 20, compressed.len() / 2, compressed.len() - 1] {
            assert!(unpack(&compressed[..cut]).is_err(), "cut to {cut} bytes");
        }
        for at in [0, 5, compressed.len() / 2, compressed.len() - 1] {
            let mut damaged = compressed.clone();
            damaged[at] ^= 1;
            assert!(unpack(&damaged).is_err(), "byte {at} changed");
        }
    }
}

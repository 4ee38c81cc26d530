//! The programs that go into the initramfs: static, and stripped.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// Why a program cannot go into the initramfs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ElfError {
    #[error("cannot read the program {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} is no program for x86-64 Linux")]
    NotElf(PathBuf),
    #[error("{0} is not static, and the image has no libraries: build it with `-C target-feature=+crt-static`")]
    Dynamic(PathBuf),
    #[error("cannot start strip: install binutils (ci/setup does)")]
    NoStrip(#[source] io::Error),
    #[error("strip failed on {path}: {said}")]
    Strip { path: PathBuf, said: String },
    #[error("cannot make a temporary file for the stripped program: is there space in $TMPDIR?")]
    Temporary(#[source] io::Error),
}

/// The bytes of the static program at `path` without symbols and debug information.
pub(crate) fn stripped(path: &Path) -> Result<Vec<u8>, ElfError> {
    let bytes = fs::read(path).map_err(|source| ElfError::Read { path: path.to_owned(), source })?;
    match interpreter(&bytes) {
        None => return Err(ElfError::NotElf(path.to_owned())),
        Some(true) => return Err(ElfError::Dynamic(path.to_owned())),
        Some(false) => {}
    }
    let dir = tempfile::tempdir().map_err(ElfError::Temporary)?;
    let out = dir.path().join("stripped");
    let done = Command::new("strip")
        .args(["--strip-all", "--remove-section=.comment", "-o"])
        .args([&out, path])
        .output()
        .map_err(ElfError::NoStrip)?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        return Err(ElfError::Strip { path: path.to_owned(), said });
    }
    fs::read(&out).map_err(ElfError::Temporary)
}

/// Whether an x86-64 ELF program needs an interpreter (a PT_INTERP segment); `None` when it is no such program.
/// ELF-64 Object File Format 1.5, file header and program header table.
fn interpreter(bytes: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    const EM_X86_64: u16 = 62;
    let u16_at = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let class_and_order = bytes.get(4..6)?;
    if !bytes.starts_with(b"\x7fELF") || class_and_order != [2, 1] || u16_at(18)? != EM_X86_64 {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(*bytes.get(32..)?.first_chunk()?)).ok()?;
    let (entry_bytes, entries) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for entry in 0..entries {
        if u32_at(table.checked_add(entry * entry_bytes)?)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_static_program_is_stripped_to_the_same_bytes_twice() {
        let own = std::env::current_exe().unwrap();
        let once = stripped(&own).unwrap();
        assert_eq!(once, stripped(&own).unwrap());
        assert!(once.len() < fs::read(&own).unwrap().len());
    }

    #[test]
    fn other_things_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &[0x7f; 100]] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(stripped(&path), Err(ElfError::NotElf(_))), "{bytes:?}");
        }
        assert!(matches!(stripped(Path::new("/bin/sh")), Err(ElfError::Dynamic(_))));
    }
}

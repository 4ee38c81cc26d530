//! Whether the initramfs was unpacked whole.
//!
//! When memory is short the kernel prints "Initramfs unpacking failed" and goes on with what it has: a file of the
//! right length (it is set first) whose last pages are zeros. Files are unpacked in order and written front to back, so
//! the end of a file is right only if all of it is. Hashing 20 MB takes 0.4 s under emulation, half of the whole boot;
//! so a large file is checked by its length and its last [`TAIL_BYTES`], a small one by all of its bytes. Damage to the
//! archive itself is the host's to find: it knows the SHA-256 of every file of the image.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Bytes at the end of a file that `tail_sha256` is over. image-build has the same number.
const TAIL_BYTES: u64 = 64 << 10;
/// Files up to this size are hashed whole.
const WHOLE_BYTES_MAX: u64 = 64 << 10;
/// Bytes of the longest manifest: it names a handful of files.
const MANIFEST_BYTES_MAX: u64 = 64 << 10;

/// What image-build wrote to `/etc/manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    version: u32,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    sha256: String,
    tail_sha256: String,
    #[expect(dead_code, reason = "the kernel has set it; the field is named so that no other one passes")]
    mode: u32,
}

/// Why a file is not to be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("the image's manifest does not parse: {0}")]
    Json(serde_json::Error),
    #[error("the image's manifest has version {0}, this program knows 1")]
    Version(u32),
    #[error("the image's manifest does not name {0}")]
    Unnamed(String),
    #[error("{path} has {found} bytes instead of {named}: the image was not unpacked whole; give the VM more memory")]
    Length { path: String, named: u64, found: u64 },
    #[error("{0} is not what the image's manifest says: it was not unpacked whole; give the VM more memory")]
    Content(String),
}

impl Manifest {
    /// Reads a manifest.
    pub(crate) fn read(path: &Path) -> Result<Manifest, ManifestError> {
        let error = |source| ManifestError::Read { path: path.display().to_string(), source };
        let mut json = Vec::new();
        File::open(path).and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_end(&mut json)).map_err(error)?;
        let manifest: Manifest = serde_json::from_slice(&json).map_err(ManifestError::Json)?;
        if manifest.version == 1 { Ok(manifest) } else { Err(ManifestError::Version(manifest.version)) }
    }

    /// Checks the file that the manifest names `name` and that is at `name` under `root`.
    pub(crate) fn check(&self, root: &Path, name: &str) -> Result<(), ManifestError> {
        let entry = self.files.get(name).ok_or_else(|| ManifestError::Unnamed(name.to_owned()))?;
        let error = |source| ManifestError::Read { path: name.to_owned(), source };
        let mut file = File::open(root.join(name)).map_err(error)?;
        let found = file.metadata().map_err(error)?.len();
        if found != entry.bytes {
            return Err(ManifestError::Length { path: name.to_owned(), named: entry.bytes, found });
        }
        let whole = found <= WHOLE_BYTES_MAX;
        let (from, expected) =
            if whole { (0, &entry.sha256) } else { (found.saturating_sub(TAIL_BYTES), &entry.tail_sha256) };
        file.seek(SeekFrom::Start(from)).map_err(error)?;
        let mut bytes = Vec::new();
        file.take(WHOLE_BYTES_MAX.max(TAIL_BYTES)).read_to_end(&mut bytes).map_err(error)?;
        if hex(&bytes) == *expected { Ok(()) } else { Err(ManifestError::Content(name.to_owned())) }
    }
}

/// SHA-256 in lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The manifest of one file, as image-build would write it: for tests, here and in the self-test.
pub(crate) fn sample_json(name: &str, content: &[u8]) -> String {
    let tail = &content[content.len().saturating_sub(TAIL_BYTES as usize)..];
    serde_json::json!({ "version": 1, "files": { name: {
        "bytes": content.len(), "mode": 0o755, "sha256": hex(content), "tail_sha256": hex(tail),
    } } })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(content: &[u8], on_disk: &[u8]) -> Result<(), ManifestError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("program"), on_disk).unwrap();
        std::fs::write(dir.path().join("manifest"), sample_json("program", content)).unwrap();
        Manifest::read(&dir.path().join("manifest")).unwrap().check(dir.path(), "program")
    }

    #[test]
    fn whole_files_pass_and_files_that_the_kernel_left_unfinished_do_not() {
        for length in [0, 1, 65_535, 65_536, 65_537, 300_000] {
            let content: Vec<u8> = (0..length).map(|at: usize| 1 + (at % 251) as u8).collect();
            checked(&content, &content).unwrap();
            let Some(shorter) = content.len().checked_sub(1) else { continue };
            assert!(matches!(checked(&content, &content[..shorter]), Err(ManifestError::Length { .. })));
            for written in [0, length / 2, shorter] {
                let mut unfinished = content.clone();
                unfinished[written..].fill(0);
                assert!(matches!(checked(&content, &unfinished), Err(ManifestError::Content(_))), "{written}/{length}");
            }
        }
    }

    #[test]
    fn unnamed_files_and_other_manifests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest");
        std::fs::write(&path, sample_json("program", b"x")).unwrap();
        let manifest = Manifest::read(&path).unwrap();
        assert!(matches!(manifest.check(dir.path(), "other"), Err(ManifestError::Unnamed(_))));
        std::fs::write(&path, r#"{"version":2,"files":{}}"#).unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Version(2))));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Json(_))));
    }
}

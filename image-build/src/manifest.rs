//! The manifest: what every file of an image is.
//!
//! The one in the image's directory is for the host. A second one, `etc/manifest.json` in the initramfs
//! ([`Inner`]), is for guest-init, which checks what it starts by length and tail: see there for why.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The version of both manifests.
pub(crate) const VERSION: u32 = 1;

/// The kernel.
pub(crate) const VMLINUZ: &str = "vmlinuz";
/// The initramfs.
pub(crate) const INITRAMFS: &str = "initramfs.cpio.zst";
/// The description of the public Tor network.
pub(crate) const TOR_NETWORK: &str = "tor-network.json";
/// The manifest itself, which lists itself nowhere.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Bytes at the end of a program that its `tail_sha256` is over. guest-init has the same number.
pub(crate) const TAIL_BYTES: usize = 64 << 10;

/// The manifest of an image's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// The files beside it, by name.
    pub(crate) files: BTreeMap<String, Entry>,
    /// The regular files in the initramfs, by path without a leading slash.
    pub(crate) initramfs: BTreeMap<String, Member>,
    /// Where the kernel comes from.
    pub(crate) kernel: KernelEntry,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

/// A file in the initramfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// The kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelEntry {
    /// What `uname -r` says.
    pub(crate) release: String,
    /// Name and SHA-256 of the source archive.
    pub(crate) source: String,
    /// SHA-256 of the whole configuration, which the kernel carries.
    pub(crate) config_sha256: String,
}

/// The manifest in the initramfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inner {
    pub(crate) version: u32,
    pub(crate) files: BTreeMap<String, InnerEntry>,
}

/// A file in the manifest in the initramfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InnerEntry {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    pub(crate) mode: u32,
    /// SHA-256 of the last [`TAIL_BYTES`].
    pub(crate) tail_sha256: String,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("cannot read {path}: build an image there with `image-build build --out`")]
    Read { path: String, source: io::Error },
    #[error("{path} is no manifest of an image: build the image again")]
    Json { path: String, source: serde_json::Error },
    #[error("{path} has version {version}, this program knows {VERSION}: build the image again")]
    Version { path: String, version: u32 },
}

impl Manifest {
    /// Reads the manifest of the image in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Manifest, ManifestError> {
        let file = dir.join(MANIFEST);
        let path = file.display().to_string();
        let json = fs::read(&file).map_err(|source| ManifestError::Read { path: path.clone(), source })?;
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|source| ManifestError::Json { path: path.clone(), source })?;
        match manifest.version {
            VERSION => Ok(manifest),
            version => Err(ManifestError::Version { path, version }),
        }
    }
}

impl Entry {
    /// The entry of a file with these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Entry {
        Entry { sha256: sha256(bytes), bytes: bytes.len() as u64 }
    }
}

impl InnerEntry {
    /// The entry of a file with these bytes and permissions.
    pub(crate) fn of(bytes: &[u8], mode: u32) -> InnerEntry {
        let tail = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        InnerEntry { sha256: sha256(bytes), bytes: bytes.len() as u64, mode, tail_sha256: sha256(tail) }
    }
}

/// SHA-256 in lower-case hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of everything that a reader has, in lower-case hexadecimal digits.
pub(crate) fn sha256_of(mut reader: impl io::Read) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(hex(&sum.finalize())),
            bytes => sum.update(&piece[..bytes]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// JSON as both manifests are written: sorted, indented, the same bytes for the same content.
pub(crate) fn json(content: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(content).expect("a manifest has only strings, numbers and string keys");
    bytes.push(b'\n');
    bytes
}

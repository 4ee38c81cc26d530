//! The router VM's image: where it is, and whether it is whole.
//!
//! The manifest names the files with their SHA-256; they are checked before every boot, because a truncated initramfs
//! boots, and then fails in ways that nobody can read.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{paths, programs};

/// The kernel.
pub const KERNEL: &str = "vmlinuz";
/// The initramfs.
pub const INITRAMFS: &str = "initramfs.cpio.zst";
/// The description of the public Tor network.
pub const PUBLIC_NETWORK: &str = "tor-network.json";

/// Bytes of the longest manifest: it has a dozen entries.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What to do about an image that is missing or broken.
const REMEDY: &str = "build it (`cargo run -p image-build -- build --out target/image`), or name another with --image";

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is nowhere.
    #[error("there is no router image ({}): {REMEDY}", .searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    Missing {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// A file cannot be read.
    #[error("cannot read {path} of the router image: {REMEDY}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The manifest is none.
    #[error("{path} is no manifest of a router image: {REMEDY}")]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest does not name a file that is needed.
    #[error("the router image's manifest {path} does not name {file}: {REMEDY}")]
    Unnamed {
        /// The manifest.
        path: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// A file is not the one that was built.
    #[error("{path} of the router image is corrupt (its SHA-256 is not the manifest's): {REMEDY}")]
    Corrupt {
        /// Which.
        path: PathBuf,
    },
}

/// The directory of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image(PathBuf);

/// What this program needs of the manifest; image-build writes more.
#[derive(Deserialize)]
struct Manifest {
    files: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    sha256: String,
}

impl Image {
    /// The image in `given`, else the first of the usual places that has one.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(given: Option<&Path>) -> Result<Image, ImageError> {
        let places = given.map_or_else(usual_places, |path| vec![path.to_path_buf()]);
        let found = places.iter().find(|path| path.join("manifest.json").exists());
        found.cloned().map(Image).ok_or(ImageError::Missing { searched: places })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// One of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Checks kernel and initramfs. Reads them whole: some 10 ms.
    ///
    /// # Errors
    /// When one of them is not what was built; names it.
    pub fn check(&self) -> Result<(), ImageError> {
        let path = self.file("manifest.json");
        let json = read_bounded(&path)?;
        let manifest: Manifest =
            serde_json::from_slice(&json).map_err(|source| ImageError::Manifest { path: path.clone(), source })?;
        for file in [KERNEL, INITRAMFS] {
            let entry = manifest.files.get(file).ok_or_else(|| ImageError::Unnamed { path: path.clone(), file })?;
            let path = self.file(file);
            if !sha256(&path)?.eq_ignore_ascii_case(&entry.sha256) {
                return Err(ImageError::Corrupt { path });
            }
        }
        Ok(())
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ImageError> {
    use io::Read;
    let mut json = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_end(&mut json));
    read.map_err(|source| ImageError::Read { path: path.into(), source })?;
    Ok(json)
}

fn sha256(path: &Path) -> Result<String, ImageError> {
    let bytes = fs::read(path).map_err(|source| ImageError::Read { path: path.into(), source })?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The user's, the system's, and that of the checkout whose `target/<triple>/debug` or `target/debug` we run from.
fn usual_places() -> Vec<PathBuf> {
    let mut places = vec![paths::xdg("XDG_DATA_HOME", ".local/share").join("onion-router/image")];
    places.push("/usr/lib/onion-router/image".into());
    let own = programs::own_directory();
    places.extend(own.iter().flat_map(|dir| dir.ancestors().skip(1).take(2)).map(|dir| dir.join("image")));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path) -> Image {
        fs::write(dir.join(KERNEL), "kernel").unwrap();
        fs::write(dir.join(INITRAMFS), "initramfs").unwrap();
        let entry = |name: &str| format!(r#""{name}":{{"sha256":"{}","bytes":1}}"#, sha256(&dir.join(name)).unwrap());
        let manifest = format!(r#"{{"version":1,"files":{{{},{}}},"more":0}}"#, entry(KERNEL), entry(INITRAMFS));
        fs::write(dir.join("manifest.json"), manifest).unwrap();
        Image::find(Some(dir)).unwrap()
    }

    #[test]
    fn a_whole_image_passes_and_a_changed_byte_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        image.check().unwrap();
        fs::write(image.file(INITRAMFS), "initramfz").unwrap();
        let error = image.check().unwrap_err().to_string();
        assert!(error.contains(INITRAMFS) && error.contains("corrupt") && error.contains("image-build"), "{error}");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Image::find(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
        let image = image(dir.path());
        fs::remove_file(image.file(KERNEL)).unwrap();
        assert!(matches!(image.check(), Err(ImageError::Read { path, .. }) if path.ends_with(KERNEL)));
        fs::write(image.file("manifest.json"), "{\"files\":{}}").unwrap();
        assert!(matches!(image.check(), Err(ImageError::Unnamed { file: KERNEL, .. })));
        fs::write(image.file("manifest.json"), "garbage").unwrap();
        assert!(matches!(image.check(), Err(ImageError::Manifest { .. })));
    }
}

//! The image's directory: written beside its place, then renamed into it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::manifest::{MANIFEST, Manifest, json};

/// Where an image goes.
pub(crate) struct Target {
    dir: PathBuf,
    parent: PathBuf,
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("{0} is no name for a directory")]
    Name(PathBuf),
    #[error("{0} is there and is no image (it has files but no manifest.json): name another directory, or remove it")]
    Foreign(PathBuf),
    #[error("cannot write the image into {dir}: {}", if full(source) { "the disk is full, nothing was changed; free some space" } else { "nothing was changed" })]
    Write { dir: PathBuf, source: io::Error },
    #[error("cannot put the image in its place {dir}")]
    Replace { dir: PathBuf, source: io::Error },
}

fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Target {
    /// Checks that an image may be put at `dir`, before minutes of work go into it.
    pub(crate) fn new(dir: &Path) -> Result<Target, OutputError> {
        let write = |source| OutputError::Write { dir: dir.to_owned(), source };
        let dir = std::path::absolute(dir).map_err(write)?;
        let parent = dir.parent().ok_or_else(|| OutputError::Name(dir.clone()))?.to_owned();
        dir.file_name().ok_or_else(|| OutputError::Name(dir.clone()))?;
        fs::create_dir_all(&parent).map_err(write)?;
        if let Ok(mut entries) = fs::read_dir(&dir) {
            if !dir.join(MANIFEST).is_file() && entries.next().is_some() {
                return Err(OutputError::Foreign(dir));
            }
        } else if dir.symlink_metadata().is_ok() {
            return Err(OutputError::Foreign(dir));
        }
        Ok(Target { dir, parent })
    }

    /// Writes the files and the manifest, and replaces what was there by them.
    pub(crate) fn write(&self, files: &[(&str, Vec<u8>)], manifest: &Manifest) -> Result<(), OutputError> {
        let write = |source| OutputError::Write { dir: self.dir.clone(), source };
        let new = tempfile::Builder::new().prefix(".image-new-").tempdir_in(&self.parent).map_err(write)?;
        let manifest = json(manifest);
        let all = files.iter().map(|(name, bytes)| (*name, bytes)).chain([(MANIFEST, &manifest)]);
        for (name, bytes) in all {
            write_synced(&new.path().join(name), bytes).map_err(write)?;
        }
        self.replace(new).map_err(|source| OutputError::Replace { dir: self.dir.clone(), source })
    }

    /// Two renames: between them there is no image, never half of one.
    fn replace(&self, new: tempfile::TempDir) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755))?;
        let old = tempfile::Builder::new().prefix(".image-old-").tempdir_in(&self.parent)?;
        let aside = old.path().join("image");
        match fs::rename(&self.dir, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        if let Err(error) = fs::rename(new.path(), &self.dir) {
            let _ = fs::rename(&aside, &self.dir);
            return Err(error);
        }
        let _gone = new.keep();
        old.close()
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use io::Write as _;
    let mut file = fs::File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{KernelEntry, VERSION};

    fn manifest() -> Manifest {
        let kernel = KernelEntry { release: String::new(), source: String::new(), config_sha256: String::new() };
        Manifest { version: VERSION, files: [].into(), initramfs: [].into(), kernel }
    }

    #[test]
    fn an_image_replaces_another_and_leaves_nothing_beside_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("deep/image");
        for content in [b"one", b"two"] {
            Target::new(&dir).unwrap().write(&[("vmlinuz", content.to_vec())], &manifest()).unwrap();
            assert_eq!(fs::read(dir.join("vmlinuz")).unwrap(), content);
        }
        assert_eq!(fs::read_dir(parent.path().join("deep")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_image_is_never_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("home");
        fs::create_dir(&dir).unwrap();
        assert!(Target::new(&dir).is_ok(), "an empty directory may be used");
        fs::write(dir.join("letter"), b"dear").unwrap();
        assert!(matches!(Target::new(&dir), Err(OutputError::Foreign(_))));
        assert!(matches!(Target::new(&dir.join("letter")), Err(OutputError::Foreign(_))));
        assert!(matches!(Target::new(Path::new("/")), Err(OutputError::Name(_))));
    }

    #[test]
    fn when_writing_fails_the_old_image_is_still_there() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("image");
        Target::new(&dir).unwrap().write(&[("vmlinuz", b"old".to_vec())], &manifest()).unwrap();
        let twice = [("vmlinuz", b"new".to_vec()), ("vmlinuz", b"new".to_vec())];
        assert!(matches!(Target::new(&dir).unwrap().write(&twice, &manifest()), Err(OutputError::Write { .. })));
        assert_eq!(fs::read(dir.join("vmlinuz")).unwrap(), b"old");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}

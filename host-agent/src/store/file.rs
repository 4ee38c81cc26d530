//! Files that only their owner can read, and that are there after a crash of the host once they are said to be.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Writes a file whole or not at all, closed to others, and waits until it and its name are on the disk.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_soon(path, content).and_then(|()| sync_directory_of(path))
}

/// As [`replace`], but after a crash of the host the file may be the old one.
pub(super) fn replace_soon(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let _ = fs::remove_file(&draft);
    let written = create(&draft, content).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // The draft is worthless, and on a full disk it is in the way.
        let _ = fs::remove_file(&draft);
    }
    written
}

/// Writes a file that is not there yet, closed to others, and waits for the disk.
pub(super) fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes a directory closed to others.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// Waits until the names in the directory of `path` are on the disk.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Reads a file of at most `bytes_max`; of a longer one, `bytes_max` and one more.
pub(super) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    Ok(content)
}

//! The key store: a few hundred small values, sealed, in one directory. One writer, safe against crashes.
//!
//! ```text
//! state directory/keys/        closed to others
//!   store.key    the data key, sealed with what unlocks the store        changes with the passphrase   [`key_file`]
//!   store.redb   the values, each sealed for its place ([`sealed`])      changes with every write      [`disk`]
//!   store.mark   how many writes there were, sealed                      follows every write
//! ```
//!
//! The directory is made under another name and renamed once all of it is on the disk ([`Vault::create`]), so that
//! there is a whole store or none. It is opened whole too: every value is read and checked ([`Disk::open`]), which for
//! so few takes milliseconds.
//!
//! # What is noticed, and refused
//!
//! | what happened | how it is noticed |
//! | --- | --- |
//! | a value was changed or put in another place | its seal |
//! | a value was lost, or the tree of pages leads elsewhere | the digest over all values, sealed beside them |
//! | the file was cut short, emptied, or any page of it changed | redb's checksums, and the two above |
//! | the file was replaced by an older one, or redb fell back to an older state | the mark |
//! | one of the three files is missing | its name |
//!
//! Nothing of a refused store is changed, and nothing is ever deleted: [`Vault::move_aside`] renames the directory. The
//! check works on a copy in memory, since redb repairs what it opens.
//!
//! What is not noticed: that somebody put back all three files as they were at an earlier time.

pub mod disk;
mod file;
pub mod key_file;
pub mod sealed;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

pub use disk::Disk;
pub use key_file::{KeyFile, Unlock, UnlockError};

use sealed::SealKey;

/// The values by place.
pub type Values = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// One change of a value.
#[derive(Clone, Debug)]
pub enum Change {
    /// Puts a value at a place, in place of the one there.
    Put(String, Zeroizing<Vec<u8>>),
    /// Removes the value at a place, if there is one.
    Remove(String),
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not what was written.
    #[error(
        "the key store in {directory} is damaged ({why}). Nothing in it was changed. `oht key restore` makes a new one from the \
         root (its passphrase, or its shares) and keeps the damaged one under another name"
    )]
    Damaged {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process has it open.
    #[error("the key store in {0} is open in another process: end that one (`oht down`)")]
    InUse(PathBuf),
    /// The disk is full.
    #[error("cannot write to {path}: there is no space left. Nothing has changed; make room and try again")]
    Full {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot be read or written.
    #[error("cannot {attempt} {path}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// redb refuses for another reason.
    #[error("cannot write the key store in {directory}: {message}. Nothing has changed")]
    Database {
        /// The directory.
        directory: PathBuf,
        /// What redb says.
        message: String,
    },
    /// It holds too much.
    #[error("the key store is full: remove VMs or services")]
    Values,
    /// It is not to be unlocked so.
    #[error(transparent)]
    Unlock(#[from] UnlockError),
}

/// The directory of a store.
#[derive(Clone, Debug)]
pub struct Vault(PathBuf);

impl Vault {
    /// The store in `directory`, whether there is one or not.
    #[must_use]
    pub fn new(directory: PathBuf) -> Vault {
        Vault(directory)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The sealed data key; `None` when there is no store.
    ///
    /// # Errors
    /// When there is a store, and a file of it is missing or its data key damaged.
    pub fn look(&self) -> Result<Option<KeyFile>, StoreError> {
        match fs::symlink_metadata(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { attempt: "look at", path: self.0.clone(), source }),
            Ok(_) => {}
        }
        for file in [self.key_file(), self.database(), self.mark()] {
            if !file.exists() {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                return Err(self.damaged(format!("{name} is missing")));
            }
        }
        let path = self.key_file();
        let text = key_file::read_text(&path);
        let text = text.map_err(|source| StoreError::Io { attempt: "read", path, source })?;
        KeyFile::from_text(&text).map(Some).map_err(|why| self.damaged(why))
    }

    /// Makes a store of these values, which `unlock` opens: whole or not at all. Blocks for a second.
    ///
    /// # Errors
    /// When there is one already, or the disk does not take it.
    pub fn create(&self, unlock: &Unlock, values: &Values) -> Result<Disk, StoreError> {
        let draft = Vault(self.0.with_extension("new"));
        if let Err(source) = fs::remove_dir_all(&draft.0)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(StoreError::Io { attempt: "remove", path: draft.0, source });
        }
        let made = draft.fill(unlock, values).and_then(|key| {
            let renamed = fs::rename(&draft.0, &self.0).and_then(|()| file::sync_directory_of(&self.0));
            renamed.map_err(|source| refused("make", &self.0, source)).map(|()| key)
        });
        match made {
            Ok(key) => Ok(Disk::open(self, key)?.0),
            Err(error) => {
                let _ = fs::remove_dir_all(&draft.0);
                Err(error)
            }
        }
    }

    fn fill(&self, unlock: &Unlock, values: &Values) -> Result<SealKey, StoreError> {
        let key = SealKey::generate();
        let sealed = KeyFile::seal(&key, unlock)?;
        file::create_directory(&self.0).map_err(|source| refused("make", &self.0, source))?;
        Disk::create(self, &key, values)?;
        self.write_key_file(&sealed)?;
        Ok(key)
    }

    /// Replaces what unlocks the store.
    ///
    /// # Errors
    /// When the disk does not take it; the old one goes on to unlock then.
    pub fn write_key_file(&self, sealed: &KeyFile) -> Result<(), StoreError> {
        let path = self.key_file();
        file::replace(&path, sealed.to_text().as_bytes()).map_err(|source| refused("write", &path, source))
    }

    /// Renames the store, whatever is in it, so that another one can be made. Returns its new name.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn move_aside(&self, stamp: &str) -> Result<Option<PathBuf>, StoreError> {
        if fs::symlink_metadata(&self.0).is_err() {
            return Ok(None);
        }
        let name = |number: u32| self.0.with_extension(format!("aside-{stamp}-{number}"));
        let free = (1..=999).map(name).find(|path| fs::symlink_metadata(path).is_err());
        let path = free.ok_or_else(|| refused("rename", &self.0, io::ErrorKind::AlreadyExists.into()))?;
        let renamed = fs::rename(&self.0, &path).and_then(|()| file::sync_directory_of(&path));
        renamed.map_err(|source| refused("rename", &self.0, source)).map(|()| Some(path))
    }

    fn key_file(&self) -> PathBuf {
        self.0.join("store.key")
    }

    fn database(&self) -> PathBuf {
        self.0.join("store.redb")
    }

    fn mark(&self) -> PathBuf {
        self.0.join("store.mark")
    }

    fn damaged(&self, why: impl Into<String>) -> StoreError {
        StoreError::Damaged { directory: self.0.clone(), why: why.into() }
    }
}

/// Writes a file beside the store, such as the sealed root: whole or not at all, closed to others, on the disk when this
/// returns.
///
/// # Errors
/// When the disk does not take it.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    file::replace(path, content).map_err(|source| refused("write", path, source))
}

/// Something that the disk did not take.
fn refused(attempt: &'static str, path: &Path, source: io::Error) -> StoreError {
    let path = path.into();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::Full { path, source }
        }
        _ => StoreError::Io { attempt, path, source },
    }
}

#[cfg(test)]
mod tests;

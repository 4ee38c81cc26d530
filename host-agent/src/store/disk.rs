//! The values in `store.redb`, and the mark that follows them.
//!
//! Every write is one transaction of redb, which is on the disk when it returns. With the values it writes their *head*:
//! the number of the write, and a digest over all of them. Then it writes that number to the mark, which so lags behind
//! by a write when the agent is killed in between; an open store may be ahead of its mark, and never behind it.
//!
//! redb reports damage as an error where it is asked to check on opening, which it is; should it panic after all, that
//! is caught and is damage as well.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use super::{Change, StoreError, Values, Vault, file, refused, sealed::SealKey};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable, StorageBackend as _, StorageError,
    TableDefinition, backends::InMemoryBackend,
};
use sha2::{Digest as _, Sha256};

const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");

/// The place of the head. The places of values have a `/` in them.
const HEAD: &str = "head";

/// The place that the mark is sealed for.
const MARK: &str = "mark";

/// Values of the fullest store: 64 VMs with some services, and what was revoked.
pub const VALUES_MAX: usize = 16_384;

/// Bytes of the longest value.
pub const VALUE_BYTES_MAX: usize = 64 << 10;

/// Bytes of the largest file that is read.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Bytes that redb keeps of pages: the values are kept by who asked for them.
const CACHE_BYTES: usize = 256 << 10;

/// An open store. Dropping it locks it: the data key is wiped.
pub struct Disk {
    vault: Vault,
    key: SealKey,
    /// None after a failed write, until the next one has opened it again.
    database: Option<Database>,
    writes: u64,
}

/// What the head says.
struct Head {
    writes: u64,
    digest: [u8; 32],
}

/// An error of redb, or of what stands in the file.
enum Failure {
    Io(io::Error),
    InUse,
    Full,
    Other(String),
}

impl Disk {
    /// Writes the files of a new store.
    pub(super) fn create(vault: &Vault, key: &SealKey, values: &Values) -> Result<(), StoreError> {
        let path = vault.database();
        file::create(&path, b"").map_err(|source| refused("make", &path, source))?;
        let changes: Vec<_> = values.iter().map(|(place, value)| Change::Put(place.clone(), value.clone())).collect();
        let written = caught(|| {
            let database = builder().create(&path)?;
            commit(&database, key, 1, &changes)?;
            Ok(database.close()?)
        });
        written.map_err(|failure| failure.on_write(vault))?;
        let path = vault.mark();
        file::create(&path, &mark(key, 1)).map_err(|source| refused("write", &path, source))
    }

    /// Opens a store and reads all of it.
    ///
    /// # Errors
    /// When anything of it is not as it was written.
    pub fn open(vault: &Vault, key: SealKey) -> Result<(Disk, Values), StoreError> {
        let (values, writes) = read_all(vault, &key)?;
        let mut disk = Disk { vault: vault.clone(), key, database: None, writes };
        disk.database()?;
        Ok((disk, values))
    }

    /// Makes these changes, all or none of them. They are on the disk when this returns.
    ///
    /// # Errors
    /// When the disk does not take them.
    pub fn write(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.iter().any(|change| matches!(change, Change::Put(_, value) if value.len() > VALUE_BYTES_MAX)) {
            return Err(StoreError::Values);
        }
        let writes = self.writes + 1;
        let (key, vault) = (self.key.clone(), self.vault.clone());
        let database = self.database()?;
        let committed = caught(|| commit(database, &key, writes, changes));
        if let Err(failure) = committed {
            // What it still has in memory is worth nothing; the file is opened anew.
            self.close();
            return Err(failure.on_write(&vault));
        }
        self.writes = writes;
        if let Err(error) = file::replace_soon(&vault.mark(), &mark(&key, writes)) {
            // The values are on the disk; only their mark lags behind, until the next write.
            tracing::warn!(%error, path = %vault.mark().display(), "cannot write the key store's mark");
        }
        Ok(())
    }

    /// The data key, to be sealed anew.
    #[must_use]
    pub fn key(&self) -> &SealKey {
        &self.key
    }

    fn close(&mut self) {
        let database = self.database.take();
        let _nothing_to_say = caught(move || {
            drop(database);
            Ok(())
        });
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let path = self.vault.database();
                // What a failed write left is looked at again, since it may be on the disk or not.
                self.writes = read_all(&self.vault, &self.key)?.1;
                caught(|| Ok(builder().open(&path)?)).map_err(|failure| failure.on_read(&self.vault))?
            }
        };
        Ok(self.database.insert(database))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads and checks everything, in a copy: opening the file itself would change it.
fn read_all(vault: &Vault, key: &SealKey) -> Result<(Values, u64), StoreError> {
    let path = vault.database();
    let read = |path: &Path, max| {
        let content = file::read(path, max);
        content.map_err(|source| StoreError::Io { attempt: "read", path: path.into(), source })
    };
    let bytes = read(&path, FILE_BYTES_MAX)?;
    if bytes.is_empty() || bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(vault.damaged(format!("store.redb has {} bytes", bytes.len())));
    }
    // It is read in memory, so whatever fails is the file's fault.
    let sealed = caught(|| copy_values(&bytes)).map_err(|failure| vault.damaged(failure.words()))?;
    let (values, head) = check(key, sealed).map_err(|why| vault.damaged(why))?;
    let marked = key.open(MARK, &read(&vault.mark(), 1024)?).ok();
    let marked = marked.and_then(|bytes| Some(u64::from_le_bytes(bytes.as_slice().try_into().ok()?)));
    match marked {
        None => Err(vault.damaged("store.mark is not what was written")),
        Some(marked) if head.writes < marked => Err(vault.damaged(format!(
            "store.redb is that of write {}, and there were {marked}: it is an old one, or its last writes are lost",
            head.writes
        ))),
        Some(_) => Ok((values, head.writes)),
    }
}

/// All that stands in the file, as it stands there.
fn copy_values(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let backend = InMemoryBackend::new();
    backend.set_len(bytes.len() as u64)?;
    backend.write(0, bytes)?;
    let database = builder().create_with_backend(backend)?;
    let transaction = database.begin_read().map_err(other)?;
    let table = transaction.open_table(VALUES).map_err(other)?;
    all(&table)
}

fn all(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let entry = |entry: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &[u8]>), StorageError>| {
        let (place, value) = entry?;
        Ok((place.value().to_owned(), value.value().to_vec()))
    };
    table.iter()?.take(VALUES_MAX + 2).map(entry).collect()
}

/// Opens all values, and says in words what is wrong.
fn check(key: &SealKey, sealed: Vec<(String, Vec<u8>)>) -> Result<(Values, Head), String> {
    let head = sealed.iter().find(|(place, _)| place == HEAD).ok_or("it does not say what it holds")?;
    let head = key.open(HEAD, &head.1).map_err(|_| "its head was changed, or it is sealed with another key")?;
    let head = Head::from_bytes(&head).ok_or("its head is not understood")?;
    if digest(&sealed) != head.digest {
        return Err("not all that was written is there".into());
    }
    let mut values = Values::new();
    for (place, value) in sealed.into_iter().filter(|(place, _)| place != HEAD) {
        let value = key.open(&place, &value).map_err(|_| format!("{place} was changed"))?;
        values.insert(place, value);
    }
    Ok((values, head))
}

/// One transaction: the changes, and the head of what is there then.
fn commit(database: &Database, key: &SealKey, writes: u64, changes: &[Change]) -> Result<(), Failure> {
    let transaction = database.begin_write().map_err(|error| match error {
        redb::TransactionError::Storage(error) => Failure::from(error),
        error => other(error),
    })?;
    {
        let mut table = transaction.open_table(VALUES).map_err(|error| match error {
            redb::TableError::Storage(error) => Failure::from(error),
            error => other(error),
        })?;
        for change in changes {
            match change {
                Change::Put(place, value) => drop(table.insert(place.as_str(), key.seal(place, value).as_slice())?),
                Change::Remove(place) => drop(table.remove(place.as_str())?),
            }
        }
        let there = all(&table)?;
        if there.len() > VALUES_MAX {
            return Err(Failure::Full);
        }
        let head = Head { writes, digest: digest(&there) };
        table.insert(HEAD, key.seal(HEAD, &head.to_bytes()).as_slice())?;
    }
    transaction.commit().map_err(|error| match error {
        redb::CommitError::Storage(error) => Failure::from(error),
        error => other(error),
    })
}

/// SHA-256 over all but the head, each with its length, in the order of their places.
fn digest(sealed: &[(String, Vec<u8>)]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for (place, value) in sealed.iter().filter(|(place, _)| place != HEAD) {
        for part in [place.as_bytes(), value.as_slice()] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
    }
    digest.finalize().into()
}

impl Head {
    fn to_bytes(&self) -> Vec<u8> {
        [self.writes.to_le_bytes().as_slice(), &self.digest].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Head> {
        let (writes, digest) = bytes.split_first_chunk()?;
        Some(Head { writes: u64::from_le_bytes(*writes), digest: digest.try_into().ok()? })
    }
}

fn mark(key: &SealKey, writes: u64) -> Vec<u8> {
    key.seal(MARK, &writes.to_le_bytes())
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Runs what uses redb; a panic in it becomes a failure.
fn caught<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let done = catch_unwind(AssertUnwindSafe(run));
    done.unwrap_or_else(|_| Err(Failure::Other("redb panicked over it".into())))
}

fn other(error: impl std::fmt::Display) -> Failure {
    Failure::Other(error.to_string())
}

impl Failure {
    fn on_read(self, vault: &Vault) -> StoreError {
        match self {
            Failure::Io(source) => refused("read", &vault.database(), source),
            Failure::InUse => StoreError::InUse(vault.path().into()),
            Failure::Full => StoreError::Values,
            Failure::Other(why) => vault.damaged(why),
        }
    }

    fn words(self) -> String {
        match self {
            Failure::Io(error) => error.to_string(),
            Failure::InUse => "it is open".into(),
            Failure::Full => "it holds too much".into(),
            Failure::Other(why) => why,
        }
    }

    fn on_write(self, vault: &Vault) -> StoreError {
        match self {
            Failure::Io(source) => refused("write", &vault.database(), source),
            Failure::Full => StoreError::Values,
            Failure::InUse => StoreError::InUse(vault.path().into()),
            Failure::Other(message) => StoreError::Database { directory: vault.path().into(), message },
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Failure {
        match error {
            StorageError::Io(error) => Failure::Io(error),
            error => other(error),
        }
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Failure {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Failure::InUse,
            DatabaseError::Storage(error) => error.into(),
            error => other(error),
        }
    }
}

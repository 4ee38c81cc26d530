//! The file that holds the store's data key, sealed with another key: that of a passphrase, a key file or a systemd
//! credential.
//!
//! ```text
//! oht store 1 <SHA-256 of the second line, 64 hexadecimal digits>
//! {"unlock":{"passphrase":{"log_n":17,"salt":"…"}},"sealed":"…"}
//! ```
//!
//! The checksum tells a damaged file from a wrong passphrase. A passphrase becomes a key by scrypt (RFC 7914); the
//! other two *are* a key of 32 random bytes, written as 64 hexadecimal digits. Changing what unlocks writes this file
//! anew, and nothing else.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use key_tree::{
    rand_core::{OsRng, RngCore as _},
    secrecy::{ExposeSecret as _, SecretString},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    file,
    sealed::{KEY_BYTES, SealKey},
};
use crate::hex;

/// scrypt's log2(N), with r = 8 and p = 1: 128 MiB for a fraction of a second, as OWASP's "Password Storage Cheat Sheet"
/// advises.
const LOG_N: u8 = 17;

/// The largest that is accepted: 1 GiB. A file with more would only exhaust the machine.
const LOG_N_MAX: u8 = 20;

/// Bytes of the longest file that is looked at.
const FILE_BYTES_MAX: u64 = 8192;

/// How the first line begins.
const MAGIC: &str = "oht store 1 ";

/// The place that the data key is sealed for.
const PLACE: &str = "data key";

/// The credential of systemd (systemd.exec(5), `LoadCredentialEncrypted=`).
pub const CREDENTIAL: &str = "oht-store-key";

/// What unlocks a store, as a person gives it.
#[derive(Clone, Debug)]
pub enum Unlock {
    /// Something that a person knows.
    Passphrase(SecretString),
    /// A file that the agent can read at its start; one that is not there is made.
    KeyFile(PathBuf),
    /// The systemd credential [`CREDENTIAL`].
    Credential,
}

/// What unlocks a store, as it is written down. No secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UnlockedBy {
    /// A passphrase.
    Passphrase {
        /// scrypt's log2(N).
        log_n: u8,
        /// scrypt's salt, in hexadecimal digits.
        salt: String,
    },
    /// A file.
    KeyFile {
        /// Where it is.
        path: PathBuf,
    },
    /// A systemd credential.
    Credential {},
}

/// The sealed data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    unlocked_by: UnlockedBy,
    sealed: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    unlock: UnlockedBy,
    sealed: String,
}

/// Why a store cannot be unlocked.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// Nothing was given.
    #[error("the passphrase is empty: choose six random words or more")]
    Empty,
    /// Another passphrase.
    #[error("the passphrase of the key store is wrong; the store itself is undamaged")]
    WrongPassphrase,
    /// Another key.
    #[error("the key in {0} is not that of this key store")]
    WrongKey(PathBuf),
    /// A passphrase was given, and something else unlocks, or the other way round.
    #[error("this key store is unlocked by {0}")]
    Other(&'static str),
    /// The key cannot be read.
    #[error("cannot read the key of the key store in {path}")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others can read it.
    #[error("{0} can be read by other users: `chmod 600` it, and if others may have read it, take a new one")]
    Open(PathBuf),
    /// It is not a key.
    #[error("{0} is not a key: it should be {digits} hexadecimal digits", digits = 2 * KEY_BYTES)]
    NoKey(PathBuf),
    /// systemd gave none.
    #[error("there is no credential {CREDENTIAL}: give the unit a LoadCredentialEncrypted={CREDENTIAL}:FILE")]
    NoCredential,
    /// Bad parameters in the file.
    #[error("it asks for parameters of scrypt that are not accepted")]
    Parameters,
    /// What was unlocked is no key.
    #[error("what it holds is no key")]
    Content,
}

impl KeyFile {
    /// Seals `key` so that `unlock` opens it.
    ///
    /// # Errors
    /// When the passphrase is empty, or the key file or credential cannot be had.
    pub fn seal(key: &SealKey, unlock: &Unlock) -> Result<KeyFile, UnlockError> {
        let unlocked_by = match unlock {
            Unlock::Passphrase(_) => UnlockedBy::new_passphrase(LOG_N),
            Unlock::KeyFile(path) => UnlockedBy::KeyFile { path: path.clone() },
            Unlock::Credential => UnlockedBy::Credential {},
        };
        if let Unlock::KeyFile(path) = unlock {
            make_key(path)?;
        }
        KeyFile::seal_by(key, unlocked_by, unlock)
    }

    fn seal_by(key: &SealKey, unlocked_by: UnlockedBy, unlock: &Unlock) -> Result<KeyFile, UnlockError> {
        let sealed = unlocked_by.key(unlock)?.seal(PLACE, key.as_bytes());
        Ok(KeyFile { unlocked_by, sealed })
    }

    /// The data key. Takes as long as sealing; blocks.
    ///
    /// # Errors
    /// When `unlock` is not what unlocks.
    pub fn open(&self, unlock: &Unlock) -> Result<SealKey, UnlockError> {
        let key = self.unlocked_by.key(unlock)?;
        let opened = key.open(PLACE, &self.sealed).map_err(|_| match &self.unlocked_by {
            UnlockedBy::Passphrase { .. } => UnlockError::WrongPassphrase,
            UnlockedBy::KeyFile { path } => UnlockError::WrongKey(path.clone()),
            UnlockedBy::Credential {} => UnlockError::WrongKey(CREDENTIAL.into()),
        })?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        if opened.len() != KEY_BYTES {
            return Err(UnlockError::Content);
        }
        bytes.copy_from_slice(&opened);
        Ok(SealKey::from_bytes(bytes))
    }

    /// What unlocks it.
    #[must_use]
    pub fn unlocked_by(&self) -> &UnlockedBy {
        &self.unlocked_by
    }

    /// The file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let document = Document { unlock: self.unlocked_by.clone(), sealed: hex::encode(&self.sealed) };
        let json = serde_json::to_string(&document).expect("it is a plain document");
        format!("{MAGIC}{}\n{json}\n", checksum(&json))
    }

    /// Reads the file's text; says in words what is wrong with one that was changed.
    ///
    /// # Errors
    /// When it is not what was written.
    pub fn from_text(text: &str) -> Result<KeyFile, &'static str> {
        let rest = text.strip_prefix(MAGIC).ok_or("store.key does not begin as it should")?;
        let (sum, json) = rest.split_once('\n').ok_or("store.key is cut short")?;
        let json = json.strip_suffix('\n').ok_or("store.key is cut short")?;
        if checksum(json) != sum {
            return Err("the checksum of store.key does not fit");
        }
        let document: Document = serde_json::from_str(json).map_err(|_| "store.key is not understood")?;
        let sealed = hex::decode(&document.sealed).ok_or("store.key is not understood")?;
        Ok(KeyFile { unlocked_by: document.unlock, sealed: sealed.to_vec() })
    }
}

impl UnlockedBy {
    fn new_passphrase(log_n: u8) -> UnlockedBy {
        let mut salt = [0; 16];
        OsRng.fill_bytes(&mut salt);
        UnlockedBy::Passphrase { log_n, salt: hex::encode(&salt) }
    }

    /// In words.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self {
            UnlockedBy::Passphrase { .. } => "a passphrase",
            UnlockedBy::KeyFile { .. } => "a key file",
            UnlockedBy::Credential {} => "a systemd credential",
        }
    }

    /// What unlocks it without a person; `None` for a passphrase.
    #[must_use]
    pub fn without_a_person(&self) -> Option<Unlock> {
        match self {
            UnlockedBy::Passphrase { .. } => None,
            UnlockedBy::KeyFile { path } => Some(Unlock::KeyFile(path.clone())),
            UnlockedBy::Credential {} => Some(Unlock::Credential),
        }
    }

    /// The key that `unlock` stands for here.
    fn key(&self, unlock: &Unlock) -> Result<SealKey, UnlockError> {
        match (self, unlock) {
            (UnlockedBy::Passphrase { log_n, salt }, Unlock::Passphrase(passphrase)) => {
                derive(passphrase, *log_n, salt)
            }
            (UnlockedBy::KeyFile { path }, Unlock::KeyFile(_)) => {
                let mode = std::fs::metadata(path).map_err(|source| unreadable(path, source))?.permissions().mode();
                if mode & 0o077 != 0 {
                    return Err(UnlockError::Open(path.clone()));
                }
                read_key(path)
            }
            (UnlockedBy::Credential {}, Unlock::Credential) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or(UnlockError::NoCredential)?;
                let path = PathBuf::from(directory).join(CREDENTIAL);
                if !path.exists() {
                    return Err(UnlockError::NoCredential);
                }
                read_key(&path)
            }
            _ => Err(UnlockError::Other(self.words())),
        }
    }
}

fn derive(passphrase: &SecretString, log_n: u8, salt: &str) -> Result<SealKey, UnlockError> {
    if passphrase.expose_secret().is_empty() {
        return Err(UnlockError::Empty);
    }
    let salt = hex::decode(salt).filter(|salt| !salt.is_empty()).ok_or(UnlockError::Parameters)?;
    let parameters = Some(log_n).filter(|log_n| *log_n <= LOG_N_MAX);
    let parameters = parameters.and_then(|log_n| scrypt::Params::new(log_n, 8, 1, KEY_BYTES).ok());
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let parameters = parameters.ok_or(UnlockError::Parameters)?;
    let passphrase = passphrase.expose_secret().as_bytes();
    scrypt::scrypt(passphrase, &salt, &parameters, key.as_mut_slice()).map_err(|_| UnlockError::Parameters)?;
    Ok(SealKey::from_bytes(key))
}

/// Makes a key file where none is.
fn make_key(path: &Path) -> Result<(), UnlockError> {
    let digits = Zeroizing::new(format!("{}\n", hex::encode(SealKey::generate().as_bytes())));
    match file::create(path, digits.as_bytes()).and_then(|()| file::sync_directory_of(path)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(unreadable(path, error)),
        _ => Ok(()),
    }
}

fn read_key(path: &Path) -> Result<SealKey, UnlockError> {
    let content = file::read(path, FILE_BYTES_MAX).map(Zeroizing::new).map_err(|source| unreadable(path, source))?;
    let digits = std::str::from_utf8(&content).map_err(|_| UnlockError::NoKey(path.into()))?;
    hex::decode_array(digits.trim()).map(SealKey::from_bytes).ok_or_else(|| UnlockError::NoKey(path.into()))
}

fn unreadable(path: &Path, source: io::Error) -> UnlockError {
    UnlockError::Read { path: path.into(), source }
}

fn checksum(json: &str) -> String {
    hex::encode(&Sha256::digest(json))
}

/// Reads the key file at `path` as text.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let bytes = file::read(path, FILE_BYTES_MAX)?;
    // What is not UTF-8 does not fit its checksum either.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Unlock {
        Unlock::Passphrase(text.to_owned().into())
    }

    #[test]
    fn a_passphrase_unlocks_and_no_other() {
        let key = SealKey::generate();
        let by = UnlockedBy::new_passphrase(4);
        let file = KeyFile::seal_by(&key, by, &passphrase("six words")).unwrap();
        let file = KeyFile::from_text(&file.to_text()).unwrap();
        assert_eq!(file.open(&passphrase("six words")).unwrap().as_bytes(), key.as_bytes());
        assert!(matches!(file.open(&passphrase("six word")), Err(UnlockError::WrongPassphrase)));
        assert!(matches!(file.open(&passphrase("")), Err(UnlockError::Empty)));
        assert!(matches!(file.open(&Unlock::Credential), Err(UnlockError::Other("a passphrase"))));
        let greedy = UnlockedBy::Passphrase { log_n: LOG_N_MAX + 1, salt: "00".into() };
        assert!(matches!(KeyFile::seal_by(&key, greedy, &passphrase("x")), Err(UnlockError::Parameters)));
    }

    #[test]
    fn a_key_file_is_made_closed_to_others_and_unlocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let unlock = Unlock::KeyFile(path.clone());
        let key = SealKey::generate();
        let file = KeyFile::seal(&key, &unlock).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(file.open(&unlock).unwrap().as_bytes(), key.as_bytes());
        assert_eq!(KeyFile::seal(&key, &unlock).unwrap().open(&unlock).unwrap().as_bytes(), key.as_bytes());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(file.open(&unlock), Err(UnlockError::Open(_))));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.open(&unlock), Err(UnlockError::Read { .. })));
        file::create(&path, b"no key").unwrap();
        assert!(matches!(file.open(&unlock), Err(UnlockError::NoKey(_))));
        file::replace(&path, "00".repeat(32).as_bytes()).unwrap();
        assert!(matches!(file.open(&unlock), Err(UnlockError::WrongKey(_))));
    }

    #[test]
    fn every_changed_character_is_seen() {
        let file = KeyFile::seal_by(&SealKey::generate(), UnlockedBy::new_passphrase(4), &passphrase("x")).unwrap();
        let text = file.to_text();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(KeyFile::from_text(&String::from_utf8(bytes).unwrap()).is_err(), "{at}");
            assert!(KeyFile::from_text(&text[..at]).is_err(), "{at}");
        }
    }
}

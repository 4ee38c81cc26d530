//! What the root does for this host: its first grant, every later one, and a new store where the old one is lost.
//!
//! The root's secret is in the process of `oht`, for as long as it takes:
//!
//! ```text
//! oht                                         agent
//!   POST /keys/host                ────────►  makes a key pair, keeps it in memory
//!                                  ◄────────  its public key, a name, the time
//!   unseals (or makes) the root, signs a grant for that key, forgets the root
//!   POST /keys/setup or /keys/renew ───────►  checks that the grant is for that key, and stores both
//! ```
//!
//! A grant for a key that was made a moment ago was signed a moment ago: that is why the clock may be set back with one,
//! and with no older grant.

use std::path::PathBuf;

use key_tree::{Chain, Clock, KeyPair, Level, Name, PublicKey, RootKey, rand_core::OsRng, secrecy::SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wire::VmName;

use super::{Keys, KeysError, Limits, Mode, grow, owned::Owned, tree::Edit, tree::Tree};
use crate::{
    hex,
    store::{self, StoreError, Unlock},
};

/// Bytes of the longest sealed root that is read.
const SEALED_ROOT_BYTES_MAX: u64 = 4096;

/// What the root is asked to grant to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostRequest {
    /// The host's new public key, in hexadecimal digits.
    pub key: String,
    /// What the host is called.
    pub name: String,
    /// The agent's time, in seconds since the Unix epoch.
    pub now: u64,
}

/// What unlocks a store, as the API takes it.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UnlockWith {
    /// A passphrase.
    #[schema(value_type = String)]
    Passphrase(SecretText),
    /// A file with a key, readable by the agent's user only; made where it is not there. Its absolute path.
    #[schema(value_type = String)]
    KeyFile(PathBuf),
    /// The systemd credential `oht-store-key`.
    Credential {},
}

/// A text that is wiped when dropped and never shown.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct SecretText(Box<str>);

/// A store to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetUp {
    /// The root's public key, in hexadecimal digits.
    pub root: String,
    /// The root's grant for the host's new key, in hexadecimal digits.
    #[schema(max_length = 8192)]
    pub grant: String,
    /// The root, sealed, to be kept in the state directory.
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub sealed_root: Option<String>,
    /// What is to unlock the store.
    pub unlock: UnlockWith,
    /// Whether a store that is there, whole or damaged, is to be moved aside for it.
    #[serde(default)]
    pub replace: bool,
}

impl Keys {
    /// Makes a key pair for this host, for the root to grant to.
    ///
    /// # Errors
    /// When the agent keeps nothing.
    pub fn host_request(&self) -> Result<HostRequest, KeysError> {
        let (mut inner, now) = self.in_use();
        if matches!(inner.mode, Mode::Memory { ephemeral: true, .. }) {
            return Err(KeysError::Ephemeral);
        }
        let key = KeyPair::generate(&mut OsRng);
        let name = host_name().to_string();
        let request = HostRequest { key: key.public().to_string(), name, now: now.timestamp().as_unix() };
        inner.pending = Some(key);
        Ok(request)
    }

    /// Makes the store, with keys for `vms`. Returns where a store that was there went.
    ///
    /// # Errors
    /// When there is one and it is not to be replaced, the grant is not for the key that was asked for, or the disk does
    /// not take it. What was there is there then, if under another name.
    pub fn set_up<'a>(
        &self,
        given: &SetUp,
        vms: impl IntoIterator<Item = &'a VmName>,
    ) -> Result<Option<PathBuf>, KeysError> {
        let (mut inner, _) = self.in_use();
        match &inner.mode {
            Mode::Memory { ephemeral: true, .. } => return Err(KeysError::Ephemeral),
            Mode::Memory { .. } => {}
            _ if given.replace => {}
            Mode::Damaged { why } => return Err(KeysError::Damaged(why.clone())),
            _ => return Err(KeysError::Kept),
        }
        let root: PublicKey = given.root.parse().map_err(|error| KeysError::BadGrant(format!("{error}")))?;
        self.check_sealed(given, root)?;
        let host = granted(inner.pending.as_ref(), root, &given.grant)?;
        // A new store begins at the wall clock: a time that had jumped forward is left behind with the old one.
        let mut clock = Clock::resume(self.time.wall(), self.time.monotonic());
        let now = clock.now(self.time.wall(), self.time.monotonic());
        let mut tree = Tree::new(root, host);
        for vm in vms {
            let edit = grow::vm(&tree, vm, now)?;
            tree.apply(vec![edit]);
        }
        let values = tree.values(clock.floor())?;
        let unlock = given.unlock.to_unlock();
        // Closes the old one.
        if let Mode::Unlocked { .. } = inner.mode {
            inner.lock("")?;
        }
        let stamp = now.timestamp().to_string().replace(':', "");
        if let Some(sealed) = &given.sealed_root {
            self.keep_sealed(sealed, &stamp)?;
        }
        let aside = if given.replace { self.vault.move_aside(&stamp)? } else { None };
        match self.vault.create(&unlock, &values) {
            Ok(disk) => inner.mode = Mode::Unlocked { disk },
            Err(error) => {
                // Back to where everything was, so that nothing is lost by trying, and it can be tried again.
                if let Some(aside) = &aside {
                    let _ = std::fs::rename(aside, self.vault.path());
                }
                if !given.replace && given.sealed_root.is_some() {
                    let _ = std::fs::remove_file(&self.sealed_root);
                }
                return Err(error.into());
            }
        }
        inner.stored = clock.floor();
        (inner.tree, inner.clock, inner.pending) = (Some(tree), clock, None);
        drop(inner);
        self.changed.notify_one();
        Ok(aside)
    }

    /// A sealed root that is there is not replaced by that of another one, nor by that of a new one.
    fn check_sealed(&self, given: &SetUp, root: PublicKey) -> Result<(), KeysError> {
        let Some(sealed) = &given.sealed_root else { return Ok(()) };
        let is_other = self.public_of_kept().is_some_and(|kept| kept != root);
        if is_other || (!given.replace && self.sealed_root.exists()) {
            return Err(KeysError::RootThere(self.sealed_root.clone()));
        }
        let public = RootKey::public_of_sealed(sealed).map_err(|error| KeysError::BadGrant(error.to_string()))?;
        if public == root {
            return Ok(());
        }
        Err(KeysError::OtherRoot { given: public.to_string(), ours: root.to_string() })
    }

    /// The root whose sealed key is here, if it is undamaged.
    fn public_of_kept(&self) -> Option<PublicKey> {
        let text = std::fs::read_to_string(&self.sealed_root).ok()?;
        RootKey::public_of_sealed(&text).ok()
    }

    /// Keeps the sealed root. A damaged one that is there is moved aside.
    fn keep_sealed(&self, sealed: &str, stamp: &str) -> Result<(), KeysError> {
        if self.sealed_root.exists() && self.public_of_kept().is_none() {
            let aside = self.sealed_root.with_extension(format!("age.aside-{stamp}"));
            let failed = |source| StoreError::Io { attempt: "rename", path: self.sealed_root.clone(), source };
            std::fs::rename(&self.sealed_root, aside).map_err(failed)?;
        }
        Ok(store::write_private(&self.sealed_root, sealed.as_bytes())?)
    }

    /// Takes a new grant of the root: the host's new key replaces the one it had, which stays valid until it ends.
    ///
    /// With `set_clock`, the time goes back to the wall clock first, which had jumped forward and was mended.
    ///
    /// # Errors
    /// When the store is locked or damaged, or the grant is not for the key that was asked for.
    pub fn renew(&self, grant: &str, set_clock: bool) -> Result<(), KeysError> {
        let (mut inner, mut now) = self.in_use();
        if matches!(inner.mode, Mode::Memory { .. }) {
            return Err(KeysError::NotKept);
        }
        let root = inner.tree()?.root;
        let host = granted(inner.pending.as_ref(), root, grant)?;
        let (before, stored) = (inner.clock.clone(), inner.stored);
        if set_clock {
            // As `Clock::set_back` does for who has the root; here its fresh signature stands for it.
            inner.clock = Clock::resume(self.time.wall(), self.time.monotonic());
            now = inner.now(&*self.time);
        }
        let next = inner.tree()?.host.succeeded_by(host, now);
        if let Err(error) = inner.commit(vec![Edit::Host(Box::new(next))]) {
            (inner.clock, inner.stored) = (before, stored);
            return Err(error);
        }
        inner.pending = None;
        inner.rotate(now)
    }

    /// The sealed root, as text.
    ///
    /// # Errors
    /// When it is not in the state directory.
    pub fn sealed_root(&self) -> Result<String, KeysError> {
        let path = self.sealed_root.clone();
        let failed = |source| StoreError::Io { attempt: "read", path: path.clone(), source };
        match std::fs::metadata(&path) {
            Err(_) => Err(KeysError::NoRoot),
            Ok(metadata) if metadata.len() > SEALED_ROOT_BYTES_MAX => {
                Err(failed(std::io::ErrorKind::FileTooLarge.into()).into())
            }
            Ok(_) => Ok(std::fs::read_to_string(&path).map_err(failed)?),
        }
    }
}

impl UnlockWith {
    /// The same, as the store takes it.
    #[must_use]
    pub fn to_unlock(&self) -> Unlock {
        match self {
            UnlockWith::Passphrase(text) => Unlock::Passphrase(text.to_secret()),
            UnlockWith::KeyFile(path) => Unlock::KeyFile(path.clone()),
            UnlockWith::Credential {} => Unlock::Credential,
        }
    }
}

impl SecretText {
    /// A copy, wiped when dropped.
    #[must_use]
    pub fn to_secret(&self) -> SecretString {
        SecretString::from(self.0.clone())
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// The host's key with the root's grant.
fn granted(pending: Option<&KeyPair>, root: PublicKey, grant: &str) -> Result<Owned, KeysError> {
    let key = pending.ok_or(KeysError::NotAsked)?;
    let bytes = hex::decode(grant).ok_or_else(|| KeysError::BadGrant("it is not in hexadecimal digits".into()))?;
    let chain = Chain::of_root(root).extend(&bytes);
    let chain = chain.map_err(|error| KeysError::BadGrant(crate::router_vm::words(&error)))?;
    if chain.level() != Level::Host {
        return Err(KeysError::BadGrant(format!("it is for a key of the level {}", chain.level())));
    }
    if chain.key() != key.public() {
        return Err(KeysError::NotAsked);
    }
    Ok(Owned::new(key, chain, Limits::default()))
}

/// What this host is called, as far as its name can be one.
pub(super) fn host_name() -> Name {
    let full = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().to_lowercase();
    let label = full.split('.').next().unwrap_or_default().trim_matches('-').to_owned();
    label.parse().unwrap_or_else(|_| "host".parse().expect("it is a label"))
}

//! The keys of this host: one for itself, one for each VM, and one for each thing that a VM is known by.
//!
//! ```text
//!            no store                    `oht key init`
//! start ──────────────► NotKept ──────────────────────────► Unlocked ◄──────── `oht key unlock` ──┐
//!   │ --ephemeral ────► Ephemeral                             │  ▲ └─ `oht key lock`, idle ──► Locked
//!   │ a store ────────► Locked, or Unlocked where a key file or a credential unlocks               │
//!   └ a bad store ────► Damaged ──── `oht key restore` ──────────┘  ◄──── damaged, seen at unlock ─┘
//! ```
//!
//! Without a store everything works with a tree in memory, whose root is in memory too. With one, the root's secret is
//! never in this process: `oht` unseals it, signs the host's grant ([`Keys::host_request`], [`Keys::set_up`],
//! [`Keys::renew`]) and forgets it. What is locked keeps its grants in memory, which are no secrets, so that
//! [`Keys::tree`] can say how they are; its secrets and the data key are wiped.
//!
//! Every change is on the disk before it counts. All of this blocks, for milliseconds, and when something is unlocked
//! for a second: call it from a thread that may.

mod grow;
mod limits;
mod owned;
pub mod report;
mod setup;
pub mod time;
mod tree;
mod uses;

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use key_tree::{
    Clock, IssueError, KeyPair, Level, Now, Refusal, RootKey, Terms, Timestamp, Validity, issue, rand_core::OsRng,
};
use tokio::sync::Notify;
use wire::VmName;

pub use limits::{Limits, LimitsError};
pub use setup::{HostRequest, SetUp, UnlockWith};
pub use uses::file_message;

use crate::{
    router_vm::words,
    store::{Disk, KeyFile, StoreError, Unlock, UnlockError, Vault, key_file::UnlockedBy},
};
use owned::Owned;
use report::{KeyTree, KeysState, KeysStatus};
use time::TimeSource;
use tree::{Edit, Tree};

/// How often the clock's floor is stored at least.
const FLOOR_INTERVAL: Duration = Duration::from_secs(60);

/// Seconds before the host's grant ends from which on the status asks for a renewal: its last third.
const HOST_RENEWAL_SECONDS: u64 = 10 * 86_400;

/// The keys.
pub struct Keys {
    time: Box<dyn TimeSource>,
    vault: Vault,
    sealed_root: PathBuf,
    auto_lock: Option<Duration>,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    mode: Mode,
    /// None while a store is locked that was not unlocked since the start, or is damaged.
    tree: Option<Tree>,
    clock: Clock,
    /// The host's key that a grant of the root is awaited for.
    pending: Option<KeyPair>,
    /// When a secret was used last, by the monotonic clock.
    used: Duration,
    /// The clock's floor that is in the store.
    stored: Timestamp,
}

/// Where the keys are kept.
enum Mode {
    Memory { root: RootKey, ephemeral: bool },
    Locked { note: String },
    Unlocked { disk: Disk },
    Damaged { why: String },
}

/// Where [`Keys::open`] looks, and how it behaves.
pub struct Places {
    /// The directory of the store.
    pub vault: PathBuf,
    /// The sealed root.
    pub sealed_root: PathBuf,
    /// Whether everything stays in memory.
    pub ephemeral: bool,
    /// After how long without use the store locks itself.
    pub auto_lock: Option<Duration>,
}

/// Why something cannot be done with the keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The store does not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store was seen to be damaged before.
    #[error("{0}")]
    Damaged(String),
    /// The store is locked.
    #[error("the key store is locked: `oht key unlock` it first")]
    Locked,
    /// It is not kept, so it cannot be locked, renewed or unlocked.
    #[error("the keys are in memory only: `oht key init` makes keys that are kept")]
    NotKept,
    /// The agent keeps nothing.
    #[error("the agent runs with --ephemeral and keeps no keys: start it without")]
    Ephemeral,
    /// There is a store.
    #[error(
        "keys are kept already: `oht key renew` renews the host's grant, and `oht key restore` makes a new store for the same root"
    )]
    Kept,
    /// There is a sealed root.
    #[error("{0} is there already: `oht key restore` makes a store for it; to begin anew, move it away")]
    RootThere(PathBuf),
    /// The sealed root is somewhere else.
    #[error("the sealed root is not in the state directory: give it with --root FILE, or restore it from its shares")]
    NoRoot,
    /// Another root.
    #[error("this is the root {given}, and the keys of this host are of the root {ours}")]
    OtherRoot {
        /// The one that was given.
        given: String,
        /// The one of this host.
        ours: String,
    },
    /// No key is awaiting a grant.
    #[error(
        "the grant is not for the key that this agent asked it for: ask again, without restarting the agent in between"
    )]
    NotAsked,
    /// The root's grant breaks a law of the tree, or is none.
    #[error("the grant of the root is refused: {0}")]
    BadGrant(String),
    /// There is no such VM.
    #[error("the VM {0} has no key: `oht vm list` shows the VMs, `oht key tree` the keys")]
    NoVm(VmName),
    /// There is no such key.
    #[error("there is no key or grant {0:?}: `oht key tree` shows those there are")]
    NoKey(String),
    /// A name that is none.
    #[error("{0}")]
    Name(#[from] key_tree::NameError),
    /// The host's own grant has ended.
    #[error("the host's grant has ended, so it grants nothing: `oht key renew`")]
    HostEnded,
    /// The key may not be used.
    #[error("{}", refusal_words(.0))]
    Refused(Refusal),
    /// A grant cannot be issued.
    #[error("the grant cannot be issued: {}", words(.0))]
    Issue(#[from] IssueError),
    /// The limits make no sense.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// Too many keys for one VM.
    #[error("the VM {0} has {max} keys for its purposes, which is all it may have: revoke one", max = tree::LEAVES_MAX)]
    LeavesFull(VmName),
    /// Too much was revoked.
    #[error(
        "{} grants are revoked and not yet ended: no more can be remembered before some end, at most a day",
        tree::REVOKED_MAX
    )]
    RevokedFull,
}

impl Keys {
    /// Opens what there is. A store that is damaged or cannot be unlocked does not keep the agent from running: its
    /// status says so.
    #[must_use]
    pub fn open(places: Places, time: Box<dyn TimeSource>) -> Keys {
        let vault = Vault::new(places.vault);
        let (used, wall) = (time.monotonic(), time.wall());
        let mut clock = Clock::resume(Timestamp::default(), used);
        let now = clock.now(wall, used);
        let found = if places.ephemeral { Ok(None) } else { vault.look() };
        let (mode, tree) = match found {
            Ok(None) if places.ephemeral || !places.sealed_root.exists() => in_memory(places.ephemeral, now),
            Ok(None) => {
                let (root, store) = (places.sealed_root.display(), vault.path().display());
                let why =
                    format!("there is a sealed root ({root}) and no key store ({store}): `oht key restore` makes one");
                (Mode::Damaged { why }, None)
            }
            Ok(Some(_)) => (Mode::Locked { note: String::new() }, None),
            Err(error) => (Mode::Damaged { why: words(&error) }, None),
        };
        let inner = Mutex::new(Inner { mode, tree, clock, pending: None, used, stored: Timestamp::default() });
        let (sealed_root, auto_lock, changed) = (places.sealed_root, places.auto_lock, Notify::new());
        let keys = Keys { time, vault, sealed_root, auto_lock, inner, changed };
        keys.unlock_alone();
        keys
    }

    /// Unlocks a store for which no person is needed.
    fn unlock_alone(&self) {
        let Ok(Some(sealed)) = self.vault.look() else { return };
        if !matches!(self.inner().mode, Mode::Locked { .. }) {
            return;
        }
        let Some(unlock) = sealed.unlocked_by().without_a_person() else { return };
        if let Err(error) = self.unlock(&unlock)
            && let Mode::Locked { note } = &mut self.inner().mode
        {
            *note = words(&error);
        }
    }

    /// Unlocks the store.
    ///
    /// # Errors
    /// When there is none, `unlock` is not what unlocks it, or it is damaged, which stays so from then on.
    pub fn unlock(&self, unlock: &Unlock) -> Result<(), KeysError> {
        let sealed = self.sealed_key()?;
        // Takes a second: not while others wait.
        let key = sealed.open(unlock).map_err(StoreError::from)?;
        let mut inner = self.inner();
        inner.used = self.time.monotonic();
        if matches!(inner.mode, Mode::Unlocked { .. }) {
            return Ok(());
        }
        let opened = Disk::open(&self.vault, key).and_then(|(disk, values)| {
            let damaged = |why| StoreError::Damaged { directory: self.vault.path().into(), why };
            Tree::load(&values).map_err(damaged).map(|loaded| (disk, loaded))
        });
        let (disk, (tree, floor)) = match opened {
            Ok(opened) => opened,
            Err(error @ StoreError::Damaged { .. }) => {
                inner.mode = Mode::Damaged { why: words(&error) };
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        let floor = floor.max(inner.clock.floor());
        inner.clock = Clock::resume(floor, self.time.monotonic());
        inner.stored = floor;
        inner.tree = Some(tree);
        inner.mode = Mode::Unlocked { disk };
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// Locks the store: wipes the secrets and the data key.
    ///
    /// # Errors
    /// When there is no store.
    pub fn lock(&self) -> Result<(), KeysError> {
        self.inner().lock("")
    }

    /// Replaces what unlocks the store; `old` is asked for even if it is unlocked.
    ///
    /// # Errors
    /// When `old` does not unlock it, or the disk does not take it; `old` goes on to unlock then.
    pub fn change_unlock(&self, old: &Unlock, new: &Unlock) -> Result<(), KeysError> {
        let key = self.sealed_key()?.open(old).map_err(StoreError::from)?;
        let sealed = KeyFile::seal(&key, new).map_err(StoreError::from)?;
        let _one_at_a_time = self.inner();
        Ok(self.vault.write_key_file(&sealed)?)
    }

    /// What unlocks the store.
    ///
    /// # Errors
    /// When there is none.
    pub fn unlocked_by(&self) -> Result<UnlockedBy, KeysError> {
        Ok(self.sealed_key()?.unlocked_by().clone())
    }

    fn sealed_key(&self) -> Result<KeyFile, KeysError> {
        match &self.inner().mode {
            Mode::Memory { ephemeral: true, .. } => return Err(KeysError::Ephemeral),
            Mode::Memory { .. } => return Err(KeysError::NotKept),
            Mode::Damaged { why } => return Err(KeysError::Damaged(why.clone())),
            Mode::Locked { .. } | Mode::Unlocked { .. } => {}
        }
        self.vault.look()?.ok_or(KeysError::NotKept)
    }

    /// The time, which never goes backward.
    #[must_use]
    pub fn now(&self) -> Now {
        self.inner().now(&*self.time)
    }

    /// How the keys are.
    #[must_use]
    pub fn status(&self) -> KeysStatus {
        let mut inner = self.inner();
        let now = inner.now(&*self.time);
        inner.status(now)
    }

    /// The tree.
    #[must_use]
    pub fn tree(&self) -> KeyTree {
        let mut inner = self.inner();
        let now = inner.now(&*self.time);
        let branches = inner.tree.as_ref().map_or_else(Vec::new, |tree| report::branches(tree, now));
        KeyTree { keys: inner.status(now), now: now.timestamp().as_unix(), branches }
    }

    /// Does what is due: successors of what ends soon, the clock's floor, the automatic lock. Returns how long it may be
    /// until the next time.
    ///
    /// # Errors
    /// When something is due and cannot be done.
    pub fn turn(&self) -> Result<Duration, KeysError> {
        let mut inner = self.inner();
        let monotonic = self.time.monotonic();
        let now = inner.now(&*self.time);
        let mut wait = FLOOR_INTERVAL;
        if let (Mode::Unlocked { .. }, Some(after)) = (&inner.mode, self.auto_lock) {
            let idle = monotonic.saturating_sub(inner.used);
            if idle >= after {
                inner.lock("it was not used for a while; ")?;
            }
            wait = wait.min(after.saturating_sub(idle).max(Duration::from_millis(100)));
        }
        inner.rotate(now)?;
        inner.commit(vec![])?;
        Ok(wait)
    }

    /// Calls [`Keys::turn`] when it is time, for ever; what fails is told to `failure`.
    pub async fn keep_turning(self: std::sync::Arc<Keys>, failure: impl Fn(String)) {
        loop {
            let keys = std::sync::Arc::clone(&self);
            let turned = tokio::task::spawn_blocking(move || keys.turn()).await;
            let wait = match turned {
                Ok(Ok(wait)) => wait,
                Ok(Err(error)) => {
                    failure(format!("keys: {}", words(&error)));
                    FLOOR_INTERVAL
                }
                Err(error) => {
                    failure(format!("keys: {error}"));
                    FLOOR_INTERVAL
                }
            };
            let _woken = tokio::time::timeout(wait, self.changed.notified()).await;
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What is in memory is changed last, in one step: a panic before leaves it as it was.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, the time, and that a secret is used now.
    fn in_use(&self) -> (MutexGuard<'_, Inner>, Now) {
        let mut inner = self.inner();
        inner.used = self.time.monotonic();
        let now = inner.now(&*self.time);
        // What is decided at a time must not be decided otherwise later: a time that has jumped is stored first.
        if now.timestamp().seconds_since(inner.stored) > FLOOR_INTERVAL.as_secs()
            && let Err(error) = inner.commit(vec![])
        {
            tracing::warn!(error = words(&error), "cannot store the time");
        }
        (inner, now)
    }
}

impl Inner {
    fn now(&mut self, time: &dyn TimeSource) -> Now {
        self.clock.now(time.wall(), time.monotonic())
    }

    /// The tree, with its secrets.
    fn tree(&self) -> Result<&Tree, KeysError> {
        match &self.mode {
            Mode::Damaged { why } => Err(KeysError::Damaged(why.clone())),
            Mode::Locked { .. } => Err(KeysError::Locked),
            Mode::Memory { .. } | Mode::Unlocked { .. } => self.tree.as_ref().ok_or(KeysError::Locked),
        }
    }

    /// Stores the edits, and the clock's floor with them, and then does them.
    fn commit(&mut self, edits: Vec<Edit>) -> Result<(), KeysError> {
        if let Mode::Unlocked { disk } = &mut self.mode {
            let mut changes = edits.iter().map(Edit::change).collect::<Result<Vec<_>, _>>()?;
            changes.push(tree::floor_change(self.clock.floor()));
            disk.write(&changes)?;
            self.stored = self.clock.floor();
        }
        if let Some(tree) = &mut self.tree {
            tree.apply(edits);
        }
        Ok(())
    }

    /// Replaces what is due: VMs first, since what is below cannot outlive them.
    fn rotate(&mut self, now: Now) -> Result<(), KeysError> {
        if let (Mode::Memory { root, .. }, Some(tree)) = (&self.mode, &self.tree)
            && tree.host.chain.due(now).is_some()
        {
            let host = host_in_memory(root, now).ok_or(KeysError::HostEnded)?;
            let next = tree.host.succeeded_by(host, now);
            self.commit(vec![Edit::Host(Box::new(next))])?;
        }
        for due in [|tree: &Tree, now| Ok(grow::forgotten(tree, now)), grow::due_vms, grow::due_leaves] {
            let Ok(tree) = self.tree() else { return Ok(()) };
            let edits: Vec<Edit> = due(tree, now)?;
            if !edits.is_empty() {
                self.commit(edits)?;
            }
        }
        Ok(())
    }

    fn lock(&mut self, why: &str) -> Result<(), KeysError> {
        match &self.mode {
            Mode::Unlocked { .. } => {
                self.tree.iter_mut().for_each(Tree::lock);
                self.mode = Mode::Locked { note: why.into() };
                Ok(())
            }
            Mode::Locked { .. } => Ok(()),
            Mode::Damaged { why } => Err(KeysError::Damaged(why.clone())),
            Mode::Memory { ephemeral: true, .. } => Err(KeysError::Ephemeral),
            Mode::Memory { .. } => Err(KeysError::NotKept),
        }
    }

    fn status(&self, now: Now) -> KeysStatus {
        let end = self.tree.as_ref().and_then(|tree| tree.host.chain.validity()).map(Validity::end);
        let refusal = self.tree.as_ref().and_then(|tree| tree.live(&tree.host.chain, now).err());
        let (state, detail) = match &self.mode {
            Mode::Memory { ephemeral: true, .. } => (KeysState::Ephemeral, "in memory only".into()),
            Mode::Memory { .. } => (KeysState::NotKept, "keys are not kept: `oht key init`".into()),
            Mode::Locked { note } if note.is_empty() => (KeysState::Locked, "locked: `oht key unlock`".into()),
            Mode::Locked { note } => {
                (KeysState::Locked, format!("locked ({}): `oht key unlock`", note.trim_end_matches("; ")))
            }
            Mode::Damaged { why } => (KeysState::Damaged, why.clone()),
            Mode::Unlocked { .. } => (
                KeysState::Unlocked,
                match (refusal, end) {
                    (Some(refusal), _) => format!("{refusal}: `oht key renew`"),
                    (None, Some(end)) if end.seconds_since(now.timestamp()) < HOST_RENEWAL_SECONDS => {
                        format!("the host's grant ends at {end}: `oht key renew`")
                    }
                    _ => "unlocked".into(),
                },
            ),
        };
        let root = self.tree.as_ref().map(|tree| tree.root.to_string());
        KeysStatus { state, detail, root, host_until: end.map(Timestamp::as_unix) }
    }
}

/// A new tree that is not kept.
fn in_memory(ephemeral: bool, now: Now) -> (Mode, Option<Tree>) {
    let root = RootKey::generate(&mut OsRng);
    let tree = host_in_memory(&root, now).map(|host| Tree::new(root.public(), host));
    (Mode::Memory { root, ephemeral }, tree)
}

/// A host's key, granted by a root in memory.
fn host_in_memory(root: &RootKey, now: Now) -> Option<Owned> {
    let (start, key) = (now.timestamp(), KeyPair::generate(&mut OsRng));
    let validity = Validity::new(start, start.after(Level::Host.lifetime_max_seconds()))?;
    let terms = Terms::new(Level::Host, setup::host_name(), validity);
    let chain = key_tree::Chain::of_root(root.public());
    let chain = issue(root.key(), &chain, &key.public(), &terms, now, &mut OsRng).ok()?;
    Some(Owned::new(&key, chain, Limits::default()))
}

fn refusal_words(refusal: &Refusal) -> String {
    let hint = if refusal.level == Level::Host { " (`oht key renew`)" } else { "" };
    format!("the key may not be used: {refusal}{hint}")
}

impl From<UnlockError> for KeysError {
    fn from(error: UnlockError) -> KeysError {
        KeysError::Store(error.into())
    }
}

#[cfg(test)]
mod tests;

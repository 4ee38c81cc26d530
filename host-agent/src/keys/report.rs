//! What the API says about keys, as it stands in JSON, and takes.

use key_tree::{Chain, Level, Now, PublicKey, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{limits::Limits, tree::Tree};
use crate::hex;

/// Where the keys are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeysState {
    /// In memory: they vanish with the agent. `oht key init` makes keys that are kept.
    #[default]
    NotKept,
    /// In memory, as was wished for.
    Ephemeral,
    /// In the store, which is locked: nothing can be signed or renewed.
    Locked,
    /// In the store.
    Unlocked,
    /// The store is damaged, and nothing was changed in it.
    Damaged,
}

/// How the keys are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct KeysStatus {
    /// Where they are.
    pub state: KeysState,
    /// That in words, and what to do.
    pub detail: String,
    /// The root's public key, as far as it is known.
    pub root: Option<String>,
    /// When the host's own grant ends, in seconds since the Unix epoch: only the root can renew it.
    pub host_until: Option<u64>,
}

/// The tree of keys.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyTree {
    /// How they are.
    pub keys: KeysStatus,
    /// The agent's time, in seconds since the Unix epoch. It never goes backward.
    pub now: u64,
    /// The keys, parents before their children.
    pub branches: Vec<KeyBranch>,
}

/// One key of the tree.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyBranch {
    /// `root`, `host`, `vm`, or a purpose: `session`, `onion-service`, `dht-node`, `signing`, `ssh`.
    pub level: String,
    /// What it is called: `host`, a VM's name, or `VM/PURPOSE/NAME`. It names the key to `oht key revoke`.
    pub name: String,
    /// The public key, in hexadecimal digits.
    pub key: String,
    /// When its grant begins, in seconds since the Unix epoch; none for the root.
    pub start: Option<u64>,
    /// When its grant ends.
    pub end: Option<u64>,
    /// `live`, `due` (its successor is about to be made), `not_yet`, `over` or `revoked`, as far as its own grant goes.
    pub state: String,
    /// Why it cannot be used; none when it can.
    pub why: Option<String>,
    /// Whether a successor has taken its place, and it is only valid a little longer.
    pub replaced: bool,
    /// What its grant permits, as Datalog.
    pub checks: Vec<String>,
    /// What revokes its grant; none for the root.
    pub revocation_id: Option<String>,
}

/// A key for a purpose of a VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGrant {
    /// The VM.
    #[schema(value_type = String, max_length = 63)]
    pub vm: wire::VmName,
    /// `session`, `onion-service`, `dht-node`, `signing` or `ssh`.
    pub purpose: PurposeName,
    /// What the key is called; the VM's name where none is given.
    #[serde(default)]
    #[schema(max_length = 63)]
    pub name: Option<String>,
    /// What it may do.
    #[serde(default)]
    pub limits: Limits,
}

/// A purpose, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "they are the variants of key_tree::Purpose")]
pub enum PurposeName {
    Session,
    OnionService,
    DhtNode,
    Signing,
    Ssh,
}

/// How the key of a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// The key.
    pub key: PublicKey,
    /// Why it cannot be used; none when it can.
    pub why: Option<String>,
    /// When its grant ends or ended, in seconds since the Unix epoch.
    pub until: u64,
}

/// A signature, and what it takes to believe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// The root that the grants begin at. Believe it only if you know it.
    pub root: String,
    /// The grants, from the top, in hexadecimal digits.
    pub grants: Vec<String>,
    /// Ed25519 over `oht message 1`, a zero byte, `oht file sha256 1`, a zero byte, and the file's SHA-256.
    pub signature: String,
}

impl From<PurposeName> for key_tree::Purpose {
    fn from(name: PurposeName) -> key_tree::Purpose {
        match name {
            PurposeName::Session => key_tree::Purpose::Session,
            PurposeName::OnionService => key_tree::Purpose::OnionService,
            PurposeName::DhtNode => key_tree::Purpose::DhtNode,
            PurposeName::Signing => key_tree::Purpose::Signing,
            PurposeName::Ssh => key_tree::Purpose::Ssh,
        }
    }
}

/// All keys of the tree, parents before their children.
pub(super) fn branches(tree: &Tree, now: Now) -> Vec<KeyBranch> {
    let mut all = branch(tree, &Chain::of_root(tree.root), "root", now, false);
    let mut add = |owned: &super::owned::Owned, name: &str| {
        all.extend(branch(tree, &owned.chain, name, now, false));
        owned.previous.iter().for_each(|chain| all.extend(branch(tree, chain, name, now, true)));
    };
    add(&tree.host, "host");
    for (vm, owned) in &tree.vms {
        add(owned, vm.as_str());
        tree.leaves_of(vm).for_each(|(id, owned)| add(owned, &id.path()));
    }
    all
}

/// The last key of a chain.
pub(super) fn branch(tree: &Tree, chain: &Chain, name: &str, now: Now, replaced: bool) -> Vec<KeyBranch> {
    let last = chain.branches(now, &|id| tree.is_revoked(id)).pop();
    let shown = last.map(|branch| KeyBranch {
        level: branch.level.to_string(),
        name: match (&branch.name, branch.level) {
            // The host's own name says more.
            (Some(own), Level::Host) => format!("{name} {own}"),
            _ => name.to_owned(),
        },
        key: branch.key.to_string(),
        start: branch.validity.map(|validity| validity.start().as_unix()),
        end: branch.validity.map(|validity| validity.end().as_unix()),
        state: state(branch.state).into(),
        why: tree.live(chain, now).err().map(|refusal| refusal.to_string()),
        replaced,
        checks: branch.checks,
        revocation_id: branch.revocation_id.map(|id| hex::encode(id.as_bytes())),
    });
    shown.into_iter().collect()
}

fn state(state: State) -> &'static str {
    match state {
        State::Live => "live",
        State::Due => "due",
        State::NotYet => "not_yet",
        State::Over => "over",
        State::Revoked => "revoked",
    }
}

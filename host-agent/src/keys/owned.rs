//! A key that this host owns: its secret, and the chain of grants that makes it valid.
//!
//! As it is stored: the 32 bytes of the secret, then JSON of what is not secret, so that no copy of a secret is made
//! while JSON is written.

use key_tree::{Chain, KEY_BYTES, KeyPair, Now, PublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{KeysError, limits::Limits};
use crate::hex;

/// Chains of earlier keys that are kept until they end.
const PREVIOUS_MAX: usize = 8;

/// A secret, wiped when dropped.
pub(super) type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// A key of ours.
#[derive(Clone)]
pub(super) struct Owned {
    /// None while the store is locked.
    secret: Option<Secret>,
    /// What makes it valid.
    pub(super) chain: Chain,
    /// The chains that it had before, as long as they are live: nobody uses them any more, but who has seen one still
    /// takes it.
    pub(super) previous: Vec<Chain>,
    /// What its grant is limited to, and its successor will be.
    pub(super) limits: Limits,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    chain: Vec<String>,
    previous: Vec<Vec<String>>,
    limits: Limits,
}

impl Owned {
    pub(super) fn new(key: &KeyPair, chain: Chain, limits: Limits) -> Owned {
        Owned { secret: Some(key.secret()), chain, previous: vec![], limits }
    }

    /// This one's successor, which remembers it for as long as it is live.
    pub(super) fn succeeded_by(&self, mut next: Owned, now: Now) -> Owned {
        let live = |chain: &&Chain| chain.validity().is_some_and(|validity| now.timestamp() < validity.end());
        let earlier = std::iter::once(&self.chain).chain(&self.previous);
        next.previous = earlier.filter(live).take(PREVIOUS_MAX).cloned().collect();
        next
    }

    /// The key itself.
    pub(super) fn key(&self) -> Result<KeyPair, KeysError> {
        self.secret.as_ref().map(|secret| KeyPair::from_secret(secret)).ok_or(KeysError::Locked)
    }

    /// Forgets the secret.
    pub(super) fn lock(&mut self) {
        self.secret = None;
    }

    /// All chains of this key and those before it.
    pub(super) fn chains(&self) -> impl Iterator<Item = &Chain> {
        std::iter::once(&self.chain).chain(&self.previous)
    }

    /// As it is stored.
    pub(super) fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, KeysError> {
        let secret = self.secret.as_ref().ok_or(KeysError::Locked)?;
        let grants = |chain: &Chain| chain.grants().map(|grant| hex::encode(grant.as_bytes())).collect();
        let previous = self.previous.iter().map(grants).collect();
        let document = Document { chain: grants(&self.chain), previous, limits: self.limits.clone() };
        let json = serde_json::to_vec(&document).expect("it is a plain document");
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + json.len()));
        bytes.extend_from_slice(secret.as_slice());
        bytes.extend_from_slice(&json);
        Ok(bytes)
    }

    /// Reads what is stored; `None` when it is not what [`Owned::to_bytes`] writes in the tree of `root`.
    pub(super) fn from_bytes(bytes: &[u8], root: PublicKey) -> Option<Owned> {
        let (secret, json) = bytes.split_first_chunk::<KEY_BYTES>()?;
        let mut owned_secret = Zeroizing::new([0; KEY_BYTES]);
        owned_secret.copy_from_slice(secret);
        let document: Document = serde_json::from_slice(json).ok()?;
        let chain = |grants: &Vec<String>| {
            let grants = grants.iter().map(|grant| hex::decode(grant)).collect::<Option<Vec<_>>>()?;
            Chain::read(root, grants.iter().map(|grant| grant.as_slice())).ok()
        };
        let current = chain(&document.chain)?;
        if KeyPair::from_secret(&owned_secret).public() != current.key() {
            return None;
        }
        let previous = document.previous.iter().map(chain).collect::<Option<_>>()?;
        Some(Owned { secret: Some(owned_secret), chain: current, previous, limits: document.limits })
    }
}

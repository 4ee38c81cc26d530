//! The root's key: the only one that is sealed and split, because it is the only one that cannot be replaced.

use std::fmt;

use rand_core::CryptoRngCore;

use crate::{KeyPair, PublicKey, key::KEY_BYTES};

/// The root's key, in memory for as short as possible: unseal it, grant, drop it.
pub struct RootKey(KeyPair);

impl RootKey {
    /// A new root: the first key of a new tree.
    pub fn generate(rng: &mut impl CryptoRngCore) -> RootKey {
        RootKey(KeyPair::generate(rng))
    }

    pub(crate) fn from_secret(secret: &[u8; KEY_BYTES]) -> RootKey {
        RootKey(KeyPair::from_secret(secret))
    }

    /// The key that grants to hosts.
    #[must_use]
    pub fn key(&self) -> &KeyPair {
        &self.0
    }

    /// Its public half, which every chain is checked against.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.0.public()
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootKey({}, secret not shown)", self.public())
    }
}

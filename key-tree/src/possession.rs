//! Proof of possession: that who asks has the secret of the chain's last key, now, and for this operation.
//!
//! The verifier makes a [`Challenge`] and sends its [`Nonce`]; the owner answers with a [`Proof`], an Ed25519 signature
//! (RFC 8032) over
//!
//! ```text
//! "oht proof 1\0" | root's public key, 32 bytes | nonce, 32 bytes | the operation as text, "publish 80"
//! ```
//!
//! A challenge serves once: [`crate::Chain::verify`] consumes it. So a proof that was overheard is worth nothing, nor
//! is one for another operation, or in another tree.

use rand_core::CryptoRngCore;

use crate::{KeyPair, Now, Operation, PublicKey, Signature, key::SIGNATURE_BYTES};

/// Seconds within which a challenge must be answered. Our own choice: a round trip through Tor takes one or two, and
/// a key may be in a device that asks a person.
pub const CHALLENGE_SECONDS: u64 = 60;

/// Bytes of a nonce: never twice the same, even if 2^64 of them are made (birthday bound).
pub const NONCE_BYTES: usize = 32;

/// First bytes of what a proof signs.
const PROOF_DOMAIN: &[u8] = b"oht proof 1\0";

/// The verifier's side of one question. It cannot be copied: it is asked once.
#[derive(Debug)]
pub struct Challenge {
    nonce: Nonce,
    made: Now,
}

/// The part of a challenge that is sent to who is to prove something. Not secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce([u8; NONCE_BYTES]);

/// The answer to a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof(Signature);

/// Why a proof is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PossessionError {
    /// The challenge is older than [`CHALLENGE_SECONDS`].
    #[error("the challenge was answered after more than {CHALLENGE_SECONDS} seconds: ask for a new one")]
    Late,
    /// Another key, nonce, operation or tree.
    #[error("the proof was not made by this key for this challenge and operation")]
    Proof,
}

impl Challenge {
    /// A new challenge.
    pub fn new(rng: &mut impl CryptoRngCore, now: Now) -> Challenge {
        let mut nonce = [0; NONCE_BYTES];
        rng.fill_bytes(&mut nonce);
        Challenge { nonce: Nonce(nonce), made: now }
    }

    /// What is to be sent.
    #[must_use]
    pub fn nonce(&self) -> Nonce {
        self.nonce
    }

    pub(crate) fn verify(
        self,
        root: &PublicKey,
        key: &PublicKey,
        operation: &Operation,
        proof: &Proof,
        now: Now,
    ) -> Result<(), PossessionError> {
        if now.timestamp().seconds_since(self.made.timestamp()) > CHALLENGE_SECONDS {
            return Err(PossessionError::Late);
        }
        let message = message(root, &self.nonce, operation);
        key.verify_in(PROOF_DOMAIN, &message, &proof.0).map_err(|_| PossessionError::Proof)
    }
}

impl Nonce {
    /// Takes the bytes that came from the verifier.
    #[must_use]
    pub fn from_bytes(bytes: [u8; NONCE_BYTES]) -> Nonce {
        Nonce(bytes)
    }

    /// The bytes to be sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; NONCE_BYTES] {
        &self.0
    }
}

impl Proof {
    /// Takes the bytes that came from the owner.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; SIGNATURE_BYTES]) -> Proof {
        Proof(Signature::from_bytes(bytes))
    }

    /// The bytes to be sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SIGNATURE_BYTES] {
        self.0.to_bytes()
    }
}

impl KeyPair {
    /// Proves to who made `nonce` that this key is at hand for `operation`, in the tree of `root`.
    #[must_use]
    pub fn prove(&self, root: &PublicKey, nonce: &Nonce, operation: &Operation) -> Proof {
        Proof(self.sign_in(PROOF_DOMAIN, &message(root, nonce, operation)))
    }
}

fn message(root: &PublicKey, nonce: &Nonce, operation: &Operation) -> Vec<u8> {
    [root.as_bytes().as_slice(), &nonce.0, operation.to_string().as_bytes()].concat()
}

//! Sealed values: XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) under the store's data key.
//!
//! ```text
//! version 1 | nonce, 24 random bytes | ciphertext | tag, 16 bytes
//! ```
//!
//! The associated data is `oht store 1`, a zero byte and the place of the value (`vm/web`), so that a value that was
//! moved to another place does not open. Nonces of this length may be random: even 2^64 of them hardly ever repeat.

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use key_tree::rand_core::{OsRng, RngCore as _};
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const DOMAIN: &[u8] = b"oht store 1\0";

/// A key that seals values. Wiped when dropped.
#[derive(Clone)]
pub struct SealKey(Zeroizing<[u8; KEY_BYTES]>);

/// A value that does not open: another key, another place, or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it was not sealed with this key for this place")]
pub struct NotSealed;

impl SealKey {
    /// A new random key.
    #[must_use]
    pub fn generate() -> SealKey {
        let mut key = SealKey(Zeroizing::new([0; KEY_BYTES]));
        OsRng.fill_bytes(key.0.as_mut_slice());
        key
    }

    /// The key with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: Zeroizing<[u8; KEY_BYTES]>) -> SealKey {
        SealKey(bytes)
    }

    /// The bytes, to be sealed with another key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Seals `value` for `place`.
    #[must_use]
    pub fn seal(&self, place: &str, value: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        OsRng.fill_bytes(&mut nonce);
        let payload = Payload { msg: value, aad: &associated(place) };
        let sealed = self.cipher().encrypt(XNonce::from_slice(&nonce), payload);
        [&[VERSION], nonce.as_slice(), &sealed.expect("a value is shorter than 256 GiB")].concat()
    }

    /// Opens what was sealed for `place`.
    ///
    /// # Errors
    /// When it was not.
    pub fn open(&self, place: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotSealed> {
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(NotSealed)?;
        let (nonce, msg) = rest.split_at_checked(NONCE_BYTES).ok_or(NotSealed)?;
        let opened = self.cipher().decrypt(XNonce::from_slice(nonce), Payload { msg, aad: &associated(place) });
        opened.map(Zeroizing::new).map_err(|_| NotSealed)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.as_slice().into())
    }
}

fn associated(place: &str) -> Vec<u8> {
    [DOMAIN, place.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_with_its_key_in_its_place_and_unchanged() {
        let key = SealKey::generate();
        let sealed = key.seal("vm/a", b"secret");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(key.open("vm/a", &sealed).unwrap().as_slice(), b"secret");
        assert!(key.open("vm/b", &sealed).is_err());
        assert!(SealKey::generate().open("vm/a", &sealed).is_err());
        assert_ne!(key.seal("vm/a", b"secret"), sealed, "the nonce is new");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("vm/a", &changed).is_err(), "{at}");
            assert!(key.open("vm/a", &sealed[..at]).is_err(), "{at}");
        }
    }
}

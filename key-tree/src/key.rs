//! Keys: Ed25519 (RFC 8032), random, wiped when dropped, and never shown.
//!
//! One key signs three kinds of things, and each is told from the others by its first bytes:
//!
//! | signed | begins with |
//! | --- | --- |
//! | a grant, that is a block of a Biscuit token | its protobuf, or `\0BLOCK\0` in newer versions of the format |
//! | a proof of possession ([`crate::Challenge`]) | `oht proof 1\0` |
//! | a message ([`KeyPair::sign`]) | `oht message 1\0` |
//!
//! `o` (0x6f) would be a protobuf field of wire type 7, which does not exist: nothing that somebody gets signed is
//! ever a grant or a proof.

use std::{fmt, str::FromStr};

use biscuit_auth::builder::Algorithm;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

/// Bytes of a public key, and of the secret of one (RFC 8032, section 5.1.5).
pub const KEY_BYTES: usize = 32;

/// Bytes of a signature (RFC 8032, section 5.1.6).
pub const SIGNATURE_BYTES: usize = 64;

/// First bytes of a signed message.
const MESSAGE_DOMAIN: &[u8] = b"oht message 1\0";

/// A key that can sign. Its secret is wiped from memory when it is dropped, and `Debug` shows the public key only.
pub struct KeyPair(SigningKey);

/// The public half of a key. Never one of the weak ones, for which a signature can be made without a secret.
///
/// Kept as its bytes: it is compared, stored and shown more often than it verifies, and unpacked it is six times as
/// large.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// A signature of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(ed25519_dalek::Signature);

/// Why bytes or a text are no key, or a signature does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 64 hexadecimal digits.
    #[error("a public key is written with {} hexadecimal digits", 2 * KEY_BYTES)]
    Hex,
    /// No point of the curve.
    #[error("these bytes are not an Ed25519 public key")]
    NoPoint,
    /// A point of small order.
    #[error("this Ed25519 public key is one of the weak ones that fit any message")]
    Weak,
    /// The signature was made by another key, or for another message.
    #[error("the signature does not fit this key and this message")]
    Signature,
}

impl KeyPair {
    /// A new random key. Keys are never derived from each other: whoever has one knows nothing of the next.
    pub fn generate(rng: &mut impl CryptoRngCore) -> KeyPair {
        KeyPair(SigningKey::generate(rng))
    }

    /// The key with this secret, as it was stored.
    #[must_use]
    pub fn from_secret(secret: &[u8; KEY_BYTES]) -> KeyPair {
        KeyPair(SigningKey::from_bytes(secret))
    }

    /// The secret (RFC 8032's 32-octet private key), to be stored sealed, or given to the program that uses the key.
    #[must_use]
    pub fn secret(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs a message: Ed25519 over `oht message 1`, a zero byte and the message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        self.sign_in(MESSAGE_DOMAIN, message)
    }

    /// Signs in a domain: a few bytes that nothing else that is signed begins with.
    pub(crate) fn sign_in(&self, domain: &[u8], message: &[u8]) -> Signature {
        Signature(self.0.sign(&[domain, message].concat()))
    }

    /// The same key, as biscuit-auth has it. It wipes its copy too.
    pub(crate) fn to_biscuit(&self) -> biscuit_auth::KeyPair {
        let private = biscuit_auth::PrivateKey::from_bytes(self.secret().as_ref(), Algorithm::Ed25519);
        biscuit_auth::KeyPair::from(&private.expect("a secret has 32 bytes"))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({}, secret not shown)", self.public())
    }
}

impl PublicKey {
    /// Takes the 32 bytes of RFC 8032.
    ///
    /// # Errors
    /// When they are not a point of the curve, or one of small order.
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Result<PublicKey, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NoPoint)?;
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(PublicKey(*bytes)) }
    }

    /// The 32 bytes of RFC 8032.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Checks that this key's owner signed this message with [`KeyPair::sign`].
    ///
    /// # Errors
    /// [`KeyError::Signature`] when not.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        self.verify_in(MESSAGE_DOMAIN, message, signature)
    }

    pub(crate) fn verify_in(&self, domain: &[u8], message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        let signed = [domain, message].concat();
        let key = VerifyingKey::from_bytes(&self.0).expect("it is a point of the curve");
        key.verify_strict(&signed, &signature.0).map_err(|_| KeyError::Signature)
    }

    /// The same key, as biscuit-auth has it.
    pub(crate) fn to_biscuit(self) -> biscuit_auth::PublicKey {
        let key = biscuit_auth::PublicKey::from_bytes(self.as_bytes(), Algorithm::Ed25519);
        key.expect("it is a point of the curve")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let bytes = hex_bytes(text).ok_or(KeyError::Hex)?;
        PublicKey::from_bytes(&bytes)
    }
}

impl fmt::Display for PublicKey {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.as_bytes())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl Signature {
    /// Takes the 64 bytes of RFC 8032. Any are taken; whether they fit is seen when they are verified.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; SIGNATURE_BYTES]) -> Signature {
        Signature(ed25519_dalek::Signature::from_bytes(bytes))
    }

    /// The 64 bytes of RFC 8032.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SIGNATURE_BYTES] {
        self.0.to_bytes()
    }
}

/// The `N` bytes that a text of `2 * N` hexadecimal digits stands for.
pub(crate) fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        // `from_str_radix` takes a sign too.
        let digits = text.get(at..at + 2).filter(|digits| !digits.contains('+'))?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(bytes)
}

/// Writes bytes as hexadecimal digits.
pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> KeyPair {
        KeyPair::from_secret(&[seed; KEY_BYTES])
    }

    #[test]
    fn the_public_key_is_that_of_rfc_8032() {
        // Section 7.1, test 1.
        let secret = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(KeyPair::from_secret(&hex_bytes(secret).unwrap()).public().to_string(), public);
    }

    #[test]
    fn a_signature_fits_its_key_and_its_message_only() {
        let signature = key(1).sign(b"hello");
        assert_eq!(key(1).public().verify(b"hello", &signature), Ok(()));
        assert_eq!(key(1).public().verify(b"hello!", &signature), Err(KeyError::Signature));
        assert_eq!(key(2).public().verify(b"hello", &signature), Err(KeyError::Signature));
        assert_eq!(key(1).public().verify_in(b"oht proof 1\0", b"hello", &signature), Err(KeyError::Signature));
    }

    #[test]
    fn weak_and_malformed_keys_are_refused() {
        // The neutral element, for which every signature of a certain form fits.
        let mut neutral = [0; KEY_BYTES];
        neutral[0] = 1;
        assert_eq!(PublicKey::from_bytes(&neutral), Err(KeyError::Weak));
        assert_eq!("00".parse::<PublicKey>(), Err(KeyError::Hex));
        assert_eq!("+f".repeat(KEY_BYTES).parse::<PublicKey>(), Err(KeyError::Hex));
        let public = key(3).public();
        assert_eq!(public.to_string().parse(), Ok(public));
    }

    #[test]
    fn no_secret_is_shown() {
        let shown = format!("{:?}", key(7));
        assert!(!shown.contains(&"07".repeat(4)) && !shown.contains("7, 7, 7"), "{shown}");
    }
}

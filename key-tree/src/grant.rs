//! A grant: the token with which a key makes another one valid.
//!
//! It is a Biscuit token (format version 3, <https://doc.biscuitsec.org/reference/specifications>) of one block, signed
//! by the parent's key in the place of Biscuit's root key, and sealed. Its facts are its head:
//!
//! ```text
//! oht_grant(1); subject(hex:<the child's public key>); level("vm"); name("web");
//! start(2026-11-21T00:00:00Z); end(2026-11-22T00:00:00Z);
//! ```
//!
//! Its checks are what the child, and all below it, may do. Biscuit lets whoever holds a token append blocks; a grant
//! with a second block is refused, and so is one that is encoded in another way than Biscuit would. One grant has one
//! revocation identifier.

use std::{fmt, str::FromStr};

use biscuit_auth::{
    Biscuit,
    builder::{Fact, Term},
};

use crate::{
    DatalogError, KeyError, Level, Name, PublicKey, Rotation, Timestamp, Validity, datalog,
    key::{SIGNATURE_BYTES, hex_bytes, write_hex},
    terms::{GRANT_VERSION, HEAD_FACTS},
};

/// Bytes of the longest grant.
pub const GRANT_BYTES_MAX: usize = 4096;

/// A grant that was signed by the key that was asked for. Whether it is worth something now is the matter of the
/// [`crate::Chain`] that it belongs to.
#[derive(Clone)]
pub struct Grant {
    token: Biscuit,
    bytes: Vec<u8>,
    subject: PublicKey,
    level: Level,
    name: Name,
    validity: Validity,
    id: RevocationId,
    checks: Vec<String>,
}

/// What names one grant when it is revoked: the signature of the token's block (Biscuit specification, section
/// "Revocation identifiers"). Ed25519's strict verification leaves only one for what was signed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RevocationId([u8; SIGNATURE_BYTES]);

/// A text that is not a [`RevocationId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a revocation identifier is written with {} hexadecimal digits", 2 * SIGNATURE_BYTES)]
pub struct RevocationIdError;

/// Why bytes are not a grant of this key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// More than [`GRANT_BYTES_MAX`] bytes.
    #[error("it has {0} bytes, and may have {GRANT_BYTES_MAX}")]
    TooLong(usize),
    /// Not a Biscuit token, cut short or changed, or signed by somebody else.
    #[error("it is not a token of this parent, or it was changed: {0}")]
    Token(String),
    /// Bytes that Biscuit reads, and would write otherwise.
    #[error("it is not written as Biscuit writes it: it was changed on its way")]
    Form,
    /// Somebody appended to it.
    #[error("it has {0} blocks, and may have one")]
    Blocks(usize),
    /// Its Datalog is not what a grant may hold.
    #[error("its Datalog is refused")]
    Datalog(#[source] DatalogError),
    /// A fact of the head is not there once and of the right type.
    #[error("it does not say once, and rightly, what its {0:?} is")]
    Head(&'static str),
    /// Made by a later version of this program.
    #[error("it is of version {0}, this program knows version {GRANT_VERSION}: use the program that made it")]
    Version(i64),
    /// The child's key is none.
    #[error("the key it is for is none")]
    Subject(#[source] KeyError),
}

impl Grant {
    /// Reads a grant that `parent` is to have signed.
    pub(crate) fn read(bytes: &[u8], parent: &PublicKey) -> Result<Grant, GrantError> {
        if bytes.len() > GRANT_BYTES_MAX {
            return Err(GrantError::TooLong(bytes.len()));
        }
        let not_a_token = |error: biscuit_auth::error::Token| GrantError::Token(error.to_string());
        let token = Biscuit::from(bytes, parent.to_biscuit()).map_err(not_a_token)?;
        // Protobuf skips fields that it does not know, so other bytes can mean the same.
        if token.to_vec().map_err(not_a_token)? != bytes {
            return Err(GrantError::Form);
        }
        if token.block_count() != 1 {
            return Err(GrantError::Blocks(token.block_count()));
        }
        // What the engine will see, and not what it looks like when it is printed.
        let (facts, rules, checks, _) = token.authorizer().map_err(not_a_token)?.dump();
        datalog::inspect(&facts, &rules, &checks).map_err(GrantError::Datalog)?;
        let head = Head(&facts);
        match head.integer("oht_grant")? {
            GRANT_VERSION => {}
            other => return Err(GrantError::Version(other)),
        }
        let id = token.revocation_identifiers().first().and_then(|id| id.as_slice().try_into().ok());
        let id = id.ok_or_else(|| GrantError::Token("its signature has a wrong length".into()))?;
        Ok(Grant {
            subject: head.subject()?,
            level: Level::from_name(head.text("level")?).ok_or(GrantError::Head("level"))?,
            name: head.text("name")?.parse().map_err(|_| GrantError::Head("name"))?,
            validity: Validity::new(head.date("start")?, head.date("end")?).ok_or(GrantError::Head("end"))?,
            id: RevocationId(id),
            checks: checks.iter().map(ToString::to_string).collect(),
            bytes: bytes.to_vec(),
            token,
        })
    }

    /// The token's bytes, to be stored or sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The key that it makes valid.
    #[must_use]
    pub fn subject(&self) -> PublicKey {
        self.subject
    }

    /// The level of that key.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// What people call the key's owner.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// From when until when the grant is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// What revokes it.
    #[must_use]
    pub fn revocation_id(&self) -> RevocationId {
        self.id
    }

    /// Its checks, as Datalog.
    #[must_use]
    pub fn checks(&self) -> &[String] {
        &self.checks
    }

    /// When its successor is to be issued.
    #[must_use]
    pub fn rotation(&self) -> Rotation {
        Rotation::of(self.validity)
    }

    pub(crate) fn token(&self) -> &Biscuit {
        &self.token
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({} {}, {}, {})", self.level, self.name, self.subject, self.validity)
    }
}

/// The facts of a token.
struct Head<'a>(&'a [Fact]);

impl<'a> Head<'a> {
    /// The one value of the one fact of this name.
    fn term(&self, name: &'static str) -> Result<&'a Term, GrantError> {
        debug_assert!(HEAD_FACTS.contains(&name));
        let mut named = self.0.iter().filter(|fact| fact.predicate.name == name);
        match (named.next().map(|fact| fact.predicate.terms.as_slice()), named.next()) {
            (Some([term]), None) => Ok(term),
            _ => Err(GrantError::Head(name)),
        }
    }

    fn integer(&self, name: &'static str) -> Result<i64, GrantError> {
        match self.term(name)? {
            Term::Integer(number) => Ok(*number),
            _ => Err(GrantError::Head(name)),
        }
    }

    fn text(&self, name: &'static str) -> Result<&'a str, GrantError> {
        match self.term(name)? {
            Term::Str(text) => Ok(text),
            _ => Err(GrantError::Head(name)),
        }
    }

    fn date(&self, name: &'static str) -> Result<Timestamp, GrantError> {
        match self.term(name)? {
            Term::Date(seconds) => Ok(Timestamp::from_unix(*seconds)),
            _ => Err(GrantError::Head(name)),
        }
    }

    fn subject(&self) -> Result<PublicKey, GrantError> {
        let Term::Bytes(bytes) = self.term("subject")? else { return Err(GrantError::Head("subject")) };
        let bytes = bytes.as_slice().try_into().map_err(|_| GrantError::Head("subject"))?;
        PublicKey::from_bytes(bytes).map_err(GrantError::Subject)
    }
}

impl RevocationId {
    /// Takes the bytes of the signature.
    #[must_use]
    pub fn from_bytes(bytes: [u8; SIGNATURE_BYTES]) -> RevocationId {
        RevocationId(bytes)
    }

    /// The bytes of the signature.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.0
    }
}

impl FromStr for RevocationId {
    type Err = RevocationIdError;

    fn from_str(text: &str) -> Result<RevocationId, RevocationIdError> {
        hex_bytes(text).map(RevocationId).ok_or(RevocationIdError)
    }
}

impl fmt::Display for RevocationId {
    /// 128 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for RevocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocationId({self})")
    }
}

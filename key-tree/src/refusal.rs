//! Why a key may not be used, said so that a person can mend it.

use std::fmt;

use crate::{Level, Name, Operation, PossessionError, RevocationId, Timestamp};

/// A key may not be used: at which level of its chain, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The level of the grant that refuses; the root where there is no grant.
    pub level: Level,
    /// What that grant's key is called.
    pub name: Option<Name>,
    /// Why.
    pub why: Why,
}

/// Why a grant refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It was revoked.
    #[error("was revoked; its identifier is {0}")]
    Revoked(RevocationId),
    /// It has not begun.
    #[error("is valid from {0} on")]
    NotYet(Timestamp),
    /// It has ended.
    #[error("ended at {0}: issue a new one")]
    Over(Timestamp),
    /// The key at the end of the chain is for something else.
    #[error("does not make a key for `{0}`, which needs one for the purpose {purpose}", purpose = .0.purpose())]
    Purpose(Operation),
    /// Who asks has not shown to have the key.
    #[error("is for a key that was not shown to be there: {0}")]
    Possession(PossessionError),
    /// Its checks do not permit this.
    #[error("does not permit this: {}", .0.join("; "))]
    Checks(Vec<String>),
    /// Its checks could not be evaluated: a wrong type, a division by zero.
    #[error("has checks that cannot be evaluated: {0}")]
    Evaluation(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "the grant of the {} {name} {}", self.level, self.why),
            None => write!(f, "the root's key, which needs no grant, {}", self.why),
        }
    }
}

impl std::error::Error for Refusal {}

//! A chain as people look at it: one line a key, from the root down, with what is wrong where.

use crate::{Chain, Level, Name, Now, PublicKey, RevocationId, Stage, Validity};

/// One key of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its level.
    pub level: Level,
    /// What people call its owner; the root has no name.
    pub name: Option<Name>,
    /// The key.
    pub key: PublicKey,
    /// When its grant is valid; `None` for the root.
    pub validity: Option<Validity>,
    /// What revokes its grant; `None` for the root.
    pub revocation_id: Option<RevocationId>,
    /// What its grant permits, as Datalog.
    pub checks: Vec<String>,
    /// Whether it can be used, as far as its own grant goes.
    pub state: State,
}

/// Whether a key can be used, as far as its own grant goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can, and nothing is to be done.
    Live,
    /// It can, and its successor is to be issued now.
    Due,
    /// Its time has not come.
    NotYet,
    /// Its time is over.
    Over,
    /// It was revoked.
    Revoked,
}

impl Chain {
    /// The keys of this chain, from the root down.
    #[must_use]
    pub fn branches(&self, now: Now, revoked: &impl Fn(&RevocationId) -> bool) -> Vec<Branch> {
        let root = Branch {
            level: Level::Root,
            name: None,
            key: self.root(),
            validity: None,
            revocation_id: None,
            checks: vec![],
            state: State::Live,
        };
        let granted = self.grants().map(|grant| Branch {
            level: grant.level(),
            name: Some(grant.name().clone()),
            key: grant.subject(),
            validity: Some(grant.validity()),
            revocation_id: Some(grant.revocation_id()),
            checks: grant.checks().to_vec(),
            state: match grant.rotation().stage(now) {
                _ if revoked(&grant.revocation_id()) => State::Revoked,
                Stage::Over => State::Over,
                _ if now.timestamp() < grant.validity().start() => State::NotYet,
                Stage::Due { .. } => State::Due,
                Stage::Fresh { .. } => State::Live,
            },
        });
        std::iter::once(root).chain(granted).collect()
    }
}

//! The chain of grants from the root to a key, and the laws it keeps.
//!
//! | law | where it is kept |
//! | --- | --- |
//! | every grant is signed by the key that the one above it names | [`Chain::extend`] |
//! | levels only go down, as [`Level::may_grant`] says | [`Chain::extend`] |
//! | no grant begins before its parent's, ends after it, or lasts longer than its level may | [`Chain::extend`] |
//! | no key stands twice in a chain | [`Chain::extend`] |
//! | a request is permitted only if *every* grant of the chain permits it: none widens | [`Chain::verify`] |
//! | what is revoked or over takes everything below with it | [`Chain::verify`] |
//!
//! The first four are looked at once, when a chain is read: a `Chain` that exists keeps them. It is not a secret.

use std::sync::Arc;

use biscuit_auth::{
    AuthorizerBuilder,
    builder::{self, Fact, Policy, PolicyKind, Term},
    error::{FailedCheck, Logic, Token},
};

use crate::{
    Challenge, Grant, GrantError, Level, Now, Operation, Proof, PublicKey, Refusal, RevocationId, Stage, Timestamp,
    Validity, datalog, refusal::Why,
};

/// The grants between a trusted root and a key, from the top.
#[derive(Clone, Debug)]
pub struct Chain {
    root: PublicKey,
    grants: Vec<Arc<Grant>>,
}

/// Why a grant cannot be the next one of a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It is not a grant of the chain's last key.
    #[error("grant {number}, below the {parent}, is refused")]
    Grant {
        /// Which grant, from the top; the first is 1.
        number: usize,
        /// The level of the key that is to have signed it.
        parent: Level,
        /// What is wrong with it.
        #[source]
        source: GrantError,
    },
    /// A level that this parent cannot grant to.
    #[error("a key of the level {parent} cannot grant to one of the level {child}")]
    Level {
        /// The level above.
        parent: Level,
        /// The level of the grant.
        child: Level,
    },
    /// It begins before its parent's or ends after it.
    #[error("a grant for {child} is not within its parent's, {parent}")]
    Outlives {
        /// The grant's time.
        child: Validity,
        /// Its parent's.
        parent: Validity,
    },
    /// It lasts longer than its level may.
    #[error("a grant of the level {level} lasts {seconds} seconds, and may last {}", level.lifetime_max_seconds())]
    TooLong {
        /// Its level.
        level: Level,
        /// How long it lasts.
        seconds: u64,
    },
    /// The key is above itself.
    #[error("the key {0} stands in this chain already: make a new one for every level")]
    KeyReused(PublicKey),
}

/// That a key may be used for one operation. Only [`Chain::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    key: PublicKey,
    operation: Operation,
    until: Timestamp,
}

impl Chain {
    /// The chain of the root itself, without a grant. `root` is what everything is checked against: take it from the
    /// configuration, never from where the grants come from.
    #[must_use]
    pub fn of_root(root: PublicKey) -> Chain {
        Chain { root, grants: vec![] }
    }

    /// Reads the chain below `root` from the bytes of its grants, from the top.
    ///
    /// # Errors
    /// At the first grant that breaks a law.
    pub fn read<T: AsRef<[u8]>>(root: PublicKey, grants: impl IntoIterator<Item = T>) -> Result<Chain, ChainError> {
        grants.into_iter().try_fold(Chain::of_root(root), |chain, grant| chain.extend(grant.as_ref()))
    }

    /// This chain with one more grant, signed by its last key.
    ///
    /// # Errors
    /// When the grant breaks a law.
    pub fn extend(&self, grant: &[u8]) -> Result<Chain, ChainError> {
        let parent = self.level();
        let wrap = |source| ChainError::Grant { number: self.grants.len() + 1, parent, source };
        let grant = Grant::read(grant, &self.key()).map_err(wrap)?;
        let (child, validity) = (grant.level(), grant.validity());
        if !parent.may_grant(child) {
            return Err(ChainError::Level { parent, child });
        }
        if validity.seconds() > child.lifetime_max_seconds() {
            return Err(ChainError::TooLong { level: child, seconds: validity.seconds() });
        }
        if let Some(parent) = self.validity().filter(|parent| !validity.is_within(*parent)) {
            return Err(ChainError::Outlives { child: validity, parent });
        }
        let subject = grant.subject();
        if subject == self.root || self.grants.iter().any(|above| above.subject() == subject) {
            return Err(ChainError::KeyReused(subject));
        }
        let mut grants = self.grants.clone();
        grants.push(Arc::new(grant));
        Ok(Chain { root: self.root, grants })
    }

    /// The root that it is checked against.
    #[must_use]
    pub fn root(&self) -> PublicKey {
        self.root
    }

    /// Its grants, from the top.
    pub fn grants(&self) -> impl DoubleEndedIterator<Item = &Grant> {
        self.grants.iter().map(AsRef::as_ref)
    }

    /// The key at its end.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.grants.last().map_or(self.root, |grant| grant.subject())
    }

    /// The level of that key.
    #[must_use]
    pub fn level(&self) -> Level {
        self.grants.last().map_or(Level::Root, |grant| grant.level())
    }

    /// From when until when all of its grants are valid, which is the time of the last one; `None` for the root, which
    /// has no end.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        self.grants.last().map(|grant| grant.validity())
    }

    /// The uppermost grant that is due to be replaced: a child's successor cannot outlive its parent, so parents come
    /// first.
    #[must_use]
    pub fn due(&self, now: Now) -> Option<&Grant> {
        self.grants().find(|grant| !matches!(grant.rotation().stage(now), Stage::Fresh { .. }))
    }

    /// Whether the key may be used for `operation` now: all grants are live, none is revoked, every one permits it, and
    /// `proof` answers `challenge`.
    ///
    /// `revoked` says whether a grant was revoked; it is asked for every grant of the chain.
    ///
    /// # Errors
    /// Says at which level, and why. Nothing of a grant's checks is told to who has no proof.
    pub fn verify(
        &self,
        operation: &Operation,
        now: Now,
        revoked: &impl Fn(&RevocationId) -> bool,
        challenge: Challenge,
        proof: &Proof,
    ) -> Result<Permit, Refusal> {
        self.live(now, revoked)?;
        let (key, until) = self.leaf(operation)?;
        challenge
            .verify(&self.root, &key, operation, proof, now)
            .map_err(|error| self.refusal(self.grants.last(), Why::Possession(error)))?;
        self.evaluate(operation, now)?;
        Ok(Permit { key, operation: *operation, until })
    }

    /// What [`Chain::verify`] would say to who has the key: for a person who asks beforehand. Nothing is permitted.
    ///
    /// # Errors
    /// As [`Chain::verify`], but for the proof.
    pub fn would_permit(
        &self,
        operation: &Operation,
        now: Now,
        revoked: &impl Fn(&RevocationId) -> bool,
    ) -> Result<(), Refusal> {
        self.live(now, revoked)?;
        self.leaf(operation)?;
        self.evaluate(operation, now)
    }

    /// Whether every grant is valid now and none is revoked.
    ///
    /// # Errors
    /// At the first grant, from the top, that is not.
    pub fn live(&self, now: Now, revoked: &impl Fn(&RevocationId) -> bool) -> Result<(), Refusal> {
        for grant in &self.grants {
            let (id, validity) = (grant.revocation_id(), grant.validity());
            let why = if revoked(&id) {
                Why::Revoked(id)
            } else if now.timestamp() < validity.start() {
                Why::NotYet(validity.start())
            } else if now.timestamp() >= validity.end() {
                Why::Over(validity.end())
            } else {
                continue;
            };
            return Err(self.refusal(Some(grant), why));
        }
        Ok(())
    }

    /// The key and the end of its grant, if its purpose is that of the operation.
    fn leaf(&self, operation: &Operation) -> Result<(PublicKey, Timestamp), Refusal> {
        let last = self.grants.last();
        match last {
            Some(grant) if grant.level() == Level::Purpose(operation.purpose()) => {
                Ok((grant.subject(), grant.validity().end()))
            }
            _ => Err(self.refusal(last, Why::Purpose(*operation))),
        }
    }

    /// Asks every grant, each by itself: what one says is no fact for another.
    fn evaluate(&self, operation: &Operation, now: Now) -> Result<(), Refusal> {
        let named = |level| self.grants().find(|grant| grant.level() == level).map(Grant::name);
        let facts = operation.facts(now, named(Level::Host), named(Level::Vm));
        self.grants.iter().try_for_each(|grant| permits(grant, &facts).map_err(|why| self.refusal(Some(grant), why)))
    }

    fn refusal(&self, grant: Option<&Arc<Grant>>, why: Why) -> Refusal {
        Refusal {
            level: grant.map_or(Level::Root, |grant| grant.level()),
            name: grant.map(|grant| grant.name().clone()),
            why,
        }
    }
}

/// Evaluates one grant's checks with the facts of the request.
fn permits(grant: &Grant, facts: &[Fact]) -> Result<(), Why> {
    let broken = |error: Token| Why::Evaluation(error.to_string());
    let mut authorizer = AuthorizerBuilder::new().set_limits(datalog::limits());
    for fact in facts {
        authorizer = authorizer.fact(fact.clone()).map_err(broken)?;
    }
    // "allow if true": Biscuit wants a policy, ours are the checks.
    let always = builder::rule("query", &[] as &[Term], &[] as &[builder::Predicate]);
    let allow = Policy { queries: vec![always], kind: PolicyKind::Allow };
    let authorizer = authorizer.policy(allow).map_err(broken)?;
    match authorizer.build(grant.token()).map_err(broken)?.authorize() {
        Ok(_) => Ok(()),
        Err(Token::FailedLogic(Logic::Unauthorized { checks, .. })) => {
            Err(Why::Checks(checks.into_iter().map(text_of).collect()))
        }
        Err(error) => Err(broken(error)),
    }
}

fn text_of(check: FailedCheck) -> String {
    match check {
        FailedCheck::Block(check) => check.rule,
        FailedCheck::Authorizer(check) => check.rule,
    }
}

impl Permit {
    /// The key that may be used.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// For what.
    #[must_use]
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The first second in which it is worth nothing any more, unless revoked before. Stop what was begun with it then.
    #[must_use]
    pub fn until(&self) -> Timestamp {
        self.until
    }
}

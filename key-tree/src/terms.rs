//! What is to be granted: to which level, under which name, for how long, and within which limits.

use std::collections::BTreeSet;

use biscuit_auth::builder::{self, Binary, BiscuitBuilder, Check, CheckKind, Expression, Fact, Op, Term, Unary};

use crate::{
    Country, DatalogError, Level, Name, PublicKey, Purpose, Validity, Weekday,
    datalog::{self, REQUEST_FACTS},
};

/// Facts that say what a grant is for. Each stands in it once.
pub(crate) const HEAD_FACTS: [&str; 6] = ["oht_grant", "subject", "level", "name", "start", "end"];

/// The version of what a grant holds.
pub(crate) const GRANT_VERSION: i64 = 1;

/// The terms of a grant. Every limit narrows: what is not limited here is as it is in the parent's grant, and what the
/// parent's does not allow is not allowed, whatever stands here.
#[derive(Clone, Debug)]
pub struct Terms {
    level: Level,
    name: Name,
    validity: Validity,
    facts: Vec<Fact>,
    checks: Vec<Check>,
}

impl Terms {
    /// A grant to a key of this level, without limits but its time.
    #[must_use]
    pub fn new(level: Level, name: Name, validity: Validity) -> Terms {
        Terms { level, name, validity, facts: vec![], checks: vec![] }
    }

    /// The level of the key that gets the grant.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// From when until when.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Keys for these purposes only, of this key and of those below it.
    #[must_use]
    pub fn purposes(self, purposes: &[Purpose]) -> Terms {
        self.only("purpose", purposes.iter().map(|purpose| builder::string(purpose.as_str())))
    }

    /// These ports only, where the operation has one: those of destinations, and those of published services.
    #[must_use]
    pub fn ports(self, ports: &[u16]) -> Terms {
        self.only("port", ports.iter().map(|port| builder::int((*port).into())))
    }

    /// Exits in these countries only, where the operation has an exit. One of unknown country is in none of them.
    #[must_use]
    pub fn exits(self, countries: &[Country]) -> Terms {
        self.only("exit", countries.iter().map(|country| builder::string(country.as_str())))
    }

    /// On these days only, in UTC.
    #[must_use]
    pub fn weekdays(self, days: &[Weekday]) -> Terms {
        self.only("weekday", days.iter().map(|day| builder::string(day.as_str())))
    }

    /// What else Datalog can say: facts of one's own and checks, in Biscuit's syntax, each ended by `;`. The facts that
    /// describe a request are listed at [`crate::Operation`].
    ///
    /// # Errors
    /// When it is not Datalog, holds rules, or what it costs to evaluate has no small bound.
    pub fn datalog(mut self, source: &str) -> Result<Terms, DatalogError> {
        let (facts, checks) = datalog::parse(source)?;
        if let Some(fact) = facts.iter().find(|fact| HEAD_FACTS.contains(&fact.predicate.name.as_str())) {
            return Err(DatalogError::Reserved(fact.predicate.name.clone()));
        }
        self.facts.extend(facts);
        self.checks.extend(checks);
        datalog::inspect(&self.facts, &[], &self.checks)?;
        Ok(self)
    }

    /// `reject if name($x), !{allowed}.contains($x)`: where there is such a fact, its value is one of those.
    fn only(mut self, name: &str, allowed: impl Iterator<Item = Term>) -> Terms {
        debug_assert!(REQUEST_FACTS.contains(&name));
        let allowed: BTreeSet<Term> = allowed.collect();
        let value = || Op::Value(builder::variable("value"));
        let outside = Expression {
            ops: vec![Op::Value(Term::Set(allowed)), value(), Op::Binary(Binary::Contains), Op::Unary(Unary::Negate)],
        };
        let body = [builder::pred(name, &[builder::variable("value")])];
        let query = builder::constrained_rule("query", &[] as &[Term], &body, &[outside]);
        self.checks.push(Check { queries: vec![query], kind: CheckKind::Reject });
        self
    }

    /// The token's contents.
    pub(crate) fn to_token(&self, subject: &PublicKey) -> Result<BiscuitBuilder, biscuit_auth::error::Token> {
        let head = [
            ("oht_grant", builder::int(GRANT_VERSION)),
            ("subject", builder::bytes(subject.as_bytes())),
            ("level", builder::string(self.level.as_str())),
            ("name", builder::string(self.name.as_str())),
            ("start", Term::Date(self.validity.start().as_unix())),
            ("end", Term::Date(self.validity.end().as_unix())),
        ];
        let mut token = BiscuitBuilder::new();
        for (name, term) in head {
            token = token.fact(builder::fact(name, &[term]))?;
        }
        for fact in &self.facts {
            token = token.fact(fact.clone())?;
        }
        for check in &self.checks {
            token = token.check(check.clone())?;
        }
        Ok(token)
    }
}

//! API tokens: what a client of the host agent may do who is not its owner.
//!
//! A token is a Biscuit too, signed with a key of the agent, but a bearer's: who has it may use it, as a monitoring
//! program or the tool of one VM does, and no proof of possession is asked. So it says little and ends soon. It is no
//! grant and opens nothing in the tree: a grant needs a fact that a token cannot have, and the other way round.
//!
//! ```text
//! oht_token(1); scope("monitor");                  check if time($t), $t < END;      <- signed by the agent
//! check if method("GET"), path("/metrics");                                          <- appended by whoever has it
//! ```
//!
//! Whoever has a token can make a narrower one of it, without the agent ([`narrow`]). What is appended is looked
//! through as the Datalog of grants is: it has checks, no rules, and a bounded cost. Facts that are appended are seen by
//! the checks beside them only.

use std::fmt;

use biscuit_auth::{
    Biscuit, UnverifiedBiscuit,
    builder::{AuthorizerBuilder, BiscuitBuilder, BlockBuilder, Fact, Term},
    error::{Logic, Token as BiscuitError},
};
use rand_core::CryptoRngCore;

use crate::{
    DatalogError, KeyPair, Name, Now, PublicKey, RevocationId, Timestamp,
    datalog::{self, limits},
};

/// Characters of the longest token, in base64: a dozen narrowings.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// Blocks of a token: the first, and so many narrowings.
const BLOCKS_MAX: usize = 16;

const TOKEN_VERSION: i64 = 1;

/// What the request has to be for a scope to allow it.
const POLICIES: &str = r#"
    allow if scope("monitor"), method("GET");
    allow if scope("vm", $vm), vm($vm);
"#;

/// What a token allows, before narrowings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Reading everything, changing nothing.
    Monitor,
    /// Everything that concerns this VM, and nothing else.
    Vm(Name),
}

/// A request to the API, as tokens see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiRequest<'a> {
    /// The HTTP method, in capitals.
    pub method: &'a str,
    /// The path, without a query.
    pub path: &'a str,
    /// The VM that it concerns, if it concerns one and no other.
    pub vm: Option<&'a str>,
}

/// A token whose signature is right.
#[derive(Clone)]
pub struct Token(Biscuit);

/// Why a token is none, or not enough.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// More than [`TOKEN_BYTES_MAX`].
    #[error("it has {0} characters, and may have {TOKEN_BYTES_MAX}")]
    TooLong(usize),
    /// Not signed by this key, cut short or changed.
    #[error("it is not this agent's, or it was changed: ask for a new one (`oht token new`)")]
    Foreign,
    /// Narrowed too often.
    #[error("it has {0} blocks, and may have {BLOCKS_MAX}")]
    Blocks(usize),
    /// A signed document of another kind.
    #[error("it is no API token")]
    Kind,
    /// What stands in it costs too much, or is no check.
    #[error("its Datalog is refused")]
    Datalog(#[source] DatalogError),
    /// It was revoked.
    #[error("it was revoked")]
    Revoked,
    /// It allows something else, or is over.
    #[error("it does not allow this: {0}")]
    Refused(String),
}

impl Token {
    /// Makes a token that is worth something before `until`. `rng` is for the key with which it can be narrowed.
    ///
    /// # Errors
    /// When Biscuit cannot make it.
    pub fn mint(
        key: &KeyPair,
        scope: &Scope,
        until: Timestamp,
        rng: &mut impl CryptoRngCore,
    ) -> Result<Token, TokenError> {
        let text = |text: &str| Term::Str(text.into());
        let scope = match scope {
            Scope::Monitor => vec![text("monitor")],
            Scope::Vm(name) => vec![text("vm"), text(name.as_str())],
        };
        BiscuitBuilder::new()
            .fact(Fact::new("oht_token".into(), vec![Term::Integer(TOKEN_VERSION)]))
            .and_then(|builder| builder.fact(Fact::new("scope".into(), scope)))
            .and_then(|builder| builder.check(format!("check if time($t), $t < {until}").as_str()))
            .and_then(|builder| {
                builder.build_with_rng(&key.to_biscuit(), biscuit_auth::datalog::SymbolTable::new(), rng)
            })
            .map(Token)
            .map_err(|error| TokenError::Refused(error.to_string()))
    }

    /// Reads a token that `key` is to have signed.
    ///
    /// # Errors
    /// When it is none of this key's, or holds what could cost much.
    pub fn read(text: &str, key: &PublicKey) -> Result<Token, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong(text.len()));
        }
        let token = Biscuit::from_base64(text, key.to_biscuit()).map_err(|_| TokenError::Foreign)?;
        if token.block_count() > BLOCKS_MAX {
            return Err(TokenError::Blocks(token.block_count()));
        }
        let (facts, rules, checks, _) = token.authorizer().map_err(|_| TokenError::Foreign)?.dump();
        datalog::inspect(&facts, &rules, &checks).map_err(TokenError::Datalog)?;
        Ok(Token(token))
    }

    /// Whether `request` is allowed now. `revoked` is asked for every block.
    ///
    /// # Errors
    /// Says what is against it.
    pub fn permits(
        &self,
        request: ApiRequest<'_>,
        now: Now,
        revoked: &impl Fn(&RevocationId) -> bool,
    ) -> Result<(), TokenError> {
        if self.revocation_ids().any(|id| revoked(&id)) {
            return Err(TokenError::Revoked);
        }
        let refused = |error: BiscuitError| TokenError::Refused(error.to_string());
        let text = |text: &str| Term::Str(text.into());
        let mut facts = vec![
            Fact::new("time".into(), vec![Term::Date(now.timestamp().as_unix())]),
            Fact::new("method".into(), vec![text(request.method)]),
            Fact::new("path".into(), vec![text(request.path)]),
        ];
        facts.extend(request.vm.map(|vm| Fact::new("vm".into(), vec![text(vm)])));
        let mut authorizer = AuthorizerBuilder::new().set_limits(limits());
        for fact in facts {
            authorizer = authorizer.fact(fact).map_err(refused)?;
        }
        let version = format!("check if oht_token({TOKEN_VERSION})");
        let authorizer = authorizer.check(version.as_str()).and_then(|builder| builder.code(POLICIES));
        match authorizer.and_then(|builder| builder.build(&self.0)).map_err(refused)?.authorize() {
            Ok(_) => Ok(()),
            Err(BiscuitError::FailedLogic(Logic::NoMatchingPolicy { .. })) => {
                Err(TokenError::Refused(format!("{} {} is not in its scope", request.method, request.path)))
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// What revokes it, and the tokens that it was narrowed from: one for each block.
    pub fn revocation_ids(&self) -> impl Iterator<Item = RevocationId> {
        let ids = self.0.revocation_identifiers();
        ids.into_iter().filter_map(|id| id.as_slice().try_into().ok().map(RevocationId::from_bytes))
    }

    /// The token as base64, to be handed to a client. It is a secret.
    ///
    /// # Errors
    /// When it is too large.
    pub fn to_text(&self) -> Result<String, TokenError> {
        bounded(self.0.to_base64().map_err(|error| TokenError::Refused(error.to_string()))?)
    }
}

/// A token that allows what `token` does, if `checks` hold too: Datalog as in grants, about `method`, `path`, `vm` and
/// `time`. The agent is not needed for it, nor asked whether `token` is worth anything.
///
/// # Errors
/// When `token` is none, the checks are not taken, or it would be too large.
pub fn narrow(token: &str, checks: &str, rng: &mut impl CryptoRngCore) -> Result<String, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::TooLong(token.len()));
    }
    let token = UnverifiedBiscuit::from_base64(token).map_err(|_| TokenError::Foreign)?;
    let (facts, checks) = datalog::parse(checks).map_err(TokenError::Datalog)?;
    let block = BlockBuilder { facts, checks, ..BlockBuilder::new() };
    let next = biscuit_auth::KeyPair::new_with_rng(biscuit_auth::Algorithm::Ed25519, rng);
    let refused = |error: BiscuitError| TokenError::Refused(error.to_string());
    let narrowed = token.append_with_keypair(&next, block).map_err(refused)?;
    match narrowed.block_count() {
        count if count > BLOCKS_MAX => Err(TokenError::Blocks(count)),
        _ => bounded(narrowed.to_base64().map_err(refused)?),
    }
}

fn bounded(text: String) -> Result<String, TokenError> {
    if text.len() > TOKEN_BYTES_MAX { Err(TokenError::TooLong(text.len())) } else { Ok(text) }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who has it may use it.
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand_core::OsRng;

    use super::*;
    use crate::Clock;

    fn at(seconds: u64) -> Now {
        Clock::resume(Timestamp::from_unix(seconds), Duration::ZERO).now(Timestamp::from_unix(0), Duration::ZERO)
    }

    fn request<'a>(method: &'a str, path: &'a str, vm: Option<&'a str>) -> ApiRequest<'a> {
        ApiRequest { method, path, vm }
    }

    fn mint(scope: &Scope) -> (KeyPair, Token) {
        let key = KeyPair::generate(&mut OsRng);
        let token = Token::mint(&key, scope, Timestamp::from_unix(100), &mut OsRng).unwrap();
        let read = Token::read(&token.to_text().unwrap(), &key.public()).unwrap();
        (key, read)
    }

    const STATUS: ApiRequest<'static> = ApiRequest { method: "GET", path: "/status", vm: None };

    #[test]
    fn a_monitor_reads_and_changes_nothing_until_its_end() {
        let (_, token) = mint(&Scope::Monitor);
        let permits = |request, now| token.permits(request, at(now), &|_| false);
        assert_eq!(permits(STATUS, 99), Ok(()));
        assert_eq!(permits(request("GET", "/vms/web", Some("web")), 0), Ok(()));
        assert!(permits(STATUS, 100).is_err(), "over");
        for method in ["POST", "DELETE", "PUT", "get"] {
            assert!(permits(request(method, "/vms", None), 0).is_err(), "{method}");
        }
        assert_eq!(token.permits(STATUS, at(0), &|_| true), Err(TokenError::Revoked));
    }

    #[test]
    fn the_token_of_a_vm_is_for_that_vm() {
        let (_, token) = mint(&Scope::Vm("web".parse().unwrap()));
        let permits = |request| token.permits(request, at(0), &|_| false).is_ok();
        assert!(permits(request("DELETE", "/vms/web", Some("web"))));
        assert!(!permits(request("GET", "/vms/bank", Some("bank"))));
        assert!(!permits(STATUS));
    }

    #[test]
    fn a_narrowing_never_widens() {
        let (key, token) = mint(&Scope::Monitor);
        let text = token.to_text().unwrap();
        let narrowed = |checks| Token::read(&narrow(&text, checks, &mut OsRng).unwrap(), &key.public()).unwrap();
        let metrics = narrowed("check if path(\"/metrics\")");
        let permits = |token: &Token, request| token.permits(request, at(0), &|_| false).is_ok();
        assert!(permits(&metrics, request("GET", "/metrics", None)) && !permits(&metrics, STATUS));
        let wider = narrowed("scope(\"vm\", \"web\"); oht_token(2)");
        assert!(
            !permits(&wider, request("DELETE", "/vms/web", Some("web"))),
            "facts that are appended count for nothing"
        );
        let first = token.revocation_ids().next().unwrap();
        assert_eq!(metrics.permits(STATUS, at(0), &|id| *id == first), Err(TokenError::Revoked));
        let mut many = text;
        let last = loop {
            match narrow(&many, "check if true", &mut OsRng) {
                Ok(more) => many = more,
                Err(error) => break error,
            }
        };
        assert!(matches!(last, TokenError::Blocks(_) | TokenError::TooLong(_)), "{last}");
    }

    #[test]
    fn what_is_not_ours_or_could_cost_much_is_refused() {
        let (key, token) = mint(&Scope::Monitor);
        let text = token.to_text().unwrap();
        let other = KeyPair::generate(&mut OsRng).public();
        assert!(matches!(Token::read(&text, &other), Err(TokenError::Foreign)));
        for changed in [&text[..text.len() - 5], "", "%", &"A".repeat(100)] {
            assert!(matches!(Token::read(changed, &key.public()), Err(TokenError::Foreign)), "{changed}");
        }
        assert!(matches!(Token::read(&"A".repeat(10_000), &key.public()), Err(TokenError::TooLong(10_000))));
        for costly in ["a($x) <- b($x)", "check if path($p), $p.matches(\"(a+)+$\")", "method(\"GET\")"] {
            assert!(matches!(narrow(&text, costly, &mut OsRng), Err(TokenError::Datalog(_))), "{costly}");
        }
        // Appended without us: what is read is looked through as well.
        let rule = BlockBuilder::new().code("method($m) <- path($m)").unwrap();
        let appended = Token(token.0.append(rule).unwrap());
        assert!(matches!(Token::read(&appended.to_text().unwrap(), &key.public()), Err(TokenError::Datalog(_))));
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}

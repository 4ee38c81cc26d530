//! The agent's API tokens: who gets one, and what one is worth. What a token is, `key-tree` says.
//!
//! They are signed with a key that lives as long as the agent: none of them outlives it, and nothing of them is stored.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use key_tree::{ApiRequest, KeyPair, Now, RevocationId, Scope, Timestamp, Token, TokenError, rand_core::OsRng};

/// Revoked tokens that are remembered; when there are more, all tokens are made worthless by a new key.
const REVOKED_MAX: usize = 4096;

/// The tokens.
#[derive(Debug)]
pub struct Tokens(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    key: KeyPair,
    revoked: BTreeSet<[u8; 64]>,
}

/// A token that was made.
#[derive(Debug)]
pub struct Minted {
    /// The token: a secret.
    pub token: String,
    /// What revokes it.
    pub id: RevocationId,
    /// The first second in which it is worth nothing.
    pub until: Timestamp,
}

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens(Mutex::new(Inner { key: KeyPair::generate(&mut OsRng), revoked: BTreeSet::new() }))
    }
}

impl Tokens {
    /// Makes a token for `seconds` from `now` on.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn mint(&self, scope: &Scope, seconds: u64, now: Now) -> Result<Minted, TokenError> {
        let until = now.timestamp().after(seconds);
        let token = Token::mint(&self.inner().key, scope, until, &mut OsRng)?;
        let id = token.revocation_ids().next().ok_or(TokenError::Kind)?;
        Ok(Minted { token: token.to_text()?, id, until })
    }

    /// Whether `token` allows `request` at `now`.
    ///
    /// # Errors
    /// Says what is against it.
    pub fn permits(&self, token: &str, request: ApiRequest<'_>, now: Now) -> Result<(), TokenError> {
        let inner = self.inner();
        Token::read(token, &inner.key.public())?.permits(request, now, &|id| inner.revoked.contains(id.as_bytes()))
    }

    /// Makes the token with this identifier worthless, and those that were narrowed from it.
    pub fn revoke(&self, id: &RevocationId) {
        let mut inner = self.inner();
        if inner.revoked.len() == REVOKED_MAX {
            inner.key = KeyPair::generate(&mut OsRng);
            inner.revoked.clear();
        }
        inner.revoked.insert(*id.as_bytes());
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use key_tree::Clock;

    use super::*;

    fn now() -> Now {
        Clock::resume(Timestamp::from_unix(1000), Duration::ZERO).now(Timestamp::default(), Duration::ZERO)
    }

    const STATUS: ApiRequest<'static> = ApiRequest { method: "GET", path: "/status", vm: None };

    #[test]
    fn a_token_is_good_until_it_is_over_or_revoked() {
        let tokens = Tokens::default();
        let minted = tokens.mint(&Scope::Monitor, 60, now()).unwrap();
        assert_eq!(tokens.permits(&minted.token, STATUS, now()), Ok(()));
        assert!(tokens.permits(&tokens.mint(&Scope::Monitor, 0, now()).unwrap().token, STATUS, now()).is_err());
        assert!(Tokens::default().permits(&minted.token, STATUS, now()).is_err(), "another agent's");
        tokens.revoke(&minted.id);
        assert_eq!(tokens.permits(&minted.token, STATUS, now()), Err(TokenError::Revoked));
    }

    #[test]
    fn what_is_forgotten_of_revoked_tokens_does_not_come_back() {
        let tokens = Tokens::default();
        let minted = tokens.mint(&Scope::Monitor, 60, now()).unwrap();
        tokens.revoke(&minted.id);
        for number in 0..u64::try_from(REVOKED_MAX).unwrap() {
            let mut id = [0; 64];
            id[..8].copy_from_slice(&number.to_le_bytes());
            tokens.revoke(&RevocationId::from_bytes(id));
        }
        assert!(tokens.permits(&minted.token, STATUS, now()).is_err());
        assert!(tokens.inner().revoked.len() <= REVOKED_MAX);
    }
}

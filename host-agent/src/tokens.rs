//! The agent's API tokens: who gets one, and what one is worth. What a token is, `key-tree` says.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use key_tree::{ApiRequest, Clock, KeyPair, Now, RevocationId, Scope, Timestamp, Token, TokenError, rand_core::OsRng};
use nix::time::{ClockId, clock_gettime};

/// Revoked tokens that are remembered; when there are more, all tokens are made worthless by a new key.
const REVOKED_MAX: usize = 4096;

/// The tokens.
#[derive(Debug)]
pub struct Tokens(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    key: KeyPair,
    clock: Clock,
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
        let clock = Clock::resume(Timestamp::default(), monotonic());
        Tokens(Mutex::new(Inner { key: KeyPair::generate(&mut OsRng), clock, revoked: BTreeSet::new() }))
    }
}

impl Tokens {
    /// Makes a token for `seconds`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn mint(&self, scope: &Scope, seconds: u64) -> Result<Minted, TokenError> {
        let mut inner = self.inner();
        let until = inner.now().timestamp().after(seconds);
        let token = Token::mint(&inner.key, scope, until, &mut OsRng)?;
        let id = token.revocation_ids().next().ok_or(TokenError::Kind)?;
        Ok(Minted { token: token.to_text()?, id, until })
    }

    /// Whether `token` allows `request` now.
    ///
    /// # Errors
    /// Says what is against it.
    pub fn permits(&self, token: &str, request: ApiRequest<'_>) -> Result<(), TokenError> {
        let (key, now, revoked) = {
            let mut inner = self.inner();
            (inner.key.public(), inner.now(), inner.revoked.clone())
        };
        Token::read(token, &key)?.permits(request, now, &|id| revoked.contains(id.as_bytes()))
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

impl Inner {
    fn now(&mut self) -> Now {
        self.clock.now(wall(), monotonic())
    }
}

fn wall() -> Timestamp {
    Timestamp::from_unix(std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs())
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: ApiRequest<'static> = ApiRequest { method: "GET", path: "/status", vm: None };

    #[test]
    fn a_token_is_good_until_it_is_over_or_revoked() {
        let tokens = Tokens::default();
        let minted = tokens.mint(&Scope::Monitor, 60).unwrap();
        assert_eq!(tokens.permits(&minted.token, STATUS), Ok(()));
        assert!(tokens.permits(&tokens.mint(&Scope::Monitor, 0).unwrap().token, STATUS).is_err());
        assert!(Tokens::default().permits(&minted.token, STATUS).is_err(), "another agent's");
        tokens.revoke(&minted.id);
        assert_eq!(tokens.permits(&minted.token, STATUS), Err(TokenError::Revoked));
    }

    #[test]
    fn what_is_forgotten_of_revoked_tokens_does_not_come_back() {
        let tokens = Tokens::default();
        let minted = tokens.mint(&Scope::Monitor, 60).unwrap();
        tokens.revoke(&minted.id);
        for number in 0..u64::try_from(REVOKED_MAX).unwrap() {
            let mut id = [0; 64];
            id[..8].copy_from_slice(&number.to_le_bytes());
            tokens.revoke(&RevocationId::from_bytes(id));
        }
        assert!(tokens.permits(&minted.token, STATUS).is_err());
        assert!(tokens.inner().revoked.len() <= REVOKED_MAX);
    }
}

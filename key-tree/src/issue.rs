//! Issuing a grant: a parent makes a child's key valid.

use rand_core::CryptoRngCore;

use crate::{Chain, ChainError, KeyPair, Now, PublicKey, Refusal, Terms, Timestamp};

/// Why a grant is not issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The chain is another key's.
    #[error("the chain ends with the key {chain}, and the parent's key is {parent}")]
    NotTheParent {
        /// The key at the end of the chain.
        chain: PublicKey,
        /// The key that was to sign.
        parent: PublicKey,
    },
    /// The parent's own chain is not live.
    #[error("the parent may not grant now")]
    Parent(#[source] Refusal),
    /// The grant would be over before it begins to be used.
    #[error("the grant would have ended at {0}, which is past")]
    Past(Timestamp),
    /// The grant would break a law of the tree.
    #[error("the grant would break a law of the tree")]
    Law(#[source] ChainError),
    /// The token could not be made.
    #[error("the token could not be made: {0}")]
    Token(String),
}

/// Makes the key `child` valid: signs a grant of these `terms` with `parent`, whose own chain is `chain`.
///
/// Returns `chain` with the grant at its end; it has been read back, so whoever reads it later comes to the same. The
/// child's secret is not needed, and should be where it is used. `rng` is for the key that Biscuit puts in a token for
/// appending to it; it is gone when the token is sealed.
///
/// # Errors
/// When `chain` is not that of `parent` or not live at `now`, or the grant would break a law of the tree.
pub fn issue(
    parent: &KeyPair,
    chain: &Chain,
    child: &PublicKey,
    terms: &Terms,
    now: Now,
    rng: &mut impl CryptoRngCore,
) -> Result<Chain, IssueError> {
    if chain.key() != parent.public() {
        return Err(IssueError::NotTheParent { chain: chain.key(), parent: parent.public() });
    }
    chain.live(now, &|_| false).map_err(IssueError::Parent)?;
    let end = terms.validity().end();
    if end <= now.timestamp() {
        return Err(IssueError::Past(end));
    }
    let symbols = biscuit_auth::datalog::SymbolTable::new();
    let token = terms
        .to_token(child)
        .and_then(|builder| builder.build_with_rng(&parent.to_biscuit(), symbols, rng))
        .and_then(|token| token.seal())
        .and_then(|token| token.to_vec())
        .map_err(|error| IssueError::Token(error.to_string()))?;
    chain.extend(&token).map_err(IssueError::Law)
}

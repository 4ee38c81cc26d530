//! The scramble key tree: identities that expire by themselves. No I/O and no clock: the time and the randomness are
//! parameters.
//!
//! ```text
//! root ──grant──► host ──grant──► VM ──grant──► session | onion service | DHT node | signing | SSH
//! sealed, split   31 days         a day         a day at most
//!                   └───────────────grant─────► the host's own purposes
//! ```
//!
//! Every key is random ([`KeyPair::generate`]); none is derived from another. What makes a key valid is a [`Grant`]: a
//! Biscuit token that its parent signed and that names the child's public key, its level, its time, and, as Datalog
//! checks, what it may do. [`issue()`] makes one, of [`Terms`]. A key is used with
//!
//! 1. its [`Chain`] of grants from a trusted root, which is read once and keeps the laws of the tree;
//! 2. a [`Proof`] that the key is at hand, for a [`Challenge`] of who is asked;
//! 3. an [`Operation`], which every grant of the chain has to permit;
//! 4. the time, from a [`Clock`] that never goes backward;
//! 5. what was revoked, by [`RevocationId`], as a question to the caller.
//!
//! [`Chain::verify`] takes the five and gives a [`Permit`], or a [`Refusal`] that says at which level, and why.
//!
//! # What is stored
//!
//! By the caller: the secrets of the keys it owns, sealed; the bytes of grants, which are not secret; the revoked
//! identifiers, each at least until its grant's end; [`Clock::floor`].
//!
//! # What can be recovered
//!
//! The root, and nothing else: everything below is replaced instead. [`RootKey::seal`] seals it with a passphrase,
//! [`RootKey::split`] splits it into shares for paper, as words and as QR codes.
//!
//! # Bounds
//!
//! A grant has at most [`GRANT_BYTES_MAX`] bytes, a chain at most three grants (so many levels there are below the
//! root), and what its Datalog may cost is bounded before it is evaluated (module `datalog`).

mod chain;
mod datalog;
mod grant;
mod issue;
mod key;
mod level;
mod operation;
mod possession;
mod refusal;
mod root;
mod rotation;
mod seal;
mod shares;
mod terms;
mod time;
mod token;
mod view;
mod words;

pub use age::secrecy;
pub use rand_core;

pub use crate::{
    chain::{Chain, ChainError, Permit},
    datalog::{DATALOG_BYTES_MAX, DatalogError},
    grant::{GRANT_BYTES_MAX, Grant, GrantError, RevocationId, RevocationIdError},
    issue::{IssueError, issue},
    key::{KEY_BYTES, KeyError, KeyPair, PublicKey, SIGNATURE_BYTES, Signature},
    level::{Level, NAME_BYTES_MAX, Name, NameError, Purpose},
    operation::{Country, CountryError, Operation},
    possession::{CHALLENGE_SECONDS, Challenge, NONCE_BYTES, Nonce, PossessionError, Proof},
    refusal::{Refusal, Why},
    root::RootKey,
    rotation::{Rotation, Stage},
    seal::{SealError, WORK_FACTOR, WORK_FACTOR_MAX},
    shares::{SHARES_MAX, Share, SharesError},
    terms::Terms,
    time::{Clock, Now, Timestamp, Validity, Weekday},
    token::{ApiRequest, Scope, TOKEN_BYTES_MAX, Token, TokenError, narrow},
    view::{Branch, State},
    words::{SHARE_WORDS, WordsError},
};

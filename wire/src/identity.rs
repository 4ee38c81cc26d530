//! What a VM asks about itself, and what it is answered.
//!
//! The VM asks its gateway by HTTP; the router passes the question on over the control connection, with the VM's name,
//! and the host agent answers. Contents never cross it: what is to be signed is named by its SHA-256. Both ends bound
//! how many questions are on their way.
//!
//! The agent believes the router which VM asks. A router that was taken over can ask in the name of any VM that it serves,
//! and gets what that VM would get: signatures within its grants, and nothing that outlives them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::VmName;

/// Bytes of the longest body of an answer: a signature is a few thousand.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What a VM asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// Who am I?
    Who,
    /// Which onion services do I have?
    Onions,
    /// Sign this.
    Sign {
        /// The SHA-256 of what is to be signed.
        sha256: Sha256,
    },
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// Who it is.
    Who(Identity),
    /// Its onion services.
    Onions(Vec<OnionService>),
    /// The signature.
    Signed(Signature),
    /// Nothing.
    Refused {
        /// Why.
        why: Refusal,
        /// In words, with what to do.
        detail: String,
    },
}

/// Who a VM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its name.
    pub name: VmName,
    /// Its public key, in hexadecimal digits.
    pub key: String,
    /// When its grant ends, in seconds since the Unix epoch; a successor follows by itself.
    pub until: u64,
    /// Its own grant, and those of its purposes.
    pub grants: Vec<Grant>,
}

/// What a key may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// `vm`, or a purpose: `session`, `onion-service`, `dht-node`, `signing`, `ssh`.
    pub level: String,
    /// The VM's name, or `VM/PURPOSE/NAME`.
    pub name: String,
    /// The public key, in hexadecimal digits.
    pub key: String,
    /// When it ends, in seconds since the Unix epoch.
    pub until: u64,
    /// Why it cannot be used; none when it can.
    pub why: Option<String>,
    /// What it permits, as Datalog.
    pub checks: Vec<String>,
}

/// An onion service of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnionService {
    /// What it is called.
    pub name: String,
    /// Its address, with `.onion`.
    pub onion: String,
}

/// A signature as `oht key sign` makes it and `oht key verify` reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The root's public key.
    pub root: String,
    /// The grants, from the top, in hexadecimal digits.
    pub grants: Vec<String>,
    /// The signature itself, in hexadecimal digits.
    pub signature: String,
}

/// Why a VM is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No grant permits it.
    Forbidden,
    /// It has no key.
    NotFound,
    /// The key store is locked.
    Locked,
    /// It asks too often.
    TooMany,
    /// Something failed.
    Failed,
    /// Too much is asked at a time, or nobody is there to answer.
    Unavailable,
    /// Nobody answered in time.
    TimedOut,
}

impl Refusal {
    /// As a status of HTTP, and its name.
    #[must_use]
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Refusal::Forbidden => (403, "Forbidden"),
            Refusal::NotFound => (404, "Not Found"),
            Refusal::Locked => (423, "Locked"),
            Refusal::TooMany => (429, "Too Many Requests"),
            Refusal::Failed => (500, "Internal Server Error"),
            Refusal::Unavailable => (503, "Service Unavailable"),
            Refusal::TimedOut => (504, "Gateway Timeout"),
        }
    }

    /// The answer that says this.
    #[must_use]
    pub fn because(self, detail: impl Into<String>) -> Answer {
        Answer::Refused { why: self, detail: detail.into() }
    }
}

impl Answer {
    /// The status of HTTP that the answer has, and its name.
    #[must_use]
    pub fn status(&self) -> (u16, &'static str) {
        match self {
            Answer::Who(_) | Answer::Onions(_) | Answer::Signed(_) => (200, "OK"),
            Answer::Refused { why, .. } => why.status(),
        }
    }

    /// The answer as JSON: a problem document (RFC 9457) where it is a refusal.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let body = match self {
            Answer::Who(identity) => serde_json::to_vec_pretty(identity),
            Answer::Onions(services) => serde_json::to_vec_pretty(services),
            Answer::Signed(signature) => serde_json::to_vec_pretty(signature),
            Answer::Refused { detail, .. } => Ok(problem(self.status(), detail)),
        };
        // Fails only for maps whose keys are no texts.
        body.unwrap_or_default()
    }
}

/// A problem document (RFC 9457).
#[must_use]
pub fn problem((status, title): (u16, &str), detail: &str) -> Vec<u8> {
    let problem = serde_json::json!({ "type": "about:blank", "title": title, "status": status, "detail": detail });
    problem.to_string().into_bytes()
}

/// A SHA-256, written with 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sha256(pub [u8; 32]);

/// A text that is no SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 is written with 64 hexadecimal digits")]
pub struct NoSha256;

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256 {
    type Err = NoSha256;

    fn from_str(text: &str) -> Result<Sha256, NoSha256> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(NoSha256);
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Sha256(bytes))
    }
}

fn digit(byte: u8) -> Result<u8, NoSha256> {
    let digit = char::from(byte).to_digit(16).ok_or(NoSha256)?;
    u8::try_from(digit).map_err(|_| NoSha256)
}

impl TryFrom<String> for Sha256 {
    type Error = NoSha256;

    fn try_from(text: String) -> Result<Sha256, NoSha256> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(sha256: Sha256) -> String {
        sha256.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_as_they_are_written_and_nothing_else_is_one() {
        let sha256 = Sha256(std::array::from_fn(|n| n as u8 * 8 + 1));
        assert_eq!(sha256.to_string().parse(), Ok(sha256));
        assert_eq!(sha256.to_string().to_uppercase().parse(), Ok(sha256));
        for wrong in [String::new(), "0".repeat(63), "0".repeat(65), "0".repeat(66), "g".repeat(64), "+0".repeat(32)] {
            assert_eq!(wrong.parse::<Sha256>(), Err(NoSha256), "{wrong}");
        }
        assert!(serde_json::from_str::<Question>(r#"{"sign":{"sha256":"00"}}"#).is_err());
        assert!(serde_json::from_str::<Question>(r#"{"sign":{"sha256":"00","more":1}}"#).is_err());
    }

    #[test]
    fn refusals_are_problem_documents() {
        let refused = Refusal::Locked.because("a \"quoted\" reason");
        assert_eq!(refused.status().0, 423);
        let problem: serde_json::Value = serde_json::from_slice(&refused.body()).unwrap();
        assert_eq!((&problem["status"], &problem["title"]), (&423.into(), &"Locked".into()));
        assert_eq!(problem["detail"], "a \"quoted\" reason");
    }
}

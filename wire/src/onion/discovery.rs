//! The public key of a client of a restricted service, in C tor's format (tor(1), "CLIENT AUTHORIZATION").

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

const PREFIX: &str = "descriptor:x25519:";

/// An X25519 public key, written `descriptor:x25519:BASE32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiscoveryKey([u8; 32]);

/// Why a text is not such a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryKeyError {
    /// Something else.
    #[error("a client's key is written {PREFIX} and 52 letters and digits: `oht onion client new` makes one")]
    Shape,
    /// What the client keeps for itself.
    #[error("this is the client's own line, which nobody else may see: the service gets the other one")]
    Private,
}

impl DiscoveryKey {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for DiscoveryKey {
    fn from(bytes: [u8; 32]) -> DiscoveryKey {
        DiscoveryKey(bytes)
    }
}

impl FromStr for DiscoveryKey {
    type Err = DiscoveryKeyError;

    fn from_str(text: &str) -> Result<DiscoveryKey, DiscoveryKeyError> {
        if text.contains(&format!(":{PREFIX}")) {
            return Err(DiscoveryKeyError::Private);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(DiscoveryKeyError::Shape)?.to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(encoded.as_bytes()).map_err(|_| DiscoveryKeyError::Shape)?;
        bytes.try_into().map(DiscoveryKey).map_err(|_| DiscoveryKeyError::Shape)
    }
}

impl TryFrom<String> for DiscoveryKey {
    type Error = DiscoveryKeyError;

    fn try_from(text: String) -> Result<DiscoveryKey, DiscoveryKeyError> {
        text.parse()
    }
}

impl From<DiscoveryKey> for String {
    fn from(key: DiscoveryKey) -> String {
        key.to_string()
    }
}

impl fmt::Display for DiscoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text_and_nothing_else_is_one() {
        let key = DiscoveryKey::from([0xa5; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().replacen(PREFIX, "", 1).len(), 52);
        let lower = "descriptor:x25519:dz4q5xqlb4ldnbs72iarrml4ephk3du4i7o2cgiva5lwr6wkquja";
        assert!(lower.parse::<DiscoveryKey>().is_ok());
        for text in ["", PREFIX, "descriptor:x25519:aa==", "descriptor:ed25519:aa", &format!("{lower}a"), &lower[1..]] {
            assert_eq!(text.parse::<DiscoveryKey>(), Err(DiscoveryKeyError::Shape), "{text}");
        }
        assert_eq!(format!("abc:{lower}").parse::<DiscoveryKey>(), Err(DiscoveryKeyError::Private));
    }
}

//! Which Tor network to use: the public one or a private one. A file of this shape goes to `oht up --tor-network`.

use std::{collections::BTreeSet, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// How many directory caches a network may name at most.
pub const CACHES_MAX: usize = 1024;

/// A Tor network, as far as a client must know it before it has a consensus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorNetwork {
    /// What people call it: `public`, or any other word.
    pub name: String,
    /// The authorities' identities: RSA identity of the v3 identity key, 40 hexadecimal digits
    /// (dir-spec, section 1.1 and `dir-key-certification`). A consensus counts when more than half signed it.
    pub authorities: Vec<String>,
    /// Where to fetch the first consensus.
    pub caches: Vec<DirectoryCache>,
    /// Whether relays and targets may have loopback and private addresses: only in a test network.
    #[serde(default)]
    pub local_addresses: bool,
}

/// A relay that serves directory documents (a "fallback directory").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryCache {
    /// RSA identity, 40 hexadecimal digits.
    pub rsa: String,
    /// Ed25519 identity, unpadded base64.
    pub ed25519: String,
    /// Its ORPorts.
    pub orports: Vec<SocketAddr>,
}

/// Why a description is not one of a Tor network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Not the JSON that is expected.
    #[error("the Tor network's description does not parse")]
    Json(#[source] serde_json::Error),
    /// A field with a wrong value.
    #[error("the Tor network's description is wrong: {0}")]
    Value(String),
}

impl TorNetwork {
    /// Parses and checks a description.
    ///
    /// # Errors
    /// When it is not JSON of this shape, or names no authority or no cache, or an identity that is none.
    pub fn from_json(json: &[u8]) -> Result<TorNetwork, NetworkError> {
        let network: TorNetwork = serde_json::from_slice(json).map_err(NetworkError::Json)?;
        network.check().map_err(NetworkError::Value)?;
        Ok(network)
    }

    /// The addresses that may be dialled before there is a consensus.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<SocketAddr> {
        self.caches.iter().flat_map(|cache| cache.orports.iter().copied()).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.authorities.is_empty() || self.caches.is_empty() {
            return Err("it needs at least one authority and one directory cache".into());
        }
        if self.caches.len() > CACHES_MAX {
            return Err(format!("it has more than {CACHES_MAX} directory caches"));
        }
        for identity in self.authorities.iter().chain(self.caches.iter().map(|cache| &cache.rsa)) {
            if identity.len() != 40 || !identity.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("{identity:?} is no RSA identity (40 hexadecimal digits)"));
            }
        }
        for cache in &self.caches {
            if cache.ed25519.len() != 43 {
                return Err(format!("{:?} is no Ed25519 identity (43 characters of base64)", cache.ed25519));
            }
            if cache.orports.is_empty() {
                return Err(format!("the directory cache {} has no ORPort", cache.rsa));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> TorNetwork {
        TorNetwork {
            name: "test".into(),
            authorities: vec!["A".repeat(40)],
            caches: vec![DirectoryCache {
                rsa: "0123456789abcdef0123456789ABCDEF01234567".into(),
                ed25519: "x".repeat(43),
                orports: vec!["127.20.0.1:5000".parse().unwrap()],
            }],
            local_addresses: true,
        }
    }

    #[test]
    fn a_good_description_survives_json() {
        let json = serde_json::to_vec(&sample()).unwrap();
        assert_eq!(TorNetwork::from_json(&json).unwrap(), sample());
        assert_eq!(sample().addresses().len(), 1);
    }

    #[test]
    fn bad_descriptions_say_what_is_wrong() {
        let broken = |change: fn(&mut TorNetwork)| {
            let mut network = sample();
            change(&mut network);
            TorNetwork::from_json(&serde_json::to_vec(&network).unwrap()).unwrap_err().to_string()
        };
        assert!(broken(|n| n.authorities.clear()).contains("at least one authority"));
        assert!(broken(|n| n.authorities[0].push('0')).contains("no RSA identity"));
        assert!(broken(|n| n.caches[0].rsa = "g".repeat(40)).contains("no RSA identity"));
        assert!(broken(|n| n.caches[0].ed25519.clear()).contains("no Ed25519 identity"));
        assert!(broken(|n| n.caches[0].orports.clear()).contains("no ORPort"));
        assert!(matches!(TorNetwork::from_json(b"{\"name\":\"x\",\"what\":1}"), Err(NetworkError::Json(_))));
    }
}

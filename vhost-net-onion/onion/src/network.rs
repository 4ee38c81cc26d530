//! Between the wire's description of a Tor network and arti's configuration.

use arti_client::config::dir::{FallbackDir, NetworkConfig};
use tor_linkspec::{HasAddrs, HasRelayIdsLegacy};
use tor_llcrypto::pk::{ed25519::Ed25519Identity, rsa::RsaIdentity};
use wire::network::{DirectoryCache, TorNetwork};

use crate::client::OnionError;

/// The authorities and directory caches of the public Tor network, as arti ships them.
///
/// # Panics
/// Never: arti's own defaults build.
#[must_use]
pub fn public_network() -> TorNetwork {
    let config = NetworkConfig::builder().build().expect("arti's defaults are a configuration");
    TorNetwork {
        name: "public".into(),
        authorities: config.authorities().v3idents().iter().map(hex).collect(),
        caches: config.fallback_caches().iter().map(cache).collect(),
        local_addresses: false,
    }
}

/// 40 hexadecimal digits, upper case as in C tor's files.
pub(crate) fn hex(identity: &RsaIdentity) -> String {
    identity.as_bytes().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The builders that arti's `NetworkConfig` takes: authorities, caches.
pub(crate) fn arti_network(
    network: &TorNetwork,
) -> Result<(Vec<RsaIdentity>, Vec<arti_client::config::dir::FallbackDirBuilder>), OnionError> {
    let rsa = |text: &str| RsaIdentity::from_hex(text).ok_or_else(|| OnionError::Identity(text.to_owned()));
    let authorities = network.authorities.iter().map(|text| rsa(text)).collect::<Result<_, _>>()?;
    let caches = network
        .caches
        .iter()
        .map(|cache| {
            let ed25519 = Ed25519Identity::from_base64(&cache.ed25519);
            let mut builder = FallbackDir::builder();
            builder
                .rsa_identity(rsa(&cache.rsa)?)
                .ed_identity(ed25519.ok_or_else(|| OnionError::Identity(cache.ed25519.clone()))?);
            cache.orports.iter().for_each(|orport| builder.orports().push(*orport));
            Ok(builder)
        })
        .collect::<Result<_, OnionError>>()?;
    Ok((authorities, caches))
}

fn cache(fallback: &FallbackDir) -> DirectoryCache {
    DirectoryCache {
        rsa: hex(fallback.rsa_identity()),
        ed25519: fallback.ed_identity().to_string(),
        orports: fallback.addrs().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_network_survives_the_wire_and_comes_back_to_arti() {
        let network = public_network();
        assert!(network.authorities.len() > 5 && network.caches.len() > 50);
        let json = serde_json::to_vec(&network).unwrap();
        let (authorities, caches) = arti_network(&TorNetwork::from_json(&json).unwrap()).unwrap();
        assert_eq!((authorities.len(), caches.len()), (network.authorities.len(), network.caches.len()));
    }
}

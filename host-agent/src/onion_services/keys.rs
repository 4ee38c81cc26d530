//! Secrets of onion services: the seeds of their identities, and X25519 keys for restricted ones.
//!
//! All are in memory only, and wiped with the agent.

use std::collections::BTreeMap;

use chacha20poly1305::aead::{OsRng, rand_core::RngCore};
use key_tree::KeyPair;
use wire::{
    VmName,
    onion::{DiscoveryKey, OnionAddress, Secret, ServiceName},
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// What stands before a client's key in C tor's files (tor(1), "CLIENT AUTHORIZATION").
const CLIENT_PREFIX: &str = "descriptor:x25519:";

/// The seeds of the services' identities.
#[derive(Default)]
pub struct ServiceKeys(BTreeMap<(VmName, ServiceName), Secret>);

impl ServiceKeys {
    /// The seed of a service's identity: made the first time, the same from then on.
    #[must_use]
    pub fn service_key(&mut self, vm: &VmName, service: &ServiceName) -> Secret {
        let key = self.0.entry((vm.clone(), service.clone()));
        key.or_insert_with(|| Secret::from(*KeyPair::generate(&mut OsRng).secret())).clone()
    }

    /// Forgets the seeds of all services but those that are kept.
    pub fn retain(&mut self, is_kept: impl Fn(&VmName, &ServiceName) -> bool) {
        self.0.retain(|(vm, service), _| is_kept(vm, service));
    }
}

/// The address that a seed gives.
#[must_use]
pub fn address(key: &Secret) -> OnionAddress {
    OnionAddress::of(KeyPair::from_secret(key.as_bytes()).public().as_bytes())
}

/// A new key of a client: what it keeps for itself, and what the service gets.
#[must_use]
pub fn new_client() -> (Secret, DiscoveryKey) {
    let mut bytes = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(&mut bytes[..]);
    let secret = StaticSecret::from(*bytes);
    (Secret::from(secret.to_bytes()), DiscoveryKey::from(PublicKey::from(&secret).to_bytes()))
}

/// The client's own line, as C tor has it in `.auth_private` files when the service is known.
#[must_use]
pub fn client_line(onion: Option<&OnionAddress>, secret: &Secret) -> Zeroizing<String> {
    let onion = onion.map_or_else(String::new, |onion| format!("{}:", onion.label()));
    Zeroizing::new(format!("{onion}{CLIENT_PREFIX}{}", *secret.to_base32()))
}

/// Why a text is not a client's key for a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientLineError {
    /// Something else.
    #[error("a client's key is the line that `oht onion client new` prints for the client, or C tor's .auth_private")]
    Shape,
    /// For another service.
    #[error("this key is for another onion service than the one that was named")]
    OtherService,
}

/// Reads a client's line, with or without what stands before the key.
///
/// # Errors
/// When it is something else, or for another service than `onion`.
pub fn parse_client_line(line: &str, onion: &OnionAddress) -> Result<Secret, ClientLineError> {
    let line = line.trim();
    let key = match line.split_once(CLIENT_PREFIX) {
        None | Some(("", _)) => line.strip_prefix(CLIENT_PREFIX).unwrap_or(line),
        Some((of, key)) => {
            let of: OnionAddress = of.trim_end_matches(':').parse().map_err(|_| ClientLineError::Shape)?;
            if of != *onion {
                return Err(ClientLineError::OtherService);
            }
            key
        }
    };
    Secret::from_base32(key).ok_or(ClientLineError::Shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONION: &str = "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion";

    #[test]
    fn a_service_keeps_its_key_and_a_new_one_has_another() {
        let (vm, web, ssh) = ("a".parse().unwrap(), "web".parse().unwrap(), "ssh".parse().unwrap());
        let mut keys = ServiceKeys::default();
        let first = keys.service_key(&vm, &web);
        assert_eq!(keys.service_key(&vm, &web), first);
        assert_ne!(keys.service_key(&vm, &ssh), first);
        assert_eq!(address(&first).label().len(), 56);
        keys.retain(|_, service| *service == ssh);
        assert_ne!(keys.service_key(&vm, &web), first);
    }

    /// Both halves of a pair as C tor's manual would have them made.
    #[test]
    fn the_client_keeps_the_private_half() {
        let (secret, public) = new_client();
        let derived = PublicKey::from(&StaticSecret::from(*secret.as_bytes()));
        assert_eq!(derived.to_bytes(), *public.as_bytes());
        let onion: OnionAddress = ONION.parse().unwrap();
        let line = client_line(Some(&onion), &secret);
        assert!(line.starts_with(&format!("{}:descriptor:x25519:", onion.label())), "not as C tor has it");
        assert!(line.parse::<DiscoveryKey>().is_err(), "never taken for the service's half");
        for line in [line, client_line(None, &secret), secret.to_base32()] {
            assert_eq!(parse_client_line(&format!("{}\n", *line), &onion), Ok(secret.clone()));
        }
    }

    #[test]
    fn other_lines_are_refused() {
        let (onion, (secret, _)) = (ONION.parse().unwrap(), new_client());
        let other = OnionAddress::of(&[9; 32]);
        let line = client_line(Some(&other), &secret);
        assert_eq!(parse_client_line(&line, &onion), Err(ClientLineError::OtherService));
        for line in ["", "descriptor:x25519:", "x:descriptor:x25519:AAAA", "descriptor:ed25519:AAAA", "ä"] {
            assert_eq!(parse_client_line(line, &onion), Err(ClientLineError::Shape), "{line}");
        }
    }
}

//! Keys for restricted onion services, kept apart by who may use them.
//!
//! Arti looks the key for a service up in its keystore, which has one for each service and is shared by all who use the
//! client. So that nobody reaches a service with another's key, whoever connects to such a service *enters* it first,
//! and stays until the stream is open:
//!
//! | who has a key for the service | who enters | what happens |
//! | --- | --- | --- |
//! | nobody | anybody | goes on, as to any service |
//! | somebody | who has none | unreachable, as without a key |
//! | somebody | who has one | waits for those with other keys, puts its own into the keystore, goes on |
//!
//! Those with the same key go on together. The lock is fair, so those with different keys take turns.
//!
//! A key is in the keystore, which is in memory only, for as long as anybody holds a [`ClientKey`] for that service.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use arti_client::KeystoreSelector;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tor_hscrypto::pk::{HsClientDescEncSecretKey, HsId};
use tor_llcrypto::pk::curve25519::StaticSecret;
use wire::onion::{OnionAddress, Secret};

use crate::{client::Client, failure::ConnectError};

/// The services that somebody has a key for.
pub(crate) struct Discovery {
    client: Client,
    slots: Mutex<HashMap<HsId, Weak<Slot>>>,
}

/// The place in the keystore for one service.
struct Slot {
    onion: HsId,
    discovery: Weak<Discovery>,
    /// Whose key is in it; held by those who use it.
    present: Arc<RwLock<Option<Secret>>>,
}

/// A key, and with it the right to use the service's place.
#[derive(Clone)]
pub(crate) struct ClientKey {
    secret: Secret,
    slot: Arc<Slot>,
}

/// Held while a stream is being opened: the right key stays in the keystore.
pub(crate) struct Entered {
    _present: OwnedRwLockReadGuard<Option<Secret>>,
    _slot: Arc<Slot>,
}

/// The service that a host name leads to, if it is an onion service's, or a subdomain's of one.
pub(crate) fn hsid_of(host: &str) -> Option<HsId> {
    let mut labels = host.trim_end_matches('.').rsplit('.');
    let (suffix, label) = (labels.next()?, labels.next()?);
    let address: OnionAddress = format!("{label}.{suffix}").parse().ok()?;
    address.as_str().parse().ok()
}

impl Discovery {
    /// Nobody has a key.
    pub(crate) fn new(client: Client) -> Discovery {
        Discovery { client, slots: Mutex::default() }
    }

    /// A key for a service.
    pub(crate) fn key(self: &Arc<Discovery>, onion: HsId, secret: &Secret) -> ClientKey {
        let mut slots = self.slots();
        let slot = slots.get(&onion).and_then(Weak::upgrade).unwrap_or_else(|| {
            let slot = Arc::new(Slot { onion, discovery: Arc::downgrade(self), present: Arc::default() });
            slots.insert(onion, Arc::downgrade(&slot));
            slot
        });
        ClientKey { secret: secret.clone(), slot }
    }

    /// Makes the keystore ready for a stream to a service; `key_for` gives the key of who opens it.
    ///
    /// # Errors
    /// When others have a key for it and this one has none.
    pub(crate) async fn enter(
        &self,
        onion: Option<HsId>,
        key_for: impl FnOnce(&HsId) -> Option<ClientKey>,
    ) -> Result<Option<Entered>, ConnectError> {
        let Some(onion) = onion else { return Ok(None) };
        match key_for(&onion) {
            Some(key) => self.enter_with(key).await.map(Some),
            None if self.is_restricted(&onion) => Err(ConnectError::Unreachable),
            None => Ok(None),
        }
    }

    async fn enter_with(&self, ClientKey { secret, slot }: ClientKey) -> Result<Entered, ConnectError> {
        let present = Arc::clone(&slot.present).read_owned().await;
        if present.as_ref() == Some(&secret) {
            return Ok(Entered { _present: present, _slot: slot });
        }
        drop(present);
        let mut present = Arc::clone(&slot.present).write_owned().await;
        if present.as_ref() != Some(&secret) {
            *present = None;
            self.replace(slot.onion, &secret)?;
            *present = Some(secret);
        }
        Ok(Entered { _present: OwnedRwLockWriteGuard::downgrade(present), _slot: slot })
    }

    /// Puts a key into the keystore, whoever's was there.
    fn replace(&self, onion: HsId, secret: &Secret) -> Result<(), ConnectError> {
        let failed = |error: arti_client::Error| {
            tracing::error!(%error, "a key for an onion service cannot be used");
            ConnectError::Unreachable
        };
        let _turn = self.slots();
        self.client.remove_service_discovery_key(KeystoreSelector::Primary, onion).map_err(failed)?;
        let key = HsClientDescEncSecretKey::from(StaticSecret::from(*secret.as_bytes()));
        self.client.insert_service_discovery_key(KeystoreSelector::Primary, onion, key).map_err(failed)?;
        Ok(())
    }

    fn is_restricted(&self, onion: &HsId) -> bool {
        self.slots().get(onion).is_some_and(|slot| slot.strong_count() > 0)
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<HsId, Weak<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    /// The last key for the service is gone: so is its place, unless somebody has just made it anew.
    fn drop(&mut self) {
        let Some(discovery) = self.discovery.upgrade() else { return };
        let mut slots = discovery.slots();
        if slots.get(&self.onion).is_some_and(|slot| slot.strong_count() == 0) {
            slots.remove(&self.onion);
            let _ = discovery.client.remove_service_discovery_key(KeystoreSelector::Primary, self.onion);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_known_by_their_names_and_those_of_subdomains() {
        let label = "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd";
        let onion = hsid_of(&format!("{label}.onion"));
        assert!(onion.is_some());
        for name in [format!("www.{label}.onion"), format!("{label}.ONION"), format!("{label}.onion.")] {
            assert_eq!(hsid_of(&name), onion, "{name}");
        }
        for name in ["", "onion", "short.onion", "example.com", &format!("{label}.example")] {
            assert_eq!(hsid_of(name), None, "{name}");
        }
    }
}

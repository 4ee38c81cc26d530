//! In which countries relays are, as the host agent says: there is no such table in the router VM.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, PoisonError, RwLock},
};

use tor_linkspec::HasAddrs;
use wire::route::Country;

/// The countries of relays by their IPv4 addresses, which every relay has. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct RelayCountries(Arc<RwLock<HashMap<Ipv4Addr, Country>>>);

impl RelayCountries {
    /// Takes what is known now, in place of what was.
    pub(crate) fn set(&self, known: HashMap<Ipv4Addr, Country>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Where a relay is; `None` where that is not known.
    pub(crate) fn of(&self, relay: &impl HasAddrs) -> Option<Country> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        relay.addrs().find_map(|address| match address.ip() {
            IpAddr::V4(v4) => known.get(&v4).copied(),
            IpAddr::V6(_) => None,
        })
    }
}

//! How the Tor network is entered: through which bridges, and how the first hops of onion services' circuits are kept.
//!
//! A bridge with a pluggable transport is reached through the transport's process, which runs on the host and offers
//! SOCKS5 on a port that differs each time. The router knows a *stand-in* for it, an address that is dialled like a relay's
//! and that the uplink turns into the real one: [`TorEntry::stand_ins`] is the same at both ends, and stays the same when
//! the process is started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::bridge::{Bridge, Transport};

/// How many bridges may be configured: each is connected to.
pub const BRIDGES_MAX: usize = 64;

/// How the Tor network is entered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TorEntry {
    /// The bridges; with one or more, no other relay is connected to. At most [`BRIDGES_MAX`].
    pub bridges: Vec<Bridge>,
    /// How vanguards are used.
    pub vanguards: Vanguards,
}

/// How the second and third hops of onion services' circuits are kept (Tor specifications, vanguards-spec).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vanguards {
    /// The second hop is one of a few for days ("vanguards-lite"): for those who visit onion services, or publish them for
    /// a while.
    #[default]
    Lite,
    /// The second and the third: for those who publish onion services for weeks. Circuits are longer by a hop.
    Full,
}

impl TorEntry {
    /// The address that stands for each transport that a bridge needs.
    #[must_use]
    pub fn stand_ins(&self) -> BTreeMap<Transport, SocketAddr> {
        let names: BTreeSet<_> = self.bridges.iter().filter_map(Bridge::transport).cloned().collect();
        // Ports of the host's own loopback below BRIDGES_MAX + 1: never dialled, always replaced or refused.
        (1..).zip(names).map(|(port, name)| (name, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))).collect()
    }

    /// The addresses of the bridges that are connected to directly.
    #[must_use]
    pub fn direct(&self) -> BTreeSet<SocketAddr> {
        self.bridges.iter().filter(|bridge| bridge.transport().is_none()).map(Bridge::address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_transport_has_one_stand_in_and_direct_bridges_have_none() {
        let bridge = |start: &str| format!("{start} {}", "A".repeat(40)).parse().unwrap();
        let starts = ["obfs4 192.0.2.1:1", "192.0.2.2:2", "webtunnel 192.0.2.3:3", "obfs4 192.0.2.4:4"];
        let entry = TorEntry { bridges: starts.map(bridge).into(), ..TorEntry::default() };
        let stand_ins = entry.stand_ins();
        let told: Vec<_> = stand_ins.iter().map(|(name, address)| format!("{name} {address}")).collect();
        assert_eq!(told, ["obfs4 127.0.0.1:1", "webtunnel 127.0.0.1:2"]);
        assert_eq!(entry.direct(), ["192.0.2.2:2".parse().unwrap()].into());
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<TorEntry>(&json).unwrap(), entry);
        assert!(!format!("{entry:?}").contains("192.0.2"));
    }
}

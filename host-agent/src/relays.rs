//! Which addresses the uplink may dial: those of the Tor network's description and those of the consensus.
//!
//! The router reports the consensus. It is believed about relays, not about this host: unless the network is a test
//! network, an address that is not on the internet (loopback, private, link-local, …) is never allowed, so that a
//! router that was taken over cannot reach services of the host or its neighbours through the uplink.
//!
//! Where the network is entered through bridges, only they may be dialled: no relay that the router names, and no directory
//! cache. One that needs a pluggable transport is not dialled at all; the transport's stand-in is, for as long as its
//! process listens, and the uplink connects to the process instead. The operator names bridges, so their addresses may be
//! any. What the router reports is kept all the same: it says in which countries exits are.
//!
//! The last list is kept, so that a router that starts from a cached consensus can dial before it reports again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wire::{bridge::Transport, entry::TorEntry, network::TorNetwork};

use crate::{paths::write_atomically, uplink::allow_list::Entry};

/// Addresses of the longest list: four times today's public network with two addresses each.
pub const RELAYS_MAX: usize = 64_000;

/// The allow list in the making.
#[derive(Clone, Debug)]
pub struct Relays {
    network: TorNetwork,
    reported: BTreeSet<SocketAddr>,
    /// The only ones that may be dialled, where there are any.
    bridges: Option<Bridges>,
}

/// What is dialled where the network is entered through bridges.
#[derive(Clone, Debug)]
struct Bridges {
    direct: BTreeSet<SocketAddr>,
    stand_ins: BTreeMap<Transport, SocketAddr>,
    /// Where the transports listen that do.
    listening: BTreeMap<Transport, SocketAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    network: String,
    orports: BTreeSet<SocketAddr>,
}

impl Relays {
    /// The list of `network` entered so, with what was kept of it in the file at `kept`.
    #[must_use]
    pub fn load(network: TorNetwork, entry: &TorEntry, kept: &Path) -> Relays {
        let document = fs::read(kept).ok().and_then(|json| serde_json::from_slice::<Document>(&json).ok());
        let bridges = (!entry.bridges.is_empty()).then(|| Bridges {
            direct: entry.direct(),
            stand_ins: entry.stand_ins(),
            listening: BTreeMap::new(),
        });
        let mut relays = Relays { network, reported: BTreeSet::new(), bridges };
        if let Some(document) = document.filter(|document| document.network == relays.fingerprint()) {
            relays.report(document.orports);
        }
        relays
    }

    /// Takes the router's report, in place of the one before; returns how many addresses were refused.
    pub fn report(&mut self, orports: impl IntoIterator<Item = SocketAddr>) -> usize {
        let local = self.network.local_addresses;
        let mut refused = 0;
        self.reported = orports
            .into_iter()
            .filter(|address| {
                let welcome = address.port() != 0 && (local || is_global(address.ip()));
                refused += usize::from(!welcome);
                welcome
            })
            .take(RELAYS_MAX)
            .collect();
        refused
    }

    /// Keeps the report for the next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, kept: &Path) -> std::io::Result<()> {
        let document = Document { network: self.fingerprint(), orports: self.reported.clone() };
        write_atomically(kept, &serde_json::to_vec(&document)?)
    }

    /// The complete list as a line for the uplink.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        let list: Vec<Entry> = match &self.bridges {
            Some(bridges) => bridges.list(),
            None => self.network.addresses().union(&self.reported).copied().map(Entry::Address).collect(),
        };
        let mut line = serde_json::to_vec(&list).unwrap_or_else(|_| b"[]".to_vec());
        line.push(b'\n');
        line
    }

    /// A transport listens there from now on, or nowhere.
    pub fn transport_is(&mut self, transport: &Transport, listens: Option<SocketAddr>) {
        let Some(bridges) = &mut self.bridges else { return };
        match listens {
            Some(address) => bridges.listening.insert(transport.clone(), address),
            None => bridges.listening.remove(transport),
        };
    }

    /// The IPv4 addresses of all relays that are known.
    #[must_use]
    pub fn v4_addresses(&self) -> BTreeSet<Ipv4Addr> {
        let all = self.network.addresses();
        all.union(&self.reported)
            .filter_map(|orport| match orport.ip() {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            })
            .collect()
    }

    /// Tells networks apart by their authorities: relays of one must not be dialled for another.
    fn fingerprint(&self) -> String {
        let mut authorities: Vec<_> = self.network.authorities.iter().map(|id| id.to_ascii_uppercase()).collect();
        authorities.sort();
        Sha256::digest(authorities.join(" ")).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Bridges {
    /// The bridges that are dialled directly, and the stand-ins of the transports that listen.
    fn list(&self) -> Vec<Entry> {
        let through =
            self.listening.iter().filter_map(|(name, at)| Some(Entry::StandIn(*self.stand_ins.get(name)?, *at)));
        self.direct.iter().copied().map(Entry::Address).chain(through).collect()
    }
}

/// Whether an address is one of the internet's (RFC 6890 and its registries, the parts that hosts route).
fn is_global(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => {
            let head = ip.segments()[0];
            // 2000::/3 is what the internet uses; in it 6to4 and Teredo carry IPv4 addresses that nobody checked.
            head & 0xe000 == 0x2000 && head != 0x2002 && !(head == 0x2001 && ip.segments()[1] < 0x200)
        }
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let special = a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 198 && b & 0xfe == 18)
        || ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast();
    !special
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::network::DirectoryCache;

    fn network(local_addresses: bool, authority: &str) -> TorNetwork {
        TorNetwork {
            name: "test".into(),
            authorities: vec![authority.repeat(40)],
            caches: vec![DirectoryCache {
                rsa: "A".repeat(40),
                ed25519: "x".repeat(43),
                orports: vec!["198.51.100.1:443".parse().unwrap()],
            }],
            local_addresses,
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn list(relays: &Relays) -> BTreeSet<SocketAddr> {
        let line = relays.line();
        assert_eq!(line.last(), Some(&b'\n'));
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn the_list_is_the_description_and_the_last_report() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("relays.json");
        let mut relays = Relays::load(network(false, "A"), &TorEntry::default(), &kept);
        assert_eq!(list(&relays), [address("198.51.100.1:443")].into());
        relays.report([address("203.0.113.1:9001")]);
        relays.report([address("203.0.113.2:9001")]);
        assert_eq!(list(&relays), [address("198.51.100.1:443"), address("203.0.113.2:9001")].into());
        relays.save(&kept).unwrap();
        assert_eq!(list(&Relays::load(network(false, "a"), &TorEntry::default(), &kept)), list(&relays));
        assert_eq!(
            list(&Relays::load(network(false, "B"), &TorEntry::default(), &kept)).len(),
            1,
            "another network's relays are not ours"
        );
        fs::write(&kept, "garbage").unwrap();
        assert_eq!(list(&Relays::load(network(false, "A"), &TorEntry::default(), &kept)).len(), 1);
    }

    #[test]
    fn the_router_cannot_open_the_host_or_its_neighbours() {
        let local = [
            "127.0.0.1:22",
            "0.0.0.0:1",
            "10.0.0.1:1",
            "172.16.0.1:1",
            "192.168.1.1:80",
            "169.254.169.254:80",
            "100.64.0.1:1",
            "198.18.0.1:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[::1]:1",
            "[::]:1",
            "[fe80::1]:1",
            "[fd00::1]:1",
            "[ff02::1]:1",
            "[::ffff:127.0.0.1]:1",
            "[2002:7f00:1::]:1",
            "[2001::1]:1",
            "[64:ff9b::7f00:1]:1",
            "8.8.8.8:0",
        ];
        let mut relays = Relays::load(network(false, "A"), &TorEntry::default(), Path::new("/nowhere"));
        assert_eq!(relays.report(local.map(address)), local.len());
        assert_eq!(list(&relays).len(), 1);
        let global = ["8.8.8.8:1", "172.32.0.1:1", "100.128.0.1:1", "[2a00::1]:1", "[2001:db8::1]:1"];
        assert_eq!(relays.report(global.map(address)), 0);
        let mut relays = Relays::load(network(true, "A"), &TorEntry::default(), Path::new("/nowhere"));
        assert_eq!(relays.report([address("127.0.0.1:22")]), 0, "a test network stands on loopback");
    }

    #[test]
    fn with_bridges_nothing_else_is_dialled() {
        let bridge = |start: &str| format!("{start} {}", "A".repeat(40)).parse().unwrap();
        let bridges = ["203.0.113.9:443", "obfs4 203.0.113.8:443"].map(bridge).into();
        let entry = TorEntry { bridges, ..TorEntry::default() };
        let line = |relays: &Relays| String::from_utf8(relays.line()).unwrap();
        let mut relays = Relays::load(network(false, "A"), &entry, Path::new("/nowhere"));
        relays.report([address("203.0.113.1:9001")]);
        assert_eq!(
            line(&relays),
            "[\"203.0.113.9:443\"]\n",
            "neither the cache, nor the report, nor behind a transport"
        );
        let obfs4 = "obfs4".parse().unwrap();
        relays.transport_is(&obfs4, Some(address("127.0.0.1:40001")));
        relays.transport_is(&"other".parse().unwrap(), Some(address("127.0.0.1:22")));
        assert_eq!(line(&relays), "[\"203.0.113.9:443\",[\"127.0.0.1:1\",\"127.0.0.1:40001\"]]\n");
        relays.transport_is(&obfs4, None);
        assert_eq!(line(&relays), "[\"203.0.113.9:443\"]\n");
        assert!(relays.v4_addresses().contains(&"203.0.113.1".parse().unwrap()), "for the countries of exits");
    }
}

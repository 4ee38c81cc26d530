//! The world around the appliance under test: a private Tor network, the DNS server of its exits, the origin that
//! pages are fetched from, and, on top of them, the appliance and its application VMs.
//!
//! It stands in one of two places. On *loopback* everything uses `127.0.0.0/8` of the machine, needs no right and
//! suits the demo and benchmarks. In *namespaces* the relays and the origin live in one network namespace, all that
//! belongs to the appliance in another, and a single wire joins them: what crosses it can be captured.
//!
//! ```text
//!  namespace "tor"                          namespace "host"
//!  relays 10.20–28.0.1, DNS, origin  <─wire─>  host-agent, uplink, ports, router QEMU, application VMs
//! ```

pub(crate) mod addresses;
pub(crate) mod appliance;
pub(crate) mod interruption;
pub(crate) mod servers;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context as _, Result};

use crate::{
    netns::{self, Netns},
    origin::{self, Visit},
    processes::{Lifetime, Process},
    tor_network::{Options, TorNetwork},
};
use addresses::Addresses;

/// The two namespaces of a world that is closed off.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Relays, DNS and origin.
    pub(crate) tor: Netns,
    /// The appliance and its application VMs.
    pub(crate) host: Netns,
}

/// Relays, DNS and origin; dropping it ends them.
#[derive(Debug)]
pub(crate) struct World {
    /// The relays.
    pub(crate) tor: TorNetwork,
    /// Where everything is.
    pub(crate) addresses: Addresses,
    dir: PathBuf,
    servers: Process,
    /// `None` on loopback.
    pub(crate) namespaces: Option<Namespaces>,
}

impl World {
    /// Starts a world on loopback and waits until the relays have a consensus.
    ///
    /// # Errors
    /// When a program is missing, an address is taken, or the relays do not agree in time.
    pub(crate) fn on_loopback(dir: &Path, lifetime: Lifetime) -> Result<World> {
        World::start(dir, Addresses::loopback()?, None, lifetime)
    }

    /// Starts a world in two new network namespaces. Needs root.
    ///
    /// # Errors
    /// As [`World::on_loopback`], and without the right to make namespaces.
    pub(crate) fn in_namespaces(dir: &Path) -> Result<World> {
        let namespaces = Namespaces { tor: Netns::new()?, host: Netns::new()? };
        let addresses = Addresses::in_namespaces();
        netns::join(&namespaces.tor, &namespaces.host)?;
        let lines: String = addresses.all().map(|address| format!("addr add {address}/32 dev lo\n")).collect();
        namespaces.tor.ip(&lines)?;
        namespaces.tor.ip(&format!("route add unreachable {}\n", addresses.unroutable()))?;
        World::start(dir, addresses, Some(namespaces), Lifetime::Ours)
    }

    fn start(dir: &Path, addresses: Addresses, namespaces: Option<Namespaces>, lifetime: Lifetime) -> Result<World> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let inside = namespaces.as_ref().map(|both| &both.tor);
        let servers = servers::start(dir, &addresses, inside, lifetime)?;
        let tor = TorNetwork::start(&Options { dir: dir.to_owned(), addresses, netns: inside, lifetime })?;
        Ok(World { tor, addresses, dir: dir.to_owned(), servers, namespaces })
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The namespace of the appliance, if there is one.
    pub(crate) fn host(&self) -> Option<&Netns> {
        self.namespaces.as_ref().map(|both| &both.host)
    }

    /// Everyone who visited the origin.
    pub(crate) fn visits(&self) -> Vec<Visit> {
        origin::visits(&servers::origin_record(&self.dir))
    }

    /// What a client in the namespace of the relays gets through C tor's SOCKS.
    ///
    /// # Errors
    /// When there are no namespaces, or no curl.
    pub(crate) fn fetch_by_c_tor(&self, url: &str) -> Result<Output> {
        let tor = &self.namespaces.as_ref().context("the world has no namespaces")?.tor;
        let socks = self.tor.socks().to_string();
        let mut curl = tor.command("curl");
        curl.args(["-s", "-S", "-m", "20", "--socks5-hostname", &socks, url]).output().context("cannot start curl")
    }

    /// Lets everything go on after this program.
    pub(crate) fn leave(self) {
        self.tor.leave();
        self.servers.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: `cargo test -p ci -- --ignored`"]
    fn c_tor_fetches_through_a_world_in_namespaces() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::in_namespaces(dir.path()).unwrap();
        let mut fetched = world.fetch_by_c_tor("http://origin.test:8080/").unwrap();
        for _ in 0..10 {
            if fetched.status.success() {
                break;
            }
            fetched = world.fetch_by_c_tor("http://origin.test:8080/").unwrap();
        }
        assert_eq!(fetched.stdout, origin::page(), "{}", String::from_utf8_lossy(&fetched.stderr));
        assert!(world.visits().last().unwrap().by.as_ref().unwrap().starts_with("exit"));
        for nowhere in ["http://origin.test:9/", "http://nx.test:8080/", "http://unroutable.test/"] {
            assert!(!world.fetch_by_c_tor(nowhere).unwrap().status.success());
        }
        let onion = format!("http://{}/", world.tor.onion().unwrap());
        assert!((0..10).any(|_| world.fetch_by_c_tor(&onion).unwrap().stdout == origin::page()));
        assert_eq!(world.visits().last().unwrap().by.as_deref(), Some("client2"));
        let pids = crate::processes::running(dir.path());
        assert!(pids.len() > crate::tor_network::RELAYS);
        drop(world);
        assert!(crate::processes::running(dir.path()).is_empty());
    }
}

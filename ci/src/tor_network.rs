//! A private Tor network of real relays: three authorities, six exits, C tor clients with SOCKS, and one C tor that
//! hosts an onion service for the origin.
//!
//! Debian's `tor` runs straight from the cache, where it was unpacked and never installed: no system daemon. Each relay
//! has an address in a /16 of its own, which satisfies Tor's path rules unchanged. A network is up when every authority
//! serves a consensus that lists all relays with the flags they need and a measured bandwidth for each exit: 5 to 15 s.
//!
//! Files in the network's directory: `network.json` (for `oht up --tor-network`), `relays.json` (who is who), one
//! directory a node with its `torrc` and log.

pub(crate) mod bridge;
mod consensus;
mod keys;
mod torrc;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    cache,
    netns::Netns,
    processes::{self, Lifetime, Plan, Process},
    world::{
        World,
        addresses::{Addresses, OR_PORT},
        servers,
    },
};

/// Fewer would leave a majority of one.
pub(crate) const AUTHORITIES: usize = 3;
/// Three hops and an onion service's six relays must be distinct from each other most of the time.
pub(crate) const EXITS: usize = 6;
/// All relays.
pub(crate) const RELAYS: usize = AUTHORITIES + EXITS;
/// C tor clients with SOCKS; the last one also hosts the onion service.
pub(crate) const CLIENTS: usize = 3;
const ONION_HOST: usize = CLIENTS - 1;

/// How long a consensus may take: three votes after the first one failed, on a loaded machine.
const CONSENSUS_TIME: Duration = Duration::from_secs(90);
const ONION_TIME: Duration = Duration::from_secs(60);

/// A relay, as `relays.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Relay {
    /// What people call it: `auth0`, `exit3`.
    pub(crate) nickname: String,
    /// Its address, for everything it does.
    pub(crate) address: Ipv4Addr,
    /// RSA identity, 40 hexadecimal digits.
    pub(crate) rsa: String,
    /// Ed25519 identity, unpadded base64.
    pub(crate) ed25519: String,
    /// Of an authority: the identity of the key that signs its votes.
    pub(crate) v3ident: Option<String>,
}

/// What the appliance is told about the network; the shape of `oht up --tor-network`.
#[derive(Serialize)]
struct Description<'a> {
    name: &'a str,
    authorities: Vec<&'a str>,
    caches: Vec<Cache<'a>>,
    local_addresses: bool,
}

#[derive(Serialize)]
struct Cache<'a> {
    rsa: &'a str,
    ed25519: &'a str,
    orports: [SocketAddr; 1],
}

/// How to start a network.
pub(crate) struct Options<'a> {
    /// Where its files go; what an earlier network left there is removed.
    pub(crate) dir: PathBuf,
    /// Who has which address.
    pub(crate) addresses: Addresses,
    /// Where it runs, if not in this program's own namespace.
    pub(crate) netns: Option<&'a Netns>,
    /// Whether it outlives this program.
    pub(crate) lifetime: Lifetime,
}

/// A network that is up; dropping it ends it.
#[derive(Debug)]
pub(crate) struct TorNetwork {
    dir: PathBuf,
    addresses: Addresses,
    /// Authorities first, then exits.
    pub(crate) relays: Vec<Relay>,
    processes: Vec<Process>,
    /// How long it took from the first process to the consensus.
    pub(crate) consensus_time: Duration,
}

impl TorNetwork {
    /// Starts a network and waits until it has a consensus.
    ///
    /// # Errors
    /// When `tor` is missing or fails, or there is no consensus in time.
    pub(crate) fn start(options: &Options<'_>) -> Result<TorNetwork> {
        let Options { dir, addresses, .. } = options;
        let nodes = dir.join("nodes");
        if nodes.exists() {
            fs::remove_dir_all(&nodes).with_context(|| format!("cannot remove {}", nodes.display()))?;
        }
        let relays = keys::make(&nodes, addresses)?;
        torrc::write_all(&nodes, addresses, &relays)?;
        write_json(&dir.join("relays.json"), &relays)?;
        write_json(&description_file(dir), &describe(&relays))?;
        let started = Instant::now();
        let mut network = TorNetwork {
            dir: dir.clone(),
            addresses: *addresses,
            relays,
            processes: Vec::new(),
            consensus_time: Duration::ZERO,
        };
        let names = network.relays.iter().map(|relay| relay.nickname.clone());
        for name in names.chain((0..CLIENTS).map(client_name)).collect::<Vec<_>>() {
            network.processes.push(start_tor(&nodes.join(&name), name, options)?);
        }
        network.wait_for_consensus(options.netns)?;
        network.consensus_time = started.elapsed();
        Ok(network)
    }

    /// The file for `oht up --tor-network`.
    pub(crate) fn description(&self) -> PathBuf {
        description_file(&self.dir)
    }

    /// The SOCKS port of a C tor client, to compare with.
    pub(crate) fn socks(&self) -> SocketAddr {
        self.addresses.socks(0)
    }

    /// The relay with this RSA identity.
    pub(crate) fn relay(&self, rsa: &str) -> Option<&Relay> {
        self.relays.iter().find(|relay| relay.rsa.eq_ignore_ascii_case(rsa))
    }

    /// The name of the onion service that stands for the origin (its port 80), once its descriptor is published.
    ///
    /// # Errors
    /// When it is not published in time.
    pub(crate) fn onion(&self) -> Result<String> {
        let dir = self.dir.join("nodes").join(client_name(ONION_HOST));
        let end = Instant::now() + ONION_TIME;
        loop {
            let log = fs::read_to_string(dir.join("notice.log")).unwrap_or_default();
            let name = fs::read_to_string(dir.join("onion/hostname")).unwrap_or_default();
            if !name.is_empty() && log.contains("Bootstrapped 100%") {
                return Ok(name.trim().to_owned());
            }
            if Instant::now() > end {
                bail!("the onion service's tor does not come up; see {}", dir.join("notice.log").display());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Lets it go on after this program.
    pub(crate) fn leave(mut self) {
        self.processes.drain(..).for_each(Process::leave);
    }

    fn wait_for_consensus(&mut self, netns: Option<&Netns>) -> Result<()> {
        let end = Instant::now() + CONSENSUS_TIME;
        let authorities: Vec<Ipv4Addr> = (0..AUTHORITIES).map(|index| self.addresses.relay(index)).collect();
        loop {
            let look = || authorities.iter().map(|&address| consensus::look(address)).collect::<Vec<_>>();
            let seen = netns.map_or_else(|| Ok(look()), |netns| netns.run(look))?;
            if seen.iter().all(|seen| seen.is_complete()) {
                return Ok(());
            }
            if let Some(failure) = self.processes.iter_mut().find_map(Process::failure) {
                return Err(failure.context("the private Tor network failed"));
            }
            if Instant::now() > end {
                bail!(
                    "the private Tor network has no consensus after {CONSENSUS_TIME:?}: {seen:?}; see the logs in {}",
                    self.dir.join("nodes").display()
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for TorNetwork {
    fn drop(&mut self) {
        // All at once; dropping each then only waits.
        self.processes.iter().for_each(Process::terminate);
    }
}

fn start_tor(node: &Path, name: String, options: &Options<'_>) -> Result<Process> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Plan {
        argv: vec![text(&cache::tor()?), "-f".into(), text(&node.join("torrc"))],
        log: node.join("output.log"),
        name,
        netns: options.netns,
        lifetime: options.lifetime,
        ledger: options.dir.clone(),
    }
    .spawn()
}

fn client_name(index: usize) -> String {
    format!("client{index}")
}

fn description_file(dir: &Path) -> PathBuf {
    dir.join("network.json")
}

fn describe(relays: &[Relay]) -> Description<'_> {
    // Only authorities have the first consensus from the start; an exit that is asked too early costs a retry.
    let authorities = || relays.iter().filter(|relay| relay.v3ident.is_some());
    Description {
        name: "private",
        authorities: authorities().filter_map(|relay| relay.v3ident.as_deref()).collect(),
        caches: authorities()
            .map(|relay| Cache { rsa: &relay.rsa, ed25519: &relay.ed25519, orports: [(relay.address, OR_PORT).into()] })
            .collect(),
        local_addresses: true,
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    fs::write(path, serde_json::to_vec_pretty(value)?).with_context(|| format!("cannot write {}", path.display()))
}

/// Options of `cargo ci net`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Start a network and leave it running.
    Up(Place),
    /// End it.
    Down(Place),
    /// Say what runs.
    Status(Place),
    /// Serve DNS for the exits, and the origin.
    #[command(hide = true)]
    Serve(servers::Args),
}

#[derive(clap::Args)]
struct Place {
    /// Where the network's files are [default: tor-network in cargo's target directory].
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Place {
    fn dir(&self) -> Result<PathBuf> {
        self.dir.clone().map_or_else(|| Ok(cache::target()?.join("tor-network")), Ok)
    }
}

/// Runs `cargo ci net`.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.action {
        Action::Up(place) => up(&place.dir()?),
        Action::Down(place) => {
            println!("{} processes ended", processes::clear(&place.dir()?)?);
            Ok(())
        }
        Action::Status(place) => status(&place.dir()?),
        Action::Serve(args) => servers::serve(args),
    }
}

fn up(dir: &Path) -> Result<()> {
    if !processes::running(dir).is_empty() {
        bail!("a network runs already: `cargo ci net down` ends it");
    }
    println!("starting {AUTHORITIES} authorities, {EXITS} exits and {CLIENTS} clients in {}", dir.display());
    let world = match World::on_loopback(dir, Lifetime::Kept) {
        Ok(world) => world,
        Err(error) => {
            let _ = processes::clear(dir);
            return Err(error);
        }
    };
    println!("consensus after {:.1} s", world.tor.consensus_time.as_secs_f64());
    println!("description   {}", world.tor.description().display());
    println!(
        "origin        http://origin.test:{}/ by Tor, {} itself",
        world.addresses.origin().port(),
        world.addresses.origin()
    );
    println!("SOCKS (C tor) {}", world.tor.socks());
    println!("onion service http://{}/", world.tor.onion()?);
    world.leave();
    Ok(())
}

fn status(dir: &Path) -> Result<()> {
    let running = processes::running(dir);
    for (name, pid) in &running {
        println!("{name:<10} {pid}");
    }
    if running.is_empty() {
        bail!("no network runs: `cargo ci net up` starts one");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_the_authorities_only() {
        let relay = |index: u8, v3ident: Option<&str>| Relay {
            nickname: format!("relay{index}"),
            address: Ipv4Addr::new(127, 20 + index, 0, 1),
            rsa: "A".repeat(40),
            ed25519: "x".repeat(43),
            v3ident: v3ident.map(str::to_owned),
        };
        let relays = [relay(0, Some("B")), relay(1, None)];
        let json = serde_json::to_value(describe(&relays)).unwrap();
        assert_eq!(json["authorities"], serde_json::json!(["B"]));
        assert_eq!(json["caches"][0]["orports"], serde_json::json!(["127.20.0.1:5000"]));
        assert_eq!(json["caches"].as_array().unwrap().len(), 1);
    }
}

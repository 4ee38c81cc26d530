//! Circuits whose exit is in a chosen country.
//!
//! Arti's circuit manager picks exits by their ports alone, unless it is built with a table of countries of its own. So
//! these circuits are built here: with the guard of a circuit that the manager has built, so that nobody new is told that
//! Tor is used; then a middle relay and an exit, picked by arti's weights among those that may be on one circuit (the
//! same rules about families and networks as arti's). They are kept by isolation token, as the manager keeps its own.
//!
//! A guard that is a bridge is not in the directory, and no such circuit is built behind it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arti_client::{ErrorKind, HasKind, IsolationToken};
use tokio::sync::Mutex as AsyncMutex;
use tor_chanmgr::ChannelUsage;
use tor_circmgr::{ClientDataTunnel, TargetPort, build::exit_circparams_from_netparams};
use tor_linkspec::OwnedChanTarget;
use tor_llcrypto::pk::ed25519::Ed25519Identity;
use tor_netdir::{FamilyRules, NetDir, Relay, SubnetConfig, WeightRole};
use tor_proto::{ClientTunnel, client::circuit::TimeoutEstimator};
use tor_relay_selection::{RelayExclusion, RelaySelectionConfig, RelaySelector, RelayUsage};
use wire::route::Exit;

use crate::{client::Client, countries::RelayCountries};

/// How long a circuit is given to new streams: as long as arti and C tor do.
const FRESH: Duration = Duration::from_secs(600);

/// How long building one may take.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20);

/// Tokens whose circuits are kept. The streams of those that are forgotten go on.
const TOKENS_MAX: usize = 256;

/// The circuits of one VM that have a chosen exit.
#[derive(Default)]
pub(super) struct Chosen {
    of: Mutex<BTreeMap<IsolationToken, Slot>>,
}

/// The circuits of one token, of which there are several if one exit does not take all ports. Locked while one is built.
type Slot = Arc<AsyncMutex<Vec<Kept>>>;

struct Kept {
    tunnel: Arc<ClientTunnel>,
    exit: Ed25519Identity,
    built: Instant,
}

/// What a circuit is to be like.
pub(super) struct Wanted<'a> {
    pub(super) ports: &'a [TargetPort],
    pub(super) token: IsolationToken,
    pub(super) exit: &'a Exit,
}

impl Chosen {
    /// A circuit as it is wanted. Its guard is that of `guide`.
    ///
    /// # Errors
    /// [`ErrorKind::NoExit`] where no exit is known to be allowed and to take the ports.
    pub(super) async fn circuit(
        &self,
        client: &Client,
        countries: &RelayCountries,
        guide: impl AsRef<ClientTunnel>,
        directory: &NetDir,
        wanted: Wanted<'_>,
    ) -> Result<ClientDataTunnel, ErrorKind> {
        let slot = self.slot(wanted.token);
        let mut kept = slot.lock().await;
        kept.retain(|kept| !kept.tunnel.is_closed() && kept.built.elapsed() < FRESH);
        let is_good =
            |kept: &&Kept| directory.by_id(&kept.exit).is_some_and(|exit| is_still_good(&exit, &wanted, countries));
        let found = kept.iter().find(is_good);
        if let Some(found) = found {
            return Ok(Arc::clone(&found.tunnel).into());
        }
        let guard = guide.as_ref().first_hop().map_err(|error| error.kind())?;
        let path = Path::pick(directory, &guard, &wanted, countries).ok_or(ErrorKind::NoExit)?;
        let exit = *path.exit.id();
        let tunnel = tokio::time::timeout(BUILD_TIMEOUT, path.build(client, directory)).await;
        let tunnel = Arc::new(tunnel.map_err(|_| ErrorKind::TorNetworkTimeout)??);
        kept.push(Kept { tunnel: Arc::clone(&tunnel), exit, built: Instant::now() });
        Ok(tunnel.into())
    }

    /// Gives a circuit to no stream any more.
    pub(super) async fn retire(&self, token: IsolationToken, circuit: &ClientDataTunnel) {
        self.slot(token).lock().await.retain(|kept| kept.tunnel.unique_id() != circuit.unique_id());
    }

    fn slot(&self, token: IsolationToken) -> Slot {
        let mut slots = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= TOKENS_MAX && !slots.contains_key(&token) {
            // Tokens count up: the first is the oldest.
            slots.pop_first();
        }
        Arc::clone(slots.entry(token).or_default())
    }
}

/// The relays of a circuit.
struct Path<'a> {
    guard: Relay<'a>,
    middle: Relay<'a>,
    exit: Relay<'a>,
}

impl<'a> Path<'a> {
    fn pick(
        directory: &'a NetDir,
        guard: &OwnedChanTarget,
        wanted: &Wanted<'_>,
        countries: &RelayCountries,
    ) -> Option<Path<'a>> {
        let rng = &mut rand::rng();
        let (rules, families) = (rules(), FamilyRules::all_family_info());
        let guard = directory.by_ids(guard)?;
        let usage = RelayUsage::exit_to_all_ports(&rules, wanted.ports.to_vec());
        let middle_usage = RelayUsage::middle_relay(Some(&usage));
        let apart = RelayExclusion::exclude_relays_in_same_family(&rules, vec![guard.clone()], families);
        let exits = RelaySelector::new(usage, apart);
        let exit = directory.pick_relay(rng, WeightRole::Exit, |relay| {
            exits.permits_relay(relay) && wanted.exit.allows(countries.of(relay))
        })?;
        let both = vec![guard.clone(), exit.clone()];
        let apart = RelayExclusion::exclude_relays_in_same_family(&rules, both, families);
        let (middle, _) = RelaySelector::new(middle_usage, apart).select_relay(rng, directory);
        Some(Path { guard, middle: middle?, exit })
    }

    async fn build(&self, client: &Client, directory: &NetDir) -> Result<ClientTunnel, ErrorKind> {
        let parameters = exit_circparams_from_netparams(directory.params()).map_err(|error| error.kind())?;
        let channels = client.chanmgr().map_err(|error| error.kind())?;
        let (channel, _) =
            channels.get_or_launch(&self.guard, ChannelUsage::UserTraffic).await.map_err(|error| error.kind())?;
        let proto = |error: tor_proto::Error| error.kind();
        let (pending, reactor) = channel.new_tunnel(Arc::new(Patience)).await.map_err(proto)?;
        tokio::spawn(async move {
            // How a circuit ends is told to those who use it.
            let _ = reactor.run().await;
        });
        let tunnel = pending.create_firsthop(&self.guard, parameters.clone()).await.map_err(proto)?;
        let circuit = tunnel.as_single_circ().map_err(proto)?;
        for relay in [&self.middle, &self.exit] {
            circuit.extend(relay, parameters.clone()).await.map_err(proto)?;
        }
        Ok(tunnel)
    }
}

/// Whether a relay that was picked before may still be the exit.
fn is_still_good(exit: &Relay<'_>, wanted: &Wanted<'_>, countries: &RelayCountries) -> bool {
    let usage = RelayUsage::exit_to_all_ports(&rules(), wanted.ports.to_vec());
    let exits = RelaySelector::new(usage, RelayExclusion::no_relays_excluded());
    exits.permits_relay(exit) && wanted.exit.allows(countries.of(exit))
}

/// What arti goes by where nothing else is configured.
fn rules() -> RelaySelectionConfig<'static> {
    /// Ports whose connections last (arti's `path_rules.long_lived_ports`).
    static LONG_LIVED: LazyLock<HashSet<u16>> =
        LazyLock::new(|| [21, 22, 706, 1863, 5050, 5190, 5222, 5223, 6523, 6667, 6697, 8300].into());
    RelaySelectionConfig { long_lived_ports: &LONG_LIVED, subnet_config: SubnetConfig::default() }
}

/// For how long the circuit remembers streams that it has ended.
struct Patience;

impl TimeoutEstimator for Patience {
    fn circuit_build_timeout(&self, _length: usize) -> Duration {
        BUILD_TIMEOUT
    }
}

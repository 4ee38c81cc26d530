//! Circuits whose exit is in a chosen country.
//!
//! Arti's circuit manager picks exits by their ports alone, unless it is built with a table of countries of its own. So
//! these circuits are built here: with the guard of a circuit that the manager has built, so that nobody new is told that
//! Tor is used; then a middle relay and an exit, picked by arti's weights among those that may be on one circuit (the
//! same rules about families and networks as arti's). They are kept by isolation token, as the manager keeps its own.
//!
//! A guard that is a bridge is not in the directory, and no such circuit is built behind it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arti_client::{ErrorKind, HasKind, IsolationToken};
use tokio::sync::Mutex as AsyncMutex;
use tor_chanmgr::ChannelUsage;
use tor_circmgr::{ClientDataTunnel, TargetPort, build::exit_circparams_from_netparams};
use tor_llcrypto::pk::ed25519::Ed25519Identity;
use tor_netdir::{FamilyRules, NetDir, Relay, SubnetConfig, WeightRole};
use tor_proto::{ClientTunnel, client::circuit::TimeoutEstimator};
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
        let good = |relay: &Relay<'_>| is_exit(relay, &wanted, countries);
        let found = kept.iter().find(|kept| directory.by_id(&kept.exit).is_some_and(|exit| good(&exit)));
        if let Some(found) = found {
            return Ok(Arc::clone(&found.tunnel).into());
        }
        let guard = guide.as_ref().first_hop().map_err(|error| error.kind())?;
        let path = Path::pick(directory, &guard, good).ok_or(ErrorKind::NoExit)?;
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

/// Whether a stream may leave by this relay.
fn is_exit(relay: &Relay<'_>, wanted: &Wanted<'_>, countries: &RelayCountries) -> bool {
    let details = relay.low_level_details();
    details.is_flagged_fast()
        && details.is_flagged_stable()
        && details.policies_allow_some_port()
        && wanted.ports.iter().all(|port| port.is_supported_by(&details))
        && wanted.exit.allows(countries.of(relay))
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
        guard: &tor_linkspec::OwnedChanTarget,
        is_exit: impl Fn(&Relay<'_>) -> bool,
    ) -> Option<Path<'a>> {
        let rng = &mut rand::rng();
        let guard = directory.by_ids(guard)?;
        let exit = directory.pick_relay(rng, WeightRole::Exit, |relay| is_exit(relay) && are_apart(relay, &guard))?;
        let middle = directory.pick_relay(rng, WeightRole::Middle, |relay| {
            let details = relay.low_level_details();
            let is_good = details.is_flagged_fast() && details.is_flagged_stable();
            is_good && are_apart(relay, &guard) && are_apart(relay, &exit)
        })?;
        Some(Path { guard, middle, exit })
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

/// Whether two relays may be on one circuit (path-spec, "Path selection and constraints").
fn are_apart(one: &Relay<'_>, other: &Relay<'_>) -> bool {
    let details = one.low_level_details();
    !details.in_same_family(other, FamilyRules::all_family_info())
        && !details.in_same_subnet(other, &SubnetConfig::default())
}

/// For how long the circuit remembers streams that it has ended.
struct Patience;

impl TimeoutEstimator for Patience {
    fn circuit_build_timeout(&self, _length: usize) -> Duration {
        BUILD_TIMEOUT
    }
}

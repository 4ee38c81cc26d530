//! The Tor client: configuration and bootstrap.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arti_client::{TorClient, TorClientConfig, config::TorClientConfigBuilder, status::BootstrapStatus};
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::sync::Semaphore;
use tor_keymgr::config::ArtiKeystoreKind;
use tor_linkspec::HasAddrs;
use tor_netdir::{DirEvent, Timeliness};
use tor_rtcompat::{CompoundRuntime, RuntimeSubstExt, tokio::TokioRustlsRuntime};
use wire::{entry::TorEntry, network::TorNetwork, route::Country};

use crate::{
    countries::RelayCountries,
    dialler::{Dial, DiallerProvider},
    discovery::Discovery,
    entry,
    exits::Exits,
    network::arti_network,
    vm::VmClient,
};

type Tokio = TokioRustlsRuntime;
type Runtime = CompoundRuntime<Tokio, Tokio, Tokio, DiallerProvider, Tokio, Tokio, Tokio>;

/// Arti's client, with TCP of ours.
pub(crate) type Client = Arc<TorClient<Runtime>>;

/// Circuits that are built at a time before anybody needs them, for all VMs together: those that are needed now must not
/// wait behind them.
const PREPARED_AT_A_TIME: usize = 4;

/// What a Tor client needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network.
    pub network: TorNetwork,
    /// How it is entered.
    pub entry: TorEntry,
    /// A directory that is ours alone: guards, keys and the cached directory live there.
    pub state_dir: PathBuf,
}

/// How far the client has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// 0 to 100.
    pub percent: u8,
    /// Whether streams can be opened.
    pub usable: bool,
    /// In words; names what blocks it, if anything does.
    pub text: String,
}

/// Why there is no Tor client.
#[derive(Debug, thiserror::Error)]
pub enum OnionError {
    /// An identity of the network's description that is none.
    #[error("{0:?} in the Tor network's description is no relay identity")]
    Identity(String),
    /// A bridge line that arti does not take.
    #[error("arti does not take one of the bridge lines")]
    Bridge,
    /// A configuration that arti does not take.
    #[error("arti refuses the configuration")]
    Configuration(#[source] arti_client::config::ConfigBuildError),
    /// Arti could not start: mostly a state directory that others may write to, or that cannot be written.
    #[error("arti cannot start")]
    Start(#[source] Box<arti_client::Error>),
    /// The bootstrap ended without success.
    #[error("the Tor client could not bootstrap")]
    Bootstrap(#[source] Box<arti_client::Error>),
    /// No tokio runtime to run on.
    #[error("arti needs a tokio runtime")]
    Runtime(#[source] std::io::Error),
}

/// One Tor client.
pub struct Onion {
    pub(crate) client: Client,
    pub(crate) discovery: Arc<Discovery>,
    local_addresses: bool,
    preparing: Arc<Semaphore>,
    countries: RelayCountries,
}

impl Onion {
    /// Makes a client that dials through `dial`; [`Onion::bootstrap`] starts it. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// When the network's description or the state directory is unusable.
    pub fn new(settings: &Settings, dial: Arc<dyn Dial>) -> BoxFuture<'_, Result<Onion, OnionError>> {
        Box::pin(Onion::create(settings, dial))
    }

    async fn create(settings: &Settings, dial: Arc<dyn Dial>) -> Result<Onion, OnionError> {
        // A second installation of the provider fails, and changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = Tokio::current().map_err(OnionError::Runtime)?.with_tcp_provider(DiallerProvider(dial));
        forget_services(settings);
        let client = TorClient::with_runtime(runtime)
            .config(configuration(settings)?)
            .create_unbootstrapped_async()
            .await
            .map_err(|error| OnionError::Start(Box::new(error)))?;
        let preparing = Arc::new(Semaphore::new(PREPARED_AT_A_TIME));
        let discovery = Arc::new(Discovery::new(Arc::clone(&client)));
        let (local_addresses, countries) = (settings.network.local_addresses, RelayCountries::default());
        Ok(Onion { client, discovery, local_addresses, preparing, countries })
    }

    /// Fetches the directory and connects to a guard. Returns once streams can be opened.
    ///
    /// # Errors
    /// When arti gives up; the caller may try again.
    pub fn bootstrap(&self) -> BoxFuture<'_, Result<(), OnionError>> {
        let bootstrapped = self.client.bootstrap();
        Box::pin(async { bootstrapped.await.map_err(|error| OnionError::Bootstrap(Box::new(error))) })
    }

    /// The status now, and whenever it changes.
    pub fn statuses(&self) -> BoxStream<'static, Status> {
        let now = Status::from(self.client.bootstrap_status());
        let later = self.client.bootstrap_events().map(Status::from);
        futures::stream::once(async move { now }).chain(later).boxed()
    }

    /// The ORPorts of all relays of the consensus, each time there is a new one. Ends with the client.
    pub fn relay_lists(&self) -> BoxStream<'static, Vec<SocketAddr>> {
        // Before the bootstrap has begun arti has no directory to ask; its first event says that it has begun.
        let (client, mut begun) = (Arc::clone(&self.client), self.client.bootstrap_events());
        let directory = async move {
            loop {
                if let Ok(directory) = client.dirmgr() {
                    return Some(directory);
                }
                begun.next().await?;
            }
        };
        let lists = futures::stream::once(directory).filter_map(futures::future::ready).flat_map(|directory| {
            let events = directory.events();
            let changed = events.filter(|event| futures::future::ready(matches!(event, DirEvent::NewConsensus)));
            futures::stream::once(async { DirEvent::NewConsensus }).chain(changed).filter_map(move |_| {
                let netdir = directory.netdir(Timeliness::Unchecked).ok();
                let orports =
                    netdir.map(|netdir| netdir.relays().flat_map(|relay| relay.addrs().collect::<Vec<_>>()).collect());
                futures::future::ready(orports)
            })
        });
        lists.boxed()
    }

    /// Says in which countries relays are, by their IPv4 addresses, in place of what was said before. Where a stream is to
    /// leave Tor in certain countries, a relay of which nothing is said is no exit for it.
    pub fn set_countries(&self, known: HashMap<Ipv4Addr, Country>) {
        self.countries.set(known);
    }

    /// A client that shares the directory and the guards with the others and no circuit.
    #[must_use]
    pub fn vm_client(&self) -> VmClient {
        let exits = Exits::new(Arc::clone(&self.client), self.local_addresses, self.countries.clone());
        let onions = self.client.isolated_client();
        VmClient::new(onions, exits, Arc::clone(&self.discovery), Arc::clone(&self.preparing))
    }
}

impl From<BootstrapStatus> for Status {
    fn from(status: BootstrapStatus) -> Status {
        Status {
            // 0.0 to 1.0 becomes 0 to 100: nothing is lost, and nothing is out of range.
            percent: (status.as_frac().clamp(0.0, 1.0) * 100.0) as u8,
            usable: status.ready_for_traffic(),
            text: status.to_string(),
        }
    }
}

/// Removes what arti has kept of onion services: their keys were in memory, so it belongs to nothing.
fn forget_services(settings: &Settings) {
    for kept in ["hss", "keystore"] {
        // Mostly there is nothing.
        let _ = std::fs::remove_dir_all(state_dir(settings).join(kept));
    }
}

fn state_dir(settings: &Settings) -> PathBuf {
    settings.state_dir.join("state")
}

fn configuration(settings: &Settings) -> Result<TorClientConfig, OnionError> {
    let (authorities, caches) = arti_network(&settings.network)?;
    let mut config = TorClientConfigBuilder::from_directories(state_dir(settings), settings.state_dir.join("cache"));
    config.storage().keystore().primary().kind(ArtiKeystoreKind::Ephemeral.into());
    *config.tor_network().authorities().v3idents() = authorities;
    config.tor_network().set_fallback_caches(caches);
    entry::configure(&mut config, &settings.entry)?;
    if settings.network.local_addresses {
        config.address_filter().allow_local_addrs(true).allow_resolving_local_addrs(true);
        // A private network is young, small and near: its relays may answer late, but never need seconds of patience.
        config.download_schedule().retry_bootstrap().attempts(1000).initial_delay(Duration::from_millis(200));
    }
    config.build().map_err(OnionError::Configuration)
}

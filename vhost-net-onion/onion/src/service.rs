//! One onion service.
//!
//! ```text
//! INTRODUCE2 ─▶ rendezvous circuit ─▶ BEGIN ─▶ ServiceStream ─▶ accept: CONNECTED, bytes
//!                                                            └▶ refuse: END with the reason
//! ```
//!
//! Whoever runs the service is told each stream and answers it when the VM has. A port that the service does not have
//! is answered as C tor does (END, DONE), and by nobody else.
//!
//! Bounds: [`CIRCUITS_MAX`] rendezvous circuits, of which one without streams is closed after [`IDLE`]; the service's own
//! limit of streams, over all circuits and on each. What is beyond is refused.
//!
//! The service's secrets are in arti's keystore, which is in memory; arti's record of its introduction points is of no
//! use without them, and is removed when the client starts. Arti never forgets a key before the program ends, so each
//! launch has a nickname of its own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arti_client::config::onion_service::OnionServiceConfigBuilder;
use futures::{Stream, StreamExt, future::BoxFuture};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, JoinSet},
};
use tor_cell::relaycell::msg::{Connected, End, EndReason};
use tor_hscrypto::pk::{HsClientDescEncKey, HsIdKeypair};
use tor_hsservice::{OnionServiceConfig, RendRequest, RunningOnionService, StreamRequest};
use tor_llcrypto::pk::{curve25519, ed25519};
use tor_proto::stream::IncomingStreamRequest;
use wire::onion::{OnionAddress, Reachability, Secret, Service, ServiceTerms};

use crate::{
    client::Onion,
    discovery::ClientKey,
    probe::{self, Probe},
    stream::OnionStream,
};

/// Rendezvous circuits of one service.
const CIRCUITS_MAX: usize = 128;

/// How long a rendezvous circuit may carry no stream.
const IDLE: Duration = Duration::from_secs(10 * 60);

/// How long the way to a client's rendezvous point may take.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(60);

/// How a service fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Whether it was reached.
    pub reachability: Reachability,
    /// In words.
    pub text: String,
}

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Terms that arti does not take.
    #[error("arti refuses the service's configuration")]
    Configuration(#[source] arti_client::config::ConfigBuildError),
    /// Arti could not start it.
    #[error("arti cannot start the service")]
    Launch(#[source] Box<arti_client::Error>),
    /// Arti says that it is switched off, which it is not.
    #[error("arti has not started the service")]
    Disabled,
}

/// Why a stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The VM said no.
    Refused,
    /// The VM did not answer.
    TimedOut,
}

/// A service that runs. Dropping it ends it, and its circuits with it.
pub struct OnionService {
    address: OnionAddress,
    _service: Arc<RunningOnionService>,
    tasks: [AbortHandle; 2],
}

/// A stream that a client wants.
pub struct ServiceStream {
    port: u16,
    request: StreamRequest,
    held: Held,
}

/// What a stream keeps while it lives: its place among the service's streams, and the notice that its circuit is used.
pub(crate) struct Held {
    _room: OwnedSemaphorePermit,
    _circuit: Arc<()>,
}

type OnStream = dyn Fn(ServiceStream) + Send + Sync;
type OnStatus = dyn Fn(ServiceStatus) + Send + Sync;

impl Onion {
    /// Runs an onion service, whose streams go to `on_stream`. What becomes of it goes to `on_status`: that is found by
    /// connecting to it, now and then. Needs a client that has begun to bootstrap, and a tokio runtime around it.
    ///
    /// # Errors
    /// When arti does not take it.
    pub fn publish(
        &self,
        settings: &Service,
        on_stream: Arc<OnStream>,
        on_status: Arc<OnStatus>,
    ) -> Result<OnionService, ServiceError> {
        let identity = ed25519::Keypair::from_bytes(settings.key.as_bytes());
        let address = OnionAddress::of(identity.verifying_key().as_bytes());
        let terms = &settings.terms;
        // The router is a client of its own service, so that it can say whether clients reach it.
        let own_key = (!terms.clients.is_empty()).then(|| {
            let secret = curve25519::StaticSecret::random_from_rng(tor_llcrypto::rng::CautiousRng);
            (Secret::from(secret.to_bytes()), curve25519::PublicKey::from(&secret))
        });
        let config = configuration(terms, own_key.as_ref().map(|(_, public)| *public))?;
        let key = HsIdKeypair::from(ed25519::ExpandedKeypair::from(&identity));
        let launched = self.client.launch_onion_service_with_hsid(config, key);
        let (service, requests) =
            launched.map_err(|error| ServiceError::Launch(Box::new(error)))?.ok_or(ServiceError::Disabled)?;
        let room = Arc::new(Semaphore::new(terms.max_streams as usize));
        let served = Served { terms: Arc::new(terms.clone()), room, on_stream };
        let key = own_key.and_then(|(secret, _)| self.own_key(&address, &secret));
        let port = terms.ports.first().map_or(0, |mapping| mapping.port.get());
        let probe = Probe {
            client: self.client.isolated_client(),
            discovery: Arc::clone(&self.discovery),
            address: address.clone(),
            port,
            key,
        };
        let arti = Arc::downgrade(&service);
        let tasks = [
            tokio::spawn(serve(Box::pin(requests), served)).abort_handle(),
            tokio::spawn(probe::run(probe, arti, on_status)).abort_handle(),
        ];
        Ok(OnionService { address, _service: service, tasks })
    }

    fn own_key(&self, address: &OnionAddress, secret: &Secret) -> Option<ClientKey> {
        let onion = crate::discovery::hsid_of(address.as_str())?;
        Some(self.discovery.key(onion, secret))
    }
}

impl OnionService {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> &OnionAddress {
        &self.address
    }
}

impl Drop for OnionService {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl ServiceStream {
    /// The port of the VM that it leads to.
    #[must_use]
    pub fn vm_port(&self) -> u16 {
        self.port
    }

    /// Tells the client that it is connected.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn accept(self) -> BoxFuture<'static, io::Result<OnionStream>> {
        Box::pin(async move {
            let stream = self.request.accept(Connected::new_empty()).await.map_err(io::Error::other)?;
            Ok(OnionStream::incoming(stream, self.held))
        })
    }

    /// Tells the client that it is not. Needs a tokio runtime around it.
    pub fn refuse(self, why: Refusal) {
        let reason = match why {
            Refusal::Refused => EndReason::CONNECTREFUSED,
            Refusal::TimedOut => EndReason::TIMEOUT,
        };
        tokio::spawn(end(self.request, reason));
    }
}

/// What the streams of a service need.
#[derive(Clone)]
struct Served {
    terms: Arc<ServiceTerms>,
    room: Arc<Semaphore>,
    on_stream: Arc<OnStream>,
}

fn configuration(
    terms: &ServiceTerms,
    own_key: Option<curve25519::PublicKey>,
) -> Result<OnionServiceConfig, ServiceError> {
    static LAUNCHES: AtomicU64 = AtomicU64::new(0);
    let nickname = format!("s{}", LAUNCHES.fetch_add(1, Ordering::Relaxed));
    let mut config = OnionServiceConfigBuilder::default();
    config.nickname(nickname.parse().expect("a letter and digits are a nickname"));
    config.max_concurrent_streams_per_circuit(terms.max_streams);
    let clients = terms.clients.iter().map(|key| curve25519::PublicKey::from(*key.as_bytes())).chain(own_key);
    for (number, key) in clients.enumerate() {
        let nickname = format!("c{number}").parse().expect("a letter and digits are a nickname");
        let restricted = config.restricted_discovery();
        restricted.enabled(true);
        restricted.static_keys().access().push((nickname, HsClientDescEncKey::from(key)));
    }
    config.build().map_err(ServiceError::Configuration)
}

/// Meets clients until the service ends.
async fn serve(mut requests: std::pin::Pin<Box<impl Stream<Item = RendRequest>>>, served: Served) {
    let circuits = Arc::new(Semaphore::new(CIRCUITS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            request = requests.next() => match request {
                Some(request) => match Arc::clone(&circuits).try_acquire_owned() {
                    Ok(room) => drop(tasks.spawn(meet(request, served.clone(), room))),
                    Err(_) => tracing::debug!("an onion service has as many circuits as it may have"),
                },
                None => return,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Meets one client, and takes its streams until it goes.
async fn meet(request: RendRequest, served: Served, _room: OwnedSemaphorePermit) {
    let mut streams = match tokio::time::timeout(RENDEZVOUS_TIMEOUT, request.accept()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return tracing::debug!(%error, "a client could not be met"),
        Err(_) => return tracing::debug!("a client could not be met in time"),
    };
    // Every stream has a copy.
    let circuit = Arc::new(());
    loop {
        match tokio::time::timeout(IDLE, streams.next()).await {
            Ok(Some(request)) => begin(request, &served, &circuit).await,
            Ok(None) => return,
            Err(_) if Arc::strong_count(&circuit) == 1 => return,
            Err(_) => {}
        }
    }
}

/// Hands a stream on, if it is for one of the service's ports and there is room.
async fn begin(request: StreamRequest, served: &Served, circuit: &Arc<()>) {
    let IncomingStreamRequest::Begin(begin) = request.request() else { return end(request, EndReason::MISC).await };
    let Some(port) = served.terms.vm_port(begin.port()) else { return end(request, EndReason::DONE).await };
    let Ok(room) = Arc::clone(&served.room).try_acquire_owned() else { return end(request, EndReason::MISC).await };
    (served.on_stream)(ServiceStream { port, request, held: Held { _room: room, _circuit: Arc::clone(circuit) } });
}

/// Refuses a stream.
async fn end(request: StreamRequest, reason: EndReason) {
    // A client that is gone needs no answer.
    let _ = request.reject(End::new_with_reason(reason)).await;
}

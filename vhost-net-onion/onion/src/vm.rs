//! The Tor client of one VM.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arti_client::{ErrorKind, HasKind, IsolationToken, StreamPrefs, TorAddr};
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tor_circmgr::TargetPort;
use tor_hscrypto::pk::HsId;
use wire::{
    onion::{OnionAddress, Secret},
    route::Exit,
};

use crate::{
    circuits::{Credential, Spread},
    client::Client,
    discovery::{ClientKey, Discovery, hsid_of},
    exits::Exits,
    failure::{Attempt, ConnectError, ResolveError, judge},
    stream::{Circuits, OnionStream},
    target::{Target, is_local},
    way::Way,
};

/// How many circuits a stream is tried on before the VM is told that it failed.
const ATTEMPTS: u64 = 3;

/// How long all attempts may take before the VM is told nothing, as by a host that does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// The Tor client of one VM; clones are the same client.
#[derive(Clone)]
pub struct VmClient(Arc<Inner>);

struct Inner {
    /// For onion services: none of its circuits is another VM's, or one of before [`VmClient::renew`].
    onions: Mutex<Client>,
    discovery: Arc<Discovery>,
    /// The restricted services that the VM may reach.
    authorised: Mutex<HashMap<HsId, ClientKey>>,
    exits: Exits,
    spread: Mutex<Spread>,
    circuits: Circuits,
    retries: AtomicU64,
    /// Shared by all VMs.
    preparing: Arc<Semaphore>,
}

/// What a VM's streams use and need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Circuits that carry streams at this moment.
    pub circuits: u32,
    /// How often a stream was tried again on another circuit.
    pub retries: u64,
}

/// Which circuit a stream is to be on.
#[derive(Clone, Copy, Debug)]
pub struct CircuitOf<'a> {
    /// The host that the VM means: where a proxy leads on to it, not the proxy.
    pub destination: &'a str,
    /// What keeps the stream apart from others of the VM.
    pub credential: Option<&'a Credential>,
    /// How it is to go.
    pub way: &'a Way,
}

impl VmClient {
    /// A client whose streams to onion services go through `onions`, which no other VM may have, and all others through
    /// `exits`.
    pub(crate) fn new(onions: Client, exits: Exits, discovery: Arc<Discovery>, preparing: Arc<Semaphore>) -> VmClient {
        VmClient(Arc::new(Inner {
            onions: Mutex::new(onions),
            discovery,
            authorised: Mutex::default(),
            exits,
            spread: Mutex::new(Spread::new()),
            circuits: Circuits::default(),
            retries: AtomicU64::new(0),
            preparing,
        }))
    }

    /// Builds the first circuits, so that the first streams need not wait for them. Returns at once; a client that is
    /// dropped before its turn has come builds none.
    pub fn prepare(&self) {
        for token in self.0.spread().first() {
            self.prepare_circuit(token, None, Exit::Any);
        }
    }

    /// From now on the VM may reach these restricted services, with keys of its own, and no others. For new streams only.
    pub fn authorise(&self, keys: &BTreeMap<OnionAddress, Secret>) {
        let key = |(onion, key): (&OnionAddress, &Secret)| {
            let onion = hsid_of(onion.as_str())?;
            Some((onion, self.0.discovery.key(onion, key)))
        };
        let authorised = keys.iter().filter_map(key).collect();
        let before = std::mem::replace(&mut *self.0.authorised(), authorised);
        drop(before);
    }

    /// Takes fresh circuits: no stream that is opened from now on shares one with a stream of before, or with one that is
    /// being opened now. Those go on.
    pub fn renew(&self) {
        {
            let mut onions = self.0.onions.lock().unwrap_or_else(PoisonError::into_inner);
            *onions = onions.isolated_client();
        }
        // Tokens are never made twice, so that what circuits there are is no business of a new spread.
        *self.0.spread() = Spread::new();
        self.prepare();
    }

    /// Opens a stream to `host` (a name, an `.onion` name, or an address) and `port`. Returns once the far end has
    /// accepted, if the way is not optimistic. The name is resolved at the exit, never here. Streams with different
    /// credentials, and those without one, never share a circuit, unless the way says so.
    ///
    /// # Errors
    /// Says which of the three things to tell the VM.
    pub fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        circuit: CircuitOf<'a>,
    ) -> BoxFuture<'a, Result<OnionStream, ConnectError>> {
        let connected = async move {
            match Target::new(host, port, self.0.exits.local_addresses)? {
                Target::Onion(target) => self.connect_onion(host, &target, circuit).await,
                Target::Exit { host, port } => self.connect_exit(&host, port, circuit).await,
            }
        };
        Box::pin(async {
            tokio::time::timeout(CONNECT_TIMEOUT, connected).await.unwrap_or(Err(ConnectError::TimedOut))
        })
    }

    /// Asks an exit for the addresses of `name`, of both versions. It is the exit of a circuit that a stream to that name
    /// would take which goes this `way`.
    ///
    /// # Errors
    /// Says whether there is no such name, or nobody knows.
    pub fn resolve<'a>(&'a self, name: &'a str, way: &'a Way) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        let resolved = async move {
            // Held until the answer is there: the circuit is in use.
            let lease = self.0.spread().take(name, None, way);
            let mut token = lease.token;
            let mut attempt = 1;
            loop {
                let kind = match self.0.exits.resolve(name, token, &way.exit).await {
                    Ok(mut addresses) => {
                        // Those lead nowhere, or into the VM's own networks (as C tor's ClientDNSRejectInternalAddresses).
                        addresses.retain(|address| self.0.exits.local_addresses || !is_local(*address));
                        return Ok(addresses);
                    }
                    // What the name servers say of it (tor-spec, "Remote hostname lookup").
                    Err(ErrorKind::RemoteHostNotFound) => return Err(ResolveError::NoSuchName),
                    Err(kind) => kind,
                };
                tracing::debug!(?kind, attempt, "a name could not be resolved");
                self.0.again(&mut attempt, ConnectError::TimedOut).map_err(|_| ResolveError::Failed)?;
                token = IsolationToken::new();
            }
        };
        Box::pin(async { tokio::time::timeout(CONNECT_TIMEOUT, resolved).await.unwrap_or(Err(ResolveError::Failed)) })
    }

    /// What the streams use and need.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let circuits = u32::try_from(self.0.circuits.count()).unwrap_or(u32::MAX);
        Usage { circuits, retries: self.0.retries.load(Ordering::Relaxed) }
    }

    async fn connect_exit(
        &self,
        host: &str,
        port: TargetPort,
        CircuitOf { destination, credential, way }: CircuitOf<'_>,
    ) -> Result<OnionStream, ConnectError> {
        let mut lease = self.0.spread().take(destination, credential, way);
        if let Some(next) = lease.next.take() {
            self.prepare_circuit(next, Some(port), way.exit.clone());
        }
        let mut token = lease.token;
        let mut attempt = 1;
        loop {
            let error = match self.0.exits.open(host, port, token, way).await {
                Ok(stream) => return Ok(OnionStream::new(stream, false, Some(lease), &self.0.circuits)),
                Err(Attempt::Final(error)) => return Err(error),
                // The slot stays, and has another circuit now.
                Err(Attempt::Broken(error)) => error,
                // The circuit stays for others; a token of its own forces another for this stream.
                Err(Attempt::Elsewhere(error)) => {
                    token = IsolationToken::new();
                    error
                }
            };
            self.0.again(&mut attempt, error)?;
        }
    }

    async fn connect_onion(
        &self,
        host: &str,
        target: &TorAddr,
        CircuitOf { destination, credential, way }: CircuitOf<'_>,
    ) -> Result<OnionStream, ConnectError> {
        let _key = self.0.discovery.enter(hsid_of(host), |onion| self.0.authorised().get(onion).cloned()).await?;
        let mut token = self.0.spread().onion(destination, credential, way);
        let onions = Arc::clone(&self.0.onions.lock().unwrap_or_else(PoisonError::into_inner));
        let mut attempt = 1;
        loop {
            let mut prefs = StreamPrefs::new();
            prefs.set_isolation(token);
            let error = match onions.connect_with_prefs(target.clone(), &prefs).await {
                Ok(stream) => return Ok(OnionStream::new(stream, true, None, &self.0.circuits)),
                Err(error) => error.kind(),
            };
            tracing::debug!(kind = ?error, attempt, "a stream to an onion service could not be opened");
            match judge(error) {
                Attempt::Final(error) => return Err(error),
                Attempt::Broken(error) | Attempt::Elsewhere(error) => self.0.again(&mut attempt, error)?,
            }
            token = IsolationToken::new();
        }
    }

    fn prepare_circuit(&self, token: IsolationToken, port: Option<TargetPort>, exit: Exit) {
        let (client, preparing) = (Arc::downgrade(&self.0), Arc::clone(&self.0.preparing));
        tokio::spawn(async move {
            let Ok(_turn) = preparing.acquire().await else { return };
            let Some(client) = client.upgrade() else { return };
            client.exits.prepare(token, port, &exit).await;
        });
    }
}

impl Inner {
    fn authorised(&self) -> MutexGuard<'_, HashMap<HsId, ClientKey>> {
        self.authorised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spread(&self) -> MutexGuard<'_, Spread> {
        self.spread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt that failed with `error`, which is the answer when it was the last.
    fn again(&self, attempt: &mut u64, error: ConnectError) -> Result<(), ConnectError> {
        if *attempt == ATTEMPTS {
            return Err(error);
        }
        *attempt += 1;
        self.retries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

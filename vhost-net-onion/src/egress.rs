//! Where flows go: to Tor; and who answers what a VM asks about itself. A trait, so that the session can be tested without it.

use std::{
    future::{Future, pending},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
};

use gateway::{Credential, Failure, Host, Target, Unresolved};
use onion::{CircuitInfo, CircuitOf, ConnectError, OnionStream, ResolveError, VmClient, Way};
use tokio::io::{AsyncRead, AsyncWrite};
use wire::{
    identity::{Answer, Question, Refusal},
    route::{Block, Hop, HopHost},
};

use crate::{
    hop,
    routes::{RoutedStream, VmRouting},
};

/// A stream that a flow of the VM needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where to.
    pub target: Target,
    /// What keeps it apart from other streams of the same VM.
    pub credential: Option<Credential>,
}

/// Opens the streams of one VM.
pub trait Egress: Send + Sync + 'static {
    /// What carries the bytes of a flow.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens the stream that is asked for; returns once the far end has accepted.
    ///
    /// # Errors
    /// What the VM is to be told.
    fn connect(&self, request: Request) -> impl Future<Output = Result<Self::Stream, Failure>> + Send;

    /// Returns when `stream` is to be broken off, whatever it carries; never where nobody does that.
    fn ended(&self, _stream: &Self::Stream) -> impl Future<Output = ()> + Send + 'static {
        pending()
    }

    /// Finds the addresses of a name that is no onion service's. Asked only if the gateway's policy wants it; who does not
    /// serve such gateways need not know any.
    ///
    /// # Errors
    /// What the VM is to be told.
    fn resolve(&self, _name: &str) -> impl Future<Output = Result<Vec<IpAddr>, Unresolved>> + Send {
        async { Err(Unresolved::Failed) }
    }

    /// Answers what the VM asks about itself. There need not be anybody who knows.
    fn answer(&self, _question: Question) -> impl Future<Output = Answer> + Send {
        async { nobody() }
    }
}

fn nobody() -> Answer {
    Refusal::Unavailable.because("there is no host agent here that could know")
}

/// Answers what one VM asks about itself.
pub type Informant = dyn Fn(Question) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;

/// Told which circuit each new stream of a VM is on.
pub type StreamObserver = dyn Fn(CircuitInfo) + Send + Sync;

/// The streams of one VM go by its routes, and through its own Tor client, on circuits that no other VM shares.
pub struct TorEgress {
    client: VmClient,
    routing: VmRouting,
    on_stream: Arc<StreamObserver>,
    informant: Option<Arc<Informant>>,
}

impl TorEgress {
    /// Streams through `client`, as `routing` says; `on_stream` is called for each one that is open.
    #[must_use]
    pub fn new(client: VmClient, routing: VmRouting, on_stream: Arc<StreamObserver>) -> TorEgress {
        TorEgress { client, routing, on_stream, informant: None }
    }

    /// The same, where `informant` answers what the VM asks about itself.
    #[must_use]
    pub fn with_informant(self, informant: Arc<Informant>) -> TorEgress {
        TorEgress { informant: Some(informant), ..self }
    }

    /// Opens a stream that goes this way.
    async fn open(&self, request: &Request, way: &Way, via: Option<&Hop>) -> Result<OnionStream, Failure> {
        let Request { target, credential } = request;
        let destination = written(&target.host);
        let credential = credential.as_ref().map(|credential| onion::Credential::new(credential.as_bytes()));
        let (host, port) = match via {
            None => (destination.clone(), target.port),
            Some(hop) => (hop_host(hop.host()), hop.port()),
        };
        let circuit = CircuitOf { destination: &destination, credential: credential.as_ref(), way };
        let stream = self.client.connect(&host, port, circuit).await;
        let mut stream = stream.map_err(|error| match error {
            // What the proxy says of itself is nothing that the target says.
            ConnectError::Refused if via.is_some() => Failure::Unreachable,
            ConnectError::Refused => Failure::Refused,
            ConnectError::Unreachable => Failure::Unreachable,
            ConnectError::TimedOut => Failure::TimedOut,
        })?;
        if let Some(hop) = via {
            hop::lead_on(&mut stream, hop, target).await?;
        }
        Ok(stream)
    }
}

impl Egress for TorEgress {
    type Stream = RoutedStream<OnionStream>;

    async fn connect(&self, request: Request) -> Result<RoutedStream<OnionStream>, Failure> {
        loop {
            let (entry, way, via) = self.routing.enter(&request.target).map_err(|block| match block {
                Block::Reject => Failure::Refused,
                Block::Drop => Failure::TimedOut,
            })?;
            let stream = tokio::select! {
                biased;
                // Other routes are in force: they decide anew.
                () = entry.cut().wait() => continue,
                stream = self.open(&request, &way, via.as_ref()) => stream?,
            };
            if entry.cut().is_cut() {
                continue;
            }
            if let Some(circuit) = stream.circuit() {
                (self.on_stream)(circuit.clone());
            }
            return Ok(RoutedStream::new(stream, entry));
        }
    }

    fn ended(&self, stream: &Self::Stream) -> impl Future<Output = ()> + Send + 'static {
        stream.ended()
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        // Other routes may be in force since the question came.
        let Some(way) = self.routing.resolution(name) else { return Err(Unresolved::Failed) };
        self.client.resolve(name, &way).await.map_err(|error| match error {
            ResolveError::NoSuchName => Unresolved::NoSuchName,
            ResolveError::Failed => Unresolved::Failed,
        })
    }

    async fn answer(&self, question: Question) -> Answer {
        match &self.informant {
            Some(informant) => informant(question).await,
            None => nobody(),
        }
    }
}

fn written(host: &Host) -> String {
    match host {
        Host::Name(name) => name.clone(),
        Host::Address(address) => address.to_string(),
    }
}

fn hop_host(host: &HopHost) -> String {
    match host {
        HopHost::Name(name) => name.to_string(),
        HopHost::Address(address) => address.to_string(),
    }
}

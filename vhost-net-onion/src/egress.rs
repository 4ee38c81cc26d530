//! Where flows go: to Tor. A trait, so that the session can be tested without it.

use std::{future::Future, net::IpAddr, sync::Arc};

use gateway::{Credential, Failure, Host, Target, Unresolved};
use onion::{CircuitInfo, ConnectError, OnionStream, ResolveError, VmClient};
use tokio::io::{AsyncRead, AsyncWrite};

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

    /// Finds the addresses of a name that is no onion service's. Asked only if the gateway's configuration wants it; who
    /// does not serve such gateways need not know any.
    ///
    /// # Errors
    /// What the VM is to be told.
    fn resolve(&self, _name: &str) -> impl Future<Output = Result<Vec<IpAddr>, Unresolved>> + Send {
        async { Err(Unresolved::Failed) }
    }
}

/// Told which circuit each new stream of a VM is on.
pub type StreamObserver = dyn Fn(CircuitInfo) + Send + Sync;

/// The streams of one VM go through its own Tor client, on circuits that no other VM shares.
pub struct TorEgress {
    client: VmClient,
    on_stream: Arc<StreamObserver>,
}

impl TorEgress {
    /// Streams through `client`; `on_stream` is called for each one that is open.
    #[must_use]
    pub fn new(client: VmClient, on_stream: Arc<StreamObserver>) -> TorEgress {
        TorEgress { client, on_stream }
    }
}

impl Egress for TorEgress {
    type Stream = OnionStream;

    async fn connect(&self, Request { target, credential }: Request) -> Result<OnionStream, Failure> {
        let host = match target.host {
            Host::Name(name) => name,
            Host::Address(address) => address.to_string(),
        };
        let credential = credential.map(|credential| onion::Credential::new(credential.as_bytes()));
        let stream = self.client.connect(&host, target.port, credential.as_ref()).await;
        let stream = stream.map_err(|error| match error {
            ConnectError::Refused => Failure::Refused,
            ConnectError::Unreachable => Failure::Unreachable,
            ConnectError::TimedOut => Failure::TimedOut,
        })?;
        if let Some(circuit) = stream.circuit() {
            (self.on_stream)(circuit.clone());
        }
        Ok(stream)
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        self.client.resolve(name).await.map_err(|error| match error {
            ResolveError::NoSuchName => Unresolved::NoSuchName,
            ResolveError::Failed => Unresolved::Failed,
        })
    }
}

//! Streams that leave the Tor network at an exit.
//!
//! Arti's `connect` finds a circuit and opens a stream on it in one step. We take the two steps ourselves, with the same
//! circuit manager: so circuits can be had before there is a stream for them, and one that answers nothing can be
//! retired before the stream is tried again.

use std::{net::IpAddr, time::Duration};

use arti_client::{DataStream, ErrorKind, HasKind, IsolationToken};
use tor_circmgr::{ClientDataTunnel, TargetPort, isolation::StreamIsolation};
use tor_netdir::Timeliness;
use tor_proto::client::stream::StreamParameters;

use crate::{
    client::Client,
    failure::{Attempt, judge},
};

/// How long an exit may say nothing before another circuit is tried: as long as arti and C tor wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The ports that the first circuits of a VM are for.
const USUAL_PORTS: [u16; 2] = [80, 443];

/// The exit circuits of one VM.
pub(crate) struct Exits {
    client: Client,
    /// What keeps them apart from other VMs' circuits, whatever the streams' own tokens are.
    owner: IsolationToken,
    /// Whether a destination may have an address that is not on the internet.
    pub(crate) local_addresses: bool,
    optimistic: bool,
}

impl Exits {
    pub(crate) fn new(client: Client, local_addresses: bool, optimistic: bool) -> Exits {
        Exits { client, owner: IsolationToken::new(), local_addresses, optimistic }
    }

    /// Opens a stream to `host` and `port` on a circuit of `token`.
    ///
    /// # Errors
    /// Says whether to try again. A circuit that is no good will not be taken again.
    pub(crate) async fn open(
        &self,
        host: &str,
        port: TargetPort,
        token: IsolationToken,
    ) -> Result<DataStream, Attempt> {
        let circuit = self.circuit(&[port], token).await.map_err(|kind| noted("a circuit", kind))?;
        let mut parameters = StreamParameters::new();
        parameters.optimistic(self.optimistic);
        let begun = circuit.begin_stream(host, port.port, Some(parameters));
        let kind = match tokio::time::timeout(ANSWER_TIMEOUT, begun).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.kind(),
            Err(_) => ErrorKind::RemoteNetworkTimeout,
        };
        let attempt = noted("a stream", kind);
        if let (Attempt::Broken(_), Ok(manager)) = (attempt, self.client.circmgr()) {
            manager.retire_circ(&circuit.unique_id());
        }
        Err(attempt)
    }

    /// Asks the exit of a circuit of `token` for the addresses of a name.
    ///
    /// # Errors
    /// Why there are none. A circuit that says nothing will not be taken again.
    pub(crate) async fn resolve(&self, name: &str, token: IsolationToken) -> Result<Vec<IpAddr>, ErrorKind> {
        let ports = USUAL_PORTS.map(TargetPort::ipv4);
        let circuit = self.circuit(&ports, token).await?;
        match tokio::time::timeout(ANSWER_TIMEOUT, circuit.resolve(name)).await {
            Ok(answer) => answer.map_err(|error| error.kind()),
            Err(_) => {
                if let Ok(manager) = self.client.circmgr() {
                    manager.retire_circ(&circuit.unique_id());
                }
                Err(ErrorKind::RemoteNetworkTimeout)
            }
        }
    }

    /// Builds a circuit of `token`, if there is none, for `port` or for what is usual. Nobody waits for it, so nobody is
    /// told when there is none.
    pub(crate) async fn prepare(&self, token: IsolationToken, port: Option<TargetPort>) {
        let ports = port.map_or_else(|| USUAL_PORTS.map(TargetPort::ipv4).to_vec(), |port| vec![port]);
        if let Err(kind) = self.circuit(&ports, token).await {
            tracing::debug!(?kind, "a circuit could not be built ahead");
        }
    }

    /// A circuit of `token` whose exit takes `ports`. Waits for the bootstrap.
    async fn circuit(&self, ports: &[TargetPort], token: IsolationToken) -> Result<ClientDataTunnel, ErrorKind> {
        self.client.bootstrap().await.map_err(|error| error.kind())?;
        let manager = self.client.circmgr().map_err(|error| error.kind())?;
        let directory = self.client.dirmgr().map_err(|error| error.kind())?;
        let directory = directory.netdir(Timeliness::Timely).map_err(|error| error.kind())?;
        let isolation = StreamIsolation::builder().owner_token(self.owner).stream_isolation(Box::new(token)).build();
        let isolation = isolation.map_err(|_| ErrorKind::Internal)?;
        manager.get_or_launch_exit((&*directory).into(), ports, isolation).await.map_err(|error| error.kind())
    }
}

fn noted(what: &str, kind: ErrorKind) -> Attempt {
    tracing::debug!(?kind, "{what} could not be had");
    judge(kind)
}

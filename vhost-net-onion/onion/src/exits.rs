//! Streams that leave the Tor network at an exit.
//!
//! Arti's `connect` finds a circuit and opens a stream on it in one step. We take the two steps ourselves, with the same
//! circuit manager: so circuits can be had before there is a stream for them, and one that answers nothing can be
//! retired before the stream is tried again. And so the exit can be chosen by its country ([`chosen`]).

mod chosen;

use std::{net::IpAddr, time::Duration};

use arti_client::{DataStream, ErrorKind, HasKind, IsolationToken};
use tor_circmgr::{ClientDataTunnel, TargetPort, isolation::StreamIsolation};
use tor_netdir::Timeliness;
use tor_proto::client::stream::StreamParameters;
use wire::route::Exit;

use self::chosen::{Chosen, Wanted};
use crate::{
    client::Client,
    countries::RelayCountries,
    failure::{Attempt, judge},
    way::Way,
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
    countries: RelayCountries,
    chosen: Chosen,
    /// Of a circuit that shows which guard to use where the exit is chosen.
    guide: IsolationToken,
}

impl Exits {
    pub(crate) fn new(client: Client, local_addresses: bool, countries: RelayCountries) -> Exits {
        let [owner, guide] = [IsolationToken::new(), IsolationToken::new()];
        Exits { client, owner, local_addresses, countries, chosen: Chosen::default(), guide }
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
        way: &Way,
    ) -> Result<DataStream, Attempt> {
        let circuit = self.circuit(&[port], token, &way.exit).await.map_err(|kind| noted("a circuit", kind))?;
        let mut parameters = StreamParameters::new();
        parameters.optimistic(way.optimistic);
        let begun = circuit.begin_stream(host, port.port, Some(parameters));
        let kind = match tokio::time::timeout(ANSWER_TIMEOUT, begun).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.kind(),
            Err(_) => ErrorKind::RemoteNetworkTimeout,
        };
        let attempt = noted("a stream", kind);
        if let Attempt::Broken(_) = attempt {
            self.retire(token, &circuit).await;
        }
        Err(attempt)
    }

    /// Asks the exit of a circuit of `token` for the addresses of a name.
    ///
    /// # Errors
    /// Why there are none. A circuit that says nothing will not be taken again.
    pub(crate) async fn resolve(
        &self,
        name: &str,
        token: IsolationToken,
        exit: &Exit,
    ) -> Result<Vec<IpAddr>, ErrorKind> {
        let ports = USUAL_PORTS.map(TargetPort::ipv4);
        let circuit = self.circuit(&ports, token, exit).await?;
        match tokio::time::timeout(ANSWER_TIMEOUT, circuit.resolve(name)).await {
            Ok(answer) => answer.map_err(|error| error.kind()),
            Err(_) => {
                self.retire(token, &circuit).await;
                Err(ErrorKind::RemoteNetworkTimeout)
            }
        }
    }

    /// Builds a circuit of `token`, if there is none, for `port` or for what is usual. Nobody waits for it, so nobody is
    /// told when there is none.
    pub(crate) async fn prepare(&self, token: IsolationToken, port: Option<TargetPort>, exit: &Exit) {
        let ports = port.map_or_else(|| USUAL_PORTS.map(TargetPort::ipv4).to_vec(), |port| vec![port]);
        if let Err(kind) = self.circuit(&ports, token, exit).await {
            tracing::debug!(?kind, "a circuit could not be built ahead");
        }
    }

    /// A circuit of `token` whose exit takes `ports` and is allowed. Waits for the bootstrap.
    async fn circuit(
        &self,
        ports: &[TargetPort],
        token: IsolationToken,
        exit: &Exit,
    ) -> Result<ClientDataTunnel, ErrorKind> {
        if *exit == Exit::Any {
            return self.any_circuit(ports, token).await;
        }
        let guide = self.any_circuit(&[], self.guide).await?;
        let directory = self.client.dirmgr().map_err(|error| error.kind())?;
        let directory = directory.netdir(Timeliness::Timely).map_err(|error| error.kind())?;
        let wanted = Wanted { ports, token, exit };
        self.chosen.circuit(&self.client, &self.countries, guide, &directory, wanted).await
    }

    /// Gives a circuit to no stream any more.
    async fn retire(&self, token: IsolationToken, circuit: &ClientDataTunnel) {
        if let Ok(manager) = self.client.circmgr() {
            manager.retire_circ(&circuit.unique_id());
        }
        self.chosen.retire(token, circuit).await;
    }

    /// A circuit of `token` whose exit takes `ports`.
    async fn any_circuit(&self, ports: &[TargetPort], token: IsolationToken) -> Result<ClientDataTunnel, ErrorKind> {
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

//! Whether a service is reachable: found by connecting to it as any client does, on circuits of its own.
//!
//! Arti's own idea of it is not asked: it says what was published, not what arrives. Until the first connection goes
//! through, and after one that did not, the next attempt follows soon; then now and then. An attempt goes all the way to
//! the VM's port, and is closed at once.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use arti_client::{HasKind, IsolationToken, StreamPrefs};
use tor_hsservice::RunningOnionService;
use wire::onion::{OnionAddress, Reachability};

use crate::{
    client::Client,
    discovery::{ClientKey, Discovery, hsid_of},
    failure::{Attempt, ConnectError, judge},
    service::ServiceStatus,
};

/// How long an attempt may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long after an attempt that went through the next one follows.
const EVERY: Duration = Duration::from_secs(5 * 60);

/// How long after one that did not: at first, and at most; doubled each time.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Attempts that may fail before a service that was just published counts as unreachable.
const PATIENCE: u32 = 6;

/// A client of one service.
pub(crate) struct Probe {
    pub(crate) client: Client,
    pub(crate) discovery: Arc<Discovery>,
    pub(crate) address: OnionAddress,
    pub(crate) port: u16,
    /// If the service is restricted.
    pub(crate) key: Option<ClientKey>,
}

/// Connects for as long as the service runs, and tells what came of it whenever that changes.
pub(crate) async fn run(
    probe: Probe,
    service: Weak<RunningOnionService>,
    on_status: Arc<dyn Fn(ServiceStatus) + Send + Sync>,
) {
    let (mut last, mut failures, mut was_reached, mut again) = (None, 0, false, AGAIN);
    let published = format!("published as {}, not reached yet", probe.address);
    on_status(ServiceStatus { reachability: Reachability::Publishing, text: published });
    while service.strong_count() > 0 {
        let (reachability, text) = match probe.connect().await {
            Ok(()) => (Reachability::Reachable, "a connection through Tor reaches the VM".to_owned()),
            Err(Problem::Refused) => {
                let text = format!("Tor reaches the service, and the VM refuses connections to port {}", probe.port);
                (Reachability::Refused, text)
            }
            Err(Problem::Unreachable(why)) if was_reached || failures >= PATIENCE => (Reachability::Unreachable, why),
            Err(Problem::Unreachable(why)) => (Reachability::Publishing, why),
        };
        if matches!(reachability, Reachability::Reachable | Reachability::Refused) {
            (failures, was_reached) = (0, true);
        } else {
            failures += 1;
        }
        let status = ServiceStatus { reachability, text };
        if last.as_ref() != Some(&status) {
            on_status(status.clone());
            last = Some(status);
        }
        let wait = if reachability == Reachability::Reachable { EVERY } else { again };
        again = if reachability == Reachability::Reachable { AGAIN } else { (again * 2).min(AGAIN_MAX) };
        tokio::time::sleep(wait).await;
    }
}

/// What an attempt came to.
enum Problem {
    Refused,
    /// Why, in words.
    Unreachable(String),
}

impl Probe {
    async fn connect(&self) -> Result<(), Problem> {
        let attempt = async {
            let onion = hsid_of(self.address.as_str());
            let _key = self
                .discovery
                .enter(onion, |_| self.key.clone())
                .await
                .map_err(|error| Problem::Unreachable(error.to_string()))?;
            let mut prefs = StreamPrefs::new();
            prefs.set_isolation(IsolationToken::new());
            let connected = self.client.connect_with_prefs((self.address.as_str(), self.port), &prefs).await;
            connected.map(drop).map_err(|error| match judge(error.kind()) {
                Attempt::Final(ConnectError::Refused) => Problem::Refused,
                _ => Problem::Unreachable(error.kind().to_string()),
            })
        };
        let late = || Err(Problem::Unreachable("no answer in time".into()));
        tokio::time::timeout(TIMEOUT, attempt).await.unwrap_or_else(|_| late())
    }
}

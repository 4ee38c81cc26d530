//! The Tor client of the router and what it reports of itself.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::sync::mpsc;
use vhost_net_onion::onion::{Dial, Onion, OnionError, Settings, Status};
use wire::control::FromRouter;

/// How long to wait before a bootstrap that failed is tried again.
const BOOTSTRAP_AGAIN: Duration = Duration::from_secs(2);

/// Starts the Tor client: it bootstraps in the background for as long as it takes, and reports to `reports`.
///
/// # Errors
/// When the network's description or the state directory is unusable.
pub(crate) async fn start(
    settings: Settings,
    dial: Arc<dyn Dial>,
    reports: mpsc::Sender<FromRouter>,
) -> Result<Arc<Onion>, OnionError> {
    let onion = Arc::new(Onion::new(&settings, dial).await?);
    tokio::spawn(report_relays(Arc::clone(&onion), reports.clone()));
    tokio::spawn(report_statuses(Arc::clone(&onion), reports.clone()));
    tokio::spawn(bootstrap(Arc::clone(&onion), reports));
    Ok(onion)
}

async fn bootstrap(onion: Arc<Onion>, reports: mpsc::Sender<FromRouter>) {
    while let Err(error) = onion.bootstrap().await {
        let what = format!("bootstrap: {}", causes(&error));
        tracing::warn!("{what}");
        // Nobody to report to: the program is ending.
        let _ = reports.send(FromRouter::Failure { what }).await;
        tokio::time::sleep(BOOTSTRAP_AGAIN).await;
    }
}

async fn report_statuses(onion: Arc<Onion>, reports: mpsc::Sender<FromRouter>) {
    let mut statuses = std::pin::pin!(onion.statuses());
    let mut last = None;
    while let Some(status) = statuses.next().await {
        if last.as_ref() == Some(&status) {
            continue;
        }
        last = Some(status.clone());
        let Status { percent, usable, text } = status;
        let _ = reports.send(FromRouter::Bootstrap { percent, usable, status: text }).await;
    }
}

async fn report_relays(onion: Arc<Onion>, reports: mpsc::Sender<FromRouter>) {
    let mut lists = std::pin::pin!(onion.relay_lists());
    while let Some(orports) = lists.next().await {
        let _ = reports.send(FromRouter::Relays { orports }).await;
    }
}

/// An error and what caused it, on one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

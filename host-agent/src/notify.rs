//! What the service manager is told (sd_notify(3)): that the agent serves its API, that it ends, and, where the unit has
//! `WatchdogSec=`, that it still turns. Without a service manager nothing is said.
//!
//! The watchdog is fed by the runtime that serves the API: one that is stuck feeds nothing, and is started again.

use std::time::Duration;

use sd_notify::NotifyState;

/// Variables of the service manager that are for the agent alone: its children do not get them.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The API is served.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The agent ends its children now.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// Feeds the watchdog, at twice the pace that it asks for, until dropped; without a watchdog it waits for ever.
pub async fn feed_watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut beat = tokio::time::interval((period / 2).max(Duration::from_millis(1)));
    loop {
        beat.tick().await;
        tell(NotifyState::Watchdog);
    }
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

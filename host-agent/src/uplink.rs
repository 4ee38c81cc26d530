//! The uplink: the only process with network. It dials Tor relays for the router and nothing else.
//!
//! The host agent creates the listening AF_UNIX socket and hands it over, so a connect never fails while the uplink is
//! being restarted. It also hands over a pipe on which it writes the allow list ([`allow_list`]); before the first list
//! nothing may be dialled, and when the pipe ends the last list stays.
//!
//! One connection is one TCP connection ([`connection`]):
//!
//! ```text
//! accepted ─► greeted ─► asked ─► allowed? ─► dialled ─► bytes both ways, each direction ended on its own ─► closed
//!      └─ within HELLO_S_MAX ─┘       └ no: Forbidden, nothing is sent to the address
//! ```
//!
//! Bounds: [`Options::connections_max`] connections; beyond that a caller is told `Busy` without being waited for.
//! An accept that fails (no descriptors left, say) is tried again after a pause: the uplink never ends by itself.

pub mod allow_list;
pub mod connection;

use std::{sync::Arc, time::Duration};

use tokio::{net::UnixListener, sync::Semaphore};
use wire::{
    hello::{Hello, Role},
    uplink::DialAnswer,
};

use allow_list::AllowList;

/// What the uplink may do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many connections it serves at once.
    pub connections_max: usize,
    /// How long a relay may take to answer.
    pub dial_timeout: Duration,
    /// Whether addresses appear in logs. Guards are sensitive: who knows them knows whom to watch.
    pub log_addresses: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { connections_max: 512, dial_timeout: Duration::from_secs(20), log_addresses: false }
    }
}

/// Serves `listener` for ever.
pub async fn serve(listener: UnixListener, allowed: AllowList, options: Options) {
    let permits = Arc::new(Semaphore::new(options.connections_max));
    let options = Arc::new(options);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            // Said without listening: the answer fits into the empty socket, and a caller who cannot have it is gone.
            let _ = stream.try_write(&[Hello::new(Role::Uplink).encode(), vec![DialAnswer::Busy as u8]].concat());
            tracing::warn!(connections = options.connections_max, "as many connections as there may be: busy");
            continue;
        };
        let (allowed, options) = (allowed.clone(), Arc::clone(&options));
        tokio::spawn(async move {
            if let Err(error) = connection::serve(stream, &allowed, &options).await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(permit);
        });
    }
}

/// After a failed accept: long enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

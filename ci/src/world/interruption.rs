//! What is to be done when this program is interrupted: dropping values does not happen then.

use std::{process, thread, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

/// Cleaning up must not hang what was to end.
const CLEAN_UP_TIME: Duration = Duration::from_secs(20);

/// From now on, SIGINT, SIGTERM and SIGHUP call `clean_up` and end this program. (Handlers, and not a blocked mask with
/// `sigwait`: std lets programs that are started later inherit the mask, and then nothing ends them in order.)
///
/// # Errors
/// When the handlers cannot be installed.
pub(crate) fn on_signal(clean_up: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let handlers = runtime.block_on(async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>()
    });
    let handlers = handlers.context("cannot install signal handlers")?;
    let [mut interrupt, mut terminate, mut hangup] =
        <[_; 3]>::try_from(handlers).unwrap_or_else(|_| unreachable!("three kinds make three handlers"));
    thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
                _ = hangup.recv() => SignalKind::hangup(),
            }
        });
        eprintln!("interrupted: cleaning up");
        thread::spawn(|| {
            thread::sleep(CLEAN_UP_TIME);
            process::exit(1);
        });
        clean_up();
        process::exit(128 + number.as_raw_value());
    });
    Ok(())
}

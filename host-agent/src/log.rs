//! Logs go to stderr: into a file, a terminal or the journal, as whoever starts the program arranges it.

use std::io::IsTerminal;

use tracing_subscriber::{
    Layer as _,
    filter::{EnvFilter, ParseError},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::events::{Events, LogEvents};

/// Starts logging at `level`, or with whatever directives `tracing` understands; what is logged is announced too.
///
/// # Errors
/// When `level` is not understood.
pub fn to_stderr(level: &str, events: Events) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(level)?;
    // Fails only when there is a logger already, which then logs.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let _ = tracing_subscriber::registry().with(lines.and_then(LogEvents(events)).with_filter(filter)).try_init();
    Ok(())
}

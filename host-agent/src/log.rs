//! Logs go to stderr: into a file, a terminal or the journal, as whoever starts the program arranges it.

use std::io::IsTerminal;

use tracing_subscriber::filter::{EnvFilter, ParseError};

/// Starts logging at `level`, or with whatever directives `tracing` understands.
///
/// # Errors
/// When `level` is not understood.
pub fn to_stderr(level: &str) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(level)?;
    // Fails only when there is a logger already, which then logs.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    Ok(())
}

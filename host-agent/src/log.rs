//! Logs go to stderr: into a file, a terminal or the journal, as whoever starts the program arranges it.
//!
//! What is logged is a level, or levels for parts: `info`, or `warn,host_agent::control=debug` (a part is a module of
//! the programs, named by its path). The journal gets each line with its priority (sd-daemon(3)) and without a time and
//! a level, which it has itself.

use std::{
    fmt,
    io::IsTerminal,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    filter::{EnvFilter, ParseError},
    fmt::{FmtContext, FormatEvent, FormatFields, format},
    registry::LookupSpan,
};

/// Starts logging at `level`, or with whatever directives `tracing` understands.
///
/// # Errors
/// When `level` is not understood.
pub fn to_stderr(level: &str) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(level)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // Fails only when there is a logger already, which then logs.
    let _ = if stderr_is_journal() {
        log.event_format(ForJournal(format().without_time().with_level(false).with_target(false))).try_init()
    } else {
        log.try_init()
    };
    Ok(())
}

/// `JOURNAL_STREAM` names device and inode of the journal's stream (systemd.exec(5)); stderr may be another by now.
fn stderr_is_journal() -> bool {
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let Ok(metadata) = stderr.and_then(|file| file.metadata()) else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// A line for the journal.
struct ForJournal(format::Format<format::Full, ()>);

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// As syslog(3) counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn the_journal_gets_priorities_and_parts_have_levels_of_their_own() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&written);
        let log = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::builder().parse("warn,part=debug").unwrap())
            .with_ansi(false)
            .with_writer(move || Sink(Arc::clone(&sink)))
            .event_format(ForJournal(format().without_time().with_level(false).with_target(false)))
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::info!("not this");
            tracing::error!("broken");
            tracing::debug!(target: "part", pid = 7, "started");
            tracing::trace!(target: "part", "nor this");
        });
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(written, "<3>broken\n<7>started pid=7\n");
        assert!(!stderr_is_journal());
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}

//! The daemon with a clock that a test can move: as `host-agent run`, and `--clock FILE`, which holds how many seconds the
//! wall clock is ahead. A program of its own, so that no installed one has such an option.

use std::path::PathBuf;

use clap::Parser as _;
use host_agent::{
    config::{Options, Settings},
    daemon,
    events::Events,
    keys::time::{SystemTime, TimeSource},
    log,
};
use key_tree::Timestamp;

#[derive(clap::Parser)]
struct Command {
    /// Like that of the daemon.
    run: String,
    #[arg(long)]
    clock: PathBuf,
    #[command(flatten)]
    options: Box<Options>,
}

struct Moved(PathBuf);

impl TimeSource for Moved {
    fn wall(&self) -> Timestamp {
        let ahead: i64 = std::fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Timestamp::from_unix(SystemTime.wall().as_unix().saturating_add_signed(ahead))
    }

    fn monotonic(&self) -> std::time::Duration {
        SystemTime.monotonic()
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let Command { run: _, clock, options } = Command::parse();
    let settings = Settings::new(*options, None)?;
    let events = Events::default();
    log::to_stderr(&settings.log, events.clone())?;
    Ok(daemon::run(settings, events, Box::new(Moved(clock))).await?)
}

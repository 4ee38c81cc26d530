//! The back-ends that are compared: ours in embedded mode with plain sockets, and passt. Each is one process, whose CPU
//! time the kernel counts.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::generators;
use crate::{
    cache,
    processes::{Lifetime, Plan, Process},
};

/// The address by which a guest reaches the host's loopback.
pub(super) const HOST: &str = "192.0.2.1";

/// How long a back-end may take to make its socket.
const START_TIME: Duration = Duration::from_secs(20);

/// Whose back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `vhost-net-onion`'s example `direct`.
    Ours,
    /// passt.
    Passt,
}

/// A vhost-user back-end that runs.
pub(super) struct BackEnd {
    process: Process,
    socket: PathBuf,
}

impl BackEnd {
    /// Starts a back-end; `dir` is for its files.
    ///
    /// # Errors
    /// When it cannot be had, or makes no socket.
    pub(super) fn start(kind: Kind, dir: &Path) -> Result<BackEnd> {
        let socket = dir.join("vhost-user.sock");
        let _ = fs::remove_file(&socket);
        let path = socket.to_string_lossy().into_owned();
        let (name, argv) = match kind {
            Kind::Ours => ("direct", ours(path)?),
            Kind::Passt => ("passt", passt(path)?),
        };
        let plan = Plan {
            name: name.into(),
            argv,
            log: dir.join(format!("{name}.log")),
            netns: None,
            lifetime: Lifetime::Ours,
            ledger: dir.to_owned(),
        };
        let mut back_end = BackEnd { process: plan.spawn()?, socket };
        let end = Instant::now() + START_TIME;
        while !back_end.socket.exists() {
            if let Some(failure) = back_end.process.failure() {
                return Err(failure);
            }
            ensure!(Instant::now() < end, "{name} makes no socket: {}", back_end.process.last_words());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(back_end)
    }

    /// Where a front-end connects.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The CPU time so far.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }

    /// Ends it; what it printed last.
    pub(super) fn finish(mut self) -> String {
        self.process.finish();
        self.process.last_words()
    }
}

fn ours(socket: String) -> Result<Vec<String>> {
    let program = cache::programs()?.join("examples/direct");
    ensure!(program.is_file(), "{} is not built: run `cargo build --workspace --all-targets`", program.display());
    let program = program.to_string_lossy().into_owned();
    Ok([program, "--vhost-user".into(), socket, "--map".into(), format!("{HOST}=127.0.0.1")].into())
}

fn passt(socket: String) -> Result<Vec<String>> {
    let program = generators::path("passt")?.to_string_lossy().into_owned();
    // As root it would become nobody, who may not make a socket here.
    let user = nix::unistd::Uid::effective().to_string();
    let mut argv: Vec<String> =
        [program, "--foreground".into(), "--vhost-user".into(), "--socket".into(), socket].into();
    argv.extend(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"].map(String::from));
    argv.extend(["--map-host-loopback", HOST, "--runas", &user, "--quiet"].map(String::from));
    Ok(argv)
}

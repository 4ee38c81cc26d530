//! Keeping one process running: start, wait, note why it ended, wait a little, start again.
//!
//! ```text
//! starting ─► running ─► ended ─► waiting (back-off) ─┐
//!    ▲                                                │
//!    └────────────────────────────────────────────────┘      stop: SIGTERM, after STOP_GRACE SIGKILL, reaped
//! ```
//!
//! Nothing polls: an end is a SIGCHLD, a stop is a message.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, ChildStdout},
    sync::watch,
    time::timeout,
};

use crate::{backoff::Backoff, children::Children, model::Model, spawn::Spawn};

/// How long a process may take after SIGTERM.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// What all supervision shares.
#[derive(Clone)]
pub struct Shared {
    /// What is known.
    model: Arc<Mutex<Model>>,
    /// What runs.
    children: Arc<Children>,
}

/// A process that was started under supervision.
pub struct Supervised {
    name: String,
    child: Child,
    spawn: Spawn,
    shared: Shared,
}

impl Shared {
    /// Shares a model and a record of children.
    #[must_use]
    pub fn new(model: Model, children: Children) -> Shared {
        Shared { model: Arc::new(Mutex::new(model)), children: Arc::new(children) }
    }

    /// The model, for a moment: never hold it while waiting.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        // A panic elsewhere leaves at worst one status line half updated.
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process and puts it on record.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, spawn: Spawn, inherit: &[&OwnedFd]) -> io::Result<Supervised> {
        let inherit: Vec<_> = inherit.iter().map(|fd| fd.as_fd()).collect();
        let child = spawn.start(&inherit)?;
        Ok(self.started(name, spawn, child))
    }

    /// Starts a process with these variables in its environment; its standard output is not for the log, but for whoever
    /// takes it ([`Supervised::output`]).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_heard(&self, name: &str, spawn: Spawn, environment: &[(&str, OsString)]) -> io::Result<Supervised> {
        let child = spawn.start_changed(&[], |command| {
            command.envs(environment.iter().map(|(key, value)| (key, value))).stdout(Stdio::piped());
        })?;
        Ok(self.started(name, spawn, child))
    }

    fn started(&self, name: &str, spawn: Spawn, child: Child) -> Supervised {
        let pid = child.id().unwrap_or_default();
        self.children.started(name, pid);
        self.model().process_started(name, pid, Instant::now());
        tracing::info!(name, pid, "started");
        Supervised { name: name.into(), child, spawn, shared: self.clone() }
    }

    /// Ends what an agent before this one left running; returns the names.
    pub async fn end_predecessors(&self) -> Vec<String> {
        self.children.end_all().await
    }
}

impl Supervised {
    /// Its standard output, once, if it was started to be heard.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the end of the process; may be dropped and called again.
    pub async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        self.words(status)
    }

    /// Ends the process with `signal`, after a while with SIGKILL, and takes it off the record.
    pub async fn end(mut self, signal: Signal) -> Duration {
        self.signal(signal);
        if timeout(STOP_GRACE, self.child.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait().await;
        }
        self.shared.children.ended(&self.name);
        self.shared.model().process_ended(&self.name, Instant::now())
    }

    fn signal(&self, signal: Signal) {
        // `id` is none once it was reaped, so the number is not another's.
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn words(&self, status: io::Result<ExitStatus>) -> String {
        // Who was killed had no last words; what stands in the log is about something else.
        let said = match &status {
            Ok(status) if status.code().is_some() => self.spawn.last_line(),
            _ => String::new(),
        };
        let how = status.map_or_else(|error| format!("cannot be waited for: {error}"), |status| status.to_string());
        let said = if said.is_empty() { said } else { format!(" (its log's last line: {said})") };
        format!("{} ended: {how}{said}", self.name)
    }
}

/// A wish to stop, that many can wait for.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// The hand that stops.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// A stopper and what it stops.
    #[must_use]
    pub fn new() -> (Stopper, Stop) {
        let (sender, receiver) = watch::channel(false);
        (Stopper(sender), Stop(receiver))
    }

    /// Stops.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Returns once stopped, or once the stopper is gone.
    pub async fn wanted(&mut self) {
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }

    /// Sleeps; `true` when stopped meanwhile.
    pub async fn sleep(&mut self, duration: Duration) -> bool {
        timeout(duration, self.wanted()).await.is_ok()
    }
}

/// Keeps the process `name` running until stopped. `start` starts it, and is asked again each time.
pub async fn keep_running(
    shared: Shared,
    name: String,
    mut stop: Stop,
    mut start: impl FnMut(&Shared, &str) -> io::Result<Supervised>,
) {
    let mut backoff = Backoff::default();
    loop {
        let up = match start(&shared, &name) {
            Ok(mut process) => tokio::select! {
                how = process.ended() => {
                    shared.model().failure(how);
                    process.end(Signal::SIGKILL).await
                }
                () = stop.wanted() => {
                    process.end(Signal::SIGTERM).await;
                    break;
                }
            },
            Err(error) => {
                shared.model().failure(format!("{name} cannot be started: {error}"));
                Duration::ZERO
            }
        };
        if stop.sleep(backoff.delay(up)).await {
            break;
        }
    }
    shared.model().process_forgotten(&name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(dir: &std::path::Path) -> Shared {
        Shared::new(Model::default(), Children::open(dir.join("children.json")))
    }

    fn shell(dir: &std::path::Path, script: &str) -> Spawn {
        let arguments = vec!["-c".into(), script.into()];
        Spawn { program: "/bin/sh".into(), arguments, log: dir.join("log") }
    }

    #[tokio::test]
    async fn a_killed_process_is_started_again_and_a_stop_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let shared = shared(dir.path());
        let spawn = shell(dir.path(), "echo I live; exec sleep 1000");
        let (stopper, stop) = Stopper::new();
        let (seen, mut starts) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(keep_running(shared.clone(), "x".into(), stop, move |shared, name| {
            let process = shared.start(name, spawn.clone(), &[])?;
            seen.send(process.child.id().unwrap()).unwrap();
            Ok(process)
        }));
        let first = starts.recv().await.unwrap();
        kill(Pid::from_raw(first.try_into().unwrap()), Signal::SIGKILL).unwrap();
        let second = starts.recv().await.unwrap();
        assert_ne!(first, second);
        assert!(shared.model().failures().0[0].starts_with("x ended: signal: 9"));
        stopper.stop();
        task.await.unwrap();
        assert!(shared.model().processes(Instant::now()).is_empty());
        assert!(kill(Pid::from_raw(second.try_into().unwrap()), None).is_err(), "reaped");
        assert!(shared.end_predecessors().await.is_empty(), "off the record");
    }

    #[tokio::test]
    async fn what_cannot_start_is_tried_again_until_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let shared = shared(dir.path());
        let spawn = Spawn { program: "/nowhere/x".into(), ..shell(dir.path(), "") };
        let (stopper, stop) = Stopper::new();
        let task = tokio::spawn(keep_running(shared.clone(), "x".into(), stop, move |shared, name| {
            shared.start(name, spawn.clone(), &[])
        }));
        while shared.model().failures().1 < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(shared.model().failures().0[0].contains("/nowhere/x"));
        stopper.stop();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn why_a_process_ended_is_its_status_and_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shared(dir.path()).start("x", shell(dir.path(), "echo no such thing; exit 3"), &[]).unwrap();
        assert_eq!(process.ended().await, "x ended: exit status: 3 (its log's last line: no such thing)");
    }
}

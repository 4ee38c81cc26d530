//! Starting a machine and seeing it end.
//!
//! QEMU gets a process group of its own, so that a ^C at the terminal reaches whoever started it and not QEMU, which
//! is then ended in order: asked over QMP, then SIGTERM, then SIGKILL, each step bounded, and always reaped.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{Machine, MachineError, Qmp, QmpError};

/// What is started, and how.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The QEMU program.
    pub program: PathBuf,
    /// What QEMU itself prints goes here (truncated); `None` passes it on to our own stderr.
    pub log: Option<PathBuf>,
    /// Whether QEMU dies with its [`Running`]. A killed parent drops nothing: that case is the parent's to solve.
    pub kill_on_drop: bool,
}

/// A QEMU that was started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pid: u32,
    qmp: Option<PathBuf>,
}

/// Why a machine could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The machine has no command line.
    #[error("the machine cannot be described to QEMU")]
    Machine(#[from] MachineError),
    /// The log could not be made.
    #[error("cannot create QEMU's log {path}: is the directory there, and writable?")]
    Log {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// QEMU could not be started.
    #[error("cannot start {program}: is QEMU installed?")]
    Spawn {
        /// What.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Machine {
    /// The command that starts this machine with `program`: stdin empty, a process group of its own.
    ///
    /// # Errors
    /// When the machine has no command line.
    pub fn command(&self, program: &Path) -> Result<Command, MachineError> {
        let mut command = Command::new(program);
        command.args(self.command_line()?).stdin(Stdio::null()).process_group(0);
        Ok(command)
    }
}

/// Starts `machine`. Needs a tokio runtime.
///
/// # Errors
/// When the machine has no command line, or QEMU or its log cannot be had. That QEMU refuses its arguments is seen
/// later: [`Running::wait`] ends, and the log says why.
pub fn launch(machine: &Machine, how: &Launch) -> Result<Running, LaunchError> {
    let mut command = machine.command(&how.program)?;
    if let Some(path) = &how.log {
        let failed = |source| LaunchError::Log { path: path.clone(), source };
        let log = File::create(path).map_err(failed)?;
        command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    }
    let child = command.kill_on_drop(how.kill_on_drop).spawn();
    let child = child.map_err(|source| LaunchError::Spawn { program: how.program.clone(), source })?;
    let pid = child.id().expect("a child that was not waited for has an ID");
    Ok(Running { child, pid, qmp: machine.qmp.clone() })
}

impl Running {
    /// The process ID. It stays taken until [`Running::wait`] or another call has reaped the process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Opens QMP, waiting up to `patience` for a QEMU that has just started to listen.
    ///
    /// # Errors
    /// When the machine has no QMP socket, or nobody answers there in time.
    pub async fn qmp(&self, patience: Duration) -> Result<Qmp, QmpError> {
        let missing = || QmpError::Connect(io::Error::new(io::ErrorKind::NotFound, "the machine has no QMP socket"));
        let path = self.qmp.as_ref().ok_or_else(missing)?;
        let last_try = tokio::time::Instant::now() + patience;
        loop {
            match Qmp::connect(path).await {
                Err(QmpError::Connect(_)) if tokio::time::Instant::now() < last_try => {
                    tokio::time::sleep(CONNECT_RETRY).await;
                }
                result => return result,
            }
        }
    }

    /// Waits until QEMU has ended, and reaps it. May be called again, and may be dropped.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills QEMU and reaps it.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub async fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        self.child.wait().await
    }

    /// Ends QEMU: `quit` over QMP, then SIGTERM, then SIGKILL, with up to `grace` after each of the first two.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub async fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        if let Ok(qmp) = self.qmp(Duration::ZERO).await {
            // The answer is lost when QEMU is quicker than its own socket: what counts is that it ends.
            let _ = qmp.quit().await;
            if let Ok(status) = timeout(grace, self.child.wait()).await {
                return status;
            }
        }
        self.signal(Signal::SIGTERM);
        match timeout(grace, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => self.kill().await,
        }
    }

    /// Signals the process unless it was reaped: its ID could be another's by then.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may be a zombie: nothing to do about that here, waiting reaps it.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Between attempts to reach the QMP socket of a QEMU that has just started.
const CONNECT_RETRY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Accelerator;

    fn how(program: &str) -> Launch {
        Launch { program: program.into(), log: None, kill_on_drop: true }
    }

    fn machine(dir: &Path) -> Machine {
        Machine { qmp: Some(dir.join("qmp")), ..Machine::new("test", 32, Accelerator::Tcg) }
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = launch(&Machine::new("x", 16, Accelerator::Tcg), &how("/nowhere/qemu")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/qemu"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_ends_at_once_is_reaped_and_stopping_it_again_is_harmless() {
        let mut running = launch(&Machine::new("x", 16, Accelerator::Tcg), &how("/bin/false")).unwrap();
        assert_eq!(running.wait().await.unwrap().code(), Some(1));
        assert_eq!(running.stop(Duration::from_secs(1)).await.unwrap().code(), Some(1));
        assert_eq!(running.kill().await.unwrap().code(), Some(1));
    }

    #[tokio::test]
    async fn a_real_qemu_starts_answers_and_quits() {
        let Ok(_) = crate::version::check("qemu-system-x86_64").await else { return };
        let dir = tempfile::tempdir().unwrap();
        let mut running = launch(&machine(dir.path()), &how("qemu-system-x86_64")).unwrap();
        let qmp = running.qmp(Duration::from_secs(20)).await.unwrap();
        assert_eq!(qmp.status().await.unwrap(), "running");
        qmp.system_reset().await.unwrap();
        drop(qmp);
        // -no-reboot makes a reset end QEMU by itself; stop copes with either.
        assert_eq!(running.stop(Duration::from_secs(20)).await.unwrap().code(), Some(0));
        assert!(running.qmp(Duration::ZERO).await.is_err());
    }

    #[tokio::test]
    async fn a_qemu_that_does_not_listen_is_killed_in_bounded_time() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("deaf");
        std::fs::write(&script, "#!/bin/sh\ntrap '' TERM\n: >\"$0.deaf\"\nwhile :; do sleep 0.05; done\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut running = launch(&machine(dir.path()), &how(script.to_str().unwrap())).unwrap();
        while !dir.path().join("deaf.deaf").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ended = running.stop(Duration::from_millis(100)).await.unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    }
}

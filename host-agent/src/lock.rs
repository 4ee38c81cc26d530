//! One agent for each directory: a lock that ends with its process, however that ends.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::kill,
    unistd::Pid,
};

/// How long the lock of an agent that was killed may live on: a child of it, forked and not yet become its program, has
/// the lock too.
const ORPHAN_MAX: Duration = Duration::from_secs(2);

/// A held lock. The file stays where it is; only the lock on it counts.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Why a lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "the agent with PID {pid} already uses {directory}: end it (`oht down`), or give this one \
             a --state-dir and a --run-dir of its own"
    )]
    Held {
        /// Its process ID, or `?`.
        pid: String,
        /// The directory.
        directory: PathBuf,
    },
    /// The file cannot be opened or locked.
    #[error("cannot lock {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Takes the lock `path` and writes our process ID into it.
///
/// # Errors
/// When another process holds it.
pub fn take(path: &Path) -> Result<Lock, LockError> {
    let failed = |source| LockError::Io { path: path.into(), source };
    let began = Instant::now();
    loop {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
                written.map_err(failed)?;
                return Ok(Lock(lock));
            }
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                let (error, has_ended) = held(file, path);
                if !has_ended || began.elapsed() > ORPHAN_MAX {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        }
    }
}

/// Says who holds the lock, and takes nothing: the file keeps what it says.
///
/// # Errors
/// When another process holds it.
pub fn peek(path: &Path) -> Result<(), LockError> {
    let failed = |source| LockError::Io { path: path.into(), source };
    let file = File::options().read(true).open(path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(()),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => Err(held(file, path).0),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// Who holds the lock, and whether that process has ended.
fn held(file: File, path: &Path) -> (LockError, bool) {
    let mut pid = String::new();
    // What cannot be read is said as `?`: that somebody holds the lock is what matters.
    let _ = file.take(32).read_to_string(&mut pid);
    let pid: String = if pid.trim().is_empty() { "?".into() } else { pid.trim().into() };
    let process = pid.parse().ok().filter(|pid| *pid > 0).map(Pid::from_raw);
    let has_ended = process.is_some_and(|process| kill(process, None) == Err(nix::errno::Errno::ESRCH));
    (LockError::Held { pid, directory: path.parent().unwrap_or(path).into() }, has_ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_a_killed_agent_was_about_to_start_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let orphan = take(&path).unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        std::fs::write(&path, format!("{}\n", ended.id())).unwrap();
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(orphan);
        });
        take(&path).unwrap();
        release.join().unwrap();
    }

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = take(&path).unwrap();
        let error = take(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("PID {}", std::process::id())), "{error}");
        assert!(peek(&path).unwrap_err().to_string().contains("PID"));
        drop(first);
        peek(&path).unwrap();
        take(&path).unwrap();
        assert!(matches!(take(&dir.path().join("no/lock")), Err(LockError::Io { .. })));
    }
}

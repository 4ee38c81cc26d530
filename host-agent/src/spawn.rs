#![allow(unsafe_code, reason = "a new session and inherited descriptors need a step between fork and exec")]
//! Starting a helper process: its own session, an empty stdin, its output in a log file, and exactly the descriptors
//! that are named.
//!
//! A session of its own keeps the terminal's ^C and hang-up away from it: the agent ends its children in order, and
//! children outlive an agent that is killed, so that VMs keep their network until the successor replaces them.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    unistd::setsid,
};
use tokio::process::{Child, Command};

use crate::notify;

/// Bytes at which a log file is begun anew when its process is started.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// What is started.
#[derive(Clone, Debug)]
pub struct Spawn {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where its output is appended.
    pub log: PathBuf,
}

impl Spawn {
    /// Starts the process. `inherit` keep their numbers in it, which the arguments name.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not be started.
    pub fn start(&self, inherit: &[BorrowedFd<'_>]) -> io::Result<Child> {
        self.start_changed(inherit, |_| {})
    }

    /// The same, of a command that is changed before: another environment, another output.
    ///
    /// # Errors
    /// As [`Spawn::start`].
    pub fn start_changed(&self, inherit: &[BorrowedFd<'_>], change: impl FnOnce(&mut Command)) -> io::Result<Child> {
        let log = open_log(&self.log)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        for variable in notify::VARIABLES {
            command.env_remove(variable);
        }
        change(&mut command);
        let numbers: Vec<RawFd> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: setsid(2) and fcntl(2) are async-signal-safe and nothing is allocated. The borrows in `inherit` last
        // until spawn has returned, so the numbers are open in the child.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                for number in &numbers {
                    fcntl(BorrowedFd::borrow_raw(*number), FcntlArg::F_SETFD(FdFlag::empty()))?;
                }
                Ok(())
            });
        }
        command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.program.display())))
    }

    /// The last line that the process has printed, for a person who asks why it ended.
    #[must_use]
    pub fn last_line(&self) -> String {
        last_line(&self.log)
    }
}

/// The last line of a file that is not blank, or nothing.
#[must_use]
pub fn last_line(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        file.take(4096).read_to_end(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

fn open_log(path: &Path) -> io::Result<File> {
    let long = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX);
    let log = File::options().create(true).append(true).open(path)?;
    if long {
        log.set_len(0)?;
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::fd::AsFd, os::unix::net::UnixStream};

    fn shell(dir: &Path, script: &str) -> Spawn {
        Spawn {
            program: "/bin/sh".into(),
            arguments: ["-c", script].map(OsString::from).to_vec(),
            log: dir.join("log"),
        }
    }

    #[tokio::test]
    async fn a_process_has_the_named_descriptors_its_own_session_and_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let (_other, secret) = UnixStream::pair().unwrap();
        let has = |fd: &UnixStream| format!("if [ -e /proc/$$/fd/{0} ]; then echo {0}; fi;", fd.as_raw_fd());
        let spawn = shell(dir.path(), &format!("echo begin; {} {} exit 3", has(&theirs), has(&secret)));
        let mut child = spawn.start(&[theirs.as_fd()]).unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
        assert_ne!(nix::unistd::getsid(Some(pid)).ok(), nix::unistd::getsid(None).ok());
        assert_eq!(child.wait().await.unwrap().code(), Some(3));
        let expected = format!("begin\n{}\n", theirs.as_raw_fd());
        assert_eq!(std::fs::read_to_string(&spawn.log).unwrap(), expected);
        assert_eq!(spawn.last_line(), theirs.as_raw_fd().to_string());
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let spawn = Spawn { program: "/nowhere/x".into(), ..shell(dir.path(), "") };
        assert!(spawn.start(&[]).unwrap_err().to_string().contains("/nowhere/x"));
        assert_eq!(spawn.last_line(), "");
    }
}

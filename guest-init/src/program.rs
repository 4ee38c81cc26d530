//! The router program: started as the owner of the state, watched, reaped.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{manifest::Manifest, mounts::STATE, system};

/// The router program in the image, without the leading slash, as the manifest names it.
pub(crate) const ROUTER: &str = "bin/oht-router";

/// Why the program was not started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The image is not whole: only a new VM can mend that.
    Unfit(String),
    /// The kernel refused; it may not the next time.
    Refused(String),
}

/// Checks and starts the router program.
pub(crate) fn start(log_filter: Option<&str>) -> Result<Pid, StartError> {
    if let Some(line) = system::unpacking_failure() {
        return Err(StartError::Unfit(format!("the kernel says \"{line}\": give the VM more memory")));
    }
    let root = Path::new("/");
    Manifest::read(&root.join("etc/manifest.json"))
        .and_then(|manifest| manifest.check(root, ROUTER))
        .map_err(|error| StartError::Unfit(error.to_string()))?;
    let (uid, gid) = owner();
    let mut command = Command::new(root.join(ROUTER));
    command.env_clear().env("PATH", "/bin").env("RUST_BACKTRACE", "1").current_dir("/").stdin(Stdio::null());
    command.uid(uid).gid(gid);
    if let Some(filter) = log_filter {
        command.env("RUST_LOG", filter);
    }
    let child = command.spawn().map_err(|error| StartError::Refused(format!("could not be started: {error}")))?;
    let pid = i32::try_from(child.id()).map_err(|_| StartError::Refused("has an impossible PID".into()))?;
    Ok(Pid::from_raw(pid))
}

/// Sends the program a signal; one that has just ended is no error.
pub(crate) fn signal(pid: Pid, signal: Signal) -> Result<(), String> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(format!("cannot send {signal} to the router: {error}")),
    }
}

/// Reaps one child that has ended: its PID and how it ended.
pub(crate) fn reap() -> Option<(Pid, String)> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => return Some((pid, format!("exited with status {status}"))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => return Some((pid, format!("was ended by {signal}"))),
            Ok(WaitStatus::StillAlive) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Who owns the state: the program runs as that user, so that its files belong to the user who runs the host agent,
/// and only root in here where that user is root.
fn owner() -> (u32, u32) {
    let owner = fs::metadata(STATE).map_or((0, 0), |state| (state.uid(), state.gid()));
    if owner.0 != 0 {
        let (uid, gid) = owner;
        let named =
            [("/etc/passwd", format!("router:x:{uid}:{gid}::/:\n")), ("/etc/group", format!("router:x:{gid}:\n"))];
        for (path, line) in named {
            add_line(path, &line);
        }
    }
    owner
}

/// Some of the program's libraries look their user up by number.
fn add_line(path: &str, line: &str) {
    let mut text = fs::read_to_string(path).unwrap_or_default();
    if !text.contains(line) {
        text.push_str(line);
        if let Err(error) = fs::write(path, text) {
            system::log(&format!("cannot write {path}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test for both ways to end: reaping takes any child, so two tests would take each other's.
    #[test]
    #[expect(clippy::zombie_processes, reason = "reaping them is what is tested")]
    fn an_end_is_told_in_words() {
        let ends = |script: &str| {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            loop {
                if let Some((pid, how)) = reap() {
                    assert_eq!(pid.as_raw(), i32::try_from(child.id()).unwrap());
                    return how;
                }
                std::thread::yield_now();
            }
        };
        assert_eq!(ends("exit 3"), "exited with status 3");
        assert_eq!(ends("kill -SEGV $$"), "was ended by SIGSEGV");
        assert_eq!(reap(), None);
    }
}

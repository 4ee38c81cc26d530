//! A process that is not our child, held so that it cannot be mistaken for another.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// A process, by pidfd.
#[derive(Clone, Debug)]
pub struct Process(Arc<OwnedFd>);

impl Process {
    /// Takes hold of the process that has this ID now; `None` when there is none.
    #[must_use]
    pub fn open(pid: i32) -> Option<Process> {
        // 0 and negative numbers mean groups elsewhere; here they are refused.
        let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw)?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(|fd| Process(Arc::new(fd)))
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        // It may have ended by itself, which is what is wanted.
        let _ = pidfd_send_signal(&self.0, Signal::TERM);
    }

    /// Ends it.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Waits for its end; `false` when it has not ended within `patience`.
    pub async fn ended(&self, patience: Duration) -> bool {
        let fd = Arc::clone(&self.0);
        let patience = Timespec::try_from(patience).ok();
        let wait =
            move || poll(&mut [PollFd::new(&*fd, PollFlags::IN)], patience.as_ref()).is_ok_and(|ready| ready > 0);
        // A blocked thread, because an asynchronous registration of a foreign descriptor needs unsafe code.
        tokio::task::spawn_blocking(wait).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_seen_and_a_patience_runs_out() {
        let mut child = tokio::process::Command::new("/bin/sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let process = Process::open(child.id().unwrap().try_into().unwrap()).unwrap();
        assert!(!process.ended(Duration::from_millis(10)).await);
        process.terminate();
        assert!(process.ended(Duration::from_secs(10)).await);
        child.wait().await.unwrap();
        process.kill();
        assert!(process.ended(Duration::ZERO).await);
        assert!(Process::open(0).is_none() && Process::open(-1).is_none());
    }
}

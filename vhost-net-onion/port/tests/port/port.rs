//! The port under test: on a thread, or as a process. The test holds the listening sockets, as the host agent does.

use std::{
    os::{fd::AsRawFd, unix::net::UnixListener},
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    thread::JoinHandle,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, dup},
};
use port::{Counters, Options, Port, Stop, serve};
use tempfile::TempDir;
use wire::VmName;

use crate::allocations::count_this_thread;

/// Where a port is reached.
pub struct Sockets {
    _dir: TempDir,
    pub vhost_user: PathBuf,
    pub link: PathBuf,
    vhost_user_listener: UnixListener,
    link_listener: UnixListener,
}

pub fn vm() -> VmName {
    "web".parse().unwrap()
}

impl Sockets {
    pub fn new() -> Sockets {
        let dir = tempfile::tempdir().unwrap();
        let vhost_user = dir.path().join("net");
        let link = dir.path().join("link");
        let vhost_user_listener = UnixListener::bind(&vhost_user).unwrap();
        let link_listener = UnixListener::bind(&link).unwrap();
        Sockets { _dir: dir, vhost_user, link, vhost_user_listener, link_listener }
    }

    pub fn thread(&self) -> Thread {
        self.thread_with(Options::default())
    }

    pub fn thread_with(&self, options: Options) -> Thread {
        self.thread_that(options, false)
    }

    /// A port whose allocations are counted.
    pub fn counted_thread(&self) -> Thread {
        self.thread_that(Options::default(), true)
    }

    fn thread_that(&self, options: Options, counted: bool) -> Thread {
        let stop = Stop::new().unwrap();
        let stopped = stop.clone();
        let (vhost_user, link) =
            (self.vhost_user_listener.try_clone().unwrap(), self.link_listener.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            count_this_thread(counted);
            serve(&vm(), vhost_user, link, options, &stopped).unwrap()
        });
        Thread { stop, thread }
    }

    /// A port that the test drives itself.
    pub fn in_process(&self) -> Port {
        Port::new(self.vhost_user_listener.try_clone().unwrap(), Options::default()).unwrap()
    }

    pub fn process(&self) -> Process {
        // `dup` gives descriptors that survive exec.
        let vhost_user = dup(&self.vhost_user_listener).unwrap();
        let link = dup(&self.link_listener).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_oht-port"))
            .args(["--vm", "web", "--log", "error"])
            .args(["--vhost-user-fd", &vhost_user.as_raw_fd().to_string()])
            .args(["--link-fd", &link.as_raw_fd().to_string()])
            .spawn()
            .unwrap();
        Process(child)
    }
}

/// A port on a thread.
pub struct Thread {
    stop: Stop,
    thread: JoinHandle<Counters>,
}

impl Thread {
    pub fn stop(self) -> Counters {
        self.stop.stop();
        self.thread.join().unwrap()
    }
}

/// A port as a process, killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub fn terminate(mut self) -> ExitStatus {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.0.wait().unwrap()
    }

    /// How many descriptors and how many mappings the process has.
    pub fn holds(&self) -> (usize, usize) {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.0.id())).unwrap().lines().count();
        (fds, maps)
    }

    pub fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

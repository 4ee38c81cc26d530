//! The real uplink process: what its list lets through, and what it survives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write,
    net::SocketAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    time::Duration,
};

use host_agent::spawn::Spawn;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    process::Child,
    time::timeout,
};
use wire::{
    hello::{Hello, Role},
    uplink::{DialAnswer, DialRequest},
};

struct Uplink {
    dir: TempDir,
    allow: std::io::PipeWriter,
    child: Child,
}

impl Uplink {
    /// An uplink with at most `connections` connections and `files` descriptors.
    fn start(connections: usize, files: usize) -> Uplink {
        let dir = tempfile::tempdir().unwrap();
        let listener = OwnedFd::from(UnixListener::bind(dir.path().join("s")).unwrap());
        let (reader, allow) = std::io::pipe().unwrap();
        let reader = OwnedFd::from(reader);
        let (program, listen, allowed) = (env!("CARGO_BIN_EXE_oht-uplink"), listener.as_raw_fd(), reader.as_raw_fd());
        let script = format!(
            "ulimit -n {files}; exec {program} --listen-fd {listen} --allow-fd {allowed} --connections-max {connections}"
        );
        let arguments = vec!["-c".into(), script.into()];
        let spawn = Spawn { program: "/bin/sh".into(), arguments, log: dir.path().join("log") };
        let child = spawn.start(&[std::os::fd::AsFd::as_fd(&listener), std::os::fd::AsFd::as_fd(&reader)]).unwrap();
        Uplink { dir, allow, child }
    }

    fn allow(&mut self, addresses: &[SocketAddr]) {
        self.allow.write_all(&[serde_json::to_vec(addresses).unwrap(), b"\n".to_vec()].concat()).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    async fn ask(&self, address: SocketAddr) -> (UnixStream, DialAnswer) {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        // When the uplink is busy it answers without listening, and what we write may find a closed socket.
        let _ = stream.write_all(&Hello::new(Role::Router).encode()).await;
        let _ = stream.write_all(&DialRequest(address).encode()).await;
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).await.unwrap();
        (stream, DialAnswer::try_from(answer[8]).unwrap())
    }

    async fn until(&self, address: SocketAddr, wanted: DialAnswer) {
        let asking = async {
            while self.ask(address).await.1 != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), asking).await.unwrap_or_else(|_| panic!("never {wanted:?}"));
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
    }
}

async fn relay() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn each_list_replaces_the_last_and_the_end_of_the_pipe_keeps_it() {
    let mut uplink = Uplink::start(16, 100);
    let ((_a, a), (b_listener, b)) = (relay().await, relay().await);
    assert_eq!(uplink.ask(a).await.1, DialAnswer::Forbidden, "nothing may be dialled before the first list");
    uplink.allow(&[a]);
    uplink.until(a, DialAnswer::Connected).await;
    assert_eq!(uplink.ask(b).await.1, DialAnswer::Forbidden);
    assert!(timeout(Duration::from_millis(50), b_listener.accept()).await.is_err(), "never dialled");
    uplink.allow(&[b]);
    uplink.until(b, DialAnswer::Connected).await;
    assert_eq!(uplink.ask(a).await.1, DialAnswer::Forbidden);
    uplink.allow = std::io::pipe().unwrap().1;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(uplink.ask(b).await.1, DialAnswer::Connected);
}

#[tokio::test]
async fn idle_connections_make_it_busy_and_their_end_makes_it_free() {
    let mut uplink = Uplink::start(8, 100);
    let (_relay, address) = relay().await;
    uplink.allow(&[address]);
    uplink.until(address, DialAnswer::Connected).await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(UnixStream::connect(uplink.socket()).await.unwrap());
    }
    uplink.until(address, DialAnswer::Busy).await;
    drop(idle);
    uplink.until(address, DialAnswer::Connected).await;
}

#[tokio::test]
async fn it_survives_having_no_descriptors_left() {
    let mut uplink = Uplink::start(1000, 24);
    let (_relay, address) = relay().await;
    uplink.allow(&[address]);
    uplink.until(address, DialAnswer::Connected).await;
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(UnixStream::connect(uplink.socket()).await.unwrap());
    }
    let log = uplink.dir.path().join("log");
    let failed = async {
        while !std::fs::read_to_string(&log).unwrap().contains("cannot accept") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), failed).await.unwrap();
    drop(idle);
    uplink.until(address, DialAnswer::Connected).await;
    assert!(uplink.child.try_wait().unwrap().is_none());
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.contains("127.0.0.1"), "addresses are not logged: {log}");
}

//! The real daemon in a directory of its own, with stand-ins for the router VM's three processes and the port.

#![allow(dead_code, unreachable_pub, reason = "each of the tests that share it uses a part")]

use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use wire::{
    control::{ToRouter, body_bytes, decode},
    hello::{Hello, Role},
};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with stand-ins for the programs that the agent runs, and the agent.
pub struct World {
    dir: TempDir,
    pub agent: Option<Child>,
    /// What is run as the agent.
    pub program: PathBuf,
    /// Further options for it.
    pub options: Vec<OsString>,
    /// Drop-ins with routes, where there are any.
    pub routes_dir: Option<PathBuf>,
}

impl World {
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let world = World {
            dir,
            agent: None,
            program: env!("CARGO_BIN_EXE_host-agent").into(),
            options: vec![],
            routes_dir: None,
        };
        let programs = world.path("programs");
        fs::create_dir(&programs).unwrap();
        let qemu = "case $1 in --version) echo 'QEMU emulator version 10.0.2';; *) exec sleep 1000;; esac";
        // The vsock device's socket appears, which is all that is waited for.
        let vsock = "s=${2#*,socket=}; : >\"${s%%,*}\"; exec sleep 1000";
        let stand_ins =
            [("qemu-system-x86_64", qemu), ("vhost-device-vsock", vsock), ("virtiofsd", SLEEP), ("oht-port", SLEEP)];
        for (name, script) in stand_ins {
            let path = programs.join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let image = world.path("image");
        fs::create_dir(&image).unwrap();
        let mut entries = Vec::new();
        for name in ["vmlinuz", "initramfs.cpio.zst"] {
            fs::write(image.join(name), name).unwrap();
            let sha256: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
            entries.push(format!(r#""{name}":{{"sha256":"{sha256}","bytes":1}}"#));
        }
        fs::write(image.join("manifest.json"), format!(r#"{{"version":1,"files":{{{}}}}}"#, entries.join(",")))
            .unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Describes a network whose only relay is at `relay`.
    pub fn network(&self, relay: &str) -> PathBuf {
        let cache = format!(r#"{{"rsa":"{}","ed25519":"{}","orports":["{relay}"]}}"#, "A".repeat(40), "x".repeat(43));
        let network = format!(r#"{{"name":"t","authorities":["{}"],"caches":[{cache}]}}"#, "A".repeat(40));
        fs::write(self.path("network.json"), network).unwrap();
        self.path("network.json")
    }

    pub fn command(&self, run_dir: &str, state_dir: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run").args(&self.options).env("XDG_CONFIG_HOME", self.dir.path()).stdin(Stdio::null());
        let routes = self.routes_dir.clone().unwrap_or_else(|| self.path("no-routes"));
        command.arg("--routes-dir").arg(routes);
        let network = self.network("127.0.0.1:1");
        let programs = self.path("programs");
        let places =
            [("--run-dir", self.path(run_dir)), ("--state-dir", self.path(state_dir)), ("--image", self.path("image"))];
        for (option, path) in places.into_iter().chain([("--tor-network", network), ("--programs", programs)]) {
            command.arg(option).arg(path);
        }
        command
    }

    pub fn start(&mut self) {
        let log = fs::File::create(self.path("agent.log")).unwrap();
        self.agent = Some(self.command("r", "s").stderr(log).spawn().unwrap());
        let answers = |world: &World| world.request("GET", "/status", "").is_some();
        let last = Instant::now() + PATIENCE;
        while !answers(self) {
            let ended = self.agent.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended: {}", fs::read_to_string(self.path("agent.log")).unwrap());
            assert!(Instant::now() < last, "the agent does not answer");
            sleep(Duration::from_millis(10));
        }
    }

    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// One HTTP exchange: status and body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let mut stream = UnixStream::connect(self.path("r/api.sock")).ok()?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    pub fn status(&self) -> Value {
        self.request("GET", "/status", "").unwrap().1
    }

    /// Connects and greets as `role` would from inside the router VM.
    pub fn connect(&self, socket: &str, role: Role) -> UnixStream {
        let mut stream = UnixStream::connect(self.path(socket)).unwrap();
        stream.write_all(&Hello::new(role).encode()).unwrap();
        let mut hello = [0; 8];
        stream.read_exact(&mut hello).unwrap();
        stream
    }

    pub fn pid(&self, name: &str) -> Option<i32> {
        let status = self.status();
        let process = status["processes"].as_array().unwrap().iter().find(|process| process["name"] == name)?.clone();
        process["pid"].as_i64().map(|pid| pid.try_into().unwrap())
    }

    pub fn until(&self, what: &str, done: impl Fn(&World) -> bool) {
        let last = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < last, "{what}: not within {PATIENCE:?}");
            sleep(Duration::from_millis(10));
        }
    }

    pub fn oht(&self, arguments: &[&str]) -> Output {
        self.oht_told(arguments, "")
    }

    /// `oht`, told `input` on its standard input.
    pub fn oht_told(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oht"));
        command.args(arguments).env("XDG_CONFIG_HOME", self.dir.path());
        command.arg("--run-dir").arg(self.path("r")).arg("--state-dir").arg(self.path("s"));
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        // One that does not read what it is told has its reasons.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Ends what runs, whatever the test has done to it.
        let _ = self.oht(&["down"]);
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.wait();
        }
    }
}

const SLEEP: &str = "exec sleep 1000";

pub fn alive(pid: i32) -> bool {
    // A zombie has ended.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Reads one message of the agent to the router program.
pub fn order(router: &mut UnixStream) -> ToRouter {
    let mut prefix = [0; 4];
    router.read_exact(&mut prefix).unwrap();
    let mut bytes = prefix.to_vec();
    bytes.resize(4 + body_bytes(prefix).unwrap(), 0);
    router.read_exact(&mut bytes[4..]).unwrap();
    decode(&bytes).unwrap().unwrap().0
}

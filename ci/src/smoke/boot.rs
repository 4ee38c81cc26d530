//! The whole image, booted by the real `host-agent` as an ordinary user, emulated, up to "ready", and down again.
//!
//! The Tor network that it gets names one relay, at an address where nobody listens: booting must not need one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::ordinary;
use crate::{
    cache,
    processes::{self, Lifetime, Plan, Process},
};

/// What belongs to the workspace, and what `ci/setup` built.
const PROGRAMS: [&str; 4] = ["host-agent", "oht", "oht-port", "oht-uplink"];
const TOOLS: [&str; 2] = ["vhost-device-vsock", "virtiofsd"];

/// How often the agent is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// How long the agent may take to stop everything.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);

/// Boots the image in `image`; fails when it is not ready in time, or when the agent had to start it again.
pub(super) fn run(image: &Path, time_max: Duration) -> Result<String> {
    let home = Home::new(image)?;
    let mut agent = home.start()?;
    let status = home.wait_until_ready(&mut agent, time_max)?;
    home.stop(agent)?;
    let boot_s = status["router"]["boot_s"].as_f64().context("the status does not say how long the boot took")?;
    Ok(format!("ready {boot_s:.2} s after QEMU started, and down cleanly"))
}

/// A directory with all that the agent needs, readable for the ordinary user.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new(image: &Path) -> Result<Home> {
        let home = Home { dir: ordinary::workplace()? };
        fs::create_dir(home.path("image")).and_then(|()| fs::create_dir(home.path("bin"))).context("cannot create")?;
        for entry in fs::read_dir(image).context("cannot read the image's directory")?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                ordinary::copy(&entry.path(), &home.path("image").join(entry.file_name()))?;
            }
        }
        for name in PROGRAMS {
            ordinary::copy(&cache::program(name)?, &home.path("bin").join(name))?;
        }
        for name in TOOLS {
            ordinary::copy(&cache::tool(name)?, &home.path("bin").join(name))?;
        }
        fs::write(home.path("tor-network.json"), nowhere().to_string()).context("cannot write")?;
        ordinary::own_dir(home.dir.path(), "run")?;
        ordinary::own_dir(home.dir.path(), "state")?;
        Ok(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn start(&self) -> Result<Process> {
        let [agent, run, state, image, bin, network] =
            ["bin/host-agent", "run", "state", "image", "bin", "tor-network.json"].map(|name| self.text(name));
        let argv = ordinary::argv(&[
            "env",
            "--ignore-environment",
            "PATH=/usr/bin:/bin",
            &agent,
            "run",
            "--run-dir",
            &run,
            "--state-dir",
            &state,
            "--image",
            &image,
            "--tor-network",
            &network,
            "--programs",
            &bin,
            "--accel",
            "tcg",
        ]);
        let log = self.path("agent.log");
        let ledger = self.dir.path().to_owned();
        Plan { name: "host-agent".into(), argv, log, netns: None, lifetime: Lifetime::Ours, ledger }.spawn()
    }

    fn wait_until_ready(&self, agent: &mut Process, time_max: Duration) -> Result<Value> {
        let end = Instant::now() + time_max;
        loop {
            if let Some(failure) = agent.failure() {
                return Err(failure);
            }
            let status = self.oht(&["status"]).unwrap_or(Value::Null);
            let router = &status["router"];
            let restarted = router["restarts"].as_u64().is_some_and(|restarts| restarts > 0);
            match router["state"].as_str() {
                Some("ready") if !restarted => return Ok(status),
                Some("failed") => bail!("the router VM failed: {}", self.evidence(&status)),
                _ if restarted => bail!("the router VM ended and was started again: {}", self.evidence(&status)),
                _ if Instant::now() > end => {
                    bail!("the router VM is not ready within {} s: {}", time_max.as_secs(), self.evidence(&status))
                }
                _ => thread::sleep(ASK_EVERY),
            }
        }
    }

    /// What the agent noted, and the last lines of the serial log: enough to see why.
    fn evidence(&self, status: &Value) -> String {
        let failures: Vec<_> = status["failures"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let serial = processes::last_lines(&self.path("run").join("router.log"), 5);
        let agent = processes::last_lines(&self.path("agent.log"), 3);
        format!("failures: {}; serial log: {serial}; agent: {agent}", failures.join(" | "))
    }

    fn stop(&self, mut agent: Process) -> Result<()> {
        self.oht(&["down"]).context("oht down failed")?;
        let end = Instant::now() + STOP_TIME_MAX;
        while agent.exited().is_none() {
            if Instant::now() > end {
                bail!("the agent did not stop within {} s of `oht down`", STOP_TIME_MAX.as_secs());
            }
            thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    /// Asks the agent through the command, as the user that it runs as.
    fn oht(&self, command: &[&str]) -> Result<Value> {
        let (oht, run) = (self.text("bin/oht"), self.text("run"));
        let words: Vec<&str> = [&["timeout", "30", oht.as_str()], command, &["--json", "--run-dir", &run]].concat();
        let argv = ordinary::argv(&words);
        let done = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).output().context("cannot start oht")?;
        if !done.status.success() {
            bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(serde_json::from_slice(&done.stdout).unwrap_or(Value::Null))
    }
}

/// A network of one relay where nobody listens: port 1 of loopback.
fn nowhere() -> Value {
    serde_json::json!({
        "name": "nowhere",
        "authorities": ["0123456789ABCDEF0123456789ABCDEF01234567"],
        "caches": [{
            "rsa": "0123456789ABCDEF0123456789ABCDEF01234567",
            "ed25519": "yzw7bwWWHEDAiYuWg4Y+dHMXRtLwSmP0b8HMs7XhGns",
            "orports": ["127.0.0.1:1"],
        }],
        "local_addresses": true,
    })
}

//! How long the router VM takes to "ready", and from there until Tor is usable.
//!
//! *boot_ready*: from QEMU's start until guest-init says that it is ready, against the same kernel and image with the
//! kernel argument `oht.bench=bare`: guest-init then says so at once, and neither mounts the state nor starts the
//! router. Both are booted by the same agent on the same command line; the argument is added by a script that stands
//! in QEMU's place, and a script without it for the other side.
//!
//! *tor_usable*: from ready until Tor is usable, with the state of the run before, against C tor on the host with the
//! cache of a client that runs: from its start to "Bootstrapped 100%".

use std::{
    borrow::Cow,
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{PATIENCE, c_tor};
use crate::{
    figures::{Better, Figure, Samples},
    processes,
    world::{World, appliance::Appliance},
};

const BOOT_READY: Figure =
    Figure { name: Cow::Borrowed("boot_ready"), unit: "s", peer: "bare init", better: Better::Lower, goal: Some(1.15) };
const TOR_USABLE: Figure = Figure {
    name: Cow::Borrowed("tor_usable"),
    unit: "s",
    peer: "C tor on the host, cached",
    better: Better::Lower,
    goal: None,
};

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Router,
    Bare,
    CTor,
}

/// Measures both figures.
pub(super) fn run(dir: &Path, world: &World, runs: u32) -> Result<()> {
    fs::create_dir_all(dir).context("cannot create a directory")?;
    let bench = Bench::new(dir, world)?;
    let (mut ready, mut usable) = (Samples::default(), Samples::default());
    let mut no_c_tor = None;
    // The first run makes the state that the others start from; none of it counts.
    bench.router()?;
    for run in 0..runs {
        eprintln!("bench: boot {} of {runs}", run + 1);
        let mut turns = [Turn::Router, Turn::Bare, Turn::CTor];
        if run % 2 == 1 {
            turns.reverse(); // Whoever is always first would always find the caches cold.
        }
        for turn in turns {
            match turn {
                Turn::Router => {
                    let (boot_s, bootstrap_s) = bench.router()?;
                    ready.ours.push(boot_s);
                    usable.ours.push(bootstrap_s);
                }
                Turn::Bare => ready.peer.push(bench.bare()?),
                Turn::CTor => match c_tor::bootstrap(&dir.join("c-tor"), world) {
                    Ok(time) => usable.peer.push(time.as_secs_f64()),
                    Err(error) => no_c_tor = Some(format!("{error:#}")),
                },
            }
        }
    }
    BOOT_READY.print(&ready)?;
    match no_c_tor {
        None => TOR_USABLE.print(&usable),
        Some(why) => TOR_USABLE.print_skipped(&usable.ours, &why),
    }
}

struct Bench<'a> {
    appliance: Appliance<'a>,
    dir: PathBuf,
}

impl<'a> Bench<'a> {
    fn new(dir: &Path, world: &'a World) -> Result<Bench<'a>> {
        stand_in(&dir.join("router"), "")?;
        stand_in(&dir.join("bare"), " oht.bench=bare")?;
        Ok(Bench { appliance: Appliance::new(dir, world)?, dir: dir.to_owned() })
    }

    /// Boots the router VM; seconds from QEMU's start to ready, and from there until Tor is usable.
    fn router(&self) -> Result<(f64, f64)> {
        let status = self.boot("router", |status| status["tor"]["usable"] == true)?;
        let seconds = |part: &str, field: &str| {
            status[part][field].as_f64().with_context(|| format!("the status has no {part}.{field}: {status}"))
        };
        Ok((seconds("router", "boot_s")?, seconds("tor", "bootstrap_s")?))
    }

    /// Boots the bare init; seconds from QEMU's start to ready.
    fn bare(&self) -> Result<f64> {
        let status = self.boot("bare", |_| true)?;
        status["router"]["boot_s"].as_f64().with_context(|| format!("the status has no router.boot_s: {status}"))
    }

    /// Starts the agent, waits until the VM is ready and `done` holds, stops it; the last status.
    fn boot(&self, stand_in: &str, done: impl Fn(&Value) -> bool) -> Result<Value> {
        let log = fs::File::create(self.dir.join(format!("{stand_in}.log"))).context("cannot write a log")?;
        let mut command = self.appliance.agent_command()?;
        command.arg("--programs").arg(self.dir.join(stand_in));
        command.stdout(Stdio::null()).stderr(log);
        let mut agent = command.spawn().context("cannot start host-agent")?;
        let status = self.wait(&mut agent, done);
        self.appliance.down();
        let _ = agent.kill(); // It has ended in order, or never will.
        agent.wait().context("cannot wait for host-agent")?;
        status.with_context(|| processes::last_lines(&self.dir.join(format!("{stand_in}.log")), 5))
    }

    fn wait(&self, agent: &mut Child, done: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        let mut status = Value::Null;
        while Instant::now() < end {
            if let Some(how) = agent.try_wait().context("cannot ask for host-agent")? {
                bail!("host-agent ended ({how})");
            }
            // Asking costs time on a small machine, so it is not done more often than the figures need.
            thread::sleep(Duration::from_millis(250));
            status = self.appliance.status().unwrap_or(Value::Null);
            if status["router"]["state"] == "ready" && done(&status) {
                return Ok(status);
            }
        }
        bail!("not there after {} s: {status}", PATIENCE.as_secs())
    }
}

/// Writes a script that stands in QEMU's place and adds `words` to the kernel's command line.
fn stand_in(dir: &Path, words: &str) -> Result<()> {
    const NAME: &str = "qemu-system-x86_64";
    let paths = env::var_os("PATH").unwrap_or_default();
    let qemu = env::split_paths(&paths).map(|dir| dir.join(NAME)).find(|path| path.is_file());
    let qemu = qemu.with_context(|| format!("{NAME} is missing: run ci/setup"))?;
    let script = format!(
        "#!/bin/bash\narguments=() last=\nfor word; do\n\t[ \"$last\" = -append ] && word=\"$word{words}\"\n\
         \targuments+=(\"$word\") last=$word\ndone\nexec {} \"${{arguments[@]}}\"\n",
        qemu.display()
    );
    fs::create_dir_all(dir).context("cannot create a directory")?;
    let path = dir.join(NAME);
    let written = fs::write(&path, script).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
    written.with_context(|| format!("cannot write {}", path.display()))
}

//! The appliance under test, driven by its command `oht` as a person would, and by nothing else.

use std::{
    net::Ipv4Addr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use super::World;
use crate::{app_vm, cache, netns::Netns, processes, tor_network::RELAYS};

/// The appliance's directories and where it runs. Dropping it runs `oht down`, unless it is left.
#[derive(Debug)]
pub(crate) struct Appliance<'a> {
    run_dir: PathBuf,
    state_dir: PathBuf,
    image: PathBuf,
    network: PathBuf,
    routes_dir: PathBuf,
    geoip_dir: PathBuf,
    netns: Option<&'a Netns>,
    config: Option<PathBuf>,
    left: bool,
}

impl<'a> Appliance<'a> {
    /// Describes an appliance in `dir` that uses the world's Tor network; nothing is started yet.
    ///
    /// # Errors
    /// When there is no image.
    pub(crate) fn new(dir: &Path, world: &'a World) -> Result<Appliance<'a>> {
        let [routes_dir, geoip_dir] = ["routes.d", "geoip"].map(|name| dir.join(name));
        for made in [&routes_dir, &geoip_dir] {
            std::fs::create_dir_all(made).with_context(|| format!("cannot create {}", made.display()))?;
        }
        let geoip: String =
            (0..RELAYS).map(|relay| country_line(world.addresses.relay(relay), &country(relay))).collect();
        std::fs::write(geoip_dir.join("geoip"), geoip).context("cannot write the countries of relays")?;
        Ok(Appliance {
            routes_dir,
            geoip_dir,
            run_dir: dir.join("run"),
            state_dir: dir.join("state"),
            image: cache::image()?,
            network: world.tor.description(),
            netns: world.host(),
            config: None,
            left: false,
        })
    }

    /// Whatever runs in `dir`, to ask or end it; it is not ended when the value is dropped.
    pub(crate) fn in_dir(dir: &Path) -> Appliance<'static> {
        let [image, network, routes_dir, geoip_dir] = [(); 4].map(|()| PathBuf::new());
        let (run_dir, state_dir) = (dir.join("run"), dir.join("state"));
        Appliance { run_dir, state_dir, image, network, routes_dir, geoip_dir, netns: None, config: None, left: true }
    }

    /// The same with another image or another state.
    pub(crate) fn with(&self, run_dir: PathBuf, state_dir: PathBuf, image: PathBuf) -> Appliance<'a> {
        let (network, routes_dir, geoip_dir) = (self.network.clone(), self.routes_dir.clone(), self.geoip_dir.clone());
        Appliance {
            run_dir,
            state_dir,
            image,
            network,
            routes_dir,
            geoip_dir,
            netns: self.netns,
            config: None,
            left: false,
        }
    }

    /// The same with a configuration file, for the next start.
    pub(crate) fn configured(mut self, file: PathBuf) -> Appliance<'a> {
        self.config = Some(file);
        self
    }

    /// `oht up`: returns when Tor is usable.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub(crate) fn up(&self) -> Result<()> {
        said(self.up_command()?.output().context("cannot start oht")?).map(drop)
    }

    /// The command that [`Appliance::up`] runs.
    ///
    /// # Errors
    /// When `oht` is not built.
    pub(crate) fn up_command(&self) -> Result<Command> {
        let mut command = self.command("oht")?;
        command.arg("up").arg("--run-dir").arg(&self.run_dir);
        self.options(&mut command)?;
        Ok(command)
    }

    /// `oht doctor`, with the same options.
    ///
    /// # Errors
    /// When `oht` is not built.
    pub(crate) fn doctor_command(&self) -> Result<Command> {
        let mut command = self.command("oht")?;
        command.arg("doctor").arg("--run-dir").arg(&self.run_dir);
        self.options(&mut command)?;
        Ok(command)
    }

    /// `host-agent run` in the foreground, with the same options.
    ///
    /// # Errors
    /// When it is not built.
    pub(crate) fn agent_command(&self) -> Result<Command> {
        let mut command = self.command("host-agent")?;
        command.arg("run").arg("--run-dir").arg(&self.run_dir);
        self.options(&mut command)?;
        Ok(command)
    }

    fn options(&self, command: &mut Command) -> Result<()> {
        let paths = [
            ("--state-dir", &self.state_dir),
            ("--image", &self.image),
            ("--tor-network", &self.network),
            ("--routes-dir", &self.routes_dir),
            ("--geoip-dir", &self.geoip_dir),
        ];
        for (option, path) in paths {
            command.arg(option).arg(path);
        }
        command.arg("--programs").arg(cache::programs()?);
        if let Some(file) = &self.config {
            command.arg("--config").arg(file);
        }
        Ok(())
    }

    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        let program = cache::program(program)?;
        let program = program.to_str().context("the path of the programs is not UTF-8")?;
        let mut command = self.netns.map_or_else(|| Command::new(program), |netns| netns.command(program));
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// `oht ARGS… --json`; gives what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said, or prints no JSON.
    pub(crate) fn oht(&self, args: &[&str]) -> Result<Value> {
        let output = self.oht_output(args)?;
        let text = said(output).with_context(|| format!("oht {}", args.join(" ")))?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("oht {} printed no JSON: {text}", args.join(" ")))
    }

    /// `oht ARGS… --json`, whatever comes of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn oht_output(&self, args: &[&str]) -> Result<Output> {
        self.oht_command(args)?.output().context("cannot start oht")
    }

    /// `oht ARGS… --json`, to be run.
    ///
    /// # Errors
    /// When there is no such program.
    pub(crate) fn oht_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command("oht")?;
        command.args(args).arg("--json").arg("--run-dir").arg(&self.run_dir);
        Ok(command)
    }

    /// The arguments that attach a VM with busybox, which is added first if need be.
    ///
    /// # Errors
    /// When `oht` refuses.
    pub(crate) fn attach(&self, vm: &str) -> Result<Vec<String>> {
        self.attach_sized(vm, app_vm::MEMORY_MIB)
    }

    /// The same for a VM of another size.
    ///
    /// # Errors
    /// When `oht` refuses.
    pub(crate) fn attach_sized(&self, vm: &str, memory_mib: u32) -> Result<Vec<String>> {
        let known = self.oht(&["vm", "list"])?;
        if !known.to_string().contains(&format!("\"{vm}\"")) {
            self.oht(&["vm", "add", vm])?;
        }
        let memory = memory_mib.to_string();
        let printed = self.oht(&["vm", "attach", vm, "--qemu", "--memory", &memory])?;
        serde_json::from_value(printed).context("`oht vm attach` did not print an array of arguments")
    }

    /// `oht status`.
    ///
    /// # Errors
    /// When it fails: the agent may not run.
    pub(crate) fn status(&self) -> Result<Value> {
        self.oht(&["status"])
    }

    /// Every circuit that was used for a VM: the VM's name, the circuit, its relays' identities.
    ///
    /// # Errors
    /// When `oht` fails or prints something else.
    pub(crate) fn circuits(&self) -> Result<Vec<Circuit>> {
        serde_json::from_value(self.oht(&["circuits"])?).context("`oht circuits` printed something else than circuits")
    }

    /// The process that the status calls `name`.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn pid(&self, name: &str) -> Result<u32> {
        let status = self.status()?;
        let pid = if name == "host-agent" {
            status["agent"]["pid"].as_u64()
        } else {
            let list = status["processes"].as_array().context("the status lists no processes")?;
            list.iter().find(|process| process["name"] == name).and_then(|process| process["pid"].as_u64())
        };
        let pid = pid.with_context(|| format!("the status has no process {name:?}: {}", status["processes"]))?;
        u32::try_from(pid).context("a process number out of range")
    }

    /// Everything of the appliance that runs: names and numbers.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub(crate) fn pids(&self) -> Result<Vec<(String, u32)>> {
        let status = self.status()?;
        let mut all = vec![("host-agent".to_owned(), self.pid("host-agent")?)];
        for process in status["processes"].as_array().into_iter().flatten() {
            if let (Some(name), Some(pid)) = (process["name"].as_str(), process["pid"].as_u64()) {
                all.push((name.to_owned(), u32::try_from(pid).context("a process number out of range")?));
            }
        }
        Ok(all)
    }

    /// The agent's run directory.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The agent's state directory.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The image.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// Lets it go on after this program.
    pub(crate) fn leave(mut self) {
        self.left = true;
    }

    /// Ends it. What does not end in order is killed.
    pub(crate) fn down(&self) {
        let pids = self.pids().unwrap_or_default();
        let began: Vec<_> = pids.iter().filter_map(|&(_, pid)| Some((pid, processes::start_time(pid)?))).collect();
        let _ = self.oht_output(&["down"]);
        for (pid, at) in began {
            if processes::start_time(pid) == Some(at) {
                processes::signal(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Appliance<'_> {
    fn drop(&mut self) {
        if !self.left {
            self.down();
        }
    }
}

/// The country that a relay of the private network is said to be in: each has one of its own, of those that are nobody's
/// (ISO 3166-1, user-assigned codes).
pub(crate) fn country(relay: usize) -> String {
    let letter = u8::try_from(relay).ok().and_then(|relay| b'A'.checked_add(relay)).unwrap_or(b'Z');
    format!("X{}", char::from(letter))
}

/// The line of a geoip file that says so.
fn country_line(relay: Ipv4Addr, country: &str) -> String {
    let number = relay.to_bits();
    format!("{number},{number},{country}\n")
}

/// A circuit, as `oht circuits --json` prints it.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Circuit {
    /// The VM that it is for.
    pub(crate) vm: String,
    /// Its name.
    pub(crate) circuit: Value,
    /// RSA identities of its relays, in order.
    pub(crate) relays: Vec<String>,
    /// Whether it leads to an onion service.
    pub(crate) onion: bool,
}

/// The output of a program that succeeded; else an error with what it said.
pub(crate) fn said(output: Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = [output.stderr, output.stdout].concat();
    bail!("{}: {}", output.status, String::from_utf8_lossy(&words).trim())
}

/// A directory for one run in the system's directory for temporary files, where socket paths stay short. It belongs to
/// us alone: one that somebody else made is refused.
///
/// # Errors
/// When it cannot be made, or is not ours.
pub(crate) fn own_dir(name: &str) -> Result<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let own = nix::unistd::getuid().as_raw();
    let path = std::env::temp_dir().join(format!("oht-{name}-{own}"));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
    let meta = std::fs::symlink_metadata(&path).or_else(|_| made.and_then(|()| std::fs::symlink_metadata(&path)));
    let meta = meta.with_context(|| format!("cannot create {}", path.display()))?;
    if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o077 != 0 {
        bail!("{} is not a directory of yours alone: remove it, or set TMPDIR", path.display());
    }
    Ok(path)
}

/// [`own_dir`], until this process ends: two that use it at one time would end each other's processes.
///
/// # Errors
/// As [`own_dir`], and when another process has it.
pub(crate) fn exclusive_dir(name: &str) -> Result<PathBuf> {
    let path = own_dir(name)?;
    let file = std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => std::mem::forget(lock),
        Err(_) => bail!("another one runs, in {}: wait for it, or set TMPDIR", path.display()),
    }
    Ok(path)
}

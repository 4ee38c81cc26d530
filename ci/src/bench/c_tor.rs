//! C tor on the host, the peer: it has the same network, and no virtual machine in between.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{cache, world::World};

/// How long C tor may take to bootstrap.
const BOOTSTRAP_TIME_MAX: Duration = Duration::from_secs(60);

/// A download: until the first byte, and the whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetch {
    pub(super) first_byte: Duration,
    pub(super) whole: Duration,
}

/// Starts a client with the cache of the world's first client; the time until it is bootstrapped.
pub(super) fn bootstrap(dir: &Path, world: &World) -> Result<Duration> {
    let node = world.dir().join("nodes/client0");
    copy_cache(&node, dir)?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=TERM", "--"]).arg(cache::tor()?).arg("-f").arg(node.join("torrc"));
    command.arg("--DataDirectory").arg(dir).args(["--SocksPort", "auto", "--Log", "notice stdout"]);
    let began = Instant::now();
    let mut tor = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start tor")?;
    let bootstrapped = wait(&mut tor, began);
    let _ = tor.kill();
    tor.wait().context("cannot wait for tor")?;
    bootstrapped
}

fn wait(tor: &mut Child, began: Instant) -> Result<Duration> {
    let output = tor.stdout.take().context("tor has no output")?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        if lines.any(|line| line.contains("Bootstrapped 100%")) {
            let _ = tell.send(began.elapsed()); // Nobody listens any more when it was too late.
        }
    });
    match told.recv_timeout(BOOTSTRAP_TIME_MAX) {
        Ok(time) => Ok(time),
        Err(_) => bail!("C tor did not bootstrap within {} s", BOOTSTRAP_TIME_MAX.as_secs()),
    }
}

/// Copies the documents and the guards, and neither the lock nor the log.
fn copy_cache(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::DirBuilder::new().mode(0o700).create(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?.flatten() {
        let name = entry.file_name();
        if name == "state" || name.to_string_lossy().starts_with("cached-") {
            fs::copy(entry.path(), to.join(&name)).context("cannot copy tor's cache")?;
        }
    }
    Ok(())
}

/// Fetches a URL through the SOCKS port of the world's first client.
pub(super) fn fetch(world: &World, url: &str, time_max: Duration) -> Result<Fetch> {
    let done = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--output", "/dev/null"])
        .args(["--write-out", "%{time_starttransfer} %{time_total}"])
        .args(["--max-time", &time_max.as_secs().to_string()])
        .args(["--socks5-hostname", &world.tor.socks().to_string(), url])
        .stdin(Stdio::null())
        .output()
        .context("cannot start curl: run ci/setup")?;
    if !done.status.success() {
        bail!("curl through C tor: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let mut times = said.split(' ').filter_map(|word| word.parse().ok()).map(Duration::from_secs_f64);
    let (first_byte, whole) = times.next().zip(times.next()).with_context(|| format!("curl printed {said:?}"))?;
    Ok(Fetch { first_byte, whole })
}

//! What the programs speak to, on the private network beside the origin: a mirror of packages and a browser's page
//! (files of the origin's), `git daemon`, and `sshd`. They are Debian's, and run in a tree of the guest's own files, so
//! that this machine needs none of them.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    app_vm::debian::Debian,
    netns::Netns,
    processes::{Lifetime, Plan, Process},
    world::{World, appliance::said},
};

/// What `prepare.sh` tells sshd.
pub(super) const SSH_PORT: u16 = 2222;
/// The port of the git protocol, which `git daemon` takes by itself.
pub(super) const GIT_PORT: u16 = 9418;
const START_TIME: Duration = Duration::from_secs(30);

/// The servers; dropping them ends them.
#[derive(Debug)]
pub(super) struct Servers {
    files: PathBuf,
    _running: [Process; 2],
}

impl Servers {
    /// Makes what is served and starts the servers, in `dir`.
    ///
    /// # Errors
    /// When a part fails, with what it said.
    pub(super) fn start(debian: &Debian, dir: &Path, world: &World) -> Result<Servers> {
        let place =
            Place { tree: dir.join("debian-tree"), www: world.dir().join("www"), files: dir.join("debian-files") };
        for old in [&place.tree, &place.www, &place.files] {
            let _ = fs::remove_dir_all(old);
        }
        debian.unpack(&place.tree)?;
        for new in [&place.www, &place.files] {
            fs::create_dir(new).with_context(|| format!("cannot create {}", new.display()))?;
        }
        let address = world.addresses.origin().ip();
        place.prepare(address)?;
        let netns = world.namespaces.as_ref().map(|both| &both.tor);
        let git =
            ["git", "daemon", "--export-all", "--base-path=/mnt/git", &format!("--listen={address}")].map(String::from);
        let ssh = ["/usr/sbin/sshd", "-D", "-e", "-f", "/mnt/sshd_config"].map(String::from);
        let servers = [("git-daemon", GIT_PORT, git.as_slice()), ("sshd", SSH_PORT, ssh.as_slice())];
        let start = |(name, port, words)| place.start(name, words, netns, SocketAddr::new(address, port), dir);
        let [git, ssh] = servers.map(start);
        Ok(Servers { files: place.files, _running: [git?, ssh?] })
    }

    /// A small text file that `prepare.sh` left: a key, a hash.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) fn text(&self, name: &str) -> Result<String> {
        let path = self.files.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// Where the servers run.
struct Place {
    /// Their root directory.
    tree: PathBuf,
    /// `/srv` in it: what the origin serves.
    www: PathBuf,
    /// `/mnt` in it: everything else of this run.
    files: PathBuf,
}

impl Place {
    /// The words that run something in the tree, without this program's environment. They end in `exec`, and the mounts
    /// end with what is run.
    fn enter(&self, words: &[String]) -> Vec<String> {
        const ENTER: &str = "mount --bind \"$2\" \"$1/srv\" && mount --bind \"$3\" \"$1/mnt\" && \
            mount --rbind /dev \"$1/dev\" && mount -t proc proc \"$1/proc\" && root=$1 && shift 3 && \
            exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/mnt LANG=C.UTF-8 chroot \"$root\" \"$@\"";
        let begin = ["unshare", "--mount", "sh", "-c", ENTER, "sh"].map(String::from);
        let places = [&self.tree, &self.www, &self.files].map(|path| path.to_string_lossy().into_owned());
        begin.into_iter().chain(places).chain(words.iter().cloned()).collect()
    }

    fn prepare(&self, address: IpAddr) -> Result<()> {
        let script = self.files.join("prepare.sh");
        fs::write(&script, include_str!("prepare.sh")).with_context(|| format!("cannot write {}", script.display()))?;
        let argv = self.enter(&["sh".into(), "/mnt/prepare.sh".into(), address.to_string()]);
        let output = std::process::Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).output();
        said(output.context("cannot run unshare")?).context("prepare.sh").map(drop)
    }

    fn start(
        &self,
        name: &str,
        words: &[String],
        netns: Option<&Netns>,
        at: SocketAddr,
        dir: &Path,
    ) -> Result<Process> {
        let mut process = Plan {
            name: name.into(),
            argv: self.enter(words),
            log: dir.join(format!("{name}.log")),
            netns,
            lifetime: Lifetime::Ours,
            ledger: dir.to_owned(),
        }
        .spawn()?;
        let end = Instant::now() + START_TIME;
        let connects = || TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_ok();
        while !netns.map_or_else(|| Ok(connects()), |netns| netns.run(connects))? {
            if let Some(failure) = process.failure() {
                return Err(failure);
            }
            ensure!(Instant::now() < end, "{name} does not listen at {at}: {}", process.last_words());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }
}

//! The root file system of an application VM with Debian's programs, and a tree of the same files for the servers that
//! such programs speak to.
//!
//! `mmdebstrap` makes it from the mirror that this machine's own apt uses, of the release that this machine runs. It is
//! kept in the cache under the hash of everything that decides what is in it, as two files: a disk for QEMU, and an
//! archive that `unpack` turns into a tree. (Not the tree itself: files that belong to root in directories that
//! belong to root could not be removed by the cache's owner.) Nothing is ever downloaded for it again, so it needs no
//! newer packages. Needs root.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cache, origin, world::appliance::said};

/// Of which the packages take a third; the file is as large as what is in it.
const DISK_MIB: u32 = 2048;
const KEPT: [&str; 2] = ["disk.ext4", "tree.tar"];

/// What is installed beside the packages that every Debian has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Debian {
    /// Names the directory in the cache.
    pub(crate) name: &'static str,
    /// The packages.
    pub(crate) packages: &'static [&'static str],
    /// What the tree does without, as patterns of `tar`.
    pub(crate) only_on_disk: &'static [&'static str],
}

impl Debian {
    /// The disk, which is made if it is not there yet; that takes a minute or two.
    ///
    /// # Errors
    /// When it cannot be made: no mirror, no room, no `mmdebstrap`.
    pub(crate) fn disk(&self) -> Result<PathBuf> {
        self.kept(KEPT[0])
    }

    /// Unpacks the tree into `dir`, which must not be there yet.
    ///
    /// # Errors
    /// As [`Debian::disk`].
    pub(crate) fn unpack(&self, dir: &Path) -> Result<()> {
        let archive = self.kept(KEPT[1])?;
        fs::create_dir(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        run(Command::new("tar").arg("--extract").arg("--directory").arg(dir).arg("--file").arg(archive))
    }

    fn kept(&self, file: &str) -> Result<PathBuf> {
        let source = Source::of_this_machine()?;
        let inputs = format!("{source:?} {DISK_MIB} {OPTIONS:?} {self:?}");
        let cache = cache::cache()?;
        let dir = cache.join(format!("{}-{}", self.name, &origin::sha256(inputs.as_bytes())[..16]));
        if !dir.is_dir() {
            let new = dir.with_extension("new");
            let began = Instant::now();
            eprintln!("making a Debian root file system in {} (one or two minutes)", dir.display());
            if new.exists() {
                fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
            }
            fs::create_dir_all(&new).with_context(|| format!("cannot create {}", new.display()))?;
            self.make(&source, &new)?;
            let owner = fs::metadata(&cache)?;
            for path in KEPT.map(|file| new.join(file)).iter().chain([&new]) {
                chown(path, Some(owner.uid()), Some(owner.gid()))?;
            }
            fs::rename(&new, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
            eprintln!("it took {:.0} s", began.elapsed().as_secs_f64());
        }
        Ok(dir.join(file))
    }

    fn make(&self, source: &Source, dir: &Path) -> Result<()> {
        let tree = dir.join("tree");
        let [disk, archive] = KEPT.map(|file| dir.join(file));
        // This machine's way to its mirror, which may be a proxy, is not the VM's.
        let network = dir.join("apt.conf");
        fs::write(&network, network_options(&said(Command::new("apt-config").arg("dump").output()?)?))?;
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(OPTIONS).arg(format!("--aptopt={}", network.display()));
        mmdebstrap.arg("--customize-hook=rm \"$1/etc/apt/apt.conf.d/99mmdebstrap\"");
        mmdebstrap
            .arg(format!("--include={}", self.packages.join(",")))
            .arg(&source.suite)
            .arg(&tree)
            .arg(&source.mirror);
        run(&mut mmdebstrap)?;
        let mut tar = Command::new("tar");
        tar.args(self.only_on_disk.iter().map(|pattern| format!("--exclude={pattern}")));
        run(tar.arg("--create").arg("--directory").arg(&tree).arg("--file").arg(archive).arg("."))?;
        let size = format!("{DISK_MIB}M");
        // A journal is for what must outlive a crash.
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&tree).arg(disk).arg(size);
        run(mke2fs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"))?;
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
        fs::remove_file(&network).with_context(|| format!("cannot remove {}", network.display()))
    }
}

/// Where the packages come from.
#[derive(Debug)]
struct Source {
    mirror: String,
    suite: String,
}

impl Source {
    fn of_this_machine() -> Result<Source> {
        let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let suite = suite.context("this is no release of Debian: /etc/os-release has no VERSION_CODENAME")?.to_owned();
        let codename = format!("Codename: {suite}");
        let mut apt = Command::new("apt-get");
        apt.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian", &codename]);
        let mirrors = said(apt.output().context("cannot run apt-get")?)?;
        let Some(mirror) = mirrors.lines().next() else {
            bail!("no mirror of Debian in this machine's apt sources; add one for {suite}");
        };
        Ok(Source { mirror: mirror.to_owned(), suite })
    }
}

/// No manuals and no translations: the disk is read by an emulated machine.
const OPTIONS: [&str; 6] = [
    "--mode=root",
    "--variant=minbase",
    "--aptopt=Apt::Install-Recommends \"false\"",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
];

/// Of apt's configuration what says how the network is reached: proxies and their kin.
fn network_options(dump: &str) -> String {
    let wanted = ["Acquire::http", "Acquire::https", "Acquire::Retries"];
    let chosen = dump.lines().filter(|line| wanted.iter().any(|prefix| line.starts_with(prefix)));
    chosen.fold(String::new(), |text, line| text + line + "\n")
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}: run ci/setup"))?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    let last: Vec<&str> = words.lines().rev().take(20).collect();
    ensure!(
        output.status.success(),
        "{program}: {}: {}",
        output.status,
        last.into_iter().rev().collect::<Vec<_>>().join(" | ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_way_to_the_network_is_taken_over() {
        let dump = "APT \"\";\nAcquire::http::Proxy \"http://p:3128\";\nDir \"/\";\nAcquire::IndexTargets \"\";\n";
        assert_eq!(network_options(dump), "Acquire::http::Proxy \"http://p:3128\";\n");
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let said = run(Command::new("sh").args(["-c", "echo no mirror >&2; exit 3"])).unwrap_err().to_string();
        assert!(said.contains("no mirror") && said.contains('3'), "{said}");
    }
}

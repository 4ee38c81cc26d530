//! An ordinary user to run things as: this one, or `nobody` when this one is root.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid, chown, geteuid};

/// `nobody` and `nogroup` on Debian.
const NOBODY: u32 = 65_534;

/// `argv` as an ordinary user runs it: without root's rights, and not able to get new ones. Ends with this program.
pub(super) fn argv(argv: &[&str]) -> Vec<String> {
    let mut whole: Vec<String> = ["setpriv", "--pdeathsig=TERM", "--no-new-privs"].map(String::from).into();
    if geteuid().is_root() {
        whole.extend([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()]);
    }
    whole.push("--".into());
    whole.extend(argv.iter().map(|&word| word.to_owned()));
    whole
}

/// A new directory that the ordinary user may read: a home to copy things to. Its path is short enough for sockets.
pub(super) fn workplace() -> Result<tempfile::TempDir> {
    let dir =
        tempfile::Builder::new().prefix("oht-").tempdir_in("/tmp").context("cannot create a directory in /tmp")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).context("cannot open up a directory")?;
    Ok(dir)
}

/// A directory below `dir` that belongs to the ordinary user alone.
pub(super) fn own_dir(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).context("cannot close a directory")?;
    if geteuid().is_root() {
        chown(&path, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))
            .context("cannot give a directory away")?;
    }
    Ok(path)
}

/// Copies a file to where the ordinary user can read and, if it is a program, run it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = fs::copy(from, to).and_then(|_| fs::set_permissions(to, fs::Permissions::from_mode(0o755)));
    copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

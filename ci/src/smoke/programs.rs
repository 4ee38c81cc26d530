//! Every program of the initramfs under QEMU's user mode, as an ordinary user, with `--self-test`.
//!
//! A program that prints nothing has tested nothing, so the exit status alone is not believed: the router must say of
//! each of its parts that it is well.
//!
//! The programs see the users and groups of the image, not of this machine: a static program would load this machine's
//! name service modules (nsswitch.conf(5)), which crash in it. There are none in the image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    image::{self, Member},
    ordinary,
};

/// Seconds that a self-test may take; it takes about one.
const SELF_TEST_S_MAX: u32 = 120;

/// What the self-test of the router must speak of, in lines of its own.
const ROUTER_PARTS: [&str; 7] = ["configuration", "randomness", "tls", "runtime", "link", "dhcp", "tcp"];

/// The router's place in the initramfs.
const ROUTER: &str = "bin/oht-router";

/// Runs the self-tests of the programs among `members`.
pub(super) fn run(members: &[Member]) -> Result<String> {
    let dir = ordinary::workplace()?;
    let programs = image::write_programs(members, dir.path())?;
    let tmp = ordinary::own_dir(dir.path(), "tmp")?;
    let root = users_and_groups(members, dir.path())?;
    let root = root.to_str().context("the path of a temporary directory is not UTF-8")?;
    if !programs.iter().any(|(name, _)| name == ROUTER) {
        bail!("the initramfs has no program {ROUTER}");
    }
    for (name, path) in &programs {
        let seconds = SELF_TEST_S_MAX.to_string();
        let path = path.to_str().context("the path of a temporary directory is not UTF-8")?;
        let emulated = ["qemu-x86_64-static", "-L", root, path, "--self-test"];
        let argv = ordinary::argv(&[&["timeout", "--kill-after=5", seconds.as_str()], &emulated[..]].concat());
        let done = Command::new(&argv[0])
            .args(&argv[1..])
            .current_dir(dir.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TMPDIR", &tmp)
            .stdin(Stdio::null())
            .output()
            .context("cannot start setpriv")?;
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        if !done.status.success() {
            bail!("{name} --self-test failed ({}): {}", how(done.status.code()), last_words(&said));
        }
        if name == ROUTER {
            said_all(&said)?;
        }
    }
    let names: Vec<_> = programs.iter().map(|(name, _)| name.as_str()).collect();
    Ok(format!("{} tested themselves", names.join(" and ")))
}

/// A directory with the `etc` that the programs find in the image: QEMU's user mode looks there first (`-L`).
fn users_and_groups(members: &[Member], dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    fs::create_dir_all(root.join("etc")).context("cannot create a directory")?;
    fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\n").context("cannot write")?;
    for name in ["etc/passwd", "etc/group"] {
        let member = members.iter().find(|member| member.path == name);
        let member = member.with_context(|| format!("the initramfs has no {name}, which arti needs"))?;
        fs::write(root.join(name), &member.bytes).context("cannot write")?;
    }
    Ok(root)
}

fn said_all(said: &str) -> Result<()> {
    let said = said.to_lowercase();
    let spoken_of = |part: &str| said.lines().any(|line| line.contains("ok") && line.contains(part));
    let silent: Vec<_> = ROUTER_PARTS.into_iter().filter(|part| !spoken_of(part)).collect();
    if !silent.is_empty() {
        bail!("the self-test of {ROUTER} says nothing about {}", silent.join(", "));
    }
    Ok(())
}

/// `timeout` ends with 124 or 137, a shell-like wrapper with 127 for a missing program (timeout(1)).
fn how(code: Option<i32>) -> String {
    match code {
        Some(124 | 137) => format!("it took more than {SELF_TEST_S_MAX} s"),
        Some(127) => "qemu-x86_64-static is missing: run ci/setup".into(),
        Some(code @ 129..) => format!("killed by signal {}", code - 128),
        Some(code) => format!("exit status {code}"),
        None => "killed by a signal".into(),
    }
}

fn last_words(said: &str) -> String {
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() { "it said nothing".into() } else { lines[lines.len().saturating_sub(3)..].join(" | ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_test_that_leaves_something_out_is_named() {
        assert!(
            said_all("ok configuration\nok randomness\nok TLS\nok runtime\nok frame link\nok DHCP\nok TCP").is_ok()
        );
        let error = said_all("ok configuration\nok randomness\nok runtime\nok DHCP").unwrap_err().to_string();
        assert!(error.ends_with("nothing about tls, link, tcp"), "{error}");
    }

    #[test]
    fn a_silent_program_is_said_to_be_silent() {
        assert_eq!(last_words("\n"), "it said nothing");
        assert_eq!(last_words("1\n2\n3\n4\n"), "2 | 3 | 4");
    }
}

//! `cargo ci check`: what can be said about the sources without running them.
//!
//! | check | what fails it |
//! | --- | --- |
//! | format | a file that `rustfmt` would change |
//! | clippy | a warning, in tests too |
//! | doc | a broken link in the documentation of an item |
//! | arrows | a crate that imports a sibling it may not import ([`arrows`]) |
//! | files | a file named `mod.rs`, `util.rs`, …; a link in a Markdown file that leads nowhere ([`files`]) |
//! | scripts | what `shellcheck` finds in the bash scripts; skipped where it is not installed |
//! | units | a systemd unit that is wrong, or open beyond 2.0 by `systemd-analyze security` ([`units`]) |
//!
//! Every check runs, also after one has failed: one run shows everything that is to be mended.

mod arrows;
mod files;
pub(crate) mod units;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::cache;

/// Options of `cargo ci check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only these checks (format, clippy, doc, arrows, files, scripts).
    only: Vec<String>,
}

/// What came of a check.
enum Outcome {
    Passed,
    Skipped(String),
}

/// A check of the checkout.
type Check = fn(&Path) -> Result<Outcome>;

const CHECKS: [(&str, Check); 7] = [
    ("arrows", |root| arrows::check(root).map(|()| Outcome::Passed)),
    ("files", |root| files::check(root).map(|()| Outcome::Passed)),
    ("scripts", scripts),
    ("units", units::check),
    ("format", |root| cargo(root, &["fmt", "--all", "--check"])),
    ("clippy", |root| cargo(root, &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("doc", |root| cargo(root, &["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"])),
];

/// Runs the checks and counts them.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(stranger) = args.only.iter().find(|name| CHECKS.iter().all(|(known, _)| known != name)) {
        let known: Vec<_> = CHECKS.iter().map(|(name, _)| *name).collect();
        bail!("there is no check {stranger:?}; there are {}", known.join(", "));
    }
    let root = cache::checkout();
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in CHECKS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        match check(&root) {
            Ok(Outcome::Passed) => {
                passed += 1;
                println!("check {name}: ok");
            }
            Ok(Outcome::Skipped(why)) => println!("check {name}: skipped, {why}"),
            Err(error) => {
                failed += 1;
                println!("check {name}: FAILED: {error:#}");
            }
        }
    }
    println!("check: {passed} passed, {failed} failed");
    if failed > 0 {
        bail!("{failed} of the checks failed; the lines above say which");
    }
    Ok(())
}

fn cargo(root: &Path, args: &[&str]) -> Result<Outcome> {
    // Debian's own Rust comes without some of the tools; rustup's has them all.
    if args[0] != "doc" && !output("cargo", &[args[0], "--version"], root)?.status.success() {
        return Ok(Outcome::Skipped(format!("this Rust has no `cargo {}`: install rustup's", args[0])));
    }
    let status = Command::new("cargo")
        .args(args)
        .current_dir(root)
        // Private items are documented too, so a link to one leads somewhere.
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo: run ci/setup")?;
    if !status.success() {
        bail!("`cargo {}` found something, see above", args.join(" "));
    }
    Ok(Outcome::Passed)
}

fn output(program: &str, args: &[&str], dir: &Path) -> Result<std::process::Output> {
    let done = Command::new(program).args(args).current_dir(dir).stdin(Stdio::null()).output();
    done.with_context(|| format!("cannot start {program}: run ci/setup"))
}

fn scripts(root: &Path) -> Result<Outcome> {
    let scripts = files::scripts(root)?;
    let done = Command::new("shellcheck")
        .args(["--severity=warning", "--"])
        .args(&scripts)
        .current_dir(root)
        .stdin(Stdio::null())
        .status();
    match done {
        Ok(status) if status.success() => Ok(Outcome::Passed),
        Ok(_) => bail!("shellcheck found something, see above"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(Outcome::Skipped("shellcheck is not installed: run ci/setup".into()))
        }
        Err(error) => Err(error).context("cannot start shellcheck"),
    }
}

//! `cargo ci fuzz`: every target of every `fuzz` folder for some seconds each.
//!
//! Needs a nightly compiler and cargo-fuzz; where one is missing, nothing is run and a line says what to install.
//! What a target finds stays in its folder `artifacts`, and the command to run it again is printed by cargo-fuzz.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::cache;

/// Options of `cargo ci fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds for each target.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Run only targets whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

/// How deep a `fuzz` folder may stand: `vhost-net-onion/gateway/fuzz`.
const DEPTH_MAX: usize = 3;

/// A fuzz target.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    folder: PathBuf,
    name: String,
}

/// Runs the targets and counts them.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(why) = missing() {
        println!("fuzz: skipped, {why}");
        return Ok(());
    }
    let mut targets = vec![];
    collect(&cache::checkout(), DEPTH_MAX, &mut targets)?;
    targets.retain(|target| args.only.as_ref().is_none_or(|only| target.name.contains(only.as_str())));
    if targets.is_empty() {
        bail!("there is no such fuzz target");
    }
    let mut failed = 0;
    for target in &targets {
        println!("fuzz {} for {} s", target.name, args.seconds);
        if !target.run(args.seconds)? {
            failed += 1;
            println!("fuzz {}: FAILED, see above", target.name);
        }
    }
    println!("fuzz: {} passed, {failed} failed", targets.len() - failed);
    if failed > 0 {
        bail!("{failed} fuzz targets found something");
    }
    Ok(())
}

impl Target {
    fn run(&self, seconds: u32) -> Result<bool> {
        let status = Command::new("cargo")
            .args(["+nightly", "fuzz", "run", "--fuzz-dir", ".", &self.name, "--"])
            .args([format!("-max_total_time={seconds}"), "-print_final_stats=1".into(), "-verbosity=0".into()])
            .current_dir(&self.folder)
            // Cargo's variables of this very run would be taken for the other compiler's.
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO_TARGET_DIR")
            .stdin(Stdio::null())
            .status()
            .context("cannot start cargo")?;
        Ok(status.success())
    }
}

/// What is missing to fuzz, and how to get it.
fn missing() -> Option<&'static str> {
    let works = |args: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo.args(args).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
        cargo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    if !works(&["+nightly", "--version"]) {
        return Some("there is no nightly compiler: run `rustup toolchain install nightly`");
    }
    if !works(&["+nightly", "fuzz", "--version"]) {
        return Some("cargo-fuzz is missing: run `cargo install --locked cargo-fuzz`");
    }
    None
}

/// Adds the targets below `dir`: the files of every `fuzz/fuzz_targets`.
fn collect(dir: &Path, depth: usize, targets: &mut Vec<Target>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut folders: Vec<_> = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).collect();
    folders.sort_by_key(fs::DirEntry::file_name);
    for entry in folders {
        let (name, path) = (entry.file_name(), entry.path());
        if name == "fuzz" {
            let files = fs::read_dir(path.join("fuzz_targets")).context("a fuzz folder has no fuzz_targets")?;
            let mut names: Vec<_> = files.flatten().filter_map(|file| stem(&file.path())).collect();
            names.sort();
            targets.extend(names.into_iter().map(|name| Target { folder: path.clone(), name }));
        } else if depth > 1 && name != "target" && !name.to_string_lossy().starts_with('.') {
            collect(&path, depth - 1, targets)?;
        }
    }
    Ok(())
}

fn stem(path: &Path) -> Option<String> {
    (path.extension()? == "rs").then(|| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_wire_is_found() {
        let mut targets = vec![];
        collect(&cache::checkout(), DEPTH_MAX, &mut targets).unwrap();
        let of_wire: Vec<_> = targets
            .iter()
            .filter(|target| target.folder.ends_with("wire/fuzz"))
            .map(|target| target.name.as_str())
            .collect();
        assert_eq!(of_wire, ["control", "hello", "link", "network", "route", "uplink"]);
    }
}

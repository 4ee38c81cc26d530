//! `cargo ci package`: the Debian package of the host's side, and whether it is one.
//!
//! cargo-deb (from `ci/setup`) makes it from the programs and the image that are there, as the metadata in
//! `host-agent/Cargo.toml` says. What cargo-deb cannot get by itself is put beside the programs first: man pages and
//! completions, which `oht` writes, the image, and the programs of other crates. With `--check` the package is then
//! judged ([`inspect`]).

mod inspect;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{cache, world::appliance::said};

/// Options of `cargo ci package`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The package's file; by default in target/package.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Judge it too: lintian, and whether its programs run from where it puts them.
    #[arg(long)]
    check: bool,
}

/// Programs that other crates and `ci/setup` bring.
const TOOLS: [&str; 2] = ["vhost-device-vsock", "virtiofsd"];

/// Runs `cargo ci package`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let out = match &args.out {
        Some(out) => std::path::absolute(out)?,
        None => cache::target()?.join("package/onion-router.deb"),
    };
    let directory = out.parent().context("the package's file is in no directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    stage(&cache::programs()?.join("deb"))?;
    build(&out)?;
    println!("{} ({} KiB)", out.display(), fs::metadata(&out)?.len() / 1024);
    if args.check { inspect::inspect(&out) } else { Ok(()) }
}

/// Puts into `dir` what cargo-deb is to find there.
fn stage(dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    let made = |name: &str| -> Result<PathBuf> {
        let path = dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    };
    let programs = made("programs")?;
    copy(&cache::program("oht-port")?, &programs)?;
    for tool in TOOLS {
        copy(&cache::tool(tool)?, &programs)?;
    }
    let image = made("image")?;
    for entry in fs::read_dir(cache::image()?).context("cannot read the image")? {
        copy(&entry?.path(), &image)?;
    }
    let oht = cache::program("oht")?;
    said(Command::new(&oht).arg("man").arg(made("man")?).output().context("cannot start oht")?)?;
    // As Debian's policy wants them (12.1); without a name and a time, for the same bytes twice.
    let pages = fs::read_dir(dir.join("man"))?.collect::<Result<Vec<_>, _>>()?;
    let pages = pages.iter().map(fs::DirEntry::path);
    said(Command::new("gzip").arg("-9n").args(pages).output().context("cannot start gzip")?)?;
    let completions = made("completions")?;
    for shell in ["bash", "zsh", "fish"] {
        let text = said(Command::new(&oht).args(["completions", shell]).output().context("cannot start oht")?)?;
        fs::write(completions.join(format!("oht.{shell}")), text).context("cannot write completions")?;
    }
    Ok(())
}

fn copy(from: &Path, dir: &Path) -> Result<()> {
    let name = from.file_name().context("a file without a name")?;
    fs::copy(from, dir.join(name)).with_context(|| format!("cannot copy {} to {}", from.display(), dir.display()))?;
    Ok(())
}

fn build(out: &Path) -> Result<()> {
    let mut command = Command::new(cache::tool("cargo-deb")?);
    command.args(["deb", "--quiet", "--no-build", "--locked", "--offline", "--profile", "dev", "--strip"]);
    command.args(["--target", "x86_64-unknown-linux-gnu", "--manifest-path"]);
    command.arg(cache::checkout().join("host-agent/Cargo.toml")).arg("--output").arg(out);
    command.env("CARGO_TARGET_DIR", cache::target()?).stdin(Stdio::null());
    said(command.output().context("cannot start cargo-deb: run ci/setup")?).context("cargo-deb").map(drop)
}

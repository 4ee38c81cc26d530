//! `cargo ci smoke`: the image's own test, with neither KVM nor root.
//!
//! | step | what it tries | module |
//! | --- | --- | --- |
//! | verify | `image-build verify`: every file against the manifest | |
//! | unpack | the initramfs against the manifest, member by member, with code of its own | [`image`] |
//! | programs | every program of the initramfs under `qemu-x86_64-static` with `--self-test` | [`programs`] |
//! | boot | the whole image under `host-agent`, emulated, up to "ready", and down again | [`boot`] |
//! | corrupted | copies that are broken in one place each must fail the step that is to catch them | [`corrupt`] |
//!
//! Root is not used where it is there: programs and agent run as `nobody` then ([`ordinary`]).

mod boot;
mod corrupt;
mod image;
mod ordinary;
mod programs;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::cache;

/// How long the whole image may take to "ready": it takes about two seconds, on a machine that does nothing else.
const BOOT_TIME_MAX: Duration = Duration::from_secs(120);

/// Options of `cargo ci smoke`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image's directory [default: target/image]
    #[arg(long)]
    image: Option<PathBuf>,
    /// Leave out the corrupted copies.
    #[arg(long)]
    quick: bool,
}

/// The steps, in the order they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Verify,
    Unpack,
    Programs,
    Boot,
}

const STEPS: [Step; 4] = [Step::Verify, Step::Unpack, Step::Programs, Step::Boot];

/// Tests the image and corrupted copies of it, and counts.
pub(crate) fn run(args: &Args) -> Result<()> {
    let image = match &args.image {
        Some(dir) => dir.clone(),
        None => cache::image()?,
    };
    let (mut passed, mut failed) = (0, 0);
    for step in STEPS {
        let began = Instant::now();
        match step.take(&image, BOOT_TIME_MAX) {
            Ok(what) => {
                passed += 1;
                println!("smoke {step}: ok, {what} ({:.1} s)", began.elapsed().as_secs_f64());
            }
            Err(error) => {
                failed += 1;
                println!("smoke {step}: FAILED: {error:#}");
                break; // What follows would only fail again, less clearly.
            }
        }
    }
    if failed == 0 && !args.quick {
        let (caught, missed) = corrupt::run(&image)?;
        passed += caught;
        failed += missed;
    }
    println!("smoke: {passed} passed, {failed} failed");
    if failed > 0 {
        bail!("the image {} is not good; the lines above say why", image.display());
    }
    Ok(())
}

impl Step {
    /// Takes the step; what it found, in words.
    fn take(self, image: &Path, boot_time_max: Duration) -> Result<String> {
        match self {
            Step::Verify => verify(image),
            Step::Unpack => image::check(image).map(|members| format!("{} members", members.len())),
            Step::Programs => programs::run(&image::check(image)?),
            Step::Boot => boot::run(image, boot_time_max),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Verify => "verify",
            Step::Unpack => "unpack",
            Step::Programs => "programs",
            Step::Boot => "boot",
        })
    }
}

fn verify(image: &Path) -> Result<String> {
    let done = Command::new(cache::program("image-build")?)
        .arg("verify")
        .arg(image)
        .stdin(Stdio::null())
        .output()
        .context("cannot start image-build")?;
    if !done.status.success() {
        let words = [done.stdout, done.stderr].concat();
        bail!("image-build verify: {}", String::from_utf8_lossy(&words).trim());
    }
    Ok("every file is the manifest's".into())
}

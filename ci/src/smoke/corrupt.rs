//! Copies of the image that are broken in one place each: a smoke test that cannot fail would prove nothing.
//!
//! Two are broken as a bad disk breaks things; the manifest notices. The others are broken before the manifest was
//! written, as by a fault in the build, so their sums are right and only running them shows it.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    Step,
    image::{self, INITRAMFS, Member},
    ordinary,
};

/// A broken kernel never answers, so this is how long its copy takes.
const BOOT_TIME_MAX: Duration = Duration::from_secs(20);

/// A way to break an image, and the step that must catch it.
struct Corruption {
    what: &'static str,
    caught_by: Step,
    /// What the reason must speak of.
    reason: &'static str,
    apply: fn(&Path) -> Result<()>,
}

const CORRUPTIONS: [Corruption; 7] = [
    Corruption {
        what: "a flipped bit in the initramfs",
        caught_by: Step::Verify,
        reason: INITRAMFS,
        apply: |dir| flip(&dir.join(INITRAMFS)),
    },
    Corruption {
        what: "a flipped bit in the kernel",
        caught_by: Step::Verify,
        reason: "vmlinuz",
        apply: |dir| flip(&dir.join("vmlinuz")),
    },
    Corruption {
        what: "a missing kernel",
        caught_by: Step::Verify,
        reason: "vmlinuz",
        apply: |dir| fs::remove_file(dir.join("vmlinuz")).context("cannot remove"),
    },
    Corruption {
        what: "a program that the manifest does not know",
        caught_by: Step::Unpack,
        reason: "bin/stranger",
        apply: add_a_program,
    },
    Corruption {
        what: "a program cut in half before the manifest was written",
        caught_by: Step::Programs,
        reason: "--self-test failed",
        apply: cut_the_router,
    },
    Corruption {
        what: "the same program, booted",
        caught_by: Step::Boot,
        reason: "bin/oht-router",
        apply: cut_the_router,
    },
    Corruption {
        what: "a kernel damaged before the manifest was written",
        caught_by: Step::Boot,
        reason: "the router VM",
        apply: |dir| flip_much(&dir.join("vmlinuz")).and_then(|()| renew_file(dir, "vmlinuz")),
    },
];

/// Tries every corruption; how many were caught by the right step and for the right reason, and how many were not.
pub(super) fn run(image: &Path) -> Result<(u32, u32)> {
    let (mut caught, mut missed) = (0, 0);
    for corruption in &CORRUPTIONS {
        let began = Instant::now();
        let copy = ordinary::workplace()?;
        for entry in fs::read_dir(image).context("cannot read the image's directory")?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                ordinary::copy(&entry.path(), &copy.path().join(entry.file_name()))?;
            }
        }
        (corruption.apply)(copy.path()).with_context(|| format!("cannot make {}", corruption.what))?;
        match corruption.verdict(copy.path()) {
            Ok(reason) => {
                caught += 1;
                println!("smoke corrupted: ok, {}: {reason} ({:.1} s)", corruption.what, began.elapsed().as_secs_f64());
            }
            Err(error) => {
                missed += 1;
                println!("smoke corrupted: FAILED: {}: {error:#}", corruption.what);
            }
        }
    }
    Ok((caught, missed))
}

impl Corruption {
    /// The reason that the step which must catch it gives. Only that step is taken: an earlier one may see it too.
    fn verdict(&self, copy: &Path) -> Result<String> {
        let Err(error) = self.caught_by.take(copy, BOOT_TIME_MAX) else {
            bail!("the step {} did not notice", self.caught_by);
        };
        let reason = format!("{error:#}");
        if !reason.contains(self.reason) {
            bail!("the reason does not speak of {:?}: {reason}", self.reason);
        }
        Ok(reason.lines().next().unwrap_or_default().chars().take(120).collect())
    }
}

fn flip(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path).context("cannot read")?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).context("cannot write")
}

/// Damages the second half of the kernel, where its compressed body is: the boot loader still takes it.
fn flip_much(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path).context("cannot read")?;
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().step_by(64).for_each(|byte| *byte ^= 0xff);
    fs::write(path, bytes).context("cannot write")
}

fn cut_the_router(dir: &Path) -> Result<()> {
    let mut members = image::check(dir)?;
    let router = members.iter_mut().find(|member| member.path == "bin/oht-router").context("there is no router")?;
    router.bytes.truncate(router.bytes.len() / 2);
    let entry = json!({"sha256": image::sha256(&router.bytes), "bytes": router.bytes.len(), "mode": Value::Null});
    renew(dir, &members, |manifest| {
        let place = &mut manifest["initramfs"]["bin/oht-router"];
        place["sha256"] = entry["sha256"].clone();
        place["bytes"] = entry["bytes"].clone();
    })
}

/// A program in the archive whose place in the manifest is missing: the archive's own sum is right.
fn add_a_program(dir: &Path) -> Result<()> {
    let mut members = image::check(dir)?;
    let mut stranger = members.iter().find(|member| member.is_program()).context("there is no program")?.clone();
    stranger.path = "bin/stranger".into();
    members.push(stranger);
    renew(dir, &members, |_| {})
}

/// Packs `members` and writes a manifest that fits, after `change`.
fn renew(dir: &Path, members: &[Member], change: impl FnOnce(&mut Value)) -> Result<()> {
    fs::write(dir.join(INITRAMFS), image::pack(members)?).context("cannot write the initramfs")?;
    let mut manifest = image::manifest(dir)?;
    change(&mut manifest);
    fs::write(dir.join("manifest.json"), manifest.to_string()).context("cannot write the manifest")?;
    renew_file(dir, INITRAMFS)
}

/// Writes the sum that `name` now has into the manifest.
fn renew_file(dir: &Path, name: &str) -> Result<()> {
    let bytes = fs::read(dir.join(name)).context("cannot read")?;
    let mut manifest = image::manifest(dir)?;
    manifest["files"][name]["sha256"] = json!(image::sha256(&bytes));
    manifest["files"][name]["bytes"] = json!(bytes.len());
    fs::write(dir.join("manifest.json"), manifest.to_string()).context("cannot write the manifest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_with_a_right_sum_is_caught_when_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        image::tests::sample(dir.path());
        add_a_program(dir.path()).unwrap();
        let error = image::check(dir.path()).unwrap_err().to_string();
        assert!(error.contains("bin/stranger"), "{error}");
    }

    #[test]
    fn a_renewed_manifest_fits_again() {
        let dir = tempfile::tempdir().unwrap();
        image::tests::sample(dir.path());
        flip(&dir.path().join("vmlinuz")).unwrap();
        assert!(image::check(dir.path()).is_err());
        renew_file(dir.path(), "vmlinuz").unwrap();
        assert!(image::check(dir.path()).is_ok());
    }
}

//! The systemd units: what they name is there, and how far they are open. Neither needs a systemd that runs.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::Outcome;

/// A unit's file in the checkout, and where it belongs.
const UNITS: [(&str, &str); 2] = [
    ("host-agent/systemd/oht-host-agent.service", "usr/lib/systemd/system/oht-host-agent.service"),
    ("host-agent/systemd/oht-host-agent-user.service", "usr/lib/systemd/user/oht-host-agent.service"),
];

/// The most that `systemd-analyze security` may say, in tenths.
const EXPOSURE_MAX: &str = "20";

/// Where the units find the agent.
const PROGRAMS: &str = "/usr/lib/onion-router/";

/// Judges the units of the checkout in `root`, as if they were installed.
pub(super) fn check(root: &Path) -> Result<Outcome> {
    if Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(Outcome::Skipped("there is no systemd-analyze: install the package systemd".into()));
    }
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    for (file, place) in UNITS {
        let place = scratch.path().join(place);
        fs::create_dir_all(place.parent().unwrap_or(&place))?;
        fs::copy(root.join(file), place).with_context(|| format!("cannot copy {file}"))?;
    }
    let agent = scratch.path().join("usr/lib/onion-router/host-agent");
    fs::create_dir_all(agent.parent().unwrap_or(&agent))?;
    fs::write(&agent, "#!/bin/sh\n")?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    println!("{}", verify(scratch.path())?);
    Ok(Outcome::Passed)
}

/// Judges the units that are installed below `root`; says how far they are open.
///
/// # Errors
/// When a unit is wrong, names a program that is not below `root`, or is too far open.
pub(crate) fn verify(root: &Path) -> Result<String> {
    // A user's service manager wants to know its runtime directory, although it starts nothing.
    let runtime = root.join("runtime");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&runtime)?;
    let mut exposures = Vec::new();
    for (manager, (_, place)) in ["--system", "--user"].into_iter().zip(UNITS) {
        // `--root` is for the system's manager alone, so the copy that is judged names the program where it is.
        let text = fs::read_to_string(root.join(place)).with_context(|| format!("there is no {place}"))?;
        let unit = root.join(format!("runtime/{manager}/oht-host-agent.service"));
        fs::create_dir_all(unit.parent().unwrap_or(&unit))?;
        fs::write(&unit, text.replace(PROGRAMS, &format!("{}{PROGRAMS}", root.display())))?;
        let analyze = |words: &[&str]| -> Result<String> {
            let mut command = Command::new("systemd-analyze");
            command.arg(manager).args(words).arg(&unit).env("XDG_RUNTIME_DIR", &runtime).stdin(Stdio::null());
            let output = command.output().context("cannot start systemd-analyze")?;
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            if !output.status.success() {
                bail!("{place}, {words:?}: {}", text.trim());
            }
            Ok(text)
        };
        ensure!(text.contains(PROGRAMS), "{place} names no program in {PROGRAMS}");
        let found = analyze(&["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX])?;
        exposures.push(found.lines().last().unwrap_or_default().trim_start_matches("→ ").to_owned());
        let said = analyze(&["verify", "--man=no", "--recursive-errors=no"])?;
        ensure!(said.trim().is_empty(), "{place}: {said}");
    }
    Ok(exposures.join("; "))
}

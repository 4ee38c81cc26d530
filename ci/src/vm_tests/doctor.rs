//! `oht doctor` finds nothing wrong where nothing is, and names each thing that is, with a remedy.
//!
//! What is broken on purpose is looked at outside the appliance's namespace, so that its dialling is not in the capture.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Stage, Tests};
use crate::cache;

pub(super) const TESTS: Tests = &[
    ("doctor_finds_nothing_wrong_where_nothing_is", doctor_is_content),
    ("doctor_names_what_is_wrong", doctor_names_what_is_wrong),
];

fn doctor_is_content(stage: &mut Stage<'_>) -> Result<String> {
    let mut command = stage.appliance.doctor_command()?;
    let output = command.arg("--json").output().context("cannot start oht")?;
    let checks: Value = serde_json::from_slice(&output.stdout).context("oht doctor printed no JSON")?;
    let problems = names(&checks, "problem");
    ensure!(problems.is_empty() && output.status.success(), "oht doctor found {checks}");
    Ok(format!("{} checks, notes on {:?}", checks.as_array().map_or(0, Vec::len), names(&checks, "note")))
}

/// The checks that came out as `outcome`.
fn names(checks: &Value, outcome: &str) -> Vec<String> {
    let list = checks.as_array().into_iter().flatten().filter(|check| check["ok"] == outcome);
    list.filter_map(|check| check["check"].as_str().map(str::to_owned)).collect()
}

fn doctor_names_what_is_wrong(stage: &mut Stage<'_>) -> Result<String> {
    let dir = stage.dir.join("doctor");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("old")).context("cannot create a directory")?;
    let old = dir.join("old/qemu-system-x86_64");
    fs::write(&old, "#!/bin/sh\necho QEMU emulator version 7.2.9\n")?;
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(dir.join("stale"))?;
    drop(UnixListener::bind(dir.join("stale/api.sock"))?);
    fs::write(dir.join("nobody.json"), nobody_there().to_string())?;

    let with = |check, word, option, value: &Path| Case { check, word, option: Some((option, value.to_owned())) };
    let cases = [
        Case { check: "QEMU", word: "", option: None },
        with("QEMU", "7.2", "--programs", &dir.join("old")),
        with("image", "", "--image", &dir.join("none")),
        with("state directory", "", "--state-dir", Path::new("/dev/null/state")),
        with("API socket", "", "--run-dir", &dir.join("stale")),
        with("relays", "", "--tor-network", &dir.join("nobody.json")),
    ];
    for case in &cases {
        let found = examine(stage, &dir, case)?;
        let found = found.as_array().into_iter().flatten().find(|one| one["check"] == case.check);
        let found = found.with_context(|| format!("oht doctor does not look at {:?}", case.check))?;
        let named = found["ok"] != "ok" && found["detail"].as_str().is_some_and(|detail| detail.contains(case.word));
        ensure!(named, "in {case:?}, oht doctor found {found}");
        ensure!(found["remedy"].as_str().is_some_and(|remedy| remedy.len() > 10), "{found} has no remedy");
    }
    Ok(format!("{} of {} found, each with a remedy", cases.len(), cases.len()))
}

/// Something that is wrong.
#[derive(Debug)]
struct Case {
    /// The check that must find it.
    check: &'static str,
    /// What its words must contain.
    word: &'static str,
    /// The option that makes it wrong; without one, the search path is empty.
    option: Option<(&'static str, PathBuf)>,
}

/// Runs `oht doctor` on a machine that is in order but for one thing.
fn examine(stage: &Stage<'_>, dir: &Path, case: &Case) -> Result<Value> {
    let mut command = Command::new(cache::program("oht")?);
    command.args(["doctor", "--json"]).stdin(Stdio::null());
    let usual = [
        ("--run-dir", dir.join("run")),
        ("--state-dir", dir.join("state")),
        ("--image", stage.appliance.image().to_owned()),
        ("--tor-network", stage.world.tor.description()),
    ];
    let wrong = case.option.as_ref();
    let usual = usual.iter().filter(|(option, _)| wrong.is_none_or(|(other, _)| other != option));
    for (option, value) in usual.chain(wrong) {
        command.arg(option).arg(value);
    }
    if wrong.is_none() {
        command.env("PATH", "/nowhere");
    }
    let output = command.output().context("cannot start oht")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).with_context(|| format!("oht doctor printed no JSON: {said}"))
}

/// A network whose only directory cache does not listen.
fn nobody_there() -> Value {
    let cache = json!({ "rsa": "A".repeat(40), "ed25519": "A".repeat(43), "orports": ["127.0.0.1:1"] });
    json!({ "name": "nobody", "authorities": ["A".repeat(40)], "caches": [cache], "local_addresses": true })
}

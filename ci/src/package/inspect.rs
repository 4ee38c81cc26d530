//! Whether a package is one: lintian finds nothing, its programs run from where it puts them and find each other there,
//! and its units name programs that it has.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{check::units, world::appliance::said};

type Judge = fn(&Path, &Path) -> Result<String>;

const JUDGES: [(&str, Judge); 4] =
    [("lintian", lintian), ("files", files), ("programs", programs), ("units", |_, root| units::verify(root))];

/// Judges the package `deb`; every judgement is passed, also after one that is bad.
pub(super) fn inspect(deb: &Path) -> Result<()> {
    let root = tempfile::tempdir().context("no temporary directory")?;
    said(Command::new("dpkg-deb").arg("-x").args([deb, root.path()]).output().context("cannot start dpkg-deb")?)?;
    let mut failed = 0;
    for (name, judge) in JUDGES {
        match judge(deb, root.path()) {
            Ok(seen) => println!("ok package {name}: {seen}"),
            Err(error) => {
                failed += 1;
                println!("FAILED package {name}: {error:#}");
            }
        }
    }
    println!("package: {} passed, {failed} failed", JUDGES.len() - failed);
    if failed > 0 { bail!("{failed} judgements of the package are bad") } else { Ok(()) }
}

fn lintian(deb: &Path, _: &Path) -> Result<String> {
    // As root it would complain about itself; what we write into the changelog is no upload to Debian.
    let mut command = Command::new("lintian");
    command.args(["--fail-on", "error,warning", "--allow-root", "--suppress-tags", "initial-upload-closes-no-bugs"]);
    let output = command.arg(deb).output().context("cannot start lintian: run ci/setup")?;
    said(output)?;
    Ok("no errors, no warnings".into())
}

/// Every page and completion that there is to be: the command's own list of its commands is what they are held against.
fn files(_: &Path, root: &Path) -> Result<String> {
    let pages = root.join("usr/share/man/man1");
    let help = oht(root, &["help"])?;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let mut count = 0;
    for command in commands.filter(|&command| command != "help") {
        let page = pages.join(format!("oht-{command}.1.gz"));
        ensure!(page.exists(), "there is no {}", page.display());
        count += 1;
    }
    ensure!(count > 8, "the help names {count} commands: {help}");
    let completions = [
        "usr/share/bash-completion/completions/oht",
        "usr/share/zsh/vendor-completions/_oht",
        "usr/share/fish/vendor_completions.d/oht.fish",
    ];
    for file in completions {
        let text = fs::read_to_string(root.join(file)).with_context(|| format!("there is no {file}"))?;
        ensure!(text.contains("attach") && text.contains("ephemeral"), "{file} completes nothing");
    }
    Ok(format!("{count} commands have man pages, three shells complete them"))
}

fn programs(_: &Path, root: &Path) -> Result<String> {
    let version = oht(root, &["--version"])?;
    ensure!(version.trim() == concat!("oht ", env!("CARGO_PKG_VERSION")), "oht says {version}");
    let scratch = root.join("scratch");
    let places = [("--run-dir", "run"), ("--state-dir", "state")];
    let mut doctor = command(root);
    doctor.args(["doctor", "--json", "--config"]).arg(root.join("etc/oht/agent.toml"));
    for (option, name) in places {
        doctor.arg(option).arg(scratch.join(name));
    }
    // Installed, these are usual places.
    doctor.arg("--programs").arg(root.join("usr/lib/onion-router"));
    doctor.arg("--image").arg(root.join("usr/lib/onion-router/image"));
    let output = doctor.output().context("cannot start oht")?;
    let checks: Value = serde_json::from_slice(&output.stdout).context("oht doctor printed no JSON")?;
    let checks = checks.as_array().context("oht doctor printed no array")?;
    let ours = |check: &&Value| {
        let name = check["check"].as_str().unwrap_or_default();
        name == "image" || name.starts_with("program") || name == "Tor network"
    };
    let looked_at: Vec<_> = checks.iter().filter(ours).collect();
    ensure!(looked_at.len() >= 3, "oht doctor looked at {checks:?}");
    for check in looked_at {
        ensure!(check["ok"] == "ok", "{check}");
    }
    for check in checks.iter().filter(|check| check["check"].as_str().is_some_and(|name| name.starts_with("program"))) {
        let detail = check["detail"].as_str().unwrap_or_default();
        ensure!(detail.contains(&root.display().to_string()), "not the package's own: {detail}");
    }
    Ok(format!("{}, and a doctor that finds its image and its programs", version.trim()))
}

fn oht(root: &Path, arguments: &[&str]) -> Result<String> {
    said(command(root).args(arguments).output().context("cannot start the package's oht")?)
}

/// With nothing in the environment that would lead to the checkout's programs.
fn command(root: &Path) -> Command {
    let mut command = Command::new(root.join("usr/bin/oht"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("OHT_CACHE", "/nowhere").env("HOME", "/nowhere");
    command.stdin(Stdio::null());
    command
}

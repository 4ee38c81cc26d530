//! Whether a package is one: lintian finds nothing, what it should have is in it, its units are right, and where it is
//! installed its command finds what it needs and its agent boots the router VM as a user without privileges.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Deserializer, Value};

use crate::{check::units, world::appliance::said};

type Judge = fn(&Path, &Path) -> Result<String>;

const JUDGES: [(&str, Judge); 4] =
    [("lintian", lintian), ("files", files), ("units", |_, root| units::verify(root)), ("install", install)];

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
    let mut command = Command::new("lintian");
    command.args(["--fail-on", "error,warning", "--allow-root"]).arg(deb);
    let found = said(command.output().context("cannot start lintian: run ci/setup")?)?;
    ensure!(found.trim().is_empty(), "{found}");
    Ok("no errors, no warnings".into())
}

/// Every page and completion that there is to be: the command's own list of its commands is what they are held against.
fn files(_: &Path, root: &Path) -> Result<String> {
    let oht = |arguments: &[&str]| -> Result<String> {
        said(
            Command::new(root.join("usr/bin/oht"))
                .args(arguments)
                .output()
                .context("cannot start the package's oht")?,
        )
    };
    let version = oht(&["--version"])?;
    ensure!(version.trim() == concat!("oht ", env!("CARGO_PKG_VERSION")), "oht says {version}");
    let help = oht(&["help"])?;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A name stands two columns in; further in is what is left of a long description.
    let names = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
    let names: Vec<_> = names.filter(|&name| name != "help").collect();
    ensure!(names.len() > 8, "the help names {names:?}: {help}");
    for name in &names {
        let page = root.join(format!("usr/share/man/man1/oht-{name}.1.gz"));
        ensure!(page.exists(), "there is no {}", page.display());
    }
    let completions = [
        "usr/share/bash-completion/completions/oht",
        "usr/share/zsh/vendor-completions/_oht",
        "usr/share/fish/vendor_completions.d/oht.fish",
    ];
    for file in completions {
        let text = fs::read_to_string(root.join(file)).with_context(|| format!("there is no {file}"))?;
        ensure!(names.iter().all(|name| text.contains(name)), "{file} does not complete every command");
    }
    Ok(format!("{}: {} commands have man pages, three shells complete them", version.trim(), names.len()))
}

/// `install.sh` on a copy of this machine.
fn install(deb: &Path, root: &Path) -> Result<String> {
    ensure!(nix::unistd::geteuid().is_root(), "installing on a copy of this machine needs root");
    let script = root.join("install.sh");
    fs::write(&script, include_str!("install.sh"))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]);
    command.args(["--mount-proc", "--", "sh"]).args([script.as_path(), deb]).stdin(Stdio::null());
    let printed = said(command.output().context("cannot start unshare")?)?;
    let mut documents = Deserializer::from_str(&printed).into_iter::<Value>();
    let mut next = || documents.next().context("the script printed too little")?.context("the script printed no JSON");
    let (checks, status) = (next()?, next()?);
    let ours =
        |check: &&Value| ["program", "image", "Tor network", "state directory"].iter().any(|n| check["check"] == *n);
    let looked_at: Vec<_> = checks.as_array().into_iter().flatten().filter(ours).collect();
    ensure!(looked_at.len() >= 7, "oht doctor looked at {checks}");
    for check in looked_at {
        let own = check["check"] != "program"
            || check["detail"].as_str().is_some_and(|d| d.contains("/usr/lib/onion-router/"));
        ensure!(check["ok"] == "ok" && own, "{check}");
    }
    let boot_s =
        status["router"]["boot_s"].as_f64().with_context(|| format!("the router VM did not boot: {status}"))?;
    Ok(format!("installed and purged; as the user oht the agent booted the router VM in {boot_s:.2} s"))
}

//! Writes keys until it is killed: opens the real store in a directory, says all that is in it, and then says of every
//! write that it tries it, and that it is done. `tests/keys.rs` kills it and compares.

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use host_agent::{
    hex,
    keys::{
        Keys, Limits, Places, SetUp, UnlockWith,
        report::{NewGrant, PurposeName},
        time::{SystemTime, TimeSource as _},
    },
};
use key_tree::{Chain, Clock, Level, RootKey, Terms, Validity, issue, rand_core::OsRng};
use wire::VmName;

/// VMs that are written about.
const VMS: usize = 6;

fn main() -> anyhow::Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).context("a directory is needed")?);
    let places = Places {
        vault: directory.join("keys"),
        sealed_root: directory.join("root.age"),
        ephemeral: false,
        auto_lock: None,
    };
    let is_new = !places.vault.exists();
    let keys = Keys::open(places, Box::new(SystemTime));
    if is_new {
        set_up(&keys, directory.join("key"))?;
    }
    let tree = keys.tree();
    say(&format!("state {:?} {}", tree.keys.state, tree.keys.detail))?;
    for branch in tree.branches.iter().filter(|branch| branch.level != "root" && branch.level != "host") {
        say(&format!("have {} {}", branch.name, branch.key))?;
    }
    say("ready")?;
    // Begins anywhere, so that every kind of write meets the kill.
    for number in usize::try_from(std::process::id())?.. {
        let name = format!("vm-{}", number % VMS);
        let vm: VmName = name.parse()?;
        say(&format!("try {name}"))?;
        let has =
            |suffix: &str| keys.tree().branches.into_iter().find(|branch| branch.name == format!("{name}{suffix}"));
        match number / VMS % 4 {
            0 => keys.remove_vm(&vm)?,
            1 => keys.add_vm(&vm)?,
            2 if has("").is_some() => drop(keys.new_identity(&vm)?),
            3 if has("").is_some() => {
                let purpose = PurposeName::Signing;
                drop(keys.grant(NewGrant { vm, purpose, name: Some("s".into()), limits: Limits::default() })?);
            }
            _ => {}
        }
        let key = |suffix| has(suffix).map_or_else(|| "none".into(), |branch| branch.key);
        say(&format!("done {name} {} {}", key(""), key("/signing/s")))?;
    }
    Ok(())
}

fn set_up(keys: &Keys, key_file: PathBuf) -> anyhow::Result<()> {
    let root = RootKey::generate(&mut OsRng);
    let request = keys.host_request()?;
    let now = Clock::resume(SystemTime.wall(), SystemTime.monotonic()).now(SystemTime.wall(), SystemTime.monotonic());
    let start = now.timestamp();
    let validity = Validity::new(start, start.after(86_400)).context("a day")?;
    let terms = Terms::new(Level::Host, request.name.parse()?, validity);
    let chain = issue(root.key(), &Chain::of_root(root.public()), &request.key.parse()?, &terms, now, &mut OsRng)?;
    let grant = hex::encode(chain.grants().next_back().context("a grant")?.as_bytes());
    let unlock = UnlockWith::KeyFile(key_file);
    let given = SetUp { root: root.public().to_string(), grant, sealed_root: None, unlock, replace: false };
    keys.set_up(&given, &[])?;
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

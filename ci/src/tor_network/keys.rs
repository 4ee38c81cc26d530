//! The keys of a network, made by C tor's own programs, all relays at once.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};

use super::{AUTHORITIES, RELAYS, Relay, torrc};
use crate::{
    cache,
    world::addresses::{Addresses, DIR_PORT},
};

/// Makes the directories and keys of all relays in `nodes`.
pub(crate) fn make(nodes: &Path, addresses: &Addresses) -> Result<Vec<Relay>> {
    fs::create_dir_all(nodes).with_context(|| format!("cannot create {}", nodes.display()))?;
    thread::scope(|scope| {
        let made: Vec<_> = (0..RELAYS).map(|index| scope.spawn(move || relay(nodes, addresses, index))).collect();
        made.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("making a relay's keys panicked"))).collect()
    })
}

fn relay(nodes: &Path, addresses: &Addresses, index: usize) -> Result<Relay> {
    let is_authority = index < AUTHORITIES;
    let nickname = if is_authority { format!("auth{index}") } else { format!("exit{}", index - AUTHORITIES) };
    let address = addresses.relay(index);
    let dir = nodes.join(&nickname);
    // tor refuses a directory that others may read.
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(dir.join("keys"))
        .context("cannot create a key directory")?;
    let v3ident = is_authority.then(|| authority_key(&dir, &format!("{address}:{DIR_PORT}"))).transpose()?;
    let config = dir.join("torrc.keys");
    fs::write(&config, torrc::for_keys(&dir, &nickname, address)).context("cannot write a torrc")?;
    let rsa = fingerprint(&config, None)?;
    let ed25519 = fingerprint(&config, Some("ed25519"))?;
    Ok(Relay { nickname, address, rsa, ed25519, v3ident })
}

/// Makes the key that signs votes, and its certificate; gives its identity.
fn authority_key(dir: &Path, dir_port: &str) -> Result<String> {
    let keys = dir.join("keys");
    let mut child = Command::new(cache::tor_gencert()?)
        .args(["--create-identity-key", "--passphrase-fd", "0", "-m", "12", "-a", dir_port])
        .current_dir(&keys)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run tor-gencert: run ci/setup")?;
    child.stdin.take().context("tor-gencert has no input")?.write_all(b"test\n")?;
    succeeded("tor-gencert", child.wait_with_output()?)?;
    let certificate = fs::read_to_string(keys.join("authority_certificate")).context("tor-gencert wrote nothing")?;
    let identity = certificate.lines().find_map(|line| line.strip_prefix("fingerprint "));
    identity.map(str::to_owned).context("the authority's certificate has no fingerprint")
}

/// An identity of a relay; tor makes its keys when asked for the first time.
pub(super) fn fingerprint(config: &Path, kind: Option<&str>) -> Result<String> {
    let mut command = Command::new(cache::tor()?);
    command.args(["--quiet", "--list-fingerprint"]).args(kind).arg("-f").arg(config);
    let output = succeeded("tor --list-fingerprint", command.output().context("cannot run tor: run ci/setup")?)?;
    // `nickname ABCD EF01 …`, or `nickname base64`.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let identity = text.trim().split_once(' ').context("tor does not tell its fingerprint")?.1;
    Ok(identity.replace(' ', ""))
}

fn succeeded(what: &str, output: Output) -> Result<Output> {
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{what} failed: {}", String::from_utf8_lossy(&said).trim());
    }
    Ok(output)
}

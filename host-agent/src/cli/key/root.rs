//! What is done with the root: in this process, for as long as it takes, and nowhere else.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use key_tree::{
    Chain, Clock, Level, RootKey, Share, Terms, Timestamp, Validity, issue, rand_core::OsRng, secrecy::SecretString,
};

use super::secret::Secrets;
use crate::{
    api::SealedRoot,
    cli::output,
    client::Client,
    hex,
    keys::{
        HostRequest,
        time::{SystemTime, TimeSource as _},
    },
};

/// Bytes of the longest sealed root.
const SEALED_BYTES_MAX: u64 = 4096;

/// Seconds that the agent's clock and this one's may differ.
const CLOCKS_DIFFER_SECONDS: u64 = 3600;

/// How shares are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Form {
    /// 46 words each.
    Words,
    /// The text of its QR code.
    Ur,
    /// A QR code, for the terminal.
    Qr,
}

/// The sealed root: that in `file`, else the agent's.
///
/// # Errors
/// When there is none.
pub(super) async fn sealed(client: &Client, file: Option<&Path>) -> anyhow::Result<String> {
    let Some(path) = file else { return Ok(client.get::<SealedRoot>("/keys/root").await?.sealed) };
    let mut text = String::new();
    let opened = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    opened
        .take(SEALED_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// Opens the sealed root with the passphrase that is asked for.
///
/// # Errors
/// When it is wrong, or the text damaged.
pub(super) fn unseal(sealed: &str, secrets: &mut Secrets) -> anyhow::Result<(RootKey, SecretString)> {
    // Damage is told before anybody is asked for a passphrase.
    RootKey::public_of_sealed(sealed)?;
    let passphrase = secrets.passphrase("passphrase of the root")?;
    Ok((RootKey::unseal(sealed, &passphrase)?, passphrase))
}

/// Restores the root from as many shares as it takes.
///
/// # Errors
/// Says which share is wrong.
pub(super) fn combine(secrets: &mut Secrets) -> anyhow::Result<RootKey> {
    let mut shares: Vec<Share> = vec![];
    while shares.first().is_none_or(|first| shares.len() < first.needed()) {
        let Some(text) = secrets.share()? else { break };
        if text.trim().is_empty() {
            continue;
        }
        let number = shares.len() + 1;
        let is_ur = text.trim().get(..3).is_some_and(|start| start.eq_ignore_ascii_case("ur:"));
        let share = if is_ur { Share::from_ur(&text) } else { Share::from_words(&text) };
        shares.push(share.with_context(|| format!("share {number}"))?);
    }
    Ok(RootKey::combine(&shares)?)
}

/// The root's grant for the host's new key, in hexadecimal digits.
///
/// # Errors
/// When the agent's clock is far from this one's, and is not to be set.
pub(super) fn grant(root: &RootKey, request: &HostRequest, days: u8, set_clock: bool) -> anyhow::Result<String> {
    let (agent, wall) = (Timestamp::from_unix(request.now), SystemTime.wall());
    if !set_clock && agent.seconds_since(wall).max(wall.seconds_since(agent)) > CLOCKS_DIFFER_SECONDS {
        bail!(
            "the agent's clock says {agent}, and this one {wall}. If the machine's clock had jumped forward and is right \
             now, `oht key renew --set-clock` sets the agent's back"
        );
    }
    let start = if set_clock { wall } else { agent };
    let now = Clock::resume(start, std::time::Duration::ZERO).now(start, std::time::Duration::ZERO);
    let validity =
        Validity::new(start, start.after(u64::from(days) * 86_400)).context("a grant lasts a day at least")?;
    let terms = Terms::new(Level::Host, request.name.parse()?, validity);
    let key = request.key.parse()?;
    let chain = issue(root.key(), &Chain::of_root(root.public()), &key, &terms, now, &mut OsRng)?;
    let grant = chain.grants().next_back().context("the chain has no grant")?;
    Ok(hex::encode(grant.as_bytes()))
}

/// Writes a secret to a file that is not there yet, closed to others.
///
/// # Errors
/// When it is there, or cannot be written.
pub(super) fn write_new(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(|| format!("cannot write {}", path.display()))
}

/// Splits the root and shows the shares: on standard output, or as files in `out`.
///
/// # Errors
/// When the numbers make no sense, or a file is there already.
pub(super) fn split(
    root: &RootKey,
    needed: usize,
    count: usize,
    form: Form,
    out: Option<&Path>,
    json: bool,
) -> anyhow::Result<()> {
    let shares = root.split(needed, count, &mut OsRng)?;
    if let Some(directory) = out {
        let files = write_shares(&shares, directory)?;
        return if json {
            output::json(&serde_json::json!({ "root": root.public().to_string(), "files": files }))
        } else {
            let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
            output::text(&format!(
                "{}\nany {needed} of these {count} restore the root: keep them apart",
                files.join("\n")
            ))
        };
    }
    if json {
        let shares: Vec<_> = shares.iter().map(share_json).collect();
        return output::json(&serde_json::json!({ "root": root.public().to_string(), "shares": shares }));
    }
    for share in &shares {
        let shown = match form {
            Form::Words => share.words(),
            Form::Ur => share.ur(),
            Form::Qr => share.qr_text(),
        };
        output::text(&format!(
            "share {} of {count} (any {needed} restore the root {})",
            share.number(),
            root.public()
        ))?;
        output::text(&shown)?;
    }
    Ok(())
}

fn share_json(share: &Share) -> serde_json::Value {
    serde_json::json!({ "number": share.number(), "needed": share.needed(), "words": *share.words(), "ur": *share.ur() })
}

fn write_shares(shares: &[Share], directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    ensure!(directory.is_dir(), "{} is not a directory", directory.display());
    let mut files = vec![];
    for share in shares {
        let base = directory.join(format!("share-{:04x}-{}", share.set_id(), share.number()));
        let text = zeroize::Zeroizing::new(format!("{}\n{}\n", *share.words(), *share.ur()));
        for (extension, content) in [("txt", text.as_bytes()), ("svg", share.qr_svg().as_bytes())] {
            let path = base.with_extension(extension);
            write_new(&path, content)?;
            files.push(path);
        }
    }
    Ok(files)
}

//! `oht key sign` and `oht key verify`.

use std::{fs::File, io, path::Path};

use anyhow::{Context as _, bail, ensure};
use key_tree::{Chain, Clock, Level, PublicKey, Purpose, Signature, Timestamp};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use wire::VmName;

use super::root;
use crate::{
    cli::output,
    client::Client,
    hex,
    keys::{
        file_message,
        report::Signed,
        time::{SystemTime, TimeSource as _},
    },
};

/// Bytes of the longest signature file: three grants, in hexadecimal digits.
const SIGNATURE_BYTES_MAX: u64 = 64 << 10;

/// Grants of the longest chain.
const GRANTS_MAX: usize = 3;

/// Signs a file.
pub(super) async fn sign(
    client: &Client,
    vm: &VmName,
    file: &Path,
    name: Option<&str>,
    out: Option<&Path>,
) -> anyhow::Result<()> {
    let sha256 = hex::encode(&digest(file)?);
    let signed: Signed = client.post("/keys/sign", &json!({ "vm": vm, "name": name, "sha256": sha256 })).await?;
    match out {
        None => output::json(&signed),
        Some(path) => root::write_new(path, &serde_json::to_vec_pretty(&signed)?),
    }
}

/// Verifies a signature; says whose it is.
pub(super) fn verify(file: &Path, signature: &Path, root: &str, ended: bool, json: bool) -> anyhow::Result<()> {
    let opened = File::open(signature).with_context(|| format!("cannot open {}", signature.display()))?;
    let signed: Signed = serde_json::from_reader(io::Read::take(opened, SIGNATURE_BYTES_MAX))
        .with_context(|| format!("{} is not a signature of `oht key sign`", signature.display()))?;
    let root: PublicKey = root.parse().context("--root")?;
    ensure!(
        signed.root == root.to_string(),
        "it was signed in the tree of the root {}, which is not trusted",
        signed.root
    );
    let chain = chain(&signed, root, ended)?;
    let bytes = hex::decode_array(&signed.signature).context("the signature itself is not 128 hexadecimal digits")?;
    let message = file_message(&digest(file)?);
    chain.key().verify(&message, &Signature::from_bytes(&bytes)).with_context(|| format!("{}", file.display()))?;
    let names: Vec<String> = chain.grants().map(|grant| format!("{} {}", grant.level(), grant.name())).collect();
    let validity = chain.validity().context("there are no grants")?;
    if json {
        let (start, end) = (validity.start().as_unix(), validity.end().as_unix());
        return output::json(&json!({ "key": chain.key().to_string(), "grants": names, "start": start, "end": end }));
    }
    output::text(&format!("good: signed by {} (its grant: {validity})", names.join(", ")))
}

fn chain(signed: &Signed, root: PublicKey, ended: bool) -> anyhow::Result<Chain> {
    ensure!(signed.grants.len() <= GRANTS_MAX, "it has more grants than a chain may have");
    let grants = signed.grants.iter().map(|grant| hex::decode(grant)).collect::<Option<Vec<_>>>();
    let grants = grants.context("a grant is not in hexadecimal digits")?;
    let chain = Chain::read(root, grants.iter().map(|grant| grant.as_slice())).context("the grants are refused")?;
    if chain.level() != Level::Purpose(Purpose::Signing) {
        bail!("the key is for {}, not for signing", chain.level());
    }
    let (now, start) = (SystemTime.wall(), Timestamp::default());
    let now = Clock::resume(start, std::time::Duration::ZERO).now(now, std::time::Duration::ZERO);
    match chain.live(now, &|_| false) {
        Ok(()) => Ok(chain),
        Err(_) if ended => Ok(chain),
        Err(refusal) => bail!("{refusal} (--ended takes it nevertheless)"),
    }
}

fn digest(file: &Path) -> anyhow::Result<[u8; 32]> {
    let mut opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match io::Read::read(&mut opened, &mut buffer).with_context(|| format!("cannot read {}", file.display()))? {
            0 => return Ok(digest.finalize().into()),
            read => digest.update(&buffer[..read]),
        }
    }
}

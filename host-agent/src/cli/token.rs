//! `oht token …`: tokens for clients that may do less than everything.

use std::path::Path;

use anyhow::Context as _;
use hyper::Method;
use key_tree::rand_core::OsRng;

use super::output;
use crate::{
    client::Client,
    status::{MintedToken, NewToken},
};

/// Makes a token.
///
/// # Errors
/// When the agent refuses, or is not there.
pub async fn mint(client: &Client, new: &NewToken, json: bool) -> anyhow::Result<()> {
    let minted: MintedToken = client.post("/tokens", new).await?;
    if json {
        return output::json(&minted);
    }
    // The token alone on standard output, so that it can be put into a file.
    eprintln!("good until {} (Unix time); `oht token revoke {}` ends it sooner", minted.until, minted.id);
    output::text(&minted.token)
}

/// Makes a token worthless.
///
/// # Errors
/// When this identifies no token, or the agent is not there.
pub async fn revoke(client: &Client, id: &str, json: bool) -> anyhow::Result<()> {
    // It becomes a part of a path.
    let id = id.trim().to_ascii_lowercase();
    anyhow::ensure!(id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?} is no token's identifier");
    client.order(Method::DELETE, &format!("/tokens/{id}")).await?;
    if json { output::json(&serde_json::json!({ "revoked": id })) } else { output::text("revoked") }
}

/// Prints a narrower token made of the one in `file`; no agent is needed.
///
/// # Errors
/// When the file has no token, or the checks are not taken.
pub fn narrow(file: &Path, checks: &str, json: bool) -> anyhow::Result<()> {
    let token = key_tree::narrow(&read(file)?, checks, &mut OsRng)?;
    if json { output::json(&serde_json::json!({ "token": token })) } else { output::text(&token) }
}

/// The token in a file.
///
/// # Errors
/// When it cannot be read.
pub fn read(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the token in {}", file.display()))?;
    Ok(text.trim().to_owned())
}

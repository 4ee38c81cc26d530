//! The programs that only benchmarks and a test need: `ci/generators` makes them, on demand.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::cache;

/// Where the program is that `ci/generators NAME` makes; makes it if need be, which may take minutes.
///
/// # Errors
/// When it cannot be made, with the reason on stderr.
pub(super) fn path(name: &str) -> Result<PathBuf> {
    let script = cache::checkout().join("ci/generators");
    let done = Command::new(&script)
        .arg(name)
        .env("OHT_CACHE", cache::cache()?)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", script.display()))?;
    ensure!(done.status.success(), "{} {name} failed, see above", script.display());
    Ok(String::from_utf8_lossy(&done.stdout).trim().into())
}

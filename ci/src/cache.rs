//! Where things are: the checkout, what cargo built, the image, and what `ci/setup` put into the cache.
//!
//! Every look-up that fails says which command brings the thing. The cache is `$OHT_CACHE`, by default
//! `~/.cache/onion-router`; `ci/setup` fills it, and the VM tests keep a Debian there ([`crate::app_vm::debian`]).

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// How deep [`find`] goes: an unpacked Debian package is `usr/share/doc/NAME` deep where it matters.
const DEPTH_MAX: usize = 6;

/// The checkout that this program was built from, or that cargo runs it in.
pub(crate) fn checkout() -> PathBuf {
    let ci = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&ci).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// The directory that cargo built the programs into: the one this program is in, or `$OHT_PROGRAMS`.
pub(crate) fn programs() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("OHT_PROGRAMS") {
        return Ok(dir.into());
    }
    let own = env::current_exe().context("cannot find out where this program is")?;
    let dir = own.parent().context("this program is in no directory")?;
    // Unit tests run from the subdirectory `deps`.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

/// A program of the workspace.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let path = programs()?.join(name);
    if !path.is_file() {
        bail!("{} is not built: run `cargo build --workspace`", path.display());
    }
    Ok(path)
}

/// The directory of the image: `target/image`, or `$OHT_IMAGE`.
pub(crate) fn image() -> Result<PathBuf> {
    let dir = match env::var_os("OHT_IMAGE") {
        Some(dir) => PathBuf::from(dir),
        None => target()?.join("image"),
    };
    if !dir.join("manifest.json").is_file() {
        bail!("there is no image in {0}: run `cargo run -p image-build -- build --out {0}`", dir.display());
    }
    Ok(dir)
}

/// Cargo's target directory, two levels above the programs (`target/TRIPLE/debug`).
pub(crate) fn target() -> Result<PathBuf> {
    Ok(programs()?.ancestors().nth(2).context("the programs are not in a target directory")?.to_owned())
}

/// The cache that `ci/setup` fills.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("OHT_CACHE") {
        return Ok(dir.into());
    }
    if let Some(dir) = env::var_os("XDG_CACHE_HOME") {
        return Ok(Path::new(&dir).join("onion-router"));
    }
    let home = env::var_os("HOME").context("neither OHT_CACHE nor HOME is set: set OHT_CACHE")?;
    Ok(Path::new(&home).join(".cache/onion-router"))
}

/// The program that `ci/setup` installed as `tools/NAME-VERSION/bin/NAME`.
pub(crate) fn tool(name: &str) -> Result<PathBuf> {
    let tools = cache()?.join("tools");
    let mut found: Vec<PathBuf> = fs::read_dir(&tools)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}-")))
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.pop().with_context(|| format!("{name} is not in {}: run ci/setup", tools.display()))
}

/// Debian's `tor`, unpacked and never installed.
pub(crate) fn tor() -> Result<PathBuf> {
    unpacked("tor", |path| path.ends_with("bin/tor"))
}

/// Debian's `obfs4proxy`, likewise.
pub(crate) fn obfs4proxy() -> Result<PathBuf> {
    unpacked("obfs4proxy", |path| path.ends_with("bin/obfs4proxy"))
}

/// `tor-gencert`, beside [`tor`].
pub(crate) fn tor_gencert() -> Result<PathBuf> {
    unpacked("tor", |path| path.ends_with("bin/tor-gencert"))
}

/// The tree of libvirt and what it needs, as its packages would lay it into `/`.
pub(crate) fn libvirt() -> Result<PathBuf> {
    let virsh = unpacked("libvirt", |path| path.ends_with("usr/bin/virsh"))?;
    virsh.ancestors().nth(3).map(Path::to_owned).context("virsh is in no tree")
}

/// Debian's stock cloud kernel.
pub(crate) fn cloud_kernel() -> Result<PathBuf> {
    unpacked("cloud-kernel", |path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
}

/// The directory of the cloud kernel's modules, `…/lib/modules/RELEASE`.
pub(crate) fn cloud_kernel_modules() -> Result<PathBuf> {
    let order = unpacked("cloud-kernel", |path| path.ends_with("modules.order"))?;
    order.parent().map(Path::to_owned).context("modules.order is in no directory")
}

fn unpacked(package: &str, wanted: fn(&Path) -> bool) -> Result<PathBuf> {
    let dir = cache()?.join("debian").join(package);
    find(&dir, wanted, DEPTH_MAX).with_context(|| format!("nothing useful in {}: run ci/setup", dir.display()))
}

/// The first file below `dir`, in the order of names, that is wanted.
fn find(dir: &Path, wanted: fn(&Path) -> bool, depth: usize) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(dir).ok()?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.into_iter().find_map(|entry| {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() && depth > 0 {
            find(&entry.path(), wanted, depth - 1)
        } else {
            Some(entry.path()).filter(|path| kind.is_file() && wanted(path))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkout_is_the_one_with_the_workspace() {
        let manifest = fs::read_to_string(checkout().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }

    #[test]
    fn files_are_found_within_the_depth_and_no_deeper() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::write(dir.path().join("usr/bin/tor"), "").unwrap();
        let wanted: fn(&Path) -> bool = |path| path.ends_with("bin/tor");
        assert!(find(dir.path(), wanted, 2).is_some());
        assert!(find(dir.path(), wanted, 1).is_none());
        assert!(find(&dir.path().join("missing"), wanted, 2).is_none());
    }
}

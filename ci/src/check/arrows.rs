//! Who may import whom. The README draws these arrows under "Finding your way"; here they are kept true.
//!
//! A crate that stands in the folder of another one (`vhost-net-onion/gateway`) is a part of it: it may import what
//! the whole may, but neither the whole nor another part, so that every part can be read and tested alone.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Each folder at the top, and the folders it may import. Nothing else imports a sibling.
const ARROWS: [(&str, &[&str]); 10] = [
    ("appliance", &["vhost-net-onion", "dht", "wire"]),
    ("vhost-net-onion", &["wire"]),
    ("dht", &[]),
    ("key-tree", &[]),
    ("wire", &[]),
    ("host-agent", &["key-tree", "qemu", "wire"]),
    ("guest-init", &["wire"]),
    ("qemu", &[]),
    ("image-build", &[]),
    ("ci", &["qemu"]),
];

/// A crate of the workspace: where it stands, and the siblings it imports (in tests and build scripts too).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Crate {
    folder: PathBuf,
    imports: Vec<PathBuf>,
}

/// Fails with every wrong arrow of the workspace in `root`.
pub(super) fn check(root: &Path) -> Result<()> {
    let wrong = wrong_arrows(&crates(root)?);
    if !wrong.is_empty() {
        bail!("{}; who may import whom stands in the README, under \"Finding your way\"", wrong.join("; "));
    }
    Ok(())
}

fn crates(root: &Path) -> Result<Vec<Crate>> {
    let done = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .stdin(Stdio::null())
        .output()
        .context("cannot start cargo")?;
    if !done.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    let metadata = serde_json::from_slice(&done.stdout).context("cargo metadata printed no JSON")?;
    parse(root, &metadata).context("cargo metadata printed something else than expected")
}

fn parse(root: &Path, metadata: &Value) -> Option<Vec<Crate>> {
    let inside = |path: &str| Path::new(path).strip_prefix(root).ok().map(Path::to_owned);
    let parse_one = |package: &Value| {
        let manifest = inside(package["manifest_path"].as_str()?)?;
        let imports = package["dependencies"].as_array()?.iter().filter_map(|import| import["path"].as_str());
        // A path outside of the checkout is kept as it is: no arrow allows it.
        let imports = imports.map(|path| inside(path).unwrap_or_else(|| path.into())).collect();
        Some(Crate { folder: manifest.parent()?.to_owned(), imports })
    };
    metadata["packages"].as_array()?.iter().map(parse_one).collect()
}

fn wrong_arrows(crates: &[Crate]) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut wrong = vec![];
    for Crate { folder, imports } in crates {
        let Some(own) = allowed.get(top(folder)) else {
            wrong.push(format!("{} has no place among the folders", folder.display()));
            continue;
        };
        for import in imports {
            let whole_imports_part = import.parent() == Some(folder);
            if !whole_imports_part && (top(import) == top(folder) || !own.contains(&top(import))) {
                wrong.push(format!("{} imports {}", folder.display(), import.display()));
            }
        }
    }
    wrong
}

/// The folder at the top that a crate belongs to.
fn top(folder: &Path) -> &str {
    folder.iter().next().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(folder: &str, imports: &[&str]) -> Vec<String> {
        wrong_arrows(&[Crate { folder: folder.into(), imports: imports.iter().map(PathBuf::from).collect() }])
    }

    #[test]
    fn the_workspace_keeps_its_arrows() {
        check(&crate::cache::checkout()).unwrap();
    }

    #[test]
    fn a_wrong_arrow_is_named() {
        assert_eq!(wrong("wire", &["qemu"]), ["wire imports qemu"]);
        assert_eq!(wrong("ci", &["qemu", "wire"]), ["ci imports wire"]);
        assert_eq!(wrong("host-agent", &["vhost-net-onion/port"]), ["host-agent imports vhost-net-onion/port"]);
        assert_eq!(wrong("wire", &["/elsewhere/x"]), ["wire imports /elsewhere/x"]);
        assert_eq!(wrong("stranger", &[]), ["stranger has no place among the folders"]);
    }

    #[test]
    fn a_whole_may_import_its_parts_and_parts_keep_apart() {
        assert!(wrong("vhost-net-onion", &["vhost-net-onion/port", "wire"]).is_empty());
        assert!(wrong("vhost-net-onion/onion", &["wire"]).is_empty());
        assert_eq!(wrong("vhost-net-onion/port", &["vhost-net-onion"]).len(), 1);
        assert_eq!(wrong("vhost-net-onion/port", &["vhost-net-onion/gateway"]).len(), 1);
    }

    #[test]
    fn imports_of_every_kind_are_read() {
        let metadata = serde_json::json!({"packages": [{
            "manifest_path": "/r/ci/Cargo.toml",
            "dependencies": [{"name": "serde"}, {"name": "wire", "kind": "dev", "path": "/r/wire"}],
        }]});
        let expected = Crate { folder: "ci".into(), imports: vec!["wire".into()] };
        assert_eq!(parse(Path::new("/r"), &metadata), Some(vec![expected]));
        assert_eq!(parse(Path::new("/r"), &serde_json::json!({})), None);
    }
}

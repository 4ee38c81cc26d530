//! Where the helper programs are.
//!
//! Looked for in this order: the directories given (`--programs`), the directory of the running program, the cache that
//! `ci/setup` fills, `/usr/lib/onion-router`, `PATH`, and where Debian keeps virtiofsd.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::paths;

/// The helper programs, and where each comes from when it is missing.
pub const HELPERS: [(&str, &str); 5] = [
    (QEMU, "install QEMU 10.0 or newer (Debian 13: apt install qemu-system-x86; Debian 12: from bookworm-backports)"),
    (VSOCK_DEVICE, "run ci/setup, or: cargo install --locked vhost-device-vsock@0.3.0"),
    (VIRTIOFSD, "run ci/setup, or: cargo install --locked virtiofsd@1.14.0"),
    (PORT, "build it: cargo build -p port"),
    (UPLINK, "build it: cargo build -p host-agent"),
];

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";
/// The router VM's vsock device.
pub const VSOCK_DEVICE: &str = "vhost-device-vsock";
/// The router VM's file system.
pub const VIRTIOFSD: &str = "virtiofsd";
/// A VM's port.
pub const PORT: &str = "oht-port";
/// The uplink.
pub const UPLINK: &str = "oht-uplink";

/// A helper program that is nowhere.
#[derive(Debug, thiserror::Error)]
#[error("the program {name} is nowhere to be found: {remedy}, or name its directory with --programs")]
pub struct Missing {
    /// Which.
    pub name: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// The directories that are searched.
#[derive(Clone, Debug)]
pub struct Programs(Vec<PathBuf>);

impl Programs {
    /// The usual directories, after those given.
    #[must_use]
    pub fn new(given: &[PathBuf]) -> Programs {
        let mut directories = given.to_vec();
        directories.extend(own_directory());
        directories.push(cache().join("tools/vhost-device-vsock-0.3.0/bin"));
        directories.push(cache().join("tools/virtiofsd-1.14.0/bin"));
        directories.push("/usr/lib/onion-router".into());
        directories.extend(env::var_os("PATH").iter().flat_map(env::split_paths).filter(|path| path.is_absolute()));
        directories.push("/usr/libexec".into());
        Programs(directories)
    }

    /// The program `name`.
    ///
    /// # Errors
    /// When no directory has it.
    pub fn find(&self, name: &str) -> Result<PathBuf, Missing> {
        let found = self.0.iter().map(|directory| directory.join(name)).find(|path| is_program(path));
        found.ok_or_else(|| {
            let remedy = HELPERS.iter().find(|helper| helper.0 == name).map_or("install it", |helper| helper.1);
            Missing { name: name.into(), remedy }
        })
    }
}

/// The directory of the running program.
#[must_use]
pub fn own_directory() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.parent()?.to_path_buf())
}

/// What `ci/setup` fills: `$OHT_CACHE`, else the user's cache.
#[must_use]
pub fn cache() -> PathBuf {
    env::var_os("OHT_CACHE").map_or_else(|| paths::xdg("XDG_CACHE_HOME", ".cache").join("onion-router"), PathBuf::from)
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_first_directory_that_has_the_program_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("1"), dir.path().join("2"));
        for directory in [&first, &second] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("tool"), "").unwrap();
        }
        let programs = Programs::new(&[first.clone(), second.clone()]);
        assert!(programs.find("tool").is_err(), "not executable");
        fs::set_permissions(second.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(programs.find("tool").unwrap(), second.join("tool"));
        fs::set_permissions(first.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(programs.find("tool").unwrap(), first.join("tool"));
    }

    #[test]
    fn a_missing_program_comes_with_its_remedy() {
        let error = Programs(Vec::new()).find(VIRTIOFSD).unwrap_err().to_string();
        assert!(error.contains("cargo install --locked virtiofsd@1.14.0"), "{error}");
    }
}

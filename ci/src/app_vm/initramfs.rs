//! The application VM's initramfs: busybox, the stock kernel's modules for a virtio NIC (and for a virtio disk, if the
//! VM has one), and the scripts.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use cpio::newc;

use crate::cache;

/// Writes the initramfs to `path`: of a VM with busybox alone, or of one that goes on with what is on its disk, where it
/// may load `more` modules.
pub(crate) fn write(path: &Path, more: Option<&[&str]>) -> Result<()> {
    let mut archive = Archive { bytes: Vec::new(), inode: 0 };
    for dir in ["bin", "sbin", "usr", "usr/bin", "usr/sbin", "etc", "modules", "proc", "sys", "dev", "tmp", "run"] {
        archive.entry(dir, DIRECTORY | 0o755, &[])?;
    }
    archive.entry("init", FILE | 0o755, include_bytes!("init.sh"))?;
    archive.entry("dhcp.sh", FILE | 0o755, include_bytes!("dhcp.sh"))?;
    archive.entry("debian.sh", FILE | 0o755, include_bytes!("debian.sh"))?;
    archive.entry("shell.sh", FILE | 0o644, include_bytes!("shell.sh"))?;
    archive.entry("bin/busybox", FILE | 0o755, &busybox()?)?;
    let modules_dir = cache::cloud_kernel_modules()?;
    let mut seen = BTreeSet::new();
    for wanted in ["virtio_net"].into_iter().chain(more.map(|_| "virtio_blk")) {
        for (name, module) in modules(&modules_dir, wanted, &mut seen)? {
            archive.entry(&format!("modules/{name}.ko"), FILE | 0o644, &module)?;
        }
    }
    if let Some(more) = more {
        let mut names = String::new();
        for wanted in more {
            for (name, module) in modules(&modules_dir, wanted, &mut seen)? {
                archive.entry(&format!("modules/{name}.ko"), FILE | 0o644, &module)?;
                names += &format!("{name}\n");
            }
        }
        archive.entry("modules/more", FILE | 0o644, names.as_bytes())?;
    }
    let bytes = newc::trailer(archive.bytes).context("cannot end the archive")?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// File types (inode(7)).
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).context("a file is too large for an initramfs")?;
        let mut writer = newc::Builder::new(name).mode(mode).ino(self.inode).write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

/// The statically linked one.
fn busybox() -> Result<Vec<u8>> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    found.context("there is no busybox: run ci/setup")
}

/// The module `name` and what it depends on, unpacked; dependencies first, and without those that were `seen` before.
fn modules(dir: &Path, name: &str, seen: &mut BTreeSet<String>) -> Result<Vec<(String, Vec<u8>)>> {
    let order = fs::read_to_string(dir.join("modules.order")).context("the cloud kernel has no modules.order")?;
    let mut found = Vec::new();
    add_module(dir, &order, name, seen, &mut found)?;
    Ok(found)
}

fn add_module(
    dir: &Path,
    order: &str,
    name: &str,
    seen: &mut BTreeSet<String>,
    found: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let file = format!("/{name}.ko");
    let line = order.lines().find(|line| line.ends_with(&file) || line.replace('-', "_").ends_with(&file));
    let line = line.with_context(|| format!("the cloud kernel has no module {name}"))?;
    let module = unpack(dir, line)?;
    for dependency in depends(&module) {
        add_module(dir, order, &dependency, seen, found)?;
    }
    found.push((name.to_owned(), module));
    Ok(())
}

/// Debian 12 and 13 compress modules by xz; older and other kernels may not.
fn unpack(dir: &Path, line: &str) -> Result<Vec<u8>> {
    let plain = dir.join(line);
    let packed = PathBuf::from(format!("{}.xz", plain.display()));
    if !packed.exists() {
        return fs::read(&plain).with_context(|| format!("cannot read {}", plain.display()));
    }
    let output = Command::new("xz").args(["-dc"]).arg(&packed).output().context("cannot run xz: run ci/setup")?;
    if !output.status.success() {
        bail!("xz cannot unpack {}: {}", packed.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// The module's own note of what it depends on (section `.modinfo`: strings with NUL bytes between). The package is
/// not installed, so there is no modules.dep.
fn depends(module: &[u8]) -> Vec<String> {
    let note = module.split(|&byte| byte == 0).find_map(|text| text.strip_prefix(b"depends="));
    let names = note.map(|names| String::from_utf8_lossy(names).into_owned()).unwrap_or_default();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(depends(b"ELF\0depends=a,b_c\0name=x\0"), ["a", "b_c"]);
        assert!(depends(b"depends=\0name=x\0").is_empty());
    }

    #[test]
    fn a_module_comes_after_what_it_needs_even_in_a_circle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.order"), "k/a.ko\nk/b-b.ko\n").unwrap();
        fs::create_dir(dir.path().join("k")).unwrap();
        fs::write(dir.path().join("k/a.ko"), "\0depends=b_b\0").unwrap();
        fs::write(dir.path().join("k/b-b.ko"), "\0depends=a\0").unwrap();
        let names: Vec<String> =
            modules(dir.path(), "a", &mut BTreeSet::new()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["b_b", "a"]);
        assert!(modules(dir.path(), "c", &mut BTreeSet::new()).is_err());
    }
}

//! The image as a reader sees it who did not build it: unpacked, and compared with its manifest.
//!
//! This is on purpose not the code of `image-build`: a fault there should not hide itself.

use std::{
    fs,
    io::{Cursor, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The initramfs in an image's directory.
pub(super) const INITRAMFS: &str = "initramfs.cpio.zst";

/// Bytes of the largest initramfs that is unpacked here.
const UNPACKED_BYTES_MAX: u64 = 256 << 20;

/// Bits of a mode that say what kind of file it is, and the kind "regular file" (stat(2)).
const MODE_KIND: u32 = 0o170_000;
const MODE_REGULAR: u32 = 0o100_000;

/// A member of the initramfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its path, without a leading slash.
    pub(super) path: String,
    /// Kind and permissions.
    pub(super) mode: u32,
    /// Major and minor number, of a device node.
    pub(super) device: (u32, u32),
    /// Its content.
    pub(super) bytes: Vec<u8>,
}

impl Member {
    /// Whether it is a regular file.
    pub(super) fn is_regular(&self) -> bool {
        self.mode & MODE_KIND == MODE_REGULAR
    }

    /// Whether the kernel would execute it as a program.
    pub(super) fn is_program(&self) -> bool {
        self.is_regular() && self.mode & 0o111 != 0 && self.bytes.starts_with(b"\x7fELF")
    }
}

/// Compares the files in `dir` and the members of the initramfs with the manifest.
///
/// Returns the members. Fails with every difference.
pub(super) fn check(dir: &Path) -> Result<Vec<Member>> {
    let manifest = manifest(dir)?;
    let mut wrong = vec![];
    for (name, entry) in entries(&manifest, "files")? {
        let bytes = fs::read(dir.join(name)).with_context(|| format!("cannot read {name} of the image"))?;
        wrong.extend(difference(name, &bytes, entry));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    let members = unpack(&fs::read(dir.join(INITRAMFS)).context("cannot read the initramfs")?)?;
    let listed: Vec<_> = entries(&manifest, "initramfs")?.collect();
    for (path, entry) in &listed {
        let found = members.iter().find(|member| member.path == **path);
        match found {
            None => wrong.push(format!("{path} is in the manifest and not in the initramfs")),
            Some(member) if member.is_regular() => wrong.extend(difference(path, &member.bytes, entry)),
            Some(_) => {}
        }
    }
    for member in members.iter().filter(|member| member.is_program()) {
        if !listed.iter().any(|(path, _)| **path == member.path) {
            wrong.push(format!("the program {} is in the initramfs and not in the manifest", member.path));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(members)
}

/// The manifest of the image in `dir`.
pub(super) fn manifest(dir: &Path) -> Result<Value> {
    let path = dir.join("manifest.json");
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", path.display()))
}

/// SHA-256 in hexadecimal digits, as manifests have it.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entries<'a>(manifest: &'a Value, part: &str) -> Result<impl Iterator<Item = (&'a String, &'a Value)>> {
    let part = manifest[part].as_object().with_context(|| format!("the manifest has no {part:?}"))?;
    if part.is_empty() {
        bail!("the manifest lists nothing");
    }
    Ok(part.iter())
}

fn difference(name: &str, bytes: &[u8], entry: &Value) -> Option<String> {
    if entry["bytes"].as_u64() != Some(bytes.len() as u64) {
        return Some(format!("{name} has {} bytes, in the manifest {}", bytes.len(), entry["bytes"]));
    }
    let sum = sha256(bytes);
    (entry["sha256"].as_str() != Some(sum.as_str())).then(|| format!("{name} has another SHA-256 than in the manifest"))
}

/// The members of a compressed initramfs.
pub(super) fn unpack(compressed: &[u8]) -> Result<Vec<Member>> {
    let archive = zstd(&["--decompress", "--stdout", "--quiet"], compressed).context("cannot unpack the initramfs")?;
    let mut rest = Cursor::new(archive.as_slice());
    let mut members = vec![];
    loop {
        let mut reader = cpio::newc::Reader::new(rest).context("the initramfs is no cpio archive")?;
        let entry = reader.entry();
        if entry.is_trailer() {
            return Ok(members);
        }
        let path = entry.name().trim_start_matches('/').to_owned();
        let (mode, device) = (entry.mode(), (entry.rdev_major(), entry.rdev_minor()));
        let mut bytes = vec![];
        reader.read_to_end(&mut bytes).with_context(|| format!("{path} of the initramfs is cut off"))?;
        members.push(Member { path, mode, device, bytes });
        rest = reader.finish().context("the initramfs is cut off")?;
    }
}

/// The reverse of [`unpack`].
pub(super) fn pack(members: &[Member]) -> Result<Vec<u8>> {
    let mut archive = vec![];
    for (ino, member) in (1..).zip(members) {
        let length = u32::try_from(member.bytes.len()).context("a member is too long for a cpio archive")?;
        let header = cpio::newc::Builder::new(&member.path).ino(ino).mode(member.mode).nlink(1);
        let mut writer = header.rdev_major(member.device.0).rdev_minor(member.device.1).write(&mut archive, length);
        writer.write_all(&member.bytes).and_then(|()| writer.finish().map(drop)).context("cannot pack")?;
    }
    cpio::newc::trailer(&mut archive).context("cannot pack")?;
    zstd(&["--compress", "--stdout", "--quiet", "-3"], &archive).context("cannot pack the initramfs")
}

/// Runs the program `zstd` on `input`. Through files, so that neither side can wait for the other.
fn zstd(options: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut file = tempfile::tempfile().context("cannot write a temporary file")?;
    file.write_all(input).context("cannot write a temporary file")?;
    std::io::Seek::rewind(&mut file).context("cannot rewind a temporary file")?;
    let mut child = Command::new("zstd")
        .args(options)
        .stdin(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start zstd: run ci/setup")?;
    let mut output = vec![];
    let stdout = child.stdout.take().context("zstd has no output")?;
    stdout.take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut output).context("cannot read what zstd prints")?;
    if output.len() as u64 > UNPACKED_BYTES_MAX {
        let _ = child.kill();
        let _ = child.wait();
        bail!("it has more than {UNPACKED_BYTES_MAX} bytes");
    }
    let status = child.wait().context("cannot wait for zstd")?;
    if !status.success() {
        bail!("zstd found it damaged");
    }
    Ok(output)
}

/// Writes the programs among `members` below `dir`, executable for all; returns their paths in the initramfs and here.
pub(super) fn write_programs(members: &[Member], dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let programs = members.iter().filter(|member| member.is_program());
    let write = |(index, member): (usize, &Member)| {
        let path = dir.join(format!("program-{index}")); // A name from the archive could be a path.
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path)?;
        file.write_all(&member.bytes)?;
        Ok((member.path.clone(), path))
    };
    programs.enumerate().map(write).collect::<std::io::Result<_>>().context("cannot unpack the programs")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn regular(path: &str, mode: u32, bytes: &[u8]) -> Member {
        Member { path: path.into(), mode: MODE_REGULAR | mode, device: (0, 0), bytes: bytes.into() }
    }

    /// An image of two members, as `image-build` would lay it out.
    pub(crate) fn sample(dir: &Path) -> Vec<Member> {
        let members =
            vec![regular("init", 0o755, b"\x7fELF and more"), regular("etc/passwd", 0o644, b"root:x:0:0::/:\n")];
        fs::write(dir.join("vmlinuz"), b"a kernel").unwrap();
        fs::write(dir.join(INITRAMFS), pack(&members).unwrap()).unwrap();
        let entry = |bytes: &[u8]| serde_json::json!({"sha256": sha256(bytes), "bytes": bytes.len()});
        let file = |name: &str| entry(&fs::read(dir.join(name)).unwrap());
        let manifest = serde_json::json!({
            "version": 1,
            "files": {"vmlinuz": file("vmlinuz"), INITRAMFS: file(INITRAMFS)},
            "initramfs": {"init": entry(&members[0].bytes), "etc/passwd": entry(&members[1].bytes)},
        });
        fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
        members
    }

    #[test]
    fn a_good_image_is_unpacked_and_matches() {
        let dir = tempfile::tempdir().unwrap();
        let members = sample(dir.path());
        assert_eq!(check(dir.path()).unwrap(), members);
        assert!(members[0].is_program() && !members[1].is_program());
    }

    #[test]
    fn a_changed_file_is_named() {
        for name in ["vmlinuz", INITRAMFS] {
            let dir = tempfile::tempdir().unwrap();
            sample(dir.path());
            let mut bytes = fs::read(dir.path().join(name)).unwrap();
            bytes[3] ^= 1;
            fs::write(dir.path().join(name), bytes).unwrap();
            let error = check(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("SHA-256"), "{error}");
        }
    }

    #[test]
    fn a_cut_archive_is_an_error_and_no_panic() {
        let archive = zstd(&["-d", "-c", "-q"], &pack(&[regular("init", 0o755, &[7; 300])]).unwrap()).unwrap();
        for bytes in [0, 1, 50, 109, 110, 120, 200, archive.len() - 200] {
            let cut = zstd(&["-c", "-q"], &archive[..bytes]).unwrap();
            assert!(unpack(&cut).is_err(), "cut to {bytes} bytes");
        }
        assert!(unpack(b"not zstd at all").is_err());
    }
}

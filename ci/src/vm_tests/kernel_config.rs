//! The configuration of a kernel, read from the kernel itself: it carries a copy (`CONFIG_IKCONFIG`) inside its
//! compressed part.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};

/// The lines of the configuration of the kernel in the file `vmlinuz`.
pub(super) fn read(vmlinuz: &Path) -> Result<String> {
    let packed = fs::read(vmlinuz).with_context(|| format!("cannot read {}", vmlinuz.display()))?;
    for start in positions(&packed, &ZSTD_MAGIC) {
        // What follows the compressed part is no zstd, so the program's status says nothing.
        let kernel = filter("zstd", &["-dcq"], packed[start..].to_vec())?;
        let Some(begin) = positions(&kernel, CONFIG_BEGIN).next() else { continue };
        let config = &kernel[begin + CONFIG_BEGIN.len()..];
        let end = positions(config, CONFIG_END).next().context("the kernel's configuration has no end")?;
        let text = filter("gzip", &["-dc"], config[..end].to_vec())?;
        return String::from_utf8(text).context("the kernel's configuration is no text");
    }
    anyhow::bail!("{} carries no configuration (CONFIG_IKCONFIG)", vmlinuz.display())
}

/// RFC 8878, section 3.1.1.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Linux, kernel/configs.c.
const CONFIG_BEGIN: &[u8] = b"IKCFG_ST";
const CONFIG_END: &[u8] = b"IKCFG_ED";

fn positions<'a>(bytes: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(wanted.len()).enumerate().filter(move |(_, window)| *window == wanted).map(|(at, _)| at)
}

/// What `program` makes of `input`, whatever its status.
fn filter(program: &str, args: &[&str], input: Vec<u8>) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}: run ci/setup"))?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    let writer = thread::spawn(move || stdin.write_all(&input));
    let mut output = Vec::new();
    child.stdout.take().context("no pipe")?.read_to_end(&mut output)?;
    let _ = writer.join(); // it fails when the program stops reading, as it may
    child.wait()?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_found_inside_a_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let config = filter("gzip", &["-c"], b"CONFIG_X=y\n".to_vec()).unwrap();
        let kernel = [b"code ", CONFIG_BEGIN, &config, CONFIG_END, b" more"].concat();
        let packed = filter("zstd", &["-cq"], kernel).unwrap();
        let path = dir.path().join("vmlinuz");
        fs::write(&path, [b"setup (\xb5/\xfd no zstd", &packed[..], b"trailer"].concat()).unwrap();
        assert_eq!(read(&path).unwrap(), "CONFIG_X=y\n");
        fs::write(&path, b"no kernel").unwrap();
        assert!(read(&path).is_err());
    }
}

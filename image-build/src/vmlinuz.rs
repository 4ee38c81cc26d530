//! What a built kernel says about itself: its release and the configuration it carries.
//!
//! A bzImage is a boot sector, a setup part and a compressed vmlinux, whose place is in the setup header
//! (Documentation/arch/x86/boot.rst, `payload_offset` and `payload_length`). With `CONFIG_IKCONFIG` the vmlinux has
//! the gzipped configuration between two markers (scripts/extract-ikconfig).

use std::io::{self, Read as _};

const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION_POINTER: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;

const CONFIG_BEGIN: &[u8] = b"IKCFG_ST";

/// Bytes of the largest kernel and configuration that are unpacked.
const VMLINUX_BYTES_MAX: u64 = 256 << 20;
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// Why a file does not say what its kernel is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmlinuzError {
    #[error("it is no Linux kernel of the bzImage kind")]
    NotBzImage,
    #[error("the kernel in it is not compressed with zstd, or damaged")]
    Payload(#[source] io::Error),
    #[error("the kernel does not carry its configuration (CONFIG_IKCONFIG)")]
    NoConfig,
    #[error("the configuration in the kernel is damaged")]
    Config(#[source] io::Error),
}

/// What `uname -r` will say.
pub(crate) fn release(vmlinuz: &[u8]) -> Result<String, VmlinuzError> {
    check_magic(vmlinuz)?;
    let at = usize::from(u16::from_le_bytes(field(vmlinuz, VERSION_POINTER)?)) + SECTOR_BYTES;
    let text = vmlinuz.get(at..).ok_or(VmlinuzError::NotBzImage)?;
    let end = text.iter().take(128).position(|byte| *byte <= b' ').ok_or(VmlinuzError::NotBzImage)?;
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

/// The configuration, as in the `.config` it was built with.
pub(crate) fn config(vmlinuz: &[u8]) -> Result<String, VmlinuzError> {
    check_magic(vmlinuz)?;
    let sectors = match vmlinuz[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = u32::from_le_bytes(field(vmlinuz, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(field(vmlinuz, PAYLOAD_LENGTH)?) as usize;
    let payload = (sectors + 1) * SECTOR_BYTES + offset;
    let payload = vmlinuz.get(payload..).and_then(|rest| rest.get(..length)).ok_or(VmlinuzError::NotBzImage)?;
    let mut vmlinux = Vec::new();
    // The last four bytes are the unpacked size, not part of the frame: one frame is read and no more.
    zstd::Decoder::with_buffer(payload)
        .and_then(|decoder| decoder.single_frame().take(VMLINUX_BYTES_MAX).read_to_end(&mut vmlinux))
        .map_err(VmlinuzError::Payload)?;
    let begin = find(&vmlinux, CONFIG_BEGIN).ok_or(VmlinuzError::NoConfig)?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(&vmlinux[begin + CONFIG_BEGIN.len()..])
        .take(CONFIG_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(VmlinuzError::Config)?;
    Ok(text)
}

/// Whether the configuration has an option set, to whatever value.
pub(crate) fn has(config: &str, option: &str) -> bool {
    config.lines().any(|line| line.strip_prefix(option).is_some_and(|rest| rest.starts_with('=')))
}

fn check_magic(vmlinuz: &[u8]) -> Result<(), VmlinuzError> {
    if field(vmlinuz, MAGIC)? == *b"HdrS" { Ok(()) } else { Err(VmlinuzError::NotBzImage) }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], VmlinuzError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(VmlinuzError::NotBzImage)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use super::*;

    /// A bzImage as far as it matters here, around a configuration.
    pub(crate) fn bzimage(config: &str) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(config.as_bytes()).unwrap();
        let vmlinux = [b"\x7fELF and code", CONFIG_BEGIN, &gzip.finish().unwrap(), b"IKCFG_ED and more"].concat();
        let mut payload = zstd::encode_all(vmlinux.as_slice(), 1).unwrap();
        payload.extend_from_slice(&u32::try_from(vmlinux.len()).unwrap().to_le_bytes());
        let mut image = vec![0; 2 * SECTOR_BYTES];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION_POINTER..VERSION_POINTER + 2].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x30e].copy_from_slice(b"6.12-test (me)");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        [image, vec![0x90; 16], payload, vec![0; 100]].concat()
    }

    #[test]
    fn a_kernel_says_its_release_and_configuration() {
        let config_text = "# CONFIG_INET is not set\nCONFIG_NET=y\nCONFIG_NETLINK=m\nCONFIG_LSM=\"x\"\n";
        let image = bzimage(config_text);
        assert_eq!(release(&image).unwrap(), "6.12-test");
        assert_eq!(config(&image).unwrap(), config_text);
        for (option, there) in
            [("CONFIG_NET", true), ("CONFIG_INET", false), ("CONFIG_NETLINK", true), ("CONFIG_LSM", true)]
        {
            assert_eq!(has(config_text, option), there, "{option}");
        }
    }

    #[test]
    fn damaged_kernels_are_errors_and_no_panics() {
        let image = bzimage("CONFIG_NET=y\n");
        for cut in [0, 0x1f2, 0x203, 0x249, 1024, 1100] {
            assert!(config(&image[..cut]).is_err(), "cut to {cut}");
            let _ = release(&image[..cut]);
        }
        for (at, byte) in [(MAGIC, 0), (PAYLOAD_LENGTH + 3, 0xff), (PAYLOAD_OFFSET + 3, 0xff), (SETUP_SECTORS, 0xff)] {
            let mut damaged = image.clone();
            damaged[at] = byte;
            assert!(config(&damaged).is_err(), "byte {at:#x}");
        }
    }
}

//! What goes into a kernel, and its hash.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Serialize;

use super::{KernelError, make};
use crate::manifest::{sha256, sha256_of};

/// Raised when what image-build does with the inputs changes the result.
const RECIPE: u32 = 1;

/// Programs that the build calls, with Debian's package of each.
const TOOLS: [(&str, &str); 12] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("m4", "m4"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("gzip", "gzip"),
];
/// A header of the library that the kernel's `objtool` is linked to, with its package.
const LIBELF: (&str, &str) = ("/usr/include/gelf.h", "libelf-dev");

/// Everything that the kernel's bytes depend on.
#[derive(Debug, Serialize)]
pub(crate) struct Inputs {
    recipe: u32,
    /// Name of the source archive.
    pub(crate) source: String,
    /// SHA-256 of the source archive.
    pub(crate) source_sha256: String,
    /// SHA-256 of the configuration fragment.
    fragment_sha256: String,
    compiler: String,
    linker: String,
    compressor: String,
    environment: Vec<(&'static str, &'static str)>,
}

impl Inputs {
    /// Reads the inputs of this machine.
    pub(crate) fn gather(source: &Path, fragment: &str) -> Result<Inputs, KernelError> {
        let error = |error| KernelError::Source { path: source.to_owned(), source: error };
        Ok(Inputs {
            recipe: RECIPE,
            source: source.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            source_sha256: fs::File::open(source).and_then(sha256_of).map_err(error)?,
            fragment_sha256: sha256(fragment.as_bytes()),
            compiler: version("gcc")?,
            linker: version("ld")?,
            compressor: version("zstd")?,
            environment: make::ENVIRONMENT.to_vec(),
        })
    }

    /// The inputs as they are kept beside the kernel.
    pub(crate) fn json(&self) -> Vec<u8> {
        crate::manifest::json(self)
    }

    /// A name for kernels of these inputs.
    pub(crate) fn hash(&self) -> String {
        sha256(&self.json())
    }

    #[cfg(test)]
    pub(super) fn sample() -> Inputs {
        Inputs {
            recipe: RECIPE,
            source: "linux.tar.xz".into(),
            source_sha256: sha256(b"source"),
            fragment_sha256: sha256(b"fragment"),
            compiler: "gcc 12".into(),
            linker: "ld 2".into(),
            compressor: "zstd 1".into(),
            environment: vec![],
        }
    }
}

/// The first line that a tool's `--version` prints.
fn version(program: &'static str) -> Result<String, KernelError> {
    let done = Command::new(program)
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| KernelError::Start { program, source })?;
    Ok(String::from_utf8_lossy(&done.stdout).lines().next().unwrap_or_default().trim().to_owned())
}

/// Names every tool that is missing at once.
pub(crate) fn check_tools() -> Result<(), KernelError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let missing = TOOLS.into_iter().filter(|(name, _)| !there(name));
    let library = (!Path::new(LIBELF.0).is_file()).then_some(LIBELF);
    let (tools, packages): (Vec<_>, Vec<_>) = missing.chain(library).unzip();
    if tools.is_empty() { Ok(()) } else { Err(KernelError::Tools(tools, packages)) }
}

/// The kernel source that ci/setup unpacked; the one with the highest version when there are several.
pub(crate) fn newest_source(cache: &Path) -> Result<PathBuf, KernelError> {
    let dir = cache.join("debian/linux-source/usr/src");
    let name_of = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let entries = fs::read_dir(&dir).map_err(|_| KernelError::NoSource(dir.clone()))?;
    let sources = entries.flatten().map(|entry| entry.path()).filter(|path| {
        let name = name_of(path);
        name.starts_with("linux-source-") && name.ends_with(".tar.xz")
    });
    let version = |path: &PathBuf| -> Vec<u32> {
        name_of(path).split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    sources.max_by_key(version).ok_or(KernelError::NoSource(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_changes_the_hash() {
        let same = Inputs::sample().hash();
        assert_eq!(Inputs::sample().hash(), same);
        let change: [fn(&mut Inputs); 6] = [
            |inputs| inputs.recipe += 1,
            |inputs| inputs.source_sha256.push('0'),
            |inputs| inputs.fragment_sha256.push('0'),
            |inputs| inputs.compiler.push('3'),
            |inputs| inputs.linker.push('3'),
            |inputs| inputs.environment.push(("A", "b")),
        ];
        for change in change {
            let mut other = Inputs::sample();
            change(&mut other);
            assert_ne!(other.hash(), same);
        }
    }

    #[test]
    fn the_newest_source_is_taken_and_a_missing_one_is_an_error() {
        let cache = tempfile::tempdir().unwrap();
        assert!(matches!(newest_source(cache.path()), Err(KernelError::NoSource(_))));
        let dir = cache.path().join("debian/linux-source/usr/src");
        fs::create_dir_all(&dir).unwrap();
        for name in ["linux-source-6.9.tar.xz", "linux-source-6.12.tar.xz", "linux-config-7.1.tar.xz"] {
            fs::write(dir.join(name), "").unwrap();
        }
        assert_eq!(newest_source(cache.path()).unwrap(), dir.join("linux-source-6.12.tar.xz"));
    }
}

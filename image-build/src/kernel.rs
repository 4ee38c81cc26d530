//! The kernel: built once for the same inputs, kept in the cache outside the checkout.
//!
//! ```text
//! $CACHE/kernel/lock              held while building, so that two builds at once do the work once
//! $CACHE/kernel/<inputs>/         vmlinuz, config, System.map, inputs.json: whole, or not there
//! $CACHE/kernel/build-XXXX/       the source and a build that is going on; a killed build's is removed by the next
//! $CACHE/kernel/last-failure.log  what make said when a build failed
//! ```
//!
//! `<inputs>` is the hash of everything that goes in: the source archive, the configuration fragment, the compiler,
//! the linker and the build's environment. The environment is empty but for what stands in [`make`], the build's
//! directory does not get into the result, and neither do time, user and host: the same inputs give the same bytes,
//! and `--force-kernel` tries it.

mod inputs;
mod make;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

pub(crate) use inputs::Inputs;

use crate::{
    manifest::sha256,
    vmlinuz::{self, VmlinuzError},
};

/// What to build.
pub(crate) struct Order {
    /// The cache that ci/setup fills.
    pub(crate) cache: PathBuf,
    /// The source archive, if it is not the cache's.
    pub(crate) source: Option<PathBuf>,
    /// The configuration fragment.
    pub(crate) fragment: String,
    /// Compilers at once.
    pub(crate) jobs: usize,
    /// Build although it is in the cache, and compare.
    pub(crate) force: bool,
}

/// A built kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The bzImage.
    pub(crate) vmlinuz: Vec<u8>,
    /// The whole configuration, as the kernel carries it.
    pub(crate) config: String,
    /// What `uname -r` says.
    pub(crate) release: String,
    /// Name and SHA-256 of the source archive.
    pub(crate) source: String,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error("there is no kernel source in {0}: run ci/setup, or name an archive with --kernel-source")]
    NoSource(PathBuf),
    #[error("cannot read the kernel source {path}")]
    Source { path: PathBuf, source: io::Error },
    #[error("building the kernel needs {}: run ci/setup, or install {}", .0.join(", "), .1.join(" "))]
    Tools(Vec<&'static str>, Vec<&'static str>),
    #[error("cannot use the kernel cache {dir}: name another with --cache or $OHT_CACHE")]
    Cache { dir: PathBuf, source: io::Error },
    #[error(
        "the disk of {dir} has {free_mib} MiB free, building the kernel takes {needed_mib}: free some, or name another cache with --cache"
    )]
    Space { dir: PathBuf, free_mib: u64, needed_mib: u64 },
    #[error("cannot start {program}: run ci/setup")]
    Start { program: &'static str, source: io::Error },
    #[error("cannot unpack {path} (is it whole? is the disk full?): {said}")]
    Unpack { path: PathBuf, said: String },
    #[error("{step} of the kernel failed; all it said is in {log}, the end of it:\n{said}")]
    Make { step: &'static str, log: PathBuf, said: String },
    #[error("the kernel's configuration did not take these lines of the fragment (a dependency is missing, or this source has no such option):\n  {}", .0.join("\n  "))]
    Fragment(Vec<String>),
    #[error("the kernel that was built says nothing about itself")]
    Vmlinuz(#[source] VmlinuzError),
    #[error("two kernels of the same inputs differ: the cache's {cached} and the new {new}, kept in {kept}")]
    Differs { cached: String, new: String, kept: PathBuf },
}

/// A kernel of the inputs that were ordered, out of the cache or newly built.
pub(crate) fn build(order: &Order) -> Result<Kernel, KernelError> {
    let source = match &order.source {
        Some(path) => path.clone(),
        None => inputs::newest_source(&order.cache)?,
    };
    let dir = order.cache.join("kernel");
    let error = |source| KernelError::Cache { dir: dir.clone(), source };
    inputs::check_tools()?;
    let inputs = Inputs::gather(&source, &order.fragment)?;
    let slot = dir.join(&inputs.hash()[..32]);
    fs::create_dir_all(&dir).map_err(error)?;
    let _lock = lock(&dir.join("lock")).map_err(error)?;

    let cached = match cached(&slot, &inputs) {
        Some(kernel) if !order.force => {
            eprintln!("kernel: {} out of the cache ({})", kernel.release, slot.display());
            return Ok(kernel);
        }
        other => other,
    };
    remove_leftovers(&dir).map_err(error)?;
    let place = tempfile::Builder::new().prefix("build-").tempdir_in(&dir).map_err(error)?;
    let built = make::kernel(&make::Plan {
        source: &source,
        fragment: &order.fragment,
        jobs: order.jobs,
        place: place.path(),
        failure_log: &dir.join("last-failure.log"),
    })?;
    let vmlinuz = fs::read(&built.vmlinuz).map_err(error)?;
    let kernel = describe(vmlinuz, &inputs)?;
    if let Some(cached) = &cached {
        compare(cached, &kernel, &dir)?;
        return Ok(kernel);
    }
    store(place.path(), &built, &kernel, &inputs, &slot).map_err(error)?;
    Ok(kernel)
}

fn describe(vmlinuz: Vec<u8>, inputs: &Inputs) -> Result<Kernel, KernelError> {
    let config = vmlinuz::config(&vmlinuz).map_err(KernelError::Vmlinuz)?;
    let release = vmlinuz::release(&vmlinuz).map_err(KernelError::Vmlinuz)?;
    Ok(Kernel { vmlinuz, config, release, source: format!("{} sha256:{}", inputs.source, inputs.source_sha256) })
}

/// The kernel in the cache, if it is whole.
fn cached(slot: &Path, inputs: &Inputs) -> Option<Kernel> {
    if !slot.exists() {
        return None;
    }
    let kernel = || {
        let sum = fs::read_to_string(slot.join("vmlinuz.sha256")).ok()?;
        let vmlinuz = fs::read(slot.join("vmlinuz")).ok()?;
        (sum.trim() == sha256(&vmlinuz)).then(|| describe(vmlinuz, inputs).ok()).flatten()
    };
    let kernel = kernel();
    if kernel.is_none() {
        eprintln!("kernel: the one in the cache is damaged and built again ({})", slot.display());
    }
    kernel
}

/// Puts a built kernel into the cache: a directory that is complete gets its name.
fn store(place: &Path, built: &make::Built, kernel: &Kernel, inputs: &Inputs, slot: &Path) -> io::Result<()> {
    let new = place.join("kept");
    fs::create_dir(&new)?;
    fs::write(new.join("vmlinuz"), &kernel.vmlinuz)?;
    fs::write(new.join("vmlinuz.sha256"), sha256(&kernel.vmlinuz) + "\n")?;
    fs::write(new.join("config"), &kernel.config)?;
    fs::write(new.join("inputs.json"), inputs.json())?;
    fs::copy(&built.system_map, new.join("System.map"))?;
    nix::unistd::sync();
    match fs::remove_dir_all(slot) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(new, slot)
}

fn compare(cached: &Kernel, new: &Kernel, dir: &Path) -> Result<(), KernelError> {
    if cached.vmlinuz == new.vmlinuz {
        eprintln!("kernel: built again, the same {} bytes", new.vmlinuz.len());
        return Ok(());
    }
    let kept = dir.join("differs.vmlinuz");
    fs::write(&kept, &new.vmlinuz).map_err(|source| KernelError::Cache { dir: dir.to_owned(), source })?;
    Err(KernelError::Differs { cached: sha256(&cached.vmlinuz), new: sha256(&new.vmlinuz), kept })
}

/// Held until it is dropped, or the process ends.
fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("kernel: another image-build is at work on it, waiting for that one ({})", path.display());
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    Ok(file)
}

/// Removes what killed builds left. The lock is held, so no other build is going on.
fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("build-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmlinuz::tests::bzimage;

    fn inputs() -> Inputs {
        Inputs::sample()
    }

    #[test]
    fn what_was_stored_is_found_and_what_was_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let map = dir.path().join("map");
        fs::write(&map, "").unwrap();
        let built = make::Built { vmlinuz: PathBuf::new(), system_map: map };
        let kernel = describe(bzimage("CONFIG_NET=y\n"), &inputs()).unwrap();
        let slot = dir.path().join("slot");
        assert!(cached(&slot, &inputs()).is_none());
        store(dir.path(), &built, &kernel, &inputs(), &slot).unwrap();
        assert_eq!(cached(&slot, &inputs()).unwrap().vmlinuz, kernel.vmlinuz);
        fs::write(slot.join("vmlinuz"), &kernel.vmlinuz[1..]).unwrap();
        assert!(cached(&slot, &inputs()).is_none());
        store(dir.path(), &built, &kernel, &inputs(), &slot).unwrap();
        assert!(cached(&slot, &inputs()).is_some(), "a damaged one is replaced");
    }

    #[test]
    fn the_second_of_two_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = lock(&path).unwrap();
        let (other, (entered, entries)) = (path.clone(), std::sync::mpsc::channel());
        let second = std::thread::spawn(move || {
            let held = lock(&other).unwrap();
            entered.send(()).unwrap();
            drop(held);
        });
        assert!(entries.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        drop(first);
        entries.recv().unwrap();
        second.join().unwrap();
    }

    #[test]
    fn leftovers_go_and_kernels_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["build-abc/deep", "0123abcd"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        remove_leftovers(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["0123abcd"]);
    }
}

//! Unpacking, configuring and making the kernel, with progress.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use super::KernelError;

/// All that make finds in its environment besides PATH: whatever the user has set does not get into the kernel.
pub(crate) const ENVIRONMENT: [(&str, &str); 6] = [
    ("LC_ALL", "C"),
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "onion"),
    ("KBUILD_BUILD_HOST", "router"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("KCONFIG_NOTIMESTAMP", "1"),
];

/// The unpacked source has 1.5 GB, the objects 0.2.
const SPACE_MIB: u64 = 2500;
/// Object files of a build with the appliance's configuration: for the progress only.
const OBJECTS: u32 = 1040;
/// Lines that a failure shows; all of them are in the log.
const FAILURE_LINES: usize = 20;
const LINE_EVERY: Duration = Duration::from_secs(20);
const REDRAW_EVERY: Duration = Duration::from_millis(500);

/// A build.
pub(super) struct Plan<'a> {
    pub(super) source: &'a Path,
    pub(super) fragment: &'a str,
    pub(super) jobs: usize,
    /// A directory for it alone.
    pub(super) place: &'a Path,
    /// Where the output goes when it fails.
    pub(super) failure_log: &'a Path,
}

/// What came of it, below the plan's place.
pub(super) struct Built {
    pub(super) vmlinuz: PathBuf,
    pub(super) system_map: PathBuf,
}

/// Builds a kernel.
pub(super) fn kernel(plan: &Plan<'_>) -> Result<Built, KernelError> {
    check_space(plan.place)?;
    let tree = plan.unpack()?;
    plan.configure(&tree)?;
    let jobs = format!("-j{}", plan.jobs);
    plan.make(&tree, "the build", &[&jobs, "bzImage"], true)?;
    Ok(Built { vmlinuz: tree.join("arch/x86/boot/bzImage"), system_map: tree.join("System.map") })
}

impl Plan<'_> {
    /// Unpacks the source without what is large and never compiled here; returns its top directory.
    fn unpack(&self) -> Result<PathBuf, KernelError> {
        eprintln!("kernel: unpacking {}", self.source.display());
        let tree = self.place.join("linux");
        let cache = |source| KernelError::Cache { dir: self.place.to_owned(), source };
        fs::create_dir(&tree).map_err(cache)?;
        let done = Command::new("tar")
            .args(["--strip-components=1", "--no-same-owner", "--exclude=*/asic_reg", "--exclude=*/tools/testing"])
            .arg("-C")
            .arg(&tree)
            .arg("-xf")
            .arg(self.source)
            .output()
            .map_err(|source| KernelError::Start { program: "tar", source })?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr).lines().take(3).collect::<Vec<_>>().join("; ");
            return Err(KernelError::Unpack { path: self.source.to_owned(), said });
        }
        Ok(tree)
    }

    /// Everything off but the fragment and what it needs; then every line of the fragment is looked for.
    fn configure(&self, tree: &Path) -> Result<(), KernelError> {
        let cache = |source| KernelError::Cache { dir: self.place.to_owned(), source };
        let fragment = self.place.join("fragment");
        fs::write(&fragment, self.fragment).map_err(cache)?;
        let all = format!("KCONFIG_ALLCONFIG={}", fragment.display());
        self.make(tree, "the configuration", &[&all, "allnoconfig"], false)?;
        self.make(tree, "the configuration", &["olddefconfig"], false)?;
        let config = fs::read_to_string(tree.join(".config")).map_err(cache)?;
        let lost = lost(self.fragment, &config);
        if lost.is_empty() { Ok(()) } else { Err(KernelError::Fragment(lost)) }
    }

    fn make(&self, tree: &Path, step: &'static str, targets: &[&str], progress: bool) -> Result<(), KernelError> {
        let log = self.place.join("make.log");
        let cache = |source| KernelError::Cache { dir: self.place.to_owned(), source };
        let start = |source| KernelError::Start { program: "make", source };
        let (reader, writer) = io::pipe().map_err(cache)?;
        let mut child = Command::new("make")
            .current_dir(tree)
            .args(targets)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .envs(ENVIRONMENT)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(cache)?)
            .stderr(writer)
            .spawn()
            .map_err(start)?;
        // The child has its copies; ours went with the command, so the pipe ends when the build does.
        let logged = follow(reader, &log, progress);
        let status = child.wait().map_err(start)?;
        logged.map_err(cache)?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read(&log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().filter(|line| !is_object(line)).collect();
        let said = lines[lines.len().saturating_sub(FAILURE_LINES)..].join("\n");
        let _ = fs::copy(&log, self.failure_log);
        Err(KernelError::Make { step, log: self.failure_log.to_owned(), said })
    }
}

/// Lines of the fragment that the configuration does not have. An option that is to be off may be absent.
fn lost(fragment: &str, config: &str) -> Vec<String> {
    let has = |wanted: &str| config.lines().any(|line| line == wanted);
    let set = |option: &str| crate::vmlinuz::has(config, option);
    let off = |line: &str| Some(line.strip_prefix("# CONFIG_")?.strip_suffix(" is not set")?.to_owned());
    let taken = |line: &&str| match off(line) {
        Some(option) => !set(&format!("CONFIG_{option}")),
        None => !line.starts_with("CONFIG_") || has(line),
    };
    fragment.lines().map(str::trim).filter(|line| !taken(line)).map(str::to_owned).collect()
}

/// Copies what make says into the log until it is done, and shows how far it is.
fn follow(output: io::PipeReader, log: &Path, progress: bool) -> io::Result<()> {
    let mut log = File::create(log)?;
    let (compiled, events) = mpsc::channel();
    let shown = thread::spawn(move || {
        if progress {
            show(&events)
        }
    });
    let mut failed = Ok(());
    // To the end even if the log cannot be written: make would wait for a reader forever.
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line?;
        if is_object(&String::from_utf8_lossy(&line)) {
            let _ = compiled.send(());
        }
        line.push(b'\n');
        failed = failed.and_then(|()| log.write_all(&line));
    }
    drop(compiled);
    let _ = shown.join();
    failed
}

/// Whether make says that it makes an object file.
fn is_object(line: &str) -> bool {
    ["  CC ", "  AS "].iter().any(|kind| line.starts_with(kind))
}

/// A line that is drawn again on a terminal, a line from time to time elsewhere.
fn show(compiled: &mpsc::Receiver<()>) {
    let terminal = io::stderr().is_terminal();
    let every = if terminal { REDRAW_EVERY } else { LINE_EVERY };
    let began = Instant::now();
    let (mut objects, mut due, mut going_on) = (0, began, true);
    while going_on {
        match compiled.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(()) => objects += 1,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => going_on = false,
        }
        if going_on && Instant::now() < due {
            continue;
        }
        due = Instant::now() + every;
        let elapsed = began.elapsed().as_secs();
        let line = format!("kernel: {objects} of about {OBJECTS} files compiled, {elapsed} s");
        let _ = match (terminal, going_on) {
            (true, true) => write!(io::stderr(), "\r{line} "),
            (true, false) => writeln!(io::stderr(), "\r{line} "),
            (false, _) => writeln!(io::stderr(), "{line}"),
        };
    }
}

fn check_space(dir: &Path) -> Result<(), KernelError> {
    let Ok(disk) = nix::sys::statvfs::statvfs(dir) else { return Ok(()) };
    let free_mib = (disk.blocks_available() * disk.fragment_size()) >> 20;
    if free_mib >= SPACE_MIB {
        return Ok(());
    }
    Err(KernelError::Space { dir: dir.to_owned(), free_mib, needed_mib: SPACE_MIB })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_did_not_survive_are_named() {
        let config = "CONFIG_NET=y\n# CONFIG_INET is not set\nCONFIG_HZ=250\nCONFIG_LSM=\"\"\n";
        let good = "# a comment\n\nCONFIG_NET=y\n# CONFIG_INET is not set\n# CONFIG_UNKNOWN is not set\n";
        assert_eq!(lost(good, config), Vec::<String>::new());
        let bad = "CONFIG_NET=m\n# CONFIG_NET is not set\nCONFIG_HZ=100\nCONFIG_VSOCKETS=y\nCONFIG_LSM=\"landlock\"";
        assert_eq!(lost(bad, config), bad.lines().collect::<Vec<_>>());
    }

    #[test]
    fn output_goes_to_the_log_whole_and_objects_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let said = b"  CC      init/main.o\nsome \xff warning\nno line feed\n";
        writer.write_all(said).unwrap();
        drop(writer);
        follow(reader, &dir.path().join("log"), true).unwrap();
        assert_eq!(fs::read(dir.path().join("log")).unwrap(), said);
        assert!(is_object("  CC      x.o") && !is_object("  CCLD x") && !is_object("  HOSTCC  x"));
    }

    /// With `tar` and `make` as they are, on a source that is none.
    #[test]
    fn failures_say_what_failed_and_keep_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (source, log) = (dir.path().join("source.tar"), dir.path().join("failure.log"));
        let plan = Plan { source: &source, fragment: "", jobs: 1, place: dir.path(), failure_log: &log };
        fs::write(&source, "no archive").unwrap();
        assert!(matches!(plan.unpack(), Err(KernelError::Unpack { .. })));
        let tree = dir.path().join("linux");
        fs::write(tree.join("Makefile"), "allnoconfig:\n\t@echo gone wrong; exit 1\n").unwrap();
        let error = plan.configure(&tree).unwrap_err();
        assert!(matches!(&error, KernelError::Make { said, .. } if said.contains("gone wrong")), "{error}");
        assert!(fs::read_to_string(log).unwrap().contains("gone wrong"));
    }
}

//! The programs that the world is made of: started with their output in a file, and never left behind.
//!
//! A process belongs to one of two lifetimes. *Ours* ends with this program, whatever ends it: dropping a [`Process`]
//! stops it, and a parent-death signal covers a `kill -9` of the parent. (The signal follows the *thread* that
//! spawned, so spawn from one that lives as long as the process is needed.) *Kept* outlives this program and is found
//! again in a ledger: a file with one line a process, `pid start-time name`. The start time tells a process from a
//! later one with the same number, so [`clear`] never signals a stranger.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns::Netns;

/// How long a process may take to end after SIGTERM before it gets SIGKILL.
const TERM_TIME: Duration = Duration::from_secs(8);

/// Who outlives whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lifetime {
    /// Ends with this program.
    Ours,
    /// Goes on until [`clear`].
    Kept,
}

/// A program to start: its arguments, where its output goes, and where it runs.
pub(crate) struct Plan<'a> {
    /// The name in messages and in the ledger.
    pub(crate) name: String,
    /// The program and its arguments.
    pub(crate) argv: Vec<String>,
    /// The file that takes its output.
    pub(crate) log: PathBuf,
    /// The network namespace it runs in, if not this program's own.
    pub(crate) netns: Option<&'a Netns>,
    /// Who outlives whom.
    pub(crate) lifetime: Lifetime,
    /// The directory with the ledger.
    pub(crate) ledger: PathBuf,
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    lifetime: Lifetime,
    log: PathBuf,
}

impl Plan<'_> {
    /// Starts the program.
    ///
    /// # Errors
    /// When it cannot be started, or the log or the ledger cannot be written.
    pub(crate) fn spawn(self) -> Result<Process> {
        let log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let argv = wrapped(&self.argv, self.netns, self.lifetime);
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if self.lifetime == Lifetime::Kept {
            // Ctrl-C in the terminal is not for what is to stay.
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
        }
        let child = command.spawn().with_context(|| format!("cannot start {} ({})", self.name, argv[0]))?;
        record(&self.ledger, child.id(), &self.name)?;
        Ok(Process { name: self.name, child, lifetime: self.lifetime, log: self.log })
    }
}

/// Both wrappers end in `exec`, so the process keeps the number that we know.
fn wrapped(argv: &[String], netns: Option<&Netns>, lifetime: Lifetime) -> Vec<String> {
    let mut whole: Vec<String> = Vec::new();
    if lifetime == Lifetime::Ours {
        whole.extend(["setpriv", "--pdeathsig", "TERM", "--"].map(String::from));
    }
    if let Some(netns) = netns {
        whole.extend(netns.enter_argv());
    }
    whole.extend_from_slice(argv);
    whole
}

impl Process {
    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time that its threads, those that have not ended, have taken so far by the scheduler's count.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu(self.pid())
    }

    /// Whether it still runs; when it does not, why.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// What it wrote last, for messages about its failure.
    pub(crate) fn last_words(&self) -> String {
        last_lines(&self.log, 5)
    }

    /// An error that names the process, how it ended and its last words; `None` while it runs.
    pub(crate) fn failure(&mut self) -> Option<anyhow::Error> {
        let status = self.exited()?;
        let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("killed by signal {signal}"));
        Some(anyhow::anyhow!("{} ended ({how}); see {}: {}", self.name, self.log.display(), self.last_words()))
    }

    /// Lets it go on after this program: for `Lifetime::Kept` only.
    pub(crate) fn leave(self) {
        debug_assert_eq!(self.lifetime, Lifetime::Kept);
        std::mem::forget(self);
    }

    /// SIGTERM without waiting: to end many at once, then drop each.
    pub(crate) fn terminate(&self) {
        signal(self.child.id(), Signal::SIGTERM);
    }

    /// SIGTERM, then waits: for programs that write a summary then. (Not SIGINT: a shell that starts us in the background
    /// has it ignored, here and in all that we start.)
    pub(crate) fn finish(&mut self) {
        self.terminate();
        let _ = self.wait(TERM_TIME);
    }

    /// Waits until it ended, at most `timeout`.
    fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            if Instant::now() > end {
                return None;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_some() {
            return;
        }
        self.terminate();
        if self.wait(TERM_TIME).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The CPU time of any process; see [`Process::cpu`].
///
/// # Errors
/// When it has ended.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?;
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(nanoseconds.sum()))
}

/// How much of a process's memory is in RAM, in KiB.
///
/// # Errors
/// When it has ended.
pub(crate) fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without memory")?;
    line.trim().trim_end_matches(" kB").parse().with_context(|| format!("a size was expected: {line:?}"))
}

/// Ends every process of the ledger in `dir` that still runs, and forgets the ledger. Returns how many it ended.
pub(crate) fn clear(dir: &Path) -> Result<usize> {
    let path = dir.join(LEDGER);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(0) };
    let alive: Vec<(u32, u64)> =
        text.lines().filter_map(parse).filter(|&(pid, at)| start_time(pid) == Some(at)).collect();
    for &(pid, _) in &alive {
        signal(pid, Signal::SIGTERM);
    }
    let end = Instant::now() + TERM_TIME;
    for &(pid, at) in &alive {
        while start_time(pid) == Some(at) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        if start_time(pid) == Some(at) {
            signal(pid, Signal::SIGKILL);
        }
    }
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(alive.len())
}

/// The processes of the ledger in `dir` that still run, by name.
pub(crate) fn running(dir: &Path) -> Vec<(String, u32)> {
    let text = fs::read_to_string(dir.join(LEDGER)).unwrap_or_default();
    let alive = |line: &str| parse(line).filter(|&(pid, at)| start_time(pid) == Some(at)).map(|(pid, _)| pid);
    text.lines().filter_map(|line| Some((line.split(' ').nth(2)?.to_owned(), alive(line)?))).collect()
}

fn record(dir: &Path, pid: u32, name: &str) -> Result<()> {
    let path = dir.join(LEDGER);
    let at = start_time(pid).unwrap_or(0);
    let mut file = OpenOptions::new().create(true).append(true).open(&path);
    file.as_mut()
        .map_or(Ok(()), |file| writeln!(file, "{pid} {at} {}", name.replace(' ', "-")))
        .and(file.map(drop))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn parse(line: &str) -> Option<(u32, u64)> {
    let mut words = line.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Field 22 of `/proc/PID/stat` (proc(5)): clock ticks after boot. `None` for a process that is no more, or a zombie.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold anything, so count from its closing parenthesis.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    if rest.next()? == "Z" {
        return None;
    }
    rest.nth(18)?.parse().ok()
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// The last lines of a text file, on one line.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

const LEDGER: &str = "processes";

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: &Path, lifetime: Lifetime) -> Plan<'static> {
        Plan {
            name: "a sleeper".into(),
            argv: ["sleep", "600"].map(String::from).into(),
            log: dir.join("log"),
            netns: None,
            lifetime,
            ledger: dir.to_owned(),
        }
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = plan(dir.path(), Lifetime::Ours).spawn().unwrap();
        let pid = process.pid();
        assert!(start_time(pid).is_some());
        drop(process);
        assert_eq!(start_time(pid), None);
        assert!(running(dir.path()).is_empty());
    }

    #[test]
    fn the_cpu_time_of_a_process_grows_with_its_work_and_it_has_memory() {
        let dir = tempfile::tempdir().unwrap();
        let argv = ["sh", "-c", "while :; do :; done"].map(String::from).into();
        let process = Plan { argv, ..plan(dir.path(), Lifetime::Ours) }.spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        let before = process.cpu().unwrap();
        while process.cpu().unwrap() <= before {
            assert!(Instant::now() < end, "no CPU time is counted");
            thread::yield_now();
        }
        assert!(resident_kib(process.pid()).unwrap() > 0);
        drop(process);
        assert!(cpu(u32::MAX).is_err() && resident_kib(u32::MAX).is_err());
    }

    #[test]
    fn a_kept_process_is_found_again_and_a_stranger_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = plan(dir.path(), Lifetime::Kept).spawn().unwrap();
        assert_eq!(running(dir.path()), [("a-sleeper".to_owned(), process.pid())]);
        // This very process, with a start time that is not its own.
        let mut ledger = OpenOptions::new().append(true).open(dir.path().join(LEDGER)).unwrap();
        writeln!(ledger, "{} 1 stranger", std::process::id()).unwrap();
        let reaper = thread::spawn(move || process.wait(Duration::from_secs(5)));
        assert_eq!(clear(dir.path()).unwrap(), 1);
        assert_eq!(reaper.join().unwrap().and_then(|status| status.signal()), Some(15));
    }
}

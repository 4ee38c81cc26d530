//! The processes that run for a state directory, on record, so that an agent that was killed leaves nothing behind.
//!
//! Children outlive a killed agent on purpose: VMs keep their network. Its successor reads the record, makes sure that
//! each process is the one that was started (same boot, same start time; a process ID alone may be another's by now),
//! ends it through a pidfd, which cannot hit another process, and starts its own.
//!
//! A process is on record a moment after it was started. One that is started in the very moment in which the agent is
//! killed is therefore missed; it serves sockets that are replaced by the successor's, and nobody reaches it again.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{paths::write_for_this_boot, pidfd::Process};

/// How long a process may take after SIGTERM before it is killed.
const TERM_GRACE: Duration = Duration::from_millis(1500);

/// One process on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its process ID.
    pub pid: i32,
    /// When it was started, in clock ticks since the boot (proc(5), field 22).
    pub start_ticks: u64,
    /// Which boot that was.
    pub boot_id: String,
}

/// The record, kept in a file.
#[derive(Debug)]
pub struct Children {
    path: PathBuf,
    records: Mutex<BTreeMap<String, Record>>,
}

impl Children {
    /// Opens the record at `path`. One that cannot be read counts as empty: it says nothing that could be trusted.
    #[must_use]
    pub fn open(path: PathBuf) -> Children {
        let records = fs::read(&path).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
        Children { path, records: Mutex::new(records) }
    }

    /// Notes that `pid` runs as `name`.
    pub fn started(&self, name: &str, pid: u32) {
        let Some(record) = i32::try_from(pid).ok().and_then(record_of) else { return };
        self.change(|records| drop(records.insert(name.into(), record)));
    }

    /// Notes that `name` runs no more.
    pub fn ended(&self, name: &str) {
        self.change(|records| drop(records.remove(name)));
    }

    /// Ends every process on record, all at once, and forgets them. Returns the names of those that were running.
    pub async fn end_all(&self) -> Vec<String> {
        let records = std::mem::take(&mut *self.lock());
        let endings = records.into_iter().map(|(name, record)| async move { end(&record).await.then_some(name) });
        let tasks: Vec<_> = endings.map(tokio::spawn).collect();
        let mut ended = Vec::new();
        for task in tasks {
            ended.extend(task.await.ok().flatten());
        }
        self.change(|_| ());
        ended
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Record>)) {
        let mut records = self.lock();
        change(&mut records);
        let json = serde_json::to_vec_pretty(&*records).unwrap_or_default();
        if let Err(error) = write_for_this_boot(&self.path, &json) {
            tracing::error!(path = %self.path.display(), %error, "cannot write the record of running processes");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Ends the process of a record: SIGTERM, then SIGKILL. `false` when it was gone already.
async fn end(record: &Record) -> bool {
    // The descriptor first, then the look: from here on the descriptor means this one process.
    let Some(process) = Process::open(record.pid) else { return false };
    if record_of(record.pid).as_ref() != Some(record) {
        return false;
    }
    process.terminate();
    if !process.ended(TERM_GRACE).await {
        process.kill();
        process.ended(TERM_GRACE).await;
    }
    true
}

fn record_of(pid: i32) -> Option<Record> {
    let start_ticks = start_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some(Record { pid, start_ticks, boot_id: boot_id().ok()? })
}

/// Field 22 of `/proc/PID/stat`. The name in field 2 may itself hold blanks and brackets: count from its last bracket.
fn start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::process::Command;

    fn sleeper(ignores_term: bool) -> tokio::process::Child {
        let script = if ignores_term { "trap '' TERM; echo; exec sleep 1000" } else { "echo; exec sleep 1000" };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdout(std::process::Stdio::piped()).kill_on_drop(true);
        command.spawn().unwrap()
    }

    async fn begun(child: &mut tokio::process::Child) {
        use tokio::io::AsyncReadExt;
        child.stdout.take().unwrap().read_u8().await.unwrap();
    }

    #[tokio::test]
    async fn a_successor_ends_what_its_predecessor_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("children.json");
        let (mut mild, mut deaf, mut gone) = (sleeper(false), sleeper(true), sleeper(false));
        let before = Children::open(path.clone());
        for (name, child) in [("mild", &mut mild), ("deaf", &mut deaf), ("gone", &mut gone)] {
            begun(child).await;
            before.started(name, child.id().unwrap());
        }
        gone.kill().await.unwrap();
        drop(before);
        let after = Children::open(path.clone());
        assert_eq!(after.end_all().await, ["deaf", "mild"]);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&deaf.wait().await.unwrap()), Some(9));
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&mild.wait().await.unwrap()), Some(15));
        assert!(Children::open(path).end_all().await.is_empty());
    }

    #[tokio::test]
    async fn another_process_with_the_same_number_is_left_alone() {
        let mut child = sleeper(false);
        begun(&mut child).await;
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let mut record = record_of(pid).unwrap();
        record.start_ticks += 1;
        assert!(!end(&record).await);
        record = Record { boot_id: "another".into(), ..record_of(pid).unwrap() };
        assert!(!end(&record).await);
        assert!(child.try_wait().unwrap().is_none());
    }

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        let stat = "12 (a) R) (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(start_ticks(stat), Some(777));
        assert_eq!(start_ticks("12 (a"), None);
    }
}

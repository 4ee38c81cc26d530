//! A guest at nearly native speed: User Mode Linux, a Linux kernel that is a process, with a virtio-net NIC of any
//! vhost-user back-end. It boots in a fifth of a second.
//!
//! Its root is the host's file system, read only; its console is this program's pipe, by which it is told what to run
//! (`guest.sh`).

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::generators;

/// How long a boot may take on a busy machine.
const BOOT_TIME: Duration = Duration::from_secs(30);

/// How long the guest may take to end.
const END_TIME: Duration = Duration::from_secs(10);

/// Starts a line that tells the status of what ran.
const DONE: &str = "guest-done ";

/// A guest that runs.
pub(super) struct Guest {
    child: Child,
    /// The console.
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Guest {
    /// Boots a guest whose NIC is served at `socket`, with an address and an `mtu`. `dir` is for its files.
    ///
    /// # Errors
    /// When there is no User Mode Linux, or the guest does not come up.
    pub(super) fn boot(dir: &Path, socket: &Path, mtu: u32) -> Result<Guest> {
        let uml = generators::path("uml")?;
        let init = dir.join("guest.sh");
        fs::write(&init, include_str!("guest.sh")).context("cannot write the guest's init")?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let log = fs::File::create(dir.join("guest.log")).context("cannot write the guest's log")?;
        let mut child = Command::new(uml)
            .args([socket, &init])
            .arg(format!("GUEST_MTU={mtu}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start User Mode Linux")?;
        let input = child.stdin.take().context("the guest has no console")?;
        let output = child.stdout.take().context("the guest has no console")?;
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line.trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        let guest = Guest { child, input, lines };
        guest.answer(BOOT_TIME).context("the guest does not come up")?;
        Ok(guest)
    }

    /// Runs a line of shell in the guest; what it printed.
    ///
    /// # Errors
    /// When it fails, or takes longer than `limit`.
    pub(super) fn run(&mut self, line: &str, limit: Duration) -> Result<String> {
        self.input.write_all(format!("{line}\n").as_bytes()).context("the guest is gone")?;
        self.answer(limit).with_context(|| format!("in the guest: {line}"))
    }

    fn answer(&self, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        let mut said = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { bail!("no answer within {limit:?}: {said}") };
            if let Some(status) = line.strip_prefix(DONE) {
                ensure!(status == "0", "status {status}: {said}");
                return Ok(said);
            }
            said.push_str(&line);
            said.push('\n');
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A kernel that is killed may leave processes behind; one that is asked does not. The console stays open: its end
        // would overtake the line.
        let _ = self.input.write_all(b"/bin/busybox poweroff -f\n");
        let end = Instant::now() + END_TIME;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The two drivers that send back what they receive, each a process.

use std::{
    fs::{File, Permissions, set_permissions, write},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};

/// Descriptors of each of testpmd's rings.
const RING: u64 = 1024;

/// How long User Mode Linux may take to end: a kernel that is killed may leave processes behind.
const END_TIME: Duration = Duration::from_secs(10);

/// The interface of the Linux guest, which has no other.
const INTERFACE: &str = "eth0";

/// A front-end with its driver. Ended when dropped.
pub(crate) struct FrontEnd {
    child: Child,
    log: PathBuf,
    /// How long it may take to end once it was asked.
    end_time: Duration,
}

impl FrontEnd {
    /// DPDK's testpmd with virtio_user.
    pub(crate) fn testpmd(program: &str, vhost_user: &Path, dir: &Path) -> Result<FrontEnd> {
        let log = dir.join("testpmd.log");
        let device = format!("net_virtio_user0,path={},queues=1,queue_size={RING}", vhost_user.display());
        let output = File::create(&log)?;
        let child = Command::new(program)
            // No huge pages, no devices of the host, nothing left behind in the file system.
            .args(["--lcores", &lcores()?, "--no-huge", "-m", "256", "--no-pci", "--no-telemetry", "--no-shconf"])
            .args(["--vdev", &device, "--"])
            .args(["--forward-mode=io", "--port-topology=loop", "--total-num-mbufs=16384"])
            .args([format!("--rxd={RING}"), format!("--txd={RING}")])
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {program}: `ci/generators testpmd` brings it"))?;
        Ok(FrontEnd { child, log, end_time: Duration::ZERO })
    }

    /// Linux with its virtio-net driver, as a process: the User Mode Linux that `guest` starts. It sends back what comes
    /// before its own network stack sees it (tc-mirred(8)).
    pub(crate) fn linux(guest: &Path, vhost_user: &Path, dir: &Path) -> Result<FrontEnd> {
        let (log, init) = (dir.join("linux.log"), dir.join("init"));
        // The network is silent but for what is reflected: no IPv6, no ARP. (The shell would take busybox's own `tc`.)
        let script = format!(
            "#!/bin/busybox sh\n\
             /bin/busybox mount -t proc proc /proc\n\
             echo 1 >/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6\n\
             /bin/busybox ip link set {INTERFACE} arp off up\n\
             /sbin/tc qdisc add dev {INTERFACE} ingress 2>&1\n\
             /sbin/tc filter add dev {INTERFACE} ingress matchall action mirred egress redirect dev {INTERFACE} 2>&1\n\
             read -r any_line\n\
             /bin/busybox poweroff -f\n"
        );
        write(&init, script)?;
        set_permissions(&init, Permissions::from_mode(0o755))?;
        let mut child = Command::new(guest)
            .args([vhost_user, &init])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.join("kernel.log"))?)
            .spawn()
            .with_context(|| format!("cannot start {}: `ci/generators uml` makes it", guest.display()))?;
        // The console must be something that epoll takes, which a file is not.
        let mut console = child.stdout.take().context("the guest has no console")?;
        let mut output = File::create(&log)?;
        thread::spawn(move || io::copy(&mut console, &mut output));
        Ok(FrontEnd { child, log, end_time: END_TIME })
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        // Both end at a line; the end of their input would overtake it. It fails for one that has ended.
        if let Some(input) = &mut self.child.stdin {
            let _ = input.write_all(b"\n");
        }
        let end = Instant::now() + self.end_time;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
        // Both can only fail when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it printed.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Two threads of testpmd, one that waits and one that forwards, on whatever CPUs this process may use.
fn lcores() -> Result<String> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<_> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect();
    let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
    Ok(format!("(0,1)@({})", cpus.join(",")))
}

//! Numbered frames through a port to an echoing driver and back, each one checked.
//!
//! The driver is DPDK's virtio_user (an implementation of its own, which has nothing in common with Linux's), and
//! `testpmd` sends back what it receives. Prints one JSON line; fails if a frame was lost, corrupt, or out of order.
//!
//! ```text
//! cargo run -p port --example echo_check -- --frames 10000000 --bytes 64
//! ```
//!
//! `--carrier link` checks the port as `oht-port` runs it, `--carrier in-process` as embedded mode does.

use std::{
    fs::File,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::resource::{Usage, UsageWho, getrusage},
    unistd::Pid,
};

use frames::Frames;

mod carriers;
mod frames;

/// Sends numbered frames through a port to DPDK's testpmd, and checks that all come back.
#[derive(Parser)]
struct Args {
    /// How many frames.
    #[arg(long, default_value_t = 10_000_000)]
    frames: u64,

    /// Bytes of each, from the Ethernet header on.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(64..=1514))]
    bytes: u16,

    /// How many frames are under way at most. Less than the driver's ring has room for, or testpmd drops what it cannot
    /// send at once.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=512))]
    window: u64,

    /// How the frames get to the port and from it.
    #[arg(long, value_enum, default_value_t = Carrier::Link)]
    carrier: Carrier,

    /// The program.
    #[arg(long, default_value = "dpdk-testpmd")]
    testpmd: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Carrier {
    /// The stream between port and router.
    Link,
    /// Function calls.
    InProcess,
}

/// How long nothing may come back before the rest counts as lost; and how long testpmd may take to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// Descriptors of each of the driver's rings.
const RING: u64 = 1024;

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let vhost_user = dir.path().join("net");
    let listener = UnixListener::bind(&vhost_user)?;
    let mut testpmd = Testpmd::start(&args.testpmd, &vhost_user, &dir.path().join("testpmd.log"))?;
    let mut frames = Frames::new(args.frames, usize::from(args.bytes), args.window, PATIENCE);
    let done = match args.carrier {
        Carrier::Link => carriers::link(&dir.path().join("link"), listener, &mut frames)?,
        Carrier::InProcess => carriers::in_process(listener, &mut frames)?,
    };
    testpmd.stop();
    let counters = done.counters;
    println!(
        "{{\"carrier\":\"{}\",\"bytes\":{},\"frames\":{},\"received\":{},\"lost\":{},\"corrupt\":{},\"disordered\":{},\
         \"seconds\":{:.3},\"port_cpu_seconds\":{:.3}}}",
        args.carrier.to_possible_value().context("a carrier has a name")?.get_name(),
        args.bytes,
        args.frames,
        frames.received,
        args.frames - frames.received,
        frames.corrupt,
        frames.disordered,
        done.seconds,
        done.port_cpu_seconds,
    );
    eprintln!("{counters}");
    if !frames.echoes() {
        eprint!("{}", testpmd.said());
    }
    ensure!(
        frames.received == args.frames && frames.corrupt == 0 && frames.disordered == 0,
        "not every frame came back"
    );
    Ok(())
}

/// What a run took.
struct Done {
    seconds: f64,
    /// Of the thread that the port runs on; in-process it makes and checks the frames too.
    port_cpu_seconds: f64,
    counters: port::Counters,
}

/// Seconds of CPU that this thread has used.
fn thread_cpu_seconds() -> Result<f64> {
    let usage: Usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// A clock of one run.
struct Clock {
    began: Instant,
    cpu_before: f64,
}

impl Clock {
    fn start() -> Result<Clock> {
        Ok(Clock { began: Instant::now(), cpu_before: thread_cpu_seconds()? })
    }
}

/// DPDK's testpmd, which sends back what it receives. Killed when dropped.
struct Testpmd {
    child: Child,
    log: PathBuf,
}

impl Testpmd {
    fn start(program: &str, vhost_user: &Path, log: &Path) -> Result<Testpmd> {
        let device = format!("net_virtio_user0,path={},queues=1,queue_size={RING}", vhost_user.display());
        let output = File::create(log)?;
        let child = Command::new(program)
            // No huge pages, no devices of the host, nothing left behind in the file system.
            .args(["--lcores", &lcores()?, "--no-huge", "-m", "256", "--no-pci", "--no-telemetry", "--no-shconf"])
            .args(["--vdev", &device, "--"])
            .args(["--forward-mode=io", "--port-topology=loop", "--total-num-mbufs=16384"])
            .args([format!("--rxd={RING}"), format!("--txd={RING}")])
            // It ends when its standard input does.
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {program}: it is in Debian's package dpdk"))?;
        Ok(Testpmd { child, log: log.to_owned() })
    }

    fn stop(&mut self) {
        // Both can only fail when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Two threads of testpmd, one that waits and one that forwards, on whatever CPUs this process may use.
fn lcores() -> Result<String> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<_> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect();
    let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
    Ok(format!("(0,1)@({})", cpus.join(",")))
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        self.stop();
    }
}

//! Numbered frames through a port to an echoing driver and back, each one checked.
//!
//! The driver is DPDK's virtio_user (an implementation of its own, which has nothing in common with Linux's), and
//! `testpmd` sends back what it receives; or it is Linux's, in User Mode Linux, which redirects what comes. Prints one
//! JSON line; fails if a frame was lost, corrupt, or out of order.
//!
//! ```text
//! cargo run -p port --example echo_check -- --bytes 64 --testpmd $(ci/generators testpmd)
//! cargo run -p port --example echo_check -- --bytes 1500 --linux $(ci/generators uml)
//! ```
//!
//! `--carrier link` checks the port as `oht-port` runs it, `--carrier in-process` as embedded mode does.

use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::resource::{Usage, UsageWho, getrusage};

use frames::Frames;
use front_ends::FrontEnd;

mod carriers;
mod frames;
mod front_ends;

/// Sends numbered frames through a port to DPDK's testpmd or to Linux, and checks that all come back.
#[derive(Parser)]
struct Args {
    /// How many frames.
    #[arg(long, default_value_t = 10_000_000)]
    frames: u64,

    /// Bytes of each, from the Ethernet header on.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(64..=1514))]
    bytes: u16,

    /// How many frames are under way at most. Less than the driver has room for, or it drops what it cannot send at once.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=512))]
    window: u64,

    /// How the frames get to the port and from it.
    #[arg(long, value_enum, default_value_t = Carrier::Link)]
    carrier: Carrier,

    /// The program.
    #[arg(long, default_value = "dpdk-testpmd")]
    testpmd: String,

    /// What starts User Mode Linux, to take it instead of testpmd.
    #[arg(long, value_name = "GUEST", conflicts_with = "testpmd")]
    linux: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Carrier {
    /// The stream between port and router.
    Link,
    /// Function calls.
    InProcess,
}

/// How long nothing may come back before the rest counts as lost; and how long the front-end may take to start.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let vhost_user = dir.path().join("net");
    let listener = UnixListener::bind(&vhost_user)?;
    let mut front_end = match &args.linux {
        Some(guest) => FrontEnd::linux(guest, &vhost_user, dir.path())?,
        None => FrontEnd::testpmd(&args.testpmd, &vhost_user, dir.path())?,
    };
    let mut frames = Frames::new(args.frames, usize::from(args.bytes), args.window, PATIENCE);
    let done = match args.carrier {
        Carrier::Link => carriers::link(&dir.path().join("link"), listener, &mut frames)?,
        Carrier::InProcess => carriers::in_process(listener, &mut frames)?,
    };
    front_end.stop();
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
        eprint!("{}", front_end.said());
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

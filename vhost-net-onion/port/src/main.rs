//! `oht-port`: the port of one VM as a process of its own. Parses, composes, runs.

use std::{
    io::ErrorKind,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{getsockopt, sockopt::AcceptConn},
    },
};
use tracing_subscriber::EnvFilter;
use wire::VmName;

/// Moves opaque frames between the vrings of one VM and its link to the router.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Name of the VM; the router must name the same.
    #[arg(long)]
    vm: VmName,

    /// Listening AF_UNIX socket that QEMU connects to, inherited.
    #[arg(long, value_name = "FD", required_unless_present = "vhost_user", conflicts_with = "vhost_user")]
    vhost_user_fd: Option<RawFd>,

    /// Listening AF_UNIX socket that the router's link arrives at, inherited.
    #[arg(long, value_name = "FD", required_unless_present = "link", conflicts_with = "link")]
    link_fd: Option<RawFd>,

    /// Make the socket that QEMU connects to at this path.
    #[arg(long, value_name = "PATH")]
    vhost_user: Option<PathBuf>,

    /// Make the socket that the router's link arrives at at this path.
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,

    /// Bytes of the longest IP packet that the VM may send, whatever MTU its front-end gives it.
    #[arg(long, default_value_t = port::MTU_MAX, value_parser = mtu())]
    mtu: u16,

    /// What to log to stderr: error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log: EnvFilter,
}

fn mtu() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(i64::from(port::MTU_MIN)..=i64::from(port::MTU_MAX))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt().with_env_filter(args.log).with_writer(std::io::stderr).with_ansi(false).init();
    ensure!(
        args.vhost_user_fd.is_none() || args.vhost_user_fd != args.link_fd,
        "--vhost-user-fd and --link-fd must be different descriptors"
    );
    let signals = signals().context("cannot wait for signals")?;
    let vhost_user = listener(args.vhost_user_fd, args.vhost_user.as_deref()).context("no vhost-user socket")?;
    let link = listener(args.link_fd, args.link.as_deref()).context("no link socket")?;
    tracing::info!(vm = %args.vm, pid = std::process::id(), "port starts");
    let counters = port::serve(&args.vm, vhost_user, link, port::Options { mtu: args.mtu }, &signals)?;
    tracing::info!(vm = %args.vm, "port stops: {counters}");
    Ok(())
}

/// Becomes readable when the process is asked to end.
fn signals() -> anyhow::Result<SignalFd> {
    let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// The inherited listener, or one made at a path; clap sees to it that there is one of the two.
fn listener(fd: Option<RawFd>, path: Option<&Path>) -> anyhow::Result<UnixListener> {
    match (fd, path) {
        (Some(fd), _) => inherited(fd),
        (None, Some(path)) => bind(path),
        (None, None) => bail!("neither a descriptor nor a path is given"),
    }
}

#[expect(unsafe_code, reason = "there is no safe way to take over a descriptor that is given as a number")]
fn inherited(fd: RawFd) -> anyhow::Result<UnixListener> {
    ensure!(fd > 2, "descriptor {fd} is standard input or output: pass a listening AF_UNIX socket");
    let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
    ensure!(path.symlink_metadata().is_ok(), "descriptor {fd} is not open: pass a listening AF_UNIX socket");
    // SAFETY: it is open, as was just checked, and whoever started this program gave it over with the option that
    // names it: nothing in this process owns it. No other thread runs, and each option is taken once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let listens = getsockopt(&fd.as_fd(), AcceptConn).unwrap_or(false);
    let listener = UnixListener::from(fd);
    ensure!(listens && listener.local_addr().is_ok(), "the descriptor is not a listening AF_UNIX socket");
    Ok(listener)
}

/// Makes a listener at a path, in place of one that nobody listens on any more.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match UnixStream::connect(path) {
        Ok(_) => bail!("{} is in use: another port serves it", path.display()),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))?;
        }
        Err(_) => {}
    }
    UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))
}

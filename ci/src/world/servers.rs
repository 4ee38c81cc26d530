//! The DNS server and the origin: a process of their own, so that they can go on after this program and run in a
//! namespace; what they saw is in two files.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cache, dns,
    netns::Netns,
    origin,
    processes::{self, Lifetime, Plan, Process},
    world::addresses::Addresses,
};

const START_TIME: Duration = Duration::from_secs(10);

/// Options of the process.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Where the records go.
    #[arg(long)]
    dir: PathBuf,
    /// The first number of all addresses.
    #[arg(long)]
    net: u8,
    /// The second number of the first relay's address.
    #[arg(long)]
    first: u8,
}

/// Starts the process and waits until it serves.
pub(crate) fn start(dir: &Path, at: &Addresses, netns: Option<&Netns>, lifetime: Lifetime) -> Result<Process> {
    // Not the running program, which in a unit test is the test.
    let own = cache::program("ci")?;
    let (net, first) = at.plan();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let argv = [text(&own), "net".into(), "serve".into(), "--dir".into(), text(dir)].into_iter();
    let plan = ["--net".into(), net.to_string(), "--first".into(), first.to_string()];
    let _ = fs::remove_file(ready_file(dir));
    let mut process = Plan {
        name: "origin".into(),
        argv: argv.chain(plan).collect(),
        log: dir.join("origin.log"),
        netns,
        lifetime,
        ledger: dir.to_owned(),
    }
    .spawn()?;
    let end = Instant::now() + START_TIME;
    while !ready_file(dir).exists() {
        if let Some(failure) = process.failure() {
            return Err(failure);
        }
        if Instant::now() > end {
            bail!("the origin does not start; see {}", dir.join("origin.log").display());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(process)
}

/// The process itself: serves until it is ended.
pub(crate) fn serve(args: &Args) -> Result<()> {
    let at = Addresses::from_plan(args.net, args.first);
    let create = |path: PathBuf| File::create(&path).with_context(|| format!("cannot write {}", path.display()));
    let (questions, visits) = (create(dns_record(&args.dir))?, create(origin_record(&args.dir))?);
    let (resolver, listener) = (dns::bind(at.dns())?, origin::bind(at.origin())?);
    create(ready_file(&args.dir))?;
    let record = origin::Record { file: Mutex::new(visits), dir: args.dir.clone(), who_is };
    thread::spawn(move || origin::serve(&listener, record));
    dns::serve(&resolver, &at.names(), questions)
}

/// The node whose process holds the socket with this address: `/proc/net/tcp` gives its inode, and the descriptors of
/// the world's processes tell whose it is.
fn who_is(dir: &Path, from: SocketAddr) -> Option<String> {
    let SocketAddr::V4(from) = from else { return None };
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(from.ip().octets()), from.port());
    let table = fs::read_to_string("/proc/thread-self/net/tcp").ok()?;
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|words| words.get(1) == Some(&wanted.as_str()))?;
    let socket = PathBuf::from(format!("socket:[{}]", row.get(9)?));
    let holds = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == socket))
    };
    processes::running(dir).into_iter().find(|&(_, pid)| holds(pid)).map(|(name, _)| name)
}

/// What the origin saw.
pub(crate) fn origin_record(dir: &Path) -> PathBuf {
    dir.join("origin.jsonl")
}

/// What the DNS server was asked.
pub(crate) fn dns_record(dir: &Path) -> PathBuf {
    dir.join("dns.jsonl")
}

fn ready_file(dir: &Path) -> PathBuf {
    dir.join("origin.ready")
}

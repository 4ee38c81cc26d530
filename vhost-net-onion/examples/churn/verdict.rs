//! What the process holds between two rounds, and whether that grows.

use std::{fmt, fs, io, time::Duration};

use crate::machine::Failed;

/// Enough for quarters that mean something.
pub(crate) const SAMPLES_MIN: usize = 16;
/// By how much memory may differ from one quarter to the other: a tenth, and less than this means nothing, because the
/// allocator takes memory from the kernel in pieces of this order.
const SLACK_KIB: u64 = 1024;
/// Far ends and sessions end a moment after what ended them.
const SETTLE_TURNS: u32 = 2000;
const SETTLE_TURN: Duration = Duration::from_millis(5);

/// A look at the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    rss_kib: u64,
}

impl Sample {
    /// The process now.
    pub(crate) fn now() -> io::Result<Sample> {
        let status = fs::read_to_string("/proc/self/status")?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kib = rss.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        rss_kib.map(|rss_kib| Sample { rss_kib }).ok_or_else(|| io::Error::other("/proc/self/status has no VmRSS"))
    }
}

/// The descriptors that are open.
pub(crate) fn descriptors() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// Waits until there are only so many descriptors.
pub(crate) async fn only(before: usize) -> Result<(), Failed> {
    for _ in 0..SETTLE_TURNS {
        if descriptors()? == before {
            return Ok(());
        }
        tokio::time::sleep(SETTLE_TURN).await;
    }
    Err(Failed::Descriptors { before, after: descriptors()? })
}

/// What came of it; displayed as one line of JSON.
pub(crate) struct Verdict {
    pub(crate) time: Duration,
    pub(crate) vms: u32,
    pub(crate) flows: u64,
    pub(crate) samples: Vec<Sample>,
}

impl Verdict {
    /// Whether memory is the same at the end as after a quarter of the time, when every table and buffer has had its
    /// share of everything.
    pub(crate) fn is_flat(&self) -> bool {
        let (warm, end) = (self.median_kib(1), self.median_kib(3));
        end <= warm + (warm / 10).max(SLACK_KIB)
    }

    /// The median of the resident set in this quarter of the time.
    fn median_kib(&self, quarter: usize) -> u64 {
        let length = self.samples.len() / 4;
        let mut part: Vec<u64> =
            self.samples[quarter * length..][..length].iter().map(|sample| sample.rss_kib).collect();
        part.sort_unstable();
        part.get(length / 2).copied().unwrap_or_default()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { time, vms, flows, samples } = self;
        write!(
            f,
            "{{\"seconds\":{},\"rounds\":{},\"vms\":{vms},\"flows\":{flows},\"rss_kib_warm\":{},\"rss_kib_end\":{},\"flat\":{}}}",
            time.as_secs(),
            samples.len(),
            self.median_kib(1),
            self.median_kib(3),
            self.is_flat()
        )
    }
}

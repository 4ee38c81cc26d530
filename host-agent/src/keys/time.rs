//! Where the key tree's time comes from.

use std::time::Duration;

use key_tree::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// The readings from which [`key_tree::Clock`] makes a time that never goes backward. A trait, so that tests of the whole
/// agent (`examples/agent_with_clock.rs`) can move the time; the programs that are installed know [`SystemTime`] only.
pub trait TimeSource: Send + Sync {
    /// The wall clock, in UTC.
    fn wall(&self) -> Timestamp;

    /// A clock that is never set and runs through suspension.
    fn monotonic(&self) -> Duration;
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemTime;

impl TimeSource for SystemTime {
    fn wall(&self) -> Timestamp {
        // A machine whose clock stands before 1970 is told 1970, and the tree's clock goes on from its floor.
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Timestamp::from_unix(since.as_secs())
    }

    fn monotonic(&self) -> Duration {
        clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_run() {
        assert!(SystemTime.wall() > Timestamp::from_unix(1_700_000_000));
        let before = SystemTime.monotonic();
        assert!(before > Duration::ZERO && SystemTime.monotonic() >= before);
    }
}

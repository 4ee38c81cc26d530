//! The time of day, as the pump told it.

use std::time::{Duration, Instant};

/// Seconds from 1900, where NTP (RFC 5905) and the time protocol (RFC 868) begin, to 1970.
const EPOCH_S: u64 = 2_208_988_800;

/// An instant, and what time it was then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    at: Instant,
    unix: Duration,
}

impl Clock {
    /// At the instant `at`, the time since 1970 is `unix`.
    pub(crate) fn new(at: Instant, unix: Duration) -> Clock {
        Clock { at, unix }
    }

    /// How long ago the pump told it.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }

    /// The time as NTP writes it: seconds since 1900 (of the present era, which ends in 2036), and a fraction of 32 bits.
    pub(crate) fn timestamp(&self, now: Instant) -> u64 {
        timestamp(self.unix + self.age(now))
    }

    /// The same for when the pump told it.
    pub(crate) fn told(&self) -> u64 {
        timestamp(self.unix)
    }
}

fn timestamp(unix: Duration) -> u64 {
    let fraction = (u64::from(unix.subsec_nanos()) << 32) / 1_000_000_000;
    unix.as_secs().wrapping_add(EPOCH_S) << 32 | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_those_of_rfc_5905() {
        let now = Instant::now();
        let at = |unix_s| Clock::new(now, Duration::from_secs(unix_s)).timestamp(now) >> 32;
        // RFC 868's examples, and the first second of the next era.
        assert_eq!(at(0), 2_208_988_800);
        assert_eq!(at(441_763_200 - 220_924_800), 2_208_988_800 + 220_838_400);
        assert_eq!(at(2_085_978_496), 0);
        let clock = Clock::new(now, Duration::from_millis(500));
        assert_eq!(clock.timestamp(now) as u32, 1 << 31);
        assert_eq!(clock.timestamp(now + Duration::from_millis(1750)), (EPOCH_S + 2) << 32 | 1 << 30);
        assert_eq!(clock.told(), EPOCH_S << 32 | 1 << 31);
        // A time before it was told is when it was told: instants of the pump do not go backwards.
        assert_eq!(clock.timestamp(now - Duration::from_millis(1)), clock.told());
    }
}

//! Time as the tree takes it: seconds since the Unix epoch, spans of validity, and a clock that only goes forward.
//!
//! The machine's clock is no friend: it jumps when a VM is resumed, when NTP speaks, when a battery is empty, when
//! somebody wants an expired key to live. So nothing here is asked "is it valid at this time?"; the question takes a
//! [`Now`], and a `Now` comes from a [`Clock`] only:
//!
//! - It never goes backward: an expired key stays expired. The caller stores [`Clock::floor`] and gives it back at the
//!   next start.
//! - While the wall clock lags, time goes on with the monotonic clock: a key does not live longer because the wall
//!   clock stands still.
//! - A jump forward expires what it passes, and destroys nothing: with the root at hand [`Clock::set_back`] returns to
//!   the right time, and what is not yet due is live again. (Trusting the wall clock backward without the root was the
//!   other way; then whoever sets the clock revives keys.)

use std::{fmt, time::Duration};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::RootKey;

/// Seconds since 1970-01-01 00:00 UTC without leap seconds (POSIX.1-2017, section 4.16), at most the year 9999's last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// The last second of the year 9999, where RFC 3339 ends.
const TIMESTAMP_MAX: u64 = 253_402_300_799;

/// Seconds of a day.
const DAY_SECONDS: u64 = 86_400;

impl Timestamp {
    /// Takes seconds since the epoch; what lies beyond the year 9999 becomes its last second.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Timestamp {
        Timestamp(seconds.min(TIMESTAMP_MAX))
    }

    /// Seconds since the epoch.
    #[must_use]
    pub fn as_unix(self) -> u64 {
        self.0
    }

    /// This time and `seconds` more.
    #[must_use]
    pub fn after(self, seconds: u64) -> Timestamp {
        Timestamp::from_unix(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` until this time, 0 when `earlier` is later.
    #[must_use]
    pub fn seconds_since(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The day of the week in UTC.
    #[must_use]
    pub fn weekday(self) -> Weekday {
        // The epoch was a Thursday.
        let since_monday = (self.0 / DAY_SECONDS + 3) % 7;
        Weekday::ALL[usize::try_from(since_monday).expect("less than seven")]
    }

    /// The minute of the day in UTC, 0 to 1439.
    #[must_use]
    pub fn minute_of_day(self) -> u16 {
        u16::try_from(self.0 % DAY_SECONDS / 60).expect("a day has 1440 minutes")
    }
}

impl fmt::Display for Timestamp {
    /// As in RFC 3339, in UTC: `2026-11-21T18:00:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).expect("the year 9999 fits");
        let date = OffsetDateTime::from_unix_timestamp(seconds).expect("at most the year 9999");
        f.pad(&date.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

/// A day of the week, in UTC: an offset or a time zone would be one more thing to set wrongly, and would tell where
/// the machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "they are the days of the week")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Weekday {
    const ALL: [Weekday; 7] = [
        Weekday::Monday,
        Weekday::Tuesday,
        Weekday::Wednesday,
        Weekday::Thursday,
        Weekday::Friday,
        Weekday::Saturday,
        Weekday::Sunday,
    ];

    /// Monday to Friday.
    pub const WORKING_DAYS: [Weekday; 5] =
        [Weekday::Monday, Weekday::Tuesday, Weekday::Wednesday, Weekday::Thursday, Weekday::Friday];

    /// The English name in lower case, as Datalog has it: `weekday("monday")`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Weekday::Monday => "monday",
            Weekday::Tuesday => "tuesday",
            Weekday::Wednesday => "wednesday",
            Weekday::Thursday => "thursday",
            Weekday::Friday => "friday",
            Weekday::Saturday => "saturday",
            Weekday::Sunday => "sunday",
        }
    }
}

/// From when until when a grant is valid: from its start on, and no more at its end. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Validity {
    start: Timestamp,
    end: Timestamp,
}

impl Validity {
    /// From `start` until just before `end`; `None` when that is no time at all.
    #[must_use]
    pub fn new(start: Timestamp, end: Timestamp) -> Option<Validity> {
        (start < end).then_some(Validity { start, end })
    }

    /// The first second in it.
    #[must_use]
    pub fn start(self) -> Timestamp {
        self.start
    }

    /// The first second after it.
    #[must_use]
    pub fn end(self) -> Timestamp {
        self.end
    }

    /// How many seconds it lasts.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.end.seconds_since(self.start)
    }

    /// Whether every second of it is one of `outer` too.
    #[must_use]
    pub fn is_within(self, outer: Validity) -> bool {
        outer.start <= self.start && self.end <= outer.end
    }

    /// What it has in common with `other`, if anything.
    #[must_use]
    pub fn common(self, other: Validity) -> Option<Validity> {
        Validity::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.start, self.end)
    }
}

/// The time at which something is done, as a [`Clock`] has told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(Timestamp);

impl Now {
    /// The time as a number.
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        self.0
    }
}

/// A clock that never goes backward, made of the wall clock, a monotonic one and the latest time ever told.
#[derive(Clone, Debug)]
pub struct Clock {
    /// The latest time told, since the epoch.
    told: Duration,
    /// What the monotonic clock said then.
    monotonic: Duration,
}

impl Clock {
    /// A clock that goes on where an earlier one ended.
    ///
    /// `floor` is what that one's [`Clock::floor`] was, or the epoch on a machine's first start. `monotonic` is the
    /// reading of a clock that is never set and runs through suspension (Linux: `CLOCK_BOOTTIME`).
    #[must_use]
    pub fn resume(floor: Timestamp, monotonic: Duration) -> Clock {
        Clock { told: Duration::from_secs(floor.0), monotonic }
    }

    /// The time, from the readings of the wall clock and of the monotonic one.
    pub fn now(&mut self, wall: Timestamp, monotonic: Duration) -> Now {
        let elapsed = monotonic.saturating_sub(self.monotonic);
        self.told = self.told.saturating_add(elapsed).max(Duration::from_secs(wall.0));
        self.monotonic = monotonic.max(self.monotonic);
        Now(self.floor())
    }

    /// The latest time ever told: store it, at the latest when a grant is issued and once a minute.
    #[must_use]
    pub fn floor(&self) -> Timestamp {
        Timestamp::from_unix(self.told.as_secs())
    }

    /// Goes back to `wall`, after the wall clock had jumped forward and was mended. Only who has the root may: it makes
    /// keys live again that ended between `wall` and the time told so far. Revoke those that should not.
    pub fn set_back(&mut self, _root: &RootKey, wall: Timestamp, monotonic: Duration) {
        *self = Clock::resume(wall, monotonic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_minutes_are_those_of_utc() {
        // A Saturday.
        let saturday = Timestamp::from_unix(1_795_285_380);
        assert_eq!(saturday.to_string(), "2026-11-21T18:23:00Z");
        assert_eq!(saturday.weekday(), Weekday::Saturday);
        assert_eq!(saturday.minute_of_day(), 18 * 60 + 23);
        assert_eq!(Timestamp::default().weekday(), Weekday::Thursday);
        assert_eq!(Timestamp::from_unix(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Timestamp::from_unix(u64::MAX).weekday(), Weekday::Friday);
    }

    #[test]
    fn a_validity_is_never_empty() {
        let at = Timestamp::from_unix;
        assert_eq!(Validity::new(at(5), at(5)), None);
        let outer = Validity::new(at(5), at(9)).unwrap();
        let later = Validity::new(at(7), at(12)).unwrap();
        assert!(!later.is_within(outer) && outer.is_within(outer));
        assert_eq!(later.common(outer), Validity::new(at(7), at(9)));
        assert_eq!(Validity::new(at(9), at(12)).unwrap().common(outer), None);
    }
}

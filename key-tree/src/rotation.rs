//! When a grant is to be replaced: before it ends, so that the old and the new key are valid together for a while.

use crate::{Now, Timestamp, Validity};

/// The part of its time that a grant lives alone, in thirds: the last third is for its successor. It is the advice of
/// Let's Encrypt for certificates (<https://letsencrypt.org/docs/integration-guide/>: renew when a third of the time is
/// left), for the same reason: what fails can be tried again.
const THIRDS_ALONE: u64 = 2;

/// The plan for one grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    validity: Validity,
}

/// Where in its life a grant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is to be done.
    Fresh {
        /// Seconds until the successor is to be issued.
        seconds: u64,
    },
    /// Issue the successor now.
    Due {
        /// Seconds for which both will be valid.
        overlap_seconds: u64,
    },
    /// It has ended. A successor can still be issued by a live parent.
    Over,
}

impl Rotation {
    /// The plan for a grant of this validity.
    #[must_use]
    pub fn of(validity: Validity) -> Rotation {
        Rotation { validity }
    }

    /// When the successor is to be issued.
    #[must_use]
    pub fn due_at(&self) -> Timestamp {
        let seconds = self.validity.seconds();
        self.validity.start().after(seconds / 3 * THIRDS_ALONE + seconds % 3 * THIRDS_ALONE / 3)
    }

    /// What is to be done now.
    #[must_use]
    pub fn stage(&self, now: Now) -> Stage {
        let now = now.timestamp();
        if now >= self.validity.end() {
            Stage::Over
        } else if now >= self.due_at() {
            Stage::Due { overlap_seconds: self.validity.end().seconds_since(now) }
        } else {
            Stage::Fresh { seconds: self.due_at().seconds_since(now) }
        }
    }

    /// The successor's validity: from now on, as long as this one, and never beyond `parent`, which is `None` for a
    /// host's grant. `None` when the parent has ended: replace the parent first.
    #[must_use]
    pub fn successor(&self, now: Now, parent: Option<Validity>) -> Option<Validity> {
        let start = now.timestamp();
        let own = Validity::new(start, start.after(self.validity.seconds()))?;
        parent.map_or(Some(own), |parent| own.common(parent))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Clock;

    fn validity(start: u64, end: u64) -> Validity {
        Validity::new(Timestamp::from_unix(start), Timestamp::from_unix(end)).unwrap()
    }

    fn now(seconds: u64) -> Now {
        Clock::resume(Timestamp::default(), Duration::ZERO).now(Timestamp::from_unix(seconds), Duration::ZERO)
    }

    #[test]
    fn a_successor_is_due_in_the_last_third() {
        let rotation = Rotation::of(validity(1000, 1300));
        assert_eq!(rotation.stage(now(0)), Stage::Fresh { seconds: 1200 });
        assert_eq!(rotation.stage(now(1199)), Stage::Fresh { seconds: 1 });
        assert_eq!(rotation.stage(now(1200)), Stage::Due { overlap_seconds: 100 });
        assert_eq!(rotation.stage(now(1299)), Stage::Due { overlap_seconds: 1 });
        assert_eq!(rotation.stage(now(1300)), Stage::Over);
        assert_eq!(Rotation::of(validity(0, 1)).due_at(), Timestamp::default());
        let for_ever = Rotation::of(validity(0, u64::MAX));
        assert!(for_ever.due_at() > now(1_000_000_000).timestamp());
    }

    #[test]
    fn a_successor_never_outlives_the_parent() {
        let rotation = Rotation::of(validity(1000, 1300));
        assert_eq!(rotation.successor(now(1200), None), Some(validity(1200, 1500)));
        assert_eq!(rotation.successor(now(1200), Some(validity(900, 1400))), Some(validity(1200, 1400)));
        assert_eq!(rotation.successor(now(1200), Some(validity(900, 1200))), None);
    }
}

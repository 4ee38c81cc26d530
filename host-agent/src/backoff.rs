//! How long to wait before something that ended is started again.

use std::time::Duration;

/// The first delay: long enough that a program which cannot start does not keep a core busy.
const FIRST: Duration = Duration::from_millis(100);

/// The longest delay: recovery must not wait for longer once the cause is gone.
const LONGEST: Duration = Duration::from_secs(5);

/// What ran for so long has recovered, and begins anew.
const RECOVERED: Duration = Duration::from_secs(30);

/// Delays that double from 100 ms to 5 s, and begin anew after 30 s of running.
#[derive(Clone, Copy, Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(FIRST)
    }
}

impl Backoff {
    /// The delay after something that ran for `up`.
    pub fn delay(&mut self, up: Duration) -> Duration {
        if up >= RECOVERED {
            self.0 = FIRST;
        }
        let delay = self.0;
        self.0 = (delay * 2).min(LONGEST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_bound_and_begin_anew_after_recovery() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..8).map(|_| backoff.delay(Duration::ZERO).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.delay(Duration::from_secs(29)), LONGEST);
        assert_eq!(backoff.delay(Duration::from_secs(30)), FIRST);
        assert_eq!(backoff.delay(Duration::ZERO), FIRST * 2);
    }
}

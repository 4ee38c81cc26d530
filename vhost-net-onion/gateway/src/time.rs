//! The time protocol over UDP (RFC 868): the seconds since 1900, in four bytes, for whatever datagram.

use std::time::Instant;

use crate::{clock::Clock, counters::Counters};

/// UDP port of the server.
pub(crate) const PORT: u16 = 37;

/// Answers a datagram. Without the time there is no answer, as RFC 868 wants it.
pub(crate) fn handle(now: Instant, clock: Option<&Clock>, counters: &mut Counters) -> Option<Vec<u8>> {
    let Some(clock) = clock else {
        counters.time_ignored += 1;
        return None;
    };
    counters.time_replies += 1;
    Some(clock.timestamp(now).to_be_bytes()[..4].to_vec())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_is_told_once_it_is_known() {
        let (now, mut counters) = (Instant::now(), Counters::default());
        assert_eq!(handle(now, None, &mut counters), None);
        let clock = Clock::new(now, Duration::from_secs(1));
        let later = now + Duration::from_secs(2);
        assert_eq!(handle(later, Some(&clock), &mut counters), Some(2_208_988_803u32.to_be_bytes().to_vec()));
        assert_eq!((counters.time_ignored, counters.time_replies), (1, 1));
    }
}

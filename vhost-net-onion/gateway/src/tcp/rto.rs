//! The retransmission timeout (RFC 6298), from round trips that are timed one at a time and never on segments that
//! were sent twice (Karn's algorithm, RFC 9293, MUST-18).

use std::time::{Duration, Instant};

use super::number::Seq;

/// Before the first round trip was timed (RFC 6298, section 2.1).
const INITIAL: Duration = Duration::from_secs(1);

/// The least that is added to a round trip. RFC 6298 asks for a second in all, which no system keeps; this is Linux's,
/// and is more than the VM's longest delay of an acknowledgement.
const MARGIN_MIN: Duration = Duration::from_millis(200);

/// The most (RFC 6298, section 2.5).
const MAX: Duration = Duration::from_secs(60);

/// After a SYN was lost (RFC 6298, section 5.7).
const AFTER_LOST_SYN: Duration = Duration::from_secs(3);

/// A timeout that learns.
#[derive(Debug)]
pub(super) struct Rto {
    smoothed: Option<Duration>,
    variation: Duration,
    timeout: Duration,
    /// How many timeouts came since something new was acknowledged.
    backoffs: u8,
    /// What is being timed: acknowledged when this number is, sent then.
    timed: Option<(Seq, Instant)>,
}

impl Rto {
    pub(super) fn new() -> Rto {
        Rto { smoothed: None, variation: Duration::ZERO, timeout: INITIAL, backoffs: 0, timed: None }
    }

    /// How long to wait for an acknowledgement of what is sent now.
    pub(super) fn timeout(&self) -> Duration {
        (self.timeout * (1 << self.backoffs.min(8))).min(MAX)
    }

    /// New bytes up to `end` are sent.
    pub(super) fn sent(&mut self, end: Seq, now: Instant) {
        self.timed.get_or_insert((end, now));
    }

    /// Something is sent again: what is timed tells nothing any more.
    pub(super) fn sent_again(&mut self) {
        self.timed = None;
    }

    /// The timeout came.
    pub(super) fn expired(&mut self) {
        self.timed = None;
        self.backoffs = self.backoffs.saturating_add(1);
    }

    /// The VM answers again, after it had closed its window.
    pub(super) fn heard(&mut self) {
        self.backoffs = 0;
    }

    /// The SYN is acknowledged.
    pub(super) fn established(&mut self) {
        if self.smoothed.is_none() && self.backoffs > 0 {
            self.timeout = AFTER_LOST_SYN;
        }
    }

    /// Everything before `ack` is acknowledged, some of it for the first time.
    pub(super) fn acknowledged(&mut self, ack: Seq, now: Instant) {
        self.backoffs = 0;
        let Some((_, sent)) = self.timed.filter(|(end, _)| !ack.is_before(*end)) else { return };
        self.timed = None;
        let round_trip = now.saturating_duration_since(sent);
        let smoothed = match self.smoothed {
            None => {
                self.variation = round_trip / 2;
                round_trip
            }
            Some(smoothed) => {
                self.variation = self.variation * 3 / 4 + smoothed.abs_diff(round_trip) / 4;
                smoothed * 7 / 8 + round_trip / 8
            }
        };
        self.smoothed = Some(smoothed);
        self.timeout = smoothed + (4 * self.variation).max(MARGIN_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_round_trips_and_doubles_when_it_expires() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut rto = Rto::new();
        assert_eq!(rto.timeout(), INITIAL);
        rto.sent(Seq(10), now);
        rto.sent(Seq(20), now + ms(5));
        rto.acknowledged(Seq(9), now + ms(50));
        assert_eq!(rto.timeout(), INITIAL, "not what is timed");
        rto.acknowledged(Seq(20), now + ms(100));
        assert_eq!(rto.timeout(), ms(300), "100 ms, and 4 times 50");
        for n in 0..100 {
            rto.sent(Seq(n), now);
            rto.acknowledged(Seq(n), now + ms(1));
        }
        assert!(rto.timeout() >= ms(201) && rto.timeout() < ms(203), "{:?}", rto.timeout());
        rto.expired();
        assert!(rto.timeout() >= ms(402));
        for _ in 0..300 {
            rto.expired();
        }
        assert!(rto.timeout() > ms(51_000) && rto.timeout() <= MAX);
        rto.sent(Seq(300), now);
        rto.sent_again();
        rto.acknowledged(Seq(300), now + ms(60_000));
        assert!(rto.timeout() < ms(203), "what was sent twice is not timed");
    }

    #[test]
    fn a_lost_syn_makes_it_cautious() {
        let mut rto = Rto::new();
        rto.expired();
        rto.established();
        rto.acknowledged(Seq(1), Instant::now());
        assert_eq!(rto.timeout(), AFTER_LOST_SYN);
    }
}

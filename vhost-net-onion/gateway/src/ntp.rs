//! The NTP server (RFC 5905; section 14 describes such a simple one): it tells the time that the pump told.
//!
//! It is honest about where that comes from: a clock that nothing here keeps right, at the stratum that chrony's
//! `local` directive takes for such ones, so that any better source a VM has wins. Until the pump has told a time, answers
//! say that the server is not synchronised. Every answer is as long as the shortest question: nothing is amplified.

use std::time::{Duration, Instant};

use crate::{clock::Clock, counters::Counters};

/// UDP port of the server.
pub(crate) const PORT: u16 = 123;

/// Bytes of a message without extensions and authentication; those are ignored.
const MESSAGE_BYTES: usize = 48;

/// Modes, in the lowest three bits of the first byte.
const CLIENT: u8 = 3;
const SERVER: u8 = 4;

/// The version of RFC 5905, in the next three bits. Older clients are answered in theirs.
const VERSION: u8 = 4;

/// Leap indicator, in the two highest bits: the clock is not synchronised.
const UNSYNCHRONISED: u8 = 3;

/// Hops from a reference clock: ten stand for a local clock by convention.
const STRATUM: u8 = 10;

/// The reference of a local clock (127.127.1.1), and the code of a server that never had the time (RFC 5905, figure 13).
const LOCAL_CLOCK: [u8; 4] = [127, 127, 1, 1];
const NOT_YET: [u8; 4] = *b"INIT";

/// What a reading of the clock is good for, as a power of two in seconds: a microsecond.
const PRECISION: i8 = -20;

/// Clients are asked to wait so many seconds between questions, as a power of two, at least and at most (RFC 5905,
/// section 7.2).
const POLL_MIN: u8 = 6;
const POLL_MAX: u8 = 17;

/// By how much the time may be off when the pump tells it, and how much more with each second: 15 µs (PHI in RFC 5905).
const DISPERSION_FIRST: Duration = Duration::from_millis(10);
const DISPERSION_PPM: u32 = 15;

/// The most that is admitted to. Clients refuse servers that may be off by more than 1.5 (ntpd) or 3 (chronyd) seconds,
/// and would then be off by more.
const DISPERSION_MAX: Duration = Duration::from_secs(1);

/// Answers a request of a client.
pub(crate) fn handle(now: Instant, message: &[u8], clock: Option<&Clock>, counters: &mut Counters) -> Option<Vec<u8>> {
    let version = message.first().map_or(0, |byte| byte >> 3 & 7);
    let is_request = message.len() >= MESSAGE_BYTES && message[0] & 7 == CLIENT && (1..=VERSION).contains(&version);
    if !is_request {
        counters.time_ignored += 1;
        return None;
    }
    let mut reply = vec![0; MESSAGE_BYTES];
    reply[0] = version << 3 | SERVER;
    reply[2] = message[2].clamp(POLL_MIN, POLL_MAX);
    reply[3] = PRECISION.cast_unsigned();
    // The client's transmit timestamp comes back as the origin.
    reply[24..32].copy_from_slice(&message[40..48]);
    match clock {
        None => {
            reply[0] |= UNSYNCHRONISED << 6;
            reply[12..16].copy_from_slice(&NOT_YET);
        }
        Some(clock) => {
            let time = clock.timestamp(now).to_be_bytes();
            reply[1] = STRATUM;
            reply[8..12].copy_from_slice(&short(dispersion(clock.age(now))).to_be_bytes());
            reply[12..16].copy_from_slice(&LOCAL_CLOCK);
            reply[16..24].copy_from_slice(&clock.told().to_be_bytes());
            reply[32..40].copy_from_slice(&time);
            reply[40..48].copy_from_slice(&time);
        }
    }
    counters.ntp_replies += 1;
    Some(reply)
}

fn dispersion(age: Duration) -> Duration {
    let grown = (age / 1_000_000).saturating_mul(DISPERSION_PPM);
    (DISPERSION_FIRST + grown).min(DISPERSION_MAX)
}

/// NTP's short format: seconds and a fraction, in 16 bits each.
fn short(duration: Duration) -> u32 {
    let fraction = (u64::from(duration.subsec_nanos()) << 16) / 1_000_000_000;
    u32::try_from(duration.as_secs() << 16 | fraction).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(first: u8) -> Vec<u8> {
        let mut message = vec![0; MESSAGE_BYTES];
        (message[0], message[2]) = (first, 3);
        message[40..48].copy_from_slice(b"transmit");
        message
    }

    fn asked(message: &[u8], age: Duration) -> Option<Vec<u8>> {
        let now = Instant::now();
        let clock = Clock::new(now, Duration::from_secs(1_700_000_000));
        handle(now + age, message, Some(&clock), &mut Counters::default())
    }

    #[test]
    fn a_client_gets_the_time_in_its_own_version() {
        for version in 1..=4 {
            let reply = asked(&request(version << 3 | CLIENT), Duration::from_millis(1500)).unwrap();
            assert_eq!((reply.len(), reply[0], reply[1], reply[2]), (48, version << 3 | SERVER, 10, 6));
            assert_eq!(&reply[24..32], b"transmit");
            let seconds = (1_700_000_000u64 + 2_208_988_800) as u32;
            assert_eq!(reply[16..20], seconds.to_be_bytes());
            for at in [32, 40] {
                assert_eq!(reply[at..at + 4], (seconds + 1).to_be_bytes());
                assert_eq!(reply[at + 4..at + 8], [0x80, 0, 0, 0]);
            }
        }
    }

    #[test]
    fn before_the_time_is_known_the_answer_says_so() {
        let reply = handle(Instant::now(), &request(0x23), None, &mut Counters::default()).unwrap();
        assert_eq!((reply[0] >> 6, reply[1], &reply[12..16]), (3, 0, &b"INIT"[..]));
        assert_eq!((&reply[24..32], &reply[32..48]), (&b"transmit"[..], &[0; 16][..]));
    }

    #[test]
    fn what_may_be_wrong_grows_and_stays_bearable() {
        let dispersion = |age_s| {
            let reply = asked(&request(0x23), Duration::from_secs(age_s)).unwrap();
            u32::from_be_bytes(std::array::from_fn(|n| reply[8 + n]))
        };
        assert_eq!(dispersion(0), 655, "10 ms");
        assert_eq!(dispersion(10_000), (160 << 16) / 1000, "150 ms more after 10,000 s");
        assert_eq!(dispersion(100_000_000), 1 << 16);
    }

    #[test]
    fn what_is_no_request_is_ignored() {
        for mode in (0..8).filter(|mode| *mode != CLIENT) {
            assert_eq!(asked(&request(0x20 | mode), Duration::ZERO), None, "mode {mode}");
        }
        for version in [0, 5, 6, 7] {
            assert_eq!(asked(&request(version << 3 | CLIENT), Duration::ZERO), None, "version {version}");
        }
        let (whole, mut counters) = (request(0x23), Counters::default());
        for length in 0..MESSAGE_BYTES {
            assert_eq!(handle(Instant::now(), &whole[..length], None, &mut counters), None);
        }
        assert_eq!((counters.time_ignored, counters.ntp_replies), (48, 0));
        let longer = [&whole[..], &[7; 20]].concat();
        assert_eq!(asked(&longer, Duration::ZERO).unwrap().len(), 48, "authentication is left out");
    }
}

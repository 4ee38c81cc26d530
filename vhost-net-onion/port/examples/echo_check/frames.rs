//! The frames: made, numbered, checked.

use std::time::{Duration, Instant};

/// Ethernet header, and the number behind it.
const ETHERNET_BYTES: usize = 14;
const HEAD_BYTES: usize = ETHERNET_BYTES + 8;

/// To everybody, from a locally administered address, with the EtherType for local experiments (IEEE 802, 9.2.3).
const ETHERNET: [u8; ETHERNET_BYTES] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];

/// The number of a frame that only finds out whether there is an echo.
const PROBE: u64 = u64::MAX;

/// How long to wait for the echo of a probe before the next one.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// So many different payloads there are.
const PAYLOADS: u64 = 251;

/// Source and sink.
pub(crate) struct Frames {
    count: u64,
    bytes: usize,
    window: u64,
    patience: Duration,
    /// Random bytes. Frame `n` carries them from `n % PAYLOADS` on.
    payload: Vec<u8>,
    frame: Vec<u8>,
    sent: u64,
    /// The number that should come next.
    next: u64,
    echoes: bool,
    probed: Option<Instant>,
    heard: Instant,
    pub(crate) received: u64,
    pub(crate) corrupt: u64,
    pub(crate) disordered: u64,
}

impl Frames {
    pub(crate) fn new(count: u64, bytes: usize, window: u64, patience: Duration) -> Frames {
        // A fixed sequence (xorshift): what fails once fails again.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let payload = (0..bytes + PAYLOADS as usize).map(|_| random()).collect();
        let mut frame = vec![0; bytes];
        frame[..ETHERNET_BYTES].copy_from_slice(&ETHERNET);
        Frames {
            count,
            bytes,
            window,
            patience,
            payload,
            frame,
            sent: 0,
            next: 0,
            echoes: false,
            probed: None,
            heard: Instant::now(),
            received: 0,
            corrupt: 0,
            disordered: 0,
        }
    }

    /// Whether there is an echo: the measurement may begin.
    pub(crate) fn echoes(&self) -> bool {
        self.echoes
    }

    /// Whether all frames have come back, or none has for too long.
    pub(crate) fn ended(&self) -> bool {
        self.next == self.count || self.heard.elapsed() > self.patience
    }

    /// The next frame to send, if one may be sent now. It stays the next one until [`Frames::sent`].
    pub(crate) fn upcoming(&mut self) -> Option<&[u8]> {
        if !self.echoes {
            let waits = self.probed.is_some_and(|probed| probed.elapsed() < PROBE_INTERVAL);
            return if waits { None } else { Some(self.make(PROBE)) };
        }
        if self.sent == self.count || self.sent - self.next >= self.window {
            return None;
        }
        Some(self.make(self.sent))
    }

    /// The frame of [`Frames::upcoming`] is sent.
    pub(crate) fn sent(&mut self) {
        if self.echoes {
            self.sent += 1;
        } else {
            self.probed = Some(Instant::now());
        }
    }

    /// Checks a frame that came back.
    pub(crate) fn receive(&mut self, frame: &[u8]) {
        let Some((head, payload)) = frame.split_at_checked(HEAD_BYTES) else {
            self.corrupt += 1;
            return;
        };
        let number = u64::from_le_bytes(head[ETHERNET_BYTES..].try_into().expect("eight bytes"));
        let whole = head[..ETHERNET_BYTES] == ETHERNET && payload == self.payload_of(number);
        if !whole || number != PROBE && number >= self.sent {
            self.corrupt += 1;
            return;
        }
        if number == PROBE {
            if !self.echoes {
                self.echoes = true;
                self.heard = Instant::now();
            }
            return;
        }
        if self.received.is_multiple_of(self.window) {
            self.heard = Instant::now();
        }
        self.received += 1;
        if number < self.next {
            self.disordered += 1;
        }
        self.next = self.next.max(number + 1);
    }

    fn make(&mut self, number: u64) -> &[u8] {
        self.frame[ETHERNET_BYTES..HEAD_BYTES].copy_from_slice(&number.to_le_bytes());
        let from = (number % PAYLOADS) as usize;
        let payload_bytes = self.bytes - HEAD_BYTES;
        self.frame[HEAD_BYTES..].copy_from_slice(&self.payload[from..from + payload_bytes]);
        &self.frame
    }

    fn payload_of(&self, number: u64) -> &[u8] {
        let from = (number % PAYLOADS) as usize;
        &self.payload[from..from + self.bytes - HEAD_BYTES]
    }
}

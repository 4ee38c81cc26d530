//! How many bytes the flows of one VM may hold.
//!
//! All flows share `buffers_bytes_max`. Every flow that may ever come has a floor reserved for each of its two
//! directions; what is left is a pool. From the pool a flow takes more, up to the configured size, but only a part of
//! what is left: so a few flows get large windows, many get small ones, and memory stays bounded without refusing
//! anybody. Half of the pool is for flows that move: idle ones cannot use it up. What was promised to the VM is never
//! taken back.

use crate::config::Config;

/// Bytes of the largest floor: with the default bounds, what a VM with an MTU of 1500 needs for a window that works.
const FLOOR_BYTES_MAX: usize = 4 << 10;

/// Bytes of the smallest floor: one segment that every host takes (RFC 9293, section 3.7.1).
const FLOOR_BYTES_MIN: usize = 536;

/// The part of what is left in the pool that one flow may take: when it moves, and when it is new.
const SHARE: usize = 8;
const SHARE_INITIAL: usize = 64;

/// Bytes of a new flow's window, if the pool has them.
const WINDOW_BYTES_INITIAL: usize = 16 << 10;

/// The bytes of all flows.
#[derive(Debug)]
pub(super) struct Budget {
    floor: usize,
    pool: usize,
    taken: usize,
    recv_max: usize,
    send_max: usize,
}

/// One flow's part.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Bytes that its window may promise, and that may wait for the pump.
    recv: usize,
    /// Bytes for the VM.
    send: usize,
    /// Bytes that the pump took since `recv` was last changed.
    read: usize,
}

impl Budget {
    pub(super) fn new(config: &Config) -> Budget {
        let flows = config.flows_max.max(1);
        let floor = (config.buffers_bytes_max / flows / 4).clamp(FLOOR_BYTES_MIN, FLOOR_BYTES_MAX);
        Budget {
            floor,
            pool: config.buffers_bytes_max.saturating_sub(flows.saturating_mul(2 * floor)),
            taken: 0,
            recv_max: config.recv_bytes_max.clamp(floor, 1 << 30),
            send_max: config.send_bytes_max.clamp(floor, 1 << 30),
        }
    }

    /// Bytes of the largest window that any flow ever has.
    pub(super) fn recv_max(&self) -> usize {
        self.recv_max
    }

    /// The share of a new flow.
    pub(super) fn open(&mut self) -> Share {
        let mut share = Share { recv: self.floor, ..Share::default() };
        let most = self.left().saturating_sub(self.pool / 2) / SHARE_INITIAL;
        self.resize(&mut share, WINDOW_BYTES_INITIAL.min(self.recv_max).min(self.floor + most));
        share
    }

    /// A flow is gone.
    pub(super) fn close(&mut self, share: &Share) {
        self.taken -= self.excess(share.recv) + self.excess(share.send);
    }

    /// The pump has taken bytes. A flow that moves gets a larger window; when the pool is nearly empty, one that has
    /// more than others might have gets a smaller one, as what was promised is used up.
    pub(super) fn read(&mut self, share: &mut Share, bytes: usize) {
        share.read += bytes;
        if share.read < share.recv / 2 {
            return;
        }
        share.read = 0;
        let is_short = self.left() < self.pool / 8;
        if !is_short || share.recv < WINDOW_BYTES_INITIAL {
            self.resize(share, (share.recv * 2).min(self.recv_max));
        } else if share.recv > 2 * WINDOW_BYTES_INITIAL {
            self.resize(share, (share.recv / 2).max(self.floor));
        }
    }

    /// How many bytes for the VM a flow may hold.
    pub(super) fn send_limit(&self, share: &Share) -> usize {
        (self.floor + self.excess(share.send) + self.left() / SHARE).min(self.send_max)
    }

    /// A flow holds so many bytes for the VM now.
    pub(super) fn hold(&mut self, share: &mut Share, bytes: usize) {
        self.taken = self.taken + self.excess(bytes) - self.excess(share.send);
        share.send = bytes;
    }

    fn resize(&mut self, share: &mut Share, wanted: usize) {
        let recv = wanted.min(share.recv.max(self.floor) + self.left() / SHARE).max(self.floor);
        self.taken = self.taken + self.excess(recv) - self.excess(share.recv);
        share.recv = recv;
    }

    fn left(&self) -> usize {
        self.pool.saturating_sub(self.taken)
    }

    fn excess(&self, bytes: usize) -> usize {
        bytes.saturating_sub(self.floor)
    }
}

impl Share {
    /// Bytes that the flow's window may promise, and that may wait for the pump.
    pub(super) fn recv(&self) -> usize {
        self.recv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_flows_get_all_they_can_use_and_many_fit() {
        let config = Config { recv_bytes_max: 256 << 10, send_bytes_max: 256 << 10, ..Config::default() };
        let mut budget = Budget::new(&config);
        let mut shares: Vec<Share> = vec![];
        for _ in 0..config.flows_max {
            let mut share = budget.open();
            for _ in 0..100 {
                let bytes = share.recv();
                budget.read(&mut share, bytes);
            }
            let limit = budget.send_limit(&share);
            budget.hold(&mut share, limit);
            shares.push(share);
        }
        assert_eq!((shares[0].recv, shares[0].send), (256 << 10, 256 << 10));
        assert!(shares[20].recv >= 8 << 10, "{:?}", shares[20]);
        let sum: usize = shares.iter().map(|share| share.recv + share.send).sum();
        assert!(sum <= config.buffers_bytes_max, "{sum}");
        assert!(shares.iter().all(|share| share.recv >= budget.floor && share.send >= budget.floor));
        // The pool is empty: whoever has much gets less as it goes on.
        for share in &mut shares {
            for _ in 0..10 {
                let bytes = share.recv();
                budget.read(share, bytes);
            }
        }
        assert!(shares[0].recv < 256 << 10);
        for share in shares {
            budget.close(&share);
        }
        assert_eq!(budget.taken, 0);
    }

    #[test]
    fn thousands_of_idle_flows_leave_room_for_one_that_moves() {
        let mut budget = Budget::new(&Config { flows_max: 10_000, ..Config::default() });
        let idle: Vec<Share> = (0..9_999).map(|_| budget.open()).collect();
        assert!(idle[0].recv > 8 << 10);
        let mut busy = budget.open();
        for _ in 0..20 {
            let bytes = busy.recv();
            budget.read(&mut busy, bytes);
        }
        assert_eq!(busy.recv, budget.recv_max);
    }

    #[test]
    fn absurd_bounds_give_the_smallest_shares() {
        let config = Config { buffers_bytes_max: 0, flows_max: usize::MAX, recv_bytes_max: 0, ..Config::default() };
        let mut budget = Budget::new(&config);
        let share = budget.open();
        assert_eq!((share.recv, budget.send_limit(&share)), (FLOOR_BYTES_MIN, FLOOR_BYTES_MIN));
    }
}

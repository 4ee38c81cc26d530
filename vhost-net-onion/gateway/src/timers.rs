//! When each flow is to be looked at again: a hierarchical timing wheel, O(1) for everything.
//!
//! Time is counted in ticks of one millisecond. A timer lies in the level that is named by the highest 6 bits in which
//! its tick differs from the present one, in the slot that those bits name. So all timers of a lower level are due
//! before any of a higher one, and within a level the slots are in order. When the time of a slot of a higher level
//! comes, its timers move down. Timers that are moved to a later time stay where they are, and whoever set them sees
//! that they came early: so the usual life of a retransmission timer costs nothing.

use std::time::{Duration, Instant};

use crate::lists::Lists;

/// Bits of a tick that one level looks at.
const BITS: u32 = 6;

/// Slots of a level.
const SLOTS: usize = 1 << BITS;

/// Levels: 42 bits of milliseconds are 139 years.
const LEVELS: usize = 7;

/// The list of those that are due, after those of the slots.
const DUE: usize = LEVELS * SLOTS;

/// Timers of items that are small numbers; one each.
#[derive(Debug)]
pub(crate) struct Timers {
    began: Instant,
    /// The tick up to which all timers have been moved to [`DUE`].
    tick: u64,
    lists: Lists,
    /// Of every level, the slots that are not empty.
    occupied: [u64; LEVELS],
    /// The tick of every item that is in a list.
    at: Vec<u64>,
}

impl Timers {
    pub(crate) fn new(now: Instant) -> Timers {
        Timers { began: now, tick: 0, lists: Lists::new(DUE + 1), occupied: [0; LEVELS], at: Vec::new() }
    }

    /// Makes an item due at the instant, or a millisecond after it, or earlier if it was to be due earlier.
    pub(crate) fn set(&mut self, item: u32, at: Instant) {
        let tick = self.tick_after(at);
        if self.lists.list_of(item).is_some() {
            if self.at[item as usize] <= tick {
                return;
            }
            self.cancel(item);
        }
        if self.at.len() <= item as usize {
            self.at.resize(item as usize + 1, 0);
        }
        self.at[item as usize] = tick;
        self.place(item);
    }

    /// Forgets an item.
    pub(crate) fn cancel(&mut self, item: u32) {
        if let Some(list) = self.lists.remove(item)
            && list != DUE
            && self.lists.first(list).is_none()
        {
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
        }
    }

    /// When to ask for what is due: never later than the first item, and seldom earlier.
    pub(crate) fn first(&self) -> Option<Instant> {
        let tick = if self.lists.first(DUE).is_some() { self.tick } else { self.next()?.0 };
        Some(self.began + Duration::from_millis(tick))
    }

    /// Takes an item that is due.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u32> {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        loop {
            if let Some(item) = self.lists.first(DUE) {
                self.lists.remove(item);
                return Some(item);
            }
            let Some((tick, list)) = self.next().filter(|(tick, _)| *tick <= now) else {
                self.tick = self.tick.max(now);
                return None;
            };
            self.tick = tick;
            while let Some(item) = self.lists.first(list) {
                self.cancel(item);
                self.place(item);
            }
        }
    }

    fn place(&mut self, item: u32) {
        let at = self.at[item as usize];
        if at <= self.tick {
            return self.lists.push(DUE, item);
        }
        let level = ((at ^ self.tick).ilog2() / BITS) as usize;
        let slot = (at >> (level as u32 * BITS)) as usize % SLOTS;
        self.lists.push(level * SLOTS + slot, item);
        self.occupied[level] |= 1 << slot;
    }

    /// The next slot whose time comes: its first tick and its list.
    fn next(&self) -> Option<(u64, usize)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = level as u32 * BITS;
        let tick = self.tick >> (shift + BITS) << (shift + BITS) | (slot as u64) << shift;
        Some((tick, level * SLOTS + slot))
    }

    /// The first tick that is not before an instant.
    fn tick_after(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        let tick = since.as_secs().min(1 << 50) * 1000 + u64::from(since.subsec_nanos().div_ceil(1_000_000));
        tick.min(self.tick | ((1 << (LEVELS as u32 * BITS)) - 1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_earliest_comes_first_and_cancelled_ones_never() {
        let now = Instant::now();
        let at = |s| now + Duration::from_secs(s);
        let mut timers = Timers::new(now);
        timers.set(1, at(5));
        timers.set(2, at(3));
        timers.set(3, at(4));
        timers.set(2, at(9));
        timers.cancel(3);
        timers.cancel(3);
        assert_eq!(timers.due(at(2)), None);
        assert!(timers.first().unwrap() <= at(3), "a later time does not move it");
        assert_eq!((timers.due(at(3)), timers.due(at(3))), (Some(2), None));
        assert_eq!((timers.due(at(100)), timers.due(at(100)), timers.first()), (Some(1), None, None));
        timers.set(1, at(1));
        assert_eq!((timers.due(at(100)), timers.first()), (Some(1), None), "the past is due at once");
    }

    #[test]
    fn never_early_never_late_over_all_levels() {
        let began = Instant::now();
        let (mut timers, mut now, mut wanted) = (Timers::new(began), began, BTreeMap::new());
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random >> 33
        };
        for round in 0..20_000u32 {
            let item = round % 300;
            timers.cancel(item);
            let at = now + Duration::from_micros(next() % (1 << (next() % 38)));
            timers.set(item, at);
            wanted.insert(item, at);
            let first = timers.first().unwrap();
            assert!(first <= *wanted.values().min().unwrap() + Duration::from_millis(1));
            now = if next() % 4 == 0 { now.max(first) } else { now + Duration::from_micros(next() % 5000) };
            while let Some(item) = timers.due(now) {
                assert!(wanted.remove(&item).unwrap() <= now);
            }
            assert!(wanted.values().all(|at| *at + Duration::from_millis(1) > now));
        }
    }

    #[test]
    fn as_far_away_as_can_be() {
        let now = Instant::now();
        let mut timers = Timers::new(now);
        timers.set(0, now + Duration::from_secs(1 << 40));
        let mut steps = 0;
        while let Some(at) = timers.first() {
            assert!(steps < 10);
            steps += 1;
            timers.due(at);
        }
    }
}

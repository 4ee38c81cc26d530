//! Sequence numbers (RFC 9293, section 3.4): 32 bits, compared around the wrap.

use std::ops::Add;

/// The number of one octet in one direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seq(pub(super) u32);

impl Seq {
    /// How many numbers it is from `earlier` to this one.
    pub(super) fn since(self, earlier: Seq) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether this one comes before the other.
    pub(super) fn is_before(self, other: Seq) -> bool {
        self.since(other) > i32::MAX as u32
    }

    /// The one of two that comes later.
    pub(super) fn later(self, other: Seq) -> Seq {
        if self.is_before(other) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Seq;

    fn add(self, count: u32) -> Seq {
        Seq(self.0.wrapping_add(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_around_the_wrap() {
        for base in [0, 1, i32::MAX as u32, 1 << 31, u32::MAX] {
            let (first, second) = (Seq(base), Seq(base) + 10);
            assert!(first.is_before(second) && !second.is_before(first) && !first.is_before(first));
            assert_eq!((second.since(first), first.later(second), second.later(first)), (10, second, second));
        }
    }
}

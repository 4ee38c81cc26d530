//! Numbers that look random, from a seed: they need not be hard to guess.

/// The finaliser of SplitMix64: a permutation of the 64-bit numbers in which every bit depends on every other.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

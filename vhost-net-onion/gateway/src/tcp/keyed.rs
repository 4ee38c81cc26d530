//! A keyed hash of connections, so that the VM can neither guess sequence numbers of others nor fill one bucket of the
//! table: SipHash-1-3 (Aumasson and Bernstein), on words of 64 bits.

use std::hash::{BuildHasher, Hasher};

/// The key.
#[derive(Clone, Copy)]
pub(super) struct Keyed(pub(super) [u64; 2]);

impl std::fmt::Debug for Keyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyed")
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher;

    fn build_hasher(&self) -> SipHasher {
        let [k0, k1] = self.0;
        let v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        SipHasher { v, bytes: 0 }
    }
}

/// A hash under way.
pub(super) struct SipHasher {
    v: [u64; 4],
    bytes: u64,
}

impl SipHasher {
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.v;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.v = [a, b, c, d];
    }

    fn block(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.v[0] ^= word;
    }
}

impl Hasher for SipHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.block(word);
        self.bytes = self.bytes.wrapping_add(8);
    }

    fn finish(&self) -> u64 {
        let mut last = SipHasher { ..*self };
        last.block(self.bytes << 56);
        last.v[2] ^= 0xff;
        for _ in 0..3 {
            last.round();
        }
        last.v[0] ^ last.v[1] ^ last.v[2] ^ last.v[3]
    }
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;

    use super::*;

    #[test]
    fn with_the_key_zero_it_is_the_hash_of_the_standard_library() {
        for words in 0..6u64 {
            let (mut ours, mut theirs) = (Keyed([0, 0]).build_hasher(), DefaultHasher::new());
            for word in 0..words {
                ours.write_u64(word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                theirs.write_u64(word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            }
            assert_eq!(ours.finish(), theirs.finish());
        }
        assert_ne!(Keyed([0, 1]).build_hasher().finish(), Keyed([0, 0]).build_hasher().finish());
    }
}

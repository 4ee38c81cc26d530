//! The root's key in Shamir shares: any `k` of `n` restore it, fewer say nothing about it.
//!
//! The format is SSKR, published by Blockchain Commons (BCR-2020-011) and read by other programs too; one group, whose
//! secret is the root's 32 bytes. A share is 37 bytes: who belongs together (16 bits), `k`, its own number, its part.
//! They are shown in two ways, of the same bytes:
//!
//! - 46 *bytewords* (BCR-2020-012) of four letters, with a checksum of 32 bits: `tuna next keep …`, which stand for the
//!   tagged CBOR `40309(bytes)`. The first and the last letter tell every word from all others.
//! - a QR code of the uniform resource `ur:sskr/…` (BCR-2020-005), in capitals, which QR codes store densely.
//!
//! A share is a secret: each is wiped from memory when dropped, and what is shown of it is for paper. The crate `sskr`
//! does not wipe the copies that it makes while splitting and combining, so do that in a process that ends soon.

use std::fmt;

use rand_core::CryptoRngCore;
use sskr::{GroupSpec, Secret, Spec, sskr_combine, sskr_generate_using};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::{RootKey, key::KEY_BYTES};

/// The most shares that the format can number (BCR-2020-011: four bits).
pub const SHARES_MAX: usize = 16;

/// Bytes of a share: five of metadata (BCR-2020-011) and the part.
pub(crate) const SHARE_BYTES: usize = 5 + KEY_BYTES;

/// One share. Two are compared in constant time.
#[derive(Clone)]
pub struct Share(Zeroizing<[u8; SHARE_BYTES]>);

/// Why a root is not split, or not restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SharesError {
    /// A `k` or `n` that makes no sense.
    #[error("{needed} of {count} shares cannot be: needed are 2 to {SHARES_MAX}, and at least as many there must be")]
    Numbers {
        /// How many restore the root.
        needed: usize,
        /// How many there are.
        count: usize,
    },
    /// Too few shares.
    #[error("{given} of the {needed} shares that are needed are here: {} missing", needed - given)]
    TooFew {
        /// How many different ones there are.
        given: usize,
        /// How many restore the root.
        needed: usize,
    },
    /// A share of another set.
    #[error("share {0} does not belong to the same set as the first: look for the one that does")]
    OtherSet(usize),
    /// The same share twice.
    #[error("share {0} was given before")]
    Twice(usize),
    /// They claim to belong together, and do not fit.
    #[error("the shares do not fit together: one of them was changed, or is of another set with the same number")]
    NoFit,
    /// Not a share of ours.
    #[error("this is not a share of a root: {0}")]
    NoShare(&'static str),
}

impl RootKey {
    /// Splits the root into `count` shares, `needed` of which restore it: 2 to 16, and no more than `count`.
    ///
    /// # Errors
    /// When these numbers make no sense. One share that restores the root alone would be a copy of it, unsealed.
    pub fn split(&self, needed: usize, count: usize, rng: &mut impl CryptoRngCore) -> Result<Vec<Share>, SharesError> {
        let numbers = || SharesError::Numbers { needed, count };
        if needed < 2 || needed > count || count > SHARES_MAX {
            return Err(numbers());
        }
        let group = GroupSpec::new(needed, count).map_err(|_| numbers())?;
        let spec = Spec::new(1, vec![group]).map_err(|_| numbers())?;
        let secret = Secret::new(self.key().secret().as_slice()).expect("32 bytes can be split");
        let groups = sskr_generate_using(&spec, &secret, &mut Randomness(rng)).map_err(|_| numbers())?;
        let shares = groups.into_iter().flatten().map(Zeroizing::new);
        Ok(shares.map(|bytes| Share::from_bytes(&bytes).expect("sskr makes shares")).collect())
    }

    /// Restores the root from shares, in any order. Compare its public key with the one you know.
    ///
    /// # Errors
    /// Counts the shares from 1. Says which one is of another set or given twice, and how many are missing.
    pub fn combine(shares: &[Share]) -> Result<RootKey, SharesError> {
        let first = shares.first().ok_or(SharesError::TooFew { given: 0, needed: 2 })?;
        for (before, share) in shares.iter().enumerate() {
            if share.set() != first.set() {
                return Err(SharesError::OtherSet(before + 1));
            }
            if shares[..before].iter().any(|earlier| earlier.number() == share.number()) {
                return Err(SharesError::Twice(before + 1));
            }
        }
        if shares.len() < first.needed() {
            return Err(SharesError::TooFew { given: shares.len(), needed: first.needed() });
        }
        let bytes: Vec<&[u8]> = shares.iter().map(|share| share.0.as_slice()).collect();
        let secret = sskr_combine(&bytes).map_err(|_| SharesError::NoFit)?;
        Ok(RootKey::from_secret(secret.data().try_into().map_err(|_| SharesError::NoFit)?))
    }
}

impl Share {
    /// Takes the bytes of a share (BCR-2020-011), of one group only and of a root's length.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Share, SharesError> {
        if bytes.len() != SHARE_BYTES {
            return Err(SharesError::NoShare("it is not as long as a root's"));
        }
        let mut share = Share(Zeroizing::new([0; SHARE_BYTES]));
        share.0.copy_from_slice(bytes);
        // Group threshold and group count, then the group's index: one group, the first.
        if share.0[2] != 0 || share.0[3] >> 4 != 0 {
            return Err(SharesError::NoShare("it is one of several groups, which ours never are"));
        }
        if share.0[4] >> 4 != 0 || share.needed() < 2 {
            return Err(SharesError::NoShare("its metadata are none that this program writes"));
        }
        Ok(share)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; SHARE_BYTES] {
        &self.0
    }

    /// How many shares of its set restore the root.
    #[must_use]
    pub fn needed(&self) -> usize {
        usize::from(self.0[3] & 0xf) + 1
    }

    /// Which of its set it is, from 1.
    #[must_use]
    pub fn number(&self) -> usize {
        usize::from(self.0[4] & 0xf) + 1
    }

    /// The set that it belongs to: shares that were split off together have the same. Not secret, and by chance (1 in
    /// 65,536) that of another set.
    #[must_use]
    pub fn set_id(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    fn set(&self) -> [u8; 4] {
        [self.0[0], self.0[1], self.0[2], self.0[3]]
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Share) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for Share {}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share(set {:04x}, number {}, part not shown)", self.set_id(), self.number())
    }
}

/// The caller's randomness, as the crate `sskr` wants it: a later version of the same traits.
struct Randomness<'a, R>(&'a mut R);

impl<R: CryptoRngCore> rand_core_09::RngCore for Randomness<'_, R> {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

impl<R: CryptoRngCore> rand_core_09::CryptoRng for Randomness<'_, R> {}

impl<R: CryptoRngCore> bc_rand::RandomNumberGenerator for Randomness<'_, R> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    fn split(seed: u64, needed: usize, count: usize) -> Vec<Share> {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        RootKey::generate(&mut rng).split(needed, count, &mut rng).unwrap()
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let root = RootKey::generate(&mut rng);
        for (needed, count) in [(0, 0), (0, 3), (1, 1), (1, 3), (4, 3), (2, 17), (usize::MAX, usize::MAX)] {
            assert_eq!(root.split(needed, count, &mut rng).unwrap_err(), SharesError::Numbers { needed, count });
        }
    }

    #[test]
    fn what_is_missing_or_foreign_is_said() {
        let (ours, others) = (split(1, 3, 5), split(2, 3, 5));
        let combine = |shares: &[&Share]| {
            RootKey::combine(&shares.iter().map(|share| (*share).clone()).collect::<Vec<_>>()).map(|_| ()).unwrap_err()
        };
        assert_eq!(combine(&[]), SharesError::TooFew { given: 0, needed: 2 });
        assert_eq!(combine(&[&ours[4]]), SharesError::TooFew { given: 1, needed: 3 });
        assert_eq!(combine(&[&ours[0], &ours[1]]).to_string(), "2 of the 3 shares that are needed are here: 1 missing");
        assert_eq!(combine(&[&ours[0], &ours[1], &others[2]]), SharesError::OtherSet(3));
        assert_eq!(combine(&[&ours[0], &ours[1], &ours[0]]), SharesError::Twice(3));
        let mut forged = others[2].clone();
        forged.0[..2].copy_from_slice(&ours[0].0[..2]);
        assert_eq!(combine(&[&ours[0], &ours[1], &forged]), SharesError::NoFit);
    }

    #[test]
    fn no_part_is_shown() {
        let share = &split(1, 2, 2)[0];
        let part: String = share.0[5..9].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!format!("{share:?}").contains(&part));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_k_of_n_restore_the_root_and_fewer_do_not(
            secret: [u8; KEY_BYTES],
            (needed, count) in (2..=SHARES_MAX).prop_flat_map(|count| (2..=count, Just(count))),
            order in Just((0..SHARES_MAX).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let root = RootKey::from_secret(&secret);
            let shares = root.split(needed, count, &mut ChaCha20Rng::from_seed(secret)).unwrap();
            let chosen: Vec<_> =
                order.into_iter().filter(|at| *at < count).take(needed).map(|at| shares[at].clone()).collect();
            prop_assert_eq!(RootKey::combine(&chosen).unwrap().key().secret(), root.key().secret());
            let too_few = RootKey::combine(&chosen[1..]).map(|_| ());
            prop_assert_eq!(too_few, Err(SharesError::TooFew { given: needed - 1, needed }));
        }
    }
}

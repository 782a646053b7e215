//! Counter-based random numbers: each depends on its seed, purpose and index only.
//!
//! A mixing function keyed by (seed, purpose, number) is applied to the index. There is no state, so the
//! order of calls, threads and interruptions change nothing. The mixer is
//! SplitMix64 (Steele, Lea & Flood 2014).

use sha2::{Digest, Sha256};

/// A stream of random numbers for one purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: u64,
}

impl Stream {
    /// The stream of `purpose` (a tensor's name, say) and `number` (an epoch, a step) under `seed`.
    pub fn new(seed: u64, purpose: &str, number: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(number.to_le_bytes());
        hash.update(purpose.as_bytes());
        let digest = hash.finalize();
        let mut first = [0u8; 8];
        first.copy_from_slice(&digest[..8]);
        Self { key: u64::from_le_bytes(first) }
    }

    /// The stream of `index` within this one: of a sequence within a step, say.
    pub fn child(&self, index: u64) -> Self {
        Self { key: self.bits(index) }
    }

    /// The 64 random bits at `index`.
    pub fn bits(&self, index: u64) -> u64 {
        let mut z = self.key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1) at `index`, with 24 random bits.
    pub fn unit(&self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// The numbers 0..n in random order (Fisher–Yates).
pub fn permutation(seed: u64, purpose: &str, epoch: u64, n: usize) -> Vec<usize> {
    let stream = Stream::new(seed, purpose, epoch);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        // The high half of a 128-bit product: uniform but for a bias of n / 2^64.
        let wide = u128::from(stream.bits(last as u64)) * (last as u128 + 1);
        order.swap(last, (wide >> 64) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_every_number_once_and_depends_on_its_key_alone() {
        let order = permutation(7, "examples", 2, 100);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, permutation(7, "examples", 2, 100));
        assert_ne!(order, permutation(7, "examples", 3, 100));
        assert_ne!(order, permutation(8, "examples", 2, 100));
    }

    #[test]
    fn unit_numbers_fill_the_unit_interval_evenly() {
        let stream = Stream::new(1, "test", 0);
        let mut counts = [0u32; 10];
        for index in 0..10_000 {
            counts[(stream.unit(index) * 10.0) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}

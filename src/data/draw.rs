//! Seeded choices that come out the same on every platform and with every
//! version of the random number crates: only the generator's raw words are used.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What the random numbers are for: each purpose has its own sequence, so that
/// one does not shift another.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Which samples of the data are taken.
    Subset,
    /// Values of synthetic inputs.
    Values,
    /// Which texts are joined.
    Join,
    /// Which texts are crossed.
    Cross,
}

/// A sequence of random numbers.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    /// The sequence of `seed` for `purpose`.
    pub(crate) fn new(seed: u64, purpose: Purpose) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(match purpose {
            Purpose::Subset => 1,
            Purpose::Values => 2,
            Purpose::Join => 3,
            Purpose::Cross => 4,
        });
        Self(rng)
    }

    /// Uniform in `0..n` (0 for `n` = 0), by Lemire's multiplication; the bias
    /// is below n / 2^64.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Normal with mean 0 and variance 1, as the sum of 16 uniform numbers: no
    /// logarithm or cosine, whose last bits differ between platforms.
    pub(crate) fn normal(&mut self) -> f64 {
        let mut sum = 0u32;
        for _ in 0..4 {
            let word = self.0.next_u64();
            for shift in [0, 16, 32, 48] {
                sum += (word >> shift) as u32 & 0xffff;
            }
        }
        // 16 uniforms on 0..=65535: mean 16 x 32767.5, variance 16 x (65536^2 - 1) / 12.
        (f64::from(sum) - 524_280.0) / (4.0 * (4_294_967_295.0f64 / 12.0).sqrt())
    }
}

/// `k` different numbers of `0..n` in increasing order (all of them when there
/// are no more), by Floyd's algorithm.
pub(crate) fn subset(n: u64, k: u64, seed: u64) -> Vec<u64> {
    if n <= k {
        return (0..n).collect();
    }
    let mut random = Random::new(seed, Purpose::Subset);
    let mut chosen = BTreeSet::new();
    for last in n - k..n {
        let candidate = random.below(last + 1);
        if !chosen.insert(candidate) {
            chosen.insert(last);
        }
    }
    chosen.into_iter().collect()
}

/// A uniform sample of a stream whose length is not known beforehand
/// (Vitter's algorithm R): memory for the sample only.
pub(crate) struct Reservoir<T> {
    capacity: usize,
    seen: u64,
    items: Vec<(u64, T)>,
    random: Random,
}

impl<T> Reservoir<T> {
    /// Room for `capacity` items.
    pub(crate) fn new(capacity: usize, seed: u64) -> Self {
        Self {
            capacity,
            seen: 0,
            items: Vec::new(),
            random: Random::new(seed, Purpose::Subset),
        }
    }

    /// Offers the next item; `make` is called only when it is taken.
    pub(crate) fn offer(&mut self, make: impl FnOnce() -> T) {
        let index = self.seen;
        self.seen += 1;
        if self.items.len() < self.capacity {
            self.items.push((index, make()));
        } else {
            let slot = self.random.below(self.seen);
            let slot = usize::try_from(slot)
                .ok()
                .and_then(|slot| self.items.get_mut(slot));
            if let Some(slot) = slot {
                *slot = (index, make());
            }
        }
    }

    /// How many items were offered.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// The sample, in the order of the stream.
    pub(crate) fn into_items(mut self) -> Vec<T> {
        self.items.sort_by_key(|(index, _)| *index);
        self.items.into_iter().map(|(_, item)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_unit_variance() {
        let mut random = Random::new(3, Purpose::Values);
        let n = 100_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..n {
            let x = random.normal();
            sum += x;
            squares += x * x;
        }
        assert!((sum / f64::from(n)).abs() < 0.02);
        assert!((squares / f64::from(n) - 1.0).abs() < 0.02);
    }

    #[test]
    fn numbers_are_pinned() {
        // Another value here means that the same seed gives other samples.
        let mut random = Random::new(0, Purpose::Subset);
        let first: Vec<u64> = (0..6).map(|_| random.below(1000)).collect();
        assert_eq!(first, [789, 817, 259, 606, 626, 287]);
    }

    #[test]
    fn every_item_is_as_likely() {
        let mut counts = [0u32; 20];
        for seed in 0..4000 {
            let mut reservoir = Reservoir::new(5, seed);
            for item in 0..20usize {
                reservoir.offer(|| item);
            }
            let items = reservoir.into_items();
            assert!(items.is_sorted());
            for item in items {
                counts[item] += 1;
            }
            for item in subset(20, 5, seed) {
                counts[item as usize] += 1;
            }
        }
        // 2000 expected of each, standard deviation 39.
        assert!(counts.iter().all(|c| (1840..2160).contains(c)), "{counts:?}");
    }
}

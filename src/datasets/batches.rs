//! Which examples make up each batch.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The order of training: a fresh permutation for each epoch, cut into batches, the last partial
/// batch dropped. When a batch is larger than the data set, it is tiled: fresh permutations one
/// after the other until it is full, so that every example is repeated equally often, but for the
/// remainder.
#[derive(Debug, Clone)]
pub struct BatchOrder {
    rng: ChaCha8Rng,
    permutation: Vec<u32>,
    position: usize,
    batch_size: usize,
    indices: Vec<u32>,
}

impl BatchOrder {
    /// The order of batches of `batch_size` of `examples` examples.
    ///
    /// # Panics
    /// When either is 0, or there are more than 2^32 − 1 examples.
    pub fn new(examples: usize, batch_size: usize, seed: u64) -> Self {
        assert!(examples > 0 && batch_size > 0, "nothing to batch");
        let examples = u32::try_from(examples).expect("fewer than 2^32 examples");
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            permutation: (0..examples).collect(),
            position: examples as usize,
            batch_size,
            indices: Vec::new(),
        }
    }

    /// The indices of the next batch's examples.
    pub fn next_batch(&mut self) -> &[u32] {
        let examples = self.permutation.len();
        if self.batch_size <= examples {
            if self.position + self.batch_size > examples {
                self.permutation.shuffle(&mut self.rng);
                self.position = 0;
            }
            let start = self.position;
            self.position += self.batch_size;
            return &self.permutation[start..self.position];
        }
        self.indices.clear();
        self.indices.reserve_exact(self.batch_size);
        while self.indices.len() < self.batch_size {
            self.permutation.shuffle(&mut self.rng);
            let wanted = (self.batch_size - self.indices.len()).min(examples);
            self.indices.extend_from_slice(&self.permutation[..wanted]);
        }
        &self.indices
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_epoch_shows_each_example_at_most_once_and_drops_less_than_a_batch(
            examples in 1_usize..200, batch_size in 1_usize..200, seed: u64,
        ) {
            prop_assume!(batch_size <= examples);
            let mut order = BatchOrder::new(examples, batch_size, seed);
            for _ in 0..3 {
                let mut seen: Vec<u32> = Vec::new();
                for _ in 0..examples / batch_size {
                    let batch = order.next_batch();
                    prop_assert_eq!(batch.len(), batch_size);
                    seen.extend_from_slice(batch);
                }
                prop_assert!(examples - seen.len() < batch_size);
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), examples / batch_size * batch_size);
            }
        }

        #[test]
        fn a_batch_larger_than_the_data_set_repeats_examples_evenly(
            examples in 1_usize..50, batch_size in 1_usize..300, seed: u64,
        ) {
            prop_assume!(batch_size > examples);
            let mut order = BatchOrder::new(examples, batch_size, seed);
            let mut counts = vec![0_usize; examples];
            for &index in order.next_batch() {
                counts[index as usize] += 1;
            }
            prop_assert_eq!(counts.iter().sum::<usize>(), batch_size);
            let least = counts.iter().min().expect("not empty");
            let most = counts.iter().max().expect("not empty");
            prop_assert!(most - least <= 1);
        }
    }

    #[test]
    fn epochs_differ_and_seeds_decide() {
        let epoch = |seed| BatchOrder::new(100, 100, seed).next_batch().to_vec();
        assert_eq!(epoch(1), epoch(1));
        assert_ne!(epoch(1), epoch(2));
        let mut order = BatchOrder::new(100, 100, 1);
        let first = order.next_batch().to_vec();
        assert_ne!(first, order.next_batch());
    }
}

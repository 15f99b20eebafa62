//! What the generators share: streams of random numbers, and sizes that can be addressed.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::DatasetError;

/// Stream of what defines the truth: centres, weights, transition probabilities.
pub(super) const TRUTH: u64 = 0;
/// Stream of the training examples.
pub(super) const TRAINING: u64 = 1;
/// Stream of the validation examples.
pub(super) const VALIDATION: u64 = 2;
/// Stream of examples that only measure the truth.
pub(super) const MEASURING: u64 = 3;

/// A stream of its own for each purpose, so that the validation examples stay the same when the number
/// of training examples changes within one seed.
pub(super) fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

pub(super) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}

pub(super) fn size(count: u64) -> Result<usize, DatasetError> {
    usize::try_from(count).map_err(|_| DatasetError::TooLarge)
}

/// Room for rows × width numbers, exactly. A lack of memory ends the process like everywhere else;
/// only a size that cannot even be expressed is an error.
pub(super) fn allocate<T>(rows: usize, width: usize) -> Result<Vec<T>, DatasetError> {
    let numbers = rows.checked_mul(width).ok_or(DatasetError::TooLarge)?;
    let bytes = numbers
        .checked_mul(size_of::<T>())
        .ok_or(DatasetError::TooLarge)?;
    if isize::try_from(bytes).is_err() {
        return Err(DatasetError::TooLarge);
    }
    Ok(Vec::with_capacity(numbers))
}

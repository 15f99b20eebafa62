//! The examples that probes train on: `digits`, shipped with the program, and `synthetic` clusters
//! made from a seed. Pure: the same data set is the same bits everywhere.
//!
//! Examples are kept as one row-major block of `f32`, because the data set is part of what training
//! holds in memory and therefore of every measured peak: nothing is stored twice.

mod batches;
mod digits;
mod synthetic;

pub use batches::BatchOrder;

use thiserror::Error;

use crate::study::Dataset;

/// Examples with their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// Row-major, `labels.len()` × `width`.
    pub features: Vec<f32>,
    /// The class of each example.
    pub labels: Vec<u32>,
    /// Features of an example.
    pub width: usize,
}

impl Examples {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The features of one example.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.features[index * self.width..(index + 1) * self.width]
    }
}

/// A data set, split.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// What is trained on.
    pub training: Examples,
    /// What is validated on.
    pub validation: Examples,
}

/// Why a data set could not be made.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// The archive in the program cannot be read: the build is broken.
    #[error("the digits archive cannot be read: {0}")]
    Archive(#[from] std::io::Error),
    /// The archive lacks an array.
    #[error("the digits archive has no array {0}")]
    MissingArray(&'static str),
    /// Its size does not fit this machine's address space.
    #[error("the data set has more numbers than memory can address")]
    TooLarge,
}

/// Loads or makes a data set.
///
/// # Errors
/// When the shipped archive is damaged, or the set is larger than an address space.
pub fn load(dataset: &Dataset) -> Result<Split, DatasetError> {
    match dataset {
        Dataset::Digits {} => digits::load(),
        Dataset::Synthetic {
            features,
            classes,
            seed,
            ..
        } => synthetic::generate(&synthetic::Clusters {
            training_examples: dataset.training_examples(),
            validation_examples: dataset.validation_examples(),
            features: *features,
            classes: *classes,
            seed: *seed,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_the_study_says() {
        let synthetic = Dataset::Synthetic {
            examples: 103,
            features: 7,
            classes: 3,
            seed: 5,
        };
        let tiny = Dataset::Synthetic {
            examples: 1,
            features: 1,
            classes: 2,
            seed: 0,
        };
        for dataset in [Dataset::Digits {}, synthetic, tiny] {
            let split = load(&dataset).expect("loads");
            for (examples, count) in [
                (&split.training, dataset.training_examples()),
                (&split.validation, dataset.validation_examples()),
            ] {
                assert_eq!(examples.len() as u64, count);
                assert_eq!(examples.width as u64, dataset.features());
                assert_eq!(examples.features.len(), examples.len() * examples.width);
                assert!(examples.features.iter().all(|value| value.is_finite()));
                let largest = examples.labels.iter().copied().max().expect("not empty");
                assert!(u64::from(largest) < dataset.classes());
            }
        }
    }
}

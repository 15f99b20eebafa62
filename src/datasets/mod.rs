//! The examples that probes train on: `digits`, shipped with the program; generators with a known truth;
//! and what was uploaded, which [`inspect`] has brought into a form ([`content`]) that is opened
//! without parsing. The same data set is the same bits everywhere.
//!
//! Generated examples are kept as one row-major block, because the data set is part of what training holds in
//! memory and therefore of every measured peak: nothing is stored twice.

mod batches;
mod chance;
pub mod content;
mod digits;
mod examples;
pub mod inspect;
mod markov;
mod quadratic;
mod random;
mod synthetic;
mod teacher;

pub use batches::BatchOrder;
pub use chance::{chance_loss, chance_losses};
pub use examples::{Batch, BatchInputs, BatchTargets, Examples, Inputs, Targets};

pub use content::Content;

use thiserror::Error;

use crate::study::{BuiltinDataset, Dataset};

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
    /// The content of an uploaded data set is not there.
    #[error("the data set's content cannot be opened: {0}")]
    NotThere(#[source] std::io::Error),
    /// The content of an uploaded data set is not what it should be.
    #[error("the data set's content is damaged: {0}")]
    Damaged(#[from] content::Damaged),
    /// It is another program's.
    #[error("an external data set is another program's; its runner is not burn")]
    External,
    /// Its size does not fit this machine's address space.
    #[error("the data set has more numbers than memory can address")]
    TooLarge,
}

/// Opens, loads or makes a data set; `open` gives the stored content of an uploaded one.
///
/// # Errors
/// When the shipped archive is damaged, the set is larger than an address space, or what was uploaded
/// cannot be opened.
pub fn load(
    dataset: &Dataset,
    open: impl FnOnce() -> std::io::Result<std::fs::File>,
) -> Result<Split, DatasetError> {
    match dataset {
        Dataset::Builtin(builtin) => generate(builtin),
        Dataset::External(_) => Err(DatasetError::External),
        Dataset::Uploaded(uploaded) => {
            let content = Content::open(&open().map_err(DatasetError::NotThere)?)?;
            Ok(content.split(uploaded.contents, uploaded.sequence_length)?)
        }
    }
}

/// Loads or makes a data set that needs no upload.
///
/// # Errors
/// When the shipped archive is damaged, or the set is larger than an address space.
pub fn generate(dataset: &BuiltinDataset) -> Result<Split, DatasetError> {
    let facts = dataset.facts();
    match *dataset {
        BuiltinDataset::Digits {} => digits::load(),
        BuiltinDataset::Synthetic { seed, .. } | BuiltinDataset::SyntheticImages { seed, .. } => {
            synthetic::generate(&clusters(&facts, seed))
        }
        BuiltinDataset::LinearTeacher {
            features,
            outputs,
            noise_deviation,
            seed,
            ..
        } => teacher::generate(&teacher::Teacher {
            training_examples: facts.training_examples,
            validation_examples: facts.validation_examples,
            features,
            outputs,
            noise_deviation,
            seed,
        }),
        BuiltinDataset::NoisyQuadratic {
            dimensions, seed, ..
        } => quadratic::generate(
            [facts.training_examples, facts.validation_examples],
            dimensions,
            seed,
        ),
        BuiltinDataset::MarkovText { .. } => match chain(dataset) {
            Some(chain) => markov::generate(&chain),
            None => Err(DatasetError::TooLarge),
        },
    }
}

fn clusters(facts: &crate::study::Facts, seed: u64) -> synthetic::Clusters {
    synthetic::Clusters {
        training_examples: facts.training_examples,
        validation_examples: facts.validation_examples,
        features: facts.input.numbers(),
        classes: facts.target.width(),
        seed,
    }
}

fn chain(dataset: &BuiltinDataset) -> Option<markov::Chain> {
    let facts = dataset.facts();
    match *dataset {
        BuiltinDataset::MarkovText {
            sequence_length,
            vocabulary,
            order,
            seed,
            ..
        } => Some(markov::Chain {
            training_examples: facts.training_examples,
            validation_examples: facts.validation_examples,
            sequence_length,
            vocabulary,
            order,
            seed,
        }),
        _ => None,
    }
}

/// What no model can do better than on fresh examples of a generated data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truth {
    /// The least loss: cross-entropy in nats, or mean squared error.
    pub loss: f64,
    /// Its standard error; 0 where it is computed exactly.
    pub loss_error: f64,
    /// For a classification, the least error rate with its standard error.
    pub error_rate: Option<(f64, f64)>,
}

/// The truth of a generated data set; `None` where nobody knows it.
///
/// # Errors
/// When the set is larger than an address space.
pub fn truth(dataset: &Dataset) -> Result<Option<Truth>, DatasetError> {
    let Dataset::Builtin(dataset) = dataset else {
        return Ok(None);
    };
    let exact = |loss: f64| Truth {
        loss,
        loss_error: 0.0,
        error_rate: None,
    };
    Ok(match *dataset {
        BuiltinDataset::Digits {} => None,
        BuiltinDataset::Synthetic { seed, .. } | BuiltinDataset::SyntheticImages { seed, .. } => {
            let bayes = synthetic::bayes(&clusters(&dataset.facts(), seed))?;
            Some(Truth {
                loss: bayes.cross_entropy.0,
                loss_error: bayes.cross_entropy.1,
                error_rate: Some(bayes.error),
            })
        }
        BuiltinDataset::LinearTeacher {
            noise_deviation, ..
        } => Some(exact(noise_deviation * noise_deviation)),
        // The variance of the targets, which nothing explains.
        BuiltinDataset::NoisyQuadratic { dimensions, .. } => Some(exact(dimensions as f64 / 2.0)),
        BuiltinDataset::MarkovText { .. } => match chain(dataset) {
            Some(chain) => Some(exact(markov::entropy_rate(&chain)?)),
            None => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::Target;

    #[test]
    fn sizes_are_what_the_study_says() {
        for posted in [
            r#"{"builtin": "digits"}"#,
            r#"{"builtin": "synthetic", "examples": 103, "features": 7, "classes": 3, "seed": 5}"#,
            r#"{"builtin": "synthetic", "examples": 1, "features": 1, "classes": 2}"#,
            r#"{"builtin": "synthetic_images", "examples": 9, "height": 3, "width": 4}"#,
            r#"{"builtin": "linear_teacher", "examples": 11, "outputs": 2}"#,
            r#"{"builtin": "noisy_quadratic", "examples": 6, "dimensions": 9}"#,
            r#"{"builtin": "markov_text", "examples": 5, "sequence_length": 7}"#,
        ] {
            let dataset: BuiltinDataset = serde_json::from_str(posted).expect("a data set");
            let facts = dataset.facts();
            let split = generate(&dataset).expect("loads");
            for (examples, count) in [
                (&split.training, facts.training_examples),
                (&split.validation, facts.validation_examples),
            ] {
                assert_eq!(examples.len() as u64, count, "{posted}");
                let all: Vec<u32> = (0..count as u32).collect();
                let batch = examples.gather(&all);
                let numbers = (count * facts.input.numbers()) as usize;
                match &batch.inputs {
                    BatchInputs::Numbers(values) => {
                        assert_eq!(values.len(), numbers);
                        assert!(values.iter().all(|value| value.is_finite()));
                    }
                    BatchInputs::Tokens(tokens) => assert_eq!(tokens.len(), numbers),
                }
                match (&batch.targets, facts.target) {
                    (BatchTargets::Classes(classes), target) => {
                        assert!(classes.iter().all(|&class| (class as u64) < target.width()));
                    }
                    (BatchTargets::Values(values), Target::Values { count: width }) => {
                        assert_eq!(values.len() as u64, count * width);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn the_truth_is_known_of_generated_data_sets_only() {
        let truth_of = |posted: &str| {
            let dataset: Dataset = serde_json::from_str(posted).expect("a data set");
            truth(&dataset).expect("computes")
        };
        assert_eq!(truth_of(r#"{"builtin": "digits"}"#), None);
        let teacher = truth_of(r#"{"builtin": "linear_teacher", "noise_deviation": 0.5}"#);
        assert_eq!(teacher.expect("known").loss, 0.25);
        let clusters = truth_of(r#"{"builtin": "synthetic", "features": 20}"#).expect("known");
        let (error, spread) = clusters.error_rate.expect("classes");
        assert!(error > 5.0 * spread && error < 0.2, "{clusters:?}");
        let text = truth_of(r#"{"builtin": "markov_text"}"#).expect("known");
        assert!(text.loss > 0.5 && text.loss < 16.0_f64.ln(), "{text:?}");
    }
}

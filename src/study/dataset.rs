//! The data sets that a study may name.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shape::{Facts, Shape, Target};

/// A data set that needs no upload: shipped with the program, or made from a seed with a known truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "builtin", rename_all = "snake_case", deny_unknown_fields)]
pub enum Dataset {
    /// 1797 handwritten digits of 8×8 pixels, 10 classes (UCI, CC BY 4.0): 1437 to train, 360 to validate.
    Digits {},
    /// Gaussian clusters, one a class, made from a seed: as many examples and features as wanted. Its
    /// Bayes error is known.
    Synthetic {
        /// Training examples.
        #[serde(default = "default_examples")]
        #[schema(minimum = 1, default = 10000)]
        examples: u64,
        /// Features of an example.
        #[serde(default = "default_features")]
        #[schema(minimum = 1, default = 784)]
        features: u64,
        /// Classes.
        #[serde(default = "default_classes")]
        #[schema(minimum = 2, default = 10)]
        classes: u64,
        /// Seeds the generator.
        #[serde(default)]
        #[schema(maximum = 9007199254740991u64)]
        seed: u64,
    },
    /// The same clusters in the space of images, for networks that read images.
    SyntheticImages {
        /// Training examples.
        #[serde(default = "default_examples")]
        #[schema(minimum = 1, default = 10000)]
        examples: u64,
        /// Channels of an image.
        #[serde(default = "default_channels")]
        #[schema(minimum = 1, default = 3)]
        channels: u64,
        /// Rows of an image.
        #[serde(default = "default_side")]
        #[schema(minimum = 1, default = 32)]
        height: u64,
        /// Columns of an image.
        #[serde(default = "default_side")]
        #[schema(minimum = 1, default = 32)]
        width: u64,
        /// Classes.
        #[serde(default = "default_classes")]
        #[schema(minimum = 2, default = 10)]
        classes: u64,
        /// Seeds the generator.
        #[serde(default)]
        #[schema(maximum = 9007199254740991u64)]
        seed: u64,
    },
    /// A linear function of normal features plus normal noise: a regression whose irreducible mean
    /// squared error is the noise's variance.
    LinearTeacher {
        /// Training examples.
        #[serde(default = "default_examples")]
        #[schema(minimum = 1, default = 10000)]
        examples: u64,
        /// Features of an example.
        #[serde(default = "default_teacher_features")]
        #[schema(minimum = 1, default = 32)]
        features: u64,
        /// Numbers to be predicted.
        #[serde(default = "default_outputs")]
        #[schema(minimum = 1, default = 1)]
        outputs: u64,
        /// Standard deviation of the noise; the function itself has a variance of 1.
        #[serde(default = "default_noise")]
        #[schema(minimum = 0.0, maximum = 1000.0, default = 0.1)]
        noise_deviation: f64,
        /// Seeds the generator.
        #[serde(default)]
        #[schema(maximum = 9007199254740991u64)]
        seed: u64,
    },
    /// Text in which each token depends on the `order` tokens before it: a language whose entropy rate
    /// is known.
    MarkovText {
        /// Training examples, each a window of `sequence_length` tokens and what follows each of them.
        #[serde(default = "default_windows")]
        #[schema(minimum = 1, default = 2000)]
        examples: u64,
        /// Tokens of an example.
        #[serde(default = "default_sequence_length")]
        #[schema(minimum = 1, maximum = 65536, default = 32)]
        sequence_length: u64,
        /// Different tokens.
        #[serde(default = "default_vocabulary")]
        #[schema(minimum = 2, maximum = 1024, default = 16)]
        vocabulary: u64,
        /// Tokens that the next one depends on.
        #[serde(default = "default_order")]
        #[schema(minimum = 1, maximum = 4, default = 1)]
        order: u64,
        /// Seeds the generator.
        #[serde(default)]
        #[schema(maximum = 9007199254740991u64)]
        seed: u64,
    },
}

fn default_examples() -> u64 {
    10_000
}
fn default_features() -> u64 {
    784
}
fn default_classes() -> u64 {
    10
}
fn default_channels() -> u64 {
    3
}
fn default_side() -> u64 {
    32
}
fn default_teacher_features() -> u64 {
    32
}
fn default_outputs() -> u64 {
    1
}
fn default_noise() -> f64 {
    0.1
}
fn default_windows() -> u64 {
    2000
}
fn default_sequence_length() -> u64 {
    32
}
fn default_vocabulary() -> u64 {
    16
}
fn default_order() -> u64 {
    1
}

/// Validation examples of a generated data set: a quarter of those for training, 1 to 2000.
fn generated_validation(examples: u64) -> u64 {
    (examples / 4).clamp(1, 2000)
}

impl Dataset {
    /// Shapes and sizes.
    pub fn facts(&self) -> Facts {
        let (input, target, examples) = match *self {
            Self::Digits {} => {
                return Facts {
                    input: Shape::Image {
                        channels: 1,
                        height: 8,
                        width: 8,
                    },
                    target: Target::Classes { count: 10 },
                    training_examples: 1437,
                    validation_examples: 360,
                };
            }
            Self::Synthetic {
                examples,
                features,
                classes,
                ..
            } => (
                Shape::Features { width: features },
                Target::Classes { count: classes },
                examples,
            ),
            Self::SyntheticImages {
                examples,
                channels,
                height,
                width,
                classes,
                ..
            } => (
                Shape::Image {
                    channels,
                    height,
                    width,
                },
                Target::Classes { count: classes },
                examples,
            ),
            Self::LinearTeacher {
                examples,
                features,
                outputs,
                ..
            } => (
                Shape::Features { width: features },
                Target::Values { count: outputs },
                examples,
            ),
            Self::MarkovText {
                examples,
                sequence_length,
                vocabulary,
                ..
            } => (
                Shape::Tokens {
                    length: sequence_length,
                    vocabulary,
                },
                Target::NextToken { vocabulary },
                examples,
            ),
        };
        Facts {
            input,
            target,
            training_examples: examples,
            validation_examples: generated_validation(examples),
        }
    }

    /// Bytes of its examples in memory, both splits, four for each number. Saturates.
    pub fn bytes(&self) -> u64 {
        let facts = self.facts();
        let extra = match facts.target {
            Target::Values { count } => count,
            Target::Classes { .. } | Target::NextToken { .. } => 1,
        };
        facts
            .training_examples
            .saturating_add(facts.validation_examples)
            .saturating_mul(facts.input.numbers().saturating_add(extra))
            .saturating_mul(4)
    }

    /// The name used in filters and in default study names.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Digits {} => "digits",
            Self::Synthetic { .. } => "synthetic",
            Self::SyntheticImages { .. } => "synthetic_images",
            Self::LinearTeacher { .. } => "linear_teacher",
            Self::MarkovText { .. } => "markov_text",
        }
    }
}

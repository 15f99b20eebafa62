//! The data sets that a study may name: built in, or uploaded before.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::{Layer, Model};
use super::shape::{Facts, Shape, Target};
use super::units::DatasetId;

/// Tokens of an example of an uploaded text, unless the study says otherwise.
pub const DEFAULT_SEQUENCE_LENGTH: u64 = 64;

/// A data set as a study names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum DatasetRequest {
    /// One that needs no upload.
    Builtin(BuiltinDataset),
    /// One that was uploaded.
    Uploaded(UploadedRequest),
    /// One that another program brings along.
    External(ExternalDataset),
}

/// A data set that the service never sees: the program of a [`Runner`](super::Runner) other than `burn` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalDataset {
    /// What planning and analysis need to know of it.
    pub external: ExternalFacts,
}

/// What must be known of a data set that the service never sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalFacts {
    /// Its name. Another name, or another `runner.version`, is another data set: give it one when its content changes.
    pub name: String,
    /// The shape of one example.
    pub input: Shape,
    /// What is predicted.
    pub target: Target,
    /// Examples to train on.
    #[schema(minimum = 1)]
    pub training_examples: u64,
    /// Examples to validate on.
    #[schema(minimum = 1)]
    pub validation_examples: u64,
}

/// An uploaded data set as a study names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadedRequest {
    /// Its id, as the upload answered it.
    pub id: DatasetId,
    /// For a text: tokens of an example. Default: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65536)]
    pub sequence_length: Option<u64>,
    /// What the service knows of it; filled in by the service.
    #[serde(skip)]
    pub stored: Option<StoredDataset>,
}

/// What the service knows of an uploaded data set.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDataset {
    /// Its name.
    pub name: String,
    /// SHA-256 of its stored content.
    pub content: String,
    /// What is in it.
    pub contents: Contents,
}

/// A data set with everything that training needs to know of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Dataset {
    /// One that needs no upload.
    Builtin(BuiltinDataset),
    /// One that was uploaded.
    Uploaded(UploadedDataset),
    /// One that another program brings along.
    External(ExternalDataset),
}

impl ExternalDataset {
    /// Shapes and sizes, as the study tells them.
    pub fn facts(&self) -> Facts {
        Facts {
            input: self.external.input,
            target: self.external.target,
            training_examples: self.external.training_examples,
            validation_examples: self.external.validation_examples,
        }
    }
}

/// An uploaded data set with everything that training needs to know of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadedDataset {
    /// Its id.
    pub id: DatasetId,
    /// Its name.
    pub name: String,
    /// SHA-256 of its stored content.
    pub content: String,
    /// What is in it.
    pub contents: Contents,
    /// For a text: tokens of an example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<u64>,
}

/// What is in an uploaded data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Contents {
    /// Examples of one shape.
    Examples {
        /// The shape of one example.
        input: Shape,
        /// What is predicted.
        target: Target,
        /// Examples to train on.
        training_examples: u64,
        /// Examples to validate on.
        validation_examples: u64,
    },
    /// A text, cut into examples by the study.
    Text {
        /// Different tokens.
        vocabulary: u64,
        /// Tokens to train on.
        training_tokens: u64,
        /// Tokens to validate on.
        validation_tokens: u64,
    },
}

impl Contents {
    /// Shapes and sizes, with a text cut into examples of `sequence_length` tokens, each followed by one.
    pub fn facts(&self, sequence_length: Option<u64>) -> Facts {
        match *self {
            Self::Examples {
                input,
                target,
                training_examples,
                validation_examples,
            } => Facts {
                input,
                target,
                training_examples,
                validation_examples,
            },
            Self::Text {
                vocabulary,
                training_tokens,
                validation_tokens,
            } => {
                let length = sequence_length.unwrap_or(DEFAULT_SEQUENCE_LENGTH).max(1);
                let windows = |tokens: u64| tokens.saturating_sub(1) / length;
                Facts {
                    input: Shape::Tokens { length, vocabulary },
                    target: Target::NextToken { vocabulary },
                    training_examples: windows(training_tokens),
                    validation_examples: windows(validation_tokens),
                }
            }
        }
    }
}

/// Whether a model on a data set is the noisy quadratic, whose expected loss follows an exact recursion.
pub fn is_noisy_quadratic(dataset: &BuiltinDataset, model: &Model) -> bool {
    matches!(dataset, BuiltinDataset::NoisyQuadratic { .. })
        && matches!(model, Model::Sequential { layers, .. } if matches!(layers[..], [Layer::Scale {}]))
}

impl DatasetRequest {
    /// Shapes and sizes; `None` for an uploaded one that the service does not know.
    pub fn facts(&self) -> Option<Facts> {
        match self {
            Self::Builtin(dataset) => Some(dataset.facts()),
            Self::Uploaded(dataset) => {
                let stored = dataset.stored.as_ref()?;
                Some(stored.contents.facts(dataset.sequence_length))
            }
            Self::External(dataset) => Some(dataset.facts()),
        }
    }

    /// With everything that the service knows of it; `None` for an uploaded one that it does not know.
    pub fn resolve(self) -> Option<Dataset> {
        match self {
            Self::Builtin(dataset) => Some(Dataset::Builtin(dataset)),
            Self::External(dataset) => Some(Dataset::External(dataset)),
            Self::Uploaded(dataset) => {
                let stored = dataset.stored?;
                let is_text = matches!(stored.contents, Contents::Text { .. });
                Some(Dataset::Uploaded(UploadedDataset {
                    id: dataset.id,
                    name: stored.name,
                    content: stored.content,
                    contents: stored.contents,
                    sequence_length: is_text
                        .then(|| dataset.sequence_length.unwrap_or(DEFAULT_SEQUENCE_LENGTH)),
                }))
            }
        }
    }
}

impl Dataset {
    /// The digits.
    pub fn digits() -> Self {
        Self::Builtin(BuiltinDataset::Digits {})
    }

    /// Shapes and sizes.
    pub fn facts(&self) -> Facts {
        match self {
            Self::Builtin(dataset) => dataset.facts(),
            Self::Uploaded(dataset) => dataset.contents.facts(dataset.sequence_length),
            Self::External(dataset) => dataset.facts(),
        }
    }

    /// Bytes that its examples take of the memory of training. An uploaded one is mapped from its file,
    /// which no limit counts; only its targets are held. What another program holds is not known: what it takes is
    /// part of the peaks that it measures.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Builtin(dataset) => dataset.bytes(),
            Self::Uploaded(_) => {
                let facts = self.facts();
                let width = match facts.target {
                    Target::Values { count } => count,
                    Target::Classes { .. } => 1,
                    Target::NextToken { .. } => 0,
                };
                facts
                    .training_examples
                    .saturating_add(facts.validation_examples)
                    .saturating_mul(width)
                    .saturating_mul(4)
            }
            Self::External(_) => 0,
        }
    }

    /// How its examples are held while training runs: it decides what gathering a batch takes. Uploads are all
    /// mapped from one stored form.
    pub fn storage(&self) -> &'static str {
        match self {
            Self::Builtin(dataset) => dataset.name(),
            Self::Uploaded(_) => "uploaded",
            Self::External(_) => "external",
        }
    }

    /// The name used in filters and in default study names.
    pub fn name(&self) -> &str {
        match self {
            Self::Builtin(dataset) => dataset.name(),
            Self::Uploaded(dataset) => &dataset.name,
            Self::External(dataset) => &dataset.external.name,
        }
    }
}

impl From<BuiltinDataset> for Dataset {
    fn from(dataset: BuiltinDataset) -> Self {
        Self::Builtin(dataset)
    }
}

/// A data set that needs no upload: shipped with the program, or made from a seed with a known truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "builtin", rename_all = "snake_case", deny_unknown_fields)]
pub enum BuiltinDataset {
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
    /// The noisy quadratic model (Zhang et al. 2019) as a regression: with the network `[{"layer": "scale"}]`
    /// the expected loss is dimensions/2 + ½Σhᵢθᵢ² with curvatures hᵢ = 1/i, from θ = 1, and the covariance of
    /// one example's gradient is the curvature. Its `expected_excess_loss` ½Σhᵢθᵢ² follows an exact recursion.
    NoisyQuadratic {
        /// Training examples.
        #[serde(default = "default_examples")]
        #[schema(minimum = 1, default = 10000)]
        examples: u64,
        /// Parameters of the quadratic.
        #[serde(default = "default_dimensions")]
        #[schema(minimum = 1, default = 1000)]
        dimensions: u64,
        /// Seeds the noise.
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
fn default_dimensions() -> u64 {
    1000
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

impl BuiltinDataset {
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
            Self::NoisyQuadratic {
                examples,
                dimensions,
                ..
            } => (
                Shape::Features { width: dimensions },
                Target::Values { count: dimensions },
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
            Self::NoisyQuadratic { .. } => "noisy_quadratic",
            Self::MarkovText { .. } => "markov_text",
        }
    }
}

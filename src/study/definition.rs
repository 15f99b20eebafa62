//! What is asked. [`StudyRequest`] is what a caller posts: only `workload.dataset` is required.
//! [`StudyDefinition`] is the same thing with every default filled in; it is what is stored,
//! planned from and shown, so no default is ever implicit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::units::{BatchSize, Bytes};

/// A study as posted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "digits, first batch size",
    "labels": {"team": "vision"},
    "workload": {
        "dataset": {"builtin": "digits"},
        "model": {"family": "mlp", "hidden": [64], "activation": "relu"},
        "loss": "cross_entropy"
    },
    "optimizer": {"family": "sgd_nesterov"},
    "batch_sizes": {"min": 4, "max": 1024, "grid": "powers_of_two"},
    "device": {"backend": "cpu", "memory_budget_bytes": 2147483648u64},
    "objective": "minimize_training_time",
    "budget": {"device_secs": 900, "probes": 1000},
    "questions": ["feasible_batch_sizes", "throughput", "batch_size"],
    "seed": 7
}))]
pub struct StudyRequest {
    /// A name for people. Default: made from the data set and the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Free-form labels, to filter lists by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What is trained.
    pub workload: WorkloadRequest,
    /// How it is optimised. Default: Adam for an MLP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<Optimizer>,
    /// Which batch sizes are considered.
    #[serde(default)]
    pub batch_sizes: BatchSizesRequest,
    /// Where it is to be trained.
    #[serde(default)]
    pub device: DeviceRequest,
    /// What the recommendation minimises.
    #[serde(default)]
    pub objective: Objective,
    /// What the study may spend.
    #[serde(default)]
    pub budget: Budget,
    /// Which questions are answered. Default: all.
    #[serde(default = "Question::all")]
    #[schema(min_items = 1)]
    pub questions: Vec<Question>,
    /// Whether measurements that another study of the project has already made may serve.
    #[serde(default = "yes")]
    pub reuse: bool,
    /// Studies of higher priority get their probes run first, −100 to 100.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    pub priority: i32,
    /// Seeds everything random in the study.
    #[serde(default)]
    #[schema(maximum = 9007199254740991u64)]
    pub seed: u64,
}

/// A study with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StudyDefinition {
    /// A name for people.
    pub name: String,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// What is trained.
    pub workload: Workload,
    /// How it is optimised.
    pub optimizer: Optimizer,
    /// Which batch sizes are considered.
    pub batch_sizes: BatchSizes,
    /// Where it is to be trained.
    pub device: DeviceChoice,
    /// What the recommendation minimises.
    pub objective: Objective,
    /// What the study may spend.
    pub budget: Budget,
    /// Which questions are answered.
    pub questions: Vec<Question>,
    /// Whether measurements of other studies may serve.
    pub reuse: bool,
    /// Studies of higher priority get their probes run first.
    pub priority: i32,
    /// Seeds everything random in the study.
    pub seed: u64,
}

fn yes() -> bool {
    true
}

/// What is trained, as posted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadRequest {
    /// The examples.
    pub dataset: Dataset,
    /// The network. Default: an MLP with one hidden layer of 64 units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// The training loss.
    #[serde(default)]
    pub loss: Loss,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Workload {
    /// The examples.
    pub dataset: Dataset,
    /// The network.
    pub model: Model,
    /// The training loss.
    pub loss: Loss,
}

/// A data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "builtin", rename_all = "snake_case", deny_unknown_fields)]
pub enum Dataset {
    /// 1797 handwritten digits of 8×8 pixels, 10 classes (UCI, CC BY 4.0): 1437 to train, 360 to validate.
    Digits {},
    /// Gaussian clusters, one a class, made from a seed: as many examples and features as wanted.
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

impl Dataset {
    /// Training examples.
    pub fn training_examples(&self) -> u64 {
        match self {
            Self::Digits {} => 1437,
            Self::Synthetic { examples, .. } => *examples,
        }
    }

    /// Validation examples. A synthetic set has a quarter as many as for training, 1 to 2000.
    pub fn validation_examples(&self) -> u64 {
        match self {
            Self::Digits {} => 360,
            Self::Synthetic { examples, .. } => (examples / 4).clamp(1, 2000),
        }
    }

    /// Features of an example.
    pub fn features(&self) -> u64 {
        match self {
            Self::Digits {} => 64,
            Self::Synthetic { features, .. } => *features,
        }
    }

    /// Classes.
    pub fn classes(&self) -> u64 {
        match self {
            Self::Digits {} => 10,
            Self::Synthetic { classes, .. } => *classes,
        }
    }

    /// The name used in filters and in default study names.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Digits {} => "digits",
            Self::Synthetic { .. } => "synthetic",
        }
    }
}

/// A network: a family with its size hyperparameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum Model {
    /// A multilayer perceptron: linear layers with an activation and dropout between.
    Mlp {
        /// Units of each hidden layer, first to last; empty for a linear model.
        #[serde(default = "default_hidden")]
        #[schema(default = json!([64]))]
        hidden: Vec<u64>,
        /// What follows each hidden layer.
        #[serde(default)]
        activation: Activation,
        /// Probability that a hidden unit is dropped in training.
        #[serde(default)]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
        dropout: f64,
    },
}

fn default_hidden() -> Vec<u64> {
    vec![64]
}

impl Model {
    /// The family's name.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Mlp { .. } => "mlp",
        }
    }

    /// Trainable parameters for `features` inputs and `classes` outputs:
    /// Σ over linear layers of in·out + out. Saturates instead of overflowing.
    pub fn parameters(&self, features: u64, classes: u64) -> u64 {
        match self {
            Self::Mlp { hidden, .. } => {
                let mut inputs = features;
                let mut total = 0_u64;
                for &outputs in hidden.iter().chain(std::iter::once(&classes)) {
                    let layer = inputs.saturating_mul(outputs).saturating_add(outputs);
                    total = total.saturating_add(layer);
                    inputs = outputs;
                }
                total
            }
        }
    }
}

/// What follows a hidden layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(0, x)
    #[default]
    Relu,
    /// x·Φ(x)
    Gelu,
    /// tanh x
    Tanh,
    /// 1/(1+e⁻ˣ)
    Sigmoid,
}

/// The training loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Mean negative log likelihood of the label, in nats.
    #[default]
    CrossEntropy,
}

/// An optimizer with every hyperparameter of its update rule; none is implicit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// θ ← θ − η·g
    Sgd {
        /// η
        #[serde(default = "default_sgd_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.01)]
        learning_rate: f64,
    },
    /// v ← γ·v + g; θ ← θ − η·v
    SgdMomentum {
        /// η
        #[serde(default = "default_sgd_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.01)]
        learning_rate: f64,
        /// γ
        #[serde(default = "default_momentum")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        momentum: f64,
    },
    /// v ← γ·v + g; θ ← θ − η·(g + γ·v)
    SgdNesterov {
        /// η
        #[serde(default = "default_sgd_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.01)]
        learning_rate: f64,
        /// γ
        #[serde(default = "default_momentum")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        momentum: f64,
    },
    /// Adam (Kingma & Ba 2015, algorithm 1; ε outside the root).
    Adam {
        /// η
        #[serde(default = "default_adam_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.001)]
        learning_rate: f64,
        /// β₁
        #[serde(default = "default_beta_1")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        beta_1: f64,
        /// β₂
        #[serde(default = "default_beta_2")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.999)]
        beta_2: f64,
        /// ε, added to √v̂
        #[serde(default = "default_epsilon")]
        #[schema(exclusive_minimum = 0.0, default = 1e-8)]
        epsilon: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019): θ ← θ·(1 − η·λ) before the step.
    #[serde(rename = "adamw")]
    AdamW {
        /// η
        #[serde(default = "default_adam_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.001)]
        learning_rate: f64,
        /// β₁
        #[serde(default = "default_beta_1")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        beta_1: f64,
        /// β₂
        #[serde(default = "default_beta_2")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.999)]
        beta_2: f64,
        /// ε, added to √v̂
        #[serde(default = "default_epsilon")]
        #[schema(exclusive_minimum = 0.0, default = 1e-8)]
        epsilon: f64,
        /// λ
        #[serde(default = "default_weight_decay")]
        #[schema(minimum = 0.0, default = 0.01)]
        weight_decay: f64,
    },
}

fn default_sgd_learning_rate() -> f64 {
    0.01
}
fn default_adam_learning_rate() -> f64 {
    0.001
}
fn default_momentum() -> f64 {
    0.9
}
fn default_beta_1() -> f64 {
    0.9
}
fn default_beta_2() -> f64 {
    0.999
}
fn default_epsilon() -> f64 {
    1e-8
}
fn default_weight_decay() -> f64 {
    0.01
}

impl Optimizer {
    /// Adam with its published defaults: the first choice for tabular data and MLPs.
    pub fn adam() -> Self {
        Self::Adam {
            learning_rate: default_adam_learning_rate(),
            beta_1: default_beta_1(),
            beta_2: default_beta_2(),
            epsilon: default_epsilon(),
        }
    }

    /// The family's name.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::SgdMomentum { .. } => "sgd_momentum",
            Self::SgdNesterov { .. } => "sgd_nesterov",
            Self::Adam { .. } => "adam",
            Self::AdamW { .. } => "adamw",
        }
    }

    /// Numbers of optimizer state kept for each parameter.
    pub fn state_per_parameter(&self) -> u64 {
        match self {
            Self::Sgd { .. } => 0,
            Self::SgdMomentum { .. } | Self::SgdNesterov { .. } => 1,
            Self::Adam { .. } | Self::AdamW { .. } => 2,
        }
    }
}

/// Which batch sizes are considered, as posted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchSizesRequest {
    /// The smallest. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<BatchSize>,
    /// The largest. Default: the number of training examples. Beyond it, examples are repeated within a batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<BatchSize>,
    /// Where throughput is measured.
    #[serde(default)]
    pub grid: Grid,
    /// How exactly the largest feasible batch size is sought.
    #[serde(default)]
    pub resolution: Resolution,
}

/// Which batch sizes are considered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchSizes {
    /// The smallest.
    pub min: BatchSize,
    /// The largest.
    pub max: BatchSize,
    /// Whether `max` was asked for (`range`) or follows from the data set (`dataset`).
    pub max_from: MaxFrom,
    /// Where throughput is measured.
    pub grid: Grid,
    /// How exactly the largest feasible batch size is sought.
    pub resolution: Resolution,
}

/// Where the largest batch size considered comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaxFrom {
    /// The study named it.
    Range,
    /// It is the number of training examples.
    Dataset,
}

/// The batch sizes at which throughput is measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grid {
    /// Every power of two in the range.
    #[default]
    PowersOfTwo,
    /// Exactly these, e.g. `{"values": [48, 96, 192]}`.
    Values(Vec<BatchSize>),
}

/// How exactly the largest feasible batch size is sought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// To within max(1, B/32).
    #[default]
    OneThirtySecond,
    /// Exactly.
    Exact,
    /// The largest of the grid.
    Grid,
}

/// Where it is to be trained, as posted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceRequest {
    /// What runs the arithmetic.
    #[serde(default)]
    pub backend: Backend,
    /// The device model, as `GET /v1/devices` names it. Needed only when live workers have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Memory that training may use. Default: 0.8 × the memory free on the device's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_budget_bytes: Option<Bytes>,
    /// Threads of the training process. Default: the host's cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1024)]
    pub threads: Option<u32>,
}

/// Where it is to be trained. `model`, `memory_budget_bytes` and `threads` stay null only until
/// the first live worker that can serve the study tells them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceChoice {
    /// What runs the arithmetic.
    pub backend: Backend,
    /// The device model.
    pub model: Option<String>,
    /// Memory that training may use.
    pub memory_budget_bytes: Option<Bytes>,
    /// Threads of the training process.
    pub threads: Option<u32>,
}

impl DeviceChoice {
    /// The device to plan for, once every field is known.
    pub fn resolved(&self) -> Option<ResolvedDevice> {
        Some(ResolvedDevice {
            backend: self.backend,
            model: self.model.clone()?,
            memory_budget: self.memory_budget_bytes?,
            threads: self.threads?,
        })
    }
}

/// A device choice with nothing left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// What runs the arithmetic.
    pub backend: Backend,
    /// The device model.
    pub model: String,
    /// Memory that training may use.
    pub memory_budget: Bytes,
    /// Threads of the training process.
    pub threads: u32,
}

/// What runs the arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The host's processor (burn's `flex` backend).
    #[default]
    Cpu,
}

impl Backend {
    /// The name used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }
}

/// What the recommendation minimises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Time from start to finish.
    #[default]
    MinimizeTrainingTime,
}

/// What the study may spend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Seconds of device time, over all probes.
    #[serde(default = "default_device_secs")]
    #[schema(exclusive_minimum = 0.0, default = 900.0)]
    pub device_secs: f64,
    /// Probes.
    #[serde(default = "default_probes")]
    #[schema(minimum = 1, default = 1000)]
    pub probes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            device_secs: default_device_secs(),
            probes: default_probes(),
        }
    }
}

fn default_device_secs() -> f64 {
    900.0
}
fn default_probes() -> u64 {
    1000
}

/// A question a study answers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Which batch sizes fit the memory budget?
    FeasibleBatchSizes,
    /// What training throughput does each give, and where does it stop rising?
    Throughput,
    /// Which batch size should training start with?
    BatchSize,
}

impl Question {
    /// Every question.
    pub fn all() -> Vec<Self> {
        vec![Self::FeasibleBatchSizes, Self::Throughput, Self::BatchSize]
    }
}

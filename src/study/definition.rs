//! What is asked. [`StudyRequest`] is what a caller posts: only `workload.dataset` is required.
//! [`StudyDefinition`] is the same thing with every default filled in; it is what is stored,
//! planned from and shown, so no default is ever implicit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::comparison::{BatchNormProbe, OptimizerComparison};
use super::costs::{Costs, Design, Objective, ProjectPhase};
use super::dataset::{Dataset, DatasetRequest};
use super::evaluation::{EvaluationTarget, TargetRequest};
use super::model::Model;
use super::network::{Network, NetworkError};
use super::optimizer::{GradientClipping, Optimizer, Schedule};
use super::runner::Runner;
use super::search_space::{Search, SearchRequest};
use super::shape::Target;
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
        "loss": "cross_entropy",
        "target": {"metric": "validation_cross_entropy", "goal": "minimize", "value": 0.2}
    },
    "optimizer": {"family": "sgd_nesterov"},
    "batch_sizes": {"min": 4, "max": 1024, "grid": "powers_of_two"},
    "device": {"backend": "cpu", "memory_budget_bytes": 2147483648u64},
    "objective": "minimize_training_time",
    "costs": {"device_hour": 2.5, "planned_runs": 200},
    "budget": {"device_secs": 900, "probes": 1000},
    "questions": ["feasible_batch_sizes", "throughput", "batch_size", "critical_batch_size"],
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
    /// Which program trains it. Default: the service's own.
    #[serde(default)]
    pub runner: Runner,
    /// How it is optimised. Default: by the family of the model (the catalog names each one's first
    /// optimizer).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<Optimizer>,
    /// How the learning rate changes over training.
    #[serde(default)]
    pub schedule: Schedule,
    /// How gradients are limited. Default: not at all, but to a norm of 1 for an `rnn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_clipping: Option<GradientClipping>,
    /// Which batch sizes are considered.
    #[serde(default)]
    pub batch_sizes: BatchSizesRequest,
    /// Where it is to be trained.
    #[serde(default)]
    pub device: DeviceRequest,
    /// What the recommendation minimises.
    #[serde(default)]
    pub objective: Objective,
    /// What training costs.
    #[serde(default)]
    pub costs: Costs,
    /// How far the project is.
    #[serde(default)]
    pub project_phase: ProjectPhase,
    /// What the study may spend.
    #[serde(default)]
    pub budget: Budget,
    /// What is tuned at every batch size that is trained to the target.
    #[serde(default)]
    pub search: SearchRequest,
    /// Which batch sizes are trained to the target.
    #[serde(default)]
    pub design: Design,
    /// How the quality that training ends with is compared.
    #[serde(default)]
    pub quality: QualityComparison,
    /// Which optimizers are compared.
    #[serde(default)]
    pub optimizers: OptimizerComparison,
    /// How batch normalization is looked into.
    #[serde(default)]
    pub batch_norm: BatchNormProbe,
    /// Which questions are answered. Default: those about the hardware and the initial configuration; with a
    /// target, also the critical batch size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1)]
    pub questions: Option<Vec<Question>>,
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
    /// Which program trains it.
    #[serde(default)]
    pub runner: Runner,
    /// Whether the model was asked for (`study`) or follows from the data set (`default`).
    #[serde(default)]
    pub model_from: ModelFrom,
    /// How it is optimised.
    pub optimizer: Optimizer,
    /// How the learning rate changes over training.
    #[serde(default)]
    pub schedule: Schedule,
    /// How gradients are limited.
    #[serde(default)]
    pub gradient_clipping: GradientClipping,
    /// Which batch sizes are considered.
    pub batch_sizes: BatchSizes,
    /// Where it is to be trained.
    pub device: DeviceChoice,
    /// What the recommendation minimises.
    pub objective: Objective,
    /// What training costs.
    #[serde(default)]
    pub costs: Costs,
    /// How far the project is.
    #[serde(default)]
    pub project_phase: ProjectPhase,
    /// What the study may spend.
    pub budget: Budget,
    /// What is tuned at every batch size that is trained to the target.
    #[serde(default)]
    pub search: Search,
    /// Which batch sizes are trained to the target.
    #[serde(default)]
    pub design: Design,
    /// How the quality that training ends with is compared.
    #[serde(default)]
    pub quality: QualityComparison,
    /// Which optimizers are compared.
    #[serde(default)]
    pub optimizers: OptimizerComparison,
    /// How batch normalization is looked into.
    #[serde(default)]
    pub batch_norm: BatchNormProbe,
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

impl DType {
    /// Bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 => 2,
        }
    }
}

/// What is trained, as posted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadRequest {
    /// The examples.
    pub dataset: DatasetRequest,
    /// The network. Default: an MLP with one hidden layer of 64 units; for text, a `transformer_lm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// The kind of task. It follows from the data set; one that is named must be that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskKind>,
    /// The training loss. Default: the one of the task, which is also the only one that fits it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// The share of a label's probability that training spreads over all classes (cross-entropy only).
    #[serde(default)]
    #[schema(minimum = 0.0, exclusive_maximum = 1.0)]
    pub label_smoothing: f64,
    /// What the numbers of training are.
    #[serde(default)]
    pub dtype: DType,
    /// Validate on this many examples: a fixed subset, the same in every probe. Default: on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub validation_examples: Option<u64>,
    /// How batches come to the training.
    #[serde(default)]
    pub input_pipeline: InputPipeline,
    /// Whether training reads the loss back after every step, as a loop that logs it each time does:
    /// the host then waits for the device in every step.
    #[serde(default)]
    pub read_loss_every_step: bool,
    /// What training is to reach. Steps to target, training time and the critical batch size are for this
    /// target. Default: none; a question that needs one takes it from a pilot run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetRequest>,
}

/// How batches come to the training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputPipeline {
    /// Threads that gather batches ahead, beside the threads of the device; 0 gathers each batch when
    /// its step begins.
    #[serde(default)]
    #[schema(maximum = 256)]
    pub threads: u32,
    /// Batches that are kept ready at most.
    #[serde(default = "default_prefetch")]
    #[schema(minimum = 1, maximum = 1024, default = 2)]
    pub prefetch_batches: u32,
}

fn default_prefetch() -> u32 {
    2
}

impl Default for InputPipeline {
    fn default() -> Self {
        Self {
            threads: 0,
            prefetch_batches: default_prefetch(),
        }
    }
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
    /// The share of a label's probability that training spreads over all classes.
    #[serde(default)]
    pub label_smoothing: f64,
    /// What the numbers of training are.
    #[serde(default)]
    pub dtype: DType,
    /// How many examples are validated on, a fixed subset; null for all.
    #[serde(default)]
    pub validation_examples: Option<u64>,
    /// How batches come to the training.
    #[serde(default)]
    pub input_pipeline: InputPipeline,
    /// Whether training reads the loss back after every step, as a loop that logs it each time does:
    /// the host then waits for the device in every step.
    #[serde(default)]
    pub read_loss_every_step: bool,
    /// What training is to reach. Not part of a probe's workload: those that need it name it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<EvaluationTarget>,
}

impl Workload {
    /// Training of a model on a data set with everything else as usual.
    pub fn new(dataset: Dataset, model: Model) -> Self {
        Self {
            loss: Loss::of(&dataset.facts().target),
            dataset,
            model,
            label_smoothing: 0.0,
            dtype: DType::Float32,
            validation_examples: None,
            input_pipeline: InputPipeline::default(),
            read_loss_every_step: false,
            target: None,
        }
    }

    /// The network in its places.
    ///
    /// # Errors
    /// When the model does not fit the data set.
    pub fn network(&self) -> Result<Network, NetworkError> {
        Network::new(&self.model, &self.dataset.facts())
    }

    /// Whether what training makes of an example may depend on the others that its device sees with it: where the model
    /// normalises over a batch, or only another program knows.
    pub fn may_look_across_examples(&self) -> bool {
        self.network()
            .map_or(true, |network| !network.batch_normalizations().is_empty())
    }

    /// Trainable parameters; none when the model does not fit the data set, which no stored
    /// definition's does, or is another program's and does not tell.
    pub fn parameters(&self) -> Option<u64> {
        match &self.model {
            Model::External { parameters, .. } => *parameters,
            _ => self.network().ok().map(|network| network.parameters()),
        }
    }
}

/// The kinds of tasks: supervised learning, or what looks like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One of several classes is predicted.
    Classification,
    /// Numbers are predicted.
    Regression,
    /// The next token of a text is predicted.
    LanguageModelling,
    /// What is predicted is a part of the input: of a text, the next token.
    SelfSupervised,
}

impl TaskKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [
        Self::Classification,
        Self::Regression,
        Self::LanguageModelling,
        Self::SelfSupervised,
    ];

    /// Whether a data set with such targets is one of the kind.
    pub fn fits(self, target: &Target) -> bool {
        match self {
            Self::Classification => matches!(target, Target::Classes { .. }),
            Self::Regression => matches!(target, Target::Values { .. }),
            Self::LanguageModelling | Self::SelfSupervised => {
                matches!(target, Target::NextToken { .. })
            }
        }
    }

    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Regression => "regression",
            Self::LanguageModelling => "language_modelling",
            Self::SelfSupervised => "self_supervised",
        }
    }
}

/// The training loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Mean negative log likelihood of the label or of the next token, in nats.
    #[default]
    CrossEntropy,
    /// Mean squared error over examples and values, in squared units of the target.
    MeanSquaredError,
}

impl Loss {
    /// The loss that a task is usually trained with, and the only one that it can be.
    pub fn of(target: &Target) -> Self {
        match target {
            Target::Classes { .. } | Target::NextToken { .. } => Self::CrossEntropy,
            Target::Values { .. } => Self::MeanSquaredError,
        }
    }

    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CrossEntropy => "cross_entropy",
            Self::MeanSquaredError => "mean_squared_error",
        }
    }
}

/// What the numbers of training are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// IEEE 754 single precision.
    #[default]
    Float32,
    /// Eight bits of exponent and seven of fraction, for parameters, activations and optimizer state alike.
    Bfloat16,
}

/// Which batch sizes are considered, as posted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchSizesRequest {
    /// The smallest. Default: 1, or one example for each device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<BatchSize>,
    /// The largest. Default: the number of training examples, or with several devices the largest multiple of their
    /// number in it. Beyond it, examples are repeated within a batch.
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

/// Where the model of a study comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelFrom {
    /// The study named it.
    #[default]
    Study,
    /// It is the simplest that can read the data set.
    Default,
}

/// The batch sizes at which throughput is measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grid {
    /// Every power of two in the range; with several devices, for each of them.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceRequest {
    /// What runs the arithmetic.
    #[serde(default)]
    pub backend: Backend,
    /// The device model, as `GET /v1/devices` names it. Needed only when live workers have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How many devices of one host train together, each with its share of every batch: a batch size is that of all
    /// together. More than one needs a runner that can do it; `burn` cannot. On the `cpu` they are processes.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 64, default = 1)]
    pub count: u32,
    /// Memory that training may use on each device: of the host on the `cpu`, else of the GPU. Default: 0.8 × what is
    /// free of it, shared out among the processes on the `cpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_budget_bytes: Option<Bytes>,
    /// Threads of the training process of each device. Default: the host's cores, shared out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1024)]
    pub threads: Option<u32>,
}

impl Default for DeviceRequest {
    fn default() -> Self {
        Self {
            backend: Backend::default(),
            model: None,
            count: one(),
            memory_budget_bytes: None,
            threads: None,
        }
    }
}

fn one() -> u32 {
    1
}

/// Where it is to be trained. `model`, `memory_budget_bytes` and `threads` stay null only until
/// the first live worker that can serve the study tells them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceChoice {
    /// What runs the arithmetic.
    pub backend: Backend,
    /// The device model.
    pub model: Option<String>,
    /// How many devices of one host train together.
    #[serde(default = "one")]
    pub count: u32,
    /// Memory that training may use on each.
    pub memory_budget_bytes: Option<Bytes>,
    /// Threads of the training process of each.
    pub threads: Option<u32>,
}

impl DeviceChoice {
    /// The device to plan for, once every field is known.
    pub fn resolved(&self) -> Option<ResolvedDevice> {
        Some(ResolvedDevice {
            backend: self.backend,
            model: self.model.clone()?,
            count: self.count,
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
    /// How many of one host train together.
    pub count: u32,
    /// Memory that training may use on each.
    pub memory_budget: Bytes,
    /// Threads of the training process of each.
    pub threads: u32,
}

/// What runs the arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The host's processor (burn's `flex` backend).
    #[default]
    Cpu,
    /// A GPU through Vulkan.
    Vulkan,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// An Apple GPU through Metal.
    Metal,
    /// An AMD GPU through ROCm.
    Rocm,
}

impl Backend {
    /// Every backend.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Vulkan, Self::Cuda, Self::Metal, Self::Rocm];

    /// The name used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Vulkan => "vulkan",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::Rocm => "rocm",
        }
    }

    /// Whether a GPU does the arithmetic, in memory of its own.
    pub fn is_gpu(self) -> bool {
        self != Self::Cpu
    }
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

/// How the quality that training ends with is compared across batch sizes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QualityComparison {
    /// The batch sizes that are compared. Default: the smallest and the largest that reached the target, and the
    /// one recommended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 2, max_items = 5)]
    pub batch_sizes: Option<Vec<BatchSize>>,
    /// Validation losses that differ by less count as the same, in the unit of the loss. Default: 5% of the
    /// distance from chance to the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(exclusive_minimum = 0.0)]
    pub margin: Option<f64>,
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
    /// What keeps a step from being shorter?
    Bottleneck,
    /// What does gradient accumulation bring?
    GradientAccumulation,
    /// Up to which batch size does doubling it halve the steps to the target, and from where does it save
    /// none?
    CriticalBatchSize,
    /// Which batch size should training start with?
    BatchSize,
    /// Does training end with the same quality at every batch size, once each is tuned?
    QualityAcrossBatchSizes,
    /// Which model, learning rate and number of steps should a project start with?
    InitialConfiguration,
    /// Which optimizer should training start with, or which of several needs the fewest steps to the target?
    Optimizer,
    /// Over how many examples should batch normalization take its statistics?
    BatchNorm,
}

impl Question {
    /// Those that are asked unless the study says otherwise.
    pub fn usual(has_target: bool) -> Vec<Self> {
        let mut questions = vec![
            Self::FeasibleBatchSizes,
            Self::Throughput,
            Self::Bottleneck,
            Self::GradientAccumulation,
            Self::BatchSize,
            Self::InitialConfiguration,
        ];
        if has_target {
            questions.push(Self::CriticalBatchSize);
        }
        questions
    }
}

impl StudyDefinition {
    /// Whether optimizers are compared, and not only the first one named.
    pub fn compares_optimizers(&self) -> bool {
        self.questions.contains(&Question::Optimizer) && !self.optimizers.candidates().is_empty()
    }

    /// Whether hyperparameters are searched for at the study's own optimizer, so that those in `search` are tuned.
    pub fn tunes(&self) -> bool {
        let asks = |question| self.questions.contains(&question);
        asks(Question::CriticalBatchSize)
            || asks(Question::QualityAcrossBatchSizes)
            || (asks(Question::BatchSize) && self.workload.target.is_some())
    }
}

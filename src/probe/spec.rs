//! What one probe is to do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::study::{
    Backend, BatchSize, Bytes, EvaluationMetric, EvaluationTarget, GradientClipping, Loss,
    Optimizer, Runner, Schedule, Workload,
};

/// Everything a runner needs to know, as JSON on its stdin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProbeSpec {
    /// Version of the contract ([`PROTOCOL`](super::PROTOCOL)).
    pub protocol: u32,
    /// Which program does it; absent for the service's own.
    #[serde(default, skip_serializing_if = "Runner::is_burn")]
    pub runner: Runner,
    /// What is done and how.
    pub task: Task,
    /// What is trained.
    pub workload: Workload,
    /// How it is optimised.
    pub optimizer: Optimizer,
    /// How the learning rate changes over training.
    #[serde(default)]
    pub schedule: Schedule,
    /// How gradients are limited.
    #[serde(default)]
    pub gradient_clipping: GradientClipping,
    /// Where.
    pub device: ProbeDevice,
    /// Examples per step, of all devices together.
    pub batch_size: BatchSize,
    /// Which repetition of the same measurement this is, from 0; for `step_time`, the round.
    pub replicate: u32,
    /// Seeds initialisation and the order of examples.
    #[schema(maximum = 9007199254740991u64)]
    pub seed: u64,
    /// What the probe may use.
    pub limits: Limits,
}

impl ProbeSpec {
    /// The kind of the probe.
    pub fn kind(&self) -> ProbeKind {
        self.task.kind()
    }
}

/// The device a probe runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProbeDevice {
    /// What runs the arithmetic.
    pub backend: Backend,
    /// The device model; only workers that have it claim the probe.
    pub model: String,
    /// How many of them share every batch; absent for one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schema(minimum = 1)]
    pub count: u32,
    /// Threads of the training process of each: fixed, because thread stacks count as memory.
    pub threads: u32,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_one(count: &u32) -> bool {
    *count == 1
}

/// What a probe may use; the worker enforces it from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    /// Memory of each device (on the CPU: the child's data segments, `RLIMIT_DATA`).
    pub memory_bytes: Bytes,
    /// Wall-clock time from start to end; past it the probe is `infeasible: too_slow`.
    pub wall_secs: f64,
}

/// What is done and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Task {
    /// Does the pipeline run: a few steps, the evaluation twice, a finite loss, equal evaluations.
    Smoke {
        /// Optimizer steps.
        steps: u64,
    },
    /// Peak memory of training steps and one evaluation.
    Memory {
        /// Optimizer steps; the second one holds the optimizer state.
        steps: u64,
    },
    /// Time per step, sampled until it is known well enough.
    StepTime(StepTimeSampling),
    /// A longer run, evaluation included, that a recommended batch size must survive.
    Confirmation {
        /// Optimizer steps.
        steps: u64,
    },
    /// What a step's time goes into: loading, transfer, readback, forward, backward, update.
    InputPipeline(TurnSampling),
    /// Gradient accumulation against plain steps; `batch_size` is that of a micro-batch.
    GradientAccumulation(Accumulation),
    /// One point of hyperparameters, trained to a target, to a cap or to divergence.
    Training(TrainingRun),
    /// From which learning rate does training diverge?
    LearningRateRange(RangeTest),
    /// How noisy is the gradient of a batch along a training run?
    NoiseScale(NoiseScaleRun),
}

/// A learning-rate range test (Smith 2017, arXiv:1506.01186): the learning rate rises by the same factor in
/// every step, until the smoothed loss says that training diverges. The optimizer's own is not used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RangeTest {
    /// Optimizer steps from the lower to the upper end.
    pub steps: u64,
    /// The first learning rate.
    pub lower: f64,
    /// The last.
    pub upper: f64,
    /// Diverged when the smoothed loss is above this multiple of its least value.
    pub divergence_ratio: f64,
    /// Follow the expectation instead of a sample, where it is known (the noisy quadratic).
    #[serde(default)]
    pub is_expected: bool,
}

impl RangeTest {
    /// The defaults of the measurement protocol.
    pub fn usual(is_expected: bool) -> Self {
        Self {
            steps: 200,
            lower: 1e-6,
            upper: 10.0,
            divergence_ratio: 4.0,
            is_expected,
        }
    }
}

/// The gradient noise scale (McCandlish et al. 2018, arXiv:1812.06162, appendix A.1) along a training run:
/// now and then the squared norms of gradients of small batches and of their mean are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NoiseScaleRun {
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Examples of a small batch.
    pub small_batch: u64,
    /// Small batches that make the big one.
    pub small_batches: u64,
    /// Times that it is measured, spaced evenly in the logarithm of the step.
    pub points: u64,
}

/// How long a training probe trains, and how often it looks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrainingRun {
    /// Optimizer steps at most.
    pub max_steps: u64,
    /// What ends the training before; without one it goes on to its cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<EvaluationTarget>,
    /// After an evaluation at step t the next is at max(t + 1, ⌈ratio·t⌉).
    pub evaluation_ratio: f64,
    /// Whether the loss of every validation example is compared with that of the best predictor that does not
    /// look at its input.
    #[serde(default, skip_serializing_if = "is_false")]
    pub compares_with_chance: bool,
    /// Whether training sees the targets of its examples in another order, so that there is nothing to learn:
    /// a control.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shuffles_targets: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl TrainingRun {
    /// The run without what ends it: its target and its cap.
    pub fn endless(&self) -> Self {
        Self {
            max_steps: 0,
            target: None,
            ..self.clone()
        }
    }

    /// The metric whose best value is kept: the target's, else the loss itself.
    pub fn watched(&self, loss: Loss) -> EvaluationMetric {
        self.target
            .as_ref()
            .map_or_else(|| EvaluationMetric::of_loss(loss), |target| target.metric)
    }

    /// A run to a target, or without one to its cap.
    pub fn new(max_steps: u64, target: Option<EvaluationTarget>, evaluation_ratio: f64) -> Self {
        Self {
            max_steps,
            target,
            evaluation_ratio,
            compares_with_chance: false,
            shuffles_targets: false,
        }
    }
}

/// The default ratio between the steps of two evaluations.
pub const EVALUATION_RATIO: f64 = 1.03;

impl Task {
    /// The kind of the task.
    pub fn kind(&self) -> ProbeKind {
        match self {
            Self::Smoke { .. } => ProbeKind::Smoke,
            Self::Memory { .. } => ProbeKind::Memory,
            Self::StepTime(_) => ProbeKind::StepTime,
            Self::Confirmation { .. } => ProbeKind::Confirmation,
            Self::InputPipeline(_) => ProbeKind::InputPipeline,
            Self::GradientAccumulation(_) => ProbeKind::GradientAccumulation,
            Self::Training(_) => ProbeKind::Training,
            Self::LearningRateRange(_) => ProbeKind::LearningRateRange,
            Self::NoiseScale(_) => ProbeKind::NoiseScale,
        }
    }
}

/// How time per step is sampled within one child.
///
/// The device is synchronised at the borders of *blocks* of steps, because synchronising every
/// step would hide overlap. Sampling starts with `first_look_blocks` blocks and grows by `growth`
/// until two looks in a row are good enough or a cap is hit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepTimeSampling {
    /// Steps discarded at least.
    pub warm_up_steps: u64,
    /// Seconds discarded at least.
    pub warm_up_secs: f64,
    /// A block lasts at least this long.
    pub block_secs: f64,
    /// Blocks before the first look.
    pub first_look_blocks: u64,
    /// Factor between looks.
    pub growth: f64,
    /// Blocks at most.
    pub max_blocks: u64,
    /// Seconds of sampling at most.
    pub max_secs: f64,
    /// Steps at least, whatever the caps say.
    pub min_steps: u64,
    /// Half-width of the median, relative, that ends the sampling.
    pub median_half_width: f64,
    /// Half-width of the mean, relative, that ends the sampling.
    pub mean_half_width: f64,
    /// Relative difference of the medians of first and last third that counts as drift.
    pub drift: f64,
    /// Seconds spent on the canary, a fixed reference step, before the sampling; 0 for none.
    pub canary_secs: f64,
    /// Which batches the steps are timed on.
    #[serde(default)]
    pub batches: Batches,
}

/// Which batches steps are timed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Batches {
    /// Those of training, through its input pipeline.
    Loaded,
    /// One batch, staged on the device before (*synthetic data*): the time without input pipeline.
    Synthetic,
    /// First the one, then the other.
    #[default]
    Both,
}

/// How variants of a step are compared within one child: in turn, a block of each a round, so that what
/// slows the host for a while slows all of them. How sure the comparison is comes from several children.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TurnSampling {
    /// Steps discarded at least.
    pub warm_up_steps: u64,
    /// Seconds discarded at least.
    pub warm_up_secs: f64,
    /// A block lasts at least this long.
    pub block_secs: f64,
    /// Rounds at least, whatever they take.
    pub min_rounds: u64,
    /// Rounds at most.
    pub max_rounds: u64,
    /// Seconds of sampling after which no further round begins.
    pub max_secs: f64,
}

impl Default for TurnSampling {
    /// The defaults of the measurement protocol.
    fn default() -> Self {
        Self {
            warm_up_steps: 5,
            warm_up_secs: 0.5,
            block_secs: 0.02,
            min_rounds: 3,
            max_rounds: 15,
            max_secs: 10.0,
        }
    }
}

/// Gradient accumulation, and what it is compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Accumulation {
    /// Micro-batches whose gradients are added up before the optimizer's step.
    #[schema(minimum = 2)]
    pub micro_batches: u64,
    /// Whether one batch of all their examples is timed too: only where it fits.
    pub with_whole_batch: bool,
    /// How.
    pub sampling: TurnSampling,
}

impl Default for StepTimeSampling {
    /// The defaults of the measurement protocol.
    fn default() -> Self {
        Self {
            warm_up_steps: 5,
            warm_up_secs: 0.5,
            block_secs: 0.02,
            first_look_blocks: 50,
            growth: 1.25,
            max_blocks: 3000,
            max_secs: 60.0,
            min_steps: 20,
            median_half_width: 0.02,
            mean_half_width: 0.05,
            drift: 0.015,
            canary_secs: 0.3,
            batches: Batches::Both,
        }
    }
}

/// What a probe is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// Does the pipeline run?
    Smoke,
    /// Peak memory at one batch size.
    Memory,
    /// Time per step at one batch size.
    StepTime,
    /// Does a batch size survive a longer run?
    Confirmation,
    /// What does a step's time go into?
    InputPipeline,
    /// What does gradient accumulation bring?
    GradientAccumulation,
    /// How many steps to the target, and how does the loss fall?
    Training,
    /// From which learning rate does training diverge?
    LearningRateRange,
    /// How noisy is the gradient of a batch?
    NoiseScale,
}

impl ProbeKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Smoke,
        Self::Memory,
        Self::StepTime,
        Self::Confirmation,
        Self::InputPipeline,
        Self::GradientAccumulation,
        Self::Training,
        Self::LearningRateRange,
        Self::NoiseScale,
    ];

    /// The name used in JSON, in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Memory => "memory",
            Self::StepTime => "step_time",
            Self::Confirmation => "confirmation",
            Self::InputPipeline => "input_pipeline",
            Self::GradientAccumulation => "gradient_accumulation",
            Self::Training => "training",
            Self::LearningRateRange => "learning_rate_range",
            Self::NoiseScale => "noise_scale",
        }
    }

    /// Reads [`as_str`](Self::as_str) back.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Whether the probe must have its device alone: timing and memory are disturbed by company.
    pub fn is_exclusive(self) -> bool {
        !matches!(
            self,
            Self::Smoke | Self::Training | Self::LearningRateRange | Self::NoiseScale
        )
    }
}

//! The names of what is measured, with their units.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::ProbeKind;

/// Declares the metrics: variant, name, unit, meaning.
macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $unit:literal;)*) => {
        /// A metric that analysis reads.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum Metric {
            $($(#[$doc])* $variant,)*
        }

        impl Metric {
            /// Every metric.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name used in events, in JSON and in the database.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The unit.
            pub fn unit(self) -> &'static str {
                match self { $(Self::$variant => $unit,)* }
            }

            /// Reads [`as_str`](Self::as_str) back.
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

metrics! {
    /// Time per step of one block; `step` is the block's index. Raw samples.
    BlockTimePerStep = "block_time_per_step", "s";
    /// Median over blocks of the time per step.
    TimePerStepMedian = "time_per_step_median", "s";
    /// Mean over blocks of the time per step.
    TimePerStepMean = "time_per_step_mean", "s";
    /// Median over blocks of the time per step on one batch staged on the device before.
    SyntheticTimePerStepMedian = "synthetic_time_per_step_median", "s";
    /// Mean over blocks of the time per step on one batch staged on the device before.
    SyntheticTimePerStepMean = "synthetic_time_per_step_mean", "s";
    /// Energy of a step: what the host's processors and memory used while steps were sampled, on a GPU what the card
    /// used, idling included. Absent where they do not tell.
    EnergyPerStep = "energy_per_step", "J";
    /// Time spent on warm-up, discarded.
    WarmUpSecs = "warm_up_secs", "s";
    /// Time spent on sampling.
    SamplingSecs = "sampling_secs", "s";
    /// Relative half-width of the median's 95% interval within this run; it only stopped the sampling.
    WithinRunMedianHalfWidth = "within_run_median_half_width", "ratio";
    /// Relative half-width of the mean's 95% interval within this run; it only stopped the sampling.
    WithinRunMeanHalfWidth = "within_run_mean_half_width", "ratio";
    /// Blocks that the summary uses.
    Blocks = "blocks", "count";
    /// Steps in each block.
    StepsPerBlock = "steps_per_block", "count";
    /// 1 if the sampling converged, 0 if a cap ended it.
    Converged = "converged", "count";
    /// The first step, apart: compilation and autotuning.
    CompileSecs = "compile_secs", "s";
    /// Median time of the fixed reference step, measured just before the sampling.
    CanaryTimePerStep = "canary_time_per_step", "s";
    /// Time the child's threads waited for a processor, over wall time × threads. Absent where the kernel does not tell.
    RunQueueDelayRatio = "run_queue_delay_ratio", "ratio";
    /// Peak of what the memory limit limits (CPU: VmData; GPU: what its pool has reserved). Decides.
    PeakMemory = "peak_memory", "bytes";
    /// Peak resident memory of the child (VmHWM). Explains.
    PeakResidentMemory = "peak_resident_memory", "bytes";
    /// Peak of what the process had allocated and not freed, since before the data set was loaded; on a GPU of what
    /// tensors held of its pool. Explains.
    PeakMemoryInUse = "peak_memory_in_use", "bytes";
    /// Memory of the GPU that its driver counts for the child, contexts and code included. Absent where it does not
    /// tell. Explains.
    DriverMemory = "driver_memory", "bytes";
    /// Allocated by loading the data set; a mapped one takes none.
    DatasetMemory = "dataset_memory", "bytes";
    /// Allocated by the model's parameters.
    ParameterMemory = "parameter_memory", "bytes";
    /// Allocated between steps beyond data set and parameters: the optimizer's state, batches loaded ahead.
    OptimizerStateMemory = "optimizer_state_memory", "bytes";
    /// Training loss of the first step.
    FirstLoss = "first_loss", "loss";
    /// Training loss of the last step.
    LastLoss = "last_loss", "loss";
    /// Validation loss at the end of the run, in the unit of the loss.
    ValidationLoss = "validation_loss", "loss";
    /// Absolute difference between two evaluations of the same parameters.
    EvaluationDifference = "evaluation_difference", "loss";
    /// Largest difference between a parameter's gradient on a GPU and on the processor, over its norm there.
    GradientDifference = "gradient_difference", "ratio";
    /// Optimizer steps made, warm-up included.
    Steps = "steps", "count";
    /// Mean training loss since the evaluation before; `step` is that of the evaluation.
    TrainingLoss = "training_loss", "loss";
    /// Validation cross-entropy; `step` is that of the evaluation.
    ValidationCrossEntropy = "validation_cross_entropy", "nats";
    /// Validation mean squared error, in squared units of the target.
    ValidationMeanSquaredError = "validation_mean_squared_error", "squared_units";
    /// Share of validation predictions that are right.
    ValidationAccuracy = "validation_accuracy", "ratio";
    /// Share of validation predictions that are wrong.
    ValidationErrorRate = "validation_error_rate", "ratio";
    /// Area under the receiver operating characteristic of the second of two classes.
    ValidationAuc = "validation_auc", "ratio";
    /// Exponential of the validation cross-entropy of a token.
    ValidationPerplexity = "validation_perplexity", "tokens";
    /// Optimizer steps to the target, interpolated between evaluations; absent when it was not reached.
    StepsToTarget = "steps_to_target", "count";
    /// The least loss that any model can have on fresh examples, where the data set's truth is known.
    IrreducibleLoss = "irreducible_loss", "loss";
    /// Time spent on evaluations over the time of the whole run.
    EvaluationShare = "evaluation_share", "ratio";
    /// Time spent on gathering a batch, over all loading threads.
    LoadTimePerStep = "load_time_per_step", "s";
    /// Time for which training stood still until its batch was there.
    LoadWaitPerStep = "load_wait_per_step", "s";
    /// Time per step with batches gathered ahead by other threads.
    PrefetchedTimePerStep = "prefetched_time_per_step", "s";
    /// Time per step with each batch gathered when its step begins.
    UnprefetchedTimePerStep = "unprefetched_time_per_step", "s";
    /// Time of copying a gathered batch to the device.
    TransferTimePerStep = "transfer_time_per_step", "s";
    /// Time per step on one batch staged on the device before.
    SyntheticTimePerStep = "synthetic_time_per_step", "s";
    /// The same with the loss read back after every step.
    ReadbackTimePerStep = "readback_time_per_step", "s";
    /// Time of the forward pass and the loss alone.
    ForwardTimePerStep = "forward_time_per_step", "s";
    /// Time of the forward and the backward pass.
    ForwardBackwardTimePerStep = "forward_backward_time_per_step", "s";
    /// Rate of arithmetic of a plain matrix multiplication on the same device.
    MatmulRate = "matmul_rate", "flop/s";
    /// Time of an optimizer step on the gradients of several micro-batches.
    AccumulatedTimePerStep = "accumulated_time_per_step", "s";
    /// Time of a step on one batch of the same examples.
    WholeBatchTimePerStep = "whole_batch_time_per_step", "s";
    /// ½Σhᵢθᵢ² of the noisy quadratic, its expectation; `step` is that of the evaluation.
    ExpectedExcessLoss = "expected_excess_loss", "loss";
    /// The best value of the target's metric, or of the loss, over all evaluations; of a control on shuffled targets, the last.
    BestEvaluation = "best_evaluation", "metric";
    /// The optimizer step of the best value.
    BestStep = "best_step", "count";
    /// Validation loss of the best predictor that does not look at its input, fitted on the training targets.
    ChanceLoss = "chance_loss", "loss";
    /// Chance's loss of a validation example less the model's, mean over the examples, at the best evaluation.
    GainOverChance = "gain_over_chance", "loss";
    /// Standard error of that mean, from the differences of single examples.
    GainOverChanceError = "gain_over_chance_error", "loss";
    /// Standard error of the validation loss of the best evaluation, from the losses of single examples.
    BestEvaluationError = "best_evaluation_error", "loss";
    /// Share of predictions that are right at the best evaluation.
    BestAccuracy = "best_accuracy", "ratio";
    /// How much of what the best evaluation gained over the first came in the last quarter of the steps.
    LateGain = "late_gain", "ratio";
    /// The learning rate at which a range test diverged; absent when it never did.
    DivergentLearningRate = "divergent_learning_rate", "ratio";
    /// Squared norm of the gradient over all examples, |G|², estimated at a step.
    GradientSquare = "gradient_square", "loss_squared";
    /// Trace of the covariance of one example's gradient, tr Σ, estimated at a step.
    GradientVariance = "gradient_variance", "loss_squared";
    /// The simple noise scale tr Σ/|G|² along the run, examples; absent where |G|² is not above 0.
    NoiseScale = "noise_scale", "count";
}

impl Metric {
    /// What a value must be that this one is not; none where it can be one of the metric. What is analysed may thus
    /// be divided by and have its logarithm taken.
    pub fn refuses(self, value: f64) -> Option<&'static str> {
        match self {
            Self::BlockTimePerStep
            | Self::TimePerStepMedian
            | Self::TimePerStepMean
            | Self::SyntheticTimePerStepMedian
            | Self::SyntheticTimePerStepMean
            | Self::CanaryTimePerStep
            | Self::PrefetchedTimePerStep
            | Self::UnprefetchedTimePerStep
            | Self::SyntheticTimePerStep
            | Self::ReadbackTimePerStep
            | Self::ForwardTimePerStep
            | Self::ForwardBackwardTimePerStep
            | Self::AccumulatedTimePerStep
            | Self::WholeBatchTimePerStep
            | Self::MatmulRate
            | Self::PeakMemory
            | Self::DivergentLearningRate
            | Self::NoiseScale => (value <= 0.0).then_some("above 0"),
            Self::ValidationAccuracy
            | Self::ValidationErrorRate
            | Self::ValidationAuc
            | Self::BestAccuracy
            | Self::EvaluationShare => (!(0.0..=1.0).contains(&value)).then_some("from 0 to 1"),
            Self::ValidationPerplexity => (value < 1.0).then_some("at least 1"),
            _ if matches!(self.unit(), "s" | "bytes" | "count" | "J") => {
                (value < 0.0).then_some("at least 0")
            }
            _ => None,
        }
    }
}

/// The figures of the whole probe without which a finished one of a kind has told nothing.
pub fn required_figures(kind: ProbeKind) -> &'static [Metric] {
    match kind {
        ProbeKind::Smoke => &[
            Metric::FirstLoss,
            Metric::LastLoss,
            Metric::ValidationLoss,
            Metric::EvaluationDifference,
        ],
        ProbeKind::Memory | ProbeKind::Confirmation => &[Metric::PeakMemory],
        ProbeKind::StepTime => &[
            Metric::TimePerStepMedian,
            Metric::TimePerStepMean,
            Metric::Converged,
        ],
        ProbeKind::InputPipeline => &[
            Metric::UnprefetchedTimePerStep,
            Metric::LoadTimePerStep,
            Metric::TransferTimePerStep,
            Metric::SyntheticTimePerStep,
            Metric::ReadbackTimePerStep,
        ],
        ProbeKind::GradientAccumulation => &[Metric::AccumulatedTimePerStep],
        ProbeKind::Training => &[Metric::BestEvaluation, Metric::BestStep, Metric::Steps],
        ProbeKind::LearningRateRange => &[Metric::Steps],
        // Absent where the gradient's mean is lost in its noise.
        ProbeKind::NoiseScale => &[Metric::Steps],
    }
}

impl From<crate::study::EvaluationMetric> for Metric {
    fn from(metric: crate::study::EvaluationMetric) -> Self {
        use crate::study::EvaluationMetric as Evaluated;
        match metric {
            Evaluated::ValidationCrossEntropy => Self::ValidationCrossEntropy,
            Evaluated::ValidationMeanSquaredError => Self::ValidationMeanSquaredError,
            Evaluated::ValidationAccuracy => Self::ValidationAccuracy,
            Evaluated::ValidationErrorRate => Self::ValidationErrorRate,
            Evaluated::ValidationAuc => Self::ValidationAuc,
            Evaluated::ValidationPerplexity => Self::ValidationPerplexity,
            Evaluated::ExpectedExcessLoss => Self::ExpectedExcessLoss,
        }
    }
}

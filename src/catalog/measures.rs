//! What is minimised and measured, and by which probes.

use serde_json::json;

use super::parameters::{choice, flag, fraction, input_pipeline, optional, whole};
use super::{EvaluationEntry, LossEntry, MetricEntry, Parameter, ProbeKindEntry};

pub(super) fn losses() -> Vec<LossEntry> {
    vec![
        LossEntry {
            name: "cross_entropy",
            summary: "Mean over examples, or over tokens, of −ln of the predicted probability of the label.",
            unit: "nats",
        },
        LossEntry {
            name: "mean_squared_error",
            summary: "Mean over examples and values of the squared difference.",
            unit: "squared units of the target",
        },
    ]
}

pub(super) fn workload_options() -> Vec<Parameter> {
    vec![
        optional(choice(
            "task",
            "The kind of task; it follows from the data set, and one that is named must be that one.",
            "classification",
            &[
                "classification",
                "regression",
                "language_modelling",
                "self_supervised",
            ],
        )),
        fraction(
            "label_smoothing",
            "The share of a label's probability that training spreads over all classes; validation is \
             without.",
            Some(0.0),
        ),
        choice(
            "dtype",
            "What the numbers of training are.",
            "float32",
            &["float32", "bfloat16"],
        ),
        optional(whole(
            "validation_examples",
            "Validate on so many examples, a fixed subset; left out, on all.",
            None,
            1,
            None,
        )),
        input_pipeline(
            "Threads that gather batches ahead, and batches kept ready.",
            json!({"threads": 0, "prefetch_batches": 2}),
        ),
        flag(
            "read_loss_every_step",
            "Whether training reads the loss back after every step, as a loop that logs it each time does.",
            false,
        ),
    ]
}

pub(super) fn evaluation_metrics() -> Vec<EvaluationEntry> {
    let entry = |name, unit, minimized, tasks: &[&'static str], summary| EvaluationEntry {
        name,
        unit,
        minimized,
        tasks: tasks.to_vec(),
        summary,
    };
    let labelled = ["classification", "language modelling"];
    vec![
        entry(
            "validation_cross_entropy",
            "nats",
            true,
            &labelled,
            "Mean of −ln of the predicted probability of the label or of the next token.",
        ),
        entry(
            "validation_mean_squared_error",
            "squared_units",
            true,
            &["regression"],
            "Mean over examples and values of the squared difference.",
        ),
        entry(
            "validation_accuracy",
            "ratio",
            false,
            &labelled,
            "Share of predictions that are right.",
        ),
        entry(
            "validation_error_rate",
            "ratio",
            true,
            &labelled,
            "Share of predictions that are wrong.",
        ),
        entry(
            "validation_auc",
            "ratio",
            false,
            &["classification"],
            "With two classes: the probability that an example of the second scores higher than one \
             of the first.",
        ),
        entry(
            "validation_perplexity",
            "tokens",
            true,
            &["language modelling"],
            "Exponential of the cross-entropy of a token.",
        ),
        entry(
            "expected_excess_loss",
            "loss",
            true,
            &["regression"],
            "Of the noisy quadratic alone: ½Σhᵢθᵢ², its expected loss beyond what no parameters change, from \
             the exact recursion of SGD, with momentum or without.",
        ),
    ]
}

pub(super) fn metrics() -> Vec<MetricEntry> {
    let entry = |name, unit, summary| MetricEntry {
        name,
        unit,
        summary,
    };
    vec![
        entry(
            "block_time_per_step",
            "s",
            "Time per step of one block of steps: the raw samples.",
        ),
        entry(
            "time_per_step_median",
            "s",
            "Median over blocks of the time per step.",
        ),
        entry(
            "time_per_step_mean",
            "s",
            "Mean over blocks of the time per step.",
        ),
        entry(
            "synthetic_time_per_step_median",
            "s",
            "Median over blocks of the time per step on one batch staged on the device before.",
        ),
        entry(
            "synthetic_time_per_step_mean",
            "s",
            "Mean over blocks of the time per step on one batch staged on the device before.",
        ),
        entry(
            "energy_per_step",
            "J",
            "Energy of a step, as the host's processors and memory count it, on a GPU as the card does; absent \
             where they do not tell.",
        ),
        entry("warm_up_secs", "s", "Time spent on warm-up, discarded."),
        entry("sampling_secs", "s", "Time spent on sampling."),
        entry(
            "within_run_median_half_width",
            "ratio",
            "Relative half-width of the median's 95% interval within one run; it ends the sampling.",
        ),
        entry(
            "within_run_mean_half_width",
            "ratio",
            "Relative half-width of the mean's 95% interval within one run; it ends the sampling.",
        ),
        entry("blocks", "count", "Blocks that the summary uses."),
        entry("steps_per_block", "count", "Steps in each block."),
        entry(
            "converged",
            "count",
            "1 if the sampling converged, 0 if a cap ended it.",
        ),
        entry(
            "compile_secs",
            "s",
            "The first step, apart: compilation and autotuning.",
        ),
        entry(
            "canary_time_per_step",
            "s",
            "Median time of a fixed reference step just before the sampling.",
        ),
        entry(
            "run_queue_delay_ratio",
            "ratio",
            "Time the threads waited for a processor over wall time × threads.",
        ),
        entry(
            "peak_memory",
            "bytes",
            "Peak of what the memory limit limits; on a CPU the data segments, on a GPU what its pool has reserved.",
        ),
        entry(
            "peak_resident_memory",
            "bytes",
            "Peak resident memory of the training process.",
        ),
        entry(
            "peak_memory_in_use",
            "bytes",
            "Peak of what the training process had allocated and not freed, on a GPU of what tensors held.",
        ),
        entry(
            "driver_memory",
            "bytes",
            "Memory of the GPU that its driver counts for the child, contexts and code included; absent where it \
             does not tell.",
        ),
        entry(
            "dataset_memory",
            "bytes",
            "Allocated by loading the data set; a mapped one takes none.",
        ),
        entry(
            "parameter_memory",
            "bytes",
            "Allocated by the model's parameters.",
        ),
        entry(
            "optimizer_state_memory",
            "bytes",
            "Allocated between steps beyond data set and parameters: the optimizer's state, batches loaded ahead.",
        ),
        entry("first_loss", "loss", "Training loss of the first step."),
        entry("last_loss", "loss", "Training loss of the last step."),
        entry(
            "validation_loss",
            "loss",
            "Validation loss at the end of the run, in the unit of the loss.",
        ),
        entry(
            "evaluation_difference",
            "loss",
            "Absolute difference between two evaluations of the same parameters.",
        ),
        entry(
            "gradient_difference",
            "ratio",
            "Largest difference between a parameter's gradient on a GPU and on the processor, over its norm there.",
        ),
        entry("steps", "count", "Optimizer steps made, warm-up included."),
        entry(
            "training_loss",
            "loss",
            "Mean training loss since the evaluation before.",
        ),
        entry(
            "validation_cross_entropy",
            "nats",
            "Validation cross-entropy.",
        ),
        entry(
            "validation_mean_squared_error",
            "squared_units",
            "Validation mean squared error.",
        ),
        entry(
            "validation_accuracy",
            "ratio",
            "Share of validation predictions that are right.",
        ),
        entry(
            "validation_error_rate",
            "ratio",
            "Share of validation predictions that are wrong.",
        ),
        entry(
            "validation_auc",
            "ratio",
            "Area under the receiver operating characteristic, for two classes.",
        ),
        entry(
            "validation_perplexity",
            "tokens",
            "Exponential of the validation cross-entropy of a token.",
        ),
        entry(
            "steps_to_target",
            "count",
            "Optimizer steps to the target, interpolated between evaluations; absent when not reached.",
        ),
        entry(
            "irreducible_loss",
            "loss",
            "The least loss that any model can have on fresh examples, where the data set's truth is known.",
        ),
        entry(
            "evaluation_share",
            "ratio",
            "Time spent on evaluations over the time of the whole run.",
        ),
        entry(
            "load_time_per_step",
            "s",
            "Time spent on gathering a batch, over all loading threads.",
        ),
        entry(
            "load_wait_per_step",
            "s",
            "Time for which training stood still until its batch was there.",
        ),
        entry(
            "prefetched_time_per_step",
            "s",
            "Time per step with batches gathered ahead by other threads.",
        ),
        entry(
            "unprefetched_time_per_step",
            "s",
            "Time per step with each batch gathered when its step begins.",
        ),
        entry(
            "transfer_time_per_step",
            "s",
            "Time of copying a gathered batch to the device.",
        ),
        entry(
            "synthetic_time_per_step",
            "s",
            "Time per step on one batch staged on the device before.",
        ),
        entry(
            "readback_time_per_step",
            "s",
            "The same with the loss read back after every step.",
        ),
        entry(
            "forward_time_per_step",
            "s",
            "Time of the forward pass and the loss alone.",
        ),
        entry(
            "forward_backward_time_per_step",
            "s",
            "Time of the forward and the backward pass.",
        ),
        entry(
            "matmul_rate",
            "flop/s",
            "Rate of arithmetic of a plain matrix multiplication on the same device.",
        ),
        entry(
            "accumulated_time_per_step",
            "s",
            "Time of an optimizer step on the gradients of several micro-batches.",
        ),
        entry(
            "whole_batch_time_per_step",
            "s",
            "Time of a step on one batch of the same examples.",
        ),
        entry(
            "expected_excess_loss",
            "loss",
            "½Σhᵢθᵢ² of the noisy quadratic, its expectation.",
        ),
        entry(
            "best_evaluation",
            "metric",
            "The best value of the target's metric, or of the loss, over all evaluations.",
        ),
        entry(
            "best_step",
            "count",
            "The optimizer step of the best value.",
        ),
        entry(
            "chance_loss",
            "loss",
            "Validation loss of the best predictor that does not look at its input.",
        ),
        entry(
            "gain_over_chance",
            "loss",
            "Chance's loss of a validation example less the model's, mean over the examples, at the best evaluation.",
        ),
        entry(
            "gain_over_chance_error",
            "loss",
            "Standard error of that mean, from the differences of single examples.",
        ),
        entry(
            "best_evaluation_error",
            "loss",
            "Standard error of the validation loss of the best evaluation, from the losses of single examples.",
        ),
        entry(
            "best_accuracy",
            "ratio",
            "Share of predictions that are right at the best evaluation.",
        ),
        entry(
            "late_gain",
            "ratio",
            "How much of what the best evaluation gained over the first came in the last quarter of the steps.",
        ),
        entry(
            "divergent_learning_rate",
            "ratio",
            "The learning rate at which a range test diverged; absent when it never did.",
        ),
        entry(
            "gradient_square",
            "loss_squared",
            "|G|², the squared norm of the gradient over all examples, estimated at a step.",
        ),
        entry(
            "gradient_variance",
            "loss_squared",
            "tr Σ, the trace of the covariance of one example's gradient, estimated at a step.",
        ),
        entry(
            "noise_scale",
            "count",
            "The simple noise scale tr Σ/|G|² along the run, in examples.",
        ),
    ]
}

pub(super) fn probe_kinds() -> Vec<ProbeKindEntry> {
    vec![
        ProbeKindEntry {
            name: "smoke",
            question: "Does the pipeline run?",
            summary: "A few training steps and the evaluation twice: the loss must be finite and \
                      the evaluations equal.",
            exclusive: false,
        },
        ProbeKindEntry {
            name: "memory",
            question: "How much memory does training take at one batch size?",
            summary: "A few training steps and one evaluation, with the peak of memory measured.",
            exclusive: true,
        },
        ProbeKindEntry {
            name: "step_time",
            question: "How long does a step take at one batch size?",
            summary: "Training steps timed in blocks after a warm-up, until the median and the \
                      mean are known well enough.",
            exclusive: true,
        },
        ProbeKindEntry {
            name: "confirmation",
            question: "Does a batch size survive a longer run?",
            summary: "Training steps and one evaluation under the memory limit, before a batch size \
                      is recommended.",
            exclusive: true,
        },
        ProbeKindEntry {
            name: "input_pipeline",
            question: "What does a step's time go into?",
            summary: "Steps with and without loading, readback, backward pass and update, timed in turn in \
                      one process.",
            exclusive: true,
        },
        ProbeKindEntry {
            name: "gradient_accumulation",
            question: "What does gradient accumulation bring?",
            summary: "Optimizer steps on the gradients of several micro-batches, timed in turn with plain \
                      steps on one of them and on all their examples at once.",
            exclusive: true,
        },
        ProbeKindEntry {
            name: "training",
            question: "How many steps does training take to its target?",
            summary: "Training of one point of hyperparameters to a target, a cap or divergence, evaluated \
                      ever more rarely; the curve is kept.",
            exclusive: false,
        },
        ProbeKindEntry {
            name: "learning_rate_range",
            question: "From which learning rate does training diverge?",
            summary: "The learning rate rises by the same factor in every step until the smoothed loss is a \
                      multiple of its least value.",
            exclusive: false,
        },
        ProbeKindEntry {
            name: "noise_scale",
            question: "How noisy is the gradient of a batch?",
            summary: "Along a training run, the squared norms of gradients of small batches and of their mean.",
            exclusive: false,
        },
    ]
}

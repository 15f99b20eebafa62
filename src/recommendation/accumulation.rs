//! What gradient accumulation brings, and so whether to use it.

use serde_json::json;

use super::throughput::time;
use super::{Advice, Basis, Confidence, Grade, Topic, references};
use crate::analysis::{AccumulationPoint, Analysis, Caveat, Evidence};
use crate::probe::ProbeKind;
use crate::study::StudyDefinition;

/// A gain below this is not worth the steps that a larger batch costs. Chosen: the same as for a doubling of
/// the batch.
const WORTH_IT: f64 = 1.10;

pub fn advise(
    _definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let point = analysis.gradient_accumulation.last()?;
    let ratio = &point.throughput_ratio;
    let pays = ratio.ci_lower.map(|lower| lower >= WORTH_IT);
    let does_not = ratio.ci_upper.map(|upper| upper < WORTH_IT);
    let (grade, because) = match (pays, does_not) {
        (None, _) | (_, None) => (Grade::Low, "one process has no interval"),
        (Some(false), Some(false)) => (
            Grade::Moderate,
            "the ratio is not told apart from a gain of 10%",
        ),
        _ => (Grade::High, "the ratio is told apart from a gain of 10%"),
    };
    Some(Advice {
        topic: Topic::GradientAccumulation,
        value: json!({
            "gradient_accumulation": pays.unwrap_or(false),
            "micro_batch_size": point.micro_batch_size,
            "micro_batches": point.micro_batches,
            "throughput_ratio": ratio,
            "expected_ratio": point.expected_ratio,
            "whole_batch_ratio": point.whole_batch_ratio,
            "time_per_step_secs": point.time_per_step_secs.value,
        }),
        summary: summary(point, pays),
        basis: Basis::Measured,
        confidence: Confidence {
            grade,
            because: because.into(),
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| {
            probe.kind() == ProbeKind::GradientAccumulation
        }),
        caveats: vec![remark(point)],
        playbook: "determining-the-feasible-batch-sizes-and-estimating-training-throughput".into(),
    })
}

/// `W_GRAD_ACCUM`, with the measured ratio.
fn remark(point: &AccumulationPoint) -> Caveat {
    let ratio = &point.throughput_ratio;
    let interval = match (ratio.ci_lower, ratio.ci_upper) {
        (Some(lower), Some(upper)) => format!(" ({lower:.2} to {upper:.2})"),
        _ => String::new(),
    };
    Caveat {
        code: "W_GRAD_ACCUM".into(),
        detail: format!(
            "accumulating {} micro-batches of {} gives {:.2}{interval} times the examples per second of plain steps at {}: it simulates a larger batch, it does not run faster than the optimizer steps that it saves",
            point.micro_batches, point.micro_batch_size, ratio.value, point.micro_batch_size
        ),
    }
}

/// What advice about a batch size has to say of accumulation.
pub fn remarks(analysis: &Analysis) -> Option<Caveat> {
    analysis.gradient_accumulation.last().map(remark)
}

fn summary(point: &AccumulationPoint, pays: Option<bool>) -> String {
    let (k, b) = (point.micro_batches, point.micro_batch_size);
    let mut text = if pays == Some(true) {
        format!(
            "Accumulating {k} micro-batches of {b} gives {:.2} times the examples per second of plain steps at {b}: the optimizer's step is a large part of them, and {} of {k} are saved.",
            point.throughput_ratio.value,
            k - 1
        )
    } else {
        format!(
            "Gradient accumulation brings no throughput worth having: {k} micro-batches of {b} in one optimizer step give {:.2} times the examples per second of plain steps at {b} ({:.2} is what saving {} optimizer steps can bring).",
            point.throughput_ratio.value,
            point.expected_ratio,
            k - 1
        )
    };
    match &point.whole_batch_ratio {
        Some(whole) if whole.value < 1.0 => text.push_str(&format!(
            " One batch of all {} fits and is {:.2} times as fast: use that.",
            point.batch_size,
            1.0 / whole.value
        )),
        Some(whole) => text.push_str(&format!(
            " One batch of all {} fits, and accumulating is {:.2} times as fast as that.",
            point.batch_size, whole.value
        )),
        None => text.push_str(" Use it only where a batch larger than fits is needed."),
    }
    text.push_str(&format!(
        " An accumulated step takes {}.",
        time(point.time_per_step_secs.value)
    ));
    text
}

//! The batch size to start with: where training to a target was measured, the one that minimises training
//! time or resource consumption ([`training_time`]); when only memory and throughput are known: the largest feasible one
//! whose last doubling still gained more than 10%. A rule of thumb of the field: it assumes that
//! the batch is below the critical batch size, which nobody has measured here.

use serde_json::json;

use super::throughput::{rate, time};
use super::{
    Advice, Basis, Confidence, Grade, Topic, accumulation, bells, bottleneck, is_contended,
    probability, references, sizes, training_time,
};
use crate::analysis::batch_norm::confounded;
use crate::analysis::{Analysis, Caveat, Evidence, StartChoice, ThroughputPoint};
use crate::probe::ProbeKind;
use crate::study::{BatchSize, StudyDefinition};

/// A choice at least this probable is graded high.
const HIGH: f64 = 0.9;
/// And at least this probable moderate.
const MODERATE: f64 = 0.6;

pub fn advise(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    if let Some(measured) = training_time::batch_size(definition, evidence, analysis) {
        return Some(measured);
    }
    let throughput = analysis.throughput.as_ref()?;
    let start = analysis.start.as_ref()?;
    let feasibility = analysis.feasibility.as_ref()?;
    let size = start.batch_size;
    let point = throughput
        .points
        .iter()
        .find(|point| point.batch_size == size)?;
    let is_confirmed = feasibility.confirmed.contains(&size);
    let mut caveats = vec![Caveat {
        code: "W_BELOW_CRITICAL_ASSUMED".into(),
        detail: "assumes that it is below the critical batch size, which was not measured: above it, a larger batch no longer saves steps in proportion".into(),
    }];
    if !is_confirmed {
        caveats.push(Caveat {
            code: "W_NOT_CONFIRMED".into(),
            detail: "no run of 200 steps has shown yet that it never runs out of memory".into(),
        });
    }
    let timed: Vec<BatchSize> = throughput.points.iter().map(|it| it.batch_size).collect();
    caveats.extend(confounded(definition, &timed));
    caveats.extend(throughput.caveats.iter().cloned());
    caveats.extend(bottleneck::remarks(analysis));
    caveats.extend(accumulation::remarks(analysis));
    caveats.extend(bells::remark(definition));
    let first = analysis
        .bottleneck
        .as_ref()
        .and_then(|bottleneck| bottleneck::first_to_fix(bottleneck, analysis));
    let (grade, because) = grade(start, is_confirmed, is_contended(&throughput.caveats));
    Some(Advice {
        topic: Topic::BatchSize,
        value: json!({
            "batch_size": size,
            "examples_per_sec": point.examples_per_sec.value,
            "time_per_step_secs": point.time_per_step_secs.value,
            "mean_time_per_step_secs": point.mean_time_per_step_secs,
            "confirmed": is_confirmed,
            "fix_bottleneck_first": first.is_some(),
            "dropped": start.dropped,
        }),
        summary: match first {
            Some(finding) => format!(
                "Mend the bottleneck first: {}. {}",
                finding.fix,
                summary(point, start, analysis)
            ),
            None => summary(point, start, analysis),
        },
        basis: Basis::RuleOfThumb,
        confidence: Confidence {
            grade,
            because,
            p_best: start.p_best,
            p_within_5pct: start.p_within_5pct,
            near_ties: start.near_ties.clone(),
        },
        evidence: references(evidence, |probe| match probe.kind() {
            ProbeKind::StepTime => true,
            ProbeKind::Confirmation | ProbeKind::Memory => probe.batch_size() == size,
            ProbeKind::InputPipeline => analysis.bottleneck.is_some(),
            ProbeKind::Smoke | ProbeKind::GradientAccumulation => false,
            ProbeKind::Training | ProbeKind::LearningRateRange | ProbeKind::NoiseScale => false,
        }),
        caveats,
        playbook: "choosing-the-batch-size-to-minimize-training-time".into(),
    })
}

fn grade(start: &StartChoice, is_confirmed: bool, is_contended: bool) -> (Grade, String) {
    let Some(p_best) = start.p_best else {
        return (Grade::Low, "one round has no interval".into());
    };
    if is_contended {
        return (
            Grade::Low,
            "the host was not steady while times were taken".into(),
        );
    }
    if !is_confirmed {
        return (Grade::Low, "no longer run has confirmed it yet".into());
    }
    let grade = if p_best >= HIGH {
        Grade::High
    } else if p_best >= MODERATE {
        Grade::Moderate
    } else {
        Grade::Low
    };
    (
        grade,
        format!(
            "the rule chooses it with a probability of {}, given how well the times are known",
            probability(p_best)
        ),
    )
}

fn summary(point: &ThroughputPoint, start: &StartChoice, analysis: &Analysis) -> String {
    let size = start.batch_size;
    let mut text = format!(
        "Start with batch size {size}: {} examples/s at {} a step.",
        rate(point.examples_per_sec.value),
        time(point.time_per_step_secs.value)
    );
    let gain_to = |to: BatchSize| {
        analysis
            .saturation
            .as_ref()?
            .gains
            .iter()
            .find(|gain| gain.to == to)
    };
    if let Some(gain) = gain_to(size) {
        text.push_str(&format!(
            " Going there from {} still raises throughput {:.2}-fold a doubling;",
            gain.from, gain.gain.value
        ));
    }
    match start.dropped.first().and_then(|next| gain_to(*next)) {
        Some(gain) => text.push_str(&format!(
            " {} would bring {:.2}-fold, not surely more than 10%, so larger batches only use more memory.",
            gain.to, gain.gain.value
        )),
        None => text.push_str(" it is the largest that fits and was timed."),
    }
    if !start.near_ties.is_empty() {
        text.push_str(&format!(
            " {} cannot be told apart from it by this rule.",
            sizes(&start.near_ties)
        ));
    }
    text
}

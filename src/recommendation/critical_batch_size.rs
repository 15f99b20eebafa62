//! Up to where larger batches save steps in proportion, and from where they save none.

use serde_json::json;

use super::training_time::count;
use super::{Advice, Basis, Confidence, Grade, Topic, references};
use crate::analysis::batch_norm::confounded;
use crate::analysis::steps::{NotIdentified, Regime, TargetSource};
use crate::analysis::{Analysis, Evidence, StepsAnalysis};
use crate::probe::{ProbeKind, Task};
use crate::study::{BatchSize, StudyDefinition};

/// An interval whose ends are at most this factor apart is graded high.
const NARROW: f64 = 2.0;
/// And at most this, moderate.
const WIDE: f64 = 4.0;

pub fn advise(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let steps = analysis.steps.as_ref()?;
    let limits = &steps.limits;
    let (grade, because) = grade(steps);
    let critical = limits.critical_batch_size;
    let mut caveats = steps.caveats.clone();
    let trained: Vec<BatchSize> = steps.points.iter().map(|it| it.batch_size).collect();
    caveats.extend(confounded(definition, &trained));
    Some(Advice {
        topic: Topic::CriticalBatchSize,
        value: json!({
            "critical_batch_size": critical.map(|it| it.value),
            "ci_lower": critical.and_then(|it| it.ci_lower),
            "ci_upper": critical.and_then(|it| it.ci_upper),
            "perfect_scaling_up_to": limits.perfect_scaling_up_to,
            "no_gain_beyond": limits.no_gain_beyond,
            "why": limits.why,
            "at_least": limits.at_least,
            "at_most": limits.at_most,
            "target": steps.target,
            "target_source": steps.target_source,
            "gradient_noise_scale": steps.gradient_noise_scale,
            "curve": steps.curve,
            "regimes": steps.regimes,
        }),
        summary: summary(steps),
        basis: Basis::Measured,
        confidence: Confidence {
            grade,
            because,
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| match probe.kind() {
            ProbeKind::Training => {
                matches!(&probe.spec.task, Task::Training(run) if run.target.is_some() && !run.compares_with_chance)
            }
            ProbeKind::NoiseScale | ProbeKind::LearningRateRange => true,
            _ => false,
        }),
        caveats,
        playbook: "choosing-the-batch-size-to-minimize-training-time".into(),
    })
}

fn grade(steps: &StepsAnalysis) -> (Grade, String) {
    let limits = &steps.limits;
    let doubtful = steps
        .caveats
        .iter()
        .find(|caveat| matches!(caveat.code.as_str(), "W_UNDERTUNED" | "W_NONMONOTONE"));
    if let Some(caveat) = doubtful {
        return (Grade::Low, caveat.detail.clone());
    }
    match (limits.critical_batch_size, limits.why) {
        (Some(critical), _) => {
            let (Some(lower), Some(upper)) = (critical.ci_lower, critical.ci_upper) else {
                return (Grade::Low, "it has no interval".into());
            };
            let ratio = upper / lower;
            let grade = if ratio <= NARROW {
                Grade::High
            } else if ratio <= WIDE {
                Grade::Moderate
            } else {
                Grade::Low
            };
            (
                grade,
                format!("the ends of its 95% interval are a factor of {ratio:.1} apart"),
            )
        }
        (None, Some(NotIdentified::NotIdentified)) | (None, None) => (
            Grade::Low,
            "fewer than three batch sizes have reached the target".into(),
        ),
        (None, Some(_)) => (
            Grade::Moderate,
            "the range that was trained shows one side of it only".into(),
        ),
    }
}

fn summary(steps: &StepsAnalysis) -> String {
    let limits = &steps.limits;
    let round = |value: f64| count(value);
    let mut text = match (&limits.critical_batch_size, limits.why) {
        (Some(critical), _) => format!(
            "The critical batch size is {}{}: there training takes about twice the fewest steps and twice the fewest examples.",
            round(critical.value),
            match (critical.ci_lower, critical.ci_upper) {
                (Some(lower), Some(upper)) =>
                    format!(" (95%: {} to {})", round(lower), round(upper)),
                _ => String::new(),
            }
        ),
        (None, Some(NotIdentified::BeyondTheTestedRange)) => format!(
            "Doubling the batch still halves the steps at the largest batch size trained: the critical batch size lies beyond it{}.",
            limits
                .at_least
                .map_or(String::new(), |bound| format!(", at {} at least", round(bound)))
        ),
        (None, Some(NotIdentified::BelowTheTestedRange)) => format!(
            "Doubling the batch saves no steps even at the smallest batch size trained: the critical batch size lies below it{}.",
            limits
                .at_most
                .map_or(String::new(), |bound| format!(", at {} at most", round(bound)))
        ),
        (None, _) => {
            "The critical batch size is not identified: fewer than three batch sizes have reached the target.".into()
        }
    };
    if let (Some(perfect), Some(none)) = (&limits.perfect_scaling_up_to, &limits.no_gain_beyond) {
        text.push_str(&format!(
            " Up to {} doubling the batch nearly halves the steps; beyond {} it hardly saves any.",
            round(perfect.value),
            round(none.value)
        ));
    }
    let in_doubt: Vec<BatchSize> = steps
        .regimes
        .iter()
        .filter(|it| it.regime == Regime::Undetermined)
        .map(|it| it.batch_size)
        .collect();
    if !in_doubt.is_empty() && limits.critical_batch_size.is_some() {
        text.push_str(&format!(
            " At {} it is not sure which of these holds.",
            super::sizes(&in_doubt)
        ));
    }
    if let Some(target) = &steps.target {
        let from = match steps.target_source {
            Some(TargetSource::Pilot) => ", which a pilot set",
            _ => "",
        };
        text.push_str(&format!(
            " All this is for a {} of {}{from}.",
            target.metric.as_str().replace('_', " "),
            round_target(target.value)
        ));
    }
    if let Some(scale) = steps.gradient_noise_scale {
        text.push_str(&format!(
            " The gradient noise scale at batch size {} is {}.",
            steps.base,
            round(scale)
        ));
    }
    text
}

fn round_target(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

//! Over how many examples batch normalization should take its statistics.

use serde_json::{Value, json};

use super::{Advice, Basis, Confidence, Grade, Topic, references, sizes, three_figures};
use crate::analysis::batch_norm::{NormalisedOver, SERIES};
use crate::analysis::quality::Verdict;
use crate::analysis::{Analysis, BatchNormAnalysis, Evidence};
use crate::study::StudyDefinition;

/// The advice.
pub fn advise(
    _definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let it = analysis.batch_norm.as_ref()?;
    let is_measured = it.probe.as_ref().is_some_and(|probe| probe.best.is_some());
    let (grade, because) = grade(it, is_measured);
    Some(Advice {
        topic: Topic::BatchNorm,
        value: json!({
            "batch_norm": normalization(it),
            "normalised_over": it.normalised_over,
            "ghost_batch_size": it.ghost_batch_size,
            "by_rule": it.by_rule,
            "batch_sizes": it.batch_sizes,
            "least_steps": it.least_steps,
            "steps": it.steps,
            "probe": it.probe,
        }),
        summary: summary(it),
        basis: if is_measured {
            Basis::Measured
        } else {
            Basis::RuleOfThumb
        },
        confidence: Confidence {
            grade,
            because,
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| probe.series() == SERIES),
        caveats: it.caveats.clone(),
        playbook: "what-are-the-best-practices-for-batch-normalization".into(),
    })
}

/// The normalization as a study names it; null where there is nothing to choose, or no ghost batch fits.
fn normalization(it: &BatchNormAnalysis) -> Value {
    match (it.normalised_over, it.ghost_batch_size) {
        (NormalisedOver::OneExample, _) | (_, None) => Value::Null,
        (_, Some(size)) => json!({"kind": "ghost_batch", "batch_size": size}),
    }
}

fn grade(it: &BatchNormAnalysis, is_measured: bool) -> (Grade, String) {
    if it.normalised_over == NormalisedOver::OneExample {
        return (
            Grade::High,
            "no layer of the model takes statistics over the batch".into(),
        );
    }
    if it.ghost_batch_size.is_none() {
        return (
            Grade::Low,
            "no ghost batch fits the batch sizes compared".into(),
        );
    }
    if is_measured {
        (
            Grade::Moderate,
            "trained with at one batch size, with five seeds each".into(),
        )
    } else {
        (
            Grade::Moderate,
            "a rule that others found to work; nothing was trained here".into(),
        )
    }
}

fn summary(it: &BatchNormAnalysis) -> String {
    if it.normalised_over == NormalisedOver::OneExample {
        return "There is nothing to choose: the model normalises no activations over the batch, so what it computes does not change with the batch size.".into();
    }
    let mut text = match it.ghost_batch_size {
        Some(size) => format!(
            "Prefer layer or group normalization, which the batch size does not touch; else take ghost batches of {size} examples, and keep them while the batch size varies{}.",
            if it.by_rule == Some(size) {
                format!(" (they divide {})", sizes(&it.batch_sizes))
            } else {
                String::new()
            }
        ),
        None => "Prefer layer or group normalization, which the batch size does not touch: no ghost batch of at least 16 examples fits the batch sizes compared.".into(),
    };
    let Some(probe) = &it.probe else { return text };
    if let Some(best) = probe.best {
        text.push_str(&format!(
            " Trained for {} steps at batch size {}, ghost batches of {best} end with the least loss",
            probe.steps, probe.batch_size
        ));
        let of_best = probe.points.iter().find(|it| it.ghost_batch_size == best);
        if let Some(loss) = of_best.and_then(|point| point.loss) {
            text.push_str(&format!(", {}", three_figures(loss.value)));
        }
        let ties: Vec<String> = probe.near_ties.iter().map(u64::to_string).collect();
        text.push_str(&match ties.as_slice() {
            [] => ".".to_owned(),
            _ => format!("; {} cannot be told apart from it.", ties.join(", ")),
        });
        let worse: Vec<String> = probe
            .points
            .iter()
            .filter(|point| point.verdict == Some(Verdict::Different))
            .map(|point| point.ghost_batch_size.to_string())
            .collect();
        if !worse.is_empty() {
            text.push_str(&format!(" {} end with a higher one.", worse.join(", ")));
        }
    }
    text
}

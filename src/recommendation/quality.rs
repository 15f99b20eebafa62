//! Whether training ends with the same quality at every batch size.

use serde_json::json;

use super::{Advice, Basis, Confidence, Grade, Topic, references, sizes, three_figures};
use crate::analysis::quality::Verdict;
use crate::analysis::{Analysis, Evidence, QualityAnalysis};
use crate::probe::{ProbeKind, Task};
use crate::study::{BatchSize, StudyDefinition};

pub fn advise(
    _definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let quality = analysis.quality.as_ref()?;
    let (grade, because) = grade(quality);
    Some(Advice {
        topic: Topic::QualityAcrossBatchSizes,
        value: json!({
            "quality_across_batch_sizes": quality.verdict,
            "metric": quality.metric,
            "margin": quality.margin,
            "tuned": quality.tuned,
            "by_batch_size": quality.points.iter().map(|point| json!({
                "batch_size": point.batch_size,
                "loss": point.loss,
                "seeds": point.seeds,
                "steps": point.steps,
                "optimizer": point.optimizer,
                "regularisation": point.regularisation,
            })).collect::<Vec<_>>(),
            "pairs": quality.pairs,
        }),
        summary: summary(quality),
        basis: Basis::Measured,
        confidence: Confidence {
            grade,
            because,
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| {
            probe.kind() == ProbeKind::Training
                && matches!(&probe.spec.task, Task::Training(run) if run.target.is_none() && !run.compares_with_chance)
        }),
        caveats: quality.caveats.clone(),
        playbook:
            "why-shouldnt-the-batch-size-be-tuned-to-directly-improve-validation-set-performance"
                .into(),
    })
}

fn grade(quality: &QualityAnalysis) -> (Grade, String) {
    let doubt = quality.caveats.iter().find(|caveat| {
        matches!(
            caveat.code.as_str(),
            "W_UNTUNED:regularisation" | "W_UNDERTUNED" | "W_TOO_FEW_BATCH_SIZES" | "W_DIVERGED"
        )
    });
    if let Some(caveat) = doubt {
        return (Grade::Low, caveat.detail.clone());
    }
    match quality.verdict {
        None => (Grade::Low, "not every batch size has been tuned yet".into()),
        Some(Verdict::Inconclusive) => (
            Grade::Low,
            "the intervals are too wide for the margin".into(),
        ),
        Some(Verdict::Equivalent | Verdict::Different) if !quality.caveats.is_empty() => (
            Grade::Moderate,
            "the search may not have found the least loss everywhere".into(),
        ),
        Some(Verdict::Equivalent) => (Grade::High, "every interval lies within the margin".into()),
        Some(Verdict::Different) => (
            Grade::Moderate,
            "an interval lies outside the margin".into(),
        ),
    }
}

fn summary(quality: &QualityAnalysis) -> String {
    let compared: Vec<BatchSize> = quality
        .points
        .iter()
        .filter(|point| point.loss.is_some())
        .map(|point| point.batch_size)
        .collect();
    let margin = quality.margin.map_or_else(
        || "a margin that is not known yet".to_owned(),
        |margin| format!("a margin of {}", three_figures(margin)),
    );
    let mut text = match quality.verdict {
        Some(Verdict::Equivalent) => format!(
            "Tuned at each, training ends with the same validation loss at batch sizes {}, to within {margin}: choose the batch size for speed.",
            sizes(&compared)
        ),
        Some(Verdict::Different) => format!(
            "Training does not end with the same validation loss at batch sizes {}, by {margin}: the worse one is not tuned well enough yet.",
            sizes(&compared)
        ),
        Some(Verdict::Inconclusive) => format!(
            "Whether training ends with the same validation loss at batch sizes {} is not settled: the seeds scatter too much for {margin}.",
            sizes(&compared)
        ),
        None => "Whether training ends with the same validation loss at every batch size cannot be said.".into(),
    };
    for point in &quality.points {
        if let Some(loss) = &point.loss {
            text.push_str(&format!(
                " {}: {}{}, mean of {} seeds of {} steps.",
                point.batch_size,
                three_figures(loss.value),
                match (loss.ci_lower, loss.ci_upper) {
                    (Some(lower), Some(upper)) =>
                        format!(" ({} to {})", three_figures(lower), three_figures(upper)),
                    _ => String::new(),
                },
                point.seeds,
                point.steps
            ));
        }
    }
    text
}

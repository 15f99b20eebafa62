//! What fits: one look after another, each chosen from all before it.

use super::specs::{self as tasks, Specs};
use super::{PlannedProbe, Wish};
use crate::analysis::decision;
use crate::analysis::memory::{MemoryPrediction, peaks, predict};
use crate::analysis::memory_search::{LimitedBy, SearchStep, Seen};
use crate::analysis::{Analysis, Evidence};
use crate::probe::{InfeasibleReason, ProbeKind};
use crate::study::{BatchSize, Bytes, EndedBecause, StudyDefinition};

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    _analysis: &Analysis,
) -> Wish {
    let Some(search) = decision::search(definition) else {
        return Wish::Nothing;
    };
    let seen = decision::sights(evidence);
    match search.next(&seen) {
        SearchStep::Probe(next) => {
            let prediction = predict(&peaks(evidence), next);
            let why = why(next, search.min, search.usable_bytes, prediction);
            Wish::Probes(vec![PlannedProbe {
                prediction,
                ..specs.probe(tasks::MEMORY, next, 0, why)
            }])
        }
        SearchStep::Done(end) if end.largest.is_some() => Wish::Nothing,
        SearchStep::Done(end) => {
            let only_failed = seen.iter().all(|(_, it)| matches!(it, Seen::Nothing));
            let unsupported = evidence
                .of_kind(ProbeKind::Memory)
                .find(|probe| probe.infeasible == Some(InfeasibleReason::RunnerUnsupported));
            if let Some(probe) = unsupported {
                return Wish::End(
                    EndedBecause::ProbesFailed,
                    format!(
                        "the runner does not measure memory, on which everything else rests: {}",
                        probe.detail.as_deref().unwrap_or("it gave no reason")
                    ),
                );
            }
            if only_failed {
                return Wish::End(
                    EndedBecause::ProbesFailed,
                    "every memory probe failed after every attempt; their logs tell more".into(),
                );
            }
            if end.limited_by == LimitedBy::Time {
                return Wish::End(
                    EndedBecause::NothingFeasible,
                    format!(
                        "a probe of the smallest batch size, {}, did not come to an end within its time",
                        search.min
                    ),
                );
            }
            let budget = definition
                .device
                .memory_budget_bytes
                .map_or_else(String::new, |budget| format!(" {budget}"));
            Wish::End(
                EndedBecause::NothingFeasible,
                format!(
                    "not even batch size {} fits the memory budget of{budget}; the recommendation says what would",
                    search.min
                ),
            )
        }
    }
}

fn why(
    next: BatchSize,
    min: BatchSize,
    usable_bytes: f64,
    prediction: Option<MemoryPrediction>,
) -> String {
    if next == min {
        return format!(
            "the smallest batch size, {min}, shows what the process needs however small the batch"
        );
    }
    match prediction {
        Some(prediction) => format!(
            "memory is expected to reach {} ({} to {}) at batch size {next}; {} may be used",
            prediction.peak_bytes,
            prediction.ci_lower,
            prediction.ci_upper,
            Bytes(usable_bytes.max(0.0) as u64)
        ),
        None => format!(
            "memory has not risen enough yet to be extrapolated; batch size {next} is the next look"
        ),
    }
}

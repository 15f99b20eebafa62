//! What fits: one look after another, each chosen from all before it.

use super::Wish;
use super::specs::{self as tasks, Specs};
use crate::analysis::decision;
use crate::analysis::memory_search::{SearchStep, Seen};
use crate::analysis::{Analysis, Evidence};
use crate::study::{BatchSize, Bytes, EndedBecause, StudyDefinition};

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    let Some(search) = decision::search(definition) else {
        return Wish::Nothing;
    };
    let seen = decision::sights(evidence);
    match search.next(&seen) {
        SearchStep::Probe(next) => Wish::Probes(vec![specs.probe(
            tasks::MEMORY,
            next,
            0,
            why(next, search.min, search.usable_bytes, analysis),
        )]),
        SearchStep::Done(end) if end.largest.is_some() => Wish::Nothing,
        SearchStep::Done(_) => {
            let only_failed = seen.iter().all(|(_, it)| matches!(it, Seen::Nothing));
            if only_failed {
                return Wish::End(
                    EndedBecause::ProbesFailed,
                    "every memory probe failed after every attempt; their logs tell more".into(),
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

fn why(next: BatchSize, min: BatchSize, usable_bytes: f64, analysis: &Analysis) -> String {
    if next == min {
        return format!(
            "the smallest batch size, {min}, shows what the process needs however small the batch"
        );
    }
    let fit = analysis
        .memory
        .as_ref()
        .and_then(|memory| memory.fit.as_ref());
    match fit {
        Some(fit) => format!(
            "memory is expected to reach {} at batch size {next}; {} may be used",
            Bytes(fit.predict(next).max(0.0) as u64),
            Bytes(usable_bytes.max(0.0) as u64)
        ),
        None => format!(
            "memory has not risen enough yet to be extrapolated; batch size {next} is the next look"
        ),
    }
}

//! Does what is recommended survive a longer run: 200 steps and an evaluation under the budget.

use super::specs::{self as tasks, Specs};
use super::{PlannedProbe, Wish, asks};
use crate::analysis::{Analysis, Evidence, memory};
use crate::probe::ProbeKind;
use crate::study::{BatchSize, Question, StudyDefinition};

/// The batch sizes that a recommendation will name as fitting.
pub fn batch_sizes(definition: &StudyDefinition, analysis: &Analysis) -> Vec<BatchSize> {
    let mut sizes = Vec::new();
    if asks(definition, Question::BatchSize) {
        sizes.extend(analysis.start.as_ref().map(|start| start.batch_size));
    }
    if asks(definition, Question::FeasibleBatchSizes) {
        sizes.extend(
            analysis
                .feasibility
                .as_ref()
                .and_then(|feasibility| feasibility.largest_feasible),
        );
    }
    sizes.sort();
    sizes.dedup();
    sizes
}

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    let probes: Vec<_> = batch_sizes(definition, analysis)
        .into_iter()
        .filter(|size| {
            !evidence
                .of_kind(ProbeKind::Confirmation)
                .any(|probe| probe.batch_size() == *size)
        })
        .map(|size| PlannedProbe {
            // Whatever was measured at this very batch size included.
            prediction: memory::predict(&memory::peaks(evidence), size),
            ..specs.probe(
                tasks::CONFIRMATION,
                size,
                0,
                format!("batch size {size} is about to be recommended as fitting: 200 steps and an evaluation must survive"),
            )
        })
        .collect();
    if probes.is_empty() {
        Wish::Nothing
    } else {
        Wish::Probes(probes)
    }
}

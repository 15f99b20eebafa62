//! Does what is recommended survive a longer run: 200 steps and an evaluation under the budget.

use super::specs::{self as tasks, Specs};
use super::{PlannedProbe, Wish, asks};
use crate::analysis::memory_search::LimitedBy;
use crate::analysis::{Analysis, Evidence, memory};
use crate::probe::ProbeKind;
use crate::study::{BatchSize, Question, StudyDefinition};

/// Where memory is the limit and peaks lie further off their line than this, one process tells little: a heap
/// that fragments differs from run to run.
const SCATTERS: f64 = 0.02;
/// Processes that must survive there, each.
const CHILDREN: u32 = 3;

/// The batch sizes that a recommendation will name as fitting.
pub fn batch_sizes(definition: &StudyDefinition, analysis: &Analysis) -> Vec<BatchSize> {
    let mut sizes = Vec::new();
    if asks(definition, Question::BatchSize) {
        sizes.extend(analysis.start.as_ref().map(|start| start.batch_size));
        sizes.extend(
            analysis
                .training_time
                .as_ref()
                .and_then(|decision| decision.measured_batch_size),
        );
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
    let scatter = analysis
        .memory
        .as_ref()
        .and_then(|memory| memory.fit.as_ref())
        .map_or(0.0, |fit| fit.max_relative_residual);
    let is_limit = analysis
        .feasibility
        .as_ref()
        .is_some_and(|feasibility| feasibility.limited_by == LimitedBy::Memory);
    let children = if is_limit && scatter > SCATTERS {
        CHILDREN
    } else {
        1
    };
    let probes: Vec<_> = batch_sizes(definition, analysis)
        .into_iter()
        .filter(|size| {
            !evidence
                .of_kind(ProbeKind::Confirmation)
                .any(|probe| probe.batch_size() == *size)
        })
        .flat_map(|size| (0..children).map(move |replicate| (size, replicate)))
        .map(|(size, replicate)| PlannedProbe {
            // Whatever was measured at this very batch size included.
            prediction: memory::predict(&memory::peaks(evidence), size),
            ..specs.probe(
                tasks::CONFIRMATION,
                size,
                replicate,
                if children > 1 {
                    format!("batch size {size} is about to be recommended as fitting: 200 steps and an evaluation must survive, in {children} processes because their peaks differ by up to {:.0}%", scatter * 100.0)
                } else {
                    format!("batch size {size} is about to be recommended as fitting: 200 steps and an evaluation must survive")
                },
            )
        })
        .collect();
    if probes.is_empty() {
        Wish::Nothing
    } else {
        Wish::Probes(probes)
    }
}

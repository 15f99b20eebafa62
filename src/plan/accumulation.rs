//! What gradient accumulation brings: micro-batches of a quarter of the batch size to start with, against one
//! of them and against the whole.

use super::specs::Specs;
use super::{PlannedProbe, Wish, asks};
use crate::analysis::{Analysis, Evidence};
use crate::probe::{Accumulation, ProbeKind, Task, TurnSampling};
use crate::study::{BatchSize, Question, StudyDefinition};

/// Children: with fewer there is hardly an interval.
pub const REPLICATES: u32 = 3;
/// Micro-batches of an optimizer step.
const MICRO_BATCHES: u64 = 4;

/// The micro-batch size, and whether the whole batch is known to fit.
pub fn micro_batch(definition: &StudyDefinition, analysis: &Analysis) -> Option<(BatchSize, bool)> {
    if !asks(definition, Question::GradientAccumulation) {
        return None;
    }
    let start = analysis.start.as_ref()?.batch_size;
    // Every device takes an equal share of a micro-batch.
    let shared_out = MICRO_BATCHES.saturating_mul(u64::from(definition.device.count));
    Some(if start.0.is_multiple_of(shared_out) {
        (BatchSize(start.0 / MICRO_BATCHES), true)
    } else {
        (start, false)
    })
}

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    let Some((size, with_whole_batch)) = micro_batch(definition, analysis) else {
        return Wish::Nothing;
    };
    let is_there = evidence
        .of_kind(ProbeKind::GradientAccumulation)
        .any(|probe| probe.batch_size() == size);
    if is_there {
        return Wish::Nothing;
    }
    let task = Task::GradientAccumulation(Accumulation {
        micro_batches: MICRO_BATCHES,
        with_whole_batch,
        sampling: TurnSampling::default(),
    });
    let probes: Vec<PlannedProbe> = (0..REPLICATES)
        .map(|replicate| {
            specs.probe(
                task.clone(),
                size,
                replicate,
                format!(
                    "does adding up the gradients of {MICRO_BATCHES} micro-batches of {size} bring throughput? Process {} of {REPLICATES}",
                    replicate + 1
                ),
            )
        })
        .collect();
    Wish::Probes(probes)
}

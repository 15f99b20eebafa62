//! What a step's time goes into: at the smallest batch size, at the one to start with and at the next larger
//! one, in three children each.

use super::specs::{self as tasks, Specs};
use super::{PlannedProbe, Wish, asks};
use crate::analysis::{Analysis, Evidence};
use crate::probe::ProbeKind;
use crate::study::{BatchSize, Question, StudyDefinition};

/// Children of each batch size: with fewer there is hardly an interval.
pub const REPLICATES: u32 = 3;

/// The batch sizes looked at, the one to start with first.
pub fn batch_sizes(definition: &StudyDefinition, analysis: &Analysis) -> Vec<BatchSize> {
    let (Some(start), Some(throughput)) = (&analysis.start, &analysis.throughput) else {
        return Vec::new();
    };
    if !asks(definition, Question::Bottleneck) {
        return Vec::new();
    }
    let timed = || throughput.points.iter().map(|point| point.batch_size);
    let mut sizes = vec![start.batch_size];
    sizes.extend(timed().find(|size| *size > start.batch_size));
    sizes.extend(timed().next().filter(|first| !sizes.contains(first)));
    sizes
}

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    let sizes: Vec<BatchSize> = batch_sizes(definition, analysis)
        .into_iter()
        .filter(|size| {
            !evidence
                .of_kind(ProbeKind::InputPipeline)
                .any(|probe| probe.batch_size() == *size)
        })
        .collect();
    // Round by round, so that a host that gets slower does so for every batch size.
    let probes: Vec<PlannedProbe> = (0..REPLICATES)
        .flat_map(|replicate| sizes.iter().map(move |size| (replicate, *size)))
        .map(|(replicate, size)| {
            specs.probe(
                tasks::input_pipeline(),
                size,
                replicate,
                format!(
                    "what keeps a step at batch size {size} from being shorter: its parts are timed, in process {} of {REPLICATES}",
                    replicate + 1
                ),
            )
        })
        .collect();
    if probes.is_empty() {
        Wish::Nothing
    } else {
        Wish::Probes(probes)
    }
}

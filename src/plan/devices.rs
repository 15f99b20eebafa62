//! How a step scales with the devices that share it: on all of them, on fewer, and on one with its share alone.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::specs::{self as tasks, Specs};
use super::{PlannedProbe, Wish, needs_times};
use crate::analysis::devices::{Cell, SERIES, counts, fits};
use crate::analysis::evidence::first_replicate;
use crate::analysis::{Analysis, Evidence};
use crate::probe::{ProbeKind, ProbeState};
use crate::study::{BatchSize, StudyDefinition};

/// Rounds at which it is asked whether more are needed.
pub const LOOKS: [u32; 2] = [3, 6];

/// Batch sizes at which it is timed, before they are known.
const USUAL_SIZES: u64 = 3;

/// Probes that it usually takes, before the batch sizes are known.
pub fn usual_probes(definition: &StudyDefinition) -> u64 {
    if definition.device.count < 2 || !needs_times(definition) {
        return 0;
    }
    let each = counts(definition.device.count).len() as u64 + 1;
    USUAL_SIZES * each * u64::from(LOOKS[0])
}

/// What is timed: the batch size to start with, the next larger and the smallest, on every number of devices, and on
/// one with a share alone.
fn cells(definition: &StudyDefinition, analysis: &Analysis) -> Vec<Cell> {
    let devices = definition.device.count;
    let (Some(start), Some(throughput), Some(feasibility)) =
        (&analysis.start, &analysis.throughput, &analysis.feasibility)
    else {
        return Vec::new();
    };
    if devices < 2 || !needs_times(definition) {
        return Vec::new();
    }
    let timed = || throughput.points.iter().map(|point| point.batch_size);
    let mut sizes = vec![start.batch_size];
    sizes.extend(timed().find(|size| *size > start.batch_size));
    sizes.extend(timed().next());
    let mut cells = Vec::new();
    for size in sizes {
        let share = BatchSize(size.0 / u64::from(devices));
        cells.extend(counts(devices).into_iter().map(|count| (size, count)));
        cells.push((share, 1));
    }
    cells.sort_unstable();
    cells.dedup();
    cells.retain(|cell| fits(definition, feasibility, *cell));
    cells
}

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    let known = evidence.series(SERIES);
    let round = known
        .of_kind(ProbeKind::StepTime)
        .map(|probe| probe.spec.replicate + 1)
        .max()
        .unwrap_or(0);
    let undetermined = || {
        analysis
            .devices
            .as_ref()
            .is_some_and(|devices| devices.communication.iter().any(|it| it.is_bound.is_none()))
    };
    let reason = match round {
        round if round < LOOKS[0] => "single processes differ, so each is timed in three",
        // Between two looks the rounds of the later one are under way already.
        round if round < LOOKS[1] && (round > LOOKS[0] || undetermined()) => {
            "whether steps are bound by communication is not told apart yet"
        }
        _ => return Wish::Nothing,
    };
    // What the first round timed is timed in all: a table without holes.
    let mut cells = if round == 0 {
        cells(definition, analysis)
    } else {
        let mut cells: Vec<Cell> = known
            .of_kind(ProbeKind::StepTime)
            .map(|probe| (probe.batch_size(), probe.spec.device.count))
            .collect();
        cells.sort_unstable();
        cells.dedup();
        cells
    };
    cells.retain(|cell| {
        !known.of_kind(ProbeKind::StepTime).any(|probe| {
            (probe.batch_size(), probe.spec.device.count) == *cell
                && probe.state == ProbeState::Infeasible
        })
    });
    if cells.is_empty() {
        return Wish::Nothing;
    }
    let mut random = ChaCha8Rng::seed_from_u64(
        definition.seed ^ (u64::from(first_replicate(SERIES) + round) << 32),
    );
    cells.shuffle(&mut random);
    let probes: Vec<PlannedProbe> = cells
        .into_iter()
        .map(|(size, count)| {
            let mut planned = specs.probe(
                tasks::step_time(),
                size,
                first_replicate(SERIES) + round,
                format!(
                    "how a step of batch size {size} scales to {count} {}, round {}: {reason}",
                    if count == 1 { "device" } else { "devices" },
                    round + 1
                ),
            );
            planned.spec.device.count = count;
            planned
        })
        .collect();
    Wish::Probes(probes)
}

//! How fast each batch size is: rounds in which every one is timed once, in an order shuffled anew.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::specs::{self as tasks, Specs};
use super::{PlannedProbe, Wish, asks, needs_times};
use crate::analysis::memory_search::LimitedBy;
use crate::analysis::{Analysis, Evidence, throughput};
use crate::probe::{ProbeKind, ProbeState};
use crate::study::{BatchSize, Question, StudyDefinition};

/// Rounds at which it is asked whether more are needed.
pub const LOOKS: [usize; 3] = [3, 5, 8];
/// Rounds repeated at most because the canary was off.
const MOST_REPEATED: usize = 2;
/// A relative half-width of t above this is too wide.
const WIDE: f64 = 0.05;
/// The rule's choice is settled when it is at least this probable.
const SETTLED: f64 = 0.9;

/// The batch sizes that are timed: the grid up to the largest that fits, and that one itself when
/// it is a limit and not only the end of the range.
pub fn batch_sizes(definition: &StudyDefinition, analysis: &Analysis) -> Vec<BatchSize> {
    let grid = definition.grid_batch_sizes();
    let Some(feasibility) = &analysis.feasibility else {
        return grid;
    };
    let Some(largest) = feasibility.largest_feasible else {
        return Vec::new();
    };
    let mut sizes: Vec<BatchSize> = grid.into_iter().filter(|size| *size <= largest).collect();
    let is_limit = matches!(feasibility.limited_by, LimitedBy::Memory | LimitedBy::Time);
    if is_limit && !sizes.contains(&largest) {
        sizes.push(largest);
    }
    sizes
}

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    if !needs_times(definition) {
        return Wish::Nothing;
    }
    let done = rounds_done(evidence);
    let repeated = throughput::rounds_off(evidence).len().min(MOST_REPEATED);
    let reason = match LOOKS.iter().position(|look| done < look + repeated) {
        None => return Wish::Nothing,
        Some(0) => {
            "times of single processes differ, so every batch size is timed in at least three"
                .to_owned()
        }
        Some(next) => {
            // Between two looks the rounds of the later one are under way already.
            let is_look = LOOKS[..next].iter().any(|look| done == look + repeated);
            match unsettled(definition, analysis) {
                None if is_look => return Wish::Nothing,
                Some(why) => why,
                None => "the rounds of this look are completed".to_owned(),
            }
        }
    };
    let round = done as u32;
    let mut sizes = batch_sizes(definition, analysis);
    // What the budget did not pay for in the first round is not taken up in a later one.
    let in_first_round = |size: &BatchSize| {
        evidence
            .of_kind(ProbeKind::StepTime)
            .any(|probe| probe.spec.replicate == 0 && probe.batch_size() == *size)
    };
    if round > 0 {
        let grid = definition.grid_batch_sizes();
        sizes.retain(|size| in_first_round(size) || !grid.contains(size));
    }
    // What could not be timed once cannot be timed: knowledge is not asked for again.
    sizes.retain(|size| {
        !evidence
            .of_kind(ProbeKind::StepTime)
            .any(|probe| probe.batch_size() == *size && probe.state == ProbeState::Infeasible)
    });
    if sizes.is_empty() {
        return Wish::Nothing;
    }
    let mut random = ChaCha8Rng::seed_from_u64(definition.seed ^ (u64::from(round) << 32));
    sizes.shuffle(&mut random);
    Wish::Probes(
        sizes
            .into_iter()
            .map(|size| {
                specs.probe(
                    tasks::step_time(),
                    size,
                    round,
                    format!("round {} of timing: {reason}", round + 1),
                )
            })
            .collect(),
    )
}

/// Rounds of a first wave that make an interval; of any other wave, itself.
pub fn still_wanted(wave: &[PlannedProbe]) -> usize {
    let is_first_round = wave
        .iter()
        .all(|probe| probe.spec.kind() == ProbeKind::StepTime && probe.spec.replicate == 0);
    if is_first_round { LOOKS[0] } else { 1 }
}

/// Leaves out every other batch size of the very first round, the largest kept: a coarse curve beats none.
/// False when there is nothing to leave out.
pub fn thin_out(wave: &mut Vec<PlannedProbe>) -> bool {
    let mut sizes: Vec<BatchSize> = wave.iter().map(|probe| probe.spec.batch_size).collect();
    sizes.sort();
    let is_first_round = wave.iter().all(|probe| probe.spec.replicate == 0);
    if sizes.len() < 3 || !is_first_round {
        return false;
    }
    let kept: Vec<BatchSize> = sizes.into_iter().rev().step_by(2).collect();
    wave.retain(|probe| kept.contains(&probe.spec.batch_size));
    true
}

/// Rounds planned so far; a round is complete when the next wave is planned.
pub fn rounds_done(evidence: &Evidence) -> usize {
    evidence
        .of_kind(ProbeKind::StepTime)
        .map(|probe| probe.spec.replicate as usize + 1)
        .max()
        .unwrap_or(0)
}

/// What is still open that another round could settle, if anything.
fn unsettled(definition: &StudyDefinition, analysis: &Analysis) -> Option<String> {
    let throughput = analysis.throughput.as_ref()?;
    let widest = throughput
        .points
        .iter()
        .filter_map(|point| {
            let t = point.time_per_step_secs;
            Some((t.ci_upper? / t.value - 1.0, point.batch_size))
        })
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((width, size)) = widest.filter(|(width, _)| *width > WIDE) {
        return Some(format!(
            "the time per step at batch size {size} is known to within {:.0}% only",
            width * 100.0
        ));
    }
    let start = analysis.start.as_ref()?;
    let p_best = start
        .p_best
        .filter(|_| asks(definition, Question::BatchSize))?;
    (p_best < SETTLED).then(|| {
        format!(
            "batch size {} is the choice with a probability of {p_best:.2} only",
            start.batch_size
        )
    })
}

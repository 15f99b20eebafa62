//! What limits the worth of the times, in sentences with the figures.

use std::collections::BTreeSet;

use super::rounds::{MIN_ROUNDS, Table};
use super::{ThroughputAnalysis, ThroughputPoint};
use crate::analysis::{Caveat, Evidence, Feasibility, ProbeRecord};
use crate::probe::{Metric, ProbeKind, ProbeState};
use crate::statistics::blocked::BlockedDesign;
use crate::study::{BatchSize, StudyDefinition};

/// A mean above the median by more than this factor means stalls.
const STALLS: f64 = 1.05;

/// Waiting for a processor for longer than this share of the time is contention.
const CONTENTION: f64 = 0.05;

/// Rounds that differ by more than this carry a remark.
const DRIFT: f64 = 0.05;

/// A child with fewer blocks was not meant to converge: its steps are so long that the replicates
/// alone tell.
const MIN_BLOCKS_TO_CONVERGE: f64 = 40.0;

fn caveat(code: &str, detail: String) -> Caveat {
    Caveat {
        code: code.to_owned(),
        detail,
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn list(sizes: &[BatchSize]) -> String {
    let names: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Rounds that the canary speaks against, and that are used all the same.
pub(super) fn canary(off: &[u32], rounds: usize) -> Option<Caveat> {
    (!off.is_empty()).then(|| {
        caveat(
            "W_CANARY",
            format!(
                "a fixed reference step took over 5% more or less than usual in {} of {rounds} rounds, and too few others remain to leave them out: the host was not steady",
                off.len(),
            ),
        )
    })
}

/// Batch sizes that children tried and that are not in the table.
pub(super) fn left_out(evidence: &Evidence, table: &Table) -> Option<Caveat> {
    let missing: BTreeSet<BatchSize> = evidence
        .of_kind(ProbeKind::StepTime)
        .filter(|probe| matches!(probe.state, ProbeState::Failed | ProbeState::Infeasible))
        .map(ProbeRecord::batch_size)
        .filter(|size| !table.sizes.contains(size))
        .collect();
    let missing: Vec<BatchSize> = missing.into_iter().collect();
    (!missing.is_empty()).then(|| {
        caveat(
            "W_UNRELIABLE",
            format!(
                "no throughput for batch size {}: its probes failed in too many rounds",
                list(&missing)
            ),
        )
    })
}

/// What the design as a whole cannot tell.
pub(super) fn design(design: &BlockedDesign) -> Option<Caveat> {
    if design.residual_sd.is_none() {
        return Some(caveat(
            "W_UNRELIABLE",
            "each batch size was timed by one process only, so no confidence interval can be given"
                .to_owned(),
        ));
    }
    let slowest = design.block_effects.iter().copied().reduce(f64::max)?;
    let fastest = design.block_effects.iter().copied().reduce(f64::min)?;
    let apart = (slowest - fastest).exp() - 1.0;
    (apart > DRIFT).then(|| {
        caveat(
            "W_DRIFT",
            format!(
                "the slowest round took {} longer than the fastest, at every batch size: comparisons between batch sizes are free of that, absolute times are those of the rounds measured",
                percent(apart)
            ),
        )
    })
}

/// Batch sizes some of whose steps take much longer than most.
pub(super) fn stalls(points: &[ThroughputPoint]) -> Option<Caveat> {
    let ratio =
        |point: &ThroughputPoint| point.mean_time_per_step_secs / point.time_per_step_secs.value;
    let stalled: Vec<&ThroughputPoint> = points
        .iter()
        .filter(|point| ratio(point) > STALLS)
        .collect();
    let worst = stalled.iter().map(|point| ratio(point)).reduce(f64::max)?;
    let sizes: Vec<BatchSize> = stalled.iter().map(|point| point.batch_size).collect();
    Some(caveat(
        "W_STALLS",
        format!(
            "some steps take much longer than most: the mean time per step is above the median by up to {} at batch size {}",
            percent(worst - 1.0),
            list(&sizes)
        ),
    ))
}

/// What the children saw.
pub(super) fn children(probes: &[&ProbeRecord]) -> Vec<Caveat> {
    let total = probes.len();
    let mut caveats = Vec::new();
    let unsettled = probes
        .iter()
        .filter(|probe| {
            probe.figure(Metric::Converged) == Some(0.0)
                && probe
                    .figure(Metric::Blocks)
                    .is_none_or(|blocks| blocks >= MIN_BLOCKS_TO_CONVERGE)
        })
        .count();
    if unsettled > 0 {
        caveats.push(caveat(
            "W_UNRELIABLE",
            format!(
                "the time per step did not settle before the sampling limit in {unsettled} of {total} probes"
            ),
        ));
    }
    caveats.extend(contention(probes));
    caveats
}

/// Whether something else wanted the processors, or nobody can tell.
pub(in crate::analysis) fn contention(probes: &[&ProbeRecord]) -> Option<Caveat> {
    let total = probes.len();
    let delays: Vec<f64> = probes
        .iter()
        .filter_map(|probe| probe.figure(Metric::RunQueueDelayRatio))
        .collect();
    let contended: Vec<f64> = delays
        .iter()
        .copied()
        .filter(|delay| *delay > CONTENTION)
        .collect();
    if let Some(worst) = contended.iter().copied().reduce(f64::max) {
        Some(caveat(
            "W_HOST_CONTENDED",
            format!(
                "threads waited for a processor up to {} of the time in {} of {total} probes: something else ran on the host",
                percent(worst),
                contended.len()
            ),
        ))
    } else if delays.is_empty() {
        Some(caveat(
            "W_CONTENTION_UNKNOWN",
            "this kernel does not tell whether threads waited for a processor".to_owned(),
        ))
    } else {
        None
    }
}

/// Batch sizes that fit and were not timed, and rounds that were not made: the budget did not pay for them.
pub(in crate::analysis) fn not_paid_for(
    definition: &StudyDefinition,
    feasibility: Option<&Feasibility>,
    throughput: &ThroughputAnalysis,
) -> Option<Caveat> {
    let largest = feasibility?.largest_feasible?;
    let grid = definition.grid_batch_sizes();
    let fitting: Vec<BatchSize> = grid.into_iter().filter(|size| *size <= largest).collect();
    let is_timed = |size: &&BatchSize| {
        throughput
            .points
            .iter()
            .any(|point| point.batch_size == **size)
    };
    let timed = fitting.iter().filter(is_timed).count();
    let rounds = throughput.rounds;
    if timed == fitting.len() && rounds >= MIN_ROUNDS as u64 {
        return None;
    }
    Some(caveat(
        "W_BUDGET",
        format!(
            "{timed} of {} batch sizes were timed, in {rounds} of at least {MIN_ROUNDS} rounds so far: the curve is coarser or its intervals wider than a larger budget would make them",
            fitting.len()
        ),
    ))
}

//! Time per step and training throughput against batch size.
//!
//! The child process is the unit: two children of the same batch size differ by more than the blocks
//! of one tell. Every round times every batch size once, so ln t is a randomised block design (batch
//! size × round): what slows a whole round is taken out, the scatter that remains is pooled over
//! batch sizes, and ratios between batch sizes come from differences within rounds. The interval of t
//! itself holds for the conditions of the rounds measured.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Caveat, Estimate, Evidence, ProbeRecord};
use crate::probe::Metric;
use crate::statistics::blocked::BlockedDesign;
use crate::statistics::intervals::{mean, median};
use crate::study::{BatchSize, ProbeId};

mod choices;
mod remarks;
mod rounds;

pub(in crate::analysis) use remarks::{contention, not_paid_for};

pub use choices::{best_throughput_probabilities, draw_choices};
use rounds::{Cell, Timings};
pub use rounds::{MIN_ROUNDS, rounds_off};

/// Throughput at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ThroughputPoint {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// t: geometric mean over children of the within-run median, seconds; batch sizes are compared by it.
    pub time_per_step_secs: Estimate,
    /// Geometric mean over children of the within-run mean, seconds; costs are computed from it.
    pub mean_time_per_step_secs: f64,
    /// Energy of a step, joules: mean over children; null unless every one measured it.
    #[serde(default)]
    pub energy_per_step_joules: Option<f64>,
    /// B/t, examples per second.
    pub examples_per_sec: Estimate,
    /// t on one batch staged on the device before: what a step takes without its input pipeline, seconds.
    /// Null where a child did not time it.
    pub synthetic_time_per_step_secs: Option<Estimate>,
    /// Children that measured it.
    pub replicates: u64,
    /// Widest relative half-width of a median's interval within one run; it only stopped the sampling.
    pub within_run_half_width: Option<f64>,
    /// First step of a child, seconds (median over children): compilation and autotuning.
    pub compile_secs: Option<f64>,
    /// The probes behind it.
    pub probe_ids: Vec<ProbeId>,
}

/// What is known about throughput.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ThroughputAnalysis {
    /// By batch size.
    pub points: Vec<ThroughputPoint>,
    /// Complete rounds that the analysis uses.
    pub rounds: u64,
    /// Between-child standard deviation of ln t, pooled over batch sizes; null with one round.
    pub between_child_sd: Option<f64>,
    /// Its degrees of freedom: (batch sizes − 1)(rounds − 1), or rounds − 1 with one batch size.
    pub degrees_of_freedom: u64,
    /// ln t by batch size (rows, as in `points`) and round (columns); what ratios are computed from.
    pub ln_time_per_step: Vec<Vec<f64>>,
    /// The same on synthetic data; null where some child did not time it.
    pub ln_synthetic_time_per_step: Option<Vec<Vec<f64>>>,
    /// Rounds left out because the canary was off and the round was repeated.
    pub rounds_repeated: u64,
    /// Remarks: `W_UNRELIABLE`, `W_STALLS`, `W_CANARY`, `W_DRIFT`, `W_HOST_CONTENDED`,
    /// `W_CONTENTION_UNKNOWN`, `W_BUDGET`.
    pub caveats: Vec<Caveat>,
}

/// Confidence of the interval at each look. Sampling stops at one of three looks (3, 5 and 8 rounds),
/// and it stops where the scatter happens to look small, so each look is a little stricter than the
/// 95% that is published. In `tests/simulations/coverage.rs`, over policies of stopping and worlds of
/// scatter and drift, the published intervals hold the truth in 94.8% to 96.3% of cases. (98%, about
/// what splitting 5% over three looks asks for, covers more than 97%: the looks share their rounds.)
pub const CONFIDENCE_PER_LOOK: f64 = 0.96;

/// Reads the `step_time` probes. `None` before the first round ended.
pub fn analyze(evidence: &Evidence) -> Option<ThroughputAnalysis> {
    let all = Timings::read(evidence);
    let off = rounds_off(evidence);
    let mut caveats = Vec::new();
    let usual = all.without(&off);
    let usual_table = usual.table();
    let (timings, table, rounds_repeated) =
        if !off.is_empty() && usual_table.rounds.len() >= MIN_ROUNDS {
            (usual, usual_table, off.len() as u64)
        } else {
            caveats.extend(remarks::canary(&off, all.rounds()));
            let table = all.table();
            (all, table, 0)
        };
    if table.rounds.is_empty() {
        return None;
    }
    let rows: Vec<Vec<Cell<'_>>> = table
        .sizes
        .iter()
        .map(|size| timings.row(*size, &table.rounds))
        .collect();
    let ln = |value: fn(&Cell<'_>) -> f64| -> Vec<Vec<f64>> {
        rows.iter()
            .map(|row| row.iter().map(|cell| value(cell).ln()).collect())
            .collect()
    };
    let ln_time_per_step = ln(|cell| cell.median);
    let design = BlockedDesign::fit(&ln_time_per_step)?;
    let means = BlockedDesign::fit(&ln(|cell| cell.mean))?.means;
    let half_width = design.half_width(CONFIDENCE_PER_LOOK);
    let ln_synthetic: Option<Vec<Vec<f64>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| Some(cell.synthetic?.ln())).collect())
        .collect();
    let synthetic: Option<Vec<Estimate>> = ln_synthetic.as_deref().and_then(|table| {
        let design = BlockedDesign::fit(table)?;
        let half_width = design.half_width(CONFIDENCE_PER_LOOK);
        let estimate = |ln: &f64| Estimate::of_ln(*ln, half_width);
        Some(design.means.iter().map(estimate).collect())
    });
    let points: Vec<ThroughputPoint> = table
        .sizes
        .iter()
        .zip(&rows)
        .zip(design.means.iter().zip(&means))
        .enumerate()
        .map(
            |(index, ((size, row), (ln_median, ln_mean)))| ThroughputPoint {
                synthetic_time_per_step_secs: synthetic.as_ref().map(|times| times[index]),
                ..point(
                    *size,
                    row,
                    Estimate::of_ln(*ln_median, half_width),
                    *ln_mean,
                )
            },
        )
        .collect();

    caveats.extend(remarks::left_out(evidence, &table));
    caveats.extend(remarks::design(&design));
    caveats.extend(remarks::stalls(&points));
    let used: Vec<&ProbeRecord> = rows.iter().flatten().map(|cell| cell.probe).collect();
    caveats.extend(remarks::children(&used));
    Some(ThroughputAnalysis {
        points,
        rounds: design.blocks,
        between_child_sd: design.residual_sd,
        degrees_of_freedom: design.degrees_of_freedom,
        ln_time_per_step,
        ln_synthetic_time_per_step: ln_synthetic,
        rounds_repeated,
        caveats,
    })
}

fn point(
    batch_size: BatchSize,
    row: &[Cell<'_>],
    time_per_step_secs: Estimate,
    ln_mean: f64,
) -> ThroughputPoint {
    let figures = |metric| -> Vec<f64> {
        row.iter()
            .filter_map(|cell| cell.probe.figure(metric))
            .collect()
    };
    let per_sec = |secs: f64| batch_size.as_f64() / secs;
    ThroughputPoint {
        batch_size,
        time_per_step_secs,
        mean_time_per_step_secs: ln_mean.exp(),
        energy_per_step_joules: {
            let joules = figures(Metric::EnergyPerStep);
            mean(&joules).filter(|_| joules.len() == row.len())
        },
        examples_per_sec: Estimate {
            value: per_sec(time_per_step_secs.value),
            ci_lower: time_per_step_secs.ci_upper.map(per_sec),
            ci_upper: time_per_step_secs.ci_lower.map(per_sec),
        },
        synthetic_time_per_step_secs: None,
        replicates: row.len() as u64,
        within_run_half_width: figures(Metric::WithinRunMedianHalfWidth)
            .into_iter()
            .reduce(f64::max),
        compile_secs: median(&figures(Metric::CompileSecs)),
        probe_ids: row.iter().map(|cell| cell.probe.id).collect(),
    }
}

/// The curve that tells where throughput stops rising: without the input pipeline where every child timed
/// that, because a pipeline that is too slow looks like a device that is busy.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Batch size and throughput, examples per second.
    pub rates: Vec<(BatchSize, f64)>,
    /// The design behind them.
    pub design: BlockedDesign,
    /// Whether it is of synthetic data.
    pub is_synthetic: bool,
}

impl ThroughputAnalysis {
    /// See [`Curve`].
    pub fn curve(&self) -> Option<Curve> {
        let synthetic = self.ln_synthetic_time_per_step.as_ref();
        let design = BlockedDesign::fit(synthetic.unwrap_or(&self.ln_time_per_step))?;
        let rates = self
            .points
            .iter()
            .zip(&design.means)
            .map(|(point, ln_time)| {
                let size = point.batch_size;
                (size, size.as_f64() / ln_time.exp())
            })
            .collect();
        Some(Curve {
            rates,
            design,
            is_synthetic: synthetic.is_some(),
        })
    }
}

#[cfg(test)]
mod tests;

//! Time per step and training throughput against batch size. The child process is the unit:
//! ln t is analysed as a randomised block design (batch size × round).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Caveat, Estimate, Evidence};
use crate::study::{BatchSize, ProbeId};

/// Throughput at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ThroughputPoint {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// t: geometric mean over children of the within-run median, seconds; batch sizes are compared by it.
    pub time_per_step_secs: Estimate,
    /// Geometric mean over children of the within-run mean, seconds; costs are computed from it.
    pub mean_time_per_step_secs: f64,
    /// B/t, examples per second.
    pub examples_per_sec: Estimate,
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
    /// Its degrees of freedom: (batch sizes − 1)(rounds − 1).
    pub degrees_of_freedom: u64,
    /// ln t by batch size (rows, as in `points`) and round (columns); what ratios are computed from.
    pub ln_time_per_step: Vec<Vec<f64>>,
    /// Rounds left out because the canary was off and the round was repeated.
    pub rounds_repeated: u64,
    /// Remarks: `W_UNRELIABLE`, `W_STALLS`, `W_CANARY`, `W_HOST_CONTENDED`.
    pub caveats: Vec<Caveat>,
}

/// Reads the `step_time` probes.
pub fn analyze(_evidence: &Evidence) -> Option<ThroughputAnalysis> {
    None
}

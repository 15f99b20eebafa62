//! Where throughput stops rising: the gain of each doubling, and the family of t(B) fits.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Estimate, ThroughputAnalysis};
use crate::study::BatchSize;

/// What one doubling of the batch size brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DoublingGain {
    /// B.
    pub from: BatchSize,
    /// The next batch size measured; the gain is scaled to a doubling when it is not 2·B.
    pub to: BatchSize,
    /// g(B) = thr(2B)/thr(B), from within-round differences.
    pub gain: Estimate,
    /// What that says.
    pub region: GainRegion,
}

/// What the gain of a doubling says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GainRegion {
    /// Lower end ≥ 1.8: doubling the batch nearly doubles throughput.
    Unsaturated,
    /// The interval lies inside (1.10, 1.8).
    Transition,
    /// Upper end ≤ 1.10, here and at the next doubling.
    Saturated,
    /// The interval is too wide to tell.
    Undetermined,
}

/// t(B) = (α^q + (βB)^q)^{1/q}: q = 1 adds fixed and per-example time, q = 16 takes nearly the larger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimeModel {
    /// α: time of a step however small the batch, seconds.
    pub fixed_secs: f64,
    /// β: time an example adds, seconds.
    pub secs_per_example: f64,
    /// q, the best of 1, 1.5, 2, 4, 16.
    pub sharpness: f64,
    /// α/β: the batch size where both are equal.
    pub knee: f64,
    /// Largest |ln(measured/fitted)|: large when the curve is not of this family.
    pub max_residual: f64,
}

/// Where throughput stops rising.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SaturationAnalysis {
    /// Each doubling, by batch size.
    pub gains: Vec<DoublingGain>,
    /// B_sat: the smallest batch size beyond which two doublings in a row gain ≤ 10%; null if none was reached.
    pub saturation_batch_size: Option<BatchSize>,
    /// The batch size of the highest measured throughput.
    pub peak_batch_size: BatchSize,
    /// Batch sizes after which throughput falls, its interval wholly below 1: reported as measured.
    pub dips: Vec<BatchSize>,
    /// The fit; null when the batch sizes span less than a factor of 8.
    pub time_model: Option<TimeModel>,
}

/// Reads the throughput curve.
pub fn analyze(_throughput: &ThroughputAnalysis) -> Option<SaturationAnalysis> {
    None
}

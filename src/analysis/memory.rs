//! Peak memory against batch size, m(B) = a + b·B, and what follows from it under a budget.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Evidence;
use crate::study::{BatchSize, Bytes, ProbeId, StudyDefinition};

/// Peak memory at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryPoint {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Peak of what the limit limits; null when the probe ran out of memory.
    pub peak_bytes: Option<Bytes>,
    /// Peak resident memory, for comparison; null where the platform does not tell.
    pub peak_resident_bytes: Option<Bytes>,
    /// Whether it ran within the limit.
    pub fits: bool,
    /// The probe that measured it.
    pub probe_id: ProbeId,
}

/// Weighted least squares fit of m(B) = a + b·B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryFit {
    /// a: parameters, optimizer state and the process itself, bytes.
    pub fixed_bytes: f64,
    /// b: activations, bytes per example.
    pub bytes_per_example: f64,
    /// Points that the fit uses.
    pub points: u64,
    /// Largest relative residual over those points.
    pub max_relative_residual: f64,
}

impl MemoryFit {
    /// Predicted peak at a batch size, bytes.
    pub fn predict(&self, batch_size: BatchSize) -> f64 {
        self.fixed_bytes + self.bytes_per_example * batch_size.as_f64()
    }
}

/// What is known about memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryAnalysis {
    /// What was measured, by batch size.
    pub points: Vec<MemoryPoint>,
    /// The fit; null with fewer than two batch sizes measured, or where memory does not grow.
    pub fit: Option<MemoryFit>,
    /// The study's memory budget M.
    pub budget_bytes: Bytes,
    /// Kept free of it: max(5% of M, min(512 MiB, 10% of M)).
    pub reserve_bytes: Bytes,
    /// Largest batch size that ran within the budget, whatever the reserve.
    pub largest_that_ran: Option<BatchSize>,
    /// Smallest batch size that ran out of memory.
    pub smallest_out_of_memory: Option<BatchSize>,
}

/// Reads the memory probes (and what confirmations measured).
pub fn analyze(_definition: &StudyDefinition, _evidence: &Evidence) -> Option<MemoryAnalysis> {
    None
}

//! The states a study passes through, and why it ended.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `queued → running → succeeded | failed | cancelled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StudyState {
    /// Accepted; no probe has been claimed yet.
    Queued,
    /// At least one probe has been claimed.
    Running,
    /// Every question has its answer ("nothing fits" is one).
    Succeeded,
    /// The questions could not be answered; `ended_because` says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl StudyState {
    /// Every state, in the order a study passes through them.
    pub const ALL: [Self; 5] = [
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name used in JSON, in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads [`as_str`](Self::as_str) back.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether nothing more will happen to the study.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why a study ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndedBecause {
    /// Every question has its answer.
    Answered,
    /// The budget ran out; the answers use what was measured until then.
    BudgetExhausted,
    /// Not even the smallest batch size fits the memory budget.
    NothingFeasible,
    /// The training and evaluation pipeline does not run (`E_PIPELINE`).
    PipelineBroken,
    /// Probes failed for reasons of the service's own after all their attempts.
    ProbesFailed,
    /// Somebody cancelled it.
    Cancelled,
}

impl EndedBecause {
    const ALL: [Self; 6] = [
        Self::Answered,
        Self::BudgetExhausted,
        Self::NothingFeasible,
        Self::PipelineBroken,
        Self::ProbesFailed,
        Self::Cancelled,
    ];

    /// The name used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::BudgetExhausted => "budget_exhausted",
            Self::NothingFeasible => "nothing_feasible",
            Self::PipelineBroken => "pipeline_broken",
            Self::ProbesFailed => "probes_failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads [`as_str`](Self::as_str) back.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.as_str() == name)
    }

    /// The state a study that ended for this reason is in.
    pub fn state(self) -> StudyState {
        match self {
            Self::Answered | Self::BudgetExhausted | Self::NothingFeasible => StudyState::Succeeded,
            Self::PipelineBroken | Self::ProbesFailed => StudyState::Failed,
            Self::Cancelled => StudyState::Cancelled,
        }
    }
}

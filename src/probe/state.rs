//! The states a probe passes through.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `queued → running → succeeded | infeasible | failed | cancelled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// Waiting for a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// It did what it was asked.
    Succeeded,
    /// It found that its task cannot be done (out of memory, say): knowledge, never retried.
    Infeasible,
    /// The service's own trouble, after every attempt.
    Failed,
    /// No study wants it any more.
    Cancelled,
}

impl ProbeState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Infeasible,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name used in JSON, in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Infeasible => "infeasible",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads [`as_str`](Self::as_str) back.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether it holds for good, whoever asks: an ended probe of any other state is tried again when it is asked for again.
    pub fn keeps_answer(self) -> bool {
        matches!(self, Self::Succeeded | Self::Infeasible)
    }

    /// Whether nothing more will happen to the probe.
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

//! What a runner says while it runs: one JSON object a line.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::outcome::InfeasibleReason;

/// One line on the events descriptor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first line.
    Started {
        /// Version of the contract that the runner speaks.
        protocol: u32,
        /// Name and version of the runner.
        runner: String,
    },
    /// One measured figure.
    Measurement(Measurement),
    /// How far the probe is, for people.
    Progress {
        /// What it is doing, a few words.
        phase: String,
        /// 0 to 1.
        fraction: f64,
    },
    /// The last line of a probe that did what it was asked.
    Finished {},
    /// The last line of a probe that found its task cannot be done: knowledge, not an error.
    Infeasible {
        /// Why.
        reason: InfeasibleReason,
        /// What happened, for people.
        detail: String,
    },
    /// The last line of a probe that failed.
    Failed {
        /// What happened, for people.
        detail: String,
    },
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Measurement {
    /// Position among the probe's measurements, from 0.
    pub seq: u32,
    /// What was measured; see [`Metric`](super::Metric) for the names that analysis reads.
    pub metric: String,
    /// The step or block it belongs to; null for a figure of the whole probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The figure.
    pub value: f64,
    /// Its unit: `s`, `bytes`, `ratio`, `nats`, `count`.
    pub unit: String,
    /// Seconds since the child started.
    pub elapsed_secs: f64,
}

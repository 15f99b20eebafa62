//! What analysis, plan and recommendation read: the probes of a study with what they measured.

use std::collections::BTreeMap;

use super::memory::MemoryPrediction;
use crate::probe::{FailureReason, InfeasibleReason, Metric, ProbeKind, ProbeSpec, ProbeState};
use crate::study::{BatchSize, ProbeId};

/// One probe with what its completing attempt measured.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeRecord {
    /// Which probe.
    pub id: ProbeId,
    /// What it was to do.
    pub spec: ProbeSpec,
    /// Where it stands.
    pub state: ProbeState,
    /// Why its task cannot be done, when `infeasible`.
    pub infeasible: Option<InfeasibleReason>,
    /// What kind of trouble it had, when `failed`.
    pub failure: Option<FailureReason>,
    /// What happened, for people.
    pub detail: Option<String>,
    /// Which wave of the study's plan it belongs to, from 0.
    pub wave: u32,
    /// Its place within the wave.
    pub position: u32,
    /// Whether another study had already made it: then it cost this one nothing. What an earlier revision of this
    /// study has made is its own.
    pub reused: bool,
    /// Device time of its completing attempt, seconds.
    pub device_secs: f64,
    /// The peak that was predicted when it was planned.
    pub prediction: Option<MemoryPrediction>,
    /// Figures of the whole probe (those without a step).
    pub figures: BTreeMap<Metric, f64>,
}

impl ProbeRecord {
    /// The kind of the probe.
    pub fn kind(&self) -> ProbeKind {
        self.spec.kind()
    }

    /// Examples per step.
    pub fn batch_size(&self) -> BatchSize {
        self.spec.batch_size
    }

    /// One figure, if it was measured.
    pub fn figure(&self, metric: Metric) -> Option<f64> {
        self.figures.get(&metric).copied()
    }

    /// Whether it succeeded.
    pub fn succeeded(&self) -> bool {
        self.state == ProbeState::Succeeded
    }

    /// Whether its task ran out of memory.
    pub fn out_of_memory(&self) -> bool {
        self.state == ProbeState::Infeasible
            && self.infeasible == Some(InfeasibleReason::OutOfMemory)
    }
}

/// Everything known about a study, in the order of its plan (wave, position).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// The probes linked to the study's current revision.
    pub probes: Vec<ProbeRecord>,
}

impl Evidence {
    /// The probes of one kind, in plan order.
    pub fn of_kind(&self, kind: ProbeKind) -> impl Iterator<Item = &ProbeRecord> {
        self.probes.iter().filter(move |probe| probe.kind() == kind)
    }

    /// Probes that have not ended.
    pub fn open(&self) -> usize {
        self.probes
            .iter()
            .filter(|probe| !probe.state.has_ended())
            .count()
    }

    /// The number of the next wave.
    pub fn next_wave(&self) -> u32 {
        self.probes
            .iter()
            .map(|probe| probe.wave + 1)
            .max()
            .unwrap_or(0)
    }

    /// Device time spent by this study: what it reused cost it nothing.
    pub fn device_secs(&self) -> f64 {
        self.probes
            .iter()
            .filter(|probe| !probe.reused)
            .map(|probe| probe.device_secs)
            .sum()
    }
}

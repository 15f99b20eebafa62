//! What analysis, plan and recommendation read: the probes of a study with what they measured.

use std::borrow::Cow;
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

    /// Which series it belongs to; 0 is that of the study's own optimizer.
    pub fn series(&self) -> u32 {
        self.spec.replicate / SERIES
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

/// Replicates of a series: each part of a study that trains on its own account (a candidate of a comparison, say) counts
/// its replicates within a block of its own, so that its probes are told from all others and its seeds are its own.
/// No part makes nearly as many.
const SERIES: u32 = 10_000;
/// The series of the study's own optimizer: everything that is no comparison.
const OWN: u32 = 0;

/// The number that the replicates of a series begin with.
pub fn first_replicate(series: u32) -> u32 {
    series * SERIES
}

/// The seed of a series, given that of the study; the replicates within it have theirs from it, as those of the study
/// have theirs from the study's.
pub fn series_seed(study: u64, series: u32) -> u64 {
    replicate_seed(study, first_replicate(series))
}

/// The seed of a replicate: that of the study for the common one.
pub fn replicate_seed(study: u64, replicate: u32) -> u64 {
    /// 2^53 − 1: JSON's largest exact integer.
    const LARGEST: u64 = (1 << 53) - 1;
    study.wrapping_add(u64::from(replicate).wrapping_mul(0x9e37_79b9_7f4a_7c15)) & LARGEST
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

    /// The probes of one series, their replicates counted from 0.
    pub fn series(&self, series: u32) -> Self {
        let probes = self.probes.iter().filter(|it| it.series() == series);
        let first = first_replicate(series);
        Self {
            probes: probes
                .cloned()
                .map(|mut probe| {
                    probe.spec.replicate -= first;
                    probe
                })
                .collect(),
        }
    }

    /// What is known beside the comparisons, which train with other optimizers and networks.
    pub fn own(&self) -> Cow<'_, Self> {
        if self.probes.iter().all(|probe| probe.series() == OWN) {
            Cow::Borrowed(self)
        } else {
            Cow::Owned(self.series(OWN))
        }
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

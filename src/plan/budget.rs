//! What probes cost, what is left, and what is still to come.

use super::{
    PlannedProbe, accumulation, asks, batch_norm, bottleneck, confirmation, devices, initial,
    needs_times, optimizers, quality, rounds, training,
};
use crate::analysis::{Analysis, Evidence};
use crate::probe::ProbeKind;
use crate::statistics::intervals::mean;
use crate::study::{Question, StudyDefinition};

/// What a probe of a kind usually takes before any was seen, seconds.
fn usual_secs(kind: ProbeKind) -> f64 {
    match kind {
        ProbeKind::Smoke => 0.5,
        ProbeKind::Memory => 1.0,
        ProbeKind::StepTime | ProbeKind::InputPipeline | ProbeKind::GradientAccumulation => 4.0,
        ProbeKind::Confirmation => 2.0,
        ProbeKind::Training | ProbeKind::LearningRateRange => 0.5,
        ProbeKind::NoiseScale => 1.0,
    }
}

/// A run of training takes as long as its steps, which differ from study to study: before one was seen it may well
/// take so many times as long as usual.
const UNSEEN_TRAINING: f64 = 2.0;

/// Looks that the memory search usually needs.
const USUAL_LOOKS: u64 = 6;

/// Batch sizes at which the parts of a step are usually timed.
const USUAL_PARTS: u64 = 3;

/// What is left of a study's budget, and what its probes have cost.
#[derive(Debug)]
pub struct Purse {
    left_secs: f64,
    left_probes: u64,
    spent_secs: f64,
    spent_probes: u64,
    /// Each of which a second is a device-second.
    devices: f64,
    costs: Vec<Cost>,
}

/// What the probes of a kind have taken, seconds.
#[derive(Debug, Clone, Copy)]
struct Cost {
    kind: ProbeKind,
    mean: f64,
    most: f64,
}

impl Purse {
    pub fn new(definition: &StudyDefinition, evidence: &Evidence) -> Self {
        let spent_secs = evidence.device_secs();
        let spent_probes = evidence.probes.iter().filter(|probe| !probe.reused).count() as u64;
        let costs = ProbeKind::ALL
            .into_iter()
            .filter_map(|kind| {
                let seen: Vec<f64> = evidence
                    .of_kind(kind)
                    .filter(|probe| probe.state.has_ended())
                    .map(|probe| probe.device_secs)
                    .collect();
                Some(Cost {
                    kind,
                    mean: mean(&seen)?,
                    most: seen.iter().copied().fold(0.0, f64::max),
                })
            })
            .collect();
        Self {
            left_secs: definition.budget.device_secs - spent_secs,
            left_probes: definition.budget.probes.saturating_sub(spent_probes),
            spent_secs,
            spent_probes,
            devices: f64::from(definition.device.count),
            costs,
        }
    }

    fn cost(&self, kind: ProbeKind) -> f64 {
        self.costs
            .iter()
            .find(|cost| cost.kind == kind)
            .map_or_else(|| self.devices * usual_secs(kind), |cost| cost.mean)
    }

    /// What a wave may take: now and then a probe takes as long as the longest so far, so one does.
    fn wave_cost(&self, wave: &[PlannedProbe]) -> f64 {
        let is_seen = |kind: ProbeKind| self.costs.iter().any(|cost| cost.kind == kind);
        let careful = |kind: ProbeKind| match kind {
            ProbeKind::Training if !is_seen(kind) => UNSEEN_TRAINING * self.cost(kind),
            _ => self.cost(kind),
        };
        let usual: f64 = wave.iter().map(|probe| careful(probe.spec.kind())).sum();
        let excess = self
            .costs
            .iter()
            .filter(|cost| wave.iter().any(|probe| probe.spec.kind() == cost.kind))
            .map(|cost| cost.most - cost.mean)
            .fold(0.0, f64::max);
        usual + excess
    }

    /// Whether a wave that nothing can do without can be paid for.
    pub fn affords_needed(&self, wave: &[PlannedProbe]) -> bool {
        self.wave_cost(wave) <= self.left_secs && wave.len() as u64 <= self.left_probes
    }

    /// Whether so many waves like this one can be paid for, with the share of the confirmation that is still
    /// to come kept aside.
    pub fn affords(
        &self,
        wave: &[PlannedProbe],
        waves: usize,
        definition: &StudyDefinition,
        evidence: &Evidence,
        analysis: &Analysis,
    ) -> bool {
        let confirmed = evidence.of_kind(ProbeKind::Confirmation).count();
        let wanted = confirmation::batch_sizes(definition, analysis).len().max(1);
        let kept = wanted.saturating_sub(confirmed);
        let secs = self.wave_cost(wave) * waves as f64;
        let kept_secs = kept as f64 * self.cost(ProbeKind::Confirmation);
        secs + kept_secs <= self.left_secs && (wave.len() * waves + kept) as u64 <= self.left_probes
    }

    /// What was spent, for people.
    pub fn say(&self) -> String {
        format!(
            "the budget does not pay for the next probes: {:.0} s of device time and {} probes are spent, {:.0} s and {} probes are left",
            self.spent_secs,
            self.spent_probes,
            self.left_secs.max(0.0),
            self.left_probes
        )
    }

    /// Probes and device-seconds still to come, about.
    pub fn remaining(
        &self,
        definition: &StudyDefinition,
        evidence: &Evidence,
        analysis: &Analysis,
    ) -> (u64, f64) {
        let ended = |kind| {
            evidence
                .of_kind(kind)
                .filter(|probe| probe.state.has_ended())
                .count() as u64
        };
        let search_ended = analysis
            .feasibility
            .as_ref()
            .is_some_and(|feasibility| feasibility.search_ended);
        let timed = if needs_times(definition) {
            (rounds::batch_sizes(definition, analysis).len() * rounds::LOOKS[0]) as u64
        } else {
            0
        };
        let open = |kind| evidence.of_kind(kind).count() as u64 - ended(kind);
        let expected = [
            (ProbeKind::Smoke, 1),
            (
                ProbeKind::Memory,
                if search_ended {
                    ended(ProbeKind::Memory)
                } else {
                    USUAL_LOOKS
                },
            ),
            (
                ProbeKind::StepTime,
                timed + optimizers::usual_timings(definition) + devices::usual_probes(definition),
            ),
            (
                ProbeKind::Confirmation,
                confirmation::batch_sizes(definition, analysis).len().max(1) as u64,
            ),
            (
                ProbeKind::InputPipeline,
                if asks(definition, Question::Bottleneck) {
                    let known = bottleneck::batch_sizes(definition, analysis).len() as u64;
                    let sizes = if known == 0 { USUAL_PARTS } else { known };
                    sizes * u64::from(bottleneck::REPLICATES)
                } else {
                    0
                },
            ),
            (ProbeKind::Training, {
                let to_target = if training::is_needed(definition) {
                    training::usual_probes(definition) + quality::usual_probes(definition)
                } else {
                    0
                };
                to_target
                    + initial::usual_probes(definition)
                    + optimizers::usual_probes(definition)
                    + batch_norm::usual_probes(definition)
            }),
            (
                ProbeKind::GradientAccumulation,
                if asks(definition, Question::GradientAccumulation) {
                    u64::from(accumulation::REPLICATES)
                } else {
                    0
                },
            ),
        ];
        expected
            .into_iter()
            .fold((0, 0.0), |(probes, secs), (kind, expected)| {
                let left = expected.saturating_sub(ended(kind)).max(open(kind));
                (probes + left, secs + left as f64 * self.cost(kind))
            })
    }
}

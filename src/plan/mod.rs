//! Which probes come next: a pure function of the study and the evidence so far.
//!
//! Planning goes in waves: a wave is planned when the one before it is complete, so the plan does
//! not depend on the order in which probes finish. The phases: does the pipeline run ([`smoke`]);
//! what fits ([`memory`]); how fast is it ([`rounds`]); does what is recommended survive a longer
//! run ([`confirmation`]); what keeps its steps from being shorter ([`bottleneck`]); what gradient
//! accumulation brings ([`accumulation`]); how steps scale with the devices that share them ([`devices`]); which model, learning rate and number of steps to start with ([`initial`]);
//! how many steps training takes to its target ([`training`]); whether it ends with the same quality everywhere
//! ([`quality`]); which of several optimizers needs the fewest steps ([`optimizers`]); how batch normalization trains with
//! ghost batches ([`batch_norm`]). The [`budget`] is looked at before every wave.

mod accumulation;
mod batch_norm;
mod bottleneck;
mod budget;
mod confirmation;
mod devices;
mod initial;
mod memory;
mod optimizers;
mod quality;
mod rounds;
mod smoke;
mod specs;
mod training;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::analysis::devices::SERIES;
use crate::analysis::evidence::first_replicate;
use crate::analysis::{Analysis, Evidence, MemoryPrediction, ProbeRecord};
use crate::probe::inputs::is_same;
use crate::probe::{InfeasibleReason, ProbeKind, ProbeSpec, Task};
use crate::study::{EndedBecause, Question, StudyDefinition};
use budget::Purse;
use specs::Specs;

/// A probe to be made, with the reason in a sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedProbe {
    /// What it is to do.
    pub spec: ProbeSpec,
    /// Why it was chosen, for people.
    pub why: String,
    /// The peak of memory that is expected, where it is a probe of memory and one can be.
    pub prediction: Option<MemoryPrediction>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// The device is not known yet: no live worker can serve the study.
    WaitForDevice,
    /// Probes of the current wave are still open.
    WaitForProbes,
    /// The next wave, in the order it should run.
    Wave(Vec<PlannedProbe>),
    /// Nothing more is to be measured.
    Done {
        /// Why.
        because: EndedBecause,
        /// What that means here, for people.
        detail: String,
    },
}

/// The next step of a study, and how far it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What to do next.
    pub next: Next,
    /// What the study is doing, for people.
    pub phase: String,
    /// Probes still to come, about (the open ones and the next wave included).
    pub remaining_probes: u64,
    /// Device time still to come, about, seconds.
    pub remaining_device_secs: f64,
}

/// What one phase wants.
#[derive(Debug, Clone, PartialEq)]
enum Wish {
    /// These probes, and this is what they are for.
    Probes(Vec<PlannedProbe>),
    /// Nothing: the phase is over.
    Nothing,
    /// The study is over.
    End(EndedBecause, String),
}

/// Plans the next wave. Deterministic: the same study and evidence give the same plan.
pub fn plan(definition: &StudyDefinition, evidence: &Evidence, analysis: &Analysis) -> Plan {
    let purse = Purse::new(definition, evidence);
    let (next, phase) = next(definition, evidence, analysis, &purse);
    let (remaining_probes, remaining_device_secs) = match next {
        Next::Done { .. } => (0, 0.0),
        _ => purse.remaining(definition, evidence, analysis),
    };
    Plan {
        next,
        phase,
        remaining_probes,
        remaining_device_secs,
    }
}

fn next(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
    purse: &Purse,
) -> (Next, String) {
    let Some(specs) = Specs::new(definition) else {
        return (Next::WaitForDevice, "waiting for a device".into());
    };
    if let Some(open) = evidence
        .probes
        .iter()
        .find(|probe| !probe.state.has_ended())
    {
        let phase = phase(&open.spec);
        return (Next::WaitForProbes, phase);
    }
    let mut cut_short = false;
    // What is read off the study's own probes is not read off those of comparisons.
    let own = &*evidence.own();
    type Phase = fn(&Specs<'_>, &StudyDefinition, &Evidence, &Analysis) -> Wish;
    let phases: [(Phase, bool); 10] = [
        (smoke::wish, true),
        (memory::wish, true),
        // Rounds may be cut short: what was timed until then is used, and the confirmation, which
        // every recommendation needs, still has its share.
        (rounds::wish, false),
        (confirmation::wish, true),
        (bottleneck::wish, false),
        (accumulation::wish, false),
        (initial::wish, false),
        (training::wish, false),
        // Training may recommend another batch size than throughput alone.
        (confirmation::wish, true),
        (quality::wish, false),
    ];
    let comparing: [(Phase, bool); 3] = [
        (devices::wish, false),
        (optimizers::wish, false),
        (batch_norm::wish, false),
    ];
    let phases = phases
        .into_iter()
        .map(|phase| (phase, own))
        .chain(comparing.map(|phase| (phase, evidence)));
    for ((wish, is_needed), read) in phases {
        match wish(&specs, definition, read, analysis) {
            Wish::Nothing => {}
            Wish::End(because, detail) => return (Next::Done { because, detail }, "ended".into()),
            Wish::Probes(wave) => {
                let mut wave = only_supported(only_new(wave, evidence), evidence);
                if wave.is_empty() {
                    continue;
                }
                // Fewer batch sizes, each with an interval, tell more than many without one.
                let rounds = rounds::still_wanted(&wave);
                while !is_needed
                    && !purse.affords(&wave, rounds, definition, evidence, analysis)
                    && thin_out(&mut wave)
                {}
                let is_paid_for = if is_needed {
                    purse.affords_needed(&wave)
                } else {
                    purse.affords(&wave, 1, definition, evidence, analysis)
                };
                if is_paid_for {
                    let phase = phase(&wave[0].spec);
                    return (Next::Wave(wave), phase);
                }
                cut_short = true;
                if is_needed {
                    break;
                }
            }
        }
    }
    let (because, detail) = if cut_short {
        (EndedBecause::BudgetExhausted, purse.say())
    } else {
        let thinned = analysis.throughput.as_ref().is_some_and(|throughput| {
            let mut caveats = throughput.caveats.iter();
            caveats.any(|caveat| caveat.code == "W_BUDGET")
        });
        let detail = if thinned {
            "every question has its answer, with fewer batch sizes or rounds than a larger budget would pay for"
        } else {
            "every question has its answer"
        };
        (
            EndedBecause::Answered,
            format!("{detail}{}", unsupported(evidence)),
        )
    };
    (Next::Done { because, detail }, "ended".into())
}

/// Without what is in the wave twice, or was already done, whatever it was called: asking for it again would bring nothing, and a study
/// must never wait for what has ended.
fn only_new(wave: Vec<PlannedProbe>, evidence: &Evidence) -> Vec<PlannedProbe> {
    let mut new: Vec<PlannedProbe> = Vec::with_capacity(wave.len());
    for planned in wave {
        let is_known = new.iter().any(|it| is_same(&it.spec, &planned.spec))
            || evidence
                .probes
                .iter()
                .any(|it| is_same(&it.spec, &planned.spec));
        if !is_known {
            new.push(planned);
        }
    }
    new
}

/// Without what the study's runner has said that it does not do.
fn only_supported(mut wave: Vec<PlannedProbe>, evidence: &Evidence) -> Vec<PlannedProbe> {
    let refused: Vec<&ProbeSpec> = refused(evidence).map(|probe| &probe.spec).collect();
    wave.retain(|planned| !refused.iter().any(|spec| is_alike(spec, &planned.spec)));
    wave
}

/// The probes that the study's runner does not do.
fn refused(evidence: &Evidence) -> impl Iterator<Item = &ProbeRecord> {
    evidence
        .probes
        .iter()
        .filter(|probe| probe.infeasible == Some(InfeasibleReason::RunnerUnsupported))
}

/// Whether a runner that does not do one of two probes does not do the other.
fn is_alike(one: &ProbeSpec, other: &ProbeSpec) -> bool {
    let variant = |spec: &ProbeSpec| match &spec.task {
        Task::Training(run) => (run.compares_with_chance, run.shuffles_targets),
        _ => (false, false),
    };
    one.kind() == other.kind()
        && variant(one) == variant(other)
        && one.optimizer.form() == other.optimizer.form()
        && one.workload.model.family() == other.workload.model.family()
}

/// What the study's runner does not do, for people.
fn unsupported(evidence: &Evidence) -> String {
    let mut kinds: Vec<&str> = refused(evidence)
        .map(|probe| probe.kind().as_str())
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.is_empty() {
        String::new()
    } else {
        format!(
            " that its runner can give: it does not do probes of {}",
            kinds.join(", ")
        )
    }
}

/// Leaves out what can best be done without, when the budget does not pay for a whole wave. False when there
/// is nothing to leave out.
fn thin_out(wave: &mut Vec<PlannedProbe>) -> bool {
    match wave.first().map(|probe| probe.spec.kind()) {
        Some(ProbeKind::StepTime) => rounds::thin_out(wave),
        Some(ProbeKind::InputPipeline | ProbeKind::GradientAccumulation) => {
            // Batch sizes but the first, then the third child.
            let first = wave[0].spec.batch_size;
            let before = wave.len();
            wave.retain(|probe| probe.spec.batch_size == first);
            if wave.len() == before && before > 2 {
                wave.truncate(2);
            }
            wave.len() < before
        }
        _ => false,
    }
}

fn phase(spec: &ProbeSpec) -> String {
    match &spec.task {
        Task::Smoke { .. } => "checking that the pipeline runs".into(),
        Task::Memory { .. } => "seeking the largest batch size that fits".into(),
        Task::StepTime(_) if spec.replicate >= first_replicate(SERIES) => {
            "timing fewer devices beside all of them".into()
        }
        Task::StepTime(_) if is_of_a_comparison(spec) => "timing what is compared".into(),
        Task::StepTime(_) => format!("timing every batch size, round {}", spec.replicate + 1),
        Task::Confirmation { .. } => "confirming the recommendation in a longer run".into(),
        Task::InputPipeline(_) => "timing the parts of a step".into(),
        Task::GradientAccumulation(_) => "timing gradient accumulation".into(),
        Task::Training(run) if run.compares_with_chance => {
            "seeking a configuration to start with".into()
        }
        Task::Training(_) | Task::LearningRateRange(_) if is_of_a_comparison(spec) => {
            "comparing at one batch size".into()
        }
        Task::Training(run) if run.target.is_none() => {
            "training to see how good the model gets".into()
        }
        Task::Training(_) => "training to the target".into(),
        Task::LearningRateRange(_) => "seeking the learning rate at which training diverges".into(),
        Task::NoiseScale(_) => "measuring the noise of the gradient".into(),
    }
}

/// Whether a probe is of a series of its own.
fn is_of_a_comparison(spec: &ProbeSpec) -> bool {
    spec.replicate >= first_replicate(1)
}

/// Whether a question is asked.
fn asks(definition: &StudyDefinition, question: Question) -> bool {
    definition.questions.contains(&question)
}

/// Whether times are needed.
fn needs_times(definition: &StudyDefinition) -> bool {
    [
        Question::Throughput,
        Question::Bottleneck,
        Question::GradientAccumulation,
        Question::BatchSize,
    ]
    .into_iter()
    .any(|question| asks(definition, question))
}

/// What a study would do, as far as it can be known before anything of it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// Probes that must be made, about.
    pub probes: u64,
    /// Device time that they take, about, seconds.
    pub estimated_device_secs: f64,
    /// Probes whose figures are there already and are taken over.
    #[serde(default)]
    pub reused_probes: u64,
    /// What the caller should know before.
    pub warnings: Vec<String>,
}

/// Estimates a study's cost from what probes of each kind usually take.
pub fn dry_run(definition: &StudyDefinition) -> DryRun {
    let evidence = Evidence::default();
    let purse = Purse::new(definition, &evidence);
    let (probes, secs) = purse.remaining(definition, &evidence, &Analysis::default());
    forecast(definition, probes, secs, 0)
}

/// A study that takes over so many probes and needs so many more.
pub fn forecast(
    definition: &StudyDefinition,
    probes: u64,
    secs: f64,
    reused_probes: u64,
) -> DryRun {
    let mut warnings = Vec::new();
    if secs > definition.budget.device_secs || probes > definition.budget.probes {
        warnings.push(format!(
            "about {probes} probes and {secs:.0} s of device time are needed, and the budget is {} probes and {:.0} s: the study would end early, with fewer rounds of timing",
            definition.budget.probes, definition.budget.device_secs
        ));
    }
    if definition.device.count > 1 && definition.runner.is_burn() {
        warnings.push(
            "burn trains on one device: its first probe will answer device_unsupported. Name a runner that trains on several, or set device.count to 1".into(),
        );
    }
    let examples = definition.workload.dataset.facts().training_examples;
    if definition.batch_sizes.max.0 > examples {
        warnings.push(format!(
            "batch sizes beyond the {examples} training examples repeat examples within a batch"
        ));
    }
    DryRun {
        probes,
        estimated_device_secs: secs,
        reused_probes,
        warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::fixtures::succeeded;

    #[test]
    fn what_is_already_known_is_not_asked_for_again() {
        let record = |batch_size: u64, replicate: u32| {
            succeeded(specs::CONFIRMATION, batch_size, replicate, &[])
        };
        let planned = |batch_size: u64, replicate: u32| PlannedProbe {
            spec: record(batch_size, replicate).spec,
            why: "a test".into(),
            prediction: None,
        };
        let evidence = Evidence {
            probes: vec![record(8, 0)],
        };
        let wave = vec![planned(8, 0), planned(8, 1), planned(16, 0), planned(8, 1)];
        let new = only_new(wave, &evidence);
        let left: Vec<(u64, u32)> = new
            .iter()
            .map(|it| (it.spec.batch_size.0, it.spec.replicate))
            .collect();
        assert_eq!(left, [(8, 1), (16, 0)]);
    }
}

//! Comparing optimizers: every candidate is tuned as if it were the study's own, in a series of its own, all of them at
//! once; then a step of each winner is timed, where times are compared.

use super::specs::{self as tasks, Specs};
use super::training as trials;
use super::{PlannedProbe, Wish};
use crate::analysis::evidence::first_replicate;
use crate::analysis::optimizers::{self, COMPARED_SEEDS, Comparison, Step, TIMINGS, Track};
use crate::analysis::steps::search::SEEDS;
use crate::analysis::steps::setup;
use crate::analysis::{Analysis, Evidence, steps};
use crate::probe::{RangeTest, Task, TrainingRun};
use crate::study::{Configuration, Design, StudyDefinition};

/// Pilots of a candidate.
const PILOTS: u64 = setup::PILOTS.len() as u64;
/// Trials of the two halvings around the best, for each hyperparameter.
const HALVINGS: u64 = 4;
/// Finalists with fresh seeds, and the winner with as many others.
const FINALS: u64 = 4 * SEEDS as u64;

/// Candidates that are not the same as another.
fn distinct(definition: &StudyDefinition) -> u64 {
    let identical = definition.optimizers.identical();
    let count = identical.iter().filter(|it| it.is_none()).count() as u64;
    if definition.compares_optimizers() && count > 1 {
        count
    } else {
        0
    }
}

/// Probes of training that are usually needed, before anything is known.
pub fn usual_probes(definition: &StudyDefinition) -> u64 {
    let first = match definition.design {
        Design::Adaptive => 8,
        Design::Full => 16,
    };
    // The search of the learning rate and one offer, which has as many trials as that.
    let search = first + HALVINGS + FINALS + u64::from(COMPARED_SEEDS);
    let offer = first + 2 * HALVINGS + FINALS;
    distinct(definition) * (PILOTS + search + offer)
}

/// Timings that are usually needed.
pub fn usual_timings(definition: &StudyDefinition) -> u64 {
    if optimizers::compares_times(definition) {
        distinct(definition) * u64::from(TIMINGS)
    } else {
        0
    }
}

/// Reads all of the evidence, that of comparisons included.
pub fn wish(
    _specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    if !definition.compares_optimizers() {
        return Wish::Nothing;
    }
    let own = &*evidence.own();
    let comparison = steps::read(definition, own, analysis.feasibility.as_ref())
        .and_then(|training| optimizers::read(definition, evidence, &training));
    let Some(comparison) = comparison else {
        return Wish::Nothing;
    };
    let mut probes: Vec<PlannedProbe> = comparison
        .tracks
        .iter()
        .flat_map(|track| probes(&comparison, track))
        .collect();
    if probes.is_empty() {
        return Wish::Nothing;
    }
    if probes
        .iter()
        .all(|it| matches!(it.spec.task, Task::StepTime(_)))
    {
        // Round by round, so that a host that gets slower does so for every candidate.
        probes.sort_by_key(|it| it.spec.replicate % first_replicate(1));
    }
    Wish::Probes(probes)
}

fn probes(comparison: &Comparison, track: &Track) -> Vec<PlannedProbe> {
    let Some(specs) = Specs::new(&track.definition) else {
        return Vec::new();
    };
    let batch_size = comparison.batch_size;
    let family = track.definition.optimizer.family();
    let number = track.candidate + 1;
    let probe = |task: Task, replicate: u32, why: String| {
        let why = format!("candidate {number}, {family}: {why}");
        specs.probe(task, batch_size, replicate, why)
    };
    let run = |max_steps: u64| {
        let target = track.definition.workload.target.clone();
        TrainingRun::new(max_steps, target, track.evaluation_ratio)
    };
    let seed = track.definition.seed;
    let probes = match &track.next {
        Step::RangeTest => {
            let test = RangeTest::usual(setup::is_expected(&track.definition));
            vec![probe(
                Task::LearningRateRange(test),
                0,
                "which learning rates can it be trained with at all".into(),
            )]
        }
        Step::Pilots(runs) => runs
            .iter()
            .map(|(optimizer, run)| {
                let why = "a pilot: how many steps training takes, about".to_owned();
                let mut planned = probe(Task::Training(run.clone()), 0, why);
                planned.spec.optimizer = optimizer.clone();
                planned
            })
            .collect(),
        Step::Trials(wanted) => wanted
            .iter()
            .map(|it| {
                let task = Task::Training(run(it.max_steps));
                let planned = probe(task, it.replicate, it.why.to_owned());
                trials::at(planned, &it.configuration, it.replicate, seed)
            })
            .collect(),
        Step::Times(optimizer) => (0..TIMINGS)
            .map(|replicate| {
                let why = format!("a step of the winner timed, round {}", replicate + 1);
                let planned = probe(tasks::step_time(), replicate, why);
                let configuration = Configuration {
                    optimizer: optimizer.clone(),
                    ..setup::configuration(&track.definition)
                };
                trials::at(planned, &configuration, replicate, seed)
            })
            .collect(),
        Step::Wait | Step::Done => Vec::new(),
    };
    let first = first_replicate(optimizers::series(track.candidate));
    probes
        .into_iter()
        .map(|mut planned| {
            planned.spec.replicate += first;
            planned
        })
        .collect()
}

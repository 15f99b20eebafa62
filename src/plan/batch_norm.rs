//! Batch normalization over ghost batches of several sizes, trained with at one batch size, where a study asks for it.

use super::specs::Specs;
use super::training as trials;
use super::{PlannedProbe, Wish};
use crate::analysis::batch_norm::{self, Known, NormalisedOver, RUNS, SERIES, SWEPT, Step};
use crate::analysis::evidence::first_replicate;
use crate::analysis::{Analysis, Evidence, steps};
use crate::probe::{EVALUATION_RATIO, RangeTest, Task, TrainingRun};
use crate::study::{Configuration, Optimizer, Question, StudyDefinition};

/// Ghost batch sizes that are usually tried.
const USUAL_SIZES: u64 = 3;

/// Probes of training that are usually needed, before anything is known.
pub fn usual_probes(definition: &StudyDefinition) -> u64 {
    let is_asked =
        definition.questions.contains(&Question::BatchNorm) && definition.batch_norm.probe;
    if !is_asked || batch_norm::normalised_over(definition) == NormalisedOver::OneExample {
        return 0;
    }
    let sweep = if definition.tunes() { 0 } else { SWEPT };
    let sizes = definition
        .batch_norm
        .batch_size
        .map_or(USUAL_SIZES, |size| {
            batch_norm::tried(batch_norm::share(definition, size)).len() as u64
        });
    u64::from(sweep) + sizes * u64::from(RUNS)
}

/// Reads all of the evidence, that of comparisons included.
pub fn wish(
    _specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    if !definition.batch_norm.probe {
        return Wish::Nothing;
    }
    let own = &*evidence.own();
    let training = steps::read(definition, own, analysis.feasibility.as_ref());
    let standing = batch_norm::standing(Known {
        definition,
        evidence,
        training: training.as_ref(),
        steps: analysis.steps.as_ref(),
        decision: analysis.training_time.as_ref(),
        largest_feasible: analysis
            .feasibility
            .as_ref()
            .and_then(|feasibility| feasibility.largest_feasible),
    });
    let Some(standing) = standing else {
        return Wish::Nothing;
    };
    let view = &standing.definition;
    let Some(specs) = Specs::new(view) else {
        return Wish::Nothing;
    };
    let probe = |task: Task, ghost: u64, replicate: u32, optimizer: &Optimizer, why: &str| {
        let why = format!("batch normalization over ghost batches of {ghost}: {why}");
        let planned = specs.probe(task, standing.batch_size, replicate, why);
        let configuration = Configuration {
            optimizer: optimizer.clone(),
            ..steps::setup::configuration(view)
        };
        let mut planned = trials::at(planned, &configuration, replicate, view.seed);
        let spec = &mut planned.spec;
        spec.workload.model = spec.workload.model.with_ghost_batches(ghost);
        spec.replicate += first_replicate(SERIES);
        planned
    };
    let run = || Task::Training(TrainingRun::new(standing.steps, None, EVALUATION_RATIO));
    let probes: Vec<PlannedProbe> = match &standing.next {
        Step::RangeTest(ghost) => vec![probe(
            Task::LearningRateRange(RangeTest::usual(false)),
            *ghost,
            0,
            &view.optimizer,
            "which learning rates can be trained with at all",
        )],
        Step::Sweep(ghost, optimizers) => optimizers
            .iter()
            .map(|optimizer| {
                let why = "which learning rate ends with the least loss";
                probe(run(), *ghost, 0, optimizer, why)
            })
            .collect(),
        Step::Runs(optimizer, wanted) => wanted
            .iter()
            .map(|(ghost, replicate)| {
                let why = "the least loss within so many steps, with a fresh seed";
                probe(run(), *ghost, *replicate, optimizer, why)
            })
            .collect(),
        Step::Done => Vec::new(),
    };
    if probes.is_empty() {
        Wish::Nothing
    } else {
        Wish::Probes(probes)
    }
}

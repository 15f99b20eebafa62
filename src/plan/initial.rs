//! Where to start: the runs that the analysis asks for, rung by rung of the ladder of sizes.

use super::specs::Specs;
use super::training as trials;
use super::{PlannedProbe, Wish};
use crate::analysis::initial::{self, Wanted};
use crate::analysis::steps::setup;
use crate::analysis::{Analysis, Evidence};
use crate::probe::{RangeTest, Task};
use crate::study::{Configuration, Regularisation, Schedule, StudyDefinition};

/// Runs of a rung: eight learning rates, a change of the number of steps, three seeds, three controls.
const USUAL_RUNS: u64 = 15;
/// And of a known result.
const REPRODUCTION_RUNS: u64 = 3;

/// Probes of training that are usually needed, before anything is known: those of one rung.
pub fn usual_probes(definition: &StudyDefinition) -> u64 {
    if !initial::is_asked(definition) {
        return 0;
    }
    let reproduction = initial::reference(definition).map_or(0, |_| REPRODUCTION_RUNS);
    USUAL_RUNS + reproduction
}

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    _evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    let Some(initial) = &analysis.initial else {
        return Wish::Nothing;
    };
    if initial.wanted.is_empty() {
        return Wish::Nothing;
    }
    let probes = initial.wanted.iter();
    Wish::Probes(probes.map(|it| probe(specs, definition, it)).collect())
}

fn probe(specs: &Specs<'_>, definition: &StudyDefinition, wanted: &Wanted) -> PlannedProbe {
    let task = match &wanted.run {
        Some(run) => Task::Training(run.clone()),
        None => Task::LearningRateRange(RangeTest::usual(setup::is_expected(definition))),
    };
    let why = wanted.why.clone();
    let is_range_test = wanted.run.is_none();
    let mut probe = specs.probe(task, wanted.batch_size, wanted.replicate, why);
    probe.spec.workload.model = wanted.model.clone();
    if is_range_test {
        return probe;
    }
    // A first configuration has no bells: the learning rate stays what it is.
    probe.spec.schedule = Schedule::default();
    let at = Configuration {
        optimizer: wanted.optimizer.clone(),
        regularisation: Regularisation::of(&probe.spec.workload),
    };
    trials::at(probe, &at, wanted.replicate, definition.seed)
}

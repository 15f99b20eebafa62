//! Quality across batch sizes: a search for the least loss at each of a few, and more seeds while the intervals
//! do not decide.

use super::specs::Specs;
use super::training as trials;
use super::{PlannedProbe, Wish};
use crate::analysis::quality::{self, Known, Verdict};
use crate::analysis::steps::search::{Next, SEEDS, Search, Wanted};
use crate::analysis::{Analysis, Evidence, steps};
use crate::probe::{Task, TrainingRun};
use crate::study::{BatchSize, Design, StudyDefinition};

/// Further seeds at each batch size: at most so many.
const MOST_MORE_SEEDS: u32 = 2 * SEEDS;
/// Batch sizes that are usually compared.
const USUAL_SIZES: u64 = 3;

/// Probes that are usually needed, before anything is known.
pub fn usual_probes(definition: &StudyDefinition) -> u64 {
    if !quality::is_asked(definition) {
        return 0;
    }
    let named = definition.quality.batch_sizes.as_ref();
    let sizes = named.map_or(USUAL_SIZES, |sizes| sizes.len() as u64);
    // One axis more than the search for steps has.
    let axes = (definition.search.hyperparameters.len() as u32 + 1).clamp(1, 4);
    let screening = match definition.design {
        Design::Adaptive => 4 << axes,
        Design::Full => 8 << axes,
    };
    sizes * (screening + 4 * u64::from(axes) + 4 * u64::from(SEEDS))
}

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    if !quality::is_asked(definition) {
        return Wish::Nothing;
    }
    let training = steps::read(definition, evidence, analysis.feasibility.as_ref());
    let (Some(training), Some(steps)) = (&training, &analysis.steps) else {
        return Wish::Nothing;
    };
    let searches = quality::searches(Known {
        definition,
        evidence,
        training,
        steps,
        decision: analysis.training_time.as_ref(),
        largest_feasible: analysis
            .feasibility
            .as_ref()
            .and_then(|feasibility| feasibility.largest_feasible),
    });
    let probes = |batch_size: BatchSize, wanted: &[Wanted]| -> Vec<PlannedProbe> {
        wanted
            .iter()
            .map(|it| {
                let run = TrainingRun::new(it.max_steps, None, training.evaluation_ratio);
                let why = format!("quality at batch size {batch_size}: {}", it.why);
                let probe = specs.probe(Task::Training(run), batch_size, it.replicate, why);
                trials::at(probe, &it.configuration, it.replicate, definition.seed)
            })
            .collect()
    };
    let mut wave: Vec<PlannedProbe> = searches
        .iter()
        .flat_map(|search| match &search.next {
            Next::Trials(wanted) => probes(search.batch_size, wanted),
            Next::Done(_) => Vec::new(),
        })
        .collect();
    let is_open = analysis
        .quality
        .as_ref()
        .is_some_and(|quality| quality.verdict == Some(Verdict::Inconclusive));
    if wave.is_empty() && is_open {
        wave = searches
            .iter()
            .filter(|search| search.search.more_seeds < MOST_MORE_SEEDS)
            .flat_map(|search| {
                let more = Search {
                    more_seeds: search.search.more_seeds + SEEDS,
                    ..search.search.clone()
                };
                match more.next(&search.trials) {
                    Next::Trials(wanted) => probes(search.batch_size, &wanted),
                    Next::Done(_) => Vec::new(),
                }
            })
            .collect();
    }
    if wave.is_empty() {
        Wish::Nothing
    } else {
        Wish::Probes(wave)
    }
}

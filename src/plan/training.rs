//! Steps to target: a learning-rate range test and pilots at one batch size, a search there, the noise scale,
//! and then the batch sizes that tell most about what was asked (or all of them).

use super::specs::Specs;
use super::{PlannedProbe, Wish, asks};
use crate::analysis::evidence::replicate_seed;
use crate::analysis::steps::search::{Next, SEEDS, Search, Wanted};
use crate::analysis::steps::{
    self, BatchSearch, NotIdentified, Pilot, StepsAnalysis, Training, setup,
};
use crate::analysis::{Analysis, Evidence};
use crate::probe::{NoiseScaleRun, ProbeKind, RangeTest, Task, TrainingRun};
use crate::study::{BatchSize, Configuration, Design, Question, StudyDefinition};

/// Batch sizes that are searched at most to decide on one.
const MOST_TO_DECIDE: usize = 5;
/// And to find the critical batch size.
const MOST_TO_LOCATE: usize = 7;
/// The choice is settled when it is within 5% of the best with this probability.
const SETTLED: f64 = 0.9;
/// The critical batch size is known when the ends of its interval are at most this factor apart.
const LOCATED: f64 = 2.0;
/// The first batch sizes after the base are this factor apart.
const STRIDE: f64 = 4.0;
/// An untried batch size is worth a search when it is the best with at least this probability.
const WORTH_A_SEARCH: f64 = 0.05;
/// Runs with further seeds at one batch size: at most so many times five.
const MOST_MORE_SEEDS: u32 = 3 * SEEDS;
/// Examples of a small batch of the noise scale, and how many of them make the big one.
const SMALL_BATCH: u64 = 16;
const SMALL_BATCHES: u64 = 32;
/// Times that the noise scale is measured along the run.
const NOISE_POINTS: u64 = 18;

/// Whether training to a target is needed.
pub fn is_needed(definition: &StudyDefinition) -> bool {
    definition.tunes()
}

/// Whether a target is needed that pilots have to set, and nothing else of this phase.
fn needs_only_a_target(definition: &StudyDefinition) -> bool {
    !is_needed(definition)
        && definition.compares_optimizers()
        && definition.workload.target.is_none()
}

/// Probes of training that are usually needed, before anything is known.
pub fn usual_probes(definition: &StudyDefinition) -> u64 {
    let axes = definition.search.hyperparameters.len().clamp(1, 4) as u32;
    let seeds = u64::from(SEEDS) * 4;
    match definition.design {
        Design::Adaptive => 3 + 5 * (8 * u64::from(axes) + seeds),
        Design::Full => {
            let sizes = setup::candidates(definition, None).len() as u64;
            3 + sizes * ((8 << axes) + seeds)
        }
    }
}

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Wish {
    if !is_needed(definition) && !needs_only_a_target(definition) {
        return Wish::Nothing;
    }
    let Some(training) = steps::read(definition, evidence, analysis.feasibility.as_ref()) else {
        return Wish::Nothing;
    };
    let planner = Planner {
        specs,
        definition,
        training: &training,
        analysis,
        candidates: setup::candidates(
            definition,
            analysis
                .feasibility
                .as_ref()
                .and_then(|feasibility| feasibility.largest_feasible),
        ),
    };
    let probes = planner.next(evidence);
    if probes.is_empty() {
        Wish::Nothing
    } else {
        Wish::Probes(probes)
    }
}

struct Planner<'a> {
    specs: &'a Specs<'a>,
    definition: &'a StudyDefinition,
    training: &'a Training<'a>,
    analysis: &'a Analysis,
    candidates: Vec<BatchSize>,
}

impl Planner<'_> {
    fn next(&self, evidence: &Evidence) -> Vec<PlannedProbe> {
        let base = self.training.base;
        if self.training.learning_rates.is_none() {
            let test = RangeTest::usual(setup::is_expected(self.definition));
            let why =
                format!("at batch size {base}: which learning rates can be trained with at all");
            return vec![
                self.specs
                    .probe(Task::LearningRateRange(test), base, 0, why),
            ];
        }
        match &self.training.pilot {
            Pilot::Wanted(runs) => {
                return runs
                    .iter()
                    .map(|(optimizer, run)| {
                        let why = "a pilot: how many steps training takes, about".to_owned();
                        let mut probe = self.specs.probe(Task::Training(run.clone()), base, 0, why);
                        probe.spec.optimizer = optimizer.clone();
                        probe
                    })
                    .collect();
            }
            Pilot::NotReached(_) | Pilot::Diverged => return Vec::new(),
            Pilot::Steps(_) => {}
        }
        if self.training.target.is_none() || needs_only_a_target(self.definition) {
            return Vec::new();
        }
        // Searches that were begun go on, whatever else.
        let open: Vec<PlannedProbe> = self
            .training
            .searches
            .iter()
            .flat_map(|search| match &search.next {
                Next::Trials(wanted) => self.trials(search.batch_size, wanted, None),
                Next::Done(_) => Vec::new(),
            })
            .collect();
        if !open.is_empty() {
            return open;
        }
        let Some(first) = self.search_of(base) else {
            return self.begin(
                base,
                "the search begins at a small batch, where steps are quick",
            );
        };
        if let Some(probe) = self.noise_scale(evidence, first) {
            return vec![probe];
        }
        match self.definition.design {
            Design::Full => self.all(),
            Design::Adaptive => self.adaptive(),
        }
    }

    fn search_of(&self, batch_size: BatchSize) -> Option<&BatchSearch<'_>> {
        let mut searches = self.training.searches.iter();
        searches.find(|search| search.batch_size == batch_size)
    }

    fn trials(
        &self,
        batch_size: BatchSize,
        wanted: &[Wanted],
        chosen_because: Option<&str>,
    ) -> Vec<PlannedProbe> {
        let Some((target, _)) = &self.training.target else {
            return Vec::new();
        };
        wanted
            .iter()
            .map(|it| {
                let ratio = self.training.evaluation_ratio;
                let run = TrainingRun::new(it.max_steps, Some(target.clone()), ratio);
                let why = match chosen_because {
                    Some(because) => format!("batch size {batch_size}: {because}; {}", it.why),
                    None => format!("batch size {batch_size}: {}", it.why),
                };
                let probe = self
                    .specs
                    .probe(Task::Training(run), batch_size, it.replicate, why);
                at(probe, &it.configuration, it.replicate, self.definition.seed)
            })
            .collect()
    }

    /// The first trials of a batch size.
    fn begin(&self, batch_size: BatchSize, because: &str) -> Vec<PlannedProbe> {
        let Some(search) = self.training.new_search(self.definition, batch_size) else {
            return Vec::new();
        };
        match search.next(&[]) {
            Next::Trials(wanted) => self.trials(batch_size, &wanted, Some(because)),
            Next::Done(_) => Vec::new(),
        }
    }

    /// Five more seeds of a batch size's winner.
    fn more_seeds(&self, search: &BatchSearch<'_>, because: &str) -> Vec<PlannedProbe> {
        let more = Search {
            more_seeds: search.search.more_seeds + SEEDS,
            ..search.search.clone()
        };
        match more.next(&search.trials) {
            Next::Trials(wanted) => self.trials(search.batch_size, &wanted, Some(because)),
            Next::Done(_) => Vec::new(),
        }
    }

    fn noise_scale(&self, evidence: &Evidence, first: &BatchSearch<'_>) -> Option<PlannedProbe> {
        let is_known = evidence.of_kind(ProbeKind::NoiseScale).next().is_some();
        let network = self.definition.workload.network().ok()?;
        if is_known || setup::is_expected(self.definition) || network.normalises_over_batch() {
            return None;
        }
        let steps = first.ln_steps()?.exp();
        let Next::Done(found) = &first.next else {
            return None;
        };
        let run = NoiseScaleRun {
            steps: steps.ceil() as u64,
            small_batch: SMALL_BATCH,
            small_batches: SMALL_BATCHES,
            points: NOISE_POINTS,
        };
        let mut probe = self.specs.probe(
            Task::NoiseScale(run),
            first.batch_size,
            0,
            "the noise of the gradient says where the critical batch size is to be looked for"
                .into(),
        );
        probe.spec.optimizer = found.configuration.optimizer.clone();
        let regularisation = found.configuration.regularisation;
        regularisation.apply(&mut probe.spec.workload);
        Some(probe)
    }

    /// Every candidate, from the base outwards in both directions, each begun when its neighbour is known.
    fn all(&self) -> Vec<PlannedProbe> {
        let base = self.training.base;
        let untried = |size: &&BatchSize| self.search_of(**size).is_none();
        let larger = self
            .candidates
            .iter()
            .filter(|size| **size > base)
            .find(untried);
        let smaller = self
            .candidates
            .iter()
            .rev()
            .filter(|size| **size < base)
            .find(untried);
        larger
            .into_iter()
            .chain(smaller)
            .flat_map(|size| {
                self.begin(
                    *size,
                    "every batch size of the grid is trained to the target",
                )
            })
            .collect()
    }

    fn adaptive(&self) -> Vec<PlannedProbe> {
        let Some(steps) = &self.analysis.steps else {
            return Vec::new();
        };
        if self.training.searches.len() == 1 {
            let around = self.around_the_expected(steps);
            if !around.is_empty() {
                return around;
            }
        }
        let searched = self.training.searches.len();
        if !self.is_decided() && searched < MOST_TO_DECIDE {
            let next = self.deciding();
            if !next.is_empty() {
                return next;
            }
        }
        if asks(self.definition, Question::CriticalBatchSize)
            && !self.is_located(steps)
            && searched < MOST_TO_LOCATE
        {
            let next = self.locating(steps);
            if !next.is_empty() {
                return next;
            }
        }
        self.confirming()
    }

    /// The expected best batch size, a quarter of it and four times it: the expectation is that of the noise
    /// scale.
    fn around_the_expected(&self, steps: &StepsAnalysis) -> Vec<PlannedProbe> {
        let expected = self
            .analysis
            .training_time
            .as_ref()
            .map(|training_time| training_time.batch_size.as_f64())
            .or_else(|| Some(steps.fit.as_ref()?.curve.ln_critical().exp()))
            .unwrap_or(self.training.base.as_f64());
        let mut sizes: Vec<BatchSize> = Vec::new();
        for wanted in [expected, expected / STRIDE, expected * STRIDE] {
            let nearest = self.nearest(wanted);
            sizes.extend(
                nearest.filter(|size| !sizes.contains(size) && self.search_of(*size).is_none()),
            );
        }
        sizes
            .into_iter()
            .flat_map(|size| {
                self.begin(
                    size,
                    "around the batch size that times and noise scale lead to expect as the best",
                )
            })
            .collect()
    }

    /// The candidate nearest to a batch size.
    fn nearest(&self, wanted: f64) -> Option<BatchSize> {
        let distance = |size: &BatchSize| (size.as_f64() / wanted).ln().abs();
        self.candidates
            .iter()
            .copied()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }

    fn is_decided(&self) -> bool {
        if !asks(self.definition, Question::BatchSize) {
            return true;
        }
        self.analysis.training_time.as_ref().is_none_or(|decision| {
            decision.points.iter().any(|point| {
                point.batch_size == decision.batch_size
                    && point.is_measured
                    && point.p_within_5pct >= SETTLED
            })
        })
    }

    /// What tells most about which batch size is the best: the untried one that is most probably the best and
    /// least known, else five more seeds where that is most in doubt.
    fn deciding(&self) -> Vec<PlannedProbe> {
        let Some(decision) = &self.analysis.training_time else {
            return Vec::new();
        };
        let worth = |point: &&crate::analysis::TrainingTimePoint| point.p_best * point.ln_sd;
        let untried = decision
            .points
            .iter()
            .filter(|point| self.candidates.contains(&point.batch_size))
            .filter(|point| self.search_of(point.batch_size).is_none())
            .filter(|point| {
                point.p_best >= WORTH_A_SEARCH || point.batch_size == decision.batch_size
            })
            .max_by(|a, b| worth(a).total_cmp(&worth(b)));
        if let Some(point) = untried {
            let because = format!(
                "untried, and the best with a probability of {:.2}",
                point.p_best
            );
            return self.begin(point.batch_size, &because);
        }
        let doubtful = decision
            .points
            .iter()
            .filter_map(|point| Some((point, self.search_of(point.batch_size)?)))
            .filter(|(_, search)| !search.search.is_exact)
            .filter(|(_, search)| search.ln_steps().is_some())
            .filter(|(_, search)| search.search.more_seeds < MOST_MORE_SEEDS)
            .max_by(|a, b| worth(&a.0).total_cmp(&worth(&b.0)));
        doubtful.map_or_else(Vec::new, |(_, search)| {
            self.more_seeds(
                search,
                "which batch size is the best turns most on this one",
            )
        })
    }

    fn is_located(&self, steps: &StepsAnalysis) -> bool {
        let tested: Vec<BatchSize> = self
            .training
            .searches
            .iter()
            .filter(|search| search.ln_steps().is_some())
            .map(|search| search.batch_size)
            .collect();
        let (Some(smallest), Some(largest)) = (tested.iter().min(), tested.iter().max()) else {
            return false;
        };
        match (&steps.limits.critical_batch_size, steps.limits.why) {
            (Some(critical), _) => {
                let (Some(lower), Some(upper)) = (critical.ci_lower, critical.ci_upper) else {
                    return false;
                };
                upper <= LOCATED * lower
                    || (tested.len() >= MOST_TO_DECIDE
                        && smallest.as_f64() < lower
                        && largest.as_f64() > upper)
            }
            (None, Some(NotIdentified::BeyondTheTestedRange)) => {
                self.candidates.last() == Some(largest)
            }
            (None, Some(NotIdentified::BelowTheTestedRange)) => {
                self.candidates.first() == Some(smallest)
            }
            (None, _) => false,
        }
    }

    /// The untried batch size that tells most about where steps stop falling: beyond the end of what was tried
    /// when that is where it lies, else on the side that has less.
    fn locating(&self, steps: &StepsAnalysis) -> Vec<PlannedProbe> {
        let tested = || {
            self.training
                .searches
                .iter()
                .map(|search| search.batch_size)
        };
        let (Some(smallest), Some(largest)) = (tested().min(), tested().max()) else {
            return Vec::new();
        };
        let up = largest.as_f64() * STRIDE;
        let down = smallest.as_f64() / STRIDE;
        let untried = || {
            self.candidates
                .iter()
                .copied()
                .filter(|size| self.search_of(*size).is_none())
        };
        let nearest_untried = |wanted: f64| {
            let distance = |size: &BatchSize| (size.as_f64() / wanted).ln().abs();
            untried().min_by(|a, b| distance(a).total_cmp(&distance(b)))
        };
        let critical = steps
            .fit
            .as_ref()
            .map_or(self.training.base.as_f64(), |fit| {
                fit.curve.ln_critical().exp()
            });
        let wanted = match steps.limits.why {
            Some(NotIdentified::BeyondTheTestedRange) => up,
            Some(NotIdentified::BelowTheTestedRange) => down,
            _ if critical * STRIDE > largest.as_f64() && untried().any(|size| size > largest) => up,
            _ if critical / STRIDE < smallest.as_f64() && untried().any(|size| size < smallest) => {
                down
            }
            _ => critical,
        };
        match nearest_untried(wanted) {
            Some(size) => self.begin(
                size,
                "it tells most about where larger batches stop saving steps",
            ),
            None => Vec::new(),
        }
    }

    /// The batch size that is about to be recommended, with five seeds that had no part in choosing it.
    fn confirming(&self) -> Vec<PlannedProbe> {
        if !asks(self.definition, Question::BatchSize) {
            return Vec::new();
        }
        let chosen = self
            .analysis
            .training_time
            .as_ref()
            .and_then(|decision| decision.measured_batch_size)
            .and_then(|size| self.search_of(size));
        match chosen {
            Some(search) if search.search.more_seeds == 0 && !search.search.is_exact => self
                .more_seeds(
                    search,
                    "about to be recommended: confirmed with seeds of its own",
                ),
            _ => Vec::new(),
        }
    }
}

/// A probe with these hyperparameters and the seed of its replicate.
pub fn at(
    mut probe: PlannedProbe,
    configuration: &Configuration,
    replicate: u32,
    study_seed: u64,
) -> PlannedProbe {
    let spec = &mut probe.spec;
    spec.optimizer = configuration.optimizer.clone();
    configuration.regularisation.apply(&mut spec.workload);
    spec.seed = replicate_seed(study_seed, replicate);
    probe
}

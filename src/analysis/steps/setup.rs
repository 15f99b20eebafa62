//! Where the search for steps to target stands: the learning rates to look at, the target, and the search of
//! every batch size that was begun. Read off the evidence, so that analysis and plan see the same.

use super::search::{Aim, Next, Outcome, Search, Steps, Trial};
use crate::analysis::{Evidence, ProbeRecord};
use crate::probe::{
    EVALUATION_RATIO, InfeasibleReason, Metric, ProbeKind, ProbeState, Task, TrainingRun,
};
use crate::statistics::intervals::median;
use crate::study::{
    BatchSize, Configuration, Design, EvaluationMetric, EvaluationTarget, Hyperparameter,
    Optimizer, Regularisation, SearchSpace, StudyDefinition,
};

/// The learning rates looked at reach down to this part of the one that diverges.
pub(in crate::analysis) const RANGE_DOWN: f64 = 300.0;
/// And for a batch this many times smaller than the base, a tenth of that.
const MUCH_SMALLER: u64 = 8;
const RANGE_DOWN_SMALL: f64 = 3000.0;
/// Pilots train at these parts of the learning rate that diverges.
pub const PILOTS: [f64; 3] = [3.0, 10.0, 30.0];
/// Epochs that a pilot trains at most, and steps at least.
const PILOT_EPOCHS: u64 = 20;
const PILOT_STEPS: u64 = 500;
/// While no pilot reaches the target, the nearest goes on to this multiple of its steps.
const PILOT_GROWTH: u64 = 4;
/// And another begins at this part of the lowest learning rate so far.
const LOWER_PILOT: f64 = 10.0;
/// So many times.
const PILOT_EXTENSIONS: u32 = 2;
/// The first cap of a search, over the best pilot's steps.
const CAP_OVER_PILOT: f64 = 3.0;
/// And over the steps of the nearest batch size that is measured.
const CAP_OVER_NEIGHBOUR: f64 = 2.0;
/// The target that a pilot sets: its best loss, relaxed by this share of what it gained over chance.
const RELAXED: f64 = 0.1;
/// Around the winner of the nearest batch size, a search looks this factor up and down.
const WARM: f64 = 4.0;
/// What the nearest winner says of a learning rate beside the one that diverges.
const SECOND_WARM: f64 = 10.0;

/// Where pilots spend more of their time than this on evaluations, evaluations are further apart.
const EVALUATION_SHARE: f64 = 0.2;
/// But a run that takes no longer than this, seconds, has no time worth sparing, and evaluations further apart
/// find the crossing later.
const WORTH_SPARING: f64 = 5.0;
/// Then the next evaluation after one at step t is at this multiple of t.
const SPARSE_EVALUATION_RATIO: f64 = 1.10;

/// Where a target comes from.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum TargetSource {
    /// The study named it.
    Given,
    /// A pilot set it: its best validation loss, relaxed by 10% of what it gained over chance.
    Pilot,
}

/// What is known about training to a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Training<'a> {
    /// The batch size of the range test, the pilots and the first search.
    pub base: BatchSize,
    /// ln of the effective learning rates that are looked at, at the base.
    pub learning_rates: Option<(f64, f64)>,
    /// Whether the range test never diverged.
    pub never_diverged: bool,
    /// What the pilots do next.
    pub pilot: Pilot,
    /// The target.
    pub target: Option<(EvaluationTarget, TargetSource)>,
    /// The searches that were begun, in the order in which they were.
    pub searches: Vec<BatchSearch<'a>>,
    /// The gradient noise scale at the base.
    pub noise_scale: Option<f64>,
    /// After an evaluation at step t the next is at max(t + 1, ⌈ratio·t⌉), at every batch size alike.
    pub evaluation_ratio: f64,
    /// Time spent on evaluations over the time of a run, median over the runs that count.
    pub evaluation_share: Option<f64>,
}

/// What the pilots do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Pilot {
    /// These trials are still to be made.
    Wanted(Vec<(Optimizer, TrainingRun)>),
    /// The best took so many steps, or trained for so many without a target.
    Steps(f64),
    /// None reached the target within so many steps.
    NotReached(u64),
    /// All diverged.
    Diverged,
}

/// The search at one batch size.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSearch<'a> {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Its rules.
    pub search: Search,
    /// Its trials that have ended.
    pub trials: Vec<Trial<'a>>,
    /// What it does next, or what it found.
    pub next: Next,
    /// Whether this is the second search of its batch size.
    pub is_second: bool,
}

impl BatchSearch<'_> {
    /// ln of the steps, if they were measured.
    pub fn ln_steps(&self) -> Option<f64> {
        match &self.next {
            Next::Done(found) => match found.steps {
                Steps::Measured { ln, .. } => Some(ln),
                _ => None,
            },
            Next::Trials(_) => None,
        }
    }
}

/// The batch sizes that can be trained to a target: those of the grid that an epoch holds and that are known to
/// fit.
pub fn candidates(
    definition: &StudyDefinition,
    largest_feasible: Option<BatchSize>,
) -> Vec<BatchSize> {
    let mut sizes = definition.trainable_batch_sizes();
    sizes.retain(|size| largest_feasible.is_none_or(|most| *size <= most));
    sizes
}

/// Whether the loss is followed as an expectation.
pub fn is_expected(definition: &StudyDefinition) -> bool {
    definition
        .workload
        .target
        .as_ref()
        .is_some_and(|target| target.metric == EvaluationMetric::ExpectedExcessLoss)
}

/// The target that the study names.
fn given(definition: &StudyDefinition) -> Option<EvaluationTarget> {
    definition.workload.target.clone()
}

/// Reads everything off the evidence; `base` is where training begins if it has not begun yet.
pub fn read<'a>(
    definition: &StudyDefinition,
    evidence: &'a Evidence,
    base: BatchSize,
) -> Training<'a> {
    let first = evidence
        .probes
        .iter()
        .find(|probe| is_range_test(definition, probe) || is_run(probe));
    let base = first.map_or(base, ProbeRecord::batch_size);
    let named = definition.search.ranges.get(&Hyperparameter::LearningRate);
    let tested = evidence
        .of_kind(ProbeKind::LearningRateRange)
        .find(|probe| is_range_test(definition, probe) && probe.state.has_ended());
    let never_diverged = named.is_none()
        && tested.is_some_and(|probe| {
            probe.succeeded() && probe.figure(Metric::DivergentLearningRate).is_none()
        });
    let learning_rates = named
        .map(|range| (range.lower.ln(), range.upper.ln()))
        .or_else(|| Some(tested_range(definition, tested?)));
    let pilot = learning_rates.map_or(Pilot::Wanted(Vec::new()), |(_, upper)| {
        pilot(definition, evidence, base, upper)
    });
    let target = given(definition)
        .map(|target| (target, TargetSource::Given))
        .or_else(|| {
            Some((
                pilot_target(definition, evidence, &pilot)?,
                TargetSource::Pilot,
            ))
        });
    let noise_scale = evidence
        .of_kind(ProbeKind::NoiseScale)
        .find_map(|probe| probe.figure(Metric::NoiseScale));
    let shares: Vec<f64> = runs(evidence)
        .filter(|probe| probe.wave <= first_wave(evidence) && probe.device_secs >= WORTH_SPARING)
        .filter_map(|probe| probe.figure(Metric::EvaluationShare))
        .collect();
    let evaluation_ratio = match median(&shares) {
        Some(share) if share > EVALUATION_SHARE => SPARSE_EVALUATION_RATIO,
        _ => EVALUATION_RATIO,
    };
    let mut training = Training {
        evaluation_ratio,
        evaluation_share: None,
        base,
        learning_rates,
        never_diverged,
        pilot,
        target,
        searches: Vec::new(),
        noise_scale,
    };
    training.searches = searches(definition, evidence, &training);
    let counted: Vec<f64> = runs(evidence)
        .filter(|probe| probe.wave > first_wave(evidence))
        .filter_map(|probe| probe.figure(Metric::EvaluationShare))
        .collect();
    training.evaluation_share = median(&counted);
    training
}

/// Whether a probe is a run of a pilot or of a search: not one that seeks where to start.
fn is_run(probe: &ProbeRecord) -> bool {
    matches!(&probe.spec.task, Task::Training(run) if !run.compares_with_chance)
}

/// The runs of pilots and searches, in plan order.
fn runs(evidence: &Evidence) -> impl Iterator<Item = &ProbeRecord> {
    evidence.probes.iter().filter(|probe| is_run(probe))
}

/// Whether a probe is the range test of the study's own model and optimizer.
fn is_range_test(definition: &StudyDefinition, probe: &ProbeRecord) -> bool {
    probe.kind() == ProbeKind::LearningRateRange
        && probe.spec.workload.model == definition.workload.model
        && probe.spec.optimizer == definition.optimizer
}

/// The wave of the first pilots.
fn first_wave(evidence: &Evidence) -> u32 {
    let mut waves = runs(evidence).map(|it| it.wave);
    waves.next().unwrap_or(0)
}

/// ln of the range of effective learning rates that a range test leaves.
pub(in crate::analysis) fn tested_range(
    definition: &StudyDefinition,
    test: &ProbeRecord,
) -> (f64, f64) {
    let top = match &test.spec.task {
        Task::LearningRateRange(test) => test.upper,
        _ => 1.0,
    };
    let diverged = test.figure(Metric::DivergentLearningRate).unwrap_or(top);
    let upper = (diverged / (1.0 - definition.optimizer.effective_momentum())).ln();
    (upper - RANGE_DOWN.ln(), upper)
}

/// Steps that a pilot trains at most.
pub(in crate::analysis) fn pilot_steps(definition: &StudyDefinition, base: BatchSize) -> u64 {
    let epoch = definition.workload.dataset.facts().training_examples / base.0.max(1);
    epoch.saturating_mul(PILOT_EPOCHS).max(PILOT_STEPS)
}

fn pilot(definition: &StudyDefinition, evidence: &Evidence, base: BatchSize, upper: f64) -> Pilot {
    let target = given(definition);
    let mut steps = pilot_steps(definition, base);
    let at = |part: f64| {
        let mut optimizer = definition.optimizer.clone();
        let effective = upper.exp() / part;
        optimizer.set(
            Hyperparameter::LearningRate,
            effective * (1.0 - optimizer.effective_momentum()),
        );
        optimizer
    };
    let run = |max_steps| TrainingRun::new(max_steps, target.clone(), EVALUATION_RATIO);
    let find = |optimizer: &Optimizer, max_steps: u64| {
        runs(evidence).find(|probe| {
            probe.batch_size() == base
                && probe.spec.replicate == 0
                && probe.spec.optimizer == *optimizer
                && matches!(&probe.spec.task, Task::Training(run) if run.max_steps >= max_steps && run.target == target)
        })
    };
    let mut wanted: Vec<Optimizer> = PILOTS.into_iter().map(at).collect();
    let mut lowest = PILOTS.into_iter().fold(1.0, f64::max);
    for extension in 0..=PILOT_EXTENSIONS {
        let found: Vec<Option<&ProbeRecord>> = wanted
            .iter()
            .map(|optimizer| find(optimizer, steps).filter(|probe| probe.state.has_ended()))
            .collect();
        if found.iter().any(Option::is_none) {
            return Pilot::Wanted(
                wanted
                    .iter()
                    .zip(&found)
                    .filter(|(_, probe)| probe.is_none())
                    .map(|(optimizer, _)| (optimizer.clone(), run(steps)))
                    .collect(),
            );
        }
        let ended: Vec<&ProbeRecord> = found.into_iter().flatten().collect();
        let survived: Vec<&ProbeRecord> = ended
            .iter()
            .copied()
            .filter(|probe| probe.succeeded())
            .collect();
        let Some(nearest) = survived
            .iter()
            .filter_map(|probe| Some((score(definition, probe)?, *probe)))
            .min_by(|a, b| a.0.total_cmp(&b.0))
        else {
            if extension == PILOT_EXTENSIONS {
                return Pilot::Diverged;
            }
            lowest *= LOWER_PILOT;
            wanted = vec![at(lowest)];
            continue;
        };
        if target.is_none() {
            return Pilot::Steps(steps as f64);
        }
        let best = survived
            .iter()
            .filter_map(|probe| probe.figure(Metric::StepsToTarget))
            .reduce(f64::min);
        if let Some(best) = best {
            return Pilot::Steps(best.max(1.0));
        }
        if extension == PILOT_EXTENSIONS {
            break;
        }
        // Too few steps, or a learning rate whose noise keeps it above the target: both are tried.
        lowest *= LOWER_PILOT;
        wanted = vec![nearest.1.spec.optimizer.clone(), at(lowest)];
        steps = steps.saturating_mul(PILOT_GROWTH);
    }
    Pilot::NotReached(steps)
}

/// The best value of a run, the less the better.
fn score(definition: &StudyDefinition, probe: &ProbeRecord) -> Option<f64> {
    let metric = given(definition).map_or_else(
        || EvaluationMetric::of_loss(definition.workload.loss),
        |target| target.metric,
    );
    Some(metric.score(probe.figure(Metric::BestEvaluation)?))
}

fn pilot_target(
    definition: &StudyDefinition,
    evidence: &Evidence,
    pilot: &Pilot,
) -> Option<EvaluationTarget> {
    let Pilot::Steps(_) = pilot else { return None };
    // Runs without a target come again later, when it is asked how good a model gets.
    let pilots = || {
        runs(evidence).take_while(
            |probe| matches!(&probe.spec.task, Task::Training(run) if run.target.is_none()),
        )
    };
    let best = pilots()
        .filter_map(|probe| probe.figure(Metric::BestEvaluation))
        .reduce(f64::min)?;
    let chance = pilots().find_map(|probe| probe.figure(Metric::ChanceLoss))?;
    (chance > best).then(|| EvaluationTarget {
        metric: EvaluationMetric::of_loss(definition.workload.loss),
        value: best + RELAXED * (chance - best),
    })
}

/// The trials of one batch size that have ended, to a target or, without one, for the least loss.
pub(in crate::analysis) fn trials<'a>(
    evidence: &'a Evidence,
    batch_size: BatchSize,
    target: Option<&EvaluationTarget>,
) -> Vec<Trial<'a>> {
    runs(evidence)
        .filter(|probe| probe.batch_size() == batch_size && probe.state.has_ended())
        .filter_map(|probe| {
            let Task::Training(run) = &probe.spec.task else {
                return None;
            };
            if run.target.as_ref() != target {
                return None;
            }
            let best = probe.figure(Metric::BestEvaluation);
            let reached = match target {
                Some(_) => outcome(probe, run),
                None => least_loss(probe),
            };
            Some(Trial {
                probe_id: probe.id,
                optimizer: &probe.spec.optimizer,
                regularisation: Regularisation::of(&probe.spec.workload),
                replicate: probe.spec.replicate,
                max_steps: run.max_steps,
                wave: probe.wave,
                outcome: reached,
                score: best.map(|best| target.map_or(best, |it| it.metric.score(best))),
                best_step: probe.figure(Metric::BestStep),
            })
        })
        .collect()
}

/// What a run without a target came down to.
fn least_loss(probe: &ProbeRecord) -> Outcome {
    match (probe.state, probe.infeasible) {
        (ProbeState::Succeeded, _) => probe
            .figure(Metric::BestEvaluation)
            .map_or(Outcome::Nothing, Outcome::Reached),
        (ProbeState::Infeasible, Some(InfeasibleReason::Diverged)) => Outcome::Diverged,
        _ => Outcome::Nothing,
    }
}

fn outcome(probe: &ProbeRecord, run: &TrainingRun) -> Outcome {
    match (probe.state, probe.infeasible) {
        (ProbeState::Succeeded, _) => {
            probe
                .figure(Metric::StepsToTarget)
                .map_or(Outcome::Capped(run.max_steps), |steps| {
                    // A target that is passed within the first step takes one.
                    Outcome::Reached(steps.max(1.0))
                })
        }
        (ProbeState::Infeasible, Some(InfeasibleReason::Diverged)) => Outcome::Diverged,
        _ => Outcome::Nothing,
    }
}

/// The searches that were begun.
fn searches<'a>(
    definition: &StudyDefinition,
    evidence: &'a Evidence,
    training: &Training<'a>,
) -> Vec<BatchSearch<'a>> {
    let Some((target, _)) = &training.target else {
        return Vec::new();
    };
    let mut begun: Vec<(BatchSize, u32)> = Vec::new();
    for probe in runs(evidence) {
        let is_to_target =
            matches!(&probe.spec.task, Task::Training(run) if run.target.as_ref() == Some(target));
        if is_to_target && !begun.iter().any(|(size, _)| *size == probe.batch_size()) {
            begun.push((probe.batch_size(), probe.wave));
        }
    }
    let mut searches: Vec<BatchSearch<'a>> = Vec::new();
    for (batch_size, wave) in begun {
        let sources: Vec<Source> = searches
            .iter()
            .filter_map(|search| Source::before(search, wave))
            .collect();
        let Some(search) = set_up(definition, training, batch_size, &sources) else {
            continue;
        };
        searches.push(BatchSearch::of(
            batch_size,
            search,
            trials(evidence, batch_size, Some(target)),
        ));
    }
    searches
}

impl<'a> BatchSearch<'a> {
    /// Where a search stands, given the trials of its batch size.
    pub(in crate::analysis) fn of(
        batch_size: BatchSize,
        mut search: Search,
        trials: Vec<Trial<'a>>,
    ) -> Self {
        let last = trials.iter().map(|trial| trial.replicate).max();
        search.more_seeds = last.unwrap_or(0).saturating_sub(2 * super::search::SEEDS);
        let next = search.next(&trials);
        Self {
            batch_size,
            search,
            trials,
            next,
            is_second: false,
        }
    }
}

/// What a finished search tells others.
#[derive(Debug, Clone)]
pub struct Source {
    batch_size: BatchSize,
    configuration: Configuration,
    ln_steps: f64,
}

impl Source {
    /// What the search had found before a wave; none while it had not.
    fn before(search: &BatchSearch<'_>, wave: u32) -> Option<Self> {
        let before: Vec<Trial<'_>> = search
            .trials
            .iter()
            .filter(|trial| trial.wave < wave)
            .copied()
            .collect();
        let usual = Search {
            more_seeds: 0,
            ..search.search.clone()
        };
        Self::of(search.batch_size, &usual.next(&before))
    }

    fn of(batch_size: BatchSize, next: &Next) -> Option<Self> {
        let Next::Done(found) = next else { return None };
        let Steps::Measured { ln, .. } = found.steps else {
            return None;
        };
        Some(Self {
            batch_size,
            configuration: found.configuration.clone(),
            ln_steps: ln,
        })
    }
}

impl<'a> Training<'a> {
    /// The search of a batch size that has not been begun, given everything that is known now.
    pub fn new_search(
        &self,
        definition: &StudyDefinition,
        batch_size: BatchSize,
    ) -> Option<Search> {
        let sources: Vec<Source> = self
            .searches
            .iter()
            .filter_map(|search| Source::of(search.batch_size, &search.next))
            .collect();
        set_up(definition, self, batch_size, &sources)
    }
}

/// Trials of a screening by the number of hyperparameters, when nothing is known and when something is.
pub(in crate::analysis) fn trial_count(
    design: Design,
    hyperparameters: usize,
    is_warm: bool,
) -> usize {
    let index = hyperparameters.clamp(1, 4) - 1;
    match (design, is_warm) {
        (Design::Full, _) => [16, 32, 64, 128][index],
        (Design::Adaptive, false) => [8, 16, 32, 64][index],
        (Design::Adaptive, true) => [8, 12, 24, 48][index],
    }
}

/// The search of a batch size, given what was found at others.
pub(in crate::analysis) fn set_up(
    definition: &StudyDefinition,
    training: &Training<'_>,
    batch_size: BatchSize,
    sources: &[Source],
) -> Option<Search> {
    let mut space = space(definition, training, batch_size, &definition.search)?;
    let distance = |source: &&Source| {
        (source.batch_size.as_f64() / batch_size.as_f64())
            .ln()
            .abs()
    };
    let nearest = sources
        .iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let is_warm =
        definition.design == Design::Adaptive && nearest.is_some() && !is_expected(definition);
    if let Some(nearest) = nearest.filter(|_| is_warm) {
        around(&mut space, nearest, batch_size, training, WARM);
    }
    let steps = match (nearest, &training.pilot) {
        (Some(nearest), _) => {
            let fewer = (nearest.batch_size.as_f64() / batch_size.as_f64()).max(1.0);
            CAP_OVER_NEIGHBOUR * nearest.ln_steps.exp() * fewer
        }
        (None, Pilot::Steps(steps)) => {
            let fewer = (training.base.as_f64() / batch_size.as_f64()).max(1.0);
            let over = if given(definition).is_some() {
                CAP_OVER_PILOT
            } else {
                1.0
            };
            over * steps * fewer
        }
        (None, _) => return None,
    };
    let trials = if is_expected(definition) {
        trial_count(Design::Full, space.axes.len(), false)
    } else {
        trial_count(definition.design, space.axes.len(), is_warm)
    };
    Some(Search {
        aim: Aim::StepsToTarget,
        space,
        trials,
        seed: definition.seed.wrapping_add(batch_size.0),
        cap: (steps.ceil() as u64).max(10),
        is_exact: is_expected(definition),
        more_seeds: 0,
    })
}

/// The hyperparameters of a search at a batch size, the learning rates those that the range test leaves.
pub(in crate::analysis) fn space(
    definition: &StudyDefinition,
    training: &Training<'_>,
    batch_size: BatchSize,
    search: &crate::study::Search,
) -> Option<SearchSpace> {
    let (lower, upper) = training.learning_rates?;
    let named = search.ranges.get(&Hyperparameter::LearningRate);
    let mut space = search.space(configuration(definition));
    for axis in &mut space.axes {
        if axis.hyperparameter == Hyperparameter::LearningRate {
            let much_smaller = batch_size.0 <= training.base.0 / MUCH_SMALLER && named.is_none();
            axis.lower = if much_smaller {
                upper - RANGE_DOWN_SMALL.ln()
            } else {
                lower
            };
            axis.upper = upper;
        }
    }
    Some(space)
}

/// The study's hyperparameters as they are.
pub fn configuration(definition: &StudyDefinition) -> Configuration {
    Configuration {
        optimizer: definition.optimizer.clone(),
        regularisation: Regularisation::of(&definition.workload),
    }
}

/// Narrows a space to what the winner of another batch size leads to expect. The learning rate follows
/// η(B) ∝ 1/(1 + B_crit/B) (McCandlish et al. 2018, eq. 2.10), the rest stays.
fn around(
    space: &mut SearchSpace,
    source: &Source,
    batch_size: BatchSize,
    training: &Training<'_>,
    factor: f64,
) {
    let critical = training.noise_scale.unwrap_or(training.base.as_f64());
    let gain = |size: BatchSize| 1.0 / (1.0 + critical / size.as_f64());
    let Configuration {
        optimizer,
        regularisation,
    } = &source.configuration;
    let centre = space.point(optimizer, *regularisation);
    for (axis, mut middle) in space.axes.iter_mut().zip(centre) {
        if axis.hyperparameter == Hyperparameter::LearningRate {
            middle += (gain(batch_size) / gain(source.batch_size)).ln();
        }
        let (lower, upper) = (axis.lower, axis.upper);
        axis.lower = middle - factor.ln();
        axis.upper = middle + factor.ln();
        if let Some(hard) = axis.hard_upper() {
            axis.upper = axis.upper.min(hard);
            axis.lower = axis.lower.min(hard - factor.ln());
        }
        // Where the range is the study's own, nothing is sought outside.
        if axis.hyperparameter != Hyperparameter::LearningRate {
            axis.lower = axis.lower.max(lower.min(axis.upper - factor.ln()));
            axis.upper = axis.upper.min(upper.max(axis.lower + factor.ln()));
        }
    }
}

/// A second search of a batch size whose result the smaller batch sizes contradict: wider, and with other
/// points.
pub fn second_search(
    definition: &StudyDefinition,
    training: &Training<'_>,
    search: &BatchSearch<'_>,
    better: &BatchSearch<'_>,
) -> Option<Search> {
    let source = Source::of(better.batch_size, &better.next)?;
    let mut space = definition.search.space(configuration(definition));
    around(
        &mut space,
        &source,
        search.batch_size,
        training,
        SECOND_WARM,
    );
    Some(Search {
        aim: Aim::StepsToTarget,
        space,
        trials: trial_count(Design::Full, search.search.space.axes.len(), false),
        seed: search.search.seed ^ 0x5ec0_0d00,
        cap: (source.ln_steps.exp() * CAP_OVER_NEIGHBOUR).ceil() as u64,
        is_exact: search.search.is_exact,
        more_seeds: 0,
    })
}

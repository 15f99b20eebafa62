//! Comparing optimizers. A comparison says something about optimizers only when each is tuned as well as the other
//! (Choi et al. 2019, arXiv:1910.05446), so every candidate gets the same budget at the same batch size: a
//! learning-rate range test and pilots of its own, a search of its learning rate, and the offer of a further
//! hyperparameter, which it takes when a search with half the trials shows that it pays; when one takes its offer, all do,
//! or one would have been tuned better than the rest. What is compared is the
//! steps to the target, or training time where times are measured, of each winner, over seeds that had no part
//! in choosing it.
//!
//! Every candidate is a *series* of the evidence: its probes and its seeds are its own, so two candidates are
//! independent even where they are the same optimizer in all but name. A candidate's series read alone is a study of
//! its own, which [`setup`] reads like any other.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::evidence::series_seed;
use super::steps::fit::SEARCH_SD;
use super::steps::search::{Found, Next, Outcome, SEEDS, Search, Steps, Trial, Wanted};
use super::steps::{
    MEDIAN_OVER_MEAN, Pilot, SURE, SearchState, TargetSource, Training, USUAL_SEED_SD, setup,
};
use super::{Caveat, Estimate, Evidence};
use crate::probe::{Metric, ProbeKind, TrainingRun};
use crate::statistics::blocked::BlockedDesign;
use crate::statistics::intervals::{mean, median, standard_deviation, student_t_cdf};
use crate::study::{
    BatchSize, Design, EvaluationTarget, Hyperparameter, Optimizer, ProbeId, Question,
    StudyDefinition,
};

/// A further hyperparameter is opened when it saves more than this share of the steps, beyond what the seeds leave in
/// doubt: less is not worth the trials that it costs from then on.
pub const WORTH_OPENING: f64 = 0.05;
/// Hyperparameters that are tuned at most: with more, no number of trials that anybody pays for fills the space.
const MOST_TUNED: usize = 4;
/// Seeds of each winner that are compared, beyond those that chose it and that chose its hyperparameters: with
/// seeds that scatter by 15%, a factor of 1.5 is then four standard errors.
pub const COMPARED_SEEDS: u32 = 2 * SEEDS;
/// A difference is declared at this probability of the one or of the other.
pub const DECLARED: f64 = 0.975;
/// Times that a step of each winner is timed, in a process each.
pub const TIMINGS: u32 = 3;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComparedBy {
    /// Steps to the target: no times were asked for, or not every candidate has been timed.
    StepsToTarget,
    /// Time per step × steps to the target.
    TrainingTime,
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComparisonVerdict {
    /// They are the same optimizer: nothing was trained.
    Identical,
    /// One is better, at a probability of 0.975.
    DifferenceDeclared,
    /// None is at that probability.
    NoDifferenceDeclared,
}

/// A step of the tuning of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = TuningStage)]
pub struct Stage {
    /// What was tuned.
    pub hyperparameters: Vec<Hyperparameter>,
    /// The one that was offered; null in the first stage.
    pub offered: Option<Hyperparameter>,
    /// Points of the screening: those of the offer, half of what it gets when it is taken.
    pub trials: u64,
    /// Steps to target of its best, median over five seeds; null where none reached the target.
    pub steps: Option<f64>,
    /// Steps without what was offered over steps with it; null in the first stage.
    pub gain: Option<f64>,
    /// Standard error of ln of the gain.
    pub gain_error: Option<f64>,
    /// Whether the gain is above 1.05 by more than its standard error.
    pub pays: bool,
    /// Whether it goes on with these hyperparameters: it pays, or it did for another candidate.
    pub is_taken: bool,
}

/// A candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OptimizerCandidate {
    /// As the study names it.
    pub named: Optimizer,
    /// The number of the candidate, from 0, that it is identical to; the rest is that one's then.
    pub identical_to: Option<usize>,
    /// Where its search stands.
    pub state: SearchState,
    /// With the hyperparameters that need the fewest steps.
    pub optimizer: Optimizer,
    /// What was tuned in the end.
    pub tuned: Vec<Hyperparameter>,
    /// How it came to that.
    pub stages: Vec<Stage>,
    /// Steps to the target, median over the compared seeds.
    pub steps: Option<Estimate>,
    /// Where it was not reached: the steps are more than this.
    pub more_than_steps: Option<u64>,
    /// Mean time of a step, where times are compared.
    pub time_per_step_secs: Option<f64>,
    /// Time per step × steps, where times are compared.
    pub training_time_secs: Option<Estimate>,
    /// Seeds behind `steps`; 0 where the result depends on no seed.
    pub seeds: u64,
    /// Training runs that it had.
    pub runs: u64,
    /// Those that were lost by the service's own fault.
    pub lost: u64,
    /// Hyperparameters whose best value lies at an end of the range that was searched.
    pub at_boundary: Vec<Hyperparameter>,
    /// The probes of the compared runs.
    pub probe_ids: Vec<ProbeId>,
}

/// Two candidates, by their numbers from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OptimizerPair {
    /// The one.
    pub first: usize,
    /// The other.
    pub second: usize,
    /// What is minimised, of the second over the first, with its 95% interval; a bound where one did not reach the
    /// target. Null where neither did, and where they are identical.
    pub ratio: Option<Estimate>,
    /// Probability that the first needs less; a bound where one did not reach the target.
    pub p_first_better: Option<f64>,
    /// The better one, where a difference is declared.
    pub better: Option<usize>,
    /// Whether they are the same optimizer.
    pub is_identical: bool,
}

/// A comparison of optimizers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OptimizerAnalysis {
    /// The batch size at which they are compared.
    pub batch_size: BatchSize,
    /// What training is to reach; null before it is known.
    pub target: Option<EvaluationTarget>,
    /// Where the target comes from.
    pub target_source: Option<TargetSource>,
    /// What is minimised.
    pub compared_by: ComparedBy,
    /// In the study's order.
    pub candidates: Vec<OptimizerCandidate>,
    /// Every pair.
    pub pairs: Vec<OptimizerPair>,
    /// All of them together; null before every candidate is tuned, and where fewer than two reached the target.
    pub verdict: Option<ComparisonVerdict>,
    /// The number of the one to take: of those that no other is declared better than, the family's first optimizer by
    /// the rule of thumb, else the one with the least.
    pub recommended: Option<usize>,
    /// Remarks: `W_UNFAIR_COMPARISON`, `W_TARGET_NOT_REACHED`, `W_DIVERGED`, `W_NO_TARGET`.
    pub caveats: Vec<Caveat>,
}

/// Where a comparison stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The batch size at which it is made.
    pub batch_size: BatchSize,
    /// What training is to reach.
    pub target: Option<(EvaluationTarget, TargetSource)>,
    /// For every candidate the first before it that is the same one.
    pub identical_to: Vec<Option<usize>>,
    /// One for each candidate that is not; none before the target is known, and where there is nothing to compare.
    pub tracks: Vec<Track>,
}

/// Where the tuning of one candidate stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Track {
    /// The number of the candidate.
    pub candidate: usize,
    /// The study that tuning it is.
    pub definition: StudyDefinition,
    /// What comes next.
    pub next: Step,
    /// After an evaluation at step t the next is at max(t + 1, ⌈ratio·t⌉), for every candidate alike.
    pub evaluation_ratio: f64,
    stages: Vec<Stage>,
    /// How many hyperparameters are tuned in the end.
    tuned: usize,
    end: End,
    runs: u64,
    lost: u64,
    /// Scatter of ln S between seeds.
    scatter: Scatter,
    /// ln of the mean time of a step in each round.
    ln_times: Vec<f64>,
    /// Whether its winner was to be timed already.
    is_timed: bool,
}

/// What a candidate needs next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A learning-rate range test.
    RangeTest,
    /// Pilots.
    Pilots(Vec<(Optimizer, TrainingRun)>),
    /// The pilots of the other candidates: evaluations are as far apart in all.
    Wait,
    /// These trials.
    Trials(Vec<Wanted>),
    /// A step of its winner timed, so many times.
    Times(Optimizer),
    /// Nothing.
    Done,
}

/// What the tuning of a candidate came to.
#[derive(Debug, Clone, PartialEq)]
enum End {
    Open,
    Found(Box<Found>, Option<Level>, Vec<ProbeId>),
    NotReached(u64),
    Diverged,
}

/// ln of the steps of a winner.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Level {
    ln: f64,
    /// 0 where it depends on none.
    seeds: usize,
    /// Whether it is a bound: at least this.
    is_bound: bool,
    /// Hyperparameters that were tuned.
    tuned: usize,
}

/// A pooled sum of squares.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Scatter {
    squares: f64,
    freedom: f64,
}

impl Scatter {
    fn of(groups: &[Vec<f64>]) -> Self {
        groups
            .iter()
            .filter_map(|group| Some((standard_deviation(group)?, group.len() as f64 - 1.0)))
            .fold(Self::default(), |sum, (sd, freedom)| Self {
                squares: sum.squares + freedom * sd * sd,
                freedom: sum.freedom + freedom,
            })
    }

    fn and(self, other: Self) -> Self {
        Self {
            squares: self.squares + other.squares,
            freedom: self.freedom + other.freedom,
        }
    }

    fn variance(self) -> f64 {
        if self.freedom > 0.0 {
            self.squares / self.freedom
        } else {
            USUAL_SEED_SD * USUAL_SEED_SD
        }
    }
}

/// The series of a candidate.
pub fn series(candidate: usize) -> u32 {
    candidate as u32 + 1
}

/// Trials of a full search with so many hyperparameters: what tuning takes is known before it begins.
pub fn trials_for(hyperparameters: usize) -> u64 {
    setup::trial_count(Design::Full, hyperparameters, false) as u64
}

/// Whether training time is what is compared.
pub fn compares_times(definition: &StudyDefinition) -> bool {
    [
        Question::Throughput,
        Question::Bottleneck,
        Question::GradientAccumulation,
        Question::BatchSize,
    ]
    .iter()
    .any(|question| definition.questions.contains(question))
}

/// Reads off the evidence where a comparison stands; `training` is where the study's own training does. `None` where
/// none is asked for.
pub fn read(
    definition: &StudyDefinition,
    evidence: &Evidence,
    training: &Training<'_>,
) -> Option<Comparison> {
    if !definition.compares_optimizers() {
        return None;
    }
    let identical_to = definition.optimizers.identical();
    let mut comparison = Comparison {
        batch_size: training.base,
        target: training.target.clone(),
        identical_to,
        tracks: Vec::new(),
    };
    let distinct: Vec<usize> = (0..comparison.identical_to.len())
        .filter(|index| comparison.identical_to[*index].is_none())
        .collect();
    let Some((target, _)) = comparison.target.clone().filter(|_| distinct.len() > 1) else {
        return Some(comparison);
    };
    let views: Vec<(usize, StudyDefinition, Evidence)> = distinct
        .into_iter()
        .map(|candidate| {
            let view = view(definition, candidate, &target);
            (candidate, view, evidence.series(series(candidate)))
        })
        .collect();
    // Where it has begun it goes on, whatever is known of memory since.
    let begun = views.iter().flat_map(|(_, _, evidence)| &evidence.probes);
    comparison.batch_size = begun
        .clone()
        .next()
        .map_or(training.base, |probe| probe.batch_size());
    let trainings: Vec<Training<'_>> = views
        .iter()
        .map(|(_, view, evidence)| setup::read(view, evidence, comparison.batch_size))
        .collect();
    let are_piloted = trainings
        .iter()
        .all(|it| it.learning_rates.is_some() && !matches!(it.pilot, Pilot::Wanted(_)));
    let evaluation_ratio = trainings
        .iter()
        .map(|it| it.evaluation_ratio)
        .fold(1.0, f64::max);
    let tracks = |offers: usize| -> Vec<Track> {
        views
            .iter()
            .zip(&trainings)
            .map(|((candidate, view, evidence), training)| {
                let mut track = Track {
                    candidate: *candidate,
                    definition: view.clone(),
                    next: Step::Done,
                    evaluation_ratio,
                    stages: Vec::new(),
                    tuned: 1,
                    end: End::Open,
                    runs: 0,
                    lost: 0,
                    scatter: Scatter::default(),
                    ln_times: ln_times(evidence),
                    is_timed: evidence.of_kind(ProbeKind::StepTime).next().is_some(),
                };
                track.go(training, evidence, &target, are_piloted.then_some(offers));
                track
            })
            .collect()
    };
    // What pays for one is given to all.
    let mut offers = 0;
    comparison.tracks = tracks(offers);
    while let Some(more) = comparison.tracks.iter().map(Track::taken).max()
        && more > offers
    {
        offers = more;
        comparison.tracks = tracks(offers);
    }
    let have_ended = comparison
        .tracks
        .iter()
        .all(|track| track.next == Step::Done);
    if have_ended && compares_times(definition) {
        for track in &mut comparison.tracks {
            track.next = track.timing();
        }
    }
    Some(comparison)
}

/// The study that tuning a candidate is.
fn view(
    definition: &StudyDefinition,
    candidate: usize,
    target: &EvaluationTarget,
) -> StudyDefinition {
    let mut view = definition.clone();
    view.optimizer = definition.optimizers.candidates()[candidate].clone();
    view.seed = series_seed(definition.seed, series(candidate));
    view.workload.target = Some(target.clone());
    view.search.hyperparameters = definition.optimizers.tuned_of(&view.optimizer);
    // A range of learning rates belongs to its optimizer: every candidate finds its own.
    view.search.ranges.remove(&Hyperparameter::LearningRate);
    view
}

fn ln_times(evidence: &Evidence) -> Vec<f64> {
    let mut times: Vec<(u32, f64)> = evidence
        .of_kind(ProbeKind::StepTime)
        .filter_map(|probe| {
            let secs = probe.figure(Metric::TimePerStepMean)?;
            (secs > 0.0).then(|| (probe.spec.replicate, secs.ln()))
        })
        .collect();
    times.sort_by_key(|(round, _)| *round);
    times.into_iter().map(|(_, ln)| ln).collect()
}

impl Track {
    /// Goes through the stages as far as the evidence reaches.
    fn go(
        &mut self,
        training: &Training<'_>,
        evidence: &Evidence,
        target: &EvaluationTarget,
        offers: Option<usize>,
    ) {
        let trials = setup::trials(evidence, training.base, Some(target));
        self.runs = trials.len() as u64;
        self.lost = trials
            .iter()
            .filter(|trial| trial.outcome == Outcome::Nothing)
            .count() as u64;
        if training.learning_rates.is_none() {
            self.next = Step::RangeTest;
            return;
        }
        match &training.pilot {
            Pilot::Wanted(runs) => self.next = Step::Pilots(runs.clone()),
            Pilot::NotReached(steps) => self.end = End::NotReached(*steps),
            Pilot::Diverged => self.end = End::Diverged,
            Pilot::Steps(_) => match offers.map(|offers| self.tune(training, &trials, offers)) {
                None => self.next = Step::Wait,
                Some(Ok(end)) => self.end = end,
                Some(Err(wanted)) => self.next = Step::Trials(wanted),
            },
        }
    }

    /// Offers taken so far.
    fn taken(&self) -> usize {
        let offers = self.stages.iter().filter(|stage| stage.offered.is_some());
        offers.filter(|stage| stage.is_taken).count()
    }

    /// The stages: what is tuned from the beginning, then offers, so many of which are taken whatever they bring, then the
    /// seeds that are compared.
    fn tune(
        &mut self,
        training: &Training<'_>,
        trials: &[Trial<'_>],
        offers: usize,
    ) -> Result<End, Vec<Wanted>> {
        let done = |search: &Search| match search.next(trials) {
            Next::Done(found) => Ok(found),
            Next::Trials(wanted) => Err(wanted),
        };
        let mut tuned = self.definition.search.hyperparameters.clone();
        let Some(mut search) = self.search(training, &tuned) else {
            return Ok(End::Diverged);
        };
        let mut found = done(&search)?;
        let choosing = SEEDS + 1..=2 * SEEDS;
        self.scatter = Scatter::of(&found.scatter);
        let mut level = level(&found, trials, choosing.clone());
        self.stages.push(Stage {
            hyperparameters: tuned.clone(),
            offered: None,
            trials: search.trials as u64,
            steps: level.and_then(Level::steps),
            gain: None,
            gain_error: None,
            pays: true,
            is_taken: true,
        });
        for offered in self.definition.optimizer.further_hyperparameters() {
            let Some(before) = level.filter(|it| !it.is_bound && tuned.len() < MOST_TUNED) else {
                break;
            };
            if tuned.contains(&offered) {
                continue;
            }
            let wider: Vec<Hyperparameter> = Hyperparameter::ALL
                .into_iter()
                .filter(|it| *it == offered || tuned.contains(it))
                .collect();
            let Some(full) = self.search(training, &wider) else {
                break;
            };
            let half = Search {
                trials: full.trials.div_ceil(2),
                ..full.clone()
            };
            let with = done(&half)?;
            self.scatter = self.scatter.and(Scatter::of(&with.scatter));
            let after = self::level(&with, trials, choosing.clone());
            let gain = after
                .filter(|after| !after.is_bound)
                .map(|after| before.ln - after.ln);
            let error = after.map(|after| self.error(before).hypot(self.error(after)));
            let pays = gain
                .zip(error)
                .is_some_and(|(gain, error)| gain - error > WORTH_OPENING.ln_1p());
            let is_taken = pays || self.taken() < offers;
            self.stages.push(Stage {
                hyperparameters: wider.clone(),
                offered: Some(offered),
                trials: half.trials as u64,
                steps: after.and_then(Level::steps),
                gain: gain.map(f64::exp),
                gain_error: error,
                pays,
                is_taken,
            });
            if !is_taken {
                break;
            }
            found = done(&full)?;
            self.scatter = self.scatter.and(Scatter::of(&found.scatter));
            level = self::level(&found, trials, choosing.clone());
            (search, tuned) = (full, wider);
        }
        self.tuned = tuned.len();
        if search.is_exact || !matches!(found.steps, Steps::Measured { .. }) {
            let level = self::level(&found, trials, choosing);
            let probe_ids = found.probe_ids.clone();
            return Ok(End::Found(found, level, probe_ids));
        }
        let last = Search {
            more_seeds: COMPARED_SEEDS,
            ..search
        };
        let found = done(&last)?;
        let compared = 2 * SEEDS + 1..=2 * SEEDS + COMPARED_SEEDS;
        let probe_ids = runs(&found, trials, compared.clone())
            .map(|trial| trial.probe_id)
            .collect();
        let level = self::level(&found, trials, compared);
        Ok(End::Found(found, level, probe_ids))
    }

    fn search(&self, training: &Training<'_>, tuned: &[Hyperparameter]) -> Option<Search> {
        let mut definition = self.definition.clone();
        definition.search.hyperparameters = tuned.to_vec();
        setup::set_up(&definition, training, training.base, &[])
    }

    /// Standard error of a level as far as seeds go.
    fn error(&self, level: Level) -> f64 {
        error_of_seeds(self.scatter, level.seeds)
    }

    fn timing(&self) -> Step {
        match &self.end {
            End::Found(found, Some(_), _) if !self.is_timed => {
                Step::Times(found.configuration.optimizer.clone())
            }
            _ => Step::Done,
        }
    }

    fn level(&self) -> Option<Level> {
        match &self.end {
            End::Found(_, level, _) => level.map(|level| Level {
                tuned: self.tuned,
                ..level
            }),
            End::NotReached(steps) => Some(Level::more_than(*steps)),
            End::Open | End::Diverged => None,
        }
    }
}

impl Level {
    fn steps(self) -> Option<f64> {
        (!self.is_bound).then(|| self.ln.exp())
    }

    /// What the search left undecided: its trials are the sparser the more hyperparameters they are spread over.
    fn search_variance(self) -> f64 {
        SEARCH_SD * SEARCH_SD * self.tuned as f64
    }

    fn more_than(steps: u64) -> Self {
        Self {
            ln: (steps.max(1) as f64).ln(),
            seeds: 1,
            is_bound: true,
            tuned: 1,
        }
    }
}

fn error_of_seeds(scatter: Scatter, seeds: usize) -> f64 {
    if seeds == 0 {
        return 0.0;
    }
    MEDIAN_OVER_MEAN * (scatter.variance() / seeds as f64).sqrt()
}

/// The runs of a winner with these seeds.
fn runs<'a>(
    found: &'a Found,
    trials: &'a [Trial<'a>],
    seeds: std::ops::RangeInclusive<u32>,
) -> impl Iterator<Item = &'a Trial<'a>> {
    trials
        .iter()
        .filter(move |trial| seeds.contains(&trial.replicate) && trial.is_at(&found.configuration))
}

/// What the winner needs with these seeds; those that did not reach the target count as endless.
fn level(
    found: &Found,
    trials: &[Trial<'_>],
    seeds: std::ops::RangeInclusive<u32>,
) -> Option<Level> {
    match found.steps {
        Steps::Measured { ln, seeds: 0 } => {
            return Some(Level {
                ln,
                seeds: 0,
                is_bound: false,
                tuned: 1,
            });
        }
        Steps::MoreThan(steps) => return Some(Level::more_than(steps)),
        Steps::Diverged => return None,
        Steps::Measured { .. } => {}
    }
    let steps: Vec<f64> = runs(found, trials, seeds)
        .filter(|trial| trial.outcome != Outcome::Nothing)
        .map(|trial| match trial.outcome {
            Outcome::Reached(steps) => steps,
            _ => f64::INFINITY,
        })
        .collect();
    let middle = median(&steps)?;
    Some(if middle.is_finite() {
        Level {
            ln: middle.ln(),
            seeds: steps.len(),
            is_bound: false,
            tuned: 1,
        }
    } else {
        Level::more_than(found.max_steps)
    })
}

/// Compares; `None` where it is not asked for, and before the study knows its target.
pub fn analyze(
    definition: &StudyDefinition,
    evidence: &Evidence,
    training: &Training<'_>,
) -> Option<OptimizerAnalysis> {
    let comparison = read(definition, evidence, training)?;
    let scatter = comparison
        .tracks
        .iter()
        .map(|track| track.scatter)
        .fold(Scatter::default(), Scatter::and);
    let times = times(definition, &comparison.tracks);
    let mut candidates: Vec<OptimizerCandidate> = definition
        .optimizers
        .candidates()
        .iter()
        .zip(&comparison.identical_to)
        .map(|(named, identical_to)| OptimizerCandidate {
            named: named.clone(),
            identical_to: *identical_to,
            state: SearchState::Searching,
            optimizer: named.clone(),
            tuned: definition.optimizers.tuned_of(named),
            stages: Vec::new(),
            steps: None,
            more_than_steps: None,
            time_per_step_secs: None,
            training_time_secs: None,
            seeds: 0,
            runs: 0,
            lost: 0,
            at_boundary: Vec::new(),
            probe_ids: Vec::new(),
        })
        .collect();
    for (index, track) in comparison.tracks.iter().enumerate() {
        fill(
            &mut candidates[track.candidate],
            track,
            scatter,
            times.as_ref().map(|times| (times, index)),
        );
    }
    // What is identical has the other's results.
    for index in 0..candidates.len() {
        if let Some(other) = candidates[index].identical_to {
            let named = candidates[index].named.clone();
            candidates[index] = OptimizerCandidate {
                named,
                identical_to: Some(other),
                ..candidates[other].clone()
            };
        }
    }
    let pairs = pairs(&comparison, scatter, times.as_ref());
    let has_begun = !comparison.tracks.is_empty();
    let have_ended = comparison.tracks.iter().all(|track| track.end != End::Open);
    let are_identical = comparison.identical_to.iter().skip(1).all(Option::is_some);
    let verdict = if are_identical {
        Some(ComparisonVerdict::Identical)
    } else if !has_begun || !have_ended || pairs.iter().all(|it| it.p_first_better.is_none()) {
        None
    } else if pairs.iter().any(|it| it.better.is_some()) {
        Some(ComparisonVerdict::DifferenceDeclared)
    } else {
        Some(ComparisonVerdict::NoDifferenceDeclared)
    };
    let recommended = match verdict {
        Some(ComparisonVerdict::Identical) => Some(0),
        _ if have_ended && has_begun => {
            recommended(definition, &comparison, &pairs, times.as_ref())
        }
        _ => None,
    };
    Some(OptimizerAnalysis {
        batch_size: comparison.batch_size,
        target: comparison.target.as_ref().map(|(target, _)| target.clone()),
        target_source: comparison.target.as_ref().map(|(_, source)| *source),
        compared_by: match times {
            Some(_) => ComparedBy::TrainingTime,
            None => ComparedBy::StepsToTarget,
        },
        caveats: if comparison.target.is_none() {
            no_target(training).into_iter().collect()
        } else if have_ended {
            remarks(definition, &comparison, &candidates)
        } else {
            Vec::new()
        },
        candidates,
        pairs,
        verdict,
        recommended,
    })
}

/// Times of the winners, by track, where every one that reached the target has been timed in every round.
struct Times {
    ln: Vec<Option<f64>>,
    /// Variance of a mean over the rounds, with its degrees of freedom.
    variance: f64,
    freedom: f64,
}

impl Times {
    /// That of a track; what did not reach the target was not timed, and is taken to be like the rest.
    fn ln_or_usual(&self, index: usize) -> f64 {
        let known: Vec<f64> = self.ln.iter().copied().flatten().collect();
        self.ln[index].or_else(|| mean(&known)).unwrap_or(0.0)
    }
}

fn times(definition: &StudyDefinition, tracks: &[Track]) -> Option<Times> {
    if !compares_times(definition) {
        return None;
    }
    let is_timed = |track: &&Track| track.level().is_some_and(|level| !level.is_bound);
    let timed: Vec<&Track> = tracks.iter().filter(is_timed).collect();
    if timed.len() < 2 || timed.iter().any(|it| it.ln_times.len() != TIMINGS as usize) {
        return None;
    }
    let rows: Vec<Vec<f64>> = timed.iter().map(|track| track.ln_times.clone()).collect();
    let design = BlockedDesign::fit(&rows)?;
    let mut means = design.means.iter();
    Some(Times {
        ln: tracks
            .iter()
            .map(|track| is_timed(&track).then(|| means.next().copied()).flatten())
            .collect(),
        variance: design.residual_sd?.powi(2) / design.blocks as f64,
        freedom: design.degrees_of_freedom as f64,
    })
}

fn fill(
    candidate: &mut OptimizerCandidate,
    track: &Track,
    scatter: Scatter,
    times: Option<(&Times, usize)>,
) {
    candidate.runs = track.runs;
    candidate.lost = track.lost;
    candidate.stages = track.stages.clone();
    let taken = track.stages.iter().rev().find(|stage| stage.is_taken);
    if let Some(stage) = taken {
        candidate.tuned = stage.hyperparameters.clone();
    }
    match &track.end {
        End::Open => return,
        End::Diverged => candidate.state = SearchState::Diverged,
        End::NotReached(steps) => {
            candidate.state = SearchState::NotReached;
            candidate.more_than_steps = Some(*steps);
        }
        End::Found(found, _, probe_ids) => {
            candidate.optimizer = found.configuration.optimizer.clone();
            candidate.at_boundary = found.at_boundary.clone();
            candidate.probe_ids = probe_ids.clone();
            if found.steps == Steps::Diverged {
                candidate.state = SearchState::Diverged;
            }
        }
    }
    let Some(level) = track.level() else { return };
    if level.is_bound {
        candidate.state = SearchState::NotReached;
        candidate.more_than_steps = Some(level.ln.exp().round() as u64);
        return;
    }
    candidate.state = SearchState::Measured;
    candidate.seeds = level.seeds as u64;
    let error = error_of_seeds(scatter, level.seeds).hypot(level.search_variance().sqrt());
    candidate.steps = Some(Estimate::of_ln(level.ln, Some(SURE * error)));
    if let Some((times, index)) = times
        && let Some(ln) = times.ln[index]
    {
        candidate.time_per_step_secs = Some(ln.exp());
        let error = error.hypot(times.variance.sqrt());
        candidate.training_time_secs = Some(Estimate::of_ln(level.ln + ln, Some(SURE * error)));
    }
}

fn pairs(comparison: &Comparison, scatter: Scatter, times: Option<&Times>) -> Vec<OptimizerPair> {
    let identical = comparison
        .identical_to
        .iter()
        .enumerate()
        .filter_map(|(second, first)| Some(((*first)?, second)))
        .map(|(first, second)| OptimizerPair {
            first,
            second,
            ratio: None,
            p_first_better: None,
            better: None,
            is_identical: true,
        });
    let mut pairs: Vec<OptimizerPair> = identical.collect();
    let tracks = &comparison.tracks;
    for (index, second) in tracks.iter().enumerate() {
        for (other, first) in tracks[..index].iter().enumerate() {
            let of = |track: &Track, index: usize| -> Option<Level> {
                let mut level = track.level()?;
                level.ln += times.map_or(0.0, |times| times.ln_or_usual(index));
                Some(level)
            };
            let pair = pair(of(first, other), of(second, index), scatter, times);
            let better = pair.and_then(|it| it.better);
            pairs.push(OptimizerPair {
                first: first.candidate,
                second: second.candidate,
                ratio: pair.map(|it| it.ratio),
                p_first_better: pair.map(|it| it.p_first_better),
                better: better.map(|is_first| {
                    if is_first {
                        first.candidate
                    } else {
                        second.candidate
                    }
                }),
                is_identical: false,
            });
        }
    }
    pairs
}

/// What two levels say.
#[derive(Debug, Clone, Copy)]
struct Said {
    ratio: Estimate,
    p_first_better: f64,
    /// True for the first.
    better: Option<bool>,
}

fn pair(
    first: Option<Level>,
    second: Option<Level>,
    scatter: Scatter,
    times: Option<&Times>,
) -> Option<Said> {
    let (first, second) = (first?, second?);
    if first.is_bound && second.is_bound {
        return None;
    }
    let of_seeds = error_of_seeds(scatter, first.seeds).powi(2)
        + error_of_seeds(scatter, second.seeds).powi(2);
    let of_times = times.map_or(0.0, |times| 2.0 * times.variance);
    let total = of_seeds + of_times + first.search_variance() + second.search_variance();
    // Satterthwaite 1946: what is known without a doubt adds no uncertainty about the sum.
    let part = |variance: f64, freedom: f64| {
        if variance > 0.0 && freedom > 0.0 {
            variance * variance / freedom
        } else {
            0.0
        }
    };
    let doubt =
        part(of_seeds, scatter.freedom) + part(of_times, times.map_or(0.0, |times| times.freedom));
    let freedom = if doubt > 0.0 {
        total * total / doubt
    } else {
        f64::INFINITY
    };
    let (difference, error) = (second.ln - first.ln, total.sqrt());
    let p_first_better = student_t_cdf(difference / error, freedom)?;
    let better = if p_first_better >= DECLARED && !first.is_bound {
        Some(true)
    } else if p_first_better <= 1.0 - DECLARED && !second.is_bound {
        Some(false)
    } else {
        None
    };
    let mut ratio = Estimate::of_ln(difference, Some(SURE * error));
    if first.is_bound {
        ratio.ci_lower = None;
    }
    if second.is_bound {
        ratio.ci_upper = None;
    }
    Some(Said {
        ratio,
        p_first_better,
        better,
    })
}

fn recommended(
    definition: &StudyDefinition,
    comparison: &Comparison,
    pairs: &[OptimizerPair],
    times: Option<&Times>,
) -> Option<usize> {
    let is_beaten = |candidate: usize| {
        pairs.iter().any(|pair| {
            let is_in = pair.first == candidate || pair.second == candidate;
            is_in && pair.better.is_some_and(|better| better != candidate)
        })
    };
    let unbeaten: Vec<(usize, f64)> = comparison
        .tracks
        .iter()
        .enumerate()
        .filter_map(|(index, track)| {
            let level = track.level().filter(|level| !level.is_bound)?;
            let ln_time = times.and_then(|times| times.ln[index]).unwrap_or(0.0);
            Some((track.candidate, level.ln + ln_time))
        })
        .filter(|(candidate, _)| !is_beaten(*candidate))
        .collect();
    let first = Optimizer::first_for(&definition.workload.model);
    let candidates = definition.optimizers.candidates();
    unbeaten
        .iter()
        .find(|(candidate, _)| candidates[*candidate].family() == first.family())
        .or_else(|| unbeaten.iter().min_by(|a, b| a.1.total_cmp(&b.1)))
        .map(|(candidate, _)| *candidate)
}

/// Nothing can be compared where the pilots of the study's own optimizer have set no target.
fn no_target(training: &Training<'_>) -> Option<Caveat> {
    let detail = match training.pilot {
        Pilot::Wanted(_) => return None,
        Pilot::Diverged => "every pilot diverged, so there is no target to compare by",
        Pilot::NotReached(_) | Pilot::Steps(_) => {
            "no pilot came to a lower loss than chance, so there is no target to compare by"
        }
    };
    Some(Caveat {
        code: "W_NO_TARGET".into(),
        detail: format!("{detail}; name one in workload.target, or a model that learns"),
    })
}

fn remarks(
    definition: &StudyDefinition,
    comparison: &Comparison,
    candidates: &[OptimizerCandidate],
) -> Vec<Caveat> {
    let mut caveats = Vec::new();
    let mut say = |code: &str, detail: String| {
        caveats.push(Caveat {
            code: code.into(),
            detail,
        });
    };
    let compared = || {
        comparison
            .tracks
            .iter()
            .map(|track| &candidates[track.candidate])
    };
    let named = |holds: &dyn Fn(&OptimizerCandidate) -> bool| -> String {
        let names = compared()
            .filter(|it| holds(it))
            .map(|it| it.named.family());
        names.collect::<Vec<_>>().join(", ")
    };
    let at_ends = named(&|it| !it.at_boundary.is_empty());
    if !at_ends.is_empty() {
        say(
            "W_UNFAIR_COMPARISON",
            format!(
                "the best hyperparameters of {at_ends} lie at an end of their range, even after widening it: tuned further it may need less"
            ),
        );
    }
    let lost = named(&|it| it.lost > 0);
    if !lost.is_empty() {
        say(
            "W_UNFAIR_COMPARISON",
            format!(
                "runs of {lost} were lost by the service's own fault, so it had fewer trials than the rest; ask again without reuse"
            ),
        );
    }
    let asked: Vec<usize> = compared()
        .map(|it| definition.optimizers.tuned_of(&it.named).len())
        .collect();
    if asked.windows(2).any(|pair| pair[0] != pair[1]) {
        let texts: Vec<String> = compared()
            .zip(&asked)
            .map(|(it, count)| format!("{count} of {}", it.named.family()))
            .collect();
        say(
            "W_UNFAIR_COMPARISON",
            format!(
                "the study asks to tune hyperparameters that not every candidate has ({}), so one had more freedom from the beginning; leave optimizers.hyperparameters out, and each opens what pays",
                texts.join(", ")
            ),
        );
    }
    let not_reached = named(&|it| it.state == SearchState::NotReached);
    if !not_reached.is_empty() {
        say(
            "W_TARGET_NOT_REACHED",
            format!(
                "{not_reached} did not reach the target within its steps, so what is said of it is a bound; take a target that every candidate can reach"
            ),
        );
    }
    let diverged = named(&|it| it.state == SearchState::Diverged);
    if !diverged.is_empty() {
        say(
            "W_DIVERGED",
            format!("every run of {diverged} diverged, so it is not compared"),
        );
    }
    caveats
}

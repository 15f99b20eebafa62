//! Steps to target: what the training probes say, batch size by batch size, and the curve through them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub mod fit;
pub mod limits;
pub mod search;
pub mod setup;

pub use fit::{StepsCurve, StepsFit};
pub use limits::{CriticalBatchSize, NotIdentified, Regime, RegimeAt};
pub use setup::{BatchSearch, Pilot, TargetSource, Training};

use super::{Caveat, Estimate, Evidence, Feasibility};
use crate::statistics::intervals::standard_deviation;
use crate::study::{
    BatchSize, EvaluationTarget, Hyperparameter, Optimizer, ProbeId, Regularisation,
    StudyDefinition, first_batch_size,
};
use fit::{Point, Prior};
use search::{Found, Next, Steps};

/// What the standard deviation of ln S between seeds is taken to be before any was seen.
pub(in crate::analysis) const USUAL_SEED_SD: f64 = 0.15;
/// The median's standard error over that of a mean (normal distribution).
pub(in crate::analysis) const MEDIAN_OVER_MEAN: f64 = 1.25;
/// The fitted critical batch size of SGD over the noise scale along a run, in ln: what the two differ by on
/// average.
const NOISE_SCALE_SHIFT: f64 = -0.25;
/// Momentum moves it further up.
const MOMENTUM_SHIFT: f64 = 0.7;
/// Noise scale and fitted critical batch size disagree beyond this factor.
const DISAGREEMENT: f64 = 3.0;
/// Steps at a larger batch above this multiple of those at a smaller one are no property of training.
const NOT_MONOTONE: f64 = 1.1;
/// Two standard errors.
pub(in crate::analysis) const SURE: f64 = 1.96;

/// Steps to target at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepsPoint {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Where its search stands.
    pub state: SearchState,
    /// S(B): the least over hyperparameters of the median over seeds of the first step at which the validation
    /// metric passes the target and still does at the next evaluation. Null before the search has ended, and
    /// where no trial reached the target.
    pub steps: Option<Estimate>,
    /// Where it was not reached: S(B) is more than this.
    pub more_than_steps: Option<u64>,
    /// S(B) on the fitted curve; null without a fit.
    pub fitted_steps: Option<Estimate>,
    /// The optimizer with the hyperparameters that need the fewest steps.
    pub optimizer: Optimizer,
    /// The workload's hyperparameters with it.
    #[serde(default)]
    pub regularisation: Regularisation,
    /// Seeds behind `steps`; 0 where the result depends on no seed.
    pub seeds: u64,
    /// Points of hyperparameters that were tried.
    pub trials: u64,
    /// Those that reached the target.
    pub reached: u64,
    /// Those that diverged.
    pub diverged: u64,
    /// Hyperparameters whose best value lies at an end of the range that was searched.
    pub at_boundary: Vec<Hyperparameter>,
    /// The probes of the last runs.
    pub probe_ids: Vec<ProbeId>,
}

/// Where a search stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SearchState {
    /// Trials are still to come.
    Searching,
    /// It is known how many steps are needed.
    Measured,
    /// No trial reached the target within its cap.
    NotReached,
    /// Every trial diverged.
    Diverged,
}

/// The curve through the points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CurveParameters {
    /// S_min: the steps that no batch is large enough to go below.
    pub min_steps: Estimate,
    /// E_min: the examples that no batch is small enough to go below.
    pub min_examples: Estimate,
    /// k: how sharply the one regime turns into the other; 1 is a hyperbola.
    pub sharpness: Estimate,
    /// Standard deviation of ln S beyond what seeds and search explain.
    pub excess_sd: f64,
}

/// Everything about steps to target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepsAnalysis {
    /// The batch size of range test, pilots and noise scale, where training began.
    pub base: BatchSize,
    /// What training is to reach.
    pub target: Option<EvaluationTarget>,
    /// Where the target comes from.
    pub target_source: Option<TargetSource>,
    /// The learning rates that are looked at, at the first batch size: from the range test or the study, as
    /// η/(1 − γ) for the SGD family.
    #[schema(value_type = Option<Vec<f64>>, min_items = 2, max_items = 2)]
    pub learning_rates: Option<(f64, f64)>,
    /// The simple gradient noise scale tr Σ/|G|² along a run at the first batch size, examples (McCandlish et
    /// al. 2018).
    pub gradient_noise_scale: Option<f64>,
    /// After an evaluation at step t the next is at max(t + 1, ⌈ratio·t⌉): 1.03, or 1.10 where pilots of
    /// over five seconds spent more than a fifth of it on evaluations.
    pub evaluation_ratio: f64,
    /// Time spent on evaluations over the time of a run, median over the trials.
    pub evaluation_share: Option<f64>,
    /// By batch size.
    pub points: Vec<StepsPoint>,
    /// S(B) = (S_min^k + (E_min/B)^k)^(1/k); null with nothing measured.
    pub curve: Option<CurveParameters>,
    /// The critical batch size with its companions.
    pub limits: CriticalBatchSize,
    /// How steps answer to a doubling, at every batch size that was trained.
    pub regimes: Vec<RegimeAt>,
    /// Standard deviation of ln S between seeds, pooled over batch sizes; null with too few.
    pub seed_sd: Option<f64>,
    /// Remarks: `W_TARGET_NOT_REACHED`, `W_DIVERGED`, `W_BOUNDARY`, `W_UNDERTUNED`, `W_NONMONOTONE`,
    /// `W_NOISE_SCALE`, `W_RANGE_TEST`, `W_UNTUNED:<hyperparameter>`.
    pub caveats: Vec<Caveat>,
    /// The fit that decisions draw from.
    #[serde(skip)]
    pub fit: Option<StepsFit>,
}

/// Reads off the evidence where training to the target stands; `None` while no batch size can be trained.
pub fn read<'a>(
    definition: &StudyDefinition,
    evidence: &'a Evidence,
    feasibility: Option<&Feasibility>,
) -> Option<Training<'a>> {
    let largest = feasibility.and_then(|feasibility| feasibility.largest_feasible);
    let base = first_batch_size(&setup::candidates(definition, largest))?;
    let mut training = setup::read(definition, evidence, base);
    // A batch size whose result a smaller one contradicts is searched a second time.
    let searches = training.searches.clone();
    let sorted = by_batch_size(&searches);
    let seed_sd = seed_sd(&sorted);
    for (larger, smaller) in contradicted(&sorted, |seeds| error(seed_sd, seeds)) {
        let Some(second) = setup::second_search(definition, &training, larger, smaller) else {
            continue;
        };
        let next = match (second.next(&larger.trials), &larger.next) {
            (Next::Done(second), Next::Done(first)) => Next::Done(Box::new(better(first, *second))),
            (next, _) => next,
        };
        for search in &mut training.searches {
            if search.batch_size == larger.batch_size {
                search.next = next.clone();
                search.is_second = true;
            }
        }
    }
    Some(training)
}

/// The result with fewer steps; what was tried counts for both.
fn better(first: &Found, second: Found) -> Found {
    let ln = |found: &Found| match found.steps {
        Steps::Measured { ln, .. } => ln,
        _ => f64::INFINITY,
    };
    let (trials, reached, diverged) = (
        first.trials + second.trials,
        first.reached + second.reached,
        first.diverged + second.diverged,
    );
    let best = if ln(&second) < ln(first) {
        second
    } else {
        first.clone()
    };
    Found {
        trials,
        reached,
        diverged,
        ..best
    }
}

/// Standard error of ln S: of the median over seeds, and of the search.
fn error(seed_sd: Option<f64>, seeds: usize) -> f64 {
    let of_seeds = if seeds == 0 {
        0.0
    } else {
        MEDIAN_OVER_MEAN * seed_sd.unwrap_or(USUAL_SEED_SD) / (seeds as f64).sqrt()
    };
    of_seeds.hypot(fit::SEARCH_SD)
}

/// Works out everything about steps to target; `None` before training has begun.
pub fn analyze(definition: &StudyDefinition, training: &Training<'_>) -> Option<StepsAnalysis> {
    if training.learning_rates.is_none() && training.searches.is_empty() {
        return None;
    }
    let searches = by_batch_size(&training.searches);
    let seed_sd = seed_sd(&searches);
    let error = |seeds: usize| error(seed_sd, seeds);
    let points: Vec<Point> = searches
        .iter()
        .filter_map(|search| {
            let ln_batch = search.batch_size.as_f64().ln();
            match &found(search)?.steps {
                Steps::Measured { ln, seeds } => Some(Point::Measured {
                    ln_batch,
                    ln_steps: *ln,
                    error: error(*seeds),
                }),
                Steps::MoreThan(cap) => Some(Point::MoreThan {
                    ln_batch,
                    ln_steps: (*cap as f64).ln(),
                    error: error(1),
                }),
                Steps::Diverged => None,
            }
        })
        .collect();
    let prior = prior(definition, training);
    let fit = fit::fit(&points, prior, definition.seed);
    let alone = fit::fit(&points, None, definition.seed);
    let tested = searches
        .iter()
        .filter(|search| search.ln_steps().is_some())
        .map(|search| search.batch_size);
    let range = tested.clone().min().zip(tested.clone().max());
    let limits = limits::critical(fit.as_ref(), range);
    let regimes = fit.as_ref().map_or_else(Vec::new, |fit| {
        tested.map(|size| limits::regime(fit, size)).collect()
    });
    let mut caveats = remarks(definition, training, &searches, error);
    caveats.extend(noise_scale_remark(training, alone.as_ref(), &limits, prior));
    Some(StepsAnalysis {
        base: training.base,
        target: training.target.as_ref().map(|(target, _)| target.clone()),
        target_source: training.target.as_ref().map(|(_, source)| *source),
        learning_rates: training
            .learning_rates
            .map(|(lower, upper)| (lower.exp(), upper.exp())),
        gradient_noise_scale: training.noise_scale,
        evaluation_ratio: training.evaluation_ratio,
        evaluation_share: training.evaluation_share,
        points: searches
            .iter()
            .map(|search| point(search, fit.as_ref(), error))
            .collect(),
        curve: fit.as_ref().map(parameters),
        limits,
        regimes,
        seed_sd,
        caveats,
        fit,
    })
}

fn by_batch_size<'a, 'b>(searches: &'b [BatchSearch<'a>]) -> Vec<&'b BatchSearch<'a>> {
    let mut sorted: Vec<&BatchSearch<'_>> = searches.iter().collect();
    sorted.sort_by_key(|search| search.batch_size);
    sorted
}

fn found<'b>(search: &'b BatchSearch<'_>) -> Option<&'b Found> {
    match &search.next {
        Next::Done(found) => Some(found),
        Next::Trials(_) => None,
    }
}

/// The scatter of ln S between seeds, pooled over every group of runs with the same hyperparameters.
fn seed_sd(searches: &[&BatchSearch<'_>]) -> Option<f64> {
    let (mut squares, mut freedom) = (0.0, 0.0);
    for group in searches
        .iter()
        .filter_map(|search| found(search))
        .flat_map(|found| &found.scatter)
    {
        if let Some(sd) = standard_deviation(group) {
            let free = group.len() as f64 - 1.0;
            squares += free * sd * sd;
            freedom += free;
        }
    }
    (freedom > 0.0).then(|| (squares / freedom).sqrt())
}

/// Where the noise scale leads to expect the critical batch size.
pub fn prior(definition: &StudyDefinition, training: &Training<'_>) -> Option<Prior> {
    let noise_scale = training.noise_scale?;
    let shift = if definition.optimizer.effective_momentum() > 0.0 {
        NOISE_SCALE_SHIFT + MOMENTUM_SHIFT
    } else {
        NOISE_SCALE_SHIFT
    };
    Some(Prior {
        ln_critical: noise_scale.ln() + shift,
        sd: fit::PRIOR_CRITICAL_SD,
    })
}

fn parameters(fit: &StepsFit) -> CurveParameters {
    let of = |value: fn(&StepsCurve) -> f64| {
        limits::interval(value(&fit.curve), fit.draws.iter().map(value))
    };
    CurveParameters {
        min_steps: of(|curve| curve.ln_min_steps.exp()),
        min_examples: of(|curve| curve.ln_min_examples.exp()),
        sharpness: of(StepsCurve::sharpness),
        excess_sd: fit.excess_sd,
    }
}

fn point(
    search: &BatchSearch<'_>,
    fit: Option<&StepsFit>,
    error: impl Fn(usize) -> f64,
) -> StepsPoint {
    let ln_batch = search.batch_size.as_f64().ln();
    let mut point = StepsPoint {
        batch_size: search.batch_size,
        state: SearchState::Searching,
        steps: None,
        more_than_steps: None,
        fitted_steps: fit.map(|fit| {
            limits::interval(
                fit.curve.ln_steps(ln_batch).exp(),
                fit.draws.iter().map(|it| it.ln_steps(ln_batch).exp()),
            )
        }),
        optimizer: search.search.space.configuration.optimizer.clone(),
        regularisation: search.search.space.configuration.regularisation,
        seeds: 0,
        trials: search
            .trials
            .iter()
            .filter(|trial| trial.replicate == 0)
            .count() as u64,
        reached: 0,
        diverged: 0,
        at_boundary: Vec::new(),
        probe_ids: Vec::new(),
    };
    let Some(found) = found(search) else {
        return point;
    };
    point.optimizer = found.configuration.optimizer.clone();
    point.regularisation = found.configuration.regularisation;
    point.trials = found.trials as u64;
    point.reached = found.reached as u64;
    point.diverged = found.diverged as u64;
    point.at_boundary = found.at_boundary.clone();
    point.probe_ids = found.probe_ids.clone();
    match found.steps {
        Steps::Measured { ln, seeds } => {
            point.state = SearchState::Measured;
            point.steps = Some(Estimate::of_ln(ln, Some(SURE * error(seeds))));
            point.seeds = seeds as u64;
        }
        Steps::MoreThan(cap) => {
            point.state = SearchState::NotReached;
            point.more_than_steps = Some(cap);
        }
        Steps::Diverged => point.state = SearchState::Diverged,
    }
    point
}

/// The larger batch sizes that need more steps than a smaller one, beyond doubt, each with the smaller one that
/// shows it.
pub fn contradicted<'a, 'b>(
    searches: &[&'b BatchSearch<'a>],
    error: impl Fn(usize) -> f64,
) -> Vec<(&'b BatchSearch<'a>, &'b BatchSearch<'a>)> {
    let measured = |search: &BatchSearch<'_>| match found(search)?.steps {
        Steps::Measured { ln, seeds } => Some((ln, error(seeds))),
        _ => None,
    };
    let mut pairs = Vec::new();
    for (index, larger) in searches.iter().enumerate() {
        let Some((ln, its_error)) = measured(larger) else {
            continue;
        };
        let best = searches[..index]
            .iter()
            .filter_map(|smaller| Some((*smaller, measured(smaller)?)))
            .min_by(|a, b| a.1.0.total_cmp(&b.1.0));
        if let Some((smaller, (least, least_error))) = best
            && ln - least - NOT_MONOTONE.ln() > SURE * its_error.hypot(least_error)
        {
            pairs.push((*larger, smaller));
        }
    }
    pairs
}

fn remarks(
    definition: &StudyDefinition,
    training: &Training<'_>,
    searches: &[&BatchSearch<'_>],
    error: impl Fn(usize) -> f64,
) -> Vec<Caveat> {
    let mut caveats = Vec::new();
    let mut say = |code: &str, detail: String| {
        caveats.push(Caveat {
            code: code.into(),
            detail,
        });
    };
    if training.never_diverged {
        say(
            "W_RANGE_TEST",
            "the range test did not diverge, so the learning rates that are searched end where it did".into(),
        );
    }
    match &training.pilot {
        Pilot::NotReached(steps) => say(
            "W_TARGET_NOT_REACHED",
            format!(
                "no pilot reached the target within {steps} steps at batch size {}; take a target that the model can reach, or a model that can",
                training.base
            ),
        ),
        Pilot::Diverged => say(
            "W_DIVERGED",
            format!("every pilot at batch size {} diverged", training.base),
        ),
        _ => {}
    }
    let named = |holds: &dyn Fn(&Found) -> bool| -> Vec<String> {
        searches
            .iter()
            .filter(|search| found(search).is_some_and(holds))
            .map(|search| search.batch_size.to_string())
            .collect()
    };
    let capped = named(&|found| matches!(found.steps, Steps::MoreThan(_)));
    if !capped.is_empty() {
        say(
            "W_TARGET_NOT_REACHED",
            format!(
                "no trial reached the target at batch size {}",
                capped.join(", ")
            ),
        );
    }
    let diverged = named(&|found| found.steps == Steps::Diverged);
    if !diverged.is_empty() {
        say(
            "W_DIVERGED",
            format!("every trial diverged at batch size {}", diverged.join(", ")),
        );
    }
    let at_ends = named(&|found| !found.at_boundary.is_empty());
    if !at_ends.is_empty() {
        say(
            "W_BOUNDARY",
            format!(
                "the best hyperparameters lie at an end of their range at batch size {}: fewer steps may be possible",
                at_ends.join(", ")
            ),
        );
    }
    for (larger, smaller) in contradicted(searches, &error) {
        let (code, what) = if larger.is_second {
            ("W_NONMONOTONE", "even after a second search")
        } else {
            (
                "W_UNDERTUNED",
                "so its hyperparameters are not the best yet",
            )
        };
        say(
            code,
            format!(
                "batch size {} needs more steps than {}, which a larger batch never should, {what}",
                larger.batch_size, smaller.batch_size
            ),
        );
    }
    let configuration = setup::configuration(definition);
    for hyperparameter in Hyperparameter::ALL {
        if let Some(value) = configuration.get(hyperparameter)
            && !definition.search.hyperparameters.contains(&hyperparameter)
        {
            let name = hyperparameter.as_str();
            say(
                &format!("W_UNTUNED:{name}"),
                format!("{name} was kept at {value}"),
            );
        }
    }
    caveats
}

/// A noise scale that says something else than the curve fitted without it.
fn noise_scale_remark(
    training: &Training<'_>,
    alone: Option<&StepsFit>,
    limits: &CriticalBatchSize,
    prior: Option<Prior>,
) -> Option<Caveat> {
    limits.critical_batch_size?;
    let (prior, alone) = (prior?, alone?);
    let apart = alone.curve.ln_critical() - prior.ln_critical;
    (apart.abs() > DISAGREEMENT.ln()).then(|| Caveat {
        code: "W_NOISE_SCALE".into(),
        detail: format!(
            "the gradient noise scale of {:.0} leads to expect a critical batch size of {:.0}, and the steps alone say {:.0}",
            training.noise_scale.unwrap_or_default(),
            prior.ln_critical.exp(),
            alone.curve.ln_critical().exp()
        ),
    })
}

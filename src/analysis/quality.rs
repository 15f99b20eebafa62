//! The quality that training ends with, across batch sizes. Once its hyperparameters are tuned, regularisation
//! among them, no batch size should be better than another (Shallue et al. 2018, arXiv:1811.03600, section 4.8; the
//! playbook's reason not to tune the batch size for quality). Whether that holds is a test of equivalence: two batch
//! sizes are the same when the whole interval of their difference lies within a margin that was fixed before (two
//! one-sided tests, Schuirmann 1987).
//!
//! At every batch size that is compared a search finds the hyperparameters of the least validation loss within
//! the same multiple of its steps to target; seeds that had no part in choosing them give the mean.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::steps::search::{Aim, Found, Next, Search, Steps};
use super::steps::{BatchSearch, SearchState, StepsAnalysis, Training, setup};
use super::{Caveat, Estimate, Evidence, TrainingTimeAnalysis};
use crate::probe::{Metric, ProbeKind, Task};
use crate::statistics::intervals::{mean, standard_deviation, two_sided_t, welch};
use crate::study::{
    BatchSize, EvaluationMetric, EvaluationTarget, Hyperparameter, Optimizer, ProbeId, Question,
    Regularisation, StudyDefinition,
};

/// A run trains for so many times the steps to target.
pub(in crate::analysis) const OVER_TARGET: f64 = 10.0;
/// But for so many steps at least.
pub(in crate::analysis) const LEAST_STEPS: u64 = 100;
/// Losses that differ by less than this share of what lies between chance and the target count as the same.
const MARGIN: f64 = 0.05;
/// Batch sizes that are compared at least.
const LEAST_COMPARED: usize = 2;
/// Confidence of a difference's interval at a look. Two one-sided tests at 5% would be 90%; with up to three looks (5, 10 and
/// 15 seeds) each has to be stricter for all of them to be wrong in 5% (Pocock 1977: 2.3% at each of three).
pub(in crate::analysis) const CONFIDENCE: f64 = 0.954;
/// Confidence of a loss's interval.
const OF_A_MEAN: f64 = 0.95;

/// What the comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every interval lies within the margin.
    Equivalent,
    /// One lies wholly outside.
    Different,
    /// Neither.
    Inconclusive,
}

/// The quality at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QualityPoint {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Where its search stands.
    pub state: SearchState,
    /// The least validation loss of a run, mean over the seeds, 95% interval; null before the search has ended.
    pub loss: Option<Estimate>,
    /// Seeds behind it.
    pub seeds: u64,
    /// Steps of each run.
    pub steps: u64,
    /// Whether most runs were still getting better in their last quarter.
    pub is_still_falling: bool,
    /// The optimizer with the hyperparameters of the least loss.
    pub optimizer: Optimizer,
    /// The workload's hyperparameters with it.
    pub regularisation: Regularisation,
    /// Points of hyperparameters that were tried.
    pub trials: u64,
    /// Hyperparameters whose best value lies at an end of the range that was searched.
    pub at_boundary: Vec<Hyperparameter>,
    /// The probes of the runs.
    pub probe_ids: Vec<ProbeId>,
}

/// Two batch sizes compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QualityPair {
    /// The smaller batch size.
    pub smaller: BatchSize,
    /// The larger one.
    pub larger: BatchSize,
    /// Loss of the larger less that of the smaller, with its interval: 95.4%, so that with up to three looks each side is
    /// wrong in 5%.
    pub difference: Estimate,
    /// What that says.
    pub verdict: Verdict,
}

/// Quality across batch sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QualityAnalysis {
    /// What is compared.
    pub metric: EvaluationMetric,
    /// Losses that differ by less count as the same; null before it is known what chance is.
    pub margin: Option<f64>,
    /// Hyperparameters that were tuned at every batch size.
    pub tuned: Vec<Hyperparameter>,
    /// By batch size.
    pub points: Vec<QualityPoint>,
    /// Every pair.
    pub pairs: Vec<QualityPair>,
    /// All pairs together; null before every search has ended, and where regularisation cannot be tuned.
    pub verdict: Option<Verdict>,
    /// Remarks: `W_UNTUNED:regularisation`, `W_UNDERTUNED`, `W_BOUNDARY`, `W_STILL_FALLING`, `W_DIVERGED`,
    /// `W_TOO_FEW_BATCH_SIZES`.
    pub caveats: Vec<Caveat>,
}

/// Whether it is asked for.
pub fn is_asked(definition: &StudyDefinition) -> bool {
    definition
        .questions
        .contains(&Question::QualityAcrossBatchSizes)
}

/// What a comparison is made from.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a, 'b> {
    /// What is asked.
    pub definition: &'b StudyDefinition,
    /// Every probe.
    pub evidence: &'a Evidence,
    /// Where training to the target stands.
    pub training: &'b Training<'a>,
    /// What is known of it.
    pub steps: &'b StepsAnalysis,
    /// The decision, if there is one.
    pub decision: Option<&'b TrainingTimeAnalysis>,
    /// The largest batch size that fits.
    pub largest_feasible: Option<BatchSize>,
}

/// The batch sizes to compare: the study's that fit, or the ends of what reached the target and the one
/// recommended.
fn batch_sizes(known: Known<'_, '_>) -> Vec<BatchSize> {
    let Known {
        definition,
        steps,
        decision,
        largest_feasible,
        ..
    } = known;
    if let Some(named) = &definition.quality.batch_sizes {
        let mut named = named.clone();
        named.retain(|size| largest_feasible.is_none_or(|most| *size <= most));
        named.sort_unstable();
        return named;
    }
    let measured = || {
        steps
            .points
            .iter()
            .filter(|point| point.state == SearchState::Measured)
            .map(|point| point.batch_size)
    };
    let mut sizes: Vec<BatchSize> = [
        measured().min(),
        decision.and_then(|decision| decision.measured_batch_size),
        measured().max(),
    ]
    .into_iter()
    .flatten()
    .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// The hyperparameters that are tuned: those of the search for steps, and all regularisation there is.
fn tuned(definition: &StudyDefinition) -> Vec<Hyperparameter> {
    let configuration = setup::configuration(definition);
    Hyperparameter::ALL
        .into_iter()
        .filter(|it| {
            let is_searched = definition.search.hyperparameters.contains(it);
            is_searched || (it.is_regularisation() && configuration.get(*it).is_some())
        })
        .collect()
}

/// Whether regularisation is tuned: all that there is, and there is some.
fn is_regularisation_tuned(definition: &StudyDefinition) -> bool {
    let is_fixed_dropout = definition
        .workload
        .network()
        .is_ok_and(|network| network.drops_units())
        && setup::configuration(definition)
            .regularisation
            .dropout
            .is_none();
    !is_fixed_dropout && tuned(definition).iter().any(|it| it.is_regularisation())
}

/// The search of every batch size that is compared; none before the curve of steps is known.
pub fn searches<'a>(known: Known<'a, '_>) -> Vec<BatchSearch<'a>> {
    let Known {
        definition,
        evidence,
        training,
        steps,
        ..
    } = known;
    let Some(fit) = &steps.fit else {
        return Vec::new();
    };
    let sizes = batch_sizes(known);
    if sizes.len() < LEAST_COMPARED {
        return Vec::new();
    }
    let tuning = crate::study::Search {
        hyperparameters: tuned(definition),
        ranges: definition.search.ranges.clone(),
    };
    sizes
        .into_iter()
        .filter_map(|batch_size| {
            let space = setup::space(definition, training, batch_size, &tuning)?;
            let to_target = fit.curve.ln_steps(batch_size.as_f64().ln()).exp();
            let cap = (to_target * OVER_TARGET).ceil() as u64;
            let search = Search {
                aim: Aim::LeastLoss,
                trials: setup::trial_count(definition.design, space.axes.len(), false),
                space,
                seed: definition.seed.wrapping_add(batch_size.0),
                cap: cap.max(LEAST_STEPS),
                is_exact: false,
                more_seeds: 0,
            };
            let trials = setup::trials(evidence, batch_size, None);
            Some(BatchSearch::of(batch_size, search, trials))
        })
        .collect()
}

/// Compares; `None` while nothing of it has begun.
pub fn analyze(known: Known<'_, '_>) -> Option<QualityAnalysis> {
    let Known {
        definition,
        evidence,
        training,
        steps,
        ..
    } = known;
    if !is_asked(definition) {
        return None;
    }
    let searches = searches(known);
    let has_begun = searches.iter().any(|search| {
        let steps = search.search.cap;
        let mut trials = search.trials.iter();
        trials.any(|trial| trial.max_steps >= steps)
    });
    let are_too_few = searches.is_empty()
        && training
            .searches
            .iter()
            .all(|search| matches!(search.next, Next::Done(_)));
    if !has_begun && !are_too_few {
        return None;
    }
    let margin = margin(definition, evidence, steps.target.as_ref());
    let is_tuned = is_regularisation_tuned(definition);
    let pairs = margin.map_or_else(Vec::new, |margin| pairs(&searches, margin));
    let have_ended = searches
        .iter()
        .all(|search| matches!(search.next, Next::Done(_)));
    let verdict = (is_tuned && have_ended && !pairs.is_empty()).then(|| overall(&pairs));
    let mut caveats = remarks(&searches, &pairs, verdict, is_tuned);
    if are_too_few {
        caveats.push(Caveat {
            code: "W_TOO_FEW_BATCH_SIZES".into(),
            detail: "fewer than two batch sizes that fit have reached the target, so there is nothing to compare".into(),
        });
    }
    Some(QualityAnalysis {
        metric: EvaluationMetric::of_loss(definition.workload.loss),
        margin,
        tuned: tuned(definition),
        points: searches.iter().map(point).collect(),
        pairs,
        verdict,
        caveats,
    })
}

/// δ: the study's, or 5% of what lies between chance and the target; where the target is of another metric,
/// between chance and a loss of 0.
pub(in crate::analysis) fn margin(
    definition: &StudyDefinition,
    evidence: &Evidence,
    target: Option<&EvaluationTarget>,
) -> Option<f64> {
    if let Some(margin) = definition.quality.margin {
        return Some(margin);
    }
    let chance = evidence
        .of_kind(ProbeKind::Training)
        .filter(|probe| matches!(&probe.spec.task, Task::Training(run) if run.target.is_none()))
        .find_map(|probe| probe.figure(Metric::ChanceLoss))?;
    let of_loss = EvaluationMetric::of_loss(definition.workload.loss);
    let target = target
        .filter(|target| target.metric == of_loss)
        .map_or(0.0, |target| target.value);
    // A target that is worse than chance says nothing about what training gains.
    let target = if target < chance { target } else { 0.0 };
    Some(MARGIN * (chance - target))
}

fn found<'b>(search: &'b BatchSearch<'_>) -> Option<&'b Found> {
    match &search.next {
        Next::Done(found) if !found.fresh.is_empty() => Some(found),
        _ => None,
    }
}

fn pairs(searches: &[BatchSearch<'_>], margin: f64) -> Vec<QualityPair> {
    let known: Vec<(BatchSize, &Found)> = searches
        .iter()
        .filter_map(|search| Some((search.batch_size, found(search)?)))
        .collect();
    let mut pairs = Vec::new();
    for (index, (larger, its)) in known.iter().enumerate() {
        for (smaller, other) in &known[..index] {
            let Some((value, lower, upper)) = welch(&other.fresh, &its.fresh, CONFIDENCE) else {
                continue;
            };
            pairs.push(QualityPair {
                smaller: *smaller,
                larger: *larger,
                difference: Estimate {
                    value,
                    ci_lower: Some(lower),
                    ci_upper: Some(upper),
                },
                verdict: verdict(lower, upper, margin),
            });
        }
    }
    pairs
}

/// What an interval of a difference says.
pub(in crate::analysis) fn verdict(lower: f64, upper: f64, margin: f64) -> Verdict {
    if lower > -margin && upper < margin {
        Verdict::Equivalent
    } else if lower >= margin || upper <= -margin {
        Verdict::Different
    } else {
        Verdict::Inconclusive
    }
}

fn overall(pairs: &[QualityPair]) -> Verdict {
    let mut verdicts = pairs.iter().map(|pair| pair.verdict);
    if verdicts.clone().any(|it| it == Verdict::Different) {
        Verdict::Different
    } else if verdicts.all(|it| it == Verdict::Equivalent) {
        Verdict::Equivalent
    } else {
        Verdict::Inconclusive
    }
}

fn point(search: &BatchSearch<'_>) -> QualityPoint {
    let screened = search
        .trials
        .iter()
        .filter(|trial| trial.replicate == 0)
        .count();
    let mut point = QualityPoint {
        batch_size: search.batch_size,
        state: SearchState::Searching,
        loss: None,
        seeds: 0,
        steps: search.search.cap,
        is_still_falling: false,
        optimizer: search.search.space.configuration.optimizer.clone(),
        regularisation: search.search.space.configuration.regularisation,
        trials: screened as u64,
        at_boundary: Vec::new(),
        probe_ids: Vec::new(),
    };
    let Next::Done(found) = &search.next else {
        return point;
    };
    point.state = match found.steps {
        Steps::Measured { .. } => SearchState::Measured,
        Steps::MoreThan(_) => SearchState::NotReached,
        Steps::Diverged => SearchState::Diverged,
    };
    point.loss = interval(&found.fresh);
    point.seeds = found.fresh.len() as u64;
    point.steps = found.max_steps;
    point.is_still_falling = found.is_still_falling;
    point.optimizer = found.configuration.optimizer.clone();
    point.regularisation = found.configuration.regularisation;
    point.trials = found.trials as u64;
    point.at_boundary = found.at_boundary.clone();
    point.probe_ids = found.probe_ids.clone();
    point
}

/// A mean with its interval.
pub(in crate::analysis) fn interval(losses: &[f64]) -> Option<Estimate> {
    let value = mean(losses)?;
    let half = standard_deviation(losses).and_then(|sd| {
        let factor = two_sided_t(OF_A_MEAN, losses.len() as f64 - 1.0)?;
        Some(factor * sd / (losses.len() as f64).sqrt())
    });
    Some(Estimate {
        value,
        ci_lower: half.map(|half| value - half),
        ci_upper: half.map(|half| value + half),
    })
}

fn remarks(
    searches: &[BatchSearch<'_>],
    pairs: &[QualityPair],
    verdict: Option<Verdict>,
    is_tuned: bool,
) -> Vec<Caveat> {
    let mut caveats = Vec::new();
    let mut say = |code: &str, detail: String| {
        caveats.push(Caveat {
            code: code.into(),
            detail,
        });
    };
    if !is_tuned {
        say(
            "W_UNTUNED:regularisation",
            "no regularisation could be tuned with the batch size, so differences may be its doing; take an optimizer with weight decay, and a model family with a dropout of its own".into(),
        );
    }
    let named = |holds: &dyn Fn(&Found) -> bool| -> Vec<String> {
        searches
            .iter()
            .filter(|search| matches!(&search.next, Next::Done(found) if holds(found)))
            .map(|search| search.batch_size.to_string())
            .collect()
    };
    let falling = named(&|found| found.is_still_falling);
    if !falling.is_empty() {
        say(
            "W_STILL_FALLING",
            format!(
                "the loss was still falling at the end of the longest runs at batch size {}",
                falling.join(", ")
            ),
        );
    }
    let at_ends = named(&|found| !found.at_boundary.is_empty());
    if !at_ends.is_empty() {
        say(
            "W_BOUNDARY",
            format!(
                "the best hyperparameters lie at an end of their range at batch size {}: less loss may be possible",
                at_ends.join(", ")
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
    if verdict == Some(Verdict::Different) {
        for pair in pairs.iter().filter(|it| it.verdict == Verdict::Different) {
            let worse = if pair.difference.value > 0.0 {
                pair.larger
            } else {
                pair.smaller
            };
            say(
                "W_UNDERTUNED",
                format!(
                    "batch size {worse} ends with a higher loss than the other of {} and {}, which tuning should make up for: widen its ranges or give it more steps before blaming the batch size",
                    pair.smaller, pair.larger
                ),
            );
        }
    }
    caveats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_interval_decides() {
        for (lower, upper, said) in [
            (-0.02, 0.05, Verdict::Equivalent),
            (-0.02, 0.12, Verdict::Inconclusive),
            (-0.30, 0.30, Verdict::Inconclusive),
            (0.05, 0.30, Verdict::Inconclusive),
            (0.11, 0.30, Verdict::Different),
            (-0.30, -0.11, Verdict::Different),
        ] {
            assert_eq!(verdict(lower, upper, 0.1), said, "{lower} to {upper}");
        }
    }

    #[test]
    fn one_difference_is_enough_and_one_doubt_too() {
        let pairs = |verdicts: &[Verdict]| -> Vec<QualityPair> {
            verdicts
                .iter()
                .map(|verdict| QualityPair {
                    smaller: BatchSize(16),
                    larger: BatchSize(64),
                    difference: Estimate::of_ln(0.0, None),
                    verdict: *verdict,
                })
                .collect()
        };
        use Verdict::{Different, Equivalent, Inconclusive};
        assert_eq!(overall(&pairs(&[Equivalent, Equivalent])), Equivalent);
        assert_eq!(overall(&pairs(&[Equivalent, Inconclusive])), Inconclusive);
        assert_eq!(overall(&pairs(&[Inconclusive, Different])), Different);
    }
}

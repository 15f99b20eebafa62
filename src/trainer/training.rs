//! A training probe: one point of hyperparameters, trained to a target, to its cap or to divergence.
//!
//! The parameters are evaluated after step t, then after step max(t + 1, ⌈ρt⌉): often at first, ever more
//! rarely later, so that the crossing of the target is known to within the same share of itself at every
//! batch size. The target counts as reached when it is passed and *still passed at the next evaluation*;
//! the crossing is interpolated between the evaluations around it, in the logarithm for a positive loss.

use std::time::{Duration, Instant};

use super::events::EventLog;
use super::faults::Faults;
use super::learner;
use super::session::SessionError;
use super::tasks::{TaskEnd, TaskError};
use crate::datasets;
use crate::probe::course::{Crossing, next_evaluation};
use crate::probe::{Metric, ProbeSpec, TrainingRun};
use crate::statistics::intervals::{mean, standard_deviation};
use crate::study::EvaluationMetric;

/// Seconds between two reports of progress.
const PROGRESS_SECS: u64 = 2;

/// Runs a training probe.
pub(super) fn run(
    spec: &ProbeSpec,
    run: &TrainingRun,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    let start = Instant::now();
    let is_expected = run
        .target
        .as_ref()
        .is_some_and(|target| target.metric == EvaluationMetric::ExpectedExcessLoss);
    let mut session = learner::open(spec, is_expected, faults)?;
    let watched = run.watched(spec.workload.loss);
    let mut best: Option<(f64, u64)> = None;
    let mut best_examples = Vec::new();
    let mut best_accuracy = None;
    // Every evaluation, the less the better.
    let mut followed: Vec<(u64, f64)> = Vec::new();
    let mut crossing = run
        .target
        .as_ref()
        .map(|target| Crossing::new(target.metric, target.value));
    let mut evaluating = Duration::ZERO;
    let mut next = 0;
    let mut reported = Instant::now();
    let mut losses = Mean::default();
    let mut last_loss = None;
    let (reached, validation_loss) = loop {
        let step = session.steps();
        if step >= next || step >= run.max_steps {
            let before = Instant::now();
            let (evaluation, losses_of_examples) = if run.compares_with_chance {
                session.evaluate_examples()
            } else {
                (session.evaluate(), Vec::new())
            };
            evaluating += before.elapsed();
            if !evaluation.loss.is_finite() {
                return Ok(TaskEnd::diverged(step));
            }
            if let Some(loss) = losses.take() {
                at_step(log, Metric::TrainingLoss, step, loss)?;
            }
            for (metric, value) in evaluation.metrics() {
                if value.is_finite() {
                    at_step(log, Metric::from(*metric), step, *value)?;
                }
            }
            if let Some(value) = evaluation.metric(watched) {
                // A control is judged at its end: the best of many evaluations of chance is better than chance.
                if run.shuffles_targets
                    || best.is_none_or(|(best, _)| watched.score(value) < watched.score(best))
                {
                    best = Some((value, step));
                    best_examples = losses_of_examples;
                    best_accuracy = evaluation.metric(EvaluationMetric::ValidationAccuracy);
                }
                followed.push((step, watched.score(value)));
            }
            let loss = evaluation.loss;
            if let Some(crossing) = &mut crossing
                && let Some(value) = evaluation.metric(crossing.metric())
                && let Some(steps) = crossing.push(step, value)
            {
                break (Some(steps), loss);
            }
            if step >= run.max_steps {
                break (None, loss);
            }
            next = next_evaluation(step, run.evaluation_ratio);
        }
        if let Some(loss) = session.step()? {
            if !loss.is_finite() {
                return Ok(TaskEnd::diverged(session.steps()));
            }
            if session.steps() == 1 {
                log.measurement(Metric::FirstLoss, loss)?;
            }
            losses.push(loss);
            last_loss = Some(loss);
        }
        if reported.elapsed().as_secs() >= PROGRESS_SECS {
            reported = Instant::now();
            log.progress(
                "training",
                session.steps() as f64 / run.max_steps.max(1) as f64,
            )?;
        }
    };
    let total = start.elapsed().as_secs_f64();
    if let Some(steps) = reached {
        log.measurement(Metric::StepsToTarget, steps)?;
    }
    log.measurement(Metric::ValidationLoss, validation_loss)?;
    if let Some((best, step)) = best {
        log.measurement(Metric::BestEvaluation, best)?;
        log.measurement(Metric::BestStep, step as f64)?;
    }
    if run.compares_with_chance {
        if let Some(gain) = late_gain(&followed, run.max_steps) {
            log.measurement(Metric::LateGain, gain)?;
        }
        if let Some(accuracy) = best_accuracy {
            log.measurement(Metric::BestAccuracy, accuracy)?;
        }
        if let Some(error) = standard_error(&best_examples) {
            log.measurement(Metric::BestEvaluationError, error)?;
        }
        if let Some(chance) = session.chance_losses() {
            let gains = chance.iter().zip(&best_examples);
            let gains: Vec<f64> = gains.map(|(chance, loss)| chance - loss).collect();
            if let (Some(gain), Some(error)) = (mean(&gains), standard_error(&gains)) {
                log.measurement(Metric::GainOverChance, gain)?;
                log.measurement(Metric::GainOverChanceError, error)?;
            }
        }
    }
    // Without a target the run is to set one, and for that it must be known what learning is worth.
    if (run.target.is_none() || run.compares_with_chance)
        && let Some(loss) = session.chance_loss()
    {
        log.measurement(Metric::ChanceLoss, loss)?;
    }
    if let Some(loss) = last_loss {
        log.measurement(Metric::LastLoss, loss)?;
    }
    if let Some(truth) = datasets::truth(&spec.workload.dataset).map_err(SessionError::from)? {
        log.measurement(Metric::IrreducibleLoss, truth.loss)?;
    }
    let steps = session.steps();
    log.measurement(Metric::Steps, steps as f64)?;
    log.measurement(Metric::EvaluationShare, evaluating.as_secs_f64() / total)?;
    if steps > 0 {
        let a_step = |time: Duration| time.as_secs_f64() / steps as f64;
        if let Some(load) = session.load_times() {
            log.measurement(Metric::LoadTimePerStep, a_step(load.gathering))?;
            log.measurement(Metric::LoadWaitPerStep, a_step(load.waiting))?;
        }
    }
    Ok(TaskEnd::Finished)
}

fn at_step(log: &mut EventLog, metric: Metric, step: u64, value: f64) -> Result<(), TaskError> {
    let elapsed_secs = log.elapsed_secs();
    log.measurement_at(metric, Some(step), value, elapsed_secs)?;
    Ok(())
}

/// Standard error of a mean.
fn standard_error(values: &[f64]) -> Option<f64> {
    Some(standard_deviation(values)? / (values.len() as f64).sqrt())
}

/// The share of the whole gain that came after three quarters of the steps. Evaluations are (step, score), the
/// less the better. None where nothing was gained.
fn late_gain(evaluations: &[(u64, f64)], max_steps: u64) -> Option<f64> {
    let early = max_steps.saturating_mul(3) / 4;
    let least = |until: u64| {
        evaluations
            .iter()
            .filter(|(step, _)| *step <= until)
            .map(|(_, score)| *score)
            .reduce(f64::min)
    };
    let (first, before, best) = (evaluations.first()?.1, least(early)?, least(u64::MAX)?);
    (first > best).then(|| (before - best) / (first - best))
}

/// Mean of the losses since the last evaluation.
#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn push(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn take(&mut self) -> Option<f64> {
        let Self { sum, count } = std::mem::take(self);
        (count > 0).then(|| sum / count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_gain_is_what_the_last_quarter_brought() {
        let falling = [(0, 2.0), (50, 1.2), (75, 1.1), (80, 1.05), (100, 1.0)];
        let gain = late_gain(&falling, 100).expect("it fell");
        assert!((gain - 0.1).abs() < 1e-12, "{gain}");
        let flat = [(0, 2.0), (60, 1.0), (100, 1.0)];
        assert_eq!(late_gain(&flat, 100), Some(0.0));
        assert_eq!(late_gain(&[(0, 2.0), (100, 2.5)], 100), None);
    }
}

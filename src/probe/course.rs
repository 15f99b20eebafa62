//! The course of a training run: what its evaluations say about a target, and about another one than it had.
//!
//! A run that trained to one target has been evaluated all the way there, and two runs that differ in nothing but
//! target and cap take the same steps. So for a target that its evaluations pass, the steps to it are read from what
//! is stored, exactly as the run itself would have found them; a target beyond its last evaluation needs training.

use std::collections::BTreeMap;

use super::metric::Metric;
use super::spec::TrainingRun;
use crate::study::{EvaluationMetric, Loss};

/// The step of the evaluation after the one at `step`: max(t + 1, ⌈ratio·t⌉).
pub fn next_evaluation(step: u64, ratio: f64) -> u64 {
    // A float beyond the range of u64 saturates.
    ((step as f64 * ratio).ceil() as u64).max(step.saturating_add(1))
}

/// Watches a metric until it has passed its target at two evaluations in a row.
#[derive(Debug)]
pub struct Crossing {
    metric: EvaluationMetric,
    target: f64,
    /// The last evaluation that had not passed.
    before: Option<(u64, f64)>,
    /// The first that had, if the one before the newest did.
    passed: Option<(u64, f64)>,
}

impl Crossing {
    /// Before the first evaluation.
    pub fn new(metric: EvaluationMetric, target: f64) -> Self {
        Self {
            metric,
            target,
            before: None,
            passed: None,
        }
    }

    /// What is watched.
    pub fn metric(&self) -> EvaluationMetric {
        self.metric
    }

    /// The steps to the target, once an evaluation confirms that it stays passed: interpolated between the
    /// evaluations around the crossing, in the logarithm for a metric that falls by factors.
    pub fn push(&mut self, step: u64, value: f64) -> Option<f64> {
        let passes = if self.metric.is_minimized() {
            value <= self.target
        } else {
            value >= self.target
        };
        if !passes {
            self.before = Some((step, value));
            self.passed = None;
            return None;
        }
        match self.passed {
            None => {
                self.passed = Some((step, value));
                None
            }
            Some(first) => Some(self.interpolate(first)),
        }
    }

    /// Whether the next evaluation can confirm it.
    fn is_open(&self) -> bool {
        self.passed.is_some()
    }

    fn interpolate(&self, (after, low): (u64, f64)) -> f64 {
        let Some((before, high)) = self.before else {
            return after as f64;
        };
        let scaled = |value: f64| {
            if self.metric.is_logarithmic() {
                value.ln()
            } else {
                value
            }
        };
        let (high, low, target) = (scaled(high), scaled(low), scaled(self.target));
        let share = (target - high) / (low - high);
        // A loss of 0 has no logarithm: then the later evaluation is all that is known.
        if share.is_finite() {
            before as f64 + share.clamp(0.0, 1.0) * (after - before) as f64
        } else {
            after as f64
        }
    }
}

/// One evaluation of a run: its metrics, by the optimizer step after which it was made.
pub type Evaluations = BTreeMap<u64, BTreeMap<Metric, f64>>;

/// What a run would have found, read from the evaluations of another.
#[derive(Debug, Clone, PartialEq)]
pub enum Retraced {
    /// It would have ended at this step, target reached or not.
    Ended {
        /// Optimizer steps that it would have done.
        steps: u64,
        /// Its figures, as far as evaluations tell them.
        figures: BTreeMap<Metric, f64>,
    },
    /// It would have diverged too, where the other one did.
    Diverged,
}

/// What `run` would have found, had it taken the course of another run that differs in nothing but target and cap.
/// None where it would have gone on after the other one ended. `diverged` says that the other one ended because its
/// loss was no longer finite.
///
/// A cap between two evaluations of the other run has no evaluation of its own. It ends the run all the same, unless
/// that evaluation could have confirmed that the target stays passed.
pub fn retrace(
    run: &TrainingRun,
    loss: Loss,
    evaluations: &Evaluations,
    diverged: bool,
) -> Option<Retraced> {
    if run.compares_with_chance {
        // That needs the losses of single examples, which are not kept.
        return None;
    }
    let watched = run.watched(loss);
    let mut crossing = run
        .target
        .as_ref()
        .map(|target| Crossing::new(target.metric, target.value));
    let mut best: Option<(f64, u64)> = None;
    let mut step = 0;
    let mut is_on_grid = true;
    loop {
        let mut reached = None;
        if let Some(evaluation) = evaluations.get(&step) {
            let of = |metric: EvaluationMetric| evaluation.get(&Metric::from(metric)).copied();
            if let Some(value) = of(watched)
                && best.is_none_or(|(best, _)| watched.score(value) < watched.score(best))
            {
                best = Some((value, step));
            }
            if let Some(crossing) = &mut crossing {
                reached = crossing.push(step, of(crossing.metric())?);
            }
        } else if is_on_grid {
            return diverged.then_some(Retraced::Diverged);
        } else {
            let went_on = evaluations.range(step..).next().is_some();
            let is_open = crossing.as_ref().is_none_or(Crossing::is_open);
            if !went_on || is_open {
                return None;
            }
        }
        if reached.is_some() || step >= run.max_steps {
            let mut figures = BTreeMap::new();
            if let Some(steps) = reached {
                figures.insert(Metric::StepsToTarget, steps);
            }
            if let Some((best, step)) = best {
                figures.insert(Metric::BestEvaluation, best);
                figures.insert(Metric::BestStep, step as f64);
            }
            let loss = evaluations.get(&step).and_then(|evaluation| {
                evaluation.get(&Metric::from(EvaluationMetric::of_loss(loss)))
            });
            if let Some(loss) = loss {
                figures.insert(Metric::ValidationLoss, *loss);
            }
            figures.insert(Metric::Steps, step as f64);
            return Some(Retraced::Ended {
                steps: step,
                figures,
            });
        }
        let next = next_evaluation(step, run.evaluation_ratio);
        is_on_grid = next <= run.max_steps;
        step = next.min(run.max_steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::EvaluationTarget;

    #[test]
    fn evaluations_are_often_at_first_and_never_further_apart_than_the_ratio() {
        let mut step = 0;
        let mut steps = vec![step];
        while step < 1000 {
            step = next_evaluation(step, 1.03);
            steps.push(step);
        }
        assert_eq!(steps[..4], [0, 1, 2, 3]);
        assert!(steps.contains(&34) && steps.contains(&36), "{steps:?}");
        for pair in steps.windows(2).filter(|pair| pair[0] >= 34) {
            assert!(pair[1] as f64 <= pair[0] as f64 * 1.03 + 1.0);
        }
    }

    #[test]
    fn the_target_counts_when_it_stays_passed_and_the_crossing_is_interpolated() {
        let mut crossing = Crossing::new(EvaluationMetric::ValidationCrossEntropy, 0.2);
        assert_eq!(crossing.push(10, 0.4), None);
        assert_eq!(crossing.push(20, 0.19), None);
        assert_eq!(crossing.push(30, 0.4), None, "it did not stay");
        assert_eq!(crossing.push(40, 0.1), None);
        // Half way between ln 0.4 and ln 0.1.
        let steps = crossing.push(50, 0.15).expect("passed twice");
        assert!((steps - 35.0).abs() < 1e-9, "{steps}");

        let mut crossing = Crossing::new(EvaluationMetric::ValidationAccuracy, 0.9);
        assert_eq!(crossing.push(0, 0.5), None);
        assert_eq!(crossing.push(8, 1.0), None);
        let steps = crossing.push(9, 0.95).expect("passed twice");
        assert!((steps - 6.4).abs() < 1e-9, "linear: {steps}");
    }

    #[test]
    fn a_target_that_is_passed_from_the_start_is_reached_at_step_0() {
        let mut crossing = Crossing::new(EvaluationMetric::ValidationErrorRate, 0.95);
        assert_eq!(crossing.push(0, 0.9), None);
        assert_eq!(crossing.push(1, 0.9), Some(0.0));
    }

    const LOSS: Loss = Loss::CrossEntropy;

    fn run(max_steps: u64, target: Option<f64>) -> TrainingRun {
        let target = target.map(|value| EvaluationTarget {
            metric: EvaluationMetric::of_loss(LOSS),
            value,
        });
        TrainingRun::new(max_steps, target, 1.03)
    }

    /// A loss of 2/(1 + step/10), evaluated as a run of `steps` would.
    fn evaluations(steps: u64) -> Evaluations {
        let mut evaluations = Evaluations::new();
        let mut step = 0;
        loop {
            let loss = 2.0 / (1.0 + step as f64 / 10.0);
            evaluations.insert(step, [(Metric::ValidationCrossEntropy, loss)].into());
            if step >= steps {
                return evaluations;
            }
            step = next_evaluation(step, 1.03).min(steps);
        }
    }

    fn steps_to(run: &TrainingRun, evaluations: &Evaluations) -> Option<f64> {
        match retrace(run, LOSS, evaluations, false)? {
            Retraced::Ended { figures, .. } => figures.get(&Metric::StepsToTarget).copied(),
            Retraced::Diverged => None,
        }
    }

    #[test]
    fn an_easier_target_is_read_from_the_evaluations_on_the_way_to_a_harder_one() {
        let known = evaluations(200);
        // 2/(1 + s/10) = 0.5 at s = 30.
        let steps = steps_to(&run(1000, Some(0.5)), &known).expect("it was passed");
        assert!((steps - 30.0).abs() < 1e-9, "{steps}");
        // 0.08 lies at 240.
        assert_eq!(retrace(&run(1000, Some(0.08)), LOSS, &known, false), None);
    }

    #[test]
    fn a_lower_cap_ends_the_run_where_it_would_have_ended() {
        let known = evaluations(200);
        let cap = (50..200).find(|cap| !known.contains_key(cap));
        let cap = cap.expect("evaluations are apart");
        let capped = retrace(&run(cap, Some(0.1)), LOSS, &known, false);
        let Some(Retraced::Ended { steps, figures }) = capped else {
            panic!("it ended: {capped:?}");
        };
        assert_eq!(steps, cap);
        assert_eq!(figures.get(&Metric::StepsToTarget), None);
        let before = known.range(..cap).next_back().expect("evaluations");
        assert_eq!(figures.get(&Metric::BestStep), Some(&(*before.0 as f64)));
        // A pilot has no target, so nothing tells what its last evaluation would have been.
        assert_eq!(retrace(&run(cap, None), LOSS, &known, false), None);
        // Passed at the evaluation before the cap: at the cap it may stay passed.
        let loss = before.1[&Metric::ValidationCrossEntropy];
        assert_eq!(retrace(&run(cap, Some(loss)), LOSS, &known, false), None);
    }

    #[test]
    fn a_run_that_diverged_diverges_on_the_way_to_another_target_too_unless_that_is_reached_before()
    {
        let mut known = evaluations(200);
        let harder = run(1000, Some(0.05));
        assert_eq!(
            retrace(&harder, LOSS, &known, true),
            Some(Retraced::Diverged)
        );
        assert!(steps_to(&run(1000, Some(0.5)), &known).is_some());
        known.retain(|step, _| *step < 30);
        assert_eq!(
            retrace(&run(1000, Some(0.5)), LOSS, &known, true),
            Some(Retraced::Diverged)
        );
    }

    #[test]
    fn a_comparison_with_chance_needs_its_own_run() {
        let mut compared = run(30, None);
        assert!(retrace(&compared, LOSS, &evaluations(30), false).is_some());
        compared.compares_with_chance = true;
        assert_eq!(retrace(&compared, LOSS, &evaluations(30), false), None);
    }
}

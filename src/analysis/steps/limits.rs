//! Three limits of the batch size, not one, and the regime of every batch size.
//!
//! With x = (B_crit/B)^k the slope dln S/dln B is −x/(1 + x). Doubling the batch halves the steps, nearly, up
//! to where the slope is −0.8 (the end of perfect scaling, Shallue et al. 2018, arXiv:1811.03600); at
//! E_min/S_min it is −0.5 (the critical batch size of McCandlish et al. 2018, arXiv:1812.06162, where
//! training takes twice the least steps and twice the least examples if k = 1); beyond where it is −0.2
//! hardly anything is gained (maximal data parallelism).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::fit::{StepsCurve, StepsFit};
use crate::analysis::Estimate;
use crate::study::BatchSize;

/// A slope below this is perfect scaling.
pub const PERFECT_SLOPE: f64 = -0.8;
/// A slope above this is no gain.
pub const NO_GAIN_SLOPE: f64 = -0.2;
/// A statement is made when it is at least this probable.
pub const STATED: f64 = 0.8;
/// Batch sizes that must have reached the target before a limit is named.
const LEAST_MEASURED: usize = 3;
/// 4 = 0.8/0.2: x at either of the outer limits, to the power of ±1.
const OUTER: f64 = 4.0;

/// Why no limit is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NotIdentified {
    /// Fewer than three batch sizes reached the target.
    NotIdentified,
    /// Doubling still halves the steps at the largest batch size that was trained.
    BeyondTheTestedRange,
    /// Doubling saves no steps even at the smallest batch size that was trained.
    BelowTheTestedRange,
}

/// The critical batch size with its companions, for one target. In examples.
// Generators take a schema and a member of one name for the same thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = CriticalBatchSizes)]
pub struct CriticalBatchSize {
    /// E_min/S_min, where the slope dln S/dln B is −0.5; null where the tested range does not show it.
    pub critical_batch_size: Option<Estimate>,
    /// The end of perfect scaling: up to here the slope is at most −0.8.
    pub perfect_scaling_up_to: Option<Estimate>,
    /// From here the slope is at least −0.2: doubling saves hardly any steps.
    pub no_gain_beyond: Option<Estimate>,
    /// Why it is null.
    pub why: Option<NotIdentified>,
    /// With `beyond_the_tested_range`: the critical batch size is at least this (95%).
    pub at_least: Option<f64>,
    /// With `below_the_tested_range`: it is at most this (95%).
    pub at_most: Option<f64>,
}

/// How steps answer to a doubling of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Regime {
    /// Doubling the batch nearly halves the steps (slope ≤ −0.8).
    PerfectScaling,
    /// It saves steps, but fewer.
    DiminishingReturns,
    /// It saves hardly any (slope ≥ −0.2).
    NoGain,
    /// None of these at a probability of 0.8.
    Undetermined,
}

/// The regime at a batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegimeAt {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// The regime that is at least 0.8 probable.
    pub regime: Regime,
    /// Its probability, or that of the most probable one.
    pub probability: f64,
    /// dln S/dln B.
    pub slope: Estimate,
}

/// A value with the central 95% of draws.
pub(in crate::analysis) fn interval(value: f64, draws: impl Iterator<Item = f64>) -> Estimate {
    let mut draws: Vec<f64> = draws.collect();
    draws.sort_by(f64::total_cmp);
    Estimate {
        value,
        ci_lower: quantile(&draws, 0.025),
        ci_upper: quantile(&draws, 0.975),
    }
}

/// A quantile of sorted values.
pub(in crate::analysis) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    let part = place - place.floor();
    Some(sorted[below] * (1.0 - part) + sorted[above.min(last)] * part)
}

fn share(draws: &[StepsCurve], holds: impl Fn(&StepsCurve) -> bool) -> f64 {
    draws.iter().filter(|curve| holds(curve)).count() as f64 / draws.len().max(1) as f64
}

/// The limits, from a fit and the smallest and largest batch size that was trained.
pub fn critical(
    fit: Option<&StepsFit>,
    tested: Option<(BatchSize, BatchSize)>,
) -> CriticalBatchSize {
    let not = |why| CriticalBatchSize {
        critical_batch_size: None,
        perfect_scaling_up_to: None,
        no_gain_beyond: None,
        why: Some(why),
        at_least: None,
        at_most: None,
    };
    let (Some(fit), Some((smallest, largest))) = (fit, tested) else {
        return not(NotIdentified::NotIdentified);
    };
    if fit.measured < LEAST_MEASURED || fit.draws.is_empty() {
        return not(NotIdentified::NotIdentified);
    }
    let limit = |power: f64| {
        let of = |curve: &StepsCurve| {
            (curve.ln_critical() + power * OUTER.ln() / curve.sharpness()).exp()
        };
        interval(of(&fit.curve), fit.draws.iter().map(of))
    };
    let mut criticals: Vec<f64> = fit.draws.iter().map(|it| it.ln_critical().exp()).collect();
    criticals.sort_by(f64::total_cmp);
    let slope = |size: BatchSize| move |curve: &StepsCurve| curve.slope(size.as_f64().ln());
    if share(&fit.draws, |it| slope(largest)(it) <= PERFECT_SLOPE) >= STATED {
        return CriticalBatchSize {
            at_least: quantile(&criticals, 0.05),
            ..not(NotIdentified::BeyondTheTestedRange)
        };
    }
    if share(&fit.draws, |it| slope(smallest)(it) >= NO_GAIN_SLOPE) >= STATED {
        return CriticalBatchSize {
            at_most: quantile(&criticals, 0.95),
            ..not(NotIdentified::BelowTheTestedRange)
        };
    }
    CriticalBatchSize {
        critical_batch_size: Some(limit(0.0)),
        perfect_scaling_up_to: Some(limit(-1.0)),
        no_gain_beyond: Some(limit(1.0)),
        why: None,
        at_least: None,
        at_most: None,
    }
}

/// The regime at a batch size.
pub fn regime(fit: &StepsFit, batch_size: BatchSize) -> RegimeAt {
    let ln_batch = batch_size.as_f64().ln();
    let slopes: Vec<f64> = fit.draws.iter().map(|it| it.slope(ln_batch)).collect();
    let part = |holds: fn(f64) -> bool| {
        slopes.iter().filter(|slope| holds(**slope)).count() as f64 / slopes.len().max(1) as f64
    };
    let perfect = part(|slope| slope <= PERFECT_SLOPE);
    let none = part(|slope| slope >= NO_GAIN_SLOPE);
    let (regime, probability) = [
        (Regime::PerfectScaling, perfect),
        (Regime::DiminishingReturns, 1.0 - perfect - none),
        (Regime::NoGain, none),
    ]
    .into_iter()
    .max_by(|a, b| a.1.total_cmp(&b.1))
    .unwrap_or((Regime::Undetermined, 0.0));
    RegimeAt {
        batch_size,
        regime: if probability >= STATED {
            regime
        } else {
            Regime::Undetermined
        },
        probability,
        slope: interval(fit.curve.slope(ln_batch), slopes.into_iter()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fit::{self, Point};
    use super::*;

    fn fitted(critical: f64, batches: &[f64]) -> StepsFit {
        let curve = StepsCurve {
            ln_min_steps: 100_f64.ln(),
            ln_min_examples: (100.0 * critical).ln(),
            ln_sharpness: 1.4_f64.ln(),
        };
        let points: Vec<Point> = batches
            .iter()
            .map(|batch| Point::Measured {
                ln_batch: batch.ln(),
                ln_steps: curve.ln_steps(batch.ln()),
                error: 0.08,
            })
            .collect();
        fit::fit(&points, None, 5).expect("a fit")
    }

    fn between(fit: &StepsFit, smallest: u64, largest: u64) -> CriticalBatchSize {
        critical(Some(fit), Some((BatchSize(smallest), BatchSize(largest))))
    }

    #[test]
    fn the_three_limits_lie_where_the_slope_says() {
        let fit = fitted(64.0, &[8.0, 32.0, 64.0, 128.0, 512.0]);
        let limits = between(&fit, 8, 512);
        assert_eq!(limits.why, None);
        for (limit, slope) in [
            (limits.perfect_scaling_up_to, -0.8),
            (limits.critical_batch_size, -0.5),
            (limits.no_gain_beyond, -0.2),
        ] {
            let limit = limit.expect("identified");
            assert!((fit.curve.slope(limit.value.ln()) - slope).abs() < 1e-9);
            assert!(limit.ci_lower.expect("one") < limit.value);
            assert!(limit.ci_upper.expect("one") > limit.value);
        }
        assert_eq!(regime(&fit, BatchSize(4)).regime, Regime::PerfectScaling);
        assert_eq!(
            regime(&fit, BatchSize(64)).regime,
            Regime::DiminishingReturns
        );
        assert_eq!(regime(&fit, BatchSize(4096)).regime, Regime::NoGain);
    }

    #[test]
    fn what_the_tested_range_does_not_show_is_not_named() {
        let beyond = between(&fitted(1e5, &[8.0, 32.0, 128.0, 512.0]), 8, 512);
        assert_eq!(beyond.why, Some(NotIdentified::BeyondTheTestedRange));
        assert!(beyond.at_least.expect("a bound") > 512.0);
        assert_eq!(beyond.critical_batch_size, None);
        let below = between(&fitted(2.0, &[64.0, 128.0, 512.0, 2048.0]), 64, 2048);
        assert_eq!(below.why, Some(NotIdentified::BelowTheTestedRange));
        assert!(below.at_most.expect("a bound") < 64.0);
        let few = between(&fitted(64.0, &[8.0, 512.0]), 8, 512);
        assert_eq!(few.why, Some(NotIdentified::NotIdentified));
    }
}

//! Training time and resource consumption against batch size, and the batch size that minimises them.
//!
//! T(B) = t(B)·S(B), with t as it was timed and S on the fitted curve, both drawn together as often as their
//! uncertainty is counted. What is recommended is what is most probably within 5% of the best: the most
//! probable best one would change with every seed where several are as good.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{ChiSquared, Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::steps::limits::{interval, quantile};
use super::steps::{SearchState, StepsAnalysis, StepsFit};
use super::{Estimate, ThroughputAnalysis};
use crate::statistics::blocked::BlockedDesign;
use crate::study::{BatchSize, Objective, ProjectPhase, StudyDefinition};

/// Within this factor of the best counts as good as the best.
const AS_GOOD: f64 = 1.05;
/// Candidates whose probability of being within 5% is this near to the highest go to the smaller batch.
const TIED: f64 = 0.02;
/// A candidate that is within 5% of the best with at least this probability is a near tie.
pub const NEAR_TIE: f64 = 0.2;
/// Draws of t for each draw of S.
const TIMES_PER_CURVE: usize = 5;
/// Change of resource consumption from one batch size to the next that counts as none.
const SAME: f64 = 0.05;

/// Training to the target at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrainingTimePoint {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Whether its steps to target were measured; else they are read off the curve.
    pub is_measured: bool,
    /// S(B) on the curve.
    pub steps: Estimate,
    /// t(B), the mean, seconds.
    pub time_per_step_secs: f64,
    /// T(B) = t·S, seconds.
    pub training_time_secs: Estimate,
    /// R(B): devices × T, device-seconds.
    pub device_secs: Estimate,
    /// Energy of a run, kilowatt-hours; null where the device's energy was not measured.
    #[serde(default)]
    pub energy_kwh: Option<Estimate>,
    /// What a run costs in the study's currency, its energy included where that has a price and was measured; null
    /// without a price that counts.
    pub money: Option<Estimate>,
    /// Training runs to the target in a device-hour: how fast tuning goes.
    pub runs_per_device_hour: f64,
    /// How resource consumption changes from this batch size to the next larger one.
    pub resources_to_next: Option<ResourceChange>,
    /// Probability that it is the best by the study's objective.
    pub p_best: f64,
    /// Probability that it is within 5% of the best.
    pub p_within_5pct: f64,
    /// Probability that its resource consumption is within 5% of the least.
    #[serde(default)]
    pub p_resources_within_5pct: f64,
    /// Standard deviation of the logarithm of what is minimised.
    pub ln_sd: f64,
}

/// How resource consumption changes with the batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourceChange {
    /// The next larger batch size.
    pub to: BatchSize,
    /// R of it over R of this one.
    pub ratio: Estimate,
    /// What that says: `same` when the interval lies within 5% of 1.
    pub direction: Direction,
}

/// The direction of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The interval lies below 1.
    Decrease,
    /// It lies within 5% of 1.
    Same,
    /// It lies above 1.
    Increase,
    /// None of these.
    Undetermined,
}

/// Whether an upfront cost pays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpfrontDecision {
    /// The best batch size that needs the cost to be paid.
    pub batch_size: BatchSize,
    /// The best one that does not.
    pub instead_of: BatchSize,
    /// What has to be paid once.
    pub amount: f64,
    /// Money saved by each training run, the value of the time included.
    pub saved_per_run: f64,
    /// Training runs after which it is earned; null when nothing is saved.
    pub break_even_runs: Option<f64>,
    /// Runs that the project plans.
    pub planned_runs: Option<u64>,
    /// Whether it is better put off: nothing is saved, or the project is early and plans fewer runs.
    pub defer: bool,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrainingTimeAnalysis {
    /// What was minimised.
    pub objective: Objective,
    /// By batch size: every one that was timed and can be trained to the target.
    pub points: Vec<TrainingTimePoint>,
    /// The one that is most probably within 5% of the best; of nearly equal ones the smallest. One that needs an
    /// upfront cost that is better put off is not chosen.
    pub batch_size: BatchSize,
    /// The best of those whose steps were measured.
    pub measured_batch_size: Option<BatchSize>,
    /// Others that are within 5% of the best with a probability of at least 0.2.
    pub near_ties: Vec<BatchSize>,
    /// The batch sizes that no other beats in both time and resource consumption.
    pub pareto: Vec<BatchSize>,
    /// Upfront costs and whether they pay.
    pub upfront: Vec<UpfrontDecision>,
}

/// One row for each candidate, one column for each draw.
struct Draws {
    candidates: Vec<Candidate>,
    /// ln T.
    ln_times: Vec<Vec<f64>>,
    /// ln R: money where there is a price that counts, else device-seconds.
    ln_resources: Vec<Vec<f64>>,
}

/// What a run to the target takes and costs.
struct Priced {
    batch_size: BatchSize,
    secs: f64,
    money: f64,
}

#[derive(Clone, Copy)]
struct Candidate {
    batch_size: BatchSize,
    ln_time_per_step: f64,
    energy_per_step_kwh: Option<f64>,
}

/// What a step costs: so much for each second of it, and so much for its energy.
#[derive(Clone, Copy)]
pub(super) struct Price {
    /// Of all devices together.
    second: f64,
    kilowatt_hour: f64,
    /// Whether this is money, and not device-seconds.
    is_money: bool,
}

impl Price {
    /// What a device-second costs in the study's currency, where it has a price that counts.
    pub(super) fn of_device_hours(definition: &StudyDefinition) -> Option<f64> {
        let price = definition.costs.device_hour.filter(|price| *price > 0.0)?;
        Some(price / SECONDS)
    }

    /// That of a study. Without a price that counts a device-second costs one device-second.
    fn of(definition: &StudyDefinition, candidates: &[Candidate]) -> Self {
        let costs = &definition.costs;
        // A price for energy that was not measured everywhere would favour what is not known.
        let is_energy_known = candidates.iter().all(|it| it.energy_per_step_kwh.is_some());
        let kilowatt_hour = costs
            .energy_price_per_kwh
            .filter(|price| is_energy_known && *price > 0.0);
        let devices = f64::from(definition.device.count);
        match (Self::of_device_hours(definition), kilowatt_hour) {
            (None, None) => Self {
                second: devices,
                kilowatt_hour: 0.0,
                is_money: false,
            },
            (second, energy) => Self {
                second: devices * second.unwrap_or(0.0),
                kilowatt_hour: energy.unwrap_or(0.0),
                is_money: true,
            },
        }
    }

    fn of_step(self, secs: f64, candidate: &Candidate) -> f64 {
        self.second * secs + self.kilowatt_hour * candidate.energy_per_step_kwh.unwrap_or(0.0)
    }
}

/// Seconds in an hour.
const SECONDS: f64 = 3600.0;
/// Joules in a kilowatt-hour.
const KILOWATT_HOUR: f64 = 3.6e6;

/// Decides. `None` without times, or without a fit.
pub fn analyze(
    definition: &StudyDefinition,
    throughput: &ThroughputAnalysis,
    steps: &StepsAnalysis,
) -> Option<TrainingTimeAnalysis> {
    let fit = steps.fit.as_ref().filter(|fit| !fit.draws.is_empty())?;
    let examples = definition.workload.dataset.facts().training_examples;
    let cannot = |size: BatchSize| {
        let mut points = steps.points.iter();
        points.any(|point| {
            let failed = matches!(point.state, SearchState::NotReached | SearchState::Diverged);
            point.batch_size == size && failed
        })
    };
    let candidates: Vec<Candidate> = throughput
        .points
        .iter()
        .filter(|point| point.batch_size.0 <= examples && !cannot(point.batch_size))
        .map(|point| Candidate {
            batch_size: point.batch_size,
            ln_time_per_step: point.mean_time_per_step_secs.ln(),
            energy_per_step_kwh: point.energy_per_step_joules.map(|it| it / KILOWATT_HOUR),
        })
        .collect();
    if candidates.is_empty() {
        return None;
    }
    let price = Price::of(definition, &candidates);
    let devices = f64::from(definition.device.count);
    let draws = draw(candidates, throughput, fit, price, definition.seed);
    let plain: Vec<Priced> = draws
        .candidates
        .iter()
        .map(|candidate| {
            let ln_steps = fit.curve.ln_steps(candidate.batch_size.as_f64().ln());
            let (steps, secs) = (ln_steps.exp(), candidate.ln_time_per_step.exp());
            let money = steps * price.of_step(secs, candidate);
            Priced {
                batch_size: candidate.batch_size,
                secs: steps * secs,
                money: if price.is_money { money } else { 0.0 },
            }
        })
        .collect();
    let upfront = upfront(definition, &plain);
    // What is put off is no candidate, so nothing is measured against it.
    let is_put_off = |size: BatchSize| {
        let needed = definition.costs.upfront_for(size);
        needed > 0.0 && upfront.iter().any(|it| it.defer && it.amount <= needed)
    };
    let allowed: Vec<bool> = draws
        .candidates
        .iter()
        .map(|candidate| !is_put_off(candidate.batch_size))
        .collect();
    let minimised = match definition.objective {
        Objective::MinimizeTrainingTime | Objective::Pareto => &draws.ln_times,
        Objective::MinimizeResourceConsumption => &draws.ln_resources,
    };
    let (best, within) = shares(minimised, &allowed);
    let (_, thrifty) = shares(&draws.ln_resources, &vec![true; allowed.len()]);
    let is_measured = |size: BatchSize| {
        let mut points = steps.points.iter();
        points.any(|point| point.batch_size == size && point.state == SearchState::Measured)
    };
    let points: Vec<TrainingTimePoint> = draws
        .candidates
        .iter()
        .enumerate()
        .map(|(index, candidate)| {
            let ln_batch = candidate.batch_size.as_f64().ln();
            let ln_steps = fit.curve.ln_steps(ln_batch);
            let ln_time = ln_steps + candidate.ln_time_per_step;
            let row = &draws.ln_times[index];
            let resources = &draws.ln_resources[index];
            let time = interval(ln_time.exp(), row.iter().map(|ln| ln.exp()));
            let steps = interval(
                ln_steps.exp(),
                fit.draws.iter().map(|it| it.ln_steps(ln_batch).exp()),
            );
            let secs = candidate.ln_time_per_step.exp();
            TrainingTimePoint {
                batch_size: candidate.batch_size,
                is_measured: is_measured(candidate.batch_size),
                steps,
                time_per_step_secs: secs,
                training_time_secs: time,
                device_secs: time.scaled(devices),
                energy_kwh: candidate.energy_per_step_kwh.map(|it| steps.scaled(it)),
                money: price.is_money.then(|| {
                    interval(
                        ln_steps.exp() * price.of_step(secs, candidate),
                        resources.iter().map(|ln| ln.exp()),
                    )
                }),
                runs_per_device_hour: SECONDS / (devices * time.value),
                resources_to_next: draws
                    .candidates
                    .get(index + 1)
                    .map(|next| change(next.batch_size, resources, &draws.ln_resources[index + 1])),
                p_best: best[index],
                p_within_5pct: within[index],
                p_resources_within_5pct: thrifty[index],
                ln_sd: sd(&minimised[index]),
            }
        })
        .collect();
    let choose = |only_measured: bool| {
        let allowed = points
            .iter()
            .filter(|point| !is_put_off(point.batch_size) && (point.is_measured || !only_measured));
        let highest = allowed
            .clone()
            .map(|point| point.p_within_5pct)
            .reduce(f64::max)?;
        allowed
            .filter(|point| point.p_within_5pct >= highest - TIED)
            .map(|point| point.batch_size)
            .min()
    };
    let batch_size = choose(false)?;
    let near_ties = points
        .iter()
        .filter(|point| point.batch_size != batch_size && point.p_within_5pct >= NEAR_TIE)
        .map(|point| point.batch_size)
        .collect();
    Some(TrainingTimeAnalysis {
        objective: definition.objective,
        batch_size,
        measured_batch_size: choose(true),
        near_ties,
        pareto: pareto(&points),
        upfront,
        points,
    })
}

/// Draws ln T and ln R of every candidate. A draw takes one scatter between children for all (it is pooled), a normal
/// error of each mean, and one curve of steps.
fn draw(
    candidates: Vec<Candidate>,
    throughput: &ThroughputAnalysis,
    fit: &StepsFit,
    price: Price,
    seed: u64,
) -> Draws {
    let design = BlockedDesign::fit(&throughput.ln_time_per_step);
    let error = design
        .as_ref()
        .and_then(|design| Some(design.residual_sd? / (design.blocks as f64).sqrt()))
        .filter(|error| error.is_finite())
        .unwrap_or(0.0);
    let freedom = design.map_or(1.0, |design| design.degrees_of_freedom.max(1) as f64);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let chi_squared = ChiSquared::new(freedom).ok();
    let mut ln_times =
        vec![Vec::with_capacity(fit.draws.len() * TIMES_PER_CURVE); candidates.len()];
    let mut ln_resources = ln_times.clone();
    for curve in &fit.draws {
        for _ in 0..TIMES_PER_CURVE {
            let scatter = chi_squared.map_or(error, |chi_squared| {
                let spread: f64 = chi_squared.sample(&mut random);
                error * (freedom / spread).sqrt()
            });
            for (index, candidate) in candidates.iter().enumerate() {
                let z: f64 = StandardNormal.sample(&mut random);
                let steps = curve.ln_steps(candidate.batch_size.as_f64().ln());
                let ln_time = candidate.ln_time_per_step + scatter * z;
                ln_times[index].push(steps + ln_time);
                let cost = price.of_step(ln_time.exp(), candidate);
                ln_resources[index].push(steps + cost.ln());
            }
        }
    }
    Draws {
        candidates,
        ln_times,
        ln_resources,
    }
}

/// How often each of the allowed ones is the best of them, and within 5% of it.
fn shares(rows: &[Vec<f64>], allowed: &[bool]) -> (Vec<f64>, Vec<f64>) {
    let draws = rows.first().map_or(0, Vec::len);
    let (mut best, mut within) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
    for draw in 0..draws {
        let least = rows
            .iter()
            .zip(allowed)
            .filter(|(_, allowed)| **allowed)
            .map(|(row, _)| row[draw])
            .fold(f64::INFINITY, f64::min);
        for (index, row) in rows.iter().enumerate().filter(|(index, _)| allowed[*index]) {
            if row[draw] == least {
                best[index] += 1.0 / draws as f64;
            }
            if row[draw] <= least + AS_GOOD.ln() {
                within[index] += 1.0 / draws as f64;
            }
        }
    }
    (best, within)
}

fn sd(row: &[f64]) -> f64 {
    crate::statistics::intervals::standard_deviation(row).unwrap_or(0.0)
}

fn change(to: BatchSize, from: &[f64], next: &[f64]) -> ResourceChange {
    let mut ratios: Vec<f64> = next.iter().zip(from).map(|(a, b)| a - b).collect();
    ratios.sort_by(f64::total_cmp);
    let end = |share| quantile(&ratios, share).unwrap_or(0.0);
    let (lower, upper) = (end(0.025), end(0.975));
    ResourceChange {
        to,
        ratio: Estimate {
            value: end(0.5).exp(),
            ci_lower: Some(lower.exp()),
            ci_upper: Some(upper.exp()),
        },
        direction: if lower > -SAME && upper < SAME {
            Direction::Same
        } else if upper < 0.0 {
            Direction::Decrease
        } else if lower > 0.0 {
            Direction::Increase
        } else {
            Direction::Undetermined
        },
    }
}

/// Those that no other beats in both time and resource consumption, money where there is a price that counts. With one
/// number of devices and no price of energy the two rise and fall together, so it is the best and what ties with it.
fn pareto(points: &[TrainingTimePoint]) -> Vec<BatchSize> {
    let pair = |point: &TrainingTimePoint| {
        let resources = point.money.unwrap_or(point.device_secs);
        (point.training_time_secs.value, resources.value)
    };
    points
        .iter()
        .filter(|point| {
            let (time, resources) = pair(point);
            !points.iter().any(|other| {
                let (its_time, its_resources) = pair(other);
                its_time <= time
                    && its_resources <= resources
                    && (its_time < time || its_resources < resources)
            })
        })
        .map(|point| point.batch_size)
        .collect()
}

/// For every level of upfront cost: the best batch size that needs it against the best that does not.
fn upfront(definition: &StudyDefinition, points: &[Priced]) -> Vec<UpfrontDecision> {
    let costs = &definition.costs;
    let quickest = |allowed: &dyn Fn(f64) -> bool| {
        points
            .iter()
            .filter(|point| allowed(costs.upfront_for(point.batch_size)))
            .min_by(|a, b| a.secs.total_cmp(&b.secs))
    };
    let mut levels: Vec<f64> = points
        .iter()
        .map(|point| costs.upfront_for(point.batch_size))
        .filter(|amount| *amount > 0.0)
        .collect();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    levels
        .into_iter()
        .filter_map(|amount| {
            let new = quickest(&|cost| cost == amount)?;
            let old = quickest(&|cost| cost < amount)?;
            let hours = (old.secs - new.secs) / SECONDS;
            let saved_per_run = old.money - new.money + costs.value_of_time_per_hour * hours;
            let break_even_runs = (saved_per_run > 0.0).then(|| amount / saved_per_run);
            let is_early = definition.project_phase == ProjectPhase::Early;
            let defer = break_even_runs.is_none_or(|runs| {
                is_early
                    && costs
                        .planned_runs
                        .is_some_and(|planned| runs > planned as f64)
            });
            Some(UpfrontDecision {
                batch_size: new.batch_size,
                instead_of: old.batch_size,
                amount,
                saved_per_run,
                break_even_runs,
                planned_runs: costs.planned_runs,
                defer,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;

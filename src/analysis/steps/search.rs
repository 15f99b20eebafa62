//! The search for the fewest steps to the target at one batch size, over hyperparameters.
//!
//! Stages: a scrambled Sobol sequence with a common seed, in two halves, because the second stops at
//! 1.15 × the best of the first; more trials where the best lies at an end of a range, or where most
//! diverged; halvings around the best; the best three again with five fresh seeds each; the winner of their
//! medians once more with five others, because the least of several medians is too small. S is the median of
//! the winner's runs with fresh seeds. Where the result depends on no seed, more halvings take their place.
//!
//! What comes next is found by going through the stages from the start and looking up every trial they
//! ask for, so it depends on what the trials said and not on when they said it.

use crate::statistics::intervals::median;
use crate::statistics::sequences::sobol;
use crate::study::{Hyperparameter, Optimizer, ProbeId, SearchSpace};

/// How a trial ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// It reached the target after so many steps, interpolated; at least one.
    Reached(f64),
    /// It did not within so many steps.
    Capped(u64),
    /// Its loss was no longer a number.
    Diverged,
    /// Its probe failed for reasons of the service's own: a hole, not a result.
    Nothing,
}

/// One point of hyperparameters, trained once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial<'a> {
    /// Its probe.
    pub probe_id: ProbeId,
    /// The hyperparameters.
    pub optimizer: &'a Optimizer,
    /// 0 has the common seed, every other its own.
    pub replicate: u32,
    /// Its cap.
    pub max_steps: u64,
    /// The wave it was planned in.
    pub wave: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// The best value that it reached, the less the better.
    pub score: Option<f64>,
}

/// A trial to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The hyperparameters.
    pub optimizer: Optimizer,
    /// 0 for the common seed.
    pub replicate: u32,
    /// Its cap.
    pub max_steps: u64,
    /// What it is for, for people.
    pub why: &'static str,
}

/// What the search does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// These trials.
    Trials(Vec<Wanted>),
    /// Nothing: it has its result.
    Done(Found),
}

/// What the search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The hyperparameters that need the fewest steps; those that came nearest where none reached it.
    pub optimizer: Optimizer,
    /// How many steps they need.
    pub steps: Steps,
    /// ln of the steps of the finalists' and the winner's runs, grouped by hyperparameters: the scatter of
    /// seeds.
    pub scatter: Vec<Vec<f64>>,
    /// Trials of the screening.
    pub trials: usize,
    /// Those that reached the target.
    pub reached: usize,
    /// Those that diverged.
    pub diverged: usize,
    /// Hyperparameters whose best value lies at an end of the range even after widening.
    pub at_boundary: Vec<Hyperparameter>,
    /// The probes of the winner's last runs.
    pub probe_ids: Vec<ProbeId>,
}

/// Steps to the target.
#[derive(Debug, Clone, PartialEq)]
pub enum Steps {
    /// The median over seeds.
    Measured {
        /// ln of the median.
        ln: f64,
        /// Seeds behind it; none where the result does not depend on a seed.
        seeds: usize,
    },
    /// More than this.
    MoreThan(u64),
    /// Every trial diverged.
    Diverged,
}

/// Trials that get fresh seeds.
const FINALISTS: usize = 3;
/// Fresh seeds of each.
pub const SEEDS: u32 = 5;
/// A trial stops past this multiple of the best so far.
const PAST_THE_BEST: f64 = 1.15;
/// And one with a fresh seed past this, so that a median is hardly ever cut off.
const PAST_THE_BEST_SEEDS: f64 = 2.5;
/// Steps beyond a cap: the target counts when the next evaluation confirms it.
const TO_CONFIRM: u64 = 3;
/// Times that a cap is doubled before the batch size counts as censored.
const DOUBLINGS: usize = 2;
/// Times that a range is widened.
const WIDENINGS: usize = 2;
/// By how much, in ln.
const WIDER: f64 = std::f64::consts::LN_10;
/// The outer part of a range.
const OUTER: f64 = 0.1;
/// Rounds of halving around the best, where seeds scatter more than closer rounds would gain.
const HALVINGS: usize = 2;
/// And for each axis where nothing scatters.
const EXACT_HALVINGS: usize = 3;

/// A search.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// Where.
    pub space: SearchSpace,
    /// Trials of the screening.
    pub trials: usize,
    /// Scrambles the sequence.
    pub seed: u64,
    /// The cap of the first trials, steps.
    pub cap: u64,
    /// Whether the result depends on no seed.
    pub is_exact: bool,
    /// Further seeds of the winner, beyond the usual.
    pub more_seeds: u32,
}

/// What the stages have gone through so far.
struct Replay<'a> {
    trials: &'a [Trial<'a>],
    seen: Vec<Trial<'a>>,
}

impl<'a> Replay<'a> {
    /// The trial of these hyperparameters with a cap of at least so much; of several the one with the lowest,
    /// which is the one that was asked for first.
    fn find(&self, optimizer: &Optimizer, replicate: u32, cap: u64) -> Option<Trial<'a>> {
        self.trials
            .iter()
            .filter(|trial| trial.replicate == replicate && trial.max_steps >= cap)
            .filter(|trial| trial.optimizer == optimizer)
            .min_by_key(|trial| trial.max_steps)
            .copied()
    }

    /// Takes in what was asked for, or asks for what is missing of it.
    fn take(&mut self, wanted: Vec<Wanted>, at_least: u64) -> Result<Vec<Trial<'a>>, Next> {
        let mut found = Vec::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for it in wanted {
            match self.find(&it.optimizer, it.replicate, at_least) {
                Some(trial) => found.push(trial),
                None => missing.push(it),
            }
        }
        if missing.is_empty() {
            Ok(found)
        } else {
            Err(Next::Trials(missing))
        }
    }

    fn best(&self) -> Option<Trial<'a>> {
        self.seen
            .iter()
            .filter(|trial| trial.steps().is_some())
            .min_by(|a, b| a.order().total_cmp(&b.order()))
            .copied()
    }

    fn diverged(&self) -> usize {
        let mut seen = self.seen.iter();
        seen.by_ref()
            .filter(|trial| trial.outcome == Outcome::Diverged)
            .count()
    }
}

impl Trial<'_> {
    fn steps(&self) -> Option<f64> {
        match self.outcome {
            Outcome::Reached(steps) => Some(steps),
            _ => None,
        }
    }

    fn order(&self) -> f64 {
        self.steps().unwrap_or(f64::INFINITY)
    }
}

impl Search {
    /// What comes next, given every trial of this batch size that has ended, in any order.
    pub fn next(&self, trials: &[Trial<'_>]) -> Next {
        let mut replay = Replay {
            trials,
            seen: Vec::new(),
        };
        match self.go(&mut replay) {
            Ok(found) => Next::Done(found),
            Err(next) => next,
        }
    }

    fn go(&self, replay: &mut Replay<'_>) -> Result<Found, Next> {
        let mut space = self.space.clone();
        let first: Vec<Vec<f64>> = (0..self.trials)
            .map(|index| space.within(&self.shares(index)))
            .collect();
        let mut drawn = self.trials;
        for half in first.chunks(self.trials.div_ceil(2)) {
            self.screen(
                replay,
                half,
                "a point of the scrambled Sobol sequence over the hyperparameters",
            )?;
        }
        let top_up = self.trials.div_ceil(2);
        for _ in 0..WIDENINGS {
            if replay.diverged() * 2 <= replay.seen.len() {
                break;
            }
            self.shrink(replay, &mut space);
            let points: Vec<_> = (drawn..drawn + top_up)
                .map(|index| space.within(&self.shares(index)))
                .collect();
            drawn += top_up;
            self.screen(
                replay,
                &points,
                "more than half of the trials diverged, so the learning rates are lower",
            )?;
        }
        self.extend(replay)?;
        for _ in 0..WIDENINGS {
            let ends = self.at_ends(replay, &space);
            if ends.is_empty() {
                break;
            }
            let mut points = Vec::new();
            for (index, is_upper) in ends {
                let axis = &mut space.axes[index];
                let (lower, upper) = if is_upper {
                    let far = axis.upper + WIDER;
                    let end = axis.hard_upper().map_or(far, |hard| far.min(hard));
                    (std::mem::replace(&mut axis.upper, end), end)
                } else {
                    let end = axis.lower - WIDER;
                    (end, std::mem::replace(&mut axis.lower, end))
                };
                for number in drawn..drawn + top_up {
                    let mut point = space.within(&self.shares(number));
                    let share = sobol(number as u32, index as u32, self.seed);
                    point[index] = lower + share * (upper - lower);
                    points.push(point);
                }
                drawn += top_up;
            }
            self.screen(
                replay,
                &points,
                "the best lies at the end of a range, so the range is widened tenfold on that side",
            )?;
        }
        self.halve(replay, &space)?;
        let at_boundary = self
            .at_ends(replay, &space)
            .into_iter()
            .map(|(index, _)| space.axes[index].hyperparameter)
            .collect();
        self.finish(replay, at_boundary)
    }

    fn shares(&self, index: usize) -> Vec<f64> {
        (0..self.space.axes.len())
            .map(|axis| sobol(index as u32, axis as u32, self.seed))
            .collect()
    }

    /// The cap of a screening trial, given what was seen.
    fn screening_cap(&self, replay: &Replay<'_>) -> u64 {
        replay.best().map_or(self.cap, |best| {
            let cap = (best.order() * PAST_THE_BEST).ceil() as u64 + TO_CONFIRM;
            cap.min(self.cap.max(best.max_steps))
        })
    }

    fn screen(
        &self,
        replay: &mut Replay<'_>,
        points: &[Vec<f64>],
        why: &'static str,
    ) -> Result<(), Next> {
        let max_steps = self.screening_cap(replay);
        let wanted = points
            .iter()
            .map(|point| Wanted {
                optimizer: self.space.at(point),
                replicate: 0,
                max_steps,
                why,
            })
            .collect();
        let found = replay.take(wanted, 0)?;
        replay.seen.extend(found);
        Ok(())
    }

    /// Lowers the upper end of the learning rates to where trials did not diverge.
    fn shrink(&self, replay: &Replay<'_>, space: &mut SearchSpace) {
        let Some(axis) = space
            .axes
            .iter()
            .position(|axis| axis.hyperparameter == Hyperparameter::LearningRate)
        else {
            return;
        };
        let rates = |diverged: bool| {
            replay
                .seen
                .iter()
                .filter(move |trial| (trial.outcome == Outcome::Diverged) == diverged)
                .map(|trial| self.space.point(trial.optimizer)[axis])
        };
        let lowest_diverged = rates(true).fold(f64::INFINITY, f64::min);
        let highest_other = rates(false).fold(f64::NEG_INFINITY, f64::max);
        let width = space.axes[axis].upper - space.axes[axis].lower;
        space.axes[axis].upper = lowest_diverged.max(highest_other);
        // Nothing survived above the lower end: then the whole range moves.
        if space.axes[axis].upper - space.axes[axis].lower < WIDER.min(width / 2.0) {
            space.axes[axis].lower = space.axes[axis].upper - width;
        }
    }

    /// While nothing has reached the target: the trials that came nearest again, with a doubled cap.
    fn extend(&self, replay: &mut Replay<'_>) -> Result<(), Next> {
        for _ in 0..DOUBLINGS {
            if replay.best().is_some() {
                break;
            }
            let longest = replay.seen.iter().map(|trial| trial.max_steps).max();
            let max_steps = longest.unwrap_or(self.cap).saturating_mul(2);
            let wanted: Vec<Wanted> = nearest(&replay.seen)
                .into_iter()
                .take(FINALISTS)
                .map(|trial| Wanted {
                    optimizer: trial.optimizer.clone(),
                    replicate: 0,
                    max_steps,
                    why: "no trial has reached the target, so those that came nearest get twice the steps",
                })
                .collect();
            if wanted.is_empty() {
                break;
            }
            let found = replay.take(wanted, max_steps)?;
            replay
                .seen
                .retain(|old| !found.iter().any(|new| new.optimizer == old.optimizer));
            replay.seen.extend(found);
        }
        Ok(())
    }

    /// The axes at whose lower (false) or upper (true) end the best trial lies, if it can be widened there.
    fn at_ends(&self, replay: &Replay<'_>, space: &SearchSpace) -> Vec<(usize, bool)> {
        let Some(best) = replay.best() else {
            return Vec::new();
        };
        let point = self.space.point(best.optimizer);
        let mut ends = Vec::new();
        for (index, (axis, value)) in space.axes.iter().zip(point).enumerate() {
            let width = axis.upper - axis.lower;
            if value - axis.lower < OUTER * width {
                ends.push((index, false));
            } else if axis.upper - value < OUTER * width
                && axis
                    .hard_upper()
                    .is_none_or(|hard| axis.upper < hard - 1e-9)
                && !self.diverges_above(replay, index, value)
            {
                ends.push((index, true));
            }
        }
        ends
    }

    /// Whether a trial has diverged at a larger learning rate not far away: then nothing is to be sought there.
    fn diverges_above(&self, replay: &Replay<'_>, axis: usize, value: f64) -> bool {
        self.space.axes[axis].hyperparameter == Hyperparameter::LearningRate
            && replay
                .seen
                .iter()
                .filter(|trial| trial.outcome == Outcome::Diverged)
                .any(|trial| self.space.point(trial.optimizer)[axis] > value)
    }

    /// Approaches the best: trials on both sides of it along every axis, closer in each round.
    fn halve(&self, replay: &mut Replay<'_>, space: &SearchSpace) -> Result<(), Next> {
        let axes = space.axes.len();
        let per_axis = (self.trials as f64).powf(1.0 / axes as f64);
        let mut reach = 0.5;
        let rounds = if self.is_exact {
            EXACT_HALVINGS * axes
        } else {
            HALVINGS
        };
        for _ in 0..rounds {
            let Some(best) = replay.best() else {
                return Ok(());
            };
            let centre = self.space.point(best.optimizer);
            let mut points = Vec::new();
            for (index, axis) in space.axes.iter().enumerate() {
                let stride = (axis.upper - axis.lower) / per_axis * reach;
                for side in [-1.0, 1.0] {
                    let mut point = centre.clone();
                    point[index] += side * stride;
                    if let Some(hard) = axis.hard_upper() {
                        point[index] = point[index].min(hard);
                    }
                    points.push(point);
                }
            }
            self.screen(
                replay,
                &points,
                "on both sides of the best so far, closer in each round",
            )?;
            let is_better = replay.best().is_some_and(|new| new.order() < best.order());
            // A step that helped is tried again.
            if axes == 1 || !is_better {
                reach *= 0.5;
            }
        }
        Ok(())
    }

    fn finish(
        &self,
        replay: &mut Replay<'_>,
        at_boundary: Vec<Hyperparameter>,
    ) -> Result<Found, Next> {
        let mut hits: Vec<Trial<'_>> = replay.seen.clone();
        hits.retain(|trial| trial.steps().is_some());
        hits.sort_by(|a, b| a.order().total_cmp(&b.order()));
        let mut found = Found {
            optimizer: self.space.optimizer.clone(),
            steps: Steps::Diverged,
            scatter: Vec::new(),
            trials: replay.seen.len(),
            reached: hits.len(),
            diverged: replay.diverged(),
            at_boundary,
            probe_ids: Vec::new(),
        };
        let Some(best) = hits.first().copied() else {
            if let Some(nearest) = nearest(&replay.seen).first() {
                found.optimizer = nearest.optimizer.clone();
                found.probe_ids = vec![nearest.probe_id];
                found.steps = Steps::MoreThan(nearest.max_steps);
            }
            return Ok(found);
        };
        if self.is_exact {
            found.optimizer = best.optimizer.clone();
            found.probe_ids = vec![best.probe_id];
            found.steps = Steps::Measured {
                ln: best.order().ln(),
                seeds: 0,
            };
            return Ok(found);
        }
        let max_steps = (best.order() * PAST_THE_BEST_SEEDS).ceil() as u64 + TO_CONFIRM;
        let with_seeds = |optimizer: &Optimizer, seeds: std::ops::RangeInclusive<u32>, why| {
            seeds
                .map(|replicate| Wanted {
                    optimizer: optimizer.clone(),
                    replicate,
                    max_steps,
                    why,
                })
                .collect::<Vec<_>>()
        };
        let mut finalists: Vec<Optimizer> =
            hits.iter().map(|trial| trial.optimizer.clone()).collect();
        finalists.extend(
            nearest(&replay.seen)
                .into_iter()
                .map(|trial| trial.optimizer.clone()),
        );
        finalists.truncate(FINALISTS);
        let wanted = finalists
            .iter()
            .flat_map(|optimizer| {
                with_seeds(
                    optimizer,
                    1..=SEEDS,
                    "one of the three best again, with a fresh seed",
                )
            })
            .collect();
        let runs = replay.take(wanted, 0)?;
        let winner = runs
            .chunks(SEEDS as usize)
            .min_by(|a, b| median_steps(a).total_cmp(&median_steps(b)))
            .map_or(best.optimizer, |runs| runs[0].optimizer);
        let last = SEEDS + 1..=SEEDS * 2 + self.more_seeds;
        let again = replay.take(
            with_seeds(
                winner,
                last,
                "the best of the medians once more, with seeds that it was not chosen by",
            ),
            0,
        )?;
        found.optimizer = winner.clone();
        let lns = |runs: &[Trial<'_>]| -> Vec<f64> {
            runs.iter()
                .filter_map(|run| Some(run.steps()?.ln()))
                .collect()
        };
        found.scatter = runs.chunks(SEEDS as usize).map(lns).collect();
        found.scatter.push(lns(&again));
        found.probe_ids = again.iter().map(|run| run.probe_id).collect();
        let mut all = again.clone();
        all.extend(runs.iter().filter(|run| run.optimizer == winner));
        let middle = median_steps(&all);
        found.steps = if middle.is_finite() {
            Steps::Measured {
                ln: middle.ln(),
                seeds: counted(&all),
            }
        } else {
            let caps = again.iter().map(|run| run.max_steps);
            Steps::MoreThan(caps.max().unwrap_or(max_steps))
        };
        Ok(found)
    }
}

fn counted(runs: &[Trial<'_>]) -> usize {
    runs.iter()
        .filter(|run| run.outcome != Outcome::Nothing)
        .count()
}

/// The median of the steps, runs that did not reach the target counting as endless.
fn median_steps(runs: &[Trial<'_>]) -> f64 {
    let steps: Vec<f64> = runs
        .iter()
        .filter(|run| run.outcome != Outcome::Nothing)
        .map(Trial::order)
        .collect();
    median(&steps).unwrap_or(f64::INFINITY)
}

/// Those that did not reach the target, the nearest first.
fn nearest<'a>(trials: &[Trial<'a>]) -> Vec<Trial<'a>> {
    let mut capped: Vec<Trial<'a>> = trials
        .iter()
        .filter(|trial| matches!(trial.outcome, Outcome::Capped(_)))
        .copied()
        .collect();
    let score = |trial: &Trial<'_>| trial.score.unwrap_or(f64::INFINITY);
    capped.sort_by(|a, b| score(a).total_cmp(&score(b)));
    capped
}

#[cfg(test)]
mod tests;

//! The search for the fewest steps to the target at one batch size, or for the least loss, over
//! hyperparameters.
//!
//! Stages: a scrambled Sobol sequence with a common seed, in two halves, because the second stops at
//! 1.15 × the best of the first; more trials where the best lies at an end of a range, or where most
//! diverged; halvings around the best; the best three again with five fresh seeds each; the winner of their
//! medians once more with five others, because the least of several medians is too small. S is the median of
//! the winner's runs with fresh seeds. Where the result depends on no seed, more halvings take their place.
//!
//! A search for the least loss trains every trial to the same number of steps, and the seeds of the best twice as
//! long while their loss was still falling at the end.
//!
//! What comes next is found by going through the stages from the start and looking up every trial they
//! ask for, so it depends on what the trials said and not on when they said it.

use crate::statistics::intervals::median;
use crate::statistics::sequences::sobol;
use crate::study::{
    Configuration, Hyperparameter, Optimizer, ProbeId, Regularisation, SearchSpace,
};

/// How a trial ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// It reached the target after so many steps, interpolated, at least one; or, where the least loss is
    /// sought, it came down to this.
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
    /// The hyperparameters of the optimizer.
    pub optimizer: &'a Optimizer,
    /// Those of the workload.
    pub regularisation: Regularisation,
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
    /// The step at which it did.
    pub best_step: Option<f64>,
}

/// A trial to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The hyperparameters.
    pub configuration: Configuration,
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
    Done(Box<Found>),
}

/// What the search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The hyperparameters that need the fewest steps; those that came nearest where none reached it.
    pub configuration: Configuration,
    /// How many steps they need, or what loss they come down to.
    pub steps: Steps,
    /// ln of the steps, or of the loss, of the finalists' and the winner's runs, grouped by hyperparameters: the scatter of
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
    /// What those runs came to, by their seeds, which had no part in choosing them.
    pub fresh: Vec<f64>,
    /// Steps that they trained at most.
    pub max_steps: u64,
    /// Whether their loss was still falling at the end of the longest runs.
    pub is_still_falling: bool,
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
/// Points that are nearer than this along every axis, in ln, are the same one.
const SAME_POINT: f64 = 1e-6;
/// A loss whose best step lies in the part of the run after this is still falling.
const LATE: f64 = 0.75;

/// What is sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// The fewest steps to the target.
    StepsToTarget,
    /// The least loss.
    LeastLoss,
}

/// A search.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// What is sought.
    pub aim: Aim,
    /// Where.
    pub space: SearchSpace,
    /// Trials of the screening.
    pub trials: usize,
    /// Scrambles the sequence.
    pub seed: u64,
    /// The cap of the first trials, steps; of all of them where the least loss is sought.
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
    fn find(&self, at: &Configuration, replicate: u32, cap: u64) -> Option<Trial<'a>> {
        self.trials
            .iter()
            .filter(|trial| trial.replicate == replicate && trial.max_steps >= cap)
            .filter(|trial| trial.is_at(at))
            .min_by_key(|trial| trial.max_steps)
            .copied()
    }

    /// Takes in what was asked for, or asks for what is missing of it.
    fn take(&mut self, wanted: Vec<Wanted>, at_least: u64) -> Result<Vec<Trial<'a>>, Next> {
        let mut found = Vec::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for it in wanted {
            match self.find(&it.configuration, it.replicate, at_least) {
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
    fn configuration(&self) -> Configuration {
        Configuration {
            optimizer: self.optimizer.clone(),
            regularisation: self.regularisation,
        }
    }

    /// Whether it trained with this configuration.
    pub(in crate::analysis) fn is_at(&self, at: &Configuration) -> bool {
        *self.optimizer == at.optimizer && self.regularisation == at.regularisation
    }

    fn point(&self, space: &SearchSpace) -> Vec<f64> {
        space.point(self.optimizer, self.regularisation)
    }

    fn is_late(&self) -> bool {
        self.best_step
            .is_some_and(|step| step > LATE * self.max_steps as f64)
    }

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
            Ok(found) => Next::Done(Box::new(found)),
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
        if self.aim == Aim::LeastLoss {
            return self.cap;
        }
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
        let mut new: Vec<&Vec<f64>> = Vec::with_capacity(points.len());
        for point in points {
            // A halving may come back to where another began.
            let is_near = |other: &[f64]| {
                let mut pairs = point.iter().zip(other);
                pairs.all(|(a, b)| (a - b).abs() < SAME_POINT)
            };
            let is_known = new.iter().any(|other| is_near(other))
                || replay
                    .seen
                    .iter()
                    .any(|trial| is_near(&trial.point(&self.space)));
            if !is_known {
                new.push(point);
            }
        }
        let wanted = new
            .into_iter()
            .map(|point| Wanted {
                configuration: self.space.at(point),
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
                .map(|trial| trial.point(&self.space)[axis])
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
                    configuration: trial.configuration(),
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
                .retain(|old| !found.iter().any(|new| new.is_at(&old.configuration())));
            replay.seen.extend(found);
        }
        Ok(())
    }

    /// The axes at whose lower (false) or upper (true) end the best trial lies, if it can be widened there.
    fn at_ends(&self, replay: &Replay<'_>, space: &SearchSpace) -> Vec<(usize, bool)> {
        let Some(best) = replay.best() else {
            return Vec::new();
        };
        let point = best.point(&self.space);
        let mut ends = Vec::new();
        for (index, (axis, value)) in space.axes.iter().zip(point).enumerate() {
            let width = axis.upper - axis.lower;
            if value - axis.lower < OUTER * width {
                // Hardly any regularisation is as good as none at all.
                if !axis.hyperparameter.is_regularisation() {
                    ends.push((index, false));
                }
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
                .any(|trial| trial.point(&self.space)[axis] > value)
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
            let centre = best.point(&self.space);
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
            configuration: self.space.configuration.clone(),
            steps: Steps::Diverged,
            scatter: Vec::new(),
            trials: replay.seen.len(),
            reached: hits.len(),
            diverged: replay.diverged(),
            at_boundary,
            probe_ids: Vec::new(),
            fresh: Vec::new(),
            max_steps: self.cap,
            is_still_falling: false,
        };
        let Some(best) = hits.first().copied() else {
            if let Some(nearest) = nearest(&replay.seen).first() {
                found.configuration = nearest.configuration();
                found.probe_ids = vec![nearest.probe_id];
                found.steps = Steps::MoreThan(nearest.max_steps);
            }
            return Ok(found);
        };
        if self.is_exact {
            found.configuration = best.configuration();
            found.probe_ids = vec![best.probe_id];
            found.steps = Steps::Measured {
                ln: best.order().ln(),
                seeds: 0,
            };
            return Ok(found);
        }
        let mut finalists: Vec<Configuration> = hits
            .iter()
            .chain(&nearest(&replay.seen))
            .map(Trial::configuration)
            .collect();
        finalists.truncate(FINALISTS);
        let (runs, max_steps) = self.finals(replay, &finalists, best)?;
        let winner = runs
            .chunks(SEEDS as usize)
            .min_by(|a, b| middle(a).total_cmp(&middle(b)))
            .map_or(best.configuration(), |runs| runs[0].configuration());
        let last = SEEDS + 1..=SEEDS * 2 + self.more_seeds;
        let again = replay.take(
            with_seeds(
                &winner,
                last,
                max_steps,
                "the best of the medians once more, with seeds that it was not chosen by",
            ),
            match self.aim {
                Aim::StepsToTarget => 0,
                Aim::LeastLoss => max_steps,
            },
        )?;
        let lns = |runs: &[Trial<'_>]| -> Vec<f64> {
            runs.iter()
                .filter_map(|run| Some(run.steps()?.ln()))
                .collect()
        };
        found.scatter = runs.chunks(SEEDS as usize).map(lns).collect();
        found.scatter.push(lns(&again));
        found.probe_ids = again.iter().map(|run| run.probe_id).collect();
        found.fresh = again.iter().filter_map(Trial::steps).collect();
        found.max_steps = max_steps;
        found.is_still_falling = self.aim == Aim::LeastLoss && most_are_late(&runs);
        let mut all = again.clone();
        all.extend(runs.iter().filter(|run| run.is_at(&winner)));
        found.configuration = winner;
        let middle = middle(&all);
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

    /// The finalists' runs with fresh seeds, in the order of the finalists, and the steps of each at most.
    fn finals<'a>(
        &self,
        replay: &mut Replay<'a>,
        finalists: &[Configuration],
        best: Trial<'_>,
    ) -> Result<(Vec<Trial<'a>>, u64), Next> {
        let run = |replay: &mut Replay<'a>, max_steps: u64, at_least: u64, why| {
            let wanted = finalists
                .iter()
                .flat_map(|at| with_seeds(at, 1..=SEEDS, max_steps, why))
                .collect();
            replay.take(wanted, at_least)
        };
        const WHY: &str = "one of the three best again, with a fresh seed";
        if self.aim == Aim::StepsToTarget {
            let max_steps = (best.order() * PAST_THE_BEST_SEEDS).ceil() as u64 + TO_CONFIRM;
            return Ok((run(replay, max_steps, 0, WHY)?, max_steps));
        }
        let mut max_steps = self.cap;
        let mut runs = run(replay, max_steps, max_steps, WHY)?;
        for _ in 0..DOUBLINGS {
            if !most_are_late(&runs) {
                break;
            }
            max_steps = max_steps.saturating_mul(2);
            let why =
                "the loss was still falling at the end, so the three best train twice as long";
            runs = run(replay, max_steps, max_steps, why)?;
        }
        Ok((runs, max_steps))
    }
}

/// A configuration with these seeds.
fn with_seeds(
    at: &Configuration,
    seeds: std::ops::RangeInclusive<u32>,
    max_steps: u64,
    why: &'static str,
) -> Vec<Wanted> {
    seeds
        .map(|replicate| Wanted {
            configuration: at.clone(),
            replicate,
            max_steps,
            why,
        })
        .collect()
}

fn most_are_late(runs: &[Trial<'_>]) -> bool {
    2 * runs.iter().filter(|run| run.is_late()).count() > runs.len()
}

fn counted(runs: &[Trial<'_>]) -> usize {
    runs.iter()
        .filter(|run| run.outcome != Outcome::Nothing)
        .count()
}

/// The median of what runs came to, those that did not reach the target counting as endless.
fn middle(runs: &[Trial<'_>]) -> f64 {
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

//! Over how many examples batch normalization takes its statistics. Plain batch normalization takes them over the whole
//! batch, so a change of the batch size is a change of the model's noise too, and what is compared across batch sizes is
//! not the batch size alone. Ghost batches of a fixed size (Hoffer et al. 2017, arXiv:1705.08741) keep the two apart;
//! layer and group normalization (Ba et al. 2016, Wu & He 2018) know no batch in the first place.
//!
//! The rule needs no training. On request, ghost batches of several sizes are trained with at one batch size, to the same
//! number of steps with the same hyperparameters, and their least losses are compared.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::evidence::series_seed;
use super::quality::{self, Verdict};
use super::steps::{SearchState, StepsAnalysis, Training, setup};
use super::{Caveat, Estimate, Evidence, ProbeRecord, TrainingTimeAnalysis};
use crate::probe::{InfeasibleReason, Metric, ProbeKind, ProbeState, Task};
use crate::statistics::intervals::{mean, welch};
use crate::statistics::sequences::sobol;
use crate::study::{
    BatchSize, Hyperparameter, LEAST_GHOST_BATCH, Normalization, Optimizer, ProbeId, Question,
    StudyDefinition,
};

/// The series of its probes.
pub const SERIES: u32 = 9;
/// The largest ghost batch of the rule: statistics over more examples hardly scatter less, and small ones regularise
/// (Hoffer et al. 2017 take 128, Shallue et al. 2018 64).
const LARGEST_BY_RULE: u64 = 64;
/// The ghost batches that are trained with, beside the whole batch.
const TRIED: [u64; 3] = [16, 64, 256];
/// Running statistics are an average that forgets: after this many times 1/momentum steps, 5% of what they began with
/// is left.
const TIME_CONSTANTS: f64 = 3.0;
/// Learning rates that are tried where none was found.
pub const SWEPT: u32 = 8;
/// Seeds of each ghost batch.
pub const RUNS: u32 = 5;

/// What the model normalises over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormalisedOver {
    /// Nothing that the batch size changes.
    OneExample,
    /// The whole batch, somewhere.
    Batch,
    /// Ghost batches.
    GhostBatch,
}

/// Training with ghost batches of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GhostBatchPoint {
    /// Examples of a ghost batch.
    pub ghost_batch_size: u64,
    /// The least validation loss of a run, mean over the seeds, 95% interval.
    pub loss: Option<Estimate>,
    /// Seeds behind it.
    pub seeds: u64,
    /// Runs that diverged.
    pub diverged: u64,
    /// Its loss less that of the best, with its 90% interval; null for the best itself.
    pub difference: Option<Estimate>,
    /// What that says; null for the best itself.
    pub verdict: Option<Verdict>,
    /// The probes of the runs.
    pub probe_ids: Vec<ProbeId>,
}

/// What training with ghost batches showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GhostBatchProbe {
    /// The batch size.
    pub batch_size: BatchSize,
    /// Steps of each run.
    pub steps: u64,
    /// The optimizer of every run; null before it is known.
    pub optimizer: Option<Optimizer>,
    /// Losses that differ by less count as the same.
    pub margin: Option<f64>,
    /// By ghost batch size.
    pub points: Vec<GhostBatchPoint>,
    /// The one with the least mean loss.
    pub best: Option<u64>,
    /// Others that cannot be told apart from it: the 90% interval of the difference does not lie wholly beyond the
    /// margin.
    pub near_ties: Vec<u64>,
}

/// What is known about batch normalization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchNormAnalysis {
    /// What the model normalises over.
    pub normalised_over: NormalisedOver,
    /// The batch sizes that are compared.
    pub batch_sizes: Vec<BatchSize>,
    /// Ghost batches of this size by the rule: the largest up to 64 that divides every batch size compared; null where
    /// there is none of at least 16.
    pub by_rule: Option<u64>,
    /// Steps that running statistics need to forget what they began with, 3/momentum.
    pub least_steps: Option<f64>,
    /// The fewest steps to the target at any batch size, where they were measured.
    pub steps: Option<f64>,
    /// What training with ghost batches showed; null where it was not asked for or has not begun.
    pub probe: Option<GhostBatchProbe>,
    /// Ghost batches of this size are recommended: the rule's, unless another trains better.
    pub ghost_batch_size: Option<u64>,
    /// Remarks: `W_BN_CONFOUNDED`, `W_EMA_STALE`, `W_DIVERGED`.
    pub caveats: Vec<Caveat>,
}

/// What it is worked out from.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a, 'b> {
    /// What is asked.
    pub definition: &'b StudyDefinition,
    /// Every probe, those of comparisons included.
    pub evidence: &'b Evidence,
    /// Where training to the target stands.
    pub training: Option<&'b Training<'a>>,
    /// What is known of it.
    pub steps: Option<&'b StepsAnalysis>,
    /// The decision, if there is one.
    pub decision: Option<&'b TrainingTimeAnalysis>,
    /// The largest batch size that fits.
    pub largest_feasible: Option<BatchSize>,
}

/// What the probe needs next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A learning-rate range test with ghost batches of this size.
    RangeTest(u64),
    /// Runs with these optimizers and ghost batches of this size: which learning rate is best?
    Sweep(u64, Vec<Optimizer>),
    /// Runs with this optimizer, a ghost batch size and a replicate each.
    Runs(Optimizer, Vec<(u64, u32)>),
    /// Nothing.
    Done,
}

/// Where the probe stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The study that it is: its own seed.
    pub definition: StudyDefinition,
    /// The batch size.
    pub batch_size: BatchSize,
    /// Steps of each run.
    pub steps: u64,
    /// What comes next.
    pub next: Step,
    sizes: Vec<u64>,
    optimizer: Option<Optimizer>,
    all_diverged: bool,
}

/// What a model normalises over.
pub fn normalised_over(definition: &StudyDefinition) -> NormalisedOver {
    let found = definition
        .workload
        .network()
        .map(|network| network.batch_normalizations())
        .unwrap_or_default();
    let is_plain = |it: &Normalization| matches!(it, Normalization::Batch { .. });
    if found.is_empty() {
        NormalisedOver::OneExample
    } else if found.iter().any(is_plain) {
        NormalisedOver::Batch
    } else {
        NormalisedOver::GhostBatch
    }
}

/// `W_BN_CONFOUNDED`, where the statistics of the model's normalization change with the batch size.
pub fn confounded(definition: &StudyDefinition, sizes: &[BatchSize]) -> Option<Caveat> {
    let found = definition
        .workload
        .network()
        .map(|network| network.batch_normalizations())
        .unwrap_or_default();
    if sizes.len() < 2 {
        return None;
    }
    let detail = match normalised_over(definition) {
        NormalisedOver::OneExample => return None,
        NormalisedOver::Batch => {
            "the model normalises over the whole batch, so what is found across batch sizes is partly the doing of the normalization; take layer or group normalization, or ghost batches of a fixed size (the question batch_norm says of which)".to_owned()
        }
        NormalisedOver::GhostBatch => {
            let uneven: Vec<String> = sizes
                .iter()
                .filter(|size| found.iter().any(|it| !is_even(it, share(definition, **size))))
                .map(BatchSize::to_string)
                .collect();
            if uneven.is_empty() {
                return None;
            }
            format!(
                "the model's ghost batches do not divide batch size {}, where some statistics are taken over fewer examples; take batch sizes that are multiples of a ghost batch",
                uneven.join(", ")
            )
        }
    };
    Some(Caveat {
        code: "W_BN_CONFOUNDED".into(),
        detail,
    })
}

/// What one device sees of a batch: that is what it normalises over.
pub fn share(definition: &StudyDefinition, size: BatchSize) -> BatchSize {
    BatchSize(size.0 / u64::from(definition.device.count.max(1)))
}

fn shares(definition: &StudyDefinition, sizes: &[BatchSize]) -> Vec<BatchSize> {
    sizes.iter().map(|size| share(definition, *size)).collect()
}

fn is_even(normalization: &Normalization, size: BatchSize) -> bool {
    match normalization {
        Normalization::GhostBatch { batch_size, .. } => size.0.is_multiple_of(*batch_size),
        _ => true,
    }
}

/// The ghost batch by the rule: the largest up to 64, and up to the smallest batch (share of a device), that divides every one.
pub fn by_rule(sizes: &[BatchSize]) -> Option<u64> {
    let smallest = sizes.iter().min()?.0;
    (LEAST_GHOST_BATCH..=smallest.min(LARGEST_BY_RULE))
        .rev()
        .find(|ghost| sizes.iter().all(|size| size.0.is_multiple_of(*ghost)))
}

/// The ghost batches that are trained with at a batch size: 16, 64, 256 and the whole batch, those that divide it.
pub fn tried(batch_size: BatchSize) -> Vec<u64> {
    let mut sizes: Vec<u64> = TRIED
        .into_iter()
        .chain([batch_size.0])
        .filter(|ghost| *ghost <= batch_size.0 && batch_size.0.is_multiple_of(*ghost))
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// The batch sizes that are compared: those that were trained, else those of the grid that fit.
fn compared(known: Known<'_, '_>) -> Vec<BatchSize> {
    let trained: Vec<BatchSize> = known
        .steps
        .map(|steps| steps.points.iter().map(|point| point.batch_size).collect())
        .unwrap_or_default();
    if trained.is_empty() {
        setup::candidates(known.definition, known.largest_feasible)
    } else {
        trained
    }
}

/// Works out what is known; `None` where it is not asked.
pub fn analyze(known: Known<'_, '_>) -> Option<BatchNormAnalysis> {
    let definition = known.definition;
    if !definition.questions.contains(&Question::BatchNorm) {
        return None;
    }
    let normalised_over = normalised_over(definition);
    let mut analysis = BatchNormAnalysis {
        normalised_over,
        batch_sizes: compared(known),
        by_rule: None,
        least_steps: None,
        steps: None,
        probe: None,
        ghost_batch_size: None,
        caveats: Vec::new(),
    };
    if normalised_over == NormalisedOver::OneExample {
        return Some(analysis);
    }
    let sizes = analysis.batch_sizes.clone();
    analysis.by_rule = by_rule(&shares(definition, &sizes));
    analysis.ghost_batch_size = analysis.by_rule;
    if analysis.by_rule.is_none() {
        // Of those that have room for a ghost batch, at least.
        let roomy: Vec<BatchSize> = sizes
            .iter()
            .copied()
            .filter(|size| share(definition, *size).0 >= LEAST_GHOST_BATCH)
            .collect();
        analysis.ghost_batch_size = by_rule(&shares(definition, &roomy));
        let uneven: Vec<String> = sizes
            .iter()
            .filter(|size| {
                let ghost = analysis.ghost_batch_size;
                ghost.is_none_or(|ghost| !share(definition, **size).0.is_multiple_of(ghost))
            })
            .map(BatchSize::to_string)
            .collect();
        analysis.caveats.push(Caveat {
            code: "W_BN_CONFOUNDED".into(),
            detail: format!(
                "no ghost batch of at least {LEAST_GHOST_BATCH} examples divides every batch size compared, so the statistics change with the batch size at {}; leave these out (batch_sizes), or take layer or group normalization",
                uneven.join(", ")
            ),
        });
    } else if normalised_over == NormalisedOver::Batch {
        analysis.caveats.extend(confounded(definition, &sizes));
    }
    analysis.least_steps = least_steps(definition);
    analysis.steps = known.steps.and_then(|steps| {
        let measured = steps.points.iter().filter_map(|point| point.steps);
        measured.map(|steps| steps.value).reduce(f64::min)
    });
    if let (Some(least), Some(steps)) = (analysis.least_steps, analysis.steps)
        && steps < least
    {
        analysis.caveats.push(Caveat {
            code: "W_EMA_STALE".into(),
            detail: format!(
                "training takes {steps:.0} steps to the target, and the running statistics that evaluation uses need {least:.0}, 3/momentum, to forget what they began with; raise the normalization's momentum, or train on for that many steps"
            ),
        });
    }
    analysis.probe = standing(known).map(|standing| probed(known, &standing));
    if let Some(probe) = &analysis.probe {
        let is_as_good = |ghost: u64| probe.best == Some(ghost) || probe.near_ties.contains(&ghost);
        if let Some(best) = probe.best
            && !analysis.ghost_batch_size.is_some_and(is_as_good)
        {
            analysis.ghost_batch_size = Some(best);
        }
        let diverged: Vec<String> = probe
            .points
            .iter()
            .filter(|point| point.diverged > 0)
            .map(|point| point.ghost_batch_size.to_string())
            .collect();
        if !diverged.is_empty() {
            analysis.caveats.push(Caveat {
                code: "W_DIVERGED".into(),
                detail: format!(
                    "runs with ghost batches of {} diverged",
                    diverged.join(", ")
                ),
            });
        }
    }
    if standing(known).is_some_and(|standing| standing.all_diverged) {
        analysis.caveats.push(Caveat {
            code: "W_DIVERGED".into(),
            detail:
                "every learning rate that was tried diverged, so no ghost batches were compared"
                    .into(),
        });
    }
    Some(analysis)
}

/// Steps that the slowest running statistics need.
fn least_steps(definition: &StudyDefinition) -> Option<f64> {
    let network = definition.workload.network().ok()?;
    network
        .batch_normalizations()
        .iter()
        .filter_map(|it| match it {
            Normalization::Batch { momentum, .. } | Normalization::GhostBatch { momentum, .. } => {
                Some(TIME_CONSTANTS / momentum)
            }
            _ => None,
        })
        .reduce(f64::max)
}

/// Where the probe stands; `None` where none is asked for, or there is nothing to try.
pub fn standing(known: Known<'_, '_>) -> Option<Standing> {
    let Known {
        definition,
        evidence,
        training,
        steps,
        decision,
        largest_feasible,
    } = known;
    let is_asked =
        definition.questions.contains(&Question::BatchNorm) && definition.batch_norm.probe;
    if !is_asked || normalised_over(definition) == NormalisedOver::OneExample {
        return None;
    }
    let evidence = evidence.series(SERIES);
    let named = definition.batch_norm.batch_size;
    let batch_size = evidence
        .probes
        .first()
        .map(ProbeRecord::batch_size)
        .or_else(|| named.filter(|size| largest_feasible.is_none_or(|most| *size <= most)))
        .or_else(|| decision.and_then(|decision| decision.measured_batch_size))
        .or_else(|| Some(training?.base))?;
    let seen = share(definition, batch_size);
    let sizes = tried(seen);
    if seen.0 < LEAST_GHOST_BATCH {
        return None;
    }
    let mut view = definition.clone();
    view.seed = series_seed(definition.seed, SERIES);
    view.workload.target = None;
    let winner = steps
        .and_then(|steps| steps.points.iter().find(|it| it.batch_size == batch_size))
        .filter(|point| point.state == SearchState::Measured);
    let to_target = winner.and_then(|point| Some(point.steps?.value * quality::OVER_TARGET));
    let steps = match to_target {
        Some(steps) => (steps.ceil() as u64).max(quality::LEAST_STEPS),
        None => setup::pilot_steps(definition, batch_size),
    };
    let mut standing = Standing {
        definition: view,
        batch_size,
        steps,
        next: Step::Done,
        sizes,
        optimizer: winner.map(|point| point.optimizer.clone()),
        all_diverged: false,
    };
    standing.go(&evidence);
    Some(standing)
}

impl Standing {
    fn go(&mut self, evidence: &Evidence) {
        if self.optimizer.is_none() {
            // Where nothing was tuned: a range test, then a sweep, both with the ghost batches of the rule.
            let usual = self.sizes.iter().rev().find(|it| **it <= LARGEST_BY_RULE);
            let Some(ghost) = usual.or(self.sizes.first()).copied() else {
                return;
            };
            let mut tests = evidence.of_kind(ProbeKind::LearningRateRange);
            let Some(test) = tests.next() else {
                self.next = Step::RangeTest(ghost);
                return;
            };
            let candidates = self.swept(test);
            let find = |optimizer: &Optimizer| self.find(evidence, optimizer, ghost, 0);
            let missing: Vec<Optimizer> = candidates
                .iter()
                .filter(|it| find(it).is_none())
                .cloned()
                .collect();
            if !missing.is_empty() {
                self.next = Step::Sweep(ghost, missing);
                return;
            }
            let best = candidates
                .iter()
                .filter_map(|it| Some((it, loss(find(it)?)?)))
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .map(|(optimizer, _)| optimizer.clone());
            self.all_diverged = best.is_none();
            self.optimizer = best;
        }
        let Some(optimizer) = &self.optimizer else {
            return;
        };
        let missing: Vec<(u64, u32)> = self
            .sizes
            .iter()
            .flat_map(|ghost| (1..=RUNS).map(move |replicate| (*ghost, replicate)))
            .filter(|(ghost, replicate)| {
                self.find(evidence, optimizer, *ghost, *replicate).is_none()
            })
            .collect();
        if !missing.is_empty() {
            self.next = Step::Runs(optimizer.clone(), missing);
        }
    }

    /// The optimizers of the sweep: learning rates from a 300th of the one that diverges up to it.
    fn swept(&self, test: &ProbeRecord) -> Vec<Optimizer> {
        let top = match &test.spec.task {
            Task::LearningRateRange(test) => test.upper,
            _ => 1.0,
        };
        let diverged = test.figure(Metric::DivergentLearningRate).unwrap_or(top);
        let lowest = diverged.ln() - setup::RANGE_DOWN.ln();
        (0..SWEPT)
            .map(|index| {
                let share = sobol(index, 0, self.definition.seed);
                let mut optimizer = self.definition.optimizer.clone();
                let rate = (lowest + share * (diverged.ln() - lowest)).exp();
                optimizer.set(Hyperparameter::LearningRate, rate);
                optimizer
            })
            .collect()
    }

    fn find<'a>(
        &self,
        evidence: &'a Evidence,
        optimizer: &Optimizer,
        ghost: u64,
        replicate: u32,
    ) -> Option<&'a ProbeRecord> {
        let model = self.definition.workload.model.with_ghost_batches(ghost);
        evidence.of_kind(ProbeKind::Training).find(|probe| {
            probe.spec.replicate == replicate
                && probe.spec.optimizer == *optimizer
                && probe.spec.workload.model == model
        })
    }
}

/// The least loss of a run that did not diverge.
fn loss(probe: &ProbeRecord) -> Option<f64> {
    probe
        .succeeded()
        .then(|| probe.figure(Metric::BestEvaluation))
        .flatten()
}

fn probed(known: Known<'_, '_>, standing: &Standing) -> GhostBatchProbe {
    let evidence = known.evidence.series(SERIES);
    let target = known.steps.and_then(|steps| steps.target.as_ref()).or(known
        .definition
        .workload
        .target
        .as_ref());
    let margin = quality::margin(known.definition, &evidence, target);
    let mut points = Vec::new();
    let mut losses: Vec<Vec<f64>> = Vec::new();
    for ghost in &standing.sizes {
        let runs: Vec<&ProbeRecord> = standing
            .optimizer
            .iter()
            .flat_map(|optimizer| (1..=RUNS).map(move |replicate| (optimizer, replicate)))
            .filter_map(|(optimizer, replicate)| {
                standing.find(&evidence, optimizer, *ghost, replicate)
            })
            .filter(|probe| probe.state.has_ended())
            .collect();
        let own: Vec<f64> = runs.iter().filter_map(|probe| loss(probe)).collect();
        let diverged = runs.iter().filter(|probe| {
            probe.state == ProbeState::Infeasible
                && probe.infeasible == Some(InfeasibleReason::Diverged)
        });
        points.push(GhostBatchPoint {
            ghost_batch_size: *ghost,
            loss: quality::interval(&own),
            seeds: own.len() as u64,
            diverged: diverged.count() as u64,
            difference: None,
            verdict: None,
            probe_ids: runs.iter().map(|probe| probe.id).collect(),
        });
        losses.push(own);
    }
    let best = (0..points.len())
        .filter(|index| points[*index].diverged == 0)
        .filter_map(|index| Some((index, mean(&losses[index])?)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(index, _)| index)
        .filter(|_| standing.next == Step::Done);
    let mut near_ties = Vec::new();
    if let (Some(best), Some(margin)) = (best, margin) {
        for index in (0..points.len()).filter(|index| *index != best) {
            let said = welch(&losses[best], &losses[index], quality::CONFIDENCE);
            let point = &mut points[index];
            if point.diverged > 0 {
                point.verdict = Some(Verdict::Different);
            } else if let Some((value, lower, upper)) = said {
                let verdict = quality::verdict(lower, upper, margin);
                point.difference = Some(Estimate {
                    value,
                    ci_lower: Some(lower),
                    ci_upper: Some(upper),
                });
                point.verdict = Some(verdict);
                if verdict != Verdict::Different {
                    near_ties.push(point.ghost_batch_size);
                }
            }
        }
    }
    GhostBatchProbe {
        batch_size: standing.batch_size,
        steps: standing.steps,
        optimizer: standing.optimizer.clone(),
        margin,
        best: best.map(|index| points[index].ghost_batch_size),
        points,
        near_ties,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(values: &[u64]) -> Vec<BatchSize> {
        values.iter().copied().map(BatchSize).collect()
    }

    #[test]
    fn row_46_the_ghost_batches_tried_are_16_64_256_and_the_batch() {
        assert_eq!(tried(BatchSize(512)), [16, 64, 256, 512]);
        assert_eq!(tried(BatchSize(256)), [16, 64, 256]);
        assert_eq!(tried(BatchSize(128)), [16, 64, 128]);
        assert_eq!(tried(BatchSize(16)), [16]);
        // Only what divides the batch: else a smaller ghost batch would be among them.
        assert_eq!(tried(BatchSize(96)), [16, 96]);
        assert_eq!(tried(BatchSize(100)), [100]);
        for batch_size in 16..=1024 {
            for ghost in tried(BatchSize(batch_size)) {
                assert!(ghost <= batch_size && batch_size % ghost == 0);
            }
        }
    }

    #[test]
    fn row_46_the_rule_takes_what_divides_every_batch_size_compared() {
        assert_eq!(by_rule(&sizes(&[64, 128, 1024])), Some(64));
        assert_eq!(by_rule(&sizes(&[32, 64, 128])), Some(32));
        assert_eq!(by_rule(&sizes(&[256, 512])), Some(64));
        assert_eq!(by_rule(&sizes(&[48, 96, 192])), Some(48));
        assert_eq!(by_rule(&sizes(&[60, 90])), Some(30));
        assert_eq!(by_rule(&sizes(&[8, 16, 32])), None, "8 is too few");
        assert_eq!(by_rule(&sizes(&[48, 100])), None, "4 is too few");
        assert_eq!(by_rule(&[]), None);
    }
}

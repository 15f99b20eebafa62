//! Whole studies with a target in simulated worlds: an explicit surface of steps over learning rate and batch
//! size, seeds that scatter, children that differ in speed. Is the batch size that is chosen a good one, is what
//! is said about it true, and what did finding out cost?

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::json;
use statrs::distribution::{Binomial, DiscreteCDF};
use trialhead::analysis::steps::NotIdentified;
use trialhead::analysis::{Analysis, Evidence, ProbeRecord};
use trialhead::probe::{InfeasibleReason, Metric, ProbeKind, ProbeSpec, Task};
use trialhead::statistics::sequences::sobol;
use trialhead::study::{BatchSize, EndedBecause, StudyDefinition};

use crate::worlds::{self, End, Place, record};

const STUDIES: u64 = 500;
const SMALLEST: u64 = 4;
const LARGEST: u64 = 1024;

/// A world with a known truth.
#[derive(Debug, Clone)]
struct World {
    /// S(B) = (S_min^k + (E_min/B)^k)^(1/k).
    min_steps: f64,
    critical: f64,
    sharpness: f64,
    /// ln S differs by this much from seed to seed.
    seed_sd: f64,
    /// t(B) = α + βB, children differ by this much in ln t.
    alpha: f64,
    knee: f64,
    child_sd: f64,
    /// The best learning rate of an endless batch, and where it halves.
    learning_rate: f64,
    halves_at: f64,
    /// ln of the distance from the best learning rate to the one that diverges.
    to_divergence: f64,
    noise_scale: f64,
    seed: u64,
}

impl World {
    fn draw(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut between = |low: f64, high: f64| low + (high - low) * random.random::<f64>();
        let critical = 16.0 * 2_f64.powf(between(0.0, 5.0));
        let sharpness = [1.0, 1.4, 2.0, 2.8][between(0.0, 4.0) as usize % 4];
        Self {
            min_steps: 20.0 * 10_f64.powf(between(0.0, 1.5)),
            critical,
            sharpness,
            seed_sd: between(0.10, 0.18),
            alpha: 1e-3,
            knee: 16.0 * 2_f64.powf(between(0.0, 5.0)),
            child_sd: between(0.02, 0.10),
            learning_rate: 10_f64.powf(between(-2.0, 0.5)),
            halves_at: critical * between(0.5, 2.0),
            to_divergence: between(0.7, 1.4),
            noise_scale: critical * (0.25 + between(-1.0, 1.0)).exp(),
            seed,
        }
    }

    fn ln_steps(&self, batch: f64) -> f64 {
        let k = self.sharpness;
        self.min_steps.ln() + (1.0 + (self.critical / batch).powf(k)).ln() / k
    }

    fn time_per_step(&self, batch: f64) -> f64 {
        self.alpha * (1.0 + batch / self.knee)
    }

    /// The truth about T.
    fn ln_training_time(&self, batch: u64) -> f64 {
        self.ln_steps(batch as f64) + self.time_per_step(batch as f64).ln()
    }

    /// ln of the distance from the best learning rate at a batch size.
    fn off(&self, learning_rate: f64, batch: f64) -> f64 {
        (learning_rate / (self.learning_rate / (1.0 + self.halves_at / batch))).ln()
    }

    /// ln of how many more steps another learning rate takes; none when it diverges. Far below the best the
    /// steps rise as the learning rate falls.
    fn surplus(&self, off: f64) -> Option<f64> {
        (off < self.to_divergence).then(|| {
            if off < 0.0 {
                off * off / (1.0 - off)
            } else {
                off * off
            }
        })
    }

    fn normal(&self, keys: [u64; 3]) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        for key in keys {
            let mixed = random.random::<u64>() ^ key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            random = ChaCha8Rng::seed_from_u64(mixed);
        }
        StandardNormal.sample(&mut random)
    }

    /// Steps of one run; half of the scatter is the seed's, half its own.
    fn run(&self, learning_rate: f64, batch: u64, seed: u64) -> Option<f64> {
        let surplus = self.surplus(self.off(learning_rate, batch as f64))?;
        let own = self.normal([batch, seed, learning_rate.to_bits()]);
        let common = self.normal([batch, seed, 0]);
        let scatter = self.seed_sd * (common + own) / 2_f64.sqrt();
        Some((self.ln_steps(batch as f64) + surplus + scatter).exp())
    }

    fn answer(&self, spec: &ProbeSpec, place: Place) -> ProbeRecord {
        let batch = spec.batch_size.0;
        let mut figures = BTreeMap::new();
        let mut infeasible = None;
        let mut device_secs = 0.1;
        match &spec.task {
            Task::StepTime(_) => {
                let z = self.normal([batch, u64::from(spec.replicate), 1]);
                let t = self.time_per_step(batch as f64) * (self.child_sd * z).exp();
                for metric in [
                    Metric::TimePerStepMedian,
                    Metric::TimePerStepMean,
                    Metric::SyntheticTimePerStepMedian,
                    Metric::SyntheticTimePerStepMean,
                ] {
                    figures.insert(metric, t);
                }
                figures.insert(Metric::Converged, 1.0);
                figures.insert(Metric::CanaryTimePerStep, 1e-4);
                figures.insert(Metric::RunQueueDelayRatio, 0.0);
            }
            Task::LearningRateRange(_) => {
                let best = self.learning_rate / (1.0 + self.halves_at / batch as f64);
                let z = self.normal([batch, 2, 2]);
                let diverges = best * (self.to_divergence + 0.3 * z).exp();
                figures.insert(Metric::DivergentLearningRate, diverges);
            }
            Task::NoiseScale(_) => {
                figures.insert(Metric::NoiseScale, self.noise_scale);
            }
            Task::Training(run) => {
                match self.run(spec.optimizer.learning_rate(), batch, spec.seed) {
                    None => infeasible = Some(InfeasibleReason::Diverged),
                    Some(steps) => {
                        let cap = run.max_steps as f64;
                        let made = if steps + 1.0 <= cap {
                            figures.insert(Metric::StepsToTarget, steps);
                            steps
                        } else {
                            cap
                        };
                        // The loss falls as a power of the share of the steps.
                        figures.insert(Metric::BestEvaluation, 0.2 * (steps / made.min(steps)));
                        device_secs = made * self.time_per_step(batch as f64);
                    }
                }
            }
            _ => {
                figures.insert(Metric::PeakMemory, 1e7 + 1e3 * batch as f64);
            }
        }
        let end = End {
            infeasible,
            device_secs,
            figures,
        };
        record(spec, place, end)
    }

    /// Device-seconds of a full search: 24 trials capped at 4·S(B) and the best three with five seeds, at every
    /// batch size.
    fn full_cost(&self, batches: &[u64]) -> f64 {
        let mut total = 0.0;
        for &batch in batches {
            let steps = self.ln_steps(batch as f64).exp();
            let best = self.learning_rate / (1.0 + self.halves_at / batch as f64);
            let top = (best * self.to_divergence.exp()).ln();
            let mut sum = 15.0 * steps;
            for index in 0..24 {
                let ln_rate = top - 300_f64.ln() * sobol(index, 0, self.seed ^ batch);
                let cap = 4.0 * steps;
                sum += self
                    .run(ln_rate.exp(), batch, 0)
                    .map_or(0.1 * steps, |made| made.min(cap));
            }
            total += sum * self.time_per_step(batch as f64);
        }
        total
    }
}

fn definition(design: &str) -> StudyDefinition {
    over(design, SMALLEST, LARGEST)
}

fn over(design: &str, smallest: u64, largest: u64) -> StudyDefinition {
    let body = json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 100_000},
            "target": {"metric": "validation_cross_entropy", "value": 0.2}
        },
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": smallest, "max": largest},
        "device": {"memory_budget_bytes": 1 << 30},
        "questions": ["batch_size", "critical_batch_size"],
        "budget": {"device_secs": 86400, "probes": 10_000},
        "design": design,
        "seed": 3
    });
    worlds::definition(&body)
}

/// Runs a study to its end.
fn run(definition: &StudyDefinition, world: &World) -> (Evidence, Analysis, EndedBecause) {
    worlds::run(definition, |spec, place| world.answer(spec, place))
}

/// What one study got right.
struct Verdict {
    regret: f64,
    stated: f64,
    is_within: bool,
    covers: bool,
    ratio: Option<f64>,
    cost: f64,
    full_cost: f64,
    searched: usize,
}

fn judge(world: &World) -> Verdict {
    let definition = definition("adaptive");
    let (evidence, analysis, because) = run(&definition, world);
    assert_eq!(because, EndedBecause::Answered);
    let steps = analysis.steps.expect("trained");
    let decision = analysis.training_time.expect("decided");
    let batches: Vec<u64> = decision.points.iter().map(|it| it.batch_size.0).collect();
    let best = batches
        .iter()
        .map(|batch| world.ln_training_time(*batch))
        .fold(f64::INFINITY, f64::min);
    let chosen = decision.measured_batch_size.expect("one was measured");
    let point = decision
        .points
        .iter()
        .find(|it| it.batch_size == chosen)
        .expect("listed");
    let regret = (world.ln_training_time(chosen.0) - best).exp() - 1.0;
    let limits = &steps.limits;
    let (covers, ratio) = match &limits.critical_batch_size {
        Some(critical) => {
            let (low, high) = (
                critical.ci_lower.expect("an end"),
                critical.ci_upper.expect("an end"),
            );
            ((low..=high).contains(&world.critical), Some(high / low))
        }
        None => (
            limits.at_least.is_none_or(|bound| bound <= world.critical)
                && limits.at_most.is_none_or(|bound| bound >= world.critical),
            None,
        ),
    };
    Verdict {
        regret,
        stated: point.p_within_5pct,
        is_within: regret <= 0.05,
        covers,
        ratio,
        cost: evidence
            .of_kind(ProbeKind::Training)
            .map(|probe| probe.device_secs)
            .sum(),
        full_cost: world.full_cost(&batches),
        searched: steps.points.len(),
    }
}

#[test]
fn the_chosen_batch_size_is_good_and_what_is_said_of_it_is_true() {
    let verdicts: Vec<Verdict> = std::thread::scope(|scope| {
        let half = |first: u64| {
            (first..STUDIES)
                .step_by(2)
                .map(|seed| judge(&World::draw(seed)))
                .collect::<Vec<_>>()
        };
        let other = scope.spawn(move || half(1));
        let mut all = half(0);
        all.extend(other.join().expect("no panic"));
        all
    });
    let mean = |value: &dyn Fn(&Verdict) -> f64| {
        verdicts.iter().map(value).sum::<f64>() / verdicts.len() as f64
    };
    let sorted = |value: &dyn Fn(&Verdict) -> f64| {
        let mut values: Vec<f64> = verdicts.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let regrets = sorted(&|it| it.regret);
    let p95 = regrets[regrets.len() * 95 / 100];
    println!(
        "regret: mean {:.2}%, p95 {:.2}%; batch sizes searched {:.2}",
        100.0 * mean(&|it| it.regret),
        100.0 * p95,
        mean(&|it| it.searched as f64),
    );
    let actual = mean(&|it| f64::from(u8::from(it.is_within)));
    println!(
        "within 5%: stated {:.3}, actual {actual:.3}",
        mean(&|it| it.stated)
    );
    for (low, high) in [(0.0, 0.6), (0.6, 0.9), (0.9, 1.01)] {
        let bin: Vec<&Verdict> = verdicts
            .iter()
            .filter(|it| (low..high).contains(&it.stated))
            .collect();
        let hits = bin.iter().filter(|it| it.is_within).count();
        let stated: f64 = bin.iter().map(|it| it.stated).sum();
        println!(
            "  stated {low} to {high}: {hits} of {}, expected {stated:.1}",
            bin.len()
        );
        // The 99% band of a binomial count with the mean of what was stated.
        if let Ok(count) = Binomial::new(stated / bin.len() as f64, bin.len() as u64) {
            let band = count.inverse_cdf(0.005)..=count.inverse_cdf(0.995);
            assert!(
                band.contains(&(hits as u64)),
                "{hits} of {} stated {low} to {high}, not in {band:?}",
                bin.len()
            );
        }
    }
    assert!(mean(&|it| it.regret) <= 0.02 && p95 <= 0.10);
    assert!((mean(&|it| it.stated) - actual).abs() <= 0.05);
    let covered = verdicts.iter().filter(|it| it.covers).count();
    let mut ratios: Vec<f64> = verdicts.iter().filter_map(|it| it.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "critical batch size: {covered} of {} covered, named in {}, median ratio of the ends {:.2}",
        verdicts.len(),
        ratios.len(),
        ratios[ratios.len() / 2]
    );
    let shares = sorted(&|it| it.cost / it.full_cost);
    println!(
        "cost: mean {:.3} of the full design, median {:.3}, largest {:.3}",
        mean(&|it| it.cost / it.full_cost),
        shares[shares.len() / 2],
        shares[shares.len() - 1]
    );
    // 92.6% to 97.2%: the 1% binomial band of 95% of 500.
    assert!((463..=486).contains(&covered), "{covered} covered");
    assert!(ratios[ratios.len() / 2] <= 2.0);
    assert!(mean(&|it| it.cost / it.full_cost) <= 0.35);
}

#[test]
fn one_batch_size_has_a_training_time_and_no_curve() {
    let world = World::draw(1);
    let (_, analysis, because) = run(&over("adaptive", 32, 32), &world);
    assert_eq!(because, EndedBecause::Answered);
    let decision = analysis.training_time.expect("decided");
    assert_eq!(decision.measured_batch_size, Some(BatchSize(32)));
    let found = decision.points[0].training_time_secs.value.ln();
    assert!((found - world.ln_training_time(32)).abs() < 0.3, "{found}");
    let limits = analysis.steps.expect("trained").limits;
    assert_eq!(limits.why, Some(NotIdentified::NotIdentified));
}

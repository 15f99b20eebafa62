//! Quality across batch sizes in simulated worlds: where no batch size is better than another, and where one is.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::json;
use trialhead::analysis::ProbeRecord;
use trialhead::analysis::quality::Verdict;
use trialhead::probe::{InfeasibleReason, Metric, ProbeSpec, Task};
use trialhead::study::StudyDefinition;

use crate::worlds::{self, End, Place, record};

/// Chance in these worlds, and what training comes down to at the best.
const CHANCE: f64 = 2.3;
const FLOOR: f64 = 0.1;
/// The margin: 5% of what lies between chance and the target of 0.3.
const MARGIN: f64 = 0.1;

struct World {
    /// By how much the least loss is larger at the large batch size.
    worse_at_256: f64,
    /// Standard deviation of a run's least loss.
    seed_sd: f64,
    seed: u64,
}

impl World {
    fn normal(&self, keys: &[u64]) -> f64 {
        let mut mixed = self.seed;
        for key in keys {
            mixed = (mixed ^ key)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29);
        }
        StandardNormal.sample(&mut ChaCha8Rng::seed_from_u64(mixed))
    }

    fn answer(&self, spec: &ProbeSpec, place: Place) -> ProbeRecord {
        let batch = spec.batch_size.0;
        let mut figures = std::collections::BTreeMap::new();
        let mut infeasible = None;
        let rate = spec.optimizer.learning_rate();
        // Best at 0.3, diverges above 1.
        let off = (rate / 0.3).ln();
        match &spec.task {
            Task::LearningRateRange(_) => {
                figures.insert(Metric::DivergentLearningRate, 1.0);
            }
            Task::NoiseScale(_) => {
                figures.insert(Metric::NoiseScale, 40.0);
            }
            Task::Training(_) if rate > 1.0 => infeasible = Some(InfeasibleReason::Diverged),
            Task::Training(run) if run.target.is_some() => {
                let z = self.normal(&[batch, spec.seed, rate.to_bits()]);
                let steps = 30.0 * (1.0 + 40.0 / batch as f64) * (0.3 * off * off + 0.1 * z).exp();
                if steps < run.max_steps as f64 {
                    figures.insert(Metric::StepsToTarget, steps);
                }
                figures.insert(Metric::BestEvaluation, 0.3);
            }
            Task::Training(run) => {
                let z = self.normal(&[batch, spec.seed, rate.to_bits(), 1]);
                let worse = if batch == 256 { self.worse_at_256 } else { 0.0 };
                // Weight decay does hardly anything here, the learning rate a little.
                let loss = FLOOR + worse + 0.004 * off * off + self.seed_sd * z;
                figures.insert(Metric::BestEvaluation, loss.max(0.0));
                figures.insert(Metric::BestStep, 0.5 * run.max_steps as f64);
                figures.insert(Metric::ChanceLoss, CHANCE);
            }
            _ => {
                figures.insert(Metric::PeakMemory, 1e7);
            }
        }
        let end = End {
            infeasible,
            device_secs: 0.01,
            figures,
        };
        record(spec, place, end)
    }
}

fn definition() -> StudyDefinition {
    let body = json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 10_000},
            "target": {"metric": "validation_cross_entropy", "value": 0.3}
        },
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": 16, "max": 256},
        "device": {"memory_budget_bytes": 1 << 30},
        "questions": ["quality_across_batch_sizes"],
        "quality": {"batch_sizes": [16, 256]},
        "budget": {"device_secs": 86400, "probes": 10_000}
    });
    worlds::definition(&body)
}

/// How often each verdict is given over 150 worlds.
fn verdicts(worse_at_256: f64, seed_sd: f64) -> [usize; 3] {
    let definition = definition();
    let mut counts = [0; 3];
    for seed in 0..150 {
        let world = World {
            worse_at_256,
            seed_sd,
            seed,
        };
        let (_, analysis, _) = worlds::run(&definition, |spec, place| world.answer(spec, place));
        let quality = analysis.quality.expect("compared");
        assert!((quality.margin.expect("known") - MARGIN).abs() < 1e-9);
        let verdict = quality.verdict.expect("regularisation was tuned");
        counts[match verdict {
            Verdict::Equivalent => 0,
            Verdict::Different => 1,
            Verdict::Inconclusive => 2,
        }] += 1;
        let is_flagged = quality
            .caveats
            .iter()
            .any(|caveat| caveat.code == "W_UNDERTUNED" && caveat.detail.contains("256"));
        assert_eq!(is_flagged, verdict == Verdict::Different);
        let seeds: Vec<u64> = quality.points.iter().map(|it| it.seeds).collect();
        assert!(
            seeds.iter().all(|it| (5..=15).contains(it)),
            "{seeds:?} seeds"
        );
    }
    println!(
        "worse by {worse_at_256}, seeds scatter by {seed_sd}: equivalent, different, inconclusive {counts:?}"
    );
    counts
}

#[test]
fn row_19_the_same_quality_is_called_equivalent_and_a_worse_one_different() {
    let [equivalent, different, _] = verdicts(0.0, 0.03);
    assert!(equivalent >= 145 && different == 0);
    let [equivalent, different, _] = verdicts(0.25, 0.03);
    assert!(different >= 145 && equivalent == 0);
}

/// At a difference of just the margin either claim is wrong, and made in 5% of worlds: at most 14 of 150, the upper end of the
/// 99% binomial band.
#[test]
fn a_difference_of_the_margin_is_rarely_called_equivalent() {
    let [equivalent, different, inconclusive] = verdicts(MARGIN, 0.05);
    assert!(equivalent <= 14, "{equivalent} of 150");
    assert!(different <= 14, "{different} of 150");
    assert!(inconclusive >= 110, "{inconclusive} of 150");
}

#[test]
fn seeds_that_scatter_too_much_leave_it_open() {
    let [equivalent, different, inconclusive] = verdicts(0.0, 0.5);
    assert!(inconclusive >= 120, "{inconclusive} of 150");
    assert!(equivalent == 0 && different <= 14);
}

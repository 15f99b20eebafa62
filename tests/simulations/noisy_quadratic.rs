//! The noisy quadratic model (Zhang et al. 2019), by its exact recursion: does a momentum bring what it is known to
//! bring, and is it opened where it does?

use std::collections::BTreeMap;

use serde_json::json;
use trialhead::analysis::{self, Evidence, OptimizerAnalysis, ProbeRecord};
use trialhead::plan::{Next, plan};
use trialhead::probe::{InfeasibleReason, Metric, ProbeSpec, Task};
use trialhead::study::Hyperparameter;

use crate::worlds::{self, End, Place, record};

/// Directions, with curvatures 1/i; as in the reference.
const DIRECTIONS: usize = 1000;
const TARGET: f64 = 0.01;
/// Batch size, steps with SGD, steps with heavy-ball momentum: the recursion with the hyperparameters optimised elsewhere.
const REFERENCE: [(u64, f64, f64); 3] = [
    (16, 29_040.0, 24_567.0),
    (4096, 776.0, 107.0),
    (16384, 713.0, 59.0),
];

/// E[θ²], E[θv] and E[v²] along every direction.
struct Recursion {
    curvature: Vec<f64>,
    theta: Vec<f64>,
    mixed: Vec<f64>,
    velocity: Vec<f64>,
    batch: f64,
}

impl Recursion {
    fn new(batch: u64) -> Self {
        Self {
            curvature: (1..=DIRECTIONS).map(|index| 1.0 / index as f64).collect(),
            theta: vec![1.0; DIRECTIONS],
            mixed: vec![0.0; DIRECTIONS],
            velocity: vec![0.0; DIRECTIONS],
            batch: batch as f64,
        }
    }

    fn step(&mut self, rate: f64, gamma: f64) {
        let of_noise = 1.0 / self.batch;
        let moments = self.theta.iter_mut().zip(&mut self.mixed);
        let moments = moments.zip(&mut self.velocity).zip(&self.curvature);
        for (((theta, mixed), velocity), h) in moments {
            // v ← γv + hθ + ξ with Var ξ = h/B, θ ← θ − ηv.
            let with_new = gamma * *mixed + h * *theta;
            let new = gamma * gamma * *velocity
                + 2.0 * gamma * h * *mixed
                + h * h * *theta
                + h * of_noise;
            *theta += rate * (rate * new - 2.0 * with_new);
            *mixed = with_new - rate * new;
            *velocity = new;
        }
    }

    fn loss(&self) -> f64 {
        let terms = self.theta.iter().zip(&self.curvature);
        terms.map(|(theta, h)| h * theta).sum::<f64>() / 2.0
    }
}

fn answer(spec: &ProbeSpec, id: u128, wave: u32, position: u32) -> ProbeRecord {
    let mut figures = BTreeMap::new();
    let mut infeasible = None;
    let gamma = spec.optimizer.get(Hyperparameter::Momentum).unwrap_or(0.0);
    let mut model = Recursion::new(spec.batch_size.0);
    match &spec.task {
        Task::LearningRateRange(test) => {
            let mut least = f64::INFINITY;
            for step in 0..test.steps {
                let share = step as f64 / (test.steps - 1) as f64;
                let rate = test.lower * (test.upper / test.lower).powf(share);
                model.step(rate, gamma);
                let loss = model.loss();
                least = least.min(loss);
                if loss.is_nan() || loss > test.divergence_ratio * least {
                    figures.insert(Metric::DivergentLearningRate, rate);
                    break;
                }
            }
        }
        Task::Training(run) => {
            let rate = spec.optimizer.learning_rate();
            let (mut step, mut next, mut before) = (0_u64, 1_u64, (0.0, model.loss()));
            let mut best = before.1;
            while step < run.max_steps {
                model.step(rate, gamma);
                step += 1;
                if step < next && step < run.max_steps {
                    continue;
                }
                next = ((step as f64 * run.evaluation_ratio).ceil() as u64).max(step + 1);
                let loss = model.loss();
                if !loss.is_finite() {
                    infeasible = Some(InfeasibleReason::Diverged);
                    break;
                }
                best = best.min(loss);
                if loss <= TARGET {
                    let share = (TARGET / before.1).ln() / (loss / before.1).ln();
                    let steps = before.0 + share * (step as f64 - before.0);
                    figures.insert(Metric::StepsToTarget, steps);
                    break;
                }
                before = (step as f64, loss);
            }
            figures.insert(Metric::BestEvaluation, best);
        }
        _ => {
            figures.insert(Metric::PeakMemory, 1e7);
        }
    }
    let place = Place { id, wave, position };
    let end = End {
        infeasible,
        device_secs: 0.01,
        figures,
    };
    record(spec, place, end)
}

fn compare(batch_size: u64) -> OptimizerAnalysis {
    let body = json!({
        "workload": {
            "dataset": {"builtin": "noisy_quadratic", "examples": 40_000},
            "model": {"family": "sequential", "layers": [{"layer": "scale"}]},
            "target": {"metric": "expected_excess_loss", "value": TARGET}
        },
        "optimizer": {"family": "sgd"},
        "optimizers": {"candidates": [
            {"family": "sgd_momentum", "momentum": 0.0},
            {"family": "sgd_momentum", "momentum": 0.9}
        ]},
        "batch_sizes": {"min": batch_size, "max": batch_size},
        "device": {"memory_budget_bytes": 4_u64 << 30},
        "questions": ["optimizer"],
        "budget": {"device_secs": 86400, "probes": 10_000}
    });
    let definition = worlds::definition(&body);
    let mut evidence = Evidence::default();
    for _ in 0..300 {
        let analysis = analysis::analyze(&definition, &evidence);
        match plan(&definition, &evidence, &analysis).next {
            Next::Wave(planned) => {
                let wave = evidence.next_wave();
                for (position, probe) in planned.iter().enumerate() {
                    let id = (u128::from(wave) << 32) + position as u128 + 1;
                    evidence
                        .probes
                        .push(answer(&probe.spec, id, wave, position as u32));
                }
            }
            Next::Done { .. } => return analysis.optimizers.expect("compared"),
            other => panic!("{other:?}"),
        }
    }
    panic!("the study does not end");
}

#[test]
fn row_12_a_momentum_is_opened_where_it_pays_and_brings_what_it_is_known_to() {
    for (batch_size, sgd, momentum) in REFERENCE {
        let analysis = compare(batch_size);
        // It begins as plain SGD, and a momentum is what it is offered.
        let candidate = &analysis.candidates[0];
        let alone = candidate.stages[0].steps.expect("reached");
        let offer = &candidate.stages[1];
        assert_eq!(offer.offered, Some(Hyperparameter::Momentum));
        let offered = offer.gain.expect("reached");
        let with = candidate.steps.as_ref().expect("reached").value;
        println!(
            "batch size {batch_size}: {alone:.0} steps alone ({sgd} in the reference), offer {offered:.2}, {with:.0} in the end ({momentum})"
        );
        let off = alone / sgd - 1.0;
        assert!(
            (-0.01..=0.05).contains(&off),
            "SGD: {alone} instead of {sgd}"
        );
        let off = with / momentum - 1.0;
        assert!(
            (-0.01..=0.15).contains(&off),
            "momentum: {with} instead of {momentum}"
        );
        let gain = alone / with;
        if batch_size <= 16 {
            assert!(gain < 1.2, "{gain}");
        } else {
            assert!(gain > 6.0, "{gain}");
        }
        // The offer is taken when it brings more than 5%.
        assert_eq!(offer.pays, offered > 1.05);
        assert_eq!(
            candidate.tuned.contains(&Hyperparameter::Momentum),
            offer.is_taken
        );
    }
}

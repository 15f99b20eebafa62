//! Where to start, in simulated worlds: a ladder of sizes of which only some are reasonable, learning rates that
//! diverge, runs that are at their best early or late, and a validation set that can be predicted from nothing.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::{Value, json};
use trialhead::analysis::initial::{InitialAnalysis, Level, RungState};
use trialhead::analysis::{Analysis, Evidence, ProbeRecord};
use trialhead::probe::{InfeasibleReason, Metric, ProbeKind, ProbeSpec, Task};
use trialhead::recommendation::{self, Advice, Topic};
use trialhead::study::{Model, StudyDefinition};

use crate::worlds::{self, End, Place, record};

/// Chance of ten balanced classes.
const CHANCE: f64 = 2.303;
/// The learning rate that diverges, and the best.
const DIVERGES: f64 = 1.0;
const BEST: f64 = 0.1;

struct World {
    /// Units of the first hidden layer from which a model is reasonable, and from which it learns at all.
    reasonable_from: u64,
    learns_from: u64,
    /// The step of the least validation loss; no run that ends before is at its best.
    best_step: f64,
    /// What the last quarter brings of the whole gain, where the best step lies in it.
    late_gain: f64,
    /// Skill of training on shuffled targets.
    leak: f64,
    /// Among the fresh seeds, those of this replicate diverge.
    diverging: Option<u32>,
    seed: u64,
}

impl Default for World {
    fn default() -> Self {
        Self {
            reasonable_from: 1,
            learns_from: 1,
            best_step: 200.0,
            late_gain: 0.2,
            leak: 0.0,
            diverging: None,
            seed: 1,
        }
    }
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

    fn skill(&self, model: &Model) -> f64 {
        let Model::Mlp { hidden, .. } = model else {
            panic!("a ladder of perceptrons")
        };
        let units = hidden[0];
        if units >= self.reasonable_from {
            0.8
        } else if units >= self.learns_from {
            0.3
        } else {
            0.0
        }
    }

    fn answer(&self, spec: &ProbeSpec, place: Place) -> ProbeRecord {
        let mut figures = std::collections::BTreeMap::new();
        let mut infeasible = None;
        let rate = spec.optimizer.learning_rate();
        let batch = spec.batch_size.0;
        match &spec.task {
            Task::LearningRateRange(_) => {
                figures.insert(Metric::DivergentLearningRate, DIVERGES);
            }
            Task::NoiseScale(_) => {
                figures.insert(Metric::NoiseScale, 60.0);
            }
            Task::StepTime(_) => {
                let z = self.normal(&[batch, u64::from(spec.replicate)]);
                let t = 1e-3 * (1.0 + batch as f64 / 60.0) * (0.01 * z).exp();
                figures.extend([
                    (Metric::TimePerStepMedian, t),
                    (Metric::TimePerStepMean, t),
                    (Metric::SyntheticTimePerStepMedian, t),
                    (Metric::CanaryTimePerStep, 1e-4),
                    (Metric::RunQueueDelayRatio, 0.0),
                    (Metric::Converged, 1.0),
                ]);
            }
            Task::Training(run) if run.target.is_some() && rate <= DIVERGES => {
                let off = (rate / BEST).ln();
                let z = self.normal(&[spec.seed, rate.to_bits(), batch]);
                let steps = 40.0 * (1.0 + 60.0 / batch as f64) * (0.3 * off * off + 0.1 * z).exp();
                if steps < run.max_steps as f64 {
                    figures.insert(Metric::StepsToTarget, steps);
                }
                figures.insert(Metric::BestEvaluation, 0.5);
            }
            Task::Training(run)
                if rate > DIVERGES
                    || self.diverging == Some(spec.replicate) && !run.shuffles_targets =>
            {
                infeasible = Some(InfeasibleReason::Diverged);
            }
            Task::Training(run) => {
                // Two factors of two off the best cost a fifth of the skill.
                let off = (rate / BEST).ln();
                let skill = if run.shuffles_targets {
                    self.leak
                } else {
                    self.skill(&spec.workload.model) * (1.0 - 0.1 * off * off).max(0.0)
                };
                let z = self.normal(&[spec.seed, rate.to_bits(), run.max_steps]);
                let gain = CHANCE * skill + 0.01 * z;
                figures.extend([
                    (Metric::ChanceLoss, CHANCE),
                    (Metric::BestEvaluation, CHANCE - gain),
                    (Metric::GainOverChance, gain),
                    (Metric::GainOverChanceError, 0.03),
                    (Metric::BestEvaluationError, 0.03),
                    (Metric::BestAccuracy, 0.1 + 0.9 * skill.clamp(0.0, 1.0)),
                    (Metric::BestStep, self.best_step.min(run.max_steps as f64)),
                    (Metric::LateGain, self.late_gain),
                ]);
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

fn definition(change: &Value) -> StudyDefinition {
    let mut body = json!({
        "workload": {"dataset": {"builtin": "synthetic", "examples": 1000}},
        "optimizer": {"family": "sgd"},
        "device": {"memory_budget_bytes": 1 << 30},
        "questions": ["initial_configuration"],
    });
    for (key, value) in change.as_object().expect("changes") {
        body[key] = value.clone();
    }
    worlds::definition(&body)
}

struct Ran {
    definition: StudyDefinition,
    evidence: Evidence,
    analysis: Analysis,
}

impl Ran {
    fn initial(&self) -> &InitialAnalysis {
        self.analysis.initial.as_ref().expect("asked for")
    }

    fn advice(&self, topic: Topic) -> Advice {
        let all = recommendation::recommend(&self.definition, &self.evidence, &self.analysis);
        all.into_iter()
            .find(|advice| advice.topic == topic)
            .unwrap_or_else(|| panic!("no advice on {topic:?}"))
    }

    fn steps(&self) -> u64 {
        let rung = self.initial().chosen_rung().expect("chosen");
        rung.steps.expect("known")
    }

    fn has(&self, code: &str) -> bool {
        let mut caveats = self.initial().caveats.iter();
        caveats.any(|caveat| caveat.code == code)
    }

    /// Units of the models that were trained.
    fn trained(&self) -> Vec<u64> {
        let mut units: Vec<u64> = self
            .evidence
            .of_kind(ProbeKind::Training)
            .map(|probe| match &probe.spec.workload.model {
                Model::Mlp { hidden, .. } => hidden[0],
                other => panic!("{other:?}"),
            })
            .collect();
        units.dedup();
        units
    }
}

fn run(definition: StudyDefinition, world: &World) -> Ran {
    let (evidence, analysis, _) = worlds::run(&definition, |spec, place| world.answer(spec, place));
    Ran {
        definition,
        evidence,
        analysis,
    }
}

fn of_a_model(hidden: u64) -> StudyDefinition {
    definition(&json!({"workload": {
        "dataset": {"builtin": "synthetic", "examples": 1000},
        "model": {"family": "mlp", "hidden": [hidden]}
    }}))
}

#[test]
fn row_47_to_51_the_cheapest_reasonable_configuration() {
    let mut right = 0;
    for seed in 0..100 {
        // Quarter, half and whole widths of 64 units; each in turn is the first that is reasonable.
        let (reasonable_from, expected) = [(16, 16), (17, 32), (40, 64)][seed as usize % 3];
        let world = World {
            reasonable_from,
            seed,
            ..World::default()
        };
        let ran = run(of_a_model(64), &world);
        let initial = ran.initial();
        let rung = initial.chosen_rung().expect("chosen");
        let is_right = rung.model == Model::mlp(vec![expected])
            && rung.level == Some(Level::Reasonable)
            && ran.trained().last() == Some(&expected)
            && (0.5..=2.0).contains(&(rung.optimizer.learning_rate() / BEST));
        right += usize::from(is_right);
        assert!(initial.is_complete);
    }
    println!("the cheapest reasonable size, a learning rate within 2 of the best: {right} of 100");
    assert_eq!(right, 100);

    // Without a model of its own a study climbs the catalog's sizes.
    let ran = run(
        definition(&json!({})),
        &World {
            reasonable_from: 100,
            ..World::default()
        },
    );
    assert_eq!(ran.trained(), [64, 512], "S, then M; L is not needed");
    let advice = ran.advice(Topic::InitialConfiguration);
    let configuration = &advice.value["configuration"];
    assert_eq!(configuration["model"]["hidden"], json!([512, 512]));
    assert_eq!(configuration["schedule"]["kind"], "constant");
    assert!(advice.caveats.iter().any(|it| it.code == "W_OTHER_MODEL"));
    assert_eq!(advice.value["ladder"][0]["level"], "learning");
}

#[test]
fn row_47_to_51_bells_and_whistles_are_counted_and_not_trained_with() {
    let ran = run(
        definition(
            &json!({"schedule": {"kind": "cosine", "decay_steps": 100, "warm_up_steps": 5}}),
        ),
        &World::default(),
    );
    let advice = ran.advice(Topic::InitialConfiguration);
    assert!(advice.caveats.iter().any(|it| it.code == "W_BELLS"));
    for probe in ran.evidence.of_kind(ProbeKind::Training) {
        assert_eq!(probe.spec.schedule, trialhead::study::Schedule::default());
    }
}

#[test]
fn a_fresh_seed_that_diverges_is_told_and_costs_confidence() {
    let steady = run(of_a_model(16), &World::default());
    assert!(!steady.has("W_UNSTABLE"));
    let fresh: Vec<u32> = steady
        .evidence
        .of_kind(ProbeKind::Training)
        .filter(|probe| probe.spec.replicate > 0)
        .map(|probe| probe.spec.replicate)
        .collect();
    let diverging = *fresh
        .first()
        .expect("fresh seeds have replicates of their own");
    let ran = run(
        of_a_model(16),
        &World {
            diverging: Some(diverging),
            ..World::default()
        },
    );
    let rung = ran.initial().chosen_rung().expect("chosen");
    assert_eq!((rung.seeds, rung.diverged_seeds), (2, 1));
    let advice = ran.advice(Topic::InitialConfiguration);
    let caveat = advice.caveats.iter().find(|it| it.code == "W_UNSTABLE");
    let caveat = caveat.expect("said");
    assert!(caveat.detail.starts_with("1 of 3"), "{}", caveat.detail);
    assert_eq!(advice.confidence.grade, recommendation::Grade::Low);
    let before = steady.advice(Topic::InitialConfiguration);
    assert_ne!(before.confidence.grade, recommendation::Grade::Low);
}

#[test]
fn row_52_reasonable_learning_and_chance_are_told_apart() {
    let level = |world: World| {
        let ran = run(of_a_model(64), &world);
        let last = ran.initial().rungs.last().expect("a rung");
        assert_eq!(last.state, RungState::Measured);
        (last.level.expect("judged"), ran.has("W_NOT_REASONABLE"))
    };
    assert_eq!(level(World::default()), (Level::Reasonable, false));
    let never = |learns_from| World {
        reasonable_from: u64::MAX,
        learns_from,
        ..World::default()
    };
    assert_eq!(level(never(1)), (Level::Learning, true));
    assert_eq!(level(never(u64::MAX)), (Level::Chance, true));
}

#[test]
fn row_52_a_control_that_learns_from_shuffled_targets_is_a_leak() {
    let clean = run(of_a_model(64), &World::default());
    assert!(!clean.has("W_LEAK"));
    // Worse than chance passes: a model that learned noise is.
    for leak in [-0.5, 0.01] {
        let world = World {
            leak,
            ..World::default()
        };
        assert!(!run(of_a_model(64), &world).has("W_LEAK"), "{leak}");
    }
    let leaking = run(
        of_a_model(64),
        &World {
            leak: 0.3,
            ..World::default()
        },
    );
    assert!(leaking.has("W_LEAK"));
    let advice = leaking.advice(Topic::InitialConfiguration);
    assert_eq!(advice.confidence.grade.as_str(), "low");
    // Whether or not the control is called better than chance: over a hundred clean worlds.
    let wrong = (0..100)
        .filter(|seed| {
            let ran = run(
                of_a_model(8),
                &World {
                    seed: *seed,
                    ..World::default()
                },
            );
            ran.initial().control.as_ref().expect("made").level != Level::Chance
        })
        .count();
    println!("controls called better than chance: {wrong} of 100");
    assert!(wrong <= 1);
}

#[test]
fn row_53_54_the_number_of_steps_follows_the_best_step() {
    let steps = |best_step: f64, late_gain: f64| {
        let ran = run(
            of_a_model(64),
            &World {
                best_step,
                late_gain,
                ..World::default()
            },
        );
        (ran.steps(), ran.has("W_STILL_FALLING"))
    };
    // 1000 examples at batch size 64: 20 epochs are fewer than 500 steps.
    assert_eq!(steps(200.0, 0.2), (500, false), "neither early nor late");
    assert_eq!(steps(25.0, 0.0), (250, false), "at 5%: halved");
    assert_eq!(steps(20.0, 0.0), (125, false), "at 4%: halved twice");
    assert_eq!(steps(475.0, 0.2), (1000, false), "at 95%: doubled");
    assert_eq!(steps(475.0, 0.001), (500, false), "at 95% of a plateau");
    assert_eq!(
        steps(1e9, 0.2),
        (8000, true),
        "doubled four times, and told"
    );
    let ran = run(of_a_model(64), &World::default());
    let advice = ran.advice(Topic::NumberOfSteps);
    assert_eq!(advice.value["number_of_steps"], 500);
    assert_eq!(advice.value["best_step_share"], 0.4);
}

#[test]
fn a_best_learning_rate_at_the_end_is_looked_beyond_and_a_boundary_is_told() {
    let ran = run(of_a_model(64), &World::default());
    let rung = ran.initial().chosen_rung().expect("chosen");
    assert_eq!(rung.trials, 8);
    assert!(!rung.is_at_boundary);
    // The study's own range ends where the best lies.
    let named = definition(&json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 1000},
            "model": {"family": "mlp", "hidden": [64]}
        },
        "search": {"ranges": {"learning_rate": {"lower": 1e-5, "upper": 1e-2}}}
    }));
    let ran = run(named, &World::default());
    assert!(ran.has("W_BOUNDARY"));
    assert_eq!(
        ran.evidence.of_kind(ProbeKind::LearningRateRange).count(),
        0
    );
    assert_eq!(ran.advice(Topic::LearningRate).value["interior"], false);
}

#[test]
fn training_to_a_target_is_not_misled_by_what_sought_a_start() {
    let with = |questions: Value| {
        definition(&json!({
            "workload": {
                "dataset": {"builtin": "synthetic", "examples": 1000},
                "model": {"family": "mlp", "hidden": [64]},
                "target": {"metric": "validation_cross_entropy", "value": 0.6}
            },
            "questions": questions,
            "budget": {"device_secs": 86400, "probes": 10_000}
        }))
    };
    let specs = |ran: &Ran| -> Vec<(ProbeSpec, bool)> {
        ran.evidence
            .of_kind(ProbeKind::Training)
            .filter_map(|probe| match &probe.spec.task {
                Task::Training(run) if !run.compares_with_chance => {
                    Some((probe.spec.clone(), true))
                }
                _ => None,
            })
            .collect()
    };
    let alone = run(with(json!(["critical_batch_size"])), &World::default());
    let both = run(
        with(json!(["critical_batch_size", "initial_configuration"])),
        &World::default(),
    );
    assert_eq!(specs(&alone), specs(&both));
    assert!(both.initial().is_complete);
}

#[test]
fn a_batch_size_tuned_to_a_target_is_what_one_starts_with() {
    let ran = run(
        definition(&json!({
            "workload": {
                "dataset": {"builtin": "synthetic", "examples": 1000},
                "model": {"family": "mlp", "hidden": [64]},
                "target": {"metric": "validation_cross_entropy", "value": 0.6}
            },
            "questions": ["batch_size", "initial_configuration"],
            "budget": {"device_secs": 86400, "probes": 10_000}
        })),
        &World::default(),
    );
    let decided = ran.advice(Topic::BatchSize);
    assert_eq!(decided.basis, recommendation::Basis::Measured);
    let start = ran.advice(Topic::InitialConfiguration);
    assert_eq!(start.value["tuned_to_target"], true, "{start:?}");
    let configuration = &start.value["configuration"];
    assert_eq!(configuration["batch_size"], decided.value["batch_size"]);
    assert_eq!(configuration["optimizer"], decided.value["optimizer"]);
    assert_eq!(configuration["model"]["hidden"], json!([64]));
    // Steps follow the curve of steps to the target.
    let steps = configuration["steps"].as_u64().expect("a number");
    let batch = configuration["batch_size"].as_f64().expect("a number");
    let expected = 500.0 * (1.0 + 60.0 / batch) / (1.0 + 60.0 / 64.0);
    let ratio = steps as f64 / expected;
    assert!(
        (0.8..1.25).contains(&ratio),
        "{steps} steps, {expected} expected"
    );
}

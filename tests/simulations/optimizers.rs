//! Comparisons of optimizers in simulated worlds: two that are the same but for their names, and one that needs half as many
//! steps again. How often is a difference declared, and is the probability what it says?

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::{Value, json};
use trialhead::analysis::optimizers::{ComparedBy, ComparisonVerdict};
use trialhead::analysis::{self, Evidence, OptimizerAnalysis, ProbeRecord};
use trialhead::probe::{InfeasibleReason, Metric, ProbeKind, ProbeSpec, Task};
use trialhead::recommendation::{Advice, Topic, recommend};
use trialhead::study::validation::{DefinitionLimits, parse};
use trialhead::study::{Hyperparameter, Optimizer, StudyDefinition};

use crate::worlds::{self, End, Place, record};

const COMPARISONS: u64 = 400;

/// A world with a known truth.
#[derive(Debug, Clone)]
struct World {
    /// S at the best hyperparameters, of Adam.
    steps: f64,
    /// NAdam needs so many times as many.
    factor: f64,
    /// ln S differs by this much from seed to seed.
    seed_sd: f64,
    learning_rate: f64,
    /// ln of the distance from the best learning rate to the one that diverges.
    to_divergence: f64,
    /// ln of what the best β₁, 0.97, saves over the usual one.
    saved_by_beta_1: f64,
    /// Loss of the best predictor that does not look at its input.
    chance: f64,
    /// Seconds of a step, by optimizer.
    secs: [f64; 2],
    seed: u64,
}

impl World {
    fn draw(seed: u64, factor: f64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut between = |low: f64, high: f64| low + (high - low) * random.random::<f64>();
        Self {
            steps: 30.0 * 10_f64.powf(between(0.0, 1.5)),
            factor,
            seed_sd: between(0.10, 0.18),
            learning_rate: 10_f64.powf(between(-3.5, -1.0)),
            to_divergence: between(0.7, 1.4),
            saved_by_beta_1: 0.0,
            chance: 2.3,
            secs: [1e-3, 1e-3],
            seed,
        }
    }

    fn normal(&self, keys: [u64; 3]) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        for key in keys {
            let mixed = random.random::<u64>() ^ key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            random = ChaCha8Rng::seed_from_u64(mixed);
        }
        StandardNormal.sample(&mut random)
    }

    /// Steps of one run; half of the scatter is the seed's, half its own. None when it diverges.
    fn run(&self, optimizer: &Optimizer, seed: u64) -> Option<f64> {
        let rate = optimizer.learning_rate();
        let off = (rate / self.learning_rate).ln();
        if off > self.to_divergence {
            return None;
        }
        let surplus = if off < 0.0 {
            off * off / (1.0 - off)
        } else {
            off * off
        };
        let beta_1 = optimizer.get(Hyperparameter::Beta1).unwrap_or(0.9);
        // Nothing at 0.9, all of it at 0.97.
        let away = ((1.0 - beta_1) / 0.03).ln() / (0.1_f64 / 0.03).ln();
        let saved = self.saved_by_beta_1 * (1.0 - away * away).max(-2.0);
        let factor = if optimizer.family() == "nadam" {
            self.factor
        } else {
            1.0
        };
        let own = self.normal([rate.to_bits(), seed, beta_1.to_bits()]);
        let common = self.normal([0, seed, 0]);
        let scatter = self.seed_sd * (common + own) / 2_f64.sqrt();
        Some((self.steps.ln() + factor.ln() + surplus - saved + scatter).exp())
    }

    fn answer(&self, spec: &ProbeSpec, place: Place) -> ProbeRecord {
        let mut figures = BTreeMap::new();
        let mut infeasible = None;
        match &spec.task {
            Task::StepTime(_) => {
                let is_second = spec.optimizer.family() == "nadam";
                let z = self.normal([u64::from(spec.replicate), 1, spec.batch_size.0]);
                let secs = self.secs[usize::from(is_second)] * (0.02 * z).exp();
                for metric in [
                    Metric::TimePerStepMedian,
                    Metric::TimePerStepMean,
                    Metric::SyntheticTimePerStepMedian,
                    Metric::SyntheticTimePerStepMean,
                ] {
                    figures.insert(metric, secs);
                }
                figures.insert(Metric::Converged, 1.0);
                figures.insert(Metric::CanaryTimePerStep, 1e-4);
                figures.insert(Metric::RunQueueDelayRatio, 0.0);
            }
            Task::LearningRateRange(_) => {
                let z = self.normal([spec.seed, u64::from(spec.replicate), 2]);
                let diverges = self.learning_rate * (self.to_divergence + 0.3 * z).exp();
                figures.insert(Metric::DivergentLearningRate, diverges);
            }
            Task::Training(run) => match self.run(&spec.optimizer, spec.seed) {
                None => infeasible = Some(InfeasibleReason::Diverged),
                Some(steps) => {
                    let cap = run.max_steps as f64;
                    let made = if steps + 1.0 <= cap && run.target.is_some() {
                        figures.insert(Metric::StepsToTarget, steps);
                        steps
                    } else {
                        cap
                    };
                    figures.insert(Metric::BestEvaluation, 0.2 * (steps / made.min(steps)));
                    figures.insert(Metric::ChanceLoss, self.chance);
                }
            },
            _ => {
                figures.insert(Metric::PeakMemory, 1e7 + 1e3 * spec.batch_size.as_f64());
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

fn definition(change: Value) -> StudyDefinition {
    let mut body = json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 10_000},
            "target": {"metric": "validation_cross_entropy", "value": 0.2}
        },
        "optimizers": {"candidates": [{"family": "adam"}, {"family": "nadam"}]},
        "batch_sizes": {"min": 32, "max": 64},
        "device": {"memory_budget_bytes": 1 << 30},
        "questions": ["optimizer"],
        "budget": {"device_secs": 86400, "probes": 10_000}
    });
    for (name, value) in change.as_object().expect("changes") {
        body[name] = value.clone();
    }
    worlds::definition(&body)
}

/// Runs a study to its end.
fn run(definition: &StudyDefinition, world: &World) -> (Evidence, OptimizerAnalysis) {
    let (evidence, analysis, _) = worlds::run(definition, |spec, place| world.answer(spec, place));
    (evidence, analysis.optimizers.expect("compared"))
}

/// The comparisons of 400 worlds, and what they took.
fn compared(factor: f64, saved_by_beta_1: f64) -> Vec<(OptimizerAnalysis, usize)> {
    let definition = definition(json!({}));
    let of = |seed: u64| {
        let mut world = World::draw(seed, factor);
        world.saved_by_beta_1 = saved_by_beta_1;
        let (evidence, analysis) = run(&definition, &world);
        (analysis, evidence.of_kind(ProbeKind::Training).count())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| (COMPARISONS / 2..COMPARISONS).map(of).collect::<Vec<_>>());
        let mut all: Vec<_> = (0..COMPARISONS / 2).map(of).collect();
        all.extend(other.join().expect("no panic"));
        all
    })
}

fn probability(analysis: &OptimizerAnalysis) -> f64 {
    let [pair] = analysis.pairs.as_slice() else {
        panic!("one pair, not {:?}", analysis.pairs);
    };
    pair.p_first_better.expect("both reached the target")
}

/// The largest distance between the distribution of what was drawn and the uniform one (Kolmogorov 1933).
fn distance_from_uniform(mut drawn: Vec<f64>) -> f64 {
    drawn.sort_by(f64::total_cmp);
    let count = drawn.len() as f64;
    drawn
        .iter()
        .enumerate()
        .map(|(index, p)| (p - index as f64 / count).max((index as f64 + 1.0) / count - p))
        .fold(0.0, f64::max)
}

fn declared(comparisons: &[(OptimizerAnalysis, usize)]) -> usize {
    let verdicts = comparisons.iter().map(|(analysis, _)| analysis.verdict);
    verdicts
        .filter(|it| *it == Some(ComparisonVerdict::DifferenceDeclared))
        .count()
}

#[test]
fn row_7_what_does_not_differ_is_rarely_said_to_and_the_probability_is_uniform() {
    for saved_by_beta_1 in [0.0, 0.5] {
        let comparisons = compared(1.0, saved_by_beta_1);
        let false_declarations = declared(&comparisons);
        let drawn: Vec<f64> = comparisons.iter().map(|(it, _)| probability(it)).collect();
        let distance = distance_from_uniform(drawn.clone());
        let taken = |analysis: &OptimizerAnalysis| {
            let stages = analysis.candidates.iter().flat_map(|it| &it.stages);
            stages
                .filter(|it| it.offered.is_some() && it.is_taken)
                .count()
        };
        let offers: usize = comparisons.iter().map(|(it, _)| taken(it)).sum();
        let runs: usize = comparisons.iter().map(|(_, runs)| runs).sum();
        println!(
            "β₁ saves {saved_by_beta_1}: {false_declarations} of {COMPARISONS} declared, distance from uniform {distance:.3}, {offers} offers taken, {:.0} runs each",
            runs as f64 / COMPARISONS as f64
        );
        assert!(false_declarations <= 32, "{false_declarations}");
        // The 1% point of Kolmogorov's distribution.
        let most = 1.628 / (COMPARISONS as f64).sqrt();
        assert!(
            saved_by_beta_1 > 0.0 || distance <= most,
            "{distance} above {most}"
        );
    }
}

#[test]
fn row_7_half_as_many_steps_again_is_found() {
    let comparisons = compared(1.5, 0.0);
    let found = declared(&comparisons);
    println!("a factor of 1.5: declared in {found} of {COMPARISONS}");
    assert!(found >= COMPARISONS as usize * 95 / 100, "{found}");
    for (analysis, _) in &comparisons {
        let better = analysis.pairs[0].better;
        assert_ne!(better, Some(1), "the wrong way round");
    }
}

#[test]
fn an_offer_that_pays_for_one_is_taken_by_all_and_what_does_not_pay_by_none() {
    let paying = compared(1.0, 0.7);
    let with_beta_1 = paying.iter().filter(|(analysis, _)| {
        let mut candidates = analysis.candidates.iter();
        candidates.all(|it| it.tuned.contains(&Hyperparameter::Beta1))
    });
    let count = with_beta_1.count();
    println!("a β₁ that halves the steps: tuned in {count} of {COMPARISONS}");
    assert!(count >= COMPARISONS as usize * 9 / 10, "{count}");
    for (analysis, _) in &paying {
        let [first, second] = analysis.candidates.as_slice() else {
            panic!("two candidates");
        };
        assert_eq!(first.tuned, second.tuned, "tuned alike");
        // The offer comes after the learning rate alone, with as many trials: half of what two take.
        assert_eq!(
            first.stages[0].hyperparameters,
            [Hyperparameter::LearningRate]
        );
        assert_eq!(first.stages[1].offered, Some(Hyperparameter::Beta1));
        assert_eq!((first.stages[0].trials, first.stages[1].trials), (8, 8));
    }
}

#[test]
fn where_times_are_measured_training_time_is_compared() {
    // NAdam needs as many steps, and each takes three times as long.
    let mut world = World::draw(11, 1.0);
    world.secs = [1e-3, 3e-3];
    let (evidence, analysis) = run(
        &definition(json!({"questions": ["optimizer", "throughput"]})),
        &world,
    );
    assert_eq!(analysis.compared_by, ComparedBy::TrainingTime);
    assert_eq!(analysis.pairs[0].better, Some(0), "{:?}", analysis.pairs);
    let secs = analysis.candidates[1].time_per_step_secs.expect("timed");
    assert!((secs / 3e-3 - 1.0).abs() < 0.1, "{secs}");
    // Their timings are not taken for rounds of the study's own.
    let own = analysis::analyze(
        &definition(json!({"questions": ["optimizer", "throughput"]})),
        &evidence,
    );
    let own = own.throughput.expect("timed");
    let times: Vec<f64> = own
        .points
        .iter()
        .map(|it| it.time_per_step_secs.value)
        .collect();
    assert!(
        times.iter().all(|secs| (secs / 1e-3 - 1.0).abs() < 0.1),
        "{times:?}"
    );
    let steps_alone = run(&definition(json!({})), &world).1;
    assert_eq!(steps_alone.compared_by, ComparedBy::StepsToTarget);
}

#[test]
fn without_a_target_pilots_set_it_and_the_rest_is_compared() {
    let body = json!({"workload": {"dataset": {"builtin": "synthetic", "examples": 10_000}}});
    let (evidence, analysis) = run(&definition(body), &World::draw(3, 3.0));
    assert_eq!(
        serde_json::to_value(analysis.target_source).expect("JSON"),
        "pilot"
    );
    assert!(analysis.verdict.is_some(), "{:?}", analysis.candidates);
    // The study's own optimizer is not searched: nobody asked.
    let own = evidence.own();
    assert_eq!(own.of_kind(ProbeKind::Training).count(), 3);
}

#[test]
fn what_is_asked_for_unequally_is_said_to_be_unfair() {
    let body = json!({
        "optimizers": {
            "candidates": [{"family": "sgd"}, {"family": "adam"}],
            "hyperparameters": ["learning_rate", "beta_1"]
        }
    });
    let (_, analysis) = run(&definition(body), &World::draw(5, 1.0));
    let codes: Vec<&str> = analysis.caveats.iter().map(|it| it.code.as_str()).collect();
    assert!(codes.contains(&"W_UNFAIR_COMPARISON"), "{codes:?}");
    let fair = run(&definition(json!({})), &World::draw(6, 1.0)).1;
    assert!(fair.caveats.is_empty(), "{:?}", fair.caveats);
}

#[test]
fn row_7_identical_candidates_are_answered_without_a_test() {
    let body = json!({
        "optimizers": {"candidates": [{"family": "adam"}, {"family": "adamw", "weight_decay": 0.0}]}
    });
    let definition = definition(body);
    let (evidence, analysis) = run(&definition, &World::draw(1, 1.0));
    assert_eq!(analysis.verdict, Some(ComparisonVerdict::Identical));
    assert_eq!(evidence.of_kind(ProbeKind::Training).count(), 0);
    // Of three of which two are identical, two are tuned.
    let body = json!({
        "optimizers": {"candidates": [{"family": "adam"}, {"family": "adam"}, {"family": "nadam"}]}
    });
    let (_, analysis) = run(&self::definition(body), &World::draw(1, 3.0));
    assert_eq!(analysis.candidates[1].identical_to, Some(0));
    assert_eq!(analysis.candidates[1].steps, analysis.candidates[0].steps);
    let tested = analysis.pairs.iter().filter(|pair| !pair.is_identical);
    assert_eq!(tested.count(), 1);
    assert_eq!(analysis.recommended, Some(0));
}

/// The advice on a topic before anything was measured.
#[test]
fn where_nothing_is_learned_there_is_no_target_to_compare_by() {
    let body = json!({"workload": {"dataset": {"builtin": "synthetic", "examples": 10_000}}});
    let world = World {
        // No run comes below it.
        chance: 0.1,
        ..World::draw(1, 1.0)
    };
    let (_, analysis) = run(&definition(body.clone()), &world);
    assert_eq!(analysis.verdict, None);
    let caveat = analysis.caveats.iter().find(|it| it.code == "W_NO_TARGET");
    assert!(caveat.is_some_and(|it| it.detail.contains("workload.target")));

    let (_, analysis) = run(&definition(body), &World::draw(1, 1.0));
    assert!(analysis.verdict.is_some());
    assert!(analysis.caveats.iter().all(|it| it.code != "W_NO_TARGET"));
}

fn advice_before_the_run(body: Value, topic: Topic) -> Advice {
    let definition = definition(body);
    let evidence = Evidence::default();
    let analysis = analysis::analyze(&definition, &evidence);
    recommend(&definition, &evidence, &analysis)
        .into_iter()
        .find(|advice| advice.topic == topic)
        .expect("advice without a measurement")
}

fn rule_of_thumb(optimizer: Value, questions: Value) -> Advice {
    let body = json!({"optimizer": optimizer, "optimizers": {}, "questions": questions});
    advice_before_the_run(body, Topic::Optimizer)
}

fn codes(advice: &Advice) -> Vec<&str> {
    advice.caveats.iter().map(|it| it.code.as_str()).collect()
}

#[test]
fn row_9_every_hyperparameter_is_listed_and_what_nobody_tunes_has_a_caveat() {
    let advice = rule_of_thumb(json!({"family": "adam"}), json!(["optimizer"]));
    assert_eq!(
        advice.value["optimizer"]["family"], "adam",
        "the first for an MLP"
    );
    let listed = advice.value["hyperparameters"].as_array().expect("a list");
    let names: Vec<&str> = listed.iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, ["learning_rate", "beta_1", "beta_2", "epsilon"]);
    assert!(
        listed
            .iter()
            .all(|it| it["status"] == "untuned" && it["role"] == "nuisance")
    );
    let expected: Vec<String> = names
        .iter()
        .map(|name| format!("W_UNTUNED:{name}"))
        .collect();
    assert_eq!(codes(&advice), expected);
}

#[test]
fn row_10_the_trials_are_known_before_the_run() {
    let advice = rule_of_thumb(json!({"family": "adam"}), json!(["optimizer"]));
    let budget = advice.value["trial_budget"].as_array().expect("a list");
    let trials: Vec<u64> = budget
        .iter()
        .filter_map(|it| it["trials"].as_u64())
        .collect();
    assert_eq!(trials, [16, 32, 64, 128]);
    assert!(advice.evidence.is_empty(), "before the run");
}

#[test]
fn row_11_a_fixed_learning_rate_carries_the_caveat_and_a_tuned_one_does_not() {
    let fixed = json!({"family": "adam", "learning_rate": 0.02});
    let advice = rule_of_thumb(fixed.clone(), json!(["optimizer"]));
    let caveat = advice
        .caveats
        .iter()
        .find(|it| it.code == "W_FIXED_NUISANCE");
    assert!(
        caveat
            .expect("a caveat")
            .detail
            .contains("learning_rate at 0.02")
    );
    assert!(!codes(&advice).contains(&"W_UNTUNED:learning_rate"));
    // Where the study searches for it, it is no longer fixed.
    let tuned = rule_of_thumb(fixed, json!(["optimizer", "critical_batch_size"]));
    assert!(
        !codes(&tuned).contains(&"W_FIXED_NUISANCE"),
        "{:?}",
        codes(&tuned)
    );
    let listed = tuned.value["hyperparameters"].as_array().expect("a list");
    assert_eq!(listed[0]["status"], "tuned");
    // In a comparison the family is what is asked about.
    let compared = advice_before_the_run(json!({}), Topic::Optimizer);
    assert_eq!(compared.value["roles"]["optimizer.family"], "scientific");
}

#[test]
fn row_14_a_search_over_the_batch_size_is_refused_with_the_reason() {
    let refused = |field: &str, value: Value, pointer: &str| {
        let mut body = json!({"workload": {"dataset": {"builtin": "digits"}}});
        body[field] = value;
        let violations = parse(&body, &DefinitionLimits::default()).expect_err("refused");
        let [violation] = violations.as_slice() else {
            panic!("{violations:?}");
        };
        assert_eq!(violation.pointer, pointer);
        assert!(
            violation.detail.starts_with("W_BATCH_TUNED_FOR_QUALITY"),
            "{violation:?}"
        );
    };
    refused(
        "search",
        json!({"hyperparameters": ["learning_rate", "batch_size"]}),
        "/search/hyperparameters/1",
    );
    refused(
        "search",
        json!({"ranges": {"batch_size": {"lower": 16.0, "upper": 64.0}}}),
        "/search/ranges/batch_size",
    );
    refused(
        "optimizers",
        json!({
            "candidates": [{"family": "adam"}, {"family": "sgd"}],
            "hyperparameters": ["batch_size"]
        }),
        "/optimizers/hyperparameters/0",
    );
}

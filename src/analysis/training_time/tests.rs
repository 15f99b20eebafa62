use serde_json::json;

use super::super::fixtures::rounds;
use super::super::steps::fit::{self, Point};
use super::super::steps::{StepsCurve, analyze as analyze_steps, setup};
use super::super::{Evidence, throughput};
use super::*;
use crate::probe::Metric;
use crate::study::defaults::resolve;
use crate::study::validation::parse;

const SIZES: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

fn definition(costs: serde_json::Value, phase: &str) -> StudyDefinition {
    let body = json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 10_000},
            "target": {"metric": "validation_cross_entropy", "value": 0.2}
        },
        "optimizer": {"family": "sgd"},
        "search": {"ranges": {"learning_rate": {"lower": 0.01, "upper": 1.0}}},
        "costs": costs,
        "project_phase": phase
    });
    resolve(parse(&body, &Default::default()).expect("valid"), None).expect("known")
}

/// Steps on a curve that is known to 1%, measured at every second batch size.
fn steps(
    definition: &StudyDefinition,
    min_steps: f64,
    critical: f64,
    sharpness: f64,
) -> StepsAnalysis {
    let curve = StepsCurve {
        ln_min_steps: min_steps.ln(),
        ln_min_examples: (min_steps * critical).ln(),
        ln_sharpness: sharpness.ln(),
    };
    let points: Vec<Point> = SIZES
        .iter()
        .map(|size| (*size as f64).ln())
        .map(|ln_batch| Point::Measured {
            ln_batch,
            ln_steps: curve.ln_steps(ln_batch),
            error: 0.01,
        })
        .collect();
    let evidence = Evidence::default();
    let training = setup::read(definition, &evidence, BatchSize(64));
    StepsAnalysis {
        fit: fit::fit(&points, None, 1),
        ..analyze_steps(definition, &training).expect("a range of learning rates is named")
    }
}

fn decide(
    definition: &StudyDefinition,
    steps: &StepsAnalysis,
    time_per_step: impl Fn(f64) -> f64,
) -> TrainingTimeAnalysis {
    decide_with_energy(definition, steps, time_per_step, None)
}

/// The same where a step's energy was measured, joules by batch size.
fn decide_with_energy(
    definition: &StudyDefinition,
    steps: &StepsAnalysis,
    time_per_step: impl Fn(f64) -> f64,
    joules: Option<fn(f64) -> f64>,
) -> TrainingTimeAnalysis {
    let mut evidence = rounds(&SIZES, 3, |size, round| {
        time_per_step(size as f64) * (1.0 + 0.002 * f64::from(round % 2))
    });
    for probe in &mut evidence.probes {
        if let Some(joules) = joules {
            let used = joules(probe.batch_size().as_f64());
            probe.figures.insert(Metric::EnergyPerStep, used);
        }
    }
    let throughput = throughput::analyze(&evidence).expect("times");
    analyze(definition, &throughput, steps).expect("a decision")
}

fn direction(decision: &TrainingTimeAnalysis, from: u64) -> Direction {
    let point = decision.points.iter().find(|it| it.batch_size.0 == from);
    let change = point.expect("listed").resources_to_next.as_ref();
    change.expect("a next one").direction
}

#[test]
fn with_additive_times_and_a_hyperbola_the_best_batch_size_has_a_formula() {
    let definition = definition(json!({}), "early");
    let (alpha, beta, min_steps, critical) = (1e-3, 1e-5, 100.0, 41.0);
    let steps = steps(&definition, min_steps, critical, 1.0);
    let decision = decide(&definition, &steps, |size| alpha + beta * size);
    // B* = √(α·B_crit/β) = 64, T* = S_min·(√α + √(β·B_crit))².
    assert_eq!(decision.batch_size, BatchSize(64));
    let point = decision
        .points
        .iter()
        .find(|it| it.batch_size.0 == 64)
        .expect("listed");
    let expected = min_steps * (alpha.sqrt() + (beta * critical).sqrt()).powi(2);
    let found = point.training_time_secs.value;
    assert!(
        (found / expected - 1.0).abs() < 0.02,
        "{found} instead of {expected}"
    );
    assert!(point.p_best > 0.9 && point.p_within_5pct > 0.9, "{point:?}");
    assert!((point.runs_per_device_hour * found - 3600.0).abs() < 1e-6);
    assert_eq!(point.money, None);
    let total: f64 = decision.points.iter().map(|it| it.p_best).sum();
    assert!((total - 1.0).abs() < 1e-9);
}

#[test]
fn with_a_sharp_knee_the_best_batch_size_is_the_knee() {
    let definition = definition(json!({"device_hour": 3.6}), "early");
    let steps = steps(&definition, 100.0, 1e4, 1.0);
    let decision = decide(&definition, &steps, |size| {
        (1e-3_f64).max(size * 1e-3 / 128.0)
    });
    assert_eq!(decision.batch_size, BatchSize(128));
    let point = decision
        .points
        .iter()
        .find(|it| it.batch_size.0 == 128)
        .expect("listed");
    let money = point.money.expect("there is a price");
    assert!((money.value / (point.device_secs.value * 1e-3) - 1.0).abs() < 1e-9);
}

/// A step's time hardly grows with the batch size but its energy does: the quickest batch size is not the cheapest
/// once energy has a price.
#[test]
fn measured_energy_with_a_price_counts_as_money_and_splits_time_from_resources() {
    let at = |costs: serde_json::Value, objective: Objective, joules: Option<fn(f64) -> f64>| {
        let definition = StudyDefinition {
            objective,
            ..definition(costs, "late")
        };
        let steps = steps(&definition, 100.0, 41.0, 1.0);
        decide_with_energy(&definition, &steps, |size| 1e-3 + 1e-6 * size, joules)
    };
    let joules: fn(f64) -> f64 = |size| 0.01 + 0.01 * size;
    let costs = json!({"device_hour": 0.036, "energy_price_per_kwh": 3.6});
    let quick = at(costs.clone(), Objective::MinimizeTrainingTime, Some(joules));
    let cheap = at(
        costs.clone(),
        Objective::MinimizeResourceConsumption,
        Some(joules),
    );
    assert!(quick.batch_size.0 >= 128, "{}", quick.batch_size);
    assert!(cheap.batch_size.0 <= 16, "{}", cheap.batch_size);
    let point = cheap
        .points
        .iter()
        .find(|it| it.batch_size.0 == 64)
        .expect("listed");
    // 64 examples: 0.65 J a step; a device-second costs 1e-5 and a joule 1e-6.
    let steps = 100.0 * (1.0 + 41.0 / 64.0);
    let energy = point.energy_kwh.expect("measured").value;
    assert!((energy / (steps * 0.65 / 3.6e6) - 1.0).abs() < 0.02);
    let money = point.money.expect("priced").value;
    let expected = steps * (1e-5 * 1.064e-3 + 1e-6 * 0.65);
    assert!((money / expected - 1.0).abs() < 0.02, "{money} {expected}");
    // Neither the quickest nor the cheapest beats the other in both.
    let both = at(costs.clone(), Objective::Pareto, Some(joules));
    assert!(both.pareto.contains(&quick.batch_size) && both.pareto.contains(&cheap.batch_size));
    assert!(both.pareto.len() > 2, "{:?}", both.pareto);
    assert_eq!(both.batch_size, quick.batch_size);
    // A price of what was not measured counts for nothing.
    let unknown = at(costs, Objective::MinimizeResourceConsumption, None);
    assert_eq!(unknown.batch_size, quick.batch_size);
    assert_eq!(unknown.points[0].energy_kwh, None);
    let energy_alone = at(
        json!({"energy_price_per_kwh": 3.6}),
        Objective::MinimizeResourceConsumption,
        Some(joules),
    );
    assert!(energy_alone.batch_size.0 <= 16);
    let nothing = at(
        json!({"energy_price_per_kwh": 3.6}),
        Objective::MinimizeTrainingTime,
        None,
    );
    assert_eq!(nothing.points[0].money, None);
}

/// The quicker a run, the more of them fit into an hour of the device.
#[test]
fn row_17_a_quicker_batch_size_allows_more_tuning_runs_in_a_device_hour() {
    let definition = definition(json!({}), "early");
    let steps = steps(&definition, 100.0, 41.0, 1.0);
    let decision = decide(&definition, &steps, |size| 1e-3 + 1e-5 * size);
    for point in &decision.points {
        let size = point.batch_size.as_f64();
        let secs = 100.0 * (1.0 + 41.0 / size) * (1e-3 + 1e-5 * size);
        let runs = 3600.0 / secs;
        assert!((point.runs_per_device_hour / runs - 1.0).abs() < 0.02);
    }
    let of = |size: u64| {
        let mut points = decision.points.iter();
        let point = points.find(|it| it.batch_size.0 == size).expect("listed");
        point.runs_per_device_hour
    };
    assert!(of(64) > 5.0 * of(1), "{} and {}", of(64), of(1));
}

/// The playbook: resource consumption may fall, stay or rise with the batch size.
#[test]
fn row_16_18_43_resource_consumption_may_fall_stay_or_rise() {
    let definition = definition(json!({}), "early");
    let scaling = steps(&definition, 1.0, 1e7, 1.4);
    let constant = decide(&definition, &scaling, |_| 1e-3);
    assert_eq!(direction(&constant, 64), Direction::Decrease);
    let proportional = decide(&definition, &scaling, |size| 1e-5 * size);
    assert_eq!(direction(&proportional, 64), Direction::Same);
    let saturated = steps(&definition, 100.0, 0.01, 1.4);
    let rising = decide(&definition, &saturated, |size| 1e-5 * size);
    assert_eq!(direction(&rising, 64), Direction::Increase);
}

#[test]
fn rows_39_to_42_an_upfront_cost_is_worth_it_or_put_off() {
    let of = |planned: u64, phase: &str| {
        let costs = json!({
            "device_hour": 3600.0,
            "upfront": [{"above_batch_size": 64, "amount": 10.0, "why": "a second device"}],
            "planned_runs": planned
        });
        let definition = definition(costs, phase);
        let steps = steps(&definition, 100.0, 1e4, 1.4);
        decide(&definition, &steps, |size| {
            (1e-3_f64).max(size * 1e-3 / 128.0)
        })
    };
    // Steps at 64 and 128: 100·10⁴/64·… about 15,700 and 7,850, so 15.7 s and 7.85 s at 1 a second.
    let decision = of(20, "early");
    let level = &decision.upfront[0];
    assert_eq!(
        (level.batch_size, level.instead_of),
        (BatchSize(128), BatchSize(64))
    );
    let runs = level.break_even_runs.expect("something is saved");
    assert!(
        (runs - 10.0 / level.saved_per_run).abs() < 1e-9 && runs < 20.0,
        "{runs}"
    );
    assert!(!level.defer);
    assert_eq!(decision.batch_size, BatchSize(128));

    let put_off = of(1, "early");
    assert!(put_off.upfront[0].defer);
    assert_eq!(put_off.batch_size, BatchSize(64));
    assert!(!of(1, "late").upfront[0].defer);
}

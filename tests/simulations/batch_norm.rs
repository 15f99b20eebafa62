//! Batch normalization over ghost batches in simulated worlds: the rule, what training with them shows, and what is said
//! where the batch size and the normalization cannot be told apart.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use trialhead::analysis::batch_norm::NormalisedOver;
use trialhead::analysis::{self, Analysis, Evidence, ProbeRecord};
use trialhead::plan::{Next, plan};
use trialhead::probe::{InfeasibleReason, Metric, ProbeKind, ProbeSpec, Task};
use trialhead::recommendation::{Topic, recommend};
use trialhead::study::StudyDefinition;

use crate::worlds::{self, End, Place, record};

/// The learning rate at which training ends with the least loss; above 1 it diverges.
const BEST_RATE: f64 = 0.1;

/// Ends with a loss that is larger by so much for each ghost batch size; steps to a target as they come.
fn answer(
    worse: &dyn Fn(u64) -> f64,
    spec: &ProbeSpec,
    id: u128,
    wave: u32,
    position: u32,
) -> ProbeRecord {
    let mut figures = BTreeMap::new();
    let mut infeasible = None;
    let rate = spec.optimizer.learning_rate();
    let off = (rate / BEST_RATE).ln();
    let model = serde_json::to_value(&spec.workload.model).expect("JSON");
    let normalization = &model["normalization"];
    let ghost = normalization["batch_size"].as_u64();
    // Seeds scatter a little, from the seed alone.
    let jitter = ((spec.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / 2_f64.powi(24)
        - 0.5)
        * 0.04;
    match &spec.task {
        Task::LearningRateRange(_) => {
            figures.insert(Metric::DivergentLearningRate, 1.0);
        }
        Task::Training(_) if rate > 1.0 => infeasible = Some(InfeasibleReason::Diverged),
        Task::Training(run) => {
            if run.target.is_some() {
                let steps =
                    20.0 * (1.0 + 40.0 / spec.batch_size.as_f64()) * (off * off + jitter).exp();
                if steps < run.max_steps as f64 {
                    figures.insert(Metric::StepsToTarget, steps);
                }
            }
            let ghost = ghost.unwrap_or(spec.batch_size.0);
            figures.insert(
                Metric::BestEvaluation,
                0.3 + worse(ghost) + 0.02 * off * off + jitter,
            );
            figures.insert(Metric::BestStep, 0.5 * run.max_steps as f64);
            figures.insert(Metric::ChanceLoss, 2.3);
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

fn definition(normalization: Value, change: Value) -> StudyDefinition {
    let mut body = json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 10_000},
            "model": {"family": "mlp", "normalization": normalization}
        },
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": 64, "max": 512},
        "device": {"memory_budget_bytes": 1 << 30},
        "questions": ["batch_norm"],
        "budget": {"device_secs": 86400, "probes": 10_000}
    });
    for (name, value) in change.as_object().expect("changes") {
        body[name] = value.clone();
    }
    worlds::definition(&body)
}

fn run(definition: &StudyDefinition, worse: &dyn Fn(u64) -> f64) -> (Evidence, Analysis) {
    let mut evidence = Evidence::default();
    for _ in 0..300 {
        let analysis = analysis::analyze(definition, &evidence);
        match plan(definition, &evidence, &analysis).next {
            Next::Wave(planned) => {
                let wave = evidence.next_wave();
                for (position, probe) in planned.iter().enumerate() {
                    let id = (u128::from(wave) << 32) + position as u128 + 1;
                    evidence
                        .probes
                        .push(answer(worse, &probe.spec, id, wave, position as u32));
                }
            }
            Next::Done { .. } => return (evidence, analysis),
            other => panic!("{other:?}"),
        }
    }
    panic!("the study does not end");
}

fn same(_: u64) -> f64 {
    0.0
}

fn codes(analysis: &Analysis) -> Vec<String> {
    let it = analysis.batch_norm.as_ref().expect("asked");
    it.caveats
        .iter()
        .map(|caveat| caveat.code.clone())
        .collect()
}

#[test]
fn where_nothing_normalises_over_the_batch_there_is_nothing_to_choose() {
    for kind in ["none", "layer"] {
        let definition = definition(
            json!({"kind": kind}),
            json!({"batch_norm": {"probe": true}}),
        );
        let (evidence, analysis) = run(&definition, &same);
        assert_eq!(evidence.of_kind(ProbeKind::Training).count(), 0);
        let it = analysis.batch_norm.as_ref().expect("asked");
        assert_eq!(it.normalised_over, NormalisedOver::OneExample);
        assert!(codes(&analysis).is_empty());
        let advice = recommend(&definition, &evidence, &analysis);
        let advice = advice
            .iter()
            .find(|it| it.topic == Topic::BatchNorm)
            .expect("advice");
        assert_eq!(advice.value["batch_norm"], Value::Null);
        assert!(
            advice.summary.contains("nothing to choose"),
            "{}",
            advice.summary
        );
    }
}

#[test]
fn row_46_ghost_batches_are_recommended_by_the_rule_or_it_is_said_why_not() {
    let plain = || json!({"kind": "batch"});
    let (evidence, analysis) = run(&definition(plain(), json!({})), &same);
    assert_eq!(
        evidence.of_kind(ProbeKind::Training).count(),
        0,
        "a rule needs no training"
    );
    let it = analysis.batch_norm.as_ref().expect("asked");
    assert_eq!((it.by_rule, it.ghost_batch_size), (Some(64), Some(64)));
    assert_eq!(it.least_steps, Some(30.0));
    assert_eq!(
        codes(&analysis),
        ["W_BN_CONFOUNDED"],
        "the model's own takes the whole batch"
    );
    // With ghost batches of the rule there is nothing to remark.
    let ghosts = json!({"kind": "ghost_batch", "batch_size": 64});
    let (_, analysis) = run(&definition(ghosts, json!({})), &same);
    assert!(codes(&analysis).is_empty(), "{:?}", codes(&analysis));
    // Batch sizes below 16 have no room for one.
    let small = json!({"batch_sizes": {"min": 4, "max": 128}});
    let (_, analysis) = run(&definition(plain(), small), &same);
    let it = analysis.batch_norm.as_ref().expect("asked");
    assert_eq!((it.by_rule, it.ghost_batch_size), (None, Some(16)));
    assert_eq!(codes(&analysis), ["W_BN_CONFOUNDED"]);
    assert!(
        it.caveats[0].detail.contains("at 4, 8;"),
        "{:?}",
        it.caveats
    );
}

#[test]
fn row_46_the_probe_trains_with_16_64_256_and_the_batch_and_finds_the_best() {
    let asked = |batch_size: u64| json!({"batch_norm": {"probe": true, "batch_size": batch_size}});
    let plain = || json!({"kind": "batch"});
    // Every other ghost batch than 16 is surely worse.
    let worse = |ghost: u64| if ghost == 16 { 0.0 } else { 0.5 };
    let (evidence, analysis) = run(&definition(plain(), asked(512)), &worse);
    let it = analysis.batch_norm.as_ref().expect("asked");
    let probe = it.probe.as_ref().expect("made");
    let sizes: Vec<u64> = probe.points.iter().map(|it| it.ghost_batch_size).collect();
    assert_eq!(sizes, [16, 64, 256, 512]);
    assert!(probe.points.iter().all(|point| point.seeds == 5));
    assert_eq!((probe.best, it.ghost_batch_size), (Some(16), Some(16)));
    assert!(probe.near_ties.is_empty());
    let rate = probe.optimizer.as_ref().expect("swept").learning_rate();
    assert!((rate / BEST_RATE).ln().abs() < 1.0, "{rate}");
    assert_eq!(evidence.of_kind(ProbeKind::Training).count(), 8 + 4 * 5);
    // Where all are the same, the rule's stays and the rest are ties.
    let (_, analysis) = run(&definition(plain(), asked(256)), &same);
    let it = analysis.batch_norm.as_ref().expect("asked");
    let probe = it.probe.as_ref().expect("made");
    assert_eq!(probe.points.len(), 3);
    assert_eq!(probe.near_ties.len(), 2);
    assert_eq!(it.ghost_batch_size, Some(64));
}

#[test]
fn a_critical_batch_size_of_a_model_with_batch_norm_is_confounded_and_its_averages_are_stale() {
    let change = json!({
        "questions": ["critical_batch_size", "batch_norm"],
        "batch_norm": {"probe": true}
    });
    let mut with_target = change;
    with_target["workload"] = json!({
        "dataset": {"builtin": "synthetic", "examples": 10_000},
        "model": {"family": "mlp", "normalization": {"kind": "batch", "momentum": 0.01}},
        "target": {"metric": "validation_cross_entropy", "value": 0.4}
    });
    let definition = definition(json!({"kind": "batch"}), with_target);
    let (evidence, analysis) = run(&definition, &same);
    let advice = recommend(&definition, &evidence, &analysis);
    let of = |topic: Topic| -> Vec<&str> {
        let advice = advice.iter().find(|it| it.topic == topic).expect("advice");
        advice.caveats.iter().map(|it| it.code.as_str()).collect()
    };
    assert!(of(Topic::CriticalBatchSize).contains(&"W_BN_CONFOUNDED"));
    // Some twenty steps, and averages that need 300.
    assert!(of(Topic::BatchNorm).contains(&"W_EMA_STALE"));
    // The hyperparameters found are those trained with: no sweep.
    let probe = analysis
        .batch_norm
        .as_ref()
        .and_then(|it| it.probe.as_ref())
        .expect("made");
    let comparing = evidence.series(analysis::batch_norm::SERIES);
    let runs = comparing.of_kind(ProbeKind::Training).count();
    assert_eq!(runs, probe.points.len() * 5);
    // And the curve does not see them.
    let steps = analysis.steps.as_ref().expect("trained");
    let own = evidence.own().of_kind(ProbeKind::Training).count() + runs;
    assert_eq!(own, evidence.of_kind(ProbeKind::Training).count());
    assert!(steps.curve.is_some());
}

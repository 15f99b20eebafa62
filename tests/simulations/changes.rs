//! What a change makes stale, row by row: a study is run to its end in a simulated world; then something changes, and
//! the study with the change is planned from its beginning with everything that is known. Which probes are made
//! again is exactly what the table says, and the answers are those of the world.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use trialhead::analysis::{self, Analysis, Evidence, ProbeRecord};
use trialhead::plan::{Next, plan};
use trialhead::probe::inputs::{Ended, answers, figures, inputs};
use trialhead::probe::{InfeasibleReason, Metric, ProbeKind, ProbeSpec, Task};
use trialhead::recommendation::{self, Topic, staleness};
use trialhead::study::validation::{DefinitionLimits, parse};
use trialhead::study::{
    Bytes, Change, DeviceFactsForDefaults, Figure, StudyDefinition, between, resolve,
};

use crate::worlds::{End, Place, record};

use ProbeKind::{
    Confirmation, GradientAccumulation, InputPipeline, LearningRateRange, Memory, NoiseScale,
    Smoke, StepTime, Training,
};

fn body() -> Value {
    json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 10_000, "features": 20, "seed": 1},
            "target": {"metric": "validation_cross_entropy", "value": 0.2}
        },
        "optimizer": {"family": "sgd_nesterov", "learning_rate": 0.01, "momentum": 0.9},
        "search": {"hyperparameters": ["learning_rate"]},
        "batch_sizes": {"min": 4, "max": 1024},
        "device": {"model": "simulated", "threads": 2, "memory_budget_bytes": 1 << 30},
        "questions": ["feasible_batch_sizes", "throughput", "bottleneck", "gradient_accumulation",
                      "batch_size", "critical_batch_size"],
        "budget": {"device_secs": 86400, "probes": 10_000},
        "seed": 3
    })
}

fn definition(body: &Value) -> StudyDefinition {
    let facts = DeviceFactsForDefaults {
        model: body["device"]["model"].as_str().expect("named").into(),
        threads: 2,
        available_bytes: Bytes(8 << 30),
    };
    let request = parse(body, &DefinitionLimits::default()).expect("valid");
    resolve(request, Some(&facts)).expect("known")
}

/// The learning rate at which training diverges.
const DIVERGENT: f64 = 1.0;

/// The world: what a probe measures depends on nothing but what it is told.
fn measure(spec: &ProbeSpec, id: u128, wave: u32, position: u32) -> ProbeRecord {
    let size = spec.batch_size.as_f64();
    let t = 1e-3 + 1e-5 * size;
    let wobble = 1.0 + 0.002 * f64::from(spec.replicate % 3);
    let mut infeasible = None;
    let figures: Vec<(Metric, f64)> = match &spec.task {
        Task::StepTime(_) => vec![
            (Metric::TimePerStepMedian, t * wobble),
            (Metric::TimePerStepMean, t * wobble),
            (Metric::SyntheticTimePerStepMedian, t * wobble),
            (Metric::SyntheticTimePerStepMean, t * wobble),
            (Metric::CanaryTimePerStep, 1e-4),
            (Metric::RunQueueDelayRatio, 0.0),
            (Metric::Converged, 1.0),
        ],
        Task::InputPipeline(_) => vec![
            (Metric::SyntheticTimePerStep, t * wobble),
            (Metric::PrefetchedTimePerStep, t * wobble),
            (Metric::UnprefetchedTimePerStep, t * wobble + 1e-7),
            (Metric::LoadTimePerStep, 1e-7),
            (Metric::TransferTimePerStep, 1e-7),
            (Metric::ReadbackTimePerStep, t * wobble),
            (Metric::ForwardTimePerStep, 0.3 * t),
            (Metric::ForwardBackwardTimePerStep, 0.8 * t),
            (Metric::MatmulRate, 1e11),
            (Metric::RunQueueDelayRatio, 0.0),
        ],
        Task::GradientAccumulation(_) => vec![
            (Metric::SyntheticTimePerStep, t * wobble),
            (Metric::ForwardBackwardTimePerStep, 0.8 * t),
            (Metric::AccumulatedTimePerStep, 3.4 * t * wobble),
        ],
        Task::LearningRateRange(_) => vec![(Metric::DivergentLearningRate, DIVERGENT)],
        Task::NoiseScale(_) => vec![(Metric::NoiseScale, 40.0)],
        Task::Training(run) => {
            let rate = spec.optimizer.learning_rate();
            if rate > DIVERGENT {
                infeasible = Some(InfeasibleReason::Diverged);
                vec![]
            } else {
                let off = (rate / (0.1 * DIVERGENT)).ln();
                let scatter = 1.0 + 0.01 * (spec.seed % 7) as f64;
                let steps = (20.0 + 600.0 / size) * (1.0 + 0.3 * off * off) * scatter;
                let cap = run.max_steps as f64;
                let mut figures = vec![
                    (Metric::BestEvaluation, 0.2 * steps / steps.min(cap)),
                    (Metric::BestStep, steps.min(cap)),
                ];
                if run.compares_with_chance {
                    let skill = if run.shuffles_targets {
                        0.0
                    } else {
                        (0.9 - 0.05 * off * off).max(0.0)
                    };
                    figures = vec![
                        (Metric::BestEvaluation, 2.3 * (1.0 - skill)),
                        (Metric::BestEvaluationError, 0.02),
                        (Metric::BestStep, 0.5 * cap),
                        (Metric::ChanceLoss, 2.3),
                        (Metric::GainOverChance, 2.3 * skill),
                        (Metric::GainOverChanceError, 0.02),
                        (Metric::LateGain, 0.0),
                    ];
                }
                if run.target.is_some() && steps <= cap {
                    figures.push((Metric::StepsToTarget, steps));
                }
                figures
            }
        }
        Task::Smoke { .. } | Task::Memory { .. } | Task::Confirmation { .. } => {
            vec![(Metric::PeakMemory, 5e7 + 1e4 * size)]
        }
    };
    let place = Place { id, wave, position };
    let end = End {
        infeasible,
        device_secs: 0.1,
        figures: figures.into_iter().collect(),
    };
    record(spec, place, end)
}

/// What a run came to: by kind, how many probes were taken over and how many were made.
struct Run {
    evidence: Evidence,
    analysis: Analysis,
    reused: BTreeMap<ProbeKind, usize>,
    made: BTreeMap<ProbeKind, usize>,
}

impl Run {
    fn of(definition: &StudyDefinition, known: &Evidence) -> Self {
        let hash = |spec: &ProbeSpec| inputs("default", None, spec).expect("hashes");
        let mut stored = BTreeMap::<String, Vec<&ProbeRecord>>::new();
        for record in &known.probes {
            stored.entry(hash(&record.spec)).or_default().push(record);
        }
        let mut run = Self {
            evidence: Evidence::default(),
            analysis: Analysis::default(),
            reused: BTreeMap::new(),
            made: BTreeMap::new(),
        };
        for _ in 0..300 {
            run.analysis = analysis::analyze(definition, &run.evidence);
            let planned = match plan(definition, &run.evidence, &run.analysis).next {
                Next::Wave(planned) => planned,
                Next::Done { .. } => return run,
                other => panic!("{other:?}"),
            };
            let wave = run.evidence.next_wave();
            for (position, probe) in (0_u32..).zip(planned) {
                let spec = &probe.spec;
                let mut candidates = stored.get(&hash(spec)).into_iter().flatten();
                let found = candidates.find(|record| {
                    let ended = Ended {
                        spec: record.spec.clone(),
                        state: record.state,
                        infeasible: record.infeasible,
                        peak: record
                            .figure(Metric::PeakMemory)
                            .filter(|_| spec.kind() != Smoke)
                            .map(|bytes| Bytes(bytes as u64)),
                    };
                    answers(&ended, spec)
                });
                let counted = match found {
                    Some(_) => &mut run.reused,
                    None => &mut run.made,
                };
                *counted.entry(spec.kind()).or_default() += 1;
                let id = (u128::from(wave) << 32) + u128::from(position) + 1;
                let record = match found {
                    Some(record) => ProbeRecord {
                        spec: spec.clone(),
                        wave,
                        position,
                        ..(*record).clone()
                    },
                    None => measure(spec, id, wave, position),
                };
                run.evidence.probes.push(record);
            }
        }
        panic!("the study does not end");
    }

    fn made(&self) -> BTreeSet<ProbeKind> {
        self.made.keys().copied().collect()
    }
}

const ASKED: [ProbeKind; 9] = [
    Smoke,
    Memory,
    StepTime,
    Confirmation,
    InputPipeline,
    GradientAccumulation,
    Training,
    LearningRateRange,
    NoiseScale,
];

#[test]
fn each_row_of_the_table_repeats_its_probes_and_no_others() {
    let before = definition(&body());
    let first = Run::of(&before, &Evidence::default());
    assert_eq!(first.made(), BTreeSet::from(ASKED));
    assert!(first.analysis.training_time.is_some());

    let hardware = [
        Memory,
        StepTime,
        Confirmation,
        InputPipeline,
        GradientAccumulation,
    ];
    let with = |kinds: &[ProbeKind]| -> Vec<ProbeKind> {
        let mut all = vec![Smoke];
        all.extend(kinds);
        all
    };
    let trained = [Training, LearningRateRange, NoiseScale];
    type Row = (&'static str, Value, Change, Vec<ProbeKind>);
    let rows: Vec<Row> = vec![
        (
            "/workload/model",
            json!({"family": "mlp", "hidden": [65]}),
            Change::Model,
            ASKED.to_vec(),
        ),
        (
            "/workload/dtype",
            json!("bfloat16"),
            Change::Dtype,
            ASKED.to_vec(),
        ),
        (
            "/optimizer",
            json!({"family": "adam"}),
            Change::OptimizerFamily,
            ASKED.to_vec(),
        ),
        (
            "/optimizer/weight_decay",
            json!(1e-4),
            Change::OptimizerFamily,
            ASKED.to_vec(),
        ),
        (
            "/gradient_clipping",
            json!({"kind": "global_norm", "max_norm": 1.0}),
            Change::GradientClipping,
            ASKED.to_vec(),
        ),
        (
            "/optimizer/momentum",
            json!(0.8),
            Change::OptimizerSettings,
            with(&trained),
        ),
        (
            "/optimizer/learning_rate",
            json!(0.02),
            Change::StartingLearningRate,
            with(&[]),
        ),
        (
            "/schedule",
            json!({"kind": "constant", "warm_up_steps": 5}),
            Change::Schedule,
            with(&trained),
        ),
        (
            "/workload/dataset/seed",
            json!(2),
            Change::DataSet,
            with(&trained),
        ),
        (
            "/workload/validation_examples",
            json!(100),
            Change::DataSet,
            with(&trained),
        ),
        ("/seed", json!(4), Change::Seed, with(&trained)),
        (
            "/device/model",
            json!("another"),
            Change::DeviceModel,
            with(&hardware),
        ),
        (
            "/device/threads",
            json!(1),
            Change::Threads,
            with(&hardware),
        ),
        (
            "/workload/input_pipeline",
            json!({"threads": 1}),
            Change::InputPipeline,
            with(&hardware),
        ),
        (
            "/workload/target/value",
            json!(0.19),
            Change::Target,
            vec![Training],
        ),
        (
            "/device/memory_budget_bytes",
            json!(1_u64 << 31),
            Change::MemoryBudget,
            vec![],
        ),
        // A smoke probe does not tell how much it took.
        (
            "/device/memory_budget_bytes",
            json!(1 << 29),
            Change::MemoryBudget,
            with(&[]),
        ),
        (
            "/costs",
            json!({"device_hour": 2.5, "planned_runs": 200}),
            Change::Prices,
            vec![],
        ),
        (
            "/objective",
            json!("minimize_resource_consumption"),
            Change::Objective,
            vec![],
        ),
        (
            "/project_phase",
            json!("late"),
            Change::ProjectPhase,
            vec![],
        ),
        ("/budget/device_secs", json!(43200), Change::Budget, vec![]),
        ("/name", json!("another name"), Change::NameOrLabels, vec![]),
        (
            "/labels",
            json!({"team": "vision"}),
            Change::NameOrLabels,
            vec![],
        ),
        ("/priority", json!(5), Change::Priority, vec![]),
    ];
    for (pointer, value, change, expected) in rows {
        let mut changed = body();
        set(&mut changed, pointer, value);
        let after = definition(&changed);
        let kinds = staleness::kinds(&between(&before, &after));
        assert!(kinds.contains(&change), "{pointer}: {kinds:?}");
        let again = Run::of(&after, &first.evidence);
        let expected: BTreeSet<ProbeKind> = expected.into_iter().collect();
        assert_eq!(again.made(), expected, "{pointer} ({change:?})");
        // Of what was not made again, nothing is missing: all of it was taken over.
        for kind in ASKED {
            let all = again.evidence.of_kind(kind).count();
            let counted = |counts: &BTreeMap<ProbeKind, usize>| counts.get(&kind).copied();
            let reused = counted(&again.reused).unwrap_or(0);
            assert_eq!(
                all,
                reused + counted(&again.made).unwrap_or(0),
                "{pointer}: {kind:?}"
            );
            assert!(all > 0, "{pointer}: {kind:?}");
        }
        // The table in words says the same: what is repeated is stale, and what is not is not.
        for kind in ASKED.into_iter().filter(|kind| *kind != Smoke) {
            let is_stale = figures(kind)
                .iter()
                .any(|figure| kinds.iter().any(|change| change.invalidates(*figure)));
            let is_made = again.made.contains_key(&kind);
            assert!(
                is_stale || !is_made,
                "{pointer}: {kind:?} is made and not stale"
            );
            // What the noise is measured along follows the steps, which need not be others.
            if kind != NoiseScale {
                assert_eq!(is_stale, is_made, "{pointer}: {kind:?}");
            }
        }
    }
}

#[test]
fn another_program_measures_everything_itself() {
    let mut posted = body();
    posted["workload"]["model"] = json!({"family": "mlp", "hidden": [64]});
    let before = definition(&posted);
    let first = Run::of(&before, &Evidence::default());
    posted["runner"] = json!({"name": "pytorch", "version": "1"});
    let own = definition(&posted);
    assert_eq!(staleness::kinds(&between(&before, &own)), [Change::Program]);
    let made = Run::of(&own, &first.evidence);
    assert!(made.reused.is_empty(), "{:?}", made.reused);
    assert_eq!(made.made(), first.made());
    posted["runner"]["version"] = json!("2");
    let next = Run::of(&definition(&posted), &made.evidence);
    assert!(next.reused.is_empty(), "{:?}", next.reused);
}

fn set(body: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    body.pointer_mut(parent).expect("a place")[name] = value;
}

#[test]
fn another_device_keeps_the_steps_and_decides_anew() {
    let before = definition(&body());
    let first = Run::of(&before, &Evidence::default());
    let mut changed = body();
    set(&mut changed, "/device/model", json!("another"));
    let again = Run::of(&definition(&changed), &first.evidence);
    let (before, after) = (first.analysis.steps, again.analysis.steps);
    let steps = |it: &Option<analysis::StepsAnalysis>| -> Vec<(u64, Option<f64>)> {
        let points = &it.as_ref().expect("trained").points;
        points
            .iter()
            .map(|point| (point.batch_size.0, point.steps.map(|steps| steps.value)))
            .collect()
    };
    assert_eq!(steps(&before), steps(&after));
    assert_eq!(again.made.get(&Training), None);
    assert!(again.made[&StepTime] >= 9);
}

#[test]
fn grid_and_budget_change_what_is_measured_beside_and_nothing_that_was() {
    let first = Run::of(&definition(&body()), &Evidence::default());
    let mut changed = body();
    set(
        &mut changed,
        "/batch_sizes/grid",
        json!({"values": [4, 16, 64, 256, 1024]}),
    );
    let after = definition(&changed);
    let kinds = staleness::kinds(&between(&definition(&body()), &after));
    assert_eq!(kinds, [Change::Grid]);
    let stale = staleness::stale_topics(&kinds, true);
    assert_eq!(stale, [(Topic::BatchNorm, vec![Change::Grid])]);
    let again = Run::of(&after, &first.evidence);
    for kind in [Smoke, Memory, StepTime, LearningRateRange] {
        assert_eq!(again.made.get(&kind), None, "{kind:?}");
    }
}

/// Numbers to ten figures: a fit may add its points in another order.
fn rounded(value: &Value) -> Value {
    match value {
        Value::Number(number) => number
            .as_f64()
            .map_or(value.clone(), |number| json!(format!("{number:.9e}"))),
        Value::Array(items) => items.iter().map(rounded).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, member)| (name.clone(), rounded(member)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        _ => value.clone(),
    }
}

/// What is said to be kept is the same when the changed study is answered.
#[test]
fn row_29_44_45_advice_that_is_kept_is_given_again_in_the_same_words() {
    let mut asked = body();
    set(
        &mut asked,
        "/questions",
        json!([
            "feasible_batch_sizes",
            "throughput",
            "bottleneck",
            "batch_size",
            "critical_batch_size",
            "initial_configuration",
            "optimizer",
            "batch_norm"
        ]),
    );
    set(
        &mut asked,
        "/workload/model",
        json!({"family": "mlp", "hidden": [64]}),
    );
    let before = definition(&asked);
    let first = Run::of(&before, &Evidence::default());
    let advices = recommendation::recommend(&before, &first.evidence, &first.analysis);
    assert!(advices.len() > 10, "{}", advices.len());
    let rows = [
        ("/name", json!("another")),
        ("/costs", json!({"device_hour": 9.0})),
        ("/objective", json!("minimize_resource_consumption")),
        ("/project_phase", json!("late")),
        ("/budget/device_secs", json!(80_000)),
        ("/device/threads", json!(1)),
        ("/device/model", json!("another")),
        ("/device/memory_budget_bytes", json!(1_u64 << 31)),
        ("/batch_sizes/min", json!(8)),
        ("/batch_sizes/max", json!(512)),
        (
            "/batch_sizes/grid",
            json!({"values": [4, 16, 64, 256, 1024]}),
        ),
        ("/optimizer/learning_rate", json!(0.02)),
        ("/optimizer/momentum", json!(0.8)),
        ("/workload/target/value", json!(0.3)),
        ("/workload/input_pipeline", json!({"threads": 2})),
        ("/seed", json!(4)),
    ];
    for (pointer, value) in rows {
        let mut changed = asked.clone();
        set(&mut changed, pointer, value);
        let after = definition(&changed);
        let kinds = staleness::kinds(&between(&before, &after));
        let stale = staleness::stale_topics(&kinds, after.tunes());
        let again = Run::of(&after, &first.evidence);
        let answers = recommendation::recommend(&after, &again.evidence, &again.analysis);
        for advice in &advices {
            if stale.iter().any(|(topic, _)| *topic == advice.topic) {
                continue;
            }
            // What was measured stays true, and other batch sizes are listed beside it.
            let lists_sizes = matches!(
                advice.topic,
                Topic::FeasibleBatchSizes
                    | Topic::TrainingThroughput
                    | Topic::Bottleneck
                    | Topic::CriticalBatchSize
                    | Topic::BatchSize
                    | Topic::ResourceConsumption
                    | Topic::UpfrontCost
                    // It tells the cost of measuring all of them again.
                    | Topic::Retuning
            );
            if pointer.starts_with("/batch_sizes") && lists_sizes {
                continue;
            }
            let answer = answers.iter().find(|answer| answer.topic == advice.topic);
            let answer = answer.unwrap_or_else(|| panic!("{pointer}: no {:?}", advice.topic));
            assert_eq!(
                rounded(&answer.value),
                rounded(&advice.value),
                "{pointer}: {:?}",
                advice.topic
            );
        }
    }
}

#[test]
fn row_29_44_45_what_must_be_tuned_again_is_told_with_its_cost() {
    let definition = definition(&body());
    let run = Run::of(&definition, &Evidence::default());
    let advices = recommendation::recommend(&definition, &run.evidence, &run.analysis);
    let retuning = advices
        .iter()
        .find(|advice| advice.topic == Topic::Retuning)
        .expect("a measured batch size says what changing it takes");
    let rows = retuning.value["retuning"].as_array().expect("rows");
    let row = |change: &str| -> &Value {
        let mut rows = rows.iter();
        rows.find(|row| row["change"] == change)
            .unwrap_or_else(|| panic!("{change} in {rows:?}"))
    };
    let secs = |change: &str| row(change)["estimated_device_secs"].as_f64().expect("secs");
    let all: f64 = run.evidence.device_secs();
    assert!((secs("model") - all).abs() < 1e-9);
    assert_eq!(secs("prices"), 0.0);
    assert!(0.0 < secs("batch_size") && secs("batch_size") < secs("data_set"));
    assert!((secs("data_set") + secs("device_model") - all).abs() < 1e-9);
    let stale = |change: &str, figure: Figure| {
        let stale = row(change)["stale"].as_array().expect("a list");
        stale.contains(&json!(figure))
    };
    assert!(stale("batch_size", Figure::LearningRate));
    assert!(!stale("batch_size", Figure::Throughput));
    assert!(!stale("optimizer_family", Figure::LoaderTime));

    // With throughput alone nothing was tuned, so nothing is to be tuned again.
    let mut hardware = body();
    hardware["workload"]["target"] = Value::Null;
    hardware["questions"] = json!(["throughput", "batch_size"]);
    let hardware = self::definition(&hardware);
    let run = Run::of(&hardware, &Evidence::default());
    let advices = recommendation::recommend(&hardware, &run.evidence, &run.analysis);
    assert!(
        advices
            .iter()
            .any(|advice| advice.topic == Topic::BatchSize)
    );
    assert!(advices.iter().all(|advice| advice.topic != Topic::Retuning));
}

#[test]
fn the_budget_counts_what_earlier_revisions_paid() {
    let with_budget = |probes: u64| {
        let mut body = body();
        set(&mut body, "/budget/probes", json!(probes));
        body
    };
    let whole = Run::of(&definition(&with_budget(10_000)), &Evidence::default());
    let short = Run::of(&definition(&with_budget(60)), &Evidence::default());
    let count = |run: &Run| run.evidence.probes.len();
    assert!(short.made.contains_key(&StepTime));
    assert!(
        count(&short) < count(&whole),
        "the budget was to end it early"
    );

    // Another price buys nothing.
    let mut changed = with_budget(60);
    set(&mut changed, "/costs", json!({"device_hour": 2.5}));
    let again = Run::of(&definition(&changed), &short.evidence);
    assert_eq!(again.made(), BTreeSet::new());
    assert_eq!(count(&again), count(&short));

    // More money goes on where less had ended.
    let richer = Run::of(&definition(&with_budget(10_000)), &short.evidence);
    assert_eq!(count(&richer), count(&whole));
    assert!(2 * richer.reused.values().sum::<usize>() > count(&short));
}

//! Training probes: to a target, to a cap, to divergence; always the same bits.

use serde_json::json;
use trialhead::probe::{
    EVALUATION_RATIO, InfeasibleReason, Metric, Outcome, ProbeSpec, Task, TrainingRun,
};
use trialhead::study::{BatchSize, EvaluationMetric, EvaluationTarget, InputPipeline, Optimizer};

use crate::{Ended, assert_infeasible, run, spec};

/// Training of `max_steps` at most.
pub fn training(max_steps: u64, target: Option<(EvaluationMetric, f64)>) -> Task {
    let target = target.map(|(metric, value)| EvaluationTarget { metric, value });
    Task::Training(TrainingRun::new(max_steps, target, EVALUATION_RATIO))
}

/// The values of a metric along the run, with their steps.
pub fn curve(ended: &Ended, metric: Metric) -> Vec<(u64, f64)> {
    ended
        .measurements()
        .into_iter()
        .filter(|measurement| measurement.metric == metric.as_str())
        .map(|measurement| (measurement.step.expect("a step"), measurement.value))
        .collect()
}

const CROSS_ENTROPY: EvaluationMetric = EvaluationMetric::ValidationCrossEntropy;

#[test]
fn a_training_probe_ends_where_the_target_is_passed_and_stays_passed() {
    let ended = run(&spec(training(500, Some((CROSS_ENTROPY, 0.3)))));
    assert_eq!(ended.outcome(), Outcome::Succeeded, "{ended:?}");
    let losses = curve(&ended, Metric::ValidationCrossEntropy);
    assert_eq!(losses[0].0, 0);
    let steps = ended.one(Metric::StepsToTarget);
    let [.., before, first, second] = losses.as_slice() else {
        panic!("at least three evaluations");
    };
    assert!(before.1 > 0.3 && first.1 <= 0.3 && second.1 <= 0.3);
    assert!((before.0 as f64..=first.0 as f64).contains(&steps));
    assert_eq!(ended.one(Metric::Steps), second.0 as f64);
    for (accuracy, error) in curve(&ended, Metric::ValidationAccuracy)
        .iter()
        .zip(curve(&ended, Metric::ValidationErrorRate))
    {
        assert!((accuracy.1 + error.1 - 1.0).abs() < 1e-12);
    }
    let share = ended.one(Metric::EvaluationShare);
    assert!(share > 0.0 && share < 1.0, "{share}");
    assert!(curve(&ended, Metric::TrainingLoss).len() > 3);
}

#[test]
fn a_cap_ends_it_without_steps_to_a_target_and_divergence_is_a_result() {
    let ended = run(&spec(training(12, Some((CROSS_ENTROPY, 1e-9)))));
    assert_eq!(ended.outcome(), Outcome::Succeeded);
    assert_eq!(ended.one(Metric::Steps), 12.0);
    assert!(ended.all(Metric::StepsToTarget).is_empty());

    let mut wild = spec(training(500, Some((CROSS_ENTROPY, 0.3))));
    wild.optimizer = Optimizer::sgd(1e20);
    assert_infeasible(&run(&wild), InfeasibleReason::Diverged);
}

#[test]
fn a_training_probe_that_makes_no_sense_is_refused() {
    let mut spec = spec(training(10, None));
    spec.batch_size = BatchSize(1438);
    let said = format!("{:?}", run(&spec).events);
    assert!(
        said.contains("at most the number of training examples"),
        "{said}"
    );
    let mut spec = crate::spec(training(
        10,
        Some((EvaluationMetric::ValidationPerplexity, 2.0)),
    ));
    let said = format!("{:?}", run(&spec).events);
    assert!(said.contains("a metric that the task has"), "{said}");
    spec.task = Task::Smoke { steps: 1 };
    spec.workload.model = serde_json::from_value(json!({"family": "transformer_lm"})).expect("one");
    let said = format!("{:?}", run(&spec).events);
    assert!(said.contains("does not fit the data set"), "{said}");
}

/// Every figure of a run but what time took.
fn bits(spec: &ProbeSpec) -> Vec<(String, Option<u64>, u64)> {
    let ended = run(spec);
    assert_eq!(ended.outcome(), Outcome::Succeeded, "{ended:?}");
    ended
        .measurements()
        .into_iter()
        .filter(|measurement| {
            !matches!(
                Metric::parse(&measurement.metric),
                Some(Metric::EvaluationShare | Metric::LoadTimePerStep | Metric::LoadWaitPerStep)
            )
        })
        .map(|measurement| {
            (
                measurement.metric.clone(),
                measurement.step,
                measurement.value.to_bits(),
            )
        })
        .collect()
}

#[test]
fn the_same_seed_gives_the_same_bits_over_hundreds_of_steps_whatever_the_threads() {
    let mlp = {
        let mut spec = spec(training(400, None));
        spec.workload.model =
            serde_json::from_value(json!({"family": "mlp", "dropout": 0.3})).expect("a model");
        spec
    };
    let resnet = {
        let mut spec = spec(training(40, None));
        spec.workload.model = serde_json::from_value(json!({
            "family": "resnet", "normalization": {"kind": "ghost_batch", "batch_size": 16}
        }))
        .expect("a model");
        spec
    };
    for mut spec in [mlp, resnet] {
        let expected = bits(&spec);
        assert!(expected.len() > 100);
        for (threads, loaders) in [(2, 0), (1, 0), (2, 1), (1, 3)] {
            spec.device.threads = threads;
            spec.workload.input_pipeline = InputPipeline {
                threads: loaders,
                prefetch_batches: 4,
            };
            assert_eq!(
                bits(&spec),
                expected,
                "{threads} threads, {loaders} loading"
            );
        }
        spec.seed += 1;
        assert_ne!(bits(&spec), expected);
    }
}

#[test]
fn a_schedule_scales_the_learning_rate_and_clipping_limits_the_step() {
    let loss = |schedule: serde_json::Value, clipping: serde_json::Value| {
        let mut spec = spec(training(30, None));
        spec.optimizer = Optimizer::sgd(0.1);
        spec.schedule = serde_json::from_value(schedule).expect("a schedule");
        spec.gradient_clipping = serde_json::from_value(clipping).expect("clipping");
        run(&spec).one(Metric::LastLoss)
    };
    let none = || json!({"kind": "none"});
    let constant = loss(json!({"kind": "constant"}), none());
    // A fall that is over at once leaves nothing of the learning rate.
    let first = loss(
        json!({"kind": "linear", "decay_steps": 1, "warm_up_steps": 0, "final_factor": 0.0}),
        none(),
    );
    assert!(first > 1.5 * constant, "{first} against {constant}");
    assert_ne!(
        loss(json!({"kind": "cosine", "decay_steps": 30}), none()),
        constant
    );
    let tiny = loss(
        json!({"kind": "constant"}),
        json!({"kind": "global_norm", "max_norm": 1e-6}),
    );
    assert!(tiny > 1.5 * constant, "{tiny} against {constant}");
    let loose = loss(
        json!({"kind": "constant"}),
        json!({"kind": "global_norm", "max_norm": 1e6}),
    );
    assert_eq!(loose, constant);
}

#[test]
fn burn_says_that_it_trains_on_one_device() {
    let mut spec = spec(Task::Smoke { steps: 2 });
    spec.device.count = 2;
    let ended = run(&spec);
    assert_infeasible(&ended, InfeasibleReason::DeviceUnsupported);
    let said = format!("{:?}", ended.outcome());
    assert!(said.contains("device.count is 2"), "{said}");
}

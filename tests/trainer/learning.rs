//! That the networks learn, on data whose difficulty is known: short versions of real training.

use serde_json::{Value, json};
use trialhead::datasets::truth;
use trialhead::probe::{Metric, Outcome, ProbeSpec};
use trialhead::study::{BatchSize, Dataset, EvaluationMetric, Model, Optimizer, Workload};

use crate::training::{curve, training};
use crate::{run, spec};

const CROSS_ENTROPY: EvaluationMetric = EvaluationMetric::ValidationCrossEntropy;

fn dataset(posted: Value) -> Dataset {
    serde_json::from_value(posted).expect("a data set")
}

fn model(posted: Value) -> Model {
    serde_json::from_value(posted).expect("a model")
}

fn optimizer(posted: Value) -> Optimizer {
    serde_json::from_value(posted).expect("an optimizer")
}

/// Trains to a cap and returns the best value that a metric had.
fn best(spec: &ProbeSpec, metric: Metric, is_better: fn(f64, f64) -> bool) -> f64 {
    let ended = run(spec);
    assert_eq!(ended.outcome(), Outcome::Succeeded, "{ended:?}");
    let values = curve(&ended, metric).into_iter().map(|(_, value)| value);
    values
        .reduce(|best, value| if is_better(value, best) { value } else { best })
        .expect("was evaluated")
}

fn lowest(spec: &ProbeSpec, metric: Metric) -> f64 {
    best(spec, metric, |value, best| value < best)
}

fn highest(spec: &ProbeSpec, metric: Metric) -> f64 {
    best(spec, metric, |value, best| value > best)
}

fn on_digits(posted: Value, batch_size: u64, steps: u64, by: Value) -> ProbeSpec {
    let mut spec = spec(training(steps, None));
    spec.workload = Workload::new(Dataset::digits(), model(posted));
    spec.batch_size = BatchSize(batch_size);
    spec.optimizer = optimizer(by);
    spec
}

/// SGD on the 64-64-10 MLP, by the protocol of the reference: sixteen learning rates with a common seed,
/// the best three again with five fresh seeds, the smallest median.
#[test]
fn sgd_takes_the_known_number_of_steps_on_the_digits_at_batch_32() {
    const REFERENCE_STEPS: f64 = 39.0;
    let steps = |learning_rate: f64, seed: u64| {
        let mut spec = spec(training(400, Some((CROSS_ENTROPY, 0.20))));
        spec.optimizer = Optimizer::sgd(learning_rate);
        spec.batch_size = BatchSize(32);
        spec.seed = seed;
        run(&spec)
            .all(Metric::StepsToTarget)
            .first()
            .copied()
            .unwrap_or(f64::INFINITY)
    };
    // From 0.001 to 10, evenly in the logarithm.
    let mut screened: Vec<(f64, f64)> = (0..16)
        .map(|index| 10_f64.powf(-3.0 + 4.0 * (f64::from(index) + 0.5) / 16.0))
        .map(|rate| (rate, steps(rate, 1)))
        .collect();
    screened.sort_by(|a, b| a.1.total_cmp(&b.1));
    let best = screened[..3]
        .iter()
        .map(|(rate, _)| {
            let mut fresh: Vec<f64> = (101..106).map(|seed| steps(*rate, seed)).collect();
            fresh.sort_by(f64::total_cmp);
            fresh[2]
        })
        .fold(f64::INFINITY, f64::min);
    let ratio = best / REFERENCE_STEPS;
    assert!((0.8..=1.25).contains(&ratio), "{best} steps: {screened:?}");
}

#[test]
fn image_networks_learn_the_digits() {
    let resnet = on_digits(
        json!({"family": "resnet"}),
        32,
        60,
        json!({"family": "sgd_nesterov", "learning_rate": 0.05}),
    );
    let accuracy = highest(&resnet, Metric::ValidationAccuracy);
    assert!(accuracy > 0.93, "ResNet: {accuracy}");

    let cnn = on_digits(
        json!({"family": "cnn", "channels": [16, 32], "normalization": {"kind": "group", "groups": 4}}),
        32,
        150,
        json!({"family": "sgd_nesterov", "learning_rate": 0.1}),
    );
    let accuracy = highest(&cnn, Metric::ValidationAccuracy);
    assert!(accuracy > 0.92, "CNN: {accuracy}");

    let vit = on_digits(
        json!({"family": "transformer_encoder", "width": 32, "heads": 4}),
        32,
        300,
        json!({"family": "adamw", "learning_rate": 0.003}),
    );
    let accuracy = highest(&vit, Metric::ValidationAccuracy);
    assert!(accuracy > 0.92, "ViT: {accuracy}");

    let gru = on_digits(
        json!({"family": "rnn", "cell": "gru", "units": 48}),
        32,
        150,
        json!({"family": "adam", "learning_rate": 0.01}),
    );
    let accuracy = highest(&gru, Metric::ValidationAccuracy);
    assert!(accuracy > 0.95, "GRU: {accuracy}");
}

#[test]
fn a_network_of_ones_own_learns_the_digits_with_smoothed_labels() {
    let mut spec = on_digits(
        json!({"family": "sequential", "layers": [
            {"layer": "conv2d", "channels": 16},
            {"layer": "norm", "normalization": {"kind": "batch"}},
            {"layer": "activation", "function": "relu"},
            {"layer": "residual", "layers": [
                {"layer": "conv2d", "channels": 16},
                {"layer": "activation", "function": "relu"},
                {"layer": "conv2d", "channels": 16}
            ]},
            {"layer": "max_pool2d"},
            {"layer": "flatten"},
            {"layer": "dropout", "probability": 0.2},
            {"layer": "output"}
        ]}),
        32,
        60,
        json!({"family": "adam", "learning_rate": 0.003}),
    );
    spec.workload.label_smoothing = 0.1;
    spec.workload.validation_examples = Some(200);
    let accuracy = highest(&spec, Metric::ValidationAccuracy);
    assert!(accuracy > 0.93, "{accuracy}");
}

#[test]
fn bfloat16_learns_the_digits_too() {
    let mut spec = on_digits(
        json!({"family": "mlp"}),
        32,
        150,
        json!({"family": "sgd", "learning_rate": 0.2}),
    );
    let single = lowest(&spec, Metric::ValidationCrossEntropy);
    spec.workload.dtype = serde_json::from_value(json!("bfloat16")).expect("a type");
    let half = lowest(&spec, Metric::ValidationCrossEntropy);
    assert!(half < 0.3, "{half}");
    assert_ne!(half, single, "it is another arithmetic");
}

#[test]
fn language_models_come_within_a_tenth_of_the_entropy_rate() {
    let text = || {
        dataset(json!({
            "builtin": "markov_text", "examples": 1500, "sequence_length": 24, "vocabulary": 10, "order": 2
        }))
    };
    let rate = truth(&text()).expect("computes").expect("is known").loss;
    for (posted, by, steps) in [
        (
            json!({"family": "transformer_lm", "width": 48, "heads": 4, "depth": 2}),
            json!({"family": "adamw", "learning_rate": 0.005}),
            400,
        ),
        (
            json!({"family": "rnn", "cell": "lstm", "units": 64, "embedding": 32}),
            json!({"family": "adam", "learning_rate": 0.02}),
            300,
        ),
    ] {
        let mut spec = spec(training(steps, None));
        spec.workload = Workload::new(text(), model(posted));
        spec.workload.validation_examples = Some(100);
        spec.batch_size = BatchSize(32);
        spec.optimizer = optimizer(by);
        let loss = lowest(&spec, Metric::ValidationCrossEntropy);
        let family = spec.workload.model.family();
        assert!(
            loss < 1.1 * rate,
            "{family}: {loss} nats, entropy rate {rate}"
        );
        // A fifth of a nat below it would be a leak of the next token.
        assert!(
            loss > 0.9 * rate,
            "{family}: {loss} nats, entropy rate {rate}"
        );
    }
}

#[test]
fn generated_data_is_as_hard_as_its_truth_says() {
    let teacher = dataset(json!({
        "builtin": "linear_teacher", "examples": 4000, "features": 8, "outputs": 2, "noise_deviation": 0.5
    }));
    let mut spec = spec(training(150, None));
    spec.workload = Workload::new(teacher, model(json!({"family": "mlp", "hidden": []})));
    spec.optimizer = Optimizer::sgd(0.1);
    spec.batch_size = BatchSize(128);
    let error = lowest(&spec, Metric::ValidationMeanSquaredError);
    // 2000 values: a standard error of 0.25·√(2/2000).
    assert!((0.22..0.29).contains(&error), "{error}");
    assert_eq!(run(&spec).one(Metric::IrreducibleLoss), 0.25);

    let clusters = dataset(json!({
        "builtin": "synthetic", "examples": 8000, "features": 6, "classes": 2, "seed": 2
    }));
    let known = truth(&clusters).expect("computes").expect("is known");
    let (bayes, _) = known.error_rate.expect("classes");
    spec.workload = Workload::new(clusters, model(json!({"family": "mlp", "hidden": []})));
    let ended = run(&spec);
    let last = |metric| curve(&ended, metric).last().expect("was evaluated").1;
    let error = last(Metric::ValidationErrorRate);
    let spread = (bayes * (1.0 - bayes) / 2000.0).sqrt();
    assert!(
        (error - bayes).abs() < 5.0 * spread + 0.01,
        "error {error}, Bayes {bayes}"
    );
    assert!(last(Metric::ValidationAuc) > 1.0 - 2.0 * bayes - 0.02);
}

/// SGD on the noisy quadratic follows the recursion of the expected second moments, which no sampling enters.
#[test]
fn sgd_on_the_noisy_quadratic_follows_the_exact_recursion() {
    const DIMENSIONS: u32 = 100;
    const STEPS: u64 = 60;
    const BATCH_SIZE: f64 = 16.0;
    let learning_rate = 0.4;
    let mut spec = spec(training(STEPS, None));
    spec.workload = Workload::new(
        dataset(json!({"builtin": "noisy_quadratic", "examples": 8000, "dimensions": DIMENSIONS})),
        model(json!({"family": "sequential", "layers": [{"layer": "scale"}]})),
    );
    spec.optimizer = Optimizer::sgd(learning_rate);
    spec.batch_size = BatchSize(BATCH_SIZE as u64);
    let ended = run(&spec);
    assert_eq!(
        ended.one(Metric::IrreducibleLoss),
        f64::from(DIMENSIONS) / 2.0
    );
    let losses = curve(&ended, Metric::ValidationMeanSquaredError);
    let expected_excess = |steps: u64| -> f64 {
        (1..=DIMENSIONS)
            .map(|index| {
                let h = 1.0 / f64::from(index);
                let square = (0..steps).fold(1.0, |square, _| {
                    (1.0 - learning_rate * h).powi(2) * square
                        + learning_rate.powi(2) * h / BATCH_SIZE
                });
                0.5 * h * square
            })
            .sum()
    };
    // Differences from the first evaluation: the noise of the validation targets falls out of them.
    let (start, first) = losses[0];
    assert_eq!(start, 0);
    let scale = expected_excess(0);
    for (step, loss) in losses.iter().filter(|(step, _)| [5, 20, 60].contains(step)) {
        let fallen = first - loss;
        let expected = scale - expected_excess(*step);
        assert!(
            (fallen - expected).abs() < 0.1 * scale,
            "step {step}: fallen by {fallen}, expected {expected}, from {scale}"
        );
    }
    assert!(losses.iter().any(|(step, _)| *step == 60));
}

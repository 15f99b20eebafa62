//! PyTorch on the CPU: the example's module keeps the contract, and a study of its digits is answered.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::sync::watch;
use trialhead::pool::child::{self, ChildConfig, Spawner};
use trialhead::probe::{InfeasibleReason, Outcome, ProbeKind, examples};
use trialhead::study::{BatchSize, Bytes};

use crate::conformance::{check, verdicts};
use crate::python;
use crate::service::TestService;

#[test]
fn the_pytorch_example_keeps_the_contract() {
    let Some(command) = python::digits("the_pytorch_example_keeps_the_contract") else {
        return;
    };
    let (code, findings) = check(&command, &[]);
    assert_eq!(code, Some(0), "{findings:#}");
    for (kind, verdict) in verdicts(&findings) {
        let expected = if kind == "noise_scale" {
            "unsupported"
        } else {
            "ok"
        };
        assert_eq!(verdict, expected, "{kind}: {findings:#}");
    }
}

/// A service whose worker offers PyTorch.
async fn offering(command: String) -> TestService {
    TestService::start(|settings| {
        settings.pool.runners.insert("pytorch".into(), command);
    })
    .await
}

/// The advice on a topic.
fn about(answers: &Value, topic: &str) -> Value {
    let mut items = answers["items"].as_array().expect("a list").iter();
    let found = items.find(|it| it["topic"] == topic);
    found
        .unwrap_or_else(|| panic!("no {topic} in {answers}"))
        .clone()
}

#[tokio::test]
async fn a_study_with_pytorch_is_answered() {
    let Some(command) = python::digits("a_study_with_pytorch_is_answered") else {
        return;
    };
    let service = offering(command).await;
    let path = service
        .create(&json!({
            "workload": {
                "dataset": {"builtin": "digits"},
                "model": {"family": "mlp", "hidden": [32]},
                "target": {"metric": "validation_cross_entropy", "value": 0.3}
            },
            "runner": {"name": "pytorch", "version": "1", "options": {"max_sampling_secs": 3}},
            "optimizer": {"family": "sgd_momentum"},
            "batch_sizes": {"min": 16, "max": 128, "grid": {"values": [16, 128]}},
            "device": {"memory_budget_bytes": 1_073_741_824_u64, "threads": 1},
            "search": {"hyperparameters": ["learning_rate"]},
            "questions": ["feasible_batch_sizes", "throughput", "batch_size"],
            "budget": {"device_secs": 900, "probes": 500},
            "seed": 11
        }))
        .await;
    let study = service.ended(&path).await;
    assert_eq!(study["state"], "succeeded", "{study}");
    assert_eq!(study["ended_because"], "answered", "{study}");
    let answers = service.get(&format!("{path}/recommendations")).await.json();
    let topic = |name: &str| about(&answers, name);
    let feasible = topic("feasible_batch_sizes");
    assert_eq!(feasible["value"]["largest_feasible_batch_size"], 128);
    assert_eq!(feasible["value"]["confirmed"], true, "{feasible}");
    let throughput = topic("training_throughput");
    assert_eq!(throughput["basis"], "measured");
    let batch_size = topic("batch_size");
    assert_eq!(batch_size["basis"], "measured", "{batch_size}");
    let chosen = batch_size["value"]["batch_size"].as_u64();
    assert!(
        chosen.is_some_and(|it| [16, 128].contains(&it)),
        "{batch_size}"
    );
}

/// Runs the example without a worker; gives the figures of the whole probe.
fn figures(command: &str, spec: &Value) -> Value {
    let words = shlex::split(command).expect("a command");
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .env_remove("TRIALHEAD_EVENTS_FD")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin
        .write_all(spec.to_string().as_bytes())
        .expect("writes");
    drop(stdin);
    let ended = child.wait_with_output().expect("ends");
    let text = String::from_utf8(ended.stdout).expect("text");
    let mut figures = json!({});
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("an event");
        if let Some(metric) = event["metric"].as_str()
            && event.get("step").is_none()
        {
            figures[metric] = event["value"].clone();
        }
        figures["last"] = event;
    }
    figures
}

#[test]
fn several_devices_train_like_one() {
    let Some(command) = python::digits("several_devices_train_like_one") else {
        return;
    };
    let mut spec = serde_json::to_value(examples::on_digits(ProbeKind::Training)).expect("JSON");
    let alone = figures(&command, &spec);
    spec["device"]["count"] = json!(2);
    let together = figures(&command, &spec);
    assert_eq!(together["last"]["event"], "finished", "{together}");
    let steps = |of: &Value| of["steps_to_target"].as_f64().expect("reached");
    // But for the order in which gradients are added up.
    let ratio = steps(&together) / steps(&alone);
    assert!((ratio - 1.0).abs() < 0.01, "{alone} {together}");
    // A batch that cannot be shared out is no crash.
    spec["batch_size"] = json!(33);
    let uneven = figures(&command, &spec);
    assert_eq!(uneven["last"]["reason"], "runner_unsupported", "{uneven}");
}

/// Two processes over gloo, beside one with the whole batch and one with its share.
#[tokio::test]
async fn a_study_of_two_devices_with_pytorch_is_answered() {
    let Some(command) = python::digits("a_study_of_two_devices_with_pytorch_is_answered") else {
        return;
    };
    let service = offering(command).await;
    let path = service
        .create(&json!({
            "workload": {
                "dataset": {"builtin": "digits"},
                "model": {"family": "mlp", "hidden": [256]}
            },
            "runner": {"name": "pytorch", "version": "1", "options": {"max_sampling_secs": 0.5}},
            "batch_sizes": {"min": 512, "max": 512},
            "device": {"count": 2, "memory_budget_bytes": 1_073_741_824_u64, "threads": 1},
            "questions": ["throughput", "bottleneck"],
            "budget": {"device_secs": 3000, "probes": 500},
            "seed": 11
        }))
        .await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    // The parts of a step are timed on one device only, and the study says so.
    let detail = study["ended_detail"].as_str().expect("why");
    assert!(detail.contains("input_pipeline"), "{detail}");
    let answers = service.get(&format!("{path}/recommendations")).await.json();
    let topic = |name: &str| about(&answers, name);
    let bottleneck = topic("bottleneck");
    let communication = bottleneck["value"]["communication"]
        .as_array()
        .expect("a list");
    assert_eq!(communication.len(), 1, "{bottleneck}");
    for point in communication {
        let secs = |name: &str| point[name].as_f64().expect("a time");
        let share = point["share"]["value"].as_f64().expect("a share");
        let told = 1.0 - secs("alone_secs") / secs("together_secs");
        assert!((share - told).abs() < 1e-9, "{point}");
    }
    let throughput = topic("training_throughput");
    let by_count = throughput["value"]["by_device_count"]
        .as_array()
        .expect("a list");
    for (size, devices) in [(512, 2), (512, 1), (256, 1)] {
        let found = by_count
            .iter()
            .find(|it| it["batch_size"] == size && it["devices"] == devices);
        assert!(found.is_some(), "{size} on {devices}: {throughput}");
    }
}

#[tokio::test]
async fn the_peak_that_pytorch_tells_is_what_the_memory_limit_limits() {
    let test = "the_peak_that_pytorch_tells_is_what_the_memory_limit_limits";
    let Some(command) = python::digits(test) else {
        return;
    };
    let config = ChildConfig {
        runners: [("torch".into(), shlex::split(&command).expect("a command"))].into(),
        ..ChildConfig::default()
    };
    let spawner = Spawner::new().expect("a thread");
    let run = async |limit: u64| {
        let mut spec = examples::on_digits(ProbeKind::Memory);
        spec.runner.name = "torch".into();
        spec.batch_size = BatchSize(1 << 17);
        spec.limits.memory_bytes = Bytes(limit);
        let (_control, control) = watch::channel(None);
        let (progress, _told) = watch::channel(None);
        child::run(&spawner, &config, &spec, None, control, &progress).await
    };
    let free = run(4 << 30).await;
    assert_eq!(free.outcome, Outcome::Succeeded, "{}", free.stderr_tail);
    let peak = free
        .measurements
        .iter()
        .find(|it| it.metric == "peak_memory")
        .map(|it| it.value)
        .expect("a peak");
    // Peaks of Python scatter by a few percent from process to process.
    let above = run((peak * 1.15) as u64).await;
    assert_eq!(above.outcome, Outcome::Succeeded, "{}", above.stderr_tail);
    let below = run((peak * 0.8) as u64).await;
    assert!(
        matches!(
            below.outcome,
            Outcome::Infeasible {
                reason: InfeasibleReason::OutOfMemory,
                ..
            }
        ),
        "{:?}: {}",
        below.outcome,
        below.stderr_tail
    );
}

//! PyTorch on the CPU: the example's module keeps the contract, and a study of its digits is answered.

use serde_json::{Value, json};

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

#[tokio::test]
async fn a_study_with_pytorch_is_answered() {
    let Some(command) = python::digits("a_study_with_pytorch_is_answered") else {
        return;
    };
    let service = TestService::start(|settings| {
        settings.pool.runners.insert("pytorch".into(), command);
    })
    .await;
    let path = service
        .create(&json!({
            "workload": {
                "dataset": {"builtin": "digits"},
                "model": {"family": "mlp", "hidden": [32]},
                "target": {"metric": "validation_cross_entropy", "value": 0.3}
            },
            "runner": {"name": "pytorch", "version": "1"},
            "optimizer": {"family": "sgd_momentum"},
            "batch_sizes": {"min": 16, "max": 256, "grid": {"values": [16, 64, 256]}},
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
    let topic = |name: &str| -> Value {
        let mut items = answers["items"].as_array().expect("a list").iter();
        let found = items.find(|it| it["topic"] == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {answers}"))
            .clone()
    };
    let feasible = topic("feasible_batch_sizes");
    assert_eq!(feasible["value"]["largest_feasible_batch_size"], 256);
    assert_eq!(feasible["value"]["confirmed"], true, "{feasible}");
    let throughput = topic("training_throughput");
    assert_eq!(throughput["basis"], "measured");
    let batch_size = topic("batch_size");
    assert_eq!(batch_size["basis"], "measured", "{batch_size}");
    let chosen = batch_size["value"]["batch_size"].as_u64();
    assert!(
        chosen.is_some_and(|it| [16, 64, 256].contains(&it)),
        "{batch_size}"
    );
}

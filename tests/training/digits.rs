//! Digits with a target: steps at every batch size, against twelve independent runs of the protocol elsewhere.

use serde_json::{Value, json};

use super::service::TestService;

/// Batch size, steps with SGD.
const REFERENCE: [(u64, f64); 9] = [
    (4, 192.0),
    (8, 108.0),
    (16, 58.0),
    (32, 39.0),
    (64, 27.0),
    (128, 22.0),
    (256, 21.0),
    (512, 19.0),
    (1024, 20.0),
];

pub fn study(optimizer: &str, design: &str, seed: u64) -> Value {
    json!({
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": {"family": "mlp", "hidden": [64]},
            "target": {"metric": "validation_cross_entropy", "value": 0.20}
        },
        "optimizer": {"family": optimizer},
        "batch_sizes": {"min": 4, "max": 1024},
        "device": {"memory_budget_bytes": 2_147_483_648_u64},
        "questions": ["critical_batch_size"],
        "design": design,
        "seed": seed
    })
}

#[tokio::test]
async fn the_steps_at_every_batch_size_are_those_that_others_found() {
    let service = TestService::training().await;
    let path = service.create(&study("sgd", "full", 7)).await;
    let ended = service.ended(&path).await;
    assert_eq!(ended["ended_because"], "answered", "{ended}");
    let analysis = service.get(&format!("{path}/analysis")).await.json();
    let steps = &analysis["analysis"]["steps"];
    let mut ratios = Vec::new();
    for (batch_size, reference) in REFERENCE {
        let points = steps["points"].as_array().expect("points");
        let point = points.iter().find(|it| it["batch_size"] == batch_size);
        let found = point.expect("searched")["steps"]["value"].as_f64();
        ratios.push(found.expect("reached") / reference);
    }
    let within = |factor: f64| {
        ratios
            .iter()
            .filter(|ratio| (1.0 / factor..=factor).contains(*ratio))
            .count()
    };
    assert!(within(1.25) >= 7 && within(1.5) == 9, "{ratios:?}");
    let critical = steps["limits"]["critical_batch_size"]["value"]
        .as_f64()
        .expect("identified");
    assert!((39.0 / 1.5..=39.0 * 1.5).contains(&critical), "{critical}");
    let noise_scale = steps["gradient_noise_scale"].as_f64().expect("measured");
    let ratio = noise_scale / critical;
    assert!(
        (1.0 / 3.0..=3.0).contains(&ratio),
        "{noise_scale} for {critical}"
    );
}

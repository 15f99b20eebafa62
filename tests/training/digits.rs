//! Digits with a target: steps at every batch size, against twelve independent runs of the protocol elsewhere.

use serde_json::{Value, json};

use super::service::TestService;

/// Batch size, steps with SGD, steps with Nesterov momentum.
const REFERENCE: [(u64, f64, f64); 9] = [
    (4, 192.0, 183.0),
    (8, 108.0, 96.0),
    (16, 58.0, 48.0),
    (32, 39.0, 28.0),
    (64, 27.0, 18.0),
    (128, 22.0, 12.6),
    (256, 21.0, 10.6),
    (512, 19.0, 11.8),
    (1024, 20.0, 9.5),
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

/// Trains at all nine batch sizes and holds the steps against a column of the reference: seven within 1.25, all
/// within `widest`, the critical batch size within 1.5. Gives the analysis of steps.
async fn check(
    optimizer: &str,
    column: fn(&(u64, f64, f64)) -> f64,
    widest: f64,
    expected_critical: f64,
) -> Value {
    let service = TestService::training().await;
    let path = service.create(&study(optimizer, "full", 7)).await;
    let ended = service.ended(&path).await;
    assert_eq!(ended["ended_because"], "answered", "{ended}");
    let analysis = service.get(&format!("{path}/analysis")).await.json();
    let steps = analysis["analysis"]["steps"].clone();
    let mut ratios = Vec::new();
    for row in &REFERENCE {
        let points = steps["points"].as_array().expect("points");
        let point = points.iter().find(|it| it["batch_size"] == row.0);
        let found = point.expect("searched")["steps"]["value"].as_f64();
        ratios.push(found.expect("reached") / column(row));
    }
    let within = |factor: f64| {
        ratios
            .iter()
            .filter(|ratio| (1.0 / factor..=factor).contains(*ratio))
            .count()
    };
    println!("{optimizer}: {ratios:.2?} of the reference");
    assert!(within(1.25) >= 7 && within(widest) == 9, "{ratios:?}");
    let critical = steps["limits"]["critical_batch_size"]["value"]
        .as_f64()
        .expect("identified");
    let factor = critical / expected_critical;
    assert!((1.0 / 1.5..=1.5).contains(&factor), "{critical}");
    steps
}

#[tokio::test]
async fn the_steps_at_every_batch_size_are_those_that_others_found() {
    let steps = check("sgd", |row| row.1, 1.5, 39.0).await;
    let critical = steps["limits"]["critical_batch_size"]["value"]
        .as_f64()
        .expect("identified");
    let noise_scale = steps["gradient_noise_scale"].as_f64().expect("measured");
    let ratio = noise_scale / critical;
    assert!(
        (1.0 / 3.0..=3.0).contains(&ratio),
        "{noise_scale} for {critical}"
    );
}

#[tokio::test]
async fn with_nesterov_momentum_they_are_too() {
    check("sgd_nesterov", |row| row.2, 1.6, 72.5).await;
}

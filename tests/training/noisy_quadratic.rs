//! The noisy quadratic model (Zhang et al. 2019): every number has a truth. The reference is the exact recursion
//! with the learning rate optimised, for momentum jointly with it; d = 1000, h = 1/i, θ₀ = 1, target 0.01.

use serde_json::{Value, json};

use super::service::TestService;

/// Batch size, steps with SGD, steps with heavy-ball momentum.
const REFERENCE: [(u64, f64, f64); 9] = [
    (1, 461_056.0, 461_056.0),
    (16, 29_040.0, 24_567.0),
    (128, 3_860.0, 3_073.0),
    (256, 2_106.0, 1_536.0),
    (512, 1_304.0, 769.0),
    (1024, 982.0, 386.0),
    (2048, 845.0, 197.0),
    (4096, 776.0, 107.0),
    (16384, 713.0, 59.0),
];

fn study(optimizer: &str, batch_sizes: &[u64], design: &str) -> Value {
    json!({
        "workload": {
            "dataset": {"builtin": "noisy_quadratic", "examples": 40_000},
            "model": {"family": "sequential", "layers": [{"layer": "scale"}]},
            "target": {"metric": "expected_excess_loss", "goal": "minimize", "value": 0.01}
        },
        "optimizer": {"family": optimizer},
        "batch_sizes": {
            "min": batch_sizes[0],
            "max": batch_sizes[batch_sizes.len() - 1],
            "grid": {"values": batch_sizes}
        },
        "device": {"memory_budget_bytes": 4_294_967_296_u64},
        "questions": ["critical_batch_size"],
        "design": design
    })
}

/// Runs a study and gives its analysis of steps and its advice.
async fn answered(service: &TestService, body: &Value) -> (Value, Value) {
    let path = service.create(body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let analysis = service.get(&format!("{path}/analysis")).await.json();
    let advice = service.get(&format!("{path}/recommendations")).await.json();
    let advice = advice["items"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|advice| advice["topic"] == "critical_batch_size")
        .expect("advice")
        .clone();
    (analysis["analysis"]["steps"].clone(), advice)
}

/// Every tested batch size within this of the reference.
fn check(steps: &Value, column: fn(&(u64, f64, f64)) -> f64, most: f64) {
    let points = steps["points"].as_array().expect("points");
    assert!(!points.is_empty(), "nothing was searched");
    for point in points {
        let batch_size = point["batch_size"].as_u64().expect("a size");
        let Some(reference) = REFERENCE.iter().find(|row| row.0 == batch_size) else {
            continue;
        };
        let found = point["steps"]["value"].as_f64().expect("measured");
        let off = found / column(reference) - 1.0;
        assert!(
            (-0.01..=most).contains(&off),
            "batch size {batch_size}: {found} instead of {} ({:+.1}%)",
            column(reference),
            off * 100.0
        );
    }
}

#[tokio::test]
async fn rows_30_to_36_sgd_needs_the_steps_that_it_needs_and_the_critical_batch_size_is_found() {
    let service = TestService::training().await;
    let batch_sizes: Vec<u64> = REFERENCE.iter().map(|row| row.0).collect();
    let (steps, advice) = answered(&service, &study("sgd", &batch_sizes, "full")).await;
    assert_eq!(steps["points"].as_array().expect("points").len(), 9);
    check(&steps, |row| row.1, 0.05);
    let critical = advice["value"]["critical_batch_size"]
        .as_f64()
        .expect("identified");
    assert!(
        (634.0 / 1.3..=634.0 * 1.3).contains(&critical),
        "{critical} instead of 634"
    );
    let regime = |batch_size: u64| {
        let regimes = advice["value"]["regimes"].as_array().expect("a list");
        let it = regimes.iter().find(|it| it["batch_size"] == batch_size);
        it.expect("listed")["regime"].clone()
    };
    assert_eq!(regime(1), "perfect_scaling");
    assert_eq!(regime(512), "diminishing_returns");
    assert_eq!(regime(16384), "no_gain");
}

#[tokio::test]
async fn rows_30_to_36_with_momentum_it_lies_beyond_what_was_tested() {
    let service = TestService::training().await;
    let batch_sizes = [16, 128, 256, 512, 1024];
    let (steps, advice) = answered(&service, &study("sgd_momentum", &batch_sizes, "full")).await;
    check(&steps, |row| row.2, 0.15);
    assert_eq!(advice["value"]["critical_batch_size"], Value::Null);
    assert_eq!(advice["value"]["why"], "beyond_the_tested_range");
    let at_least = advice["value"]["at_least"].as_f64().expect("a bound");
    assert!(at_least > 1024.0, "{at_least}");
}

#[tokio::test]
async fn rows_30_to_36_with_large_batches_alone_it_lies_below() {
    let service = TestService::training().await;
    let batch_sizes = [8192, 12288, 16384, 32768];
    let (_, advice) = answered(&service, &study("sgd", &batch_sizes, "full")).await;
    assert_eq!(advice["value"]["critical_batch_size"], Value::Null);
    assert_eq!(advice["value"]["why"], "below_the_tested_range");
    let at_most = advice["value"]["at_most"].as_f64().expect("a bound");
    assert!(at_most < 8192.0, "{at_most}");
}

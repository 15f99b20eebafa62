//! Does training end with the same quality at every batch size?

use serde_json::{Value, json};

use super::digits::study;
use super::service::TestService;

/// The digits with the question about quality.
fn asked(optimizer: Value, batch_sizes: &[u64]) -> Value {
    let mut body = study("sgd", "adaptive", 7);
    body["optimizer"] = optimizer;
    body["questions"] = json!(["quality_across_batch_sizes"]);
    body["quality"] = json!({ "batch_sizes": batch_sizes });
    body
}

async fn advice(service: &TestService, body: &Value) -> Value {
    let path = service.create(body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let advice = service.get(&format!("{path}/recommendations")).await.json();
    advice["items"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|it| it["topic"] == "quality_across_batch_sizes")
        .unwrap_or_else(|| panic!("no advice in {advice}"))
        .clone()
}

#[tokio::test]
async fn row_19_digits_end_with_the_same_quality_at_a_small_and_a_large_batch() {
    let service = TestService::training().await;
    let advice = advice(&service, &asked(json!({"family": "sgd"}), &[16, 512])).await;
    let value = &advice["value"];
    assert_eq!(
        value["quality_across_batch_sizes"], "equivalent",
        "{advice}"
    );
    assert_eq!(value["tuned"], json!(["learning_rate", "weight_decay"]));
    // 5% of what lies between chance, about ln 10, and 0.20.
    let margin = value["margin"].as_f64().expect("known");
    assert!(
        (margin - 0.05 * (10_f64.ln() - 0.2)).abs() < 0.002,
        "{margin}"
    );
    let points = value["by_batch_size"].as_array().expect("a list");
    assert_eq!(points.len(), 2);
    for point in points {
        let loss = point["loss"]["value"].as_f64().expect("measured");
        assert!(loss < 0.2, "training went on beyond the target: {point}");
        assert!(point["seeds"].as_u64() >= Some(5), "{point}");
        let decay = point["optimizer"]["weight_decay"].as_f64().expect("tuned");
        assert!(decay > 0.0, "{point}");
    }
    assert!(!advice["evidence"].as_array().expect("a list").is_empty());
}

#[tokio::test]
async fn without_any_regularisation_to_tune_there_is_no_verdict() {
    let service = TestService::training().await;
    let mut body = asked(json!({"family": "adam"}), &[32, 128]);
    body["workload"]["dataset"] =
        json!({"builtin": "synthetic", "examples": 512, "features": 8, "classes": 3});
    body["workload"]["model"]["hidden"] = json!([8]);
    body["workload"]["target"]["value"] = json!(0.7);
    body["batch_sizes"] = json!({"min": 16, "max": 256});
    let untuned = advice(&service, &body).await;
    assert_eq!(untuned["value"]["quality_across_batch_sizes"], Value::Null);
    assert_eq!(untuned["confidence"]["grade"], "low");
    assert_eq!(untuned["caveats"][0]["code"], "W_UNTUNED:regularisation");

    // The model's own dropout is something to tune.
    body["workload"]["model"]["dropout"] = json!(0.1);
    let tuned = advice(&service, &body).await;
    assert_eq!(tuned["value"]["tuned"], json!(["learning_rate", "dropout"]));
    assert_ne!(tuned["value"]["quality_across_batch_sizes"], Value::Null);
    let dropouts: Vec<f64> = tuned["value"]["by_batch_size"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|point| point["regularisation"]["dropout"].as_f64())
        .collect();
    assert_eq!(dropouts.len(), 2, "{tuned}");
    assert!(
        dropouts.iter().any(|dropout| *dropout != 0.1),
        "{dropouts:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_with_its_place() {
    let service = TestService::without_workers().await;
    let refused = |body: Value, pointer: &'static str| {
        let service = &service;
        async move {
            let answer = service.post("/v1/studies", &body).await;
            let problem = answer.problem(422, "invalid_study");
            let errors = problem["errors"].as_array().expect("a list");
            let is_there = errors.iter().any(|error| error["pointer"] == pointer);
            assert!(is_there, "{problem}");
        }
    };
    let sgd = || json!({"family": "sgd"});
    refused(asked(sgd(), &[16]), "/quality/batch_sizes").await;
    refused(asked(sgd(), &[16, 16]), "/quality/batch_sizes/1").await;
    refused(asked(sgd(), &[16, 1438]), "/quality/batch_sizes/1").await;
    let mut body = asked(sgd(), &[16, 512]);
    body["quality"]["margin"] = json!(0.0);
    refused(body, "/quality/margin").await;
    let mut body = asked(sgd(), &[16, 512]);
    body["search"] = json!({"hyperparameters": ["learning_rate", "dropout"]});
    refused(body, "/search/hyperparameters/1").await;
}

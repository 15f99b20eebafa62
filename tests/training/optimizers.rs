//! Optimizers compared, and ghost batches tried, by real training through the API.

use serde_json::{Value, json};

use super::service::TestService;

fn study(change: &Value) -> Value {
    let mut body = json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 1024, "features": 8, "classes": 3},
            "model": {"family": "mlp", "hidden": [8]},
            "target": {"metric": "validation_cross_entropy", "value": 0.1}
        },
        "batch_sizes": {"min": 32, "max": 64},
        "device": {"memory_budget_bytes": 1_073_741_824_u64, "threads": 1},
        "questions": ["optimizer"],
        "seed": 5
    });
    for (name, value) in change.as_object().expect("changes") {
        body[name] = value.clone();
    }
    body
}

async fn advice(service: &TestService, body: &Value, topic: &str) -> (String, Value) {
    let path = service.create(body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let advice = service.get(&format!("{path}/recommendations")).await.json();
    let advice = advice["items"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|it| it["topic"] == topic)
        .unwrap_or_else(|| panic!("no advice in {advice}"))
        .clone();
    (path, advice)
}

#[tokio::test]
async fn candidates_are_tuned_alike_and_compared_by_seeds_of_their_own() {
    let service = TestService::training().await;
    let body = study(&json!({
        "optimizers": {"candidates": [{"family": "sgd"}, {"family": "adam"}, {"family": "adam"}]}
    }));
    let (path, advice) = advice(&service, &body, "optimizer").await;
    let value = &advice["value"];
    assert_ne!(value["verdict"], Value::Null, "{advice}");
    assert_eq!(value["compared_by"], "steps_to_target");
    assert_eq!(value["batch_size"], 64);
    let candidates = value["candidates"].as_array().expect("a list");
    for candidate in candidates {
        assert_eq!(candidate["state"], "measured", "{candidate}");
        assert_eq!(candidate["seeds"], 10, "{candidate}");
        assert_eq!(candidate["lost"], 0);
        let rate = candidate["optimizer"]["learning_rate"].as_f64();
        assert_ne!(rate, candidate["named"]["learning_rate"].as_f64(), "tuned");
        let stages = candidate["stages"].as_array().expect("a list");
        assert_eq!(stages[0]["hyperparameters"], json!(["learning_rate"]));
        assert!(stages.len() >= 2, "an offer was made: {candidate}");
    }
    assert_eq!(candidates[2]["identical_to"], 1);
    let pairs = value["pairs"].as_array().expect("a list");
    let p = pairs
        .iter()
        .filter_map(|pair| pair["p_first_better"].as_f64())
        .collect::<Vec<f64>>();
    assert_eq!(p.len(), 1, "one pair is tested: {pairs:?}");
    assert!((0.0..=1.0).contains(&p[0]));
    let listed = value["hyperparameters"].as_array().expect("a list");
    assert!(
        listed.iter().any(|it| it["status"] == "tuned"),
        "{listed:?}"
    );
    assert!(advice["evidence"].as_array().expect("a list").len() > 60);

    let report = service.get(&format!("{path}/report")).await.text;
    assert!(
        report.contains("## Optimizers at batch size 64"),
        "{report}"
    );
    assert!(report.contains("identical to candidate 2"), "{report}");
    let probes = service
        .get(&format!("{path}/probes?page_size=500"))
        .await
        .json();
    let seeds = |candidate: u64| -> Vec<u64> {
        let items = probes["items"].as_array().expect("a list").iter();
        items
            .filter(|it| it["probe"]["kind"] == "training")
            .filter(|it| {
                it["probe"]["spec"]["replicate"]
                    .as_u64()
                    .map(|it| it / 10_000)
                    == Some(candidate)
            })
            .filter_map(|it| it["probe"]["spec"]["seed"].as_u64())
            .collect()
    };
    let (first, second) = (seeds(1), seeds(2));
    assert!(!first.is_empty() && !second.is_empty());
    assert!(
        first.iter().all(|seed| !second.contains(seed)),
        "no seed is shared"
    );
    println!("{}", advice["summary"]);
}

#[tokio::test]
async fn row_7_two_names_for_one_optimizer_are_identical_and_nothing_is_trained() {
    let service = TestService::training().await;
    let body = study(&json!({
        "optimizers": {"candidates": [
            {"family": "sgd_nesterov", "momentum": 0.0}, {"family": "sgd", "learning_rate": 0.5}
        ]}
    }));
    let (path, advice) = advice(&service, &body, "optimizer").await;
    assert_eq!(advice["value"]["verdict"], "identical", "{advice}");
    assert_eq!(advice["value"]["optimizer"]["family"], "sgd_nesterov");
    let probes = service
        .get(&format!("{path}/probes?page_size=500"))
        .await
        .json();
    let trained = probes["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|it| it["probe"]["kind"] == "training")
        .count();
    assert_eq!(trained, 0, "{probes}");
}

#[tokio::test]
async fn row_46_ghost_batches_are_trained_with_and_compared() {
    let service = TestService::training().await;
    let mut body = study(&json!({
        "questions": ["batch_norm"],
        "batch_norm": {"probe": true, "batch_size": 64}
    }));
    body["workload"]["model"]["normalization"] = json!({"kind": "batch"});
    let (path, advice) = advice(&service, &body, "batch_norm").await;
    let value = &advice["value"];
    assert_eq!(advice["basis"], "measured", "{advice}");
    let points = value["probe"]["points"].as_array().expect("a list");
    let sizes: Vec<u64> = points
        .iter()
        .filter_map(|point| point["ghost_batch_size"].as_u64())
        .collect();
    assert_eq!(sizes, [16, 64]);
    for point in points {
        assert_eq!(point["seeds"], 5, "{point}");
        assert!(point["loss"]["value"].as_f64() > Some(0.0), "{point}");
    }
    let size = value["ghost_batch_size"].as_u64().expect("one");
    assert_eq!(
        value["batch_norm"],
        json!({"kind": "ghost_batch", "batch_size": size})
    );
    let report = service.get(&format!("{path}/report")).await.text;
    assert!(
        report.contains("## Ghost batches at batch size 64"),
        "{report}"
    );
    println!("{}", advice["summary"]);
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_with_its_place() {
    let service = TestService::without_workers().await;
    let refused = |change: Value, pointer: &'static str| {
        let service = &service;
        async move {
            let answer = service.post("/v1/studies", &study(&change)).await;
            let problem = answer.problem(422, "invalid_study");
            let errors = problem["errors"].as_array().expect("a list");
            let is_there = errors.iter().any(|error| error["pointer"] == pointer);
            assert!(is_there, "{problem}");
        }
    };
    let two = || json!([{"family": "sgd"}, {"family": "adam"}]);
    refused(
        json!({"optimizers": {"candidates": [{"family": "sgd"}]}}),
        "/optimizers/candidates",
    )
    .await;
    refused(
        json!({"optimizers": {"candidates": two()}, "questions": ["throughput"]}),
        "/optimizers/candidates",
    )
    .await;
    refused(
        json!({"optimizers": {"candidates": [{"family": "sgd"}, {"family": "adam", "beta_1": 1.0}]}}),
        "/optimizers/candidates/1/beta_1",
    )
    .await;
    refused(
        json!({"optimizers": {"candidates": two(), "hyperparameters": ["learning_rate", "momentum"]}}),
        "/optimizers/hyperparameters/1",
    )
    .await;
    refused(
        json!({"optimizers": {"hyperparameters": ["learning_rate"]}}),
        "/optimizers/hyperparameters",
    )
    .await;
    refused(
        json!({"batch_norm": {"probe": true, "batch_size": 8}, "questions": ["batch_norm"]}),
        "/batch_norm/batch_size",
    )
    .await;
    refused(
        json!({"batch_norm": {"probe": true}, "questions": ["optimizer"]}),
        "/batch_norm/probe",
    )
    .await;
    refused(
        json!({"search": {"hyperparameters": ["learning_rate", "batch_size"]}}),
        "/search/hyperparameters/1",
    )
    .await;
}

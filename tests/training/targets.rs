//! Targets that cannot be reached, that are reached at once, that do not fit: each has its answer.

use serde_json::{Value, json};

use super::service::TestService;

fn study(change: &Value) -> Value {
    let mut body = json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 512, "features": 8, "classes": 3},
            "model": {"family": "mlp", "hidden": [8]},
            "target": {"metric": "validation_cross_entropy", "value": 0.7}
        },
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": 16, "max": 64},
        "device": {"memory_budget_bytes": 1_073_741_824_u64, "threads": 1},
        "questions": ["critical_batch_size"]
    });
    for (pointer, value) in change.as_object().expect("changes") {
        *body.pointer_mut(pointer).expect("a place") = value.clone();
    }
    body
}

async fn advice(service: &TestService, path: &str, topic: &str) -> Value {
    let advice = service.get(&format!("{path}/recommendations")).await.json();
    let mut items = advice["items"].as_array().expect("a list").iter();
    items
        .find(|it| it["topic"] == topic)
        .unwrap_or_else(|| panic!("no {topic} in {advice}"))
        .clone()
}

fn codes(advice: &Value) -> Vec<&str> {
    let caveats = advice["caveats"].as_array().expect("a list");
    caveats
        .iter()
        .filter_map(|it| it["code"].as_str())
        .collect()
}

#[tokio::test]
async fn a_target_that_nothing_reaches_is_said_to_be_so() {
    let service = TestService::training().await;
    let path = service
        .create(&study(&json!({"/workload/target/value": 0.0})))
        .await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let advice = advice(&service, &path, "critical_batch_size").await;
    assert_eq!(advice["value"]["critical_batch_size"], Value::Null);
    assert_eq!(advice["value"]["why"], "not_identified");
    assert!(codes(&advice).contains(&"W_TARGET_NOT_REACHED"), "{advice}");
    assert_eq!(advice["confidence"]["grade"], "low");
}

#[tokio::test]
async fn a_target_that_is_passed_from_the_start_takes_one_step() {
    let service = TestService::training().await;
    let path = service
        .create(&study(&json!({"/workload/target/value": 50.0})))
        .await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let analysis = service.get(&format!("{path}/analysis")).await.json();
    let points = analysis["analysis"]["steps"]["points"]
        .as_array()
        .expect("points")
        .clone();
    assert!(!points.is_empty());
    for point in points {
        assert_eq!(point["steps"]["value"], 1.0, "{point}");
    }
}

#[tokio::test]
async fn without_a_target_a_pilot_sets_one() {
    let service = TestService::training().await;
    let mut body = study(&json!({}));
    body["workload"]
        .as_object_mut()
        .expect("an object")
        .remove("target");
    let path = service.create(&body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let advice = advice(&service, &path, "critical_batch_size").await;
    assert_eq!(advice["value"]["target_source"], "pilot", "{advice}");
    let target = advice["value"]["target"]["value"].as_f64().expect("one");
    // Three classes: chance is about ln 3.
    assert!(target > 0.0 && target < 1.1, "{target}");
}

#[tokio::test]
async fn a_target_that_the_task_does_not_have_is_refused() {
    let service = TestService::without_workers().await;
    let refused = |change: Value, pointer: &'static str| {
        let service = &service;
        async move {
            let answer = service.post("/v1/studies", &study(&change)).await;
            let problem = answer.problem(422, "invalid_study");
            let errors = problem["errors"].as_array().expect("a list").clone();
            assert!(
                errors.iter().any(|error| error["pointer"] == pointer),
                "{problem}"
            );
        }
    };
    for metric in [
        "validation_mean_squared_error",
        "validation_perplexity",
        "expected_excess_loss",
    ] {
        refused(
            json!({"/workload/target/metric": metric}),
            "/workload/target/metric",
        )
        .await;
    }
    refused(
        json!({"/workload/target": {"metric": "validation_accuracy", "value": 1.5}}),
        "/workload/target/value",
    )
    .await;
    refused(
        json!({"/workload/target": {"metric": "validation_accuracy", "goal": "minimize", "value": 0.5}}),
        "/workload/target/goal",
    )
    .await;
    refused(
        json!({"/workload": {
            "dataset": {"builtin": "digits"},
            "target": {"metric": "validation_cross_entropy", "value": -1.0}
        }}),
        "/workload/target/value",
    )
    .await;
}

#[tokio::test]
async fn when_the_budget_ends_in_the_middle_the_answer_so_far_is_given() {
    let service = TestService::training().await;
    let mut body = study(&json!({}));
    body["budget"] = json!({"device_secs": 600, "probes": 30});
    let path = service.create(&body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["state"], "succeeded", "{study}");
    assert_eq!(study["ended_because"], "budget_exhausted", "{study}");
    let advice = advice(&service, &path, "critical_batch_size").await;
    assert_eq!(advice["value"]["why"], "not_identified", "{advice}");
}

#[tokio::test]
async fn with_one_batch_size_only_there_is_no_curve_and_nothing_to_compare() {
    let service = TestService::training().await;
    let mut body = study(&json!({
        "/batch_sizes": {"min": 32, "max": 32},
        "/questions": ["critical_batch_size", "quality_across_batch_sizes"]
    }));
    body["optimizer"]["learning_rate"] = json!(0.1);
    let path = service.create(&body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let critical = advice(&service, &path, "critical_batch_size").await;
    assert_eq!(critical["value"]["critical_batch_size"], Value::Null);
    assert_eq!(critical["value"]["why"], "not_identified");
    let quality = advice(&service, &path, "quality_across_batch_sizes").await;
    assert!(
        codes(&quality).contains(&"W_TOO_FEW_BATCH_SIZES"),
        "{quality}"
    );
}

#[tokio::test]
async fn when_every_trial_diverges_that_is_the_answer() {
    let service = TestService::training().await;
    let mut body = study(&json!({}));
    // A loss of NaN or infinity is what divergence is.
    body["search"] = json!({"ranges": {"learning_rate": {"lower": 1e15, "upper": 1e18}}});
    let path = service.create(&body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    assert!(
        study["progress"]["probes"]["infeasible"].as_u64() > Some(0),
        "{study}"
    );
    let advice = advice(&service, &path, "critical_batch_size").await;
    assert_eq!(advice["value"]["why"], "not_identified", "{advice}");
    assert!(codes(&advice).contains(&"W_DIVERGED"), "{advice}");
}

/// Training probes of the current revision: (optimizer, batch size, seed, cap) and what they came to.
async fn trained(service: &TestService, path: &str) -> Vec<(String, Value)> {
    let mut trained = Vec::new();
    let mut next = format!("{path}/probes?kind=training&page_size=500");
    loop {
        let page = service.get(&next).await.json();
        for item in page["items"].as_array().expect("items") {
            let spec = &item["probe"]["spec"];
            let point = json!([
                spec["optimizer"],
                spec["batch_size"],
                spec["seed"],
                spec["task"]
            ]);
            trained.push((point.to_string(), item.clone()));
        }
        match page["next_page_token"].as_str() {
            Some(token) => {
                next = format!("{path}/probes?kind=training&page_size=500&page_token={token}");
            }
            None => return trained,
        }
    }
}

/// A probe's figures of the whole run, those of the clock left out.
async fn figures(service: &TestService, path: &str, probe: &Value) -> Value {
    let mut figures = serde_json::Map::new();
    let mut next = format!("{path}/measurements?page_size=500");
    loop {
        let page = service.get(&next).await.json();
        for item in page["items"].as_array().expect("items") {
            let is_clock = item["unit"] == "s" || item["metric"] == "evaluation_share";
            if item["probe_id"] == *probe && item["step"].is_null() && !is_clock {
                let metric = item["metric"].as_str().expect("a name");
                figures.insert(metric.to_owned(), item["value"].clone());
            }
        }
        match page["next_page_token"].as_str() {
            Some(token) => next = format!("{path}/measurements?page_size=500&page_token={token}"),
            None => return Value::Object(figures),
        }
    }
}

#[tokio::test]
async fn an_easier_target_is_read_from_the_runs_to_the_harder_one_as_if_it_had_been_trained_to() {
    let service = TestService::training().await;
    let harder = study(&json!({}));
    let path = service.create(&harder).await;
    service.ended(&path).await;
    let easier = study(&json!({"/workload/target/value": 0.8}));
    let at = format!("{path}/definition");
    let tag = service.get(&at).await;
    let tag = tag.header("etag").expect("an ETag").to_owned();
    let said = service
        .http
        .put(format!("{}{at}?dry_run=true", service.base));
    let said = super::service::Answer::of(said.json(&easier)).await.json();
    let request = service.http.put(format!("{}{at}", service.base));
    let request = request.header("if-match", tag).json(&easier);
    let answer = super::service::Answer::of(request).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let revised = service.ended(&path).await;
    assert_eq!(revised["ended_because"], "answered", "{revised}");

    let all = trained(&service, &path).await;
    let read: Vec<_> = all
        .iter()
        .filter(|(_, it)| !it["probe"]["read_from"].is_null())
        .collect();
    let made = all.iter().filter(|(_, it)| it["reused"] == false).count();
    println!(
        "{} of {} training probes read, {made} made; said before: {}",
        read.len(),
        all.len(),
        said["plan"]
    );
    assert!(
        2 * read.len() > all.len(),
        "{} of {}",
        read.len(),
        all.len()
    );
    assert!(read.iter().all(|(_, it)| it["reused"] == true));

    // The same study from nothing, in another project of its own: each run that both have has found the same.
    let mut alone = easier.clone();
    alone["reuse"] = json!(false);
    let fresh = service.create(&alone).await;
    service.ended(&fresh).await;
    let trained = trained(&service, &fresh).await;
    let mut compared = 0;
    for (point, it) in &read {
        let Some((_, other)) = trained.iter().find(|(other, _)| other == point) else {
            continue;
        };
        assert_eq!(it["probe"]["state"], other["probe"]["state"], "{point}");
        if compared < 12 && it["probe"]["state"] == "succeeded" {
            let (mut here, mut there) = (
                figures(&service, &path, &it["probe"]["id"]).await,
                figures(&service, &fresh, &other["probe"]["id"]).await,
            );
            // The loss of the last step's batch is no evaluation, so nothing tells it.
            for figures in [&mut here, &mut there] {
                figures
                    .as_object_mut()
                    .expect("figures")
                    .remove("last_loss");
            }
            if here["steps_to_target"].is_null() {
                // Stopped by a cap between two evaluations: the last one is not known.
                continue;
            }
            assert_eq!(here, there, "{point}");
            compared += 1;
        }
    }
    assert!(compared >= 5, "{compared} runs compared");
}

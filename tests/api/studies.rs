//! Creating, finding, listing, cancelling, deleting studies.

use serde_json::{Value, json};

use crate::service::{TestService, digits};

#[tokio::test]
async fn only_the_data_set_is_required_and_every_default_is_visible() {
    let service = TestService::without_workers().await;
    let path = service
        .create(&json!({"workload": {"dataset": {"builtin": "digits"}}}))
        .await;
    let definition = service.get(&format!("{path}/definition")).await.json();
    assert_eq!(definition["workload"]["model"]["family"], "mlp");
    assert_eq!(definition["workload"]["model"]["hidden"], json!([64]));
    assert_eq!(definition["workload"]["model"]["dropout"], json!(0.0));
    assert_eq!(definition["workload"]["loss"], "cross_entropy");
    assert_eq!(
        definition["optimizer"],
        json!({"family": "adam", "learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8,
               "epsilon_form": "bias_corrected"})
    );
    assert_eq!(definition["batch_sizes"]["min"], 1);
    assert_eq!(definition["batch_sizes"]["max"], 1437);
    assert_eq!(definition["batch_sizes"]["max_from"], "dataset");
    assert_eq!(
        definition["budget"],
        json!({"device_secs": 900.0, "probes": 1000})
    );
    assert_eq!(definition["objective"], "minimize_training_time");
    assert_eq!(definition["questions"].as_array().map(Vec::len), Some(6));
    assert_eq!(definition["model_from"], "default");
    assert_eq!(definition["reuse"], true);

    // No worker is alive, so the device stays open and the study says what it waits for.
    let study = service.get(&path).await.json();
    assert_eq!(study["state"], "queued");
    let waiting_for = study["waiting_for"].as_str().expect("says what is missing");
    assert!(waiting_for.contains("cpu"), "{waiting_for}");
    assert_eq!(definition["device"]["memory_budget_bytes"], Value::Null);
    // Whoever scales workers from none must see it: it has no probes that could stand in the queue.
    let metrics = service.get("/metrics/service").await.text;
    for (line, stands) in [
        (
            "trialhead_studies_waiting{backend=\"cpu\",runner=\"burn\"} 1",
            true,
        ),
        ("trialhead_queue_depth{", false),
    ] {
        assert_eq!(metrics.contains(line), stands, "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn a_dry_run_plans_and_stores_nothing() {
    let service = TestService::without_workers().await;
    let answer = service.post("/v1/studies?dry_run=true", &digits()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let answer = answer.json();
    assert!(answer["plan"]["probes"].as_u64().expect("a count") > 0);
    assert!(
        answer["plan"]["estimated_device_secs"]
            .as_f64()
            .expect("seconds")
            > 0.0
    );
    assert_eq!(answer["definition"]["batch_sizes"]["max"], 32);
    let list = service.get("/v1/studies").await.json();
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn lists_come_newest_first_in_pages_and_filtered() {
    let service = TestService::without_workers().await;
    let mut created = Vec::new();
    for number in 0..23 {
        let mut body = digits();
        body["name"] = json!(format!("study {number}"));
        body["labels"] = json!({"parity": if number % 2 == 0 { "even" } else { "odd" }});
        if number == 5 {
            body["workload"]["dataset"] =
                json!({"builtin": "synthetic", "examples": 100, "features": 4, "classes": 2});
        }
        let path = service.create(&body).await;
        created.push(path.rsplit('/').next().expect("an id").to_owned());
    }
    created.reverse();

    let mut seen = Vec::new();
    let mut next = "/v1/studies?page_size=5".to_owned();
    loop {
        let page = service.get(&next).await.json();
        let items = page["items"].as_array().expect("items");
        assert!(items.len() <= 5);
        seen.extend(
            items
                .iter()
                .map(|study| study["id"].as_str().expect("id").to_owned()),
        );
        match page["next_page_token"].as_str() {
            Some(token) => next = format!("/v1/studies?page_size=5&page_token={token}"),
            None => break,
        }
    }
    assert_eq!(seen, created);

    let count = async |query: &str| {
        let page = service.get(&format!("/v1/studies?{query}")).await.json();
        page["items"].as_array().expect("items").len()
    };
    assert_eq!(count("label=parity:odd").await, 11);
    assert_eq!(count("workload=synthetic").await, 1);
    assert_eq!(count("workload=digits/mlp").await, 22);
    assert_eq!(count("state=queued").await, 23);
    assert_eq!(count("state=succeeded").await, 0);

    for query in [
        "page_size=0",
        "page_size=501",
        "page_token=nonsense",
        "label=x",
        "label=:x",
    ] {
        service
            .get(&format!("/v1/studies?{query}"))
            .await
            .problem(422, "invalid_parameter");
    }
    let answer = service.get("/v1/studies?colour=red").await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert!(answer.text.contains("colour"), "{}", answer.text);
}

#[tokio::test]
async fn a_study_is_cancelled_once_and_deleted_after() {
    let service = TestService::without_workers().await;
    let path = service.create(&digits()).await;
    service.delete(&path).await.problem(409, "study_not_ended");
    let cancelled = service.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    assert_eq!(cancelled.json()["state"], "cancelled");
    assert_eq!(cancelled.json()["ended_because"], "cancelled");
    service
        .post(&format!("{path}/cancel"), &json!({}))
        .await
        .problem(409, "study_ended");
    assert_eq!(service.delete(&path).await.status, 204);
    service.get(&path).await.problem(404, "not_found");
    service.delete(&path).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_project_has_only_so_many_active_studies() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.max_active_studies = 2;
    })
    .await;
    service.create(&digits()).await;
    let second = service.create(&digits()).await;
    let refused = service.post("/v1/studies", &digits()).await;
    refused.problem(429, "too_many_studies");
    assert!(refused.header("retry-after").is_some());
    service.post(&format!("{second}/cancel"), &json!({})).await;
    service.create(&digits()).await;
}

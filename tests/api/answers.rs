//! A study from end to end, with real children: what is measured, what is answered.

use serde_json::{Value, json};

use crate::service::{Answer, TestService, digits};

#[tokio::test]
async fn a_study_of_the_digits_is_answered_with_its_evidence() {
    let service = TestService::training_briefly().await;
    let mut body = digits();
    body["questions"] = json!(["feasible_batch_sizes", "throughput", "batch_size"]);
    let path = service.create(&body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["state"], "succeeded", "{study}");
    assert_eq!(study["ended_because"], "answered", "{study}");
    assert_eq!(study["progress"]["remaining_probes"], 0);

    // Every probe is listed with a reason, and none is left open.
    let probes = service
        .get(&format!("{path}/probes?page_size=500"))
        .await
        .json();
    let probes = probes["items"].as_array().expect("probes").clone();
    assert!(
        probes
            .iter()
            .all(|item| item["probe"]["state"] == "succeeded"),
        "{probes:?}"
    );
    assert!(
        probes
            .iter()
            .all(|item| !item["why"].as_str().expect("why").is_empty())
    );
    let kinds: Vec<&str> = probes
        .iter()
        .map(|item| item["probe"]["kind"].as_str().expect("kind"))
        .collect();
    for kind in ["smoke", "memory", "step_time", "confirmation"] {
        assert!(kinds.contains(&kind), "{kind} among {kinds:?}");
    }
    // Three rounds at the least, every batch size once in each.
    for batch_size in [8, 16, 32] {
        let rounds = probes
            .iter()
            .filter(|item| {
                item["probe"]["kind"] == "step_time" && item["probe"]["batch_size"] == batch_size
            })
            .count();
        assert!(rounds >= 3, "{rounds} rounds at {batch_size}");
    }

    // Recommendations quote probes that exist.
    let answers = service.get(&format!("{path}/recommendations")).await.json();
    let answers = answers["items"]
        .as_array()
        .expect("recommendations")
        .clone();
    let topic = |name: &str| -> Value {
        answers
            .iter()
            .find(|answer| answer["topic"] == name)
            .unwrap_or_else(|| panic!("{name} among {answers:?}"))
            .clone()
    };
    let feasible = topic("feasible_batch_sizes");
    assert_eq!(feasible["value"]["largest_feasible_batch_size"], 32);
    assert_eq!(feasible["value"]["limited_by"], "range");
    assert_eq!(feasible["basis"], "measured");
    let batch_size = topic("batch_size");
    let recommended = batch_size["value"]["batch_size"]
        .as_u64()
        .expect("a batch size");
    assert!([8, 16, 32].contains(&recommended));
    assert_eq!(batch_size["basis"], "rule_of_thumb");
    topic("training_throughput");
    let ids: Vec<&str> = probes
        .iter()
        .map(|item| item["probe"]["id"].as_str().expect("id"))
        .collect();
    for answer in &answers {
        let evidence = answer["evidence"].as_array().expect("evidence");
        assert!(!evidence.is_empty(), "{answer}");
        for item in evidence {
            assert!(ids.contains(&item["probe_id"].as_str().expect("id")));
        }
        assert!(answer["summary"].as_str().expect("a summary").len() > 20);
    }

    // The analysis has the numbers, with their intervals.
    let analysis = service.get(&format!("{path}/analysis")).await.json()["analysis"].clone();
    let points = analysis["throughput"]["points"].as_array().expect("points");
    assert_eq!(points.len(), 3);
    for point in points {
        let t = &point["time_per_step_secs"];
        let (value, lower, upper) = (
            t["value"].as_f64().expect("t"),
            t["ci_lower"].as_f64().expect("lower"),
            t["ci_upper"].as_f64().expect("upper"),
        );
        assert!(0.0 < lower && lower < value && value < upper, "{t}");
    }
    assert!(
        !analysis["memory"]["points"]
            .as_array()
            .expect("points")
            .is_empty()
    );

    // The report says the same to a person.
    let report = service.get(&format!("{path}/report")).await;
    assert_eq!(
        report.header("content-type"),
        Some("text/markdown; charset=utf-8")
    );
    assert!(
        report.text.contains("\nState: succeeded: "),
        "{}",
        report.text
    );
    assert!(
        report.text.contains(&recommended.to_string()),
        "{}",
        report.text
    );

    all_formats_hold_the_same_measurements(&service, &path).await;

    // The same study again costs nothing: every measurement is reused.
    let again = service.create(&body).await;
    let study = service.ended(&again).await;
    assert_eq!(study["state"], "succeeded", "{study}");
    assert_eq!(study["progress"]["device_secs"], json!(0.0));
    let again = service
        .get(&format!("{again}/recommendations"))
        .await
        .json();
    assert!(
        again["items"][0]["evidence"]
            .as_array()
            .expect("evidence")
            .iter()
            .all(|item| item["reused"] == true)
    );
}

async fn all_formats_hold_the_same_measurements(service: &TestService, path: &str) {
    let query = "metric=time_per_step_median&kind=step_time";
    let mut pages = Vec::new();
    let mut next = format!("{path}/measurements?{query}&page_size=4");
    loop {
        let page = service.get(&next).await.json();
        pages.extend(page["items"].as_array().expect("items").clone());
        match page["next_page_token"].as_str() {
            Some(token) => {
                next = format!("{path}/measurements?{query}&page_size=4&page_token={token}");
            }
            None => break,
        }
    }
    assert!(pages.len() >= 9, "{} medians", pages.len());
    let accept = async |media: &str| {
        Answer::of(
            service
                .http
                .get(format!("{}{path}/measurements?{query}", service.base))
                .header("accept", media),
        )
        .await
    };
    let lines = accept("application/x-ndjson").await;
    let lines: Vec<Value> = lines
        .text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect();
    assert_eq!(lines, pages);
    let table = accept("text/csv").await;
    assert!(
        table
            .header("content-type")
            .expect("a type")
            .starts_with("text/csv")
    );
    let mut reader = csv::Reader::from_reader(table.text.as_bytes());
    let values: Vec<f64> = reader
        .deserialize::<std::collections::HashMap<String, String>>()
        .map(|row| row.expect("a row")["value"].parse().expect("a number"))
        .collect();
    let expected: Vec<f64> = pages
        .iter()
        .map(|item| item["value"].as_f64().expect("a value"))
        .collect();
    assert_eq!(values, expected);
    accept("image/png").await.problem(406, "not_acceptable");
}

#[tokio::test]
async fn a_model_too_large_for_the_budget_is_told_with_what_would_fit() {
    let service = TestService::training().await;
    let mut body = digits();
    body["workload"]["model"]["hidden"] = json!([6000, 6000]);
    body["device"]["memory_budget_bytes"] = json!(200 << 20);
    let path = service.create(&body).await;
    let study = service.ended(&path).await;
    assert_eq!(study["state"], "succeeded", "{study}");
    assert_eq!(study["ended_because"], "nothing_feasible", "{study}");
    let answers = service.get(&format!("{path}/recommendations")).await.json();
    let feasible = answers["items"]
        .as_array()
        .expect("recommendations")
        .iter()
        .find(|answer| answer["topic"] == "feasible_batch_sizes")
        .expect("says what is feasible")
        .clone();
    assert_eq!(
        feasible["value"]["largest_feasible_batch_size"],
        Value::Null
    );
    // 36 million parameters, 4 bytes each: parameter, gradient and one momentum at the least.
    let needs = feasible["value"]["needs_at_least_bytes"]
        .as_u64()
        .expect("bytes");
    assert!(needs > 36_000_000 * 4 * 2, "{needs}");
}

#[tokio::test]
async fn devices_and_catalog_tell_what_can_be_asked_for() {
    let service = TestService::with_worker().await;
    let devices = service.get("/v1/devices").await.json();
    let device = &devices["items"][0];
    assert_eq!(device["backend"], "cpu");
    assert!(device["memory_bytes"].as_u64().expect("bytes") > 0);
    let catalog = service.get("/v1/catalog").await;
    assert_eq!(catalog.status, 200);
    for word in [
        "mlp",
        "sgd_nesterov",
        "adamw",
        "digits",
        "synthetic",
        "step_time",
    ] {
        assert!(catalog.text.contains(word), "{word} in the catalog");
    }
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let service = TestService::with_worker().await;
    let path = service.create(&digits()).await;
    service.ended(&path).await;
    let instance = service.get("/metrics").await;
    assert_eq!(instance.status, 200);
    for line in [
        "trialhead_build_info",
        "trialhead_probe_duration_seconds_count{kind=\"memory\",outcome=\"succeeded\"}",
        "trialhead_leases_lost_total 0",
        "trialhead_measurements_stored_total",
        "trialhead_database_connections",
        "http_requests_total",
    ] {
        assert!(instance.text.contains(line), "{line} in\n{}", instance.text);
    }
    assert!(!instance.text.contains(&path), "no study id is a label");
    let all = service.get("/metrics/service").await;
    for line in [
        "trialhead_studies{state=\"succeeded\"} 1",
        "trialhead_probes{kind=\"smoke\",state=\"succeeded\"} 1",
        "trialhead_recommendations{",
        "trialhead_device_busy{backend=\"cpu\",device_model=\"",
    ] {
        assert!(all.text.contains(line), "{line} in\n{}", all.text);
    }
}

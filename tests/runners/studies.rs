//! Studies that somebody's own program runs: planned, measured and answered like any other.

use serde_json::{Value, json};

use crate::python;
use crate::service::TestService;

const NAME: &str = "simulated";

/// A service whose worker offers the simulated runner.
async fn offering(test: &str, fault: &str) -> Option<TestService> {
    let command = python::simulated(test, fault)?;
    let start = |settings: &mut trialhead::settings::Settings| {
        settings.pool.runners.insert(NAME.into(), command);
    };
    Some(TestService::start(start).await)
}

/// A study of a data set and a model that only its program has.
fn study() -> Value {
    json!({
        "workload": {
            "dataset": {"external": {
                "name": "my-images",
                "input": {"kind": "image", "channels": 3, "height": 32, "width": 32},
                "target": {"kind": "classes", "count": 10},
                "training_examples": 5000,
                "validation_examples": 1000
            }},
            "model": {"family": "external", "name": "my-net", "parameters": 25_000_000}
        },
        "runner": {"name": NAME, "version": "1", "options": {"slower": 2}},
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": 8, "max": 4096, "grid": {"values": [8, 64, 512, 2048, 4096]}},
        "device": {"memory_budget_bytes": 134_217_728, "threads": 1},
        "questions": ["feasible_batch_sizes", "throughput", "batch_size"],
        "seed": 3
    })
}

async fn advice(service: &TestService, path: &str, topic: &str) -> Value {
    let all = service.get(&format!("{path}/recommendations")).await.json();
    let mut items = all["items"].as_array().expect("a list").iter();
    let found = items.find(|it| it["topic"] == topic);
    found
        .unwrap_or_else(|| panic!("no {topic} in {all}"))
        .clone()
}

async fn probes(service: &TestService, path: &str) -> Vec<Value> {
    let list = service.get(&format!("{path}/probes?page_size=500")).await;
    list.json()["items"].as_array().expect("probes").clone()
}

#[tokio::test]
async fn a_program_of_ones_own_is_studied_like_any_other() {
    const TEST: &str = "a_program_of_ones_own_is_studied_like_any_other";
    let Some(service) = offering(TEST, "").await else {
        return;
    };
    let devices = service.get("/v1/devices").await.json();
    assert_eq!(
        devices["items"][0]["runners"],
        json!(["burn", NAME]),
        "{devices}"
    );
    let path = service.create(&study()).await;
    let ended = service.ended(&path).await;
    assert_eq!(ended["ended_because"], "answered", "{ended}");

    // 40 MB and 50 kB an example beside the interpreter, under 128 MiB less a reserve.
    let feasible = advice(&service, &path, "feasible_batch_sizes").await;
    let largest = feasible["value"]["largest_feasible_batch_size"]
        .as_u64()
        .expect("a batch size");
    assert_eq!(feasible["value"]["limited_by"], "memory", "{feasible}");
    assert!((1400..1800).contains(&largest), "{feasible}");
    let throughput = advice(&service, &path, "training_throughput").await;
    assert_eq!(throughput["basis"], "measured");
    // The program was told its options: 2 · (1 ms + 10 µs an example).
    let analysis = service.get(&format!("{path}/analysis")).await.json();
    let points = analysis["analysis"]["throughput"]["points"]
        .as_array()
        .expect("points")
        .clone();
    for point in &points {
        let size = point["batch_size"].as_f64().expect("a batch size");
        let secs = point["time_per_step_secs"]["value"].as_f64().expect("t");
        assert!((secs / (2e-3 + 2e-5 * size) - 1.0).abs() < 1e-6, "{point}");
    }
    assert!(points.len() >= 3, "{points:?}");

    // The same program's figures serve another study; another version's, or another option's, do not.
    let again = service.create(&study()).await;
    service.ended(&again).await;
    assert!(
        probes(&service, &again)
            .await
            .iter()
            .all(|it| it["reused"] == true)
    );
    for (pointer, value) in [
        ("/runner/version", json!("2")),
        ("/runner/options/slower", json!(3)),
        ("/workload/dataset/external/name", json!("other-images")),
    ] {
        let mut other = study();
        *other.pointer_mut(pointer).expect("there") = value;
        let path = service.create(&other).await;
        service.ended(&path).await;
        let probes = probes(&service, &path).await;
        assert!(!probes.is_empty());
        assert!(
            probes.iter().all(|it| it["reused"] == false),
            "{pointer}: {probes:?}"
        );
    }
}

#[tokio::test]
async fn training_to_a_target_is_searched_and_answered() {
    const TEST: &str = "training_to_a_target_is_searched_and_answered";
    let Some(service) = offering(TEST, "").await else {
        return;
    };
    let mut body = study();
    body["batch_sizes"] = json!({"min": 16, "max": 256, "grid": {"values": [16, 64, 256]}});
    body["workload"]["target"] = json!({"metric": "validation_cross_entropy", "value": 0.2});
    body["questions"] = json!(["throughput", "critical_batch_size", "batch_size"]);
    body["budget"] = json!({"device_secs": 2000, "probes": 2000});
    let path = service.create(&body).await;
    let ended = service.ended(&path).await;
    assert_eq!(ended["ended_because"], "answered", "{ended}");
    // S = 20 + 600/B: the critical batch size is 30.
    let critical = advice(&service, &path, "critical_batch_size").await;
    assert_eq!(critical["basis"], "measured", "{critical}");
    let start = advice(&service, &path, "batch_size").await;
    assert_eq!(start["basis"], "measured", "{start}");
}

/// S = 20 + 600/B steps to the target, of 1 ms, 10 µs an example of a device's share, and 1 ms of communication on two.
#[tokio::test]
async fn several_devices_are_timed_beside_fewer_and_their_communication_is_named() {
    const TEST: &str = "several_devices_are_timed_beside_fewer_and_their_communication_is_named";
    let Some(service) = offering(TEST, "").await else {
        return;
    };
    let mut body = study();
    body["runner"]["options"] = json!({"communication_secs": 1e-3});
    body["device"]["count"] = json!(2);
    body["batch_sizes"] = json!({"min": 16, "max": 256, "grid": {"values": [16, 64, 256]}});
    body["workload"]["target"] = json!({"metric": "validation_cross_entropy", "value": 0.2});
    body["questions"] = json!([
        "feasible_batch_sizes",
        "throughput",
        "bottleneck",
        "critical_batch_size",
        "batch_size"
    ]);
    body["costs"] = json!({"device_hour": 3600});
    body["budget"] = json!({"device_secs": 4000, "probes": 2000});
    let path = service.create(&body).await;
    let ended = service.ended(&path).await;
    assert_eq!(ended["ended_because"], "answered", "{ended}");
    let secs =
        |size: f64, count: f64| 1e-3 + 1e-5 * size / count + if count > 1.0 { 1e-3 } else { 0.0 };

    let bottleneck = advice(&service, &path, "bottleneck").await;
    assert_eq!(
        bottleneck["value"]["bottleneck"], "communication_bound",
        "{bottleneck}"
    );
    for point in bottleneck["value"]["communication"]
        .as_array()
        .expect("a list")
    {
        let size = point["batch_size"].as_f64().expect("a size");
        let share = 1e-3 / secs(size, 2.0);
        let told = point["share"]["value"].as_f64().expect("a share");
        assert!((told - share).abs() < 1e-6, "{point}");
        assert_eq!(point["is_bound"], share >= 0.15, "{point}");
    }
    let throughput = advice(&service, &path, "training_throughput").await;
    let by_count = throughput["value"]["by_device_count"]
        .as_array()
        .expect("a list");
    for point in by_count {
        let size = point["batch_size"].as_f64().expect("a size");
        let count = point["devices"].as_f64().expect("a number");
        let told = point["examples_per_sec"].as_f64().expect("a rate");
        assert!(
            (told * secs(size, count) / size - 1.0).abs() < 1e-6,
            "{point}"
        );
    }
    assert!(by_count.len() >= 4, "{throughput}");
    let start = advice(&service, &path, "batch_size").await;
    let codes: Vec<&str> = start["caveats"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|it| it["code"].as_str())
        .collect();
    assert!(codes.contains(&"W_COMMUNICATION_BOUND"), "{start}");

    // Two devices cost twice a second, and one is there to be compared with.
    let resources = advice(&service, &path, "resource_consumption").await;
    let by_count = resources["value"]["by_device_count"]
        .as_array()
        .expect("a list");
    assert_eq!(by_count.len(), 2, "{resources}");
    for point in by_count {
        let count = point["devices"].as_f64().expect("a number");
        let size = point["batch_size"].as_f64().expect("a size");
        let time = point["training_time_secs"]["value"].as_f64().expect("T");
        let device_secs = point["device_secs"]["value"].as_f64().expect("R");
        assert!((device_secs / (count * time) - 1.0).abs() < 1e-9, "{point}");
        let money = point["money"]["value"].as_f64().expect("a price");
        assert!((money / device_secs - 1.0).abs() < 1e-9, "{point}");
        let truth = (20.0 + 600.0 / size) * secs(size, count);
        assert!((time / truth - 1.0).abs() < 0.25, "{truth} {point}");
    }
    let of = |index: usize| by_count[index]["device_secs"]["value"].as_f64().expect("R");
    assert!(of(1) > of(0), "{resources}");
    for point in resources["value"]["by_batch_size"]
        .as_array()
        .expect("a list")
    {
        let of = |name: &str| point[name]["value"].as_f64().expect("a figure");
        assert!(
            (of("device_secs") / of("money") - 1.0).abs() < 1e-9,
            "{point}"
        );
    }

    // Every probe is on two devices, but those that are timed beside them.
    for probe in probes(&service, &path).await {
        let count = probe["probe"]["spec"]["device"]["count"]
            .as_u64()
            .unwrap_or(1);
        assert!(
            count == 2 || probe["probe"]["kind"] == "step_time",
            "{probe}"
        );
    }
}

#[tokio::test]
async fn a_batch_must_be_shared_out_and_a_study_waits_for_so_many_devices() {
    let service = TestService::with_worker().await;
    let mut body = crate::service::digits();
    body["device"]["count"] = json!(2);
    let plan = service.post("/v1/studies?dry_run=true", &body).await.json();
    assert!(
        plan["plan"]["warnings"]
            .to_string()
            .contains("burn trains on one device"),
        "{plan}"
    );

    let mut uneven = study();
    uneven["device"]["count"] = json!(3);
    uneven["batch_norm"] = json!({"probe": true, "batch_size": 64});
    let answer = service.post("/v1/studies", &uneven).await;
    let problem = answer.problem(422, "invalid_study");
    let told = problem["errors"].to_string();
    for pointer in [
        "/batch_sizes/min",
        "/batch_sizes/max",
        "/batch_sizes/grid/values/0",
        "/batch_norm/batch_size",
    ] {
        assert!(told.contains(pointer), "{told}");
    }
    assert!(
        told.contains("must be a multiple of device.count, 3"),
        "{told}"
    );

    // More than any worker has together.
    let mut many = study();
    many["device"]["count"] = json!(64);
    many["batch_sizes"] = json!({"min": 64, "max": 4096, "grid": "powers_of_two"});
    let path = service.create(&many).await;
    let waiting = service
        .until(&path, |study| study["waiting_for"].is_string())
        .await;
    assert_eq!(
        waiting["waiting_for"],
        "a live worker that offers 64 cpu devices together that offers the runner \"simulated\""
    );
}

#[tokio::test]
async fn a_study_waits_for_a_worker_that_offers_its_runner_and_holds_nobody_up() {
    let service = TestService::with_worker().await;
    let path = service.create(&study()).await;
    let waiting = service
        .until(&path, |study| study["waiting_for"].is_string())
        .await;
    assert_eq!(
        waiting["waiting_for"],
        "a live worker with a cpu device that offers the runner \"simulated\""
    );
    assert_eq!(waiting["state"], "queued");
    // The same where the device is known.
    let devices = service.get("/v1/devices").await.json();
    let mut known = study();
    known["device"]["model"] = devices["items"][0]["model"].clone();
    let known = service.create(&known).await;
    let waiting = service
        .until(&known, |study| study["waiting_for"].is_string())
        .await;
    let said = waiting["waiting_for"].as_str().expect("text");
    assert!(
        said.ends_with("that offers the runner \"simulated\""),
        "{said}"
    );

    let own = service.create(&crate::service::digits()).await;
    let ended = service.ended(&own).await;
    assert_eq!(ended["ended_because"], "answered", "{ended}");
    assert!(probes(&service, &path).await.is_empty());
}

#[tokio::test]
async fn what_a_program_does_not_do_ends_the_study_or_is_left_out() {
    const TEST: &str = "what_a_program_does_not_do_ends_the_study_or_is_left_out";
    let Some(service) = offering(TEST, "unsupported").await else {
        return;
    };
    let path = service.create(&study()).await;
    let ended = service.ended(&path).await;
    assert_eq!(ended["ended_because"], "probes_failed", "{ended}");
    let detail = ended["ended_detail"].as_str().expect("why");
    assert!(
        detail.contains("the runner cannot train this workload: no model external here"),
        "{detail}"
    );
    let probes = probes(&service, &path).await;
    assert_eq!(probes.len(), 1);
    assert_eq!(probes[0]["probe"]["attempt"], 1, "{probes:?}");
    drop(service);

    let Some(service) = offering(TEST, "no-training").await else {
        return;
    };
    let mut body = study();
    body["questions"] = json!(["throughput", "bottleneck", "initial_configuration"]);
    let path = service.create(&body).await;
    let ended = service.ended(&path).await;
    assert_eq!(ended["ended_because"], "answered", "{ended}");
    let detail = ended["ended_detail"].as_str().expect("why");
    assert!(
        detail.contains("it does not do probes of input_pipeline, learning_rate_range"),
        "{detail}"
    );
    advice(&service, &path, "training_throughput").await;
}

#[tokio::test]
async fn a_program_that_breaks_the_contract_fails_its_study_and_nothing_else() {
    const TEST: &str = "a_program_that_breaks_the_contract_fails_its_study_and_nothing_else";
    let Some(service) = offering(TEST, "nan").await else {
        return;
    };
    let path = service.create(&study()).await;
    let ended = service.ended(&path).await;
    assert_eq!(ended["state"], "failed", "{ended}");
    let detail = ended["ended_detail"].as_str().expect("why");
    assert!(detail.contains("JSON has no NaN"), "{detail}");
    let own = service.create(&crate::service::digits()).await;
    assert_eq!(service.ended(&own).await["ended_because"], "answered");
}

#[tokio::test]
async fn what_does_not_fit_a_runner_is_refused_with_its_place() {
    let service = TestService::without_workers().await;
    let refused = |change: Value| {
        let mut body = study();
        for (pointer, value) in change.as_object().expect("changes") {
            *body.pointer_mut(pointer).expect("there") = value.clone();
        }
        let service = &service;
        async move {
            let answer = service.post("/v1/studies", &body).await;
            let problem = answer.problem(422, "invalid_study");
            let list = problem["errors"].as_array().expect("a list").clone();
            list.iter()
                .map(|it| {
                    format!(
                        "{} {}",
                        it["pointer"].as_str().unwrap_or_default(),
                        it["detail"]
                    )
                })
                .collect::<Vec<_>>()
        }
    };
    let cases = [
        (json!({"/runner/name": "PyTorch!"}), "/runner/name"),
        (json!({"/runner/version": "a\nb"}), "/runner/version"),
        (
            json!({"/runner/options": {"a": "\u{0}"}}),
            "/runner/options/a",
        ),
        (
            json!({"/runner/options": {"a": "x".repeat(20_000)}}),
            "/runner/options",
        ),
        (
            json!({"/runner": {"name": "burn"}}),
            "/workload/dataset/external",
        ),
        (json!({"/runner": {}}), "/workload/model/family"),
        (
            json!({"/workload/dataset/external/training_examples": 0}),
            "/workload/dataset/external/training_examples",
        ),
        (
            json!({"/workload/dataset/external/name": " "}),
            "/workload/dataset/external/name",
        ),
        (
            json!({"/workload/dataset/external/target/count": 1}),
            "/workload/dataset/external/target",
        ),
    ];
    for (change, pointer) in cases {
        let found = refused(change.clone()).await;
        assert!(
            found.iter().any(|it| it.starts_with(pointer)),
            "{change}: {found:?}"
        );
    }
    // Options alone: the service's own runner has none.
    let mut own = crate::service::digits();
    own["runner"] = json!({"version": "7", "options": {"a": 1}});
    let answer = service.post("/v1/studies", &own).await;
    let problem = answer.problem(422, "invalid_study").to_string();
    assert!(
        problem.contains("/runner/version") && problem.contains("/runner/options"),
        "{problem}"
    );
}

//! A study goes on where it was, however its service ended.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::postgres::TestDatabase;
use crate::server::{PATIENCE, ServerProcess, TRAINING};

/// 20 MB + 100 kB an example; 1 ms + 10 µs an example.
pub const SIMULATED: [&str; 5] = ["simulate", "2e7", "1e5", "1e-3", "1e-5"];

fn study() -> Value {
    json!({
        "workload": {"dataset": {"builtin": "digits"}},
        "batch_sizes": {"min": 8, "max": 1024},
        "device": {"memory_budget_bytes": 96 << 20, "threads": 1},
        // What needs its device alone, so that it can be told whether it had it.
        "questions": [
            "feasible_batch_sizes", "throughput", "bottleneck", "gradient_accumulation", "batch_size"
        ],
        "seed": 7
    })
}

pub async fn create(server: &ServerProcess) -> String {
    let study = server.post("/v1/studies", &study()).await;
    format!(
        "/v1/studies/{}",
        study["id"].as_str().unwrap_or_else(|| panic!("{study}"))
    )
}

/// What was advised, without what must differ from study to study.
pub async fn advice(server: &ServerProcess, path: &str) -> Vec<(Value, Value)> {
    let (_, _, answers) = server
        .get(&format!("{path}/recommendations"))
        .await
        .expect("an answer");
    answers["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| (item["topic"].clone(), item["value"].clone()))
        .collect()
}

#[tokio::test]
async fn a_service_killed_in_every_phase_loses_nothing() {
    let undisturbed = TestDatabase::create().await;
    let server = ServerProcess::start(undisturbed.url(), "calm", &SIMULATED);
    let path = create(&server).await;
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let expected = advice(&server, &path).await;
    assert_eq!(expected.len(), 3, "{expected:?}");
    drop(server);

    let database = TestDatabase::create().await;
    let mut server = ServerProcess::start(database.url(), "stormy", &SIMULATED);
    let path = create(&server).await;
    for phase in ["checking", "seeking", "round 1", "round 2", "confirming"] {
        // A phase may pass between two looks; then the kill comes in the next one.
        server
            .until(&path, |study| {
                study["phase"]
                    .as_str()
                    .is_some_and(|now| now.contains(phase))
                    || study["progress"]["probes_done"].as_i64() > Some(30)
                    || study["state"] == "succeeded"
            })
            .await;
        server.kill_9();
        server = ServerProcess::start(database.url(), "stormy", &SIMULATED);
    }
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    assert_eq!(advice(&server, &path).await, expected);
}

/// Training to a target: deterministic on the CPU.
pub fn training_study() -> Value {
    json!({
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": {"family": "mlp", "hidden": [16]},
            "target": {"metric": "validation_cross_entropy", "value": 0.35}
        },
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": 16, "max": 256},
        "device": {"memory_budget_bytes": 1 << 30, "threads": 1},
        "questions": ["critical_batch_size"],
        "seed": 5
    })
}

/// Every training probe of a study: what it was asked and where it stands, in the order of the plan.
pub async fn trials(server: &ServerProcess, path: &str) -> Vec<(Value, Value)> {
    let url = format!("{path}/probes?kind=training&page_size=500");
    let list = server.until(&url, |_| true).await;
    assert_eq!(list["next_page_token"], Value::Null, "one page");
    let items = list["items"].as_array().expect("items");
    items
        .iter()
        .map(|item| {
            let probe = &item["probe"];
            assert_eq!(probe["crashes"], 0, "{probe}");
            (probe["spec"].clone(), probe["state"].clone())
        })
        .collect()
}

/// Training to a target on the CPU is deterministic, so a study killed at any moment makes the same probes with the
/// same results.
#[tokio::test]
async fn training_to_a_target_goes_on_where_it_was_killed_and_finds_the_same() {
    let post = async |server: &ServerProcess| {
        let study = server.post("/v1/studies", &training_study()).await;
        format!("/v1/studies/{}", study["id"].as_str().expect("an id"))
    };
    let undisturbed = TestDatabase::create().await;
    let server = ServerProcess::start(undisturbed.url(), "calm", TRAINING);
    let path = post(&server).await;
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let expected = (advice(&server, &path).await, trials(&server, &path).await);
    assert!(expected.1.len() > 50, "{} trials", expected.1.len());
    drop(server);

    let database = TestDatabase::create().await;
    let mut server = ServerProcess::start(database.url(), "stormy", TRAINING);
    let path = post(&server).await;
    for kills in 1..=6 {
        let done = 12 * kills;
        server
            .until(&path, |study| {
                study["progress"]["probes_done"].as_i64() > Some(done)
                    || study["state"] == "succeeded"
            })
            .await;
        server.kill_9();
        server = ServerProcess::start(database.url(), "stormy", TRAINING);
    }
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let found = (advice(&server, &path).await, trials(&server, &path).await);
    assert_eq!(found.1, expected.1);
    assert_eq!(found.0, expected.0);
}

/// A revision is there as a whole or not at all, whenever the service dies, and the study goes on either way.
#[tokio::test]
async fn a_service_killed_while_a_study_is_revised_has_the_old_definition_or_the_new_one() {
    let body = |value: f64| {
        json!({
            "workload": {
                "dataset": {"builtin": "synthetic", "examples": 512, "features": 8, "classes": 3},
                "model": {"family": "mlp", "hidden": [8]},
                "target": {"metric": "validation_cross_entropy", "value": value}
            },
            "optimizer": {"family": "sgd"},
            "batch_sizes": {"min": 16, "max": 64},
            "device": {"memory_budget_bytes": 1 << 30, "threads": 1},
            "questions": ["critical_batch_size"],
            "seed": 5
        })
    };
    let (before, after) = (0.7, 0.75);
    let database = TestDatabase::create().await;
    let mut server = ServerProcess::start(database.url(), "stormy", TRAINING);
    let study = server.post("/v1/studies", &body(before)).await;
    let path = format!("/v1/studies/{}", study["id"].as_str().expect("an id"));
    assert_eq!(server.ended(&path).await["ended_because"], "answered");
    let (mut taken, mut lost) = (0, 0);
    for (number, millis) in [0, 1, 2, 4, 6, 8, 12, 16, 25, 50].into_iter().enumerate() {
        let value = if number % 2 == 0 { after } else { before };
        let (_, _, study) = server.get(&path).await.expect("an answer");
        let revision = study["revision"].as_i64().expect("a revision");
        let etag = format!("\"{revision}\"");
        let request = server.revision(&path, &etag, &body(value));
        let request = tokio::spawn(request.send());
        tokio::time::sleep(Duration::from_millis(millis)).await;
        server.kill_9();
        let _ = request.await.expect("no panic");
        server = ServerProcess::start(database.url(), "stormy", TRAINING);
        let study = server
            .until(&path, |study| study["revision"].is_i64())
            .await;
        let (_, _, definition) = server
            .get(&format!("{path}/definition"))
            .await
            .expect("an answer");
        let target = &definition["workload"]["target"]["value"];
        if study["revision"] == revision {
            lost += 1;
            assert_ne!(*target, value, "revision {revision}");
            // Whoever was not answered sends it again.
            let again = server.revision(&path, &etag, &body(value)).send().await;
            assert_eq!(again.expect("an answer").status(), 200);
        } else {
            taken += 1;
            assert_eq!(study["revision"], revision + 1);
            assert_eq!(*target, value, "revision {revision} + 1");
        }
        let study = server.ended(&path).await;
        assert_eq!(study["ended_because"], "answered", "{study}");
    }
    println!("{taken} revisions were there after the kill, {lost} were not");
    let found = advice(&server, &path).await;

    let undisturbed = TestDatabase::create().await;
    let server = ServerProcess::start(undisturbed.url(), "calm", TRAINING);
    let study = server.post("/v1/studies", &body(before)).await;
    let path = format!("/v1/studies/{}", study["id"].as_str().expect("an id"));
    server.ended(&path).await;
    assert_eq!(found, advice(&server, &path).await);
}

#[tokio::test]
async fn a_drained_service_hands_its_probe_back_at_no_cost() {
    let database = TestDatabase::create().await;
    let server = ServerProcess::start(database.url(), "host", &["sleep"]);
    let path = create(&server).await;
    let probes = format!("{path}/probes");
    server
        .until(&probes, |list| {
            list["items"][0]["probe"]["state"] == "running"
        })
        .await;
    let (code, took) = server.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");

    // The next service takes it up at once, without waiting for a lease, and the attempt cost nothing.
    let server = ServerProcess::start(database.url(), "host", &SIMULATED);
    server.ended(&path).await;
    let list = server.until(&probes, |_| true).await;
    let first = &list["items"][0]["probe"];
    assert_eq!(first["state"], "succeeded", "{first}");
    assert_eq!(
        (&first["crashes"], &first["losses"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(first["attempt"], 2);
}

#[tokio::test]
async fn cancelling_ends_a_running_child_within_a_heartbeat_and_two_seconds() {
    let database = TestDatabase::create().await;
    let server = ServerProcess::start(database.url(), "host", &["sleep"]);
    let path = create(&server).await;
    let probes = format!("{path}/probes");
    server
        .until(&probes, |list| {
            list["items"][0]["probe"]["state"] == "running"
        })
        .await;
    let since = Instant::now();
    let cancelled = server.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!(cancelled["state"], "cancelled");
    server
        .until(&probes, |list| {
            list["items"][0]["probe"]["state"] == "cancelled"
        })
        .await;
    // The heartbeat is half a second here.
    assert!(
        since.elapsed() < Duration::from_millis(2500),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test]
async fn a_database_that_goes_and_comes_back_costs_no_study() {
    let database = TestDatabase::create().await;
    let server = ServerProcess::start(database.url(), "host", &SIMULATED);
    let mut paths = Vec::new();
    for _ in 0..3 {
        paths.push(create(&server).await);
    }
    for _ in 0..2 {
        database.sever().await;
        // Requests are told to come again, never that something is broken.
        let since = Instant::now();
        loop {
            let (status, retry, body) = server.get("/v1/studies").await.expect("an answer");
            if status == 503 {
                assert!(retry, "{body}");
                assert_eq!(body["code"], "unavailable");
                break;
            }
            assert_eq!(status, 200, "{body}");
            assert!(since.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        database.mend().await;
        server.until("/readyz", |_| true).await;
    }
    for path in paths {
        let study = server.ended(&path).await;
        assert_eq!(study["ended_because"], "answered", "{study}");
    }
}

#[tokio::test]
async fn a_worker_cut_off_for_longer_than_its_lease_ends_its_child() {
    let database = TestDatabase::create().await;
    let server = ServerProcess::start(database.url(), "cut off", &["sleep"]);
    let path = create(&server).await;
    let probes = format!("{path}/probes");
    server
        .until(&probes, |list| {
            list["items"][0]["probe"]["state"] == "running"
        })
        .await;
    server.started_probe().await;
    database.sever().await;
    let since = Instant::now();
    while !server.running_probes().is_empty() {
        // The lease is 3 s, the margin 1 s.
        assert!(
            since.elapsed() < Duration::from_secs(4),
            "the child outlived its lease"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    database.mend().await;
    let list = server
        .until(&probes, |list| {
            list["items"][0]["probe"]["attempt"].as_i64() >= Some(2)
        })
        .await;
    assert_eq!(list["items"][0]["probe"]["crashes"], 0);
}

#[tokio::test]
async fn a_child_killed_from_outside_is_a_crash_and_costs_no_study() {
    let database = TestDatabase::create().await;
    let server = ServerProcess::start(database.url(), "host", &["sleep"]);
    let path = create(&server).await;
    let probes = format!("{path}/probes");
    let first = |list: &Value| list["items"][0]["probe"].clone();
    server
        .until(&probes, |list| first(list)["state"] == "running")
        .await;
    let child = server.started_probe().await;
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    let list = server
        .until(&probes, |list| {
            first(list)["state"] == "running" && first(list)["attempt"] == 2
        })
        .await;
    assert_eq!(first(&list)["crashes"], 1, "{list}");
    server.terminate();

    let server = ServerProcess::start(database.url(), "host", &SIMULATED);
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let list = server.until(&probes, |_| true).await;
    assert_eq!(first(&list)["crashes"], 1, "{list}");
}

/// Two services of one host, each with a study: watches their children until both are answered.
async fn assert_one_probe_at_a_time(databases: [&TestDatabase; 2]) {
    let folder = tempfile::tempdir().expect("a folder");
    let locks = folder.path().join("locks");
    let start = |database: &TestDatabase| {
        ServerProcess::start_beside(database.url(), "shared", &SIMULATED, &locks)
    };
    let services = [start(databases[0]), start(databases[1])];
    let paths = [create(&services[0]).await, create(&services[1]).await];
    // Smoke probes time nothing: they may share the device, and they come first.
    for (server, path) in services.iter().zip(&paths) {
        server
            .until(&format!("{path}/probes"), |list| {
                list["items"].as_array().is_some_and(|probes| {
                    probes
                        .iter()
                        .any(|item| item["probe"]["state"] == "succeeded")
                })
            })
            .await;
    }
    let (mut most, mut seen) = (0, std::collections::HashSet::new());
    for (server, path) in services.iter().zip(&paths) {
        let since = Instant::now();
        loop {
            for _ in 0..50 {
                // Twice the same two: the first may have ended while the list was read.
                let list = || -> std::collections::BTreeSet<_> {
                    services
                        .iter()
                        .flat_map(ServerProcess::running_probes)
                        .collect()
                };
                let (before, after) = (list(), list());
                most = most.max(before.intersection(&after).count());
                seen.extend(after);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let (_, _, study) = server.get(path).await.expect("an answer");
            if study["state"] == "succeeded" {
                assert_eq!(study["ended_because"], "answered", "{study}");
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{study}");
        }
    }
    assert_eq!(most, 1, "exclusive probes at once");
    assert!(seen.len() > 20, "only {} probes were seen", seen.len());
}

#[tokio::test]
async fn two_services_of_one_host_never_measure_at_once() {
    let database = TestDatabase::create().await;
    assert_one_probe_at_a_time([&database, &database]).await;
}

#[tokio::test]
async fn two_services_with_a_database_each_never_measure_at_once_on_one_host() {
    let (one, other) = (TestDatabase::create().await, TestDatabase::create().await);
    assert_one_probe_at_a_time([&one, &other]).await;
}

#[tokio::test]
async fn ten_services_start_at_once_on_an_empty_database() {
    let database = TestDatabase::create_empty().await;
    let services: Vec<ServerProcess> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..10)
            .map(|number| {
                let url = database.url();
                scope
                    .spawn(move || ServerProcess::start(url, &format!("host-{number}"), &SIMULATED))
            })
            .collect();
        started
            .into_iter()
            .map(|thread| thread.join().expect("it serves"))
            .collect()
    });
    for server in &services {
        let (status, _, _) = server.get("/readyz").await.expect("an answer");
        assert_eq!(status, 200);
    }
    let path = create(&services[0]).await;
    let study = services[9].ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
}

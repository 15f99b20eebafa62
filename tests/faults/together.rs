//! Workers of different kinds finish one study together: two that offer the service's own runner and one in Python, and one
//! that has nothing but Python. The service, which asks everybody for a token, and each of them are killed on the way.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trialhead::access::{self, NewToken, Scope};
use trialhead::study::StudyId;

use crate::crowd::assert_each_once;
use crate::postgres::TestDatabase;
use crate::proxy::Proxy;
use crate::python;
use crate::server::{PATIENCE, ServerProcess, TRAINING};
use crate::worker::WorkProcess;

/// The name of the runner in Python.
const RUNNER: &str = "python";

/// Leases outlast a restart of the service, so that only the probes of a killed worker are run again.
const LEASE_SECS: f64 = 60.0;

/// The hosts of the workers; the last one has Python alone.
const HOSTS: [&str; 3] = ["mixed 0", "mixed 1", "python alone"];

async fn token(database: &TestDatabase, scope: Scope) -> String {
    let new = NewToken {
        name: "a test".into(),
        scopes: vec![scope],
        project: None,
        expires_in_days: None,
    };
    let (text, _) = access::create(database.database(), &new)
        .await
        .expect("a token");
    text.reveal()
}

/// One study, and what of it does not depend on the clock.
struct Case<'a> {
    /// Program and arguments of the runner.
    command: &'a str,
    study: Value,
    /// The kinds of probes whose figures are the same each time; none where a second study would be planned otherwise, so
    /// that there is nothing to compare with.
    kinds: &'a [&'a str],
}

/// A service, its network, and the workers of one study.
struct Crew<'a> {
    command: &'a str,
    database: TestDatabase,
    home: tempfile::TempDir,
    network: Proxy,
    server: ServerProcess,
    token: String,
    work: String,
    workers: [Option<WorkProcess>; 3],
}

/// What a study came to.
#[derive(Debug)]
struct Found {
    /// What was asked, and how each ended.
    probes: Vec<(Value, Value)>,
    figures: Vec<Value>,
    advice: Vec<(Value, Value)>,
}

impl<'a> Crew<'a> {
    async fn start(command: &'a str, workers: usize) -> Self {
        let database = TestDatabase::create().await;
        let (admin, work) = (
            token(&database, Scope::Admin).await,
            token(&database, Scope::Work).await,
        );
        let server = ServerProcess::start_guarded(database.url(), LEASE_SECS, &admin);
        let network = Proxy::start().await;
        network.lead_to(&server.base);
        let mut crew = Self {
            command,
            database,
            home: tempfile::tempdir().expect("a folder"),
            network,
            server,
            token: admin,
            work,
            workers: [None, None, None],
        };
        for number in 0..workers {
            crew.workers[number] = Some(crew.worker(number));
        }
        crew
    }

    fn worker(&self, number: usize) -> WorkProcess {
        let runner = format!("{RUNNER}={}", self.command);
        let has_burn = if number < 2 { "true" } else { "false" };
        WorkProcess::start_with(
            &self.network.base,
            HOSTS[number],
            TRAINING,
            self.home.path(),
            &["--runner", &runner],
            &[
                ("TRIALHEAD_TOKEN", &self.work),
                ("TRIALHEAD_POOL__OFFERS_BURN", has_burn),
            ],
        )
    }

    async fn post(&self, study: &Value) -> String {
        crate::storm::post(&self.server, study).await
    }

    /// Kills a worker in the middle of a probe, and starts it again.
    async fn kill_worker(&mut self, number: usize) {
        let worker = self.workers[number].take().expect("it runs");
        worker.with_child().await;
        worker.kill_9();
        self.workers[number] = Some(self.worker(number));
    }

    /// Kills the service, and starts it again at another address.
    fn kill_service(&mut self) {
        self.server.end_9();
        self.server = ServerProcess::start_guarded(self.database.url(), LEASE_SECS, &self.token);
        self.network.lead_to(&self.server.base);
    }

    async fn probes(&self, path: &str) -> Vec<Value> {
        let list = self
            .server
            .until(&format!("{path}/probes?page_size=500"), |_| true)
            .await;
        assert_eq!(list["next_page_token"], Value::Null, "one page");
        let items = list["items"].as_array().expect("items");
        items.iter().map(|item| item["probe"].clone()).collect()
    }

    async fn found(&self, path: &str, kinds: &[&str]) -> Found {
        let study = self.server.ended(path).await;
        assert_eq!(study["ended_because"], "answered", "{study}");
        let is_compared = |kind: &Value| kinds.iter().any(|it| kind == it);
        let probes = self.probes(path).await;
        let mut figures = Vec::new();
        let mut page = String::new();
        loop {
            let url = format!("{path}/measurements?page_size=500{page}");
            let answer = self.server.until(&url, |_| true).await;
            for item in answer["items"].as_array().expect("items") {
                // How long something took is another figure each time, and so is a share of that.
                let is_timed = item["metric"] == "evaluation_share"
                    || item["unit"] == "s" && item["kind"] == "training";
                if is_compared(&item["kind"]) && !is_timed && item["unit"] != "bytes" {
                    figures.push(json!([item["metric"], item["step"], item["value"]]));
                }
            }
            match answer["next_page_token"].as_str() {
                Some(token) => page = format!("&page_token={token}"),
                None => break,
            }
        }
        Found {
            probes: probes
                .iter()
                .filter(|probe| is_compared(&probe["kind"]))
                .map(|probe| (probe["spec"].clone(), probe["state"].clone()))
                .collect(),
            figures,
            advice: untimed(crate::ends::advice(&self.server, path).await),
        }
    }
}

/// Advice without what it tells of the time that probes took.
fn untimed(mut advice: Vec<(Value, Value)>) -> Vec<(Value, Value)> {
    fn forget(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.remove("estimated_device_secs");
                members.values_mut().for_each(forget);
            }
            Value::Array(items) => items.iter_mut().for_each(forget),
            _ => {}
        }
    }
    advice.iter_mut().for_each(|(_, value)| forget(value));
    advice
}

/// The host of the worker that ended a probe.
fn host(probe: &Value) -> &str {
    let worker = probe["worker"].as_str().unwrap_or_default();
    worker.split('/').next().unwrap_or_default()
}

/// What one worker finds that nobody disturbs.
async fn undisturbed(case: &Case<'_>) -> Found {
    let since = Instant::now();
    let calm = Crew::start(case.command, 1).await;
    let path = calm.post(&case.study).await;
    let expected = calm.found(&path, case.kinds).await;
    assert!(!expected.advice.is_empty());
    assert!(expected.figures.len() > 50, "{}", expected.figures.len());
    println!(
        "undisturbed: {} probes in {:?}",
        expected.probes.len(),
        since.elapsed()
    );
    expected
}

async fn finish_together(case: &Case<'_>) {
    let expected = if case.kinds.is_empty() {
        None
    } else {
        Some(undisturbed(case).await)
    };
    let since = Instant::now();
    let mut crew = Crew::start(case.command, HOSTS.len()).await;
    let path = crew.post(&case.study).await;
    // Each has done something before the first is killed, and has something left to do after.
    loop {
        let probes = crew.probes(&path).await;
        let done: BTreeSet<&str> = probes
            .iter()
            .filter(|probe| probe["state"] == "succeeded")
            .map(host)
            .collect();
        if done.len() == HOSTS.len() {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "only these took part: {done:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    crew.kill_worker(0).await;
    crew.kill_service();
    crew.kill_worker(2).await;
    crew.kill_worker(1).await;

    let found = crew.found(&path, case.kinds).await;
    let probes = crew.probes(&path).await;
    for host in HOSTS {
        let done = probes.iter().filter(|probe| self::host(probe) == host);
        println!("{host} ended {} of {} probes", done.count(), probes.len());
    }
    println!("together: {:?}", since.elapsed());
    if let Some(expected) = expected {
        // Apart, so that what differs can be seen.
        assert_eq!(found.probes, expected.probes);
        assert_eq!(found.figures, expected.figures);
        assert_eq!(found.advice, expected.advice);
    }
    let count = |name: &str| -> i64 { probes.iter().filter_map(|it| it[name].as_i64()).sum() };
    let repeated = count("attempt") - i64::try_from(probes.len()).expect("a count");
    // Three workers were killed with a probe each; the service held none that its end could cost.
    assert!(repeated <= 3, "{repeated} attempts beyond those in flight");
    assert_eq!((count("losses"), count("crashes")), (repeated, 0));
    let succeeded = probes.iter().filter(|it| it["state"] == "succeeded");
    let id = path.rsplit('/').next().expect("an id");
    let id = StudyId(id.parse().expect("an id"));
    assert_each_once(&crew.database, id, succeeded.count()).await;
}

fn external_study() -> Value {
    json!({
        "workload": {
            "dataset": {"external": {
                "name": "my-images",
                "input": {"kind": "image", "channels": 3, "height": 32, "width": 32},
                "target": {"kind": "classes", "count": 10},
                "training_examples": 5000,
                "validation_examples": 1000
            }},
            "model": {"family": "external", "name": "my-net", "parameters": 25_000_000},
            "target": {"metric": "validation_cross_entropy", "value": 0.2}
        },
        "runner": {"name": RUNNER, "version": "1"},
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": 16, "max": 256, "grid": {"values": [16, 64, 256]}},
        "device": {"memory_budget_bytes": 128 << 20, "threads": 1},
        "questions": ["feasible_batch_sizes", "throughput", "critical_batch_size", "batch_size"],
        "budget": {"device_secs": 2000, "probes": 500},
        "seed": 3
    })
}

/// Every figure of this runner is known, times and memory too, so everything must be the same.
#[tokio::test]
async fn workers_of_two_kinds_killed_once_each_finish_a_study_as_if_nothing_had_happened() {
    const TEST: &str =
        "workers_of_two_kinds_killed_once_each_finish_a_study_as_if_nothing_had_happened";
    let Some(command) = python::simulated(TEST, "") else {
        return;
    };
    let kinds = [
        "smoke",
        "memory",
        "confirmation",
        "step_time",
        "learning_rate_range",
        "training",
    ];
    finish_together(&Case {
        command: &command,
        study: external_study(),
        kinds: &kinds,
    })
    .await;
}

/// A run is deterministic here too, but how often it evaluates is planned by what evaluating costs, which is timed: no two
/// studies are quite the same.
#[tokio::test]
async fn workers_killed_once_each_finish_a_study_in_pytorch() {
    const TEST: &str = "workers_killed_once_each_finish_a_study_in_pytorch";
    let Some(command) = python::digits(TEST) else {
        return;
    };
    let study = json!({
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": {"family": "mlp", "hidden": [16]},
            "target": {"metric": "validation_cross_entropy", "value": 0.5}
        },
        "runner": {"name": RUNNER, "version": "1"},
        "optimizer": {"family": "sgd_momentum"},
        "batch_sizes": {"min": 32, "max": 128, "grid": {"values": [32, 128]}},
        "device": {"memory_budget_bytes": 1 << 30, "threads": 1},
        "search": {"hyperparameters": ["learning_rate"]},
        "questions": ["critical_batch_size"],
        "seed": 11
    });
    finish_together(&Case {
        command: &command,
        study,
        kinds: &[],
    })
    .await;
}

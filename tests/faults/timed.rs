//! Kills while something is timed. What is timed differs from run to run, so two things are asked apart: that every figure
//! comes from one attempt, which nobody ran beside and which stands where it was planned, and this holds always; and that an
//! undisturbed study says much the same, as far as a machine that others use at the same time can say the same twice.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::postgres::TestDatabase;
use crate::proxy::Proxy;
use crate::server::{ServerProcess, TRAINING};
use crate::worker::WorkProcess;

/// Leases outlast a restart of the service, so that only the probes of a killed worker are run again.
const LEASE_SECS: f64 = 60.0;

/// What else runs on the machine may shift one study against the other by this.
const DRIFT: f64 = 1.3;

/// How long a study may take: the noisier the machine, the longer each timing goes on, up to two minutes.
const LONG: Duration = Duration::from_secs(900);

/// How often a worker or the service is killed while something is being timed.
const KILLS: usize = 6;

/// What a layer waits each time that its work is launched, microseconds. Steps that mostly wait take much the same time on a
/// machine that is shared, and are soon known well; how a study is kept does not depend on what its steps do.
const LAUNCH_MICROS: &str = "1000";

fn study() -> Value {
    json!({
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": {"family": "mlp", "hidden": [16]}
        },
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": 8, "max": 512, "grid": {"values": [8, 64, 512]}},
        "device": {"memory_budget_bytes": 1 << 30, "threads": 1},
        "questions": ["throughput", "batch_size"],
        "seed": 5
    })
}

/// What a study came to.
struct Found {
    probes: Vec<Value>,
    /// By probe, the figures of the attempt that completed.
    figures: BTreeMap<String, Vec<Value>>,
    points: Vec<Value>,
    chosen: u64,
    near_ties: Vec<u64>,
}

async fn items(server: &ServerProcess, url: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut page = String::new();
    loop {
        let answer = server.until(&format!("{url}{page}"), |_| true).await;
        all.extend(answer["items"].as_array().expect("items").iter().cloned());
        match answer["next_page_token"].as_str() {
            Some(token) => page = format!("&page_token={token}"),
            None => return all,
        }
    }
}

async fn found(server: &ServerProcess, path: &str) -> Found {
    let since = Instant::now();
    let study = loop {
        let study = server.until(path, |_| true).await;
        if study["state"] != "queued" && study["state"] != "running" {
            break study;
        }
        assert!(since.elapsed() < LONG, "{study}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(study["ended_because"], "answered", "{study}");
    let probes = items(server, &format!("{path}/probes?page_size=500")).await;
    let mut figures = BTreeMap::<String, Vec<Value>>::new();
    let url = format!("{path}/measurements?kind=step_time&page_size=500");
    for figure in items(server, &url).await {
        let probe = figure["probe_id"].as_str().expect("a probe").to_owned();
        figures.entry(probe).or_default().push(figure);
    }
    let analysis = server.until(&format!("{path}/analysis"), |_| true).await;
    let points = &analysis["analysis"]["throughput"]["points"];
    let advice = items(server, &format!("{path}/recommendations")).await;
    let advice = advice.iter().find(|it| it["topic"] == "batch_size");
    let advice = advice.expect("a batch size");
    let ties = advice["confidence"]["near_ties"].as_array();
    Found {
        probes: probes.iter().map(|it| it["probe"].clone()).collect(),
        figures,
        points: points.as_array().expect("points").clone(),
        chosen: advice["value"]["batch_size"].as_u64().expect("a size"),
        near_ties: ties
            .expect("near ties")
            .iter()
            .filter_map(Value::as_u64)
            .collect(),
    }
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// The figure of a whole probe.
fn whole(figures: &[Value], metric: &str) -> f64 {
    let mut of_metric = figures
        .iter()
        .filter(|it| it["metric"] == metric && it["step"].is_null());
    let found = of_metric.next().map(|it| number(&it["value"]));
    assert!(of_metric.next().is_none(), "{metric} was told twice");
    found.unwrap_or_else(|| panic!("no {metric} in {figures:?}"))
}

/// Every figure is of one attempt, told once and in order: two attempts mixed would break the order of the numbers, of the
/// blocks or of the time.
fn assert_of_one_attempt(figures: &[Value]) {
    for (index, figure) in figures.iter().enumerate() {
        assert_eq!(figure["seq"], index, "{figures:?}");
    }
    let elapsed: Vec<f64> = figures
        .iter()
        .map(|it| number(&it["elapsed_secs"]))
        .collect();
    assert!(elapsed.is_sorted(), "{elapsed:?}");
    let blocks: Vec<&Value> = figures
        .iter()
        .filter(|it| it["metric"] == "block_time_per_step")
        .collect();
    assert!(!blocks.is_empty());
    for (index, block) in blocks.iter().enumerate() {
        assert_eq!(block["step"], index, "{blocks:?}");
    }
    let times = blocks.iter().map(|it| number(&it["value"]));
    let (least, most) = times.fold((f64::INFINITY, 0.0_f64), |(least, most), it| {
        (least.min(it), most.max(it))
    });
    let median = whole(figures, "time_per_step_median");
    assert!((least..=most).contains(&median), "{least} {median} {most}");
}

/// What must hold however steady the machine is.
fn assert_kept_well(found: &Found) {
    let timed: Vec<&Value> = found
        .probes
        .iter()
        .filter(|it| it["kind"] == "step_time")
        .collect();
    assert!(
        timed.iter().all(|it| it["state"] == "succeeded"),
        "{timed:?}"
    );
    for probe in &timed {
        let figures = &found.figures[probe["id"].as_str().expect("an id")];
        assert_of_one_attempt(figures);
        let sizes = figures.iter().map(|it| &it["batch_size"]);
        assert!(sizes.clone().all(|it| *it == probe["batch_size"]));
        // The attempt took at least as long as its last figure says.
        let last = number(&figures.last().expect("some")["elapsed_secs"]);
        assert!(last <= number(&probe["device_secs"]) + 0.1, "{probe}");
    }
    // Nobody was on the device meanwhile, by the database's clock.
    let window = |probe: &Value| -> (String, String) {
        let at = |name: &str| probe[name].as_str().expect("a time").to_owned();
        (at("started_at"), at("ended_at"))
    };
    for probe in &timed {
        let (start, end) = window(probe);
        for other in found.probes.iter().filter(|it| it["id"] != probe["id"]) {
            let (other_start, other_end) = window(other);
            assert!(
                parsed(&other_end) <= parsed(&start) || parsed(&end) <= parsed(&other_start),
                "{} and {} ran at once",
                probe["id"],
                other["id"]
            );
        }
    }
    // A batch size's time is the geometric mean over its children, each of another round.
    for point in &found.points {
        let ids = point["probe_ids"].as_array().expect("probes");
        assert_eq!(point["replicates"], ids.len());
        let mut rounds: Vec<i64> = Vec::new();
        let mut ln = 0.0;
        for id in ids {
            let probe = timed
                .iter()
                .find(|it| it["id"] == *id)
                .expect("a timed one");
            assert_eq!(probe["batch_size"], point["batch_size"]);
            rounds.push(probe["spec"]["replicate"].as_i64().expect("a round"));
            let figures = &found.figures[id.as_str().expect("an id")];
            ln += whole(figures, "time_per_step_median").ln() / ids.len() as f64;
        }
        rounds.sort_unstable();
        rounds.dedup();
        assert_eq!(rounds.len(), ids.len(), "a round counts twice: {point}");
        let told = number(&point["time_per_step_secs"]["value"]);
        assert!((ln.exp() / told - 1.0).abs() < 1e-6, "{} {point}", ln.exp());
    }
}

fn parsed(time: &str) -> chrono::DateTime<chrono::FixedOffset> {
    chrono::DateTime::parse_from_rfc3339(time).expect("a time")
}

fn batch_sizes(found: &Found) -> Vec<u64> {
    let sizes = found
        .points
        .iter()
        .filter_map(|it| it["batch_size"].as_u64());
    sizes.collect()
}

/// Whether two intervals overlap, when each may be off by so much in all.
fn overlap(one: &Value, other: &Value, drift: f64) -> bool {
    let end = |of: &Value, name: &str| number(&of["time_per_step_secs"][name]);
    end(one, "ci_lower") <= end(other, "ci_upper") * drift
        && end(other, "ci_lower") <= end(one, "ci_upper") * drift
}

#[tokio::test]
async fn times_taken_between_kills_are_those_of_an_undisturbed_study() {
    let (calm_home, home) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let locks = home.path().join("locks");
    let locks = locks.to_str().expect("text");
    let runner = crate::fake::example("faulty_runner");
    let command = format!("{},0,0,{LAUNCH_MICROS}", runner.display());
    let start = |base: &str, home: &Path| {
        let variables = [
            ("TRIALHEAD_POOL__CHILD_COMMAND", command.as_str()),
            ("TRIALHEAD_POOL__LOCK_DIR", locks),
            // Nobody hands back a probe for having waited for the other study: an attempt more is a kill.
            ("TRIALHEAD_POOL__DEVICE_WAIT_SECS", "600"),
        ];
        WorkProcess::start_with(base, "host", TRAINING, home, &[], &variables)
    };
    // Both at once, on one host whose lock lets them take their times in turn: whatever else makes the machine slower for a
    // while does so for both.
    let calm_database = TestDatabase::create().await;
    let calm_server = ServerProcess::start_with_lease(calm_database.url(), LEASE_SECS);
    let _calm_worker = start(&calm_server.base, calm_home.path());
    let calm_path = crate::storm::post(&calm_server, &study()).await;

    // Two workers, so that a place is left to be taken wrongly.
    let start = |base: &str| start(base, home.path());
    let database = TestDatabase::create().await;
    let network = Proxy::start().await;
    let mut server = ServerProcess::start_with_lease(database.url(), LEASE_SECS);
    network.lead_to(&server.base);
    let mut workers = [Some(start(&network.base)), Some(start(&network.base))];
    let path = crate::storm::post(&server, &study()).await;
    let timing = format!("{path}/probes?kind=step_time&state=running");
    let (mut kills, mut killed_timings) = (0, 0);
    let since = Instant::now();
    while kills < KILLS {
        assert!(since.elapsed() < LONG, "{kills} kills");
        let running = server.until(&timing, |_| true).await;
        if running["items"].as_array().expect("items").is_empty() {
            let study = server.until(&path, |_| true).await;
            assert!(
                study["state"] == "queued" || study["state"] == "running",
                "only {kills} kills: {study}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        // Somewhere within a timing, which takes two seconds or more.
        tokio::time::sleep(Duration::from_millis(100 * kills as u64)).await;
        if kills % 3 == 2 {
            server.kill_9();
            server = ServerProcess::start_with_lease(database.url(), LEASE_SECS);
            network.lead_to(&server.base);
        } else {
            // Whoever has a child is timing it; between two probes it is nobody.
            let busy = workers.iter().position(|it| {
                it.as_ref()
                    .is_some_and(|worker| !worker.children().is_empty())
            });
            let Some(busy) = busy else { continue };
            workers[busy].take().expect("running").kill_9();
            killed_timings += 1;
            workers[busy] = Some(start(&network.base));
        }
        kills += 1;
    }
    let calm = found(&calm_server, &calm_path).await;
    let stormy = found(&server, &path).await;
    assert_kept_well(&calm);
    assert_kept_well(&stormy);
    let count = |name: &str| -> i64 {
        stormy
            .probes
            .iter()
            .filter_map(|it| it[name].as_i64())
            .sum()
    };
    let repeated = count("attempt") - i64::try_from(stormy.probes.len()).expect("a count");
    // Each worker ran at most one probe when it was killed; the service cost none.
    assert!(
        (1..=killed_timings).contains(&repeated),
        "{repeated} after {killed_timings}"
    );
    assert_eq!(count("crashes"), 0);

    assert_eq!(batch_sizes(&stormy), batch_sizes(&calm));
    let pairs: Vec<(&Value, &Value)> = calm.points.iter().zip(&stormy.points).collect();
    for (one, other) in &pairs {
        println!(
            "batch size {}: {} undisturbed, {} between kills; intervals {}",
            one["batch_size"],
            one["time_per_step_secs"],
            other["time_per_step_secs"],
            if overlap(one, other, 1.0) {
                "overlap"
            } else {
                "are apart"
            }
        );
    }
    let alike = pairs.iter().filter(|it| overlap(it.0, it.1, DRIFT)).count();
    assert!(
        2 * alike > pairs.len(),
        "only {alike} of {} are alike",
        pairs.len()
    );
    println!(
        "chosen: {} {:?}, {} {:?}",
        calm.chosen, calm.near_ties, stormy.chosen, stormy.near_ties
    );
    assert!(
        calm.chosen == stormy.chosen
            || calm.near_ties.contains(&stormy.chosen)
            || stormy.near_ties.contains(&calm.chosen),
        "{} {:?}, {} {:?}",
        calm.chosen,
        calm.near_ties,
        stormy.chosen,
        stormy.near_ties
    );
}

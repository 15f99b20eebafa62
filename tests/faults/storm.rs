//! A service and two workers elsewhere, each killed at random while they do a real study: training on the
//! CPU is deterministic, so what was asked, found and advised is what an undisturbed run gives.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::ends::{advice, training_study, trials};
use crate::postgres::TestDatabase;
use crate::proxy::Proxy;
use crate::server::{PATIENCE, ServerProcess, TRAINING};
use crate::worker::WorkProcess;

/// How many kills there are, if not 20: `TRIALHEAD_TEST_KILLS=100 ./scripts/test --test faults killed_at_random`.
const KILLS: &str = "TRIALHEAD_TEST_KILLS";

/// Figures of the kinds that are deterministic: those of training.
async fn figures(server: &ServerProcess, path: &str) -> Vec<Value> {
    let mut figures = Vec::new();
    let mut url = format!("{path}/measurements?kind=training&page_size=500");
    loop {
        let page = server.until(&url, |_| true).await;
        for item in page["items"].as_array().expect("items") {
            // How long it took is not, nor is the share of that which evaluating took.
            let is_timed = item["unit"] == "s" || item["metric"] == "evaluation_share";
            if !is_timed && item["unit"] != "bytes" {
                figures.push(json!([item["metric"], item["step"], item["value"]]));
            }
        }
        match page["next_page_token"].as_str() {
            Some(token) => {
                url = format!("{path}/measurements?kind=training&page_size=500&page_token={token}");
            }
            None => return figures,
        }
    }
}

struct Found {
    probes: Vec<(Value, Value)>,
    figures: Vec<Value>,
    advice: Vec<(Value, Value)>,
}

/// Posts a study and gives its path.
pub async fn post(server: &ServerProcess, study: &Value) -> String {
    let study = server.post("/v1/studies", study).await;
    let id = study["id"].as_str().unwrap_or_else(|| panic!("{study}"));
    format!("/v1/studies/{id}")
}

async fn found(server: &ServerProcess, path: &str) -> Found {
    let study = server.ended(path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    Found {
        probes: trials(server, path).await,
        figures: figures(server, path).await,
        advice: advice(server, path).await,
    }
}

#[expect(clippy::print_stderr, reason = "the figures of a soak")]
async fn storm(kills: usize, seed: u64) {
    let home = tempfile::tempdir().expect("a folder");
    let calm = TestDatabase::create().await;
    let server = ServerProcess::start(calm.url(), "calm", TRAINING);
    let path = post(&server, &training_study()).await;
    let expected = found(&server, &path).await;
    assert!(expected.figures.len() > 100, "{}", expected.figures.len());
    drop(server);

    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut done = 0;
    let mut killed = [0; 3];
    // A study is soon done: further ones, each on a database of its own, until there were enough kills.
    while done < kills {
        let database = TestDatabase::create().await;
        let network = Proxy::start().await;
        let mut server = ServerProcess::start_without_workers(database.url());
        network.lead_to(&server.base);
        let start = |number: usize| {
            WorkProcess::start(
                &network.base,
                &format!("host {number}"),
                TRAINING,
                home.path(),
            )
        };
        let mut workers = [Some(start(0)), Some(start(1))];
        let before = done;
        let path = post(&server, &training_study()).await;
        let since = Instant::now();
        loop {
            let pause = random.random_range(0.2..1.5);
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            let study = server.until(&path, |_| true).await;
            if study["state"] != "queued" && study["state"] != "running" {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{study}");
            if done >= kills {
                continue;
            }
            let victim = random.random_range(0..3);
            killed[victim] += 1;
            done += 1;
            if victim < workers.len() {
                workers[victim].take().expect("running").kill_9();
                workers[victim] = Some(start(victim));
            } else {
                server.kill_9();
                server = ServerProcess::start_without_workers(database.url());
                network.lead_to(&server.base);
            }
        }
        let after = found(&server, &path).await;
        assert_eq!(after.probes, expected.probes);
        assert_eq!(after.figures, expected.figures);
        assert_eq!(after.advice, expected.advice);
        let list = server
            .until(&format!("{path}/probes?page_size=500"), |_| true)
            .await;
        let repeated: i64 = list["items"]
            .as_array()
            .expect("items")
            .iter()
            .filter_map(|item| item["probe"]["attempt"].as_i64())
            .map(|attempt| attempt - 1)
            .sum();
        // No probe is repeated beyond those in flight: at most two are at any moment.
        let most = 2 * i64::try_from(done - before).expect("a count");
        assert!(
            repeated <= most,
            "{repeated} repeated after {most} / 2 kills"
        );
        eprintln!("{done} kills so far, {repeated} attempts repeated in this study");
    }
    eprintln!(
        "killed: workers {} and {}, service {}",
        killed[0], killed[1], killed[2]
    );
}

#[tokio::test]
async fn workers_and_service_killed_at_random_find_what_an_undisturbed_run_finds() {
    let kills = std::env::var(KILLS).map_or(20, |kills| kills.parse().expect("a number"));
    storm(kills, 3).await;
}

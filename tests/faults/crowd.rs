//! A thousand probes through four services: none is done twice, none is lost, also while services are
//! killed at random.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trialhead::probe::Task;
use trialhead::store::{events, studies};
use trialhead::study::StudyId;

use crate::postgres::TestDatabase;
use crate::queue::study;
use crate::server::{PATIENCE, ServerProcess};

/// The model of this host, as a service on the database has told it.
pub async fn model(server: &ServerProcess) -> String {
    let devices = server
        .until("/v1/devices", |list| list["items"][0]["model"].is_string())
        .await;
    devices["items"][0]["model"]
        .as_str()
        .expect("a model")
        .to_owned()
}

async fn succeeded(database: &TestDatabase, id: StudyId) -> i64 {
    let mut conn = database
        .database()
        .connection()
        .await
        .expect("a connection");
    let progress = studies::progress(&mut conn, &[id.0]).await.expect("read");
    progress
        .get(&id.0)
        .map_or(0, |(counts, _)| counts.succeeded)
}

/// So many probes ended, successfully and each once.
pub async fn assert_each_once(database: &TestDatabase, id: StudyId, probes: usize) {
    let mut conn = database
        .database()
        .connection()
        .await
        .expect("a connection");
    let log = events::list_after(&mut conn, id, 0, i64::MAX)
        .await
        .expect("read");
    let mut ends = HashMap::<String, usize>::new();
    for (_, kind, data) in log {
        if kind == "probe" && data["state"] == "succeeded" {
            *ends.entry(data["probe_id"].to_string()).or_default() += 1;
        }
    }
    assert_eq!(ends.len(), probes, "some were lost");
    assert!(
        ends.values().all(|count| *count == 1),
        "some were done twice"
    );
}

#[tokio::test]
async fn a_thousand_probes_through_four_services_are_each_done_once() {
    const PROBES: u32 = 1000;
    let database = TestDatabase::create().await;
    let servers: Vec<ServerProcess> = (0..4)
        .map(|number| ServerProcess::start(database.url(), &format!("host {number}"), &["noop"]))
        .collect();
    let model = model(&servers[0]).await;
    let id = study(database.database(), &model, 0, PROBES, |_| Task::Memory {
        steps: 1,
    })
    .await;
    let since = Instant::now();
    while succeeded(&database, id).await < i64::from(PROBES) {
        assert!(
            since.elapsed() < PATIENCE,
            "{}",
            succeeded(&database, id).await
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_each_once(&database, id, PROBES as usize).await;
}

#[tokio::test]
async fn services_killed_at_random_lose_no_probe_and_do_none_twice() {
    const PROBES: u32 = 300;
    let database = TestDatabase::create().await;
    let start =
        |number: usize| ServerProcess::start(database.url(), &format!("host {number}"), &["noop"]);
    let mut servers: Vec<Option<ServerProcess>> = (0..4).map(|it| Some(start(it))).collect();
    let model = model(servers[0].as_ref().expect("running")).await;
    let id = study(database.database(), &model, 0, PROBES, |_| Task::Memory {
        steps: 1,
    })
    .await;
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let since = Instant::now();
    let mut kills = 0;
    while succeeded(&database, id).await < i64::from(PROBES) {
        assert!(
            since.elapsed() < PATIENCE,
            "{}",
            succeeded(&database, id).await
        );
        if kills < 12 {
            let victim = random.random_range(0..servers.len());
            servers[victim].take().expect("running").kill_9();
            servers[victim] = Some(start(victim));
            kills += 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(kills > 0);
    assert_each_once(&database, id, PROBES as usize).await;
}

//! A listener of a service that is killed: it comes back to another one with the number that it heard last, and in all it
//! has heard everything once.

use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use trialhead::probe::Task;
use trialhead::store::events;

use crate::crowd::model;
use crate::listener::{Heard, Listener, ids};
use crate::postgres::TestDatabase;
use crate::queue::study;
use crate::server::{PATIENCE, ServerProcess};

#[tokio::test]
async fn a_listener_that_comes_back_after_a_kill_misses_nothing_and_hears_nothing_twice() {
    const PROBES: u32 = 1000;
    const KILLS: usize = 6;
    let database = TestDatabase::create().await;
    let start = |host: &str| ServerProcess::start(database.url(), host, &["noop"]);
    // One that stays, so that there is always something to hear, and one that is listened to.
    let steady = start("steady");
    let mut server = start("killed");
    let model = model(&steady).await;
    let id = study(database.database(), &model, 0, PROBES, |_| Task::Memory {
        steps: 1,
    })
    .await;
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut heard = Vec::<Heard>::new();
    let since = Instant::now();
    for kill in 0..=KILLS {
        let request = server
            .http
            .get(format!("{}/v1/studies/{id}/events", server.base));
        let request = match ids(&heard).last() {
            Some(last) => request.header("last-event-id", *last),
            None => request,
        };
        let mut listener = Listener::of(request).await;
        for _ in 0..random.random_range(5..40) {
            heard.push(listener.next().await.expect("the study goes on"));
        }
        if kill < KILLS {
            server.kill_9();
            server = start("killed");
        } else {
            let path = format!("/v1/studies/{id}/cancel");
            steady.post(&path, &serde_json::json!({})).await;
        }
        // After a kill, what was on its way still arrives, whole or in part.
        heard.extend(listener.rest().await);
        assert!(since.elapsed() < PATIENCE);
    }
    let mut conn = database.database().connection().await.expect("one");
    let log = events::list_after(&mut conn, id, 0, i64::MAX)
        .await
        .expect("read");
    let numbers: Vec<i64> = log.iter().map(|(seq, _, _)| *seq).collect();
    assert_eq!(numbers, (1..=log.len() as i64).collect::<Vec<_>>());
    assert_eq!(ids(&heard), numbers);
    for (event, (_, kind, data)) in heard.iter().zip(&log) {
        assert_eq!((&event.event, &event.data["data"]), (kind, data));
    }
    let last = log.last().expect("events");
    assert_eq!(last.2["state"], "cancelled");
}

//! Listening to studies: nothing is missed, nothing is doubled, and nobody who listens costs more than a place.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::NoTls;
use trialhead::access::Scope;
use trialhead::store;
use trialhead::store::events::{self, EventKind};
use trialhead::store::studies;
use trialhead::study::StudyId;

use crate::listener::{Heard, Listener, ids};
use crate::postgres::{TestDatabase, execute};
use crate::service::{Answer, PATIENCE, TestService, digits};

async fn listen(service: &TestService, path: &str) -> Listener {
    Listener::of(service.http.get(format!("{}{path}/events", service.base))).await
}

async fn listen_after(service: &TestService, path: &str, id: i64) -> Listener {
    let request = service.http.get(format!("{}{path}/events", service.base));
    Listener::of(request.header("last-event-id", id)).await
}

async fn ask_after(service: &TestService, path: &str, id: &str) -> Answer {
    let request = service.http.get(format!("{}{path}/events", service.base));
    Answer::of(request.header("last-event-id", id)).await
}

fn study_id(path: &str) -> StudyId {
    let id = path.rsplit('/').next().expect("an id");
    StudyId(id.parse().expect("a UUID"))
}

/// Lets something happen to a study: `count` events in one transaction, and a notification after it.
async fn happen(database: &TestDatabase, path: &str, count: usize, data: &Value) {
    let mut conn = database.database().connection().await.expect("one");
    store::begin(&mut conn).await.expect("begins");
    for _ in 0..count {
        events::append(
            &mut conn,
            study_id(path),
            &[(EventKind::Study, data.clone())],
        )
        .await
        .expect("appended");
    }
    store::finish(&mut conn, Ok::<_, store::StoreError>(()))
        .await
        .expect("committed");
    drop(conn);
    execute(database.url(), "SELECT pg_notify('trialhead', '')").await;
}

/// The number of the last event.
async fn newest(database: &TestDatabase, path: &str) -> i64 {
    let mut conn = database.database().connection().await.expect("one");
    let study = studies::find_anywhere(&mut conn, study_id(path))
        .await
        .expect("read");
    study.expect("it is there").next_event_seq - 1
}

fn are_whole(heard: &[Heard], from: i64) {
    let expected: Vec<i64> = (from..).take(heard.len()).collect();
    assert_eq!(ids(heard), expected);
}

#[tokio::test]
async fn a_study_is_heard_from_its_beginning_to_its_end() {
    let service = TestService::with_worker().await;
    let path = service.create(&digits()).await;
    let (mut one, mut other) = (listen(&service, &path).await, listen(&service, &path).await);
    let (heard, by_other) = tokio::join!(one.rest(), other.rest());
    assert_eq!(heard, by_other);
    are_whole(&heard, 1);
    for event in &heard {
        assert_eq!(event.data["seq"].as_i64(), event.id);
        assert_eq!(event.data["kind"], json!(event.event));
    }
    let data = |event: &Heard| event.data["data"].clone();
    let last = heard.last().expect("events");
    assert_eq!(
        (last.event.as_str(), &data(last)["state"]),
        ("study", &json!("succeeded"))
    );
    let states: Vec<Value> = heard
        .iter()
        .filter(|event| event.event == "study")
        .map(|event| data(event)["state"].clone())
        .filter(|state| !state.is_null())
        .collect();
    assert_eq!(states, ["running", "succeeded"]);
    assert!(heard.iter().any(|event| event.event == "recommendations"));
    // Each probe was started before it ended.
    let mut running = Vec::new();
    let mut ended = 0;
    for event in heard.iter().filter(|event| event.event == "probe") {
        let probe = data(event)["probe_id"].clone();
        if data(event)["state"] == "running" {
            running.push(probe);
        } else {
            assert_eq!(running.pop(), Some(probe));
            ended += 1;
        }
    }
    let study = service.get(&path).await.json();
    assert_eq!(study["progress"]["probes_done"], json!(ended));

    // Whoever comes back hears the rest, and then that there is none.
    let end = last.id.expect("a number");
    let again = listen_after(&service, &path, end - 3).await.rest().await;
    assert_eq!(again, heard[heard.len() - 3..]);
    let by_query = format!("{}{path}/events?last_event_id={}", service.base, end - 2);
    let again = Listener::of(service.http.get(&by_query)).await.rest().await;
    assert_eq!(again, heard[heard.len() - 2..]);
    let request = service.http.get(&by_query).header("last-event-id", end - 1);
    let again = Listener::of(request).await.rest().await;
    assert_eq!(again, heard[heard.len() - 1..]);
    let done = ask_after(&service, &path, &end.to_string()).await;
    assert_eq!((done.status, done.text.as_str()), (204, ""));

    // A revision goes on with the next number.
    let mut dearer = digits();
    dearer["costs"] = json!({"device_hour": 9.0});
    let url = format!("{}{path}/definition", service.base);
    let request = service
        .http
        .put(url)
        .header("if-match", "\"1\"")
        .json(&dearer);
    assert_eq!(Answer::of(request).await.status, 200);
    let more = listen_after(&service, &path, end).await.rest().await;
    are_whole(&more, end + 1);
    assert_eq!(data(&more[0])["revision"], 2);
}

#[tokio::test]
async fn what_happens_is_heard_in_another_service_at_once() {
    // Without the tick nothing but the notification can tell.
    let slow = |settings: &mut trialhead::settings::Settings| {
        settings.workers = 0;
        settings.pool.tick_secs = 3600.0;
    };
    let service = TestService::start(slow).await;
    let path = service.create(&digits()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = crate::service::settings(service.database.url().to_owned(), folder.path());
    slow(&mut settings);
    let other = trialhead::service::Service::start(settings)
        .await
        .expect("another service");
    let url = format!("http://{}{path}/events", other.address);
    let mut listener = Listener::of(service.http.get(url)).await;
    are_whole(
        &listener.until(newest(&service.database, &path).await).await,
        1,
    );
    service.post(&format!("{path}/cancel"), &json!({})).await;
    let rest = listener.rest().await;
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].data["data"]["state"], "cancelled");
    other.stop().await;
}

#[tokio::test]
async fn what_is_no_event_of_the_study_is_refused() {
    let service = TestService::without_workers().await;
    let path = service.create(&digits()).await;
    let newest = newest(&service.database, &path).await;
    for bad in ["x", "-1", "1.5", "1,2", &(newest + 1).to_string()] {
        let problem = ask_after(&service, &path, bad)
            .await
            .problem(400, "last_event_id_invalid");
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains(bad.trim_start_matches('+')), "{detail}");
    }
    for query in ["last_event_id=x", "last_event_id=", "last_event_id=99"] {
        service
            .get(&format!("{path}/events?{query}"))
            .await
            .problem(400, "last_event_id_invalid");
    }
    service
        .get(&format!("{path}/events?from=1"))
        .await
        .problem(400, "malformed_request");
    service
        .get(&format!("/v1/studies/{}/events", uuid::Uuid::nil()))
        .await
        .problem(404, "not_found");
    // The number itself is right.
    let mut listener = listen_after(&service, &path, newest).await;
    happen(&service.database, &path, 1, &json!({})).await;
    assert_eq!(
        listener.next().await.expect("an event").id,
        Some(newest + 1)
    );
}

#[tokio::test]
async fn only_who_may_read_the_study_hears_it() {
    let (service, _) = TestService::guarded(|_| {}).await;
    let of_a = service
        .token("of a", &[Scope::Read, Scope::Write], Some("a"))
        .await;
    let url = format!("{}/v1/studies", service.base);
    let posted = Answer::of(service.http.post(url).bearer_auth(&of_a).json(&digits())).await;
    let path = posted.header("location").expect("a Location").to_owned();
    let ask = async |token: Option<&str>| {
        let mut request = service.http.get(format!("{}{path}/events", service.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        Answer::of(request).await
    };
    ask(None).await.problem(401, "token_missing");
    let writer = service.token("writer", &[Scope::Write], Some("a")).await;
    ask(Some(&writer)).await.problem(403, "insufficient_scope");
    let of_b = service.token("of b", &[Scope::Read], Some("b")).await;
    ask(Some(&of_b)).await.problem(404, "not_found");
    assert_eq!(ask(Some(&of_a)).await.status, 200);
}

#[tokio::test]
async fn two_hundred_listeners_share_one_listening_connection() {
    const LISTENERS: usize = 200;
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.pool.tick_secs = 3600.0;
    })
    .await;
    let studies = [
        service.create(&digits()).await,
        service.create(&digits()).await,
    ];
    let mut listeners = futures::future::join_all((0..LISTENERS).map(async |number| {
        let path = &studies[number % 2];
        let mut listener = listen(&service, path).await;
        // The log so far, so that all of them are in place.
        let newest = newest(&service.database, path).await;
        are_whole(&listener.until(newest).await, 1);
        (number % 2, newest, listener)
    }))
    .await;
    let metrics = service.get("/metrics").await.text;
    let line = format!("trialhead_listeners{{by=\"events\"}} {LISTENERS}");
    assert!(metrics.contains(&line), "{line} in {metrics}");
    let reads_before = reads(&metrics);

    const CHANGES: i64 = 5;
    for _ in 0..CHANGES {
        for path in &studies {
            happen(&service.database, path, 3, &json!({"phase": "on and on"})).await;
        }
    }
    let since = Instant::now();
    let all = futures::future::join_all(listeners.iter_mut().map(async |(_, newest, listener)| {
        let heard = listener.until(*newest + 3 * CHANGES).await;
        are_whole(&heard, *newest + 1);
        heard.len()
    }))
    .await;
    assert!(
        since.elapsed() < Duration::from_secs(20),
        "{:?}",
        since.elapsed()
    );
    assert!(all.iter().all(|heard| *heard == 3 * CHANGES as usize));

    // The log was read for the changes, not for the listeners.
    let reads_after = reads(&service.get("/metrics").await.text);
    let readings = reads_after - reads_before;
    assert!(
        (1..=2 * CHANGES + 2).contains(&readings),
        "{readings} readings"
    );

    let (client, connection) = tokio_postgres::connect(service.database.url(), NoTls)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let row = client
        .query_one(
            "SELECT count(*) FILTER (WHERE query LIKE 'LISTEN%'), count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'trialhead'",
            &[],
        )
        .await
        .expect("a row");
    let (listening, sessions): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(listening, 1);
    // The pool of the service, its listening connection, and the pool of this test.
    assert!(sessions <= 8 + 1 + 16, "{sessions} sessions");

    // They leave when they go.
    drop(listeners);
    let since = Instant::now();
    while !service
        .get("/metrics")
        .await
        .text
        .contains("trialhead_listeners{by=\"events\"} 0")
    {
        assert!(since.elapsed() < PATIENCE, "they did not leave");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often the log was read for those who follow studies.
fn reads(metrics: &str) -> i64 {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix("trialhead_study_event_reads_total "))
        .expect("the metric")
        .parse()
        .expect("a number")
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_said() {
    let service = TestService::without_workers().await;
    let path = service.create(&digits()).await;
    happen(&service.database, &path, 20, &json!({})).await;
    let newest = newest(&service.database, &path).await;
    execute(
        service.database.url(),
        "DELETE FROM study_events WHERE seq <= 5",
    )
    .await;
    let mut late = listen_after(&service, &path, 2).await;
    let heard = late.until(newest).await;
    assert_eq!((heard[0].event.as_str(), heard[0].id), ("reset", Some(5)));
    are_whole(&heard, 5);
    assert!(heard[1..].iter().all(|event| event.event == "study"));
    // Whoever has heard the last of them, or nothing, has missed nothing.
    for mut listener in [
        listen_after(&service, &path, 5).await,
        listen(&service, &path).await,
    ] {
        are_whole(&listener.until(newest).await, 6);
    }
    // When nothing is kept the number goes on all the same.
    service.post(&format!("{path}/cancel"), &json!({})).await;
    late.rest().await;
    execute(service.database.url(), "DELETE FROM study_events").await;
    for mut listener in [
        listen_after(&service, &path, 7).await,
        listen(&service, &path).await,
    ] {
        let heard = listener.rest().await;
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!(
            (heard[0].event.as_str(), heard[0].id),
            ("reset", Some(newest + 1))
        );
    }
    let done = ask_after(&service, &path, &(newest + 1).to_string()).await;
    assert_eq!(done.status, 204);
}

#[tokio::test]
async fn a_study_that_is_deleted_is_heard_no_more() {
    let service = TestService::without_workers().await;
    let path = service.create(&digits()).await;
    let mut listener = listen(&service, &path).await;
    listener.until(newest(&service.database, &path).await).await;
    execute(
        service.database.url(),
        "DELETE FROM studies; SELECT pg_notify('trialhead', '')",
    )
    .await;
    let rest = listener.rest().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!((rest[0].event.as_str(), rest[0].id), ("deleted", None));
    ask_after(&service, &path, "1")
        .await
        .problem(404, "not_found");

    // Cancelled and deleted at once: one of the two is the last that is heard.
    let path = service.create(&digits()).await;
    let mut listener = listen(&service, &path).await;
    listener.until(newest(&service.database, &path).await).await;
    service.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!(service.delete(&path).await.status, 204);
    let rest = listener.rest().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    let is_last = rest[0].event == "deleted" || rest[0].data["data"]["state"] == "cancelled";
    assert!(is_last, "{rest:?}");
}

#[tokio::test]
async fn a_silent_stream_gives_signs_of_life_and_ends_in_time() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.event_heartbeat_secs = 0.05;
        settings.api.max_event_stream_secs = 1.0;
    })
    .await;
    let path = service.create(&digits()).await;
    let mut listener = listen(&service, &path).await;
    let heard = listener.until_comment("still there").await;
    are_whole(&heard, 1);
    assert_eq!(listener.retry, Some(2000));
    assert_eq!(listener.rest().await, []);
    assert_eq!(listener.retry, Some(0), "it is to come back at once");
}

#[tokio::test]
async fn there_are_so_many_places_and_no_more() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.max_listeners = 2;
    })
    .await;
    let path = service.create(&digits()).await;
    let first = listen(&service, &path).await;
    let _second = listen(&service, &path).await;
    let refused = service.get(&format!("{path}/events")).await;
    refused.problem(503, "too_many_listeners");
    assert!(refused.header("retry-after").is_some());
    service
        .get(&format!("{path}?wait_secs=10"))
        .await
        .problem(503, "too_many_listeners");
    // What does not wait needs no place.
    assert_eq!(service.get(&path).await.status, 200);
    drop(first);
    let since = Instant::now();
    loop {
        let answer = service.get(&format!("{path}/events")).await;
        if answer.status == 200 {
            break;
        }
        answer.problem(503, "too_many_listeners");
        assert!(since.elapsed() < PATIENCE, "no place became free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn who_takes_nothing_is_sent_away_and_may_come_back() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.slow_listener_secs = 0.2;
        settings.api.max_listeners = 2;
    })
    .await;
    let path = service.create(&digits()).await;
    let address = service.base.trim_start_matches("http://");
    let mut slow = tokio::net::TcpStream::connect(address)
        .await
        .expect("connects");
    let request =
        format!("GET {path}/events HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    slow.write_all(request.as_bytes()).await.expect("sent");
    // It has its place as soon as its answer begins.
    let mut beginning = [0; 12];
    slow.read_exact(&mut beginning).await.expect("an answer");
    assert_eq!(&beginning, b"HTTP/1.1 200");

    // Another one takes everything: more than any buffer on the way to the first can hold.
    let mut quick = listen(&service, &path).await;
    quick.until(newest(&service.database, &path).await).await;
    let long = json!({"phase": "x".repeat(1 << 20)});
    let since = Instant::now();
    while !service
        .get("/metrics")
        .await
        .text
        .contains("trialhead_slow_listeners_total 1")
    {
        happen(&service.database, &path, 1, &long).await;
        let newest = newest(&service.database, &path).await;
        quick.until(newest).await;
        assert!(since.elapsed() < PATIENCE, "it is still listened to");
    }
    // Its place is free though it has not gone.
    let third = listen(&service, &path).await;
    drop(third);

    let mut text = Vec::new();
    slow.read_to_end(&mut text).await.expect("to the end");
    let text = String::from_utf8_lossy(&text);
    let heard: Vec<i64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("id: ")?.parse().ok())
        .collect();
    assert_eq!(heard, (1..).take(heard.len()).collect::<Vec<i64>>());
    assert!(text.contains("retry: 5000\n: too slow\n"));
    let last = *heard.last().expect("it heard some");
    let newest = newest(&service.database, &path).await;
    assert!(last < newest, "it heard all {last}");
    let mut again = listen_after(&service, &path, last).await;
    are_whole(&again.until(newest).await, last + 1);
}

#[tokio::test]
async fn a_service_that_stops_ends_its_streams() {
    let service = TestService::without_workers().await;
    let path = service.create(&digits()).await;
    let newest = newest(&service.database, &path).await;
    let mut listener = listen(&service, &path).await;
    listener.until(newest).await;
    let poll = tokio::spawn(
        service
            .http
            .get(format!("{}{path}?wait_secs=50", service.base))
            .send(),
    );
    let since = Instant::now();
    while !service
        .get("/metrics")
        .await
        .text
        .contains("trialhead_listeners{by=\"wait\"} 1")
    {
        assert!(since.elapsed() < PATIENCE, "it does not wait");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let since = Instant::now();
    let database = service.stop().await;
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(listener.rest().await, []);
    assert_eq!(
        listener.comments.last().map(String::as_str),
        Some("the service stops")
    );
    let answer = poll.await.expect("joined").expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);

    // Another one goes on where this one stopped.
    let service = TestService::start_on(database, |settings| settings.workers = 0).await;
    let mut listener = listen_after(&service, &path, newest).await;
    service.post(&format!("{path}/cancel"), &json!({})).await;
    are_whole(&listener.rest().await, newest + 1);
}

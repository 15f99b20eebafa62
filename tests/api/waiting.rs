//! Reading a study that is waited for: the answer comes when there is one, and not before.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::postgres::execute;
use crate::service::{Answer, PATIENCE, TestService, digits};

async fn wait(service: &TestService, path: &str, secs: f64, tag: Option<&str>) -> Answer {
    let url = format!("{}{path}?wait_secs={secs}", service.base);
    let mut request = service.http.get(url);
    if let Some(tag) = tag {
        request = request.header("if-none-match", tag);
    }
    Answer::of(request).await
}

/// Until so many requests wait.
async fn waiting(service: &TestService, count: usize) {
    let line = format!("trialhead_listeners{{by=\"wait\"}} {count}\n");
    let since = Instant::now();
    while !service.get("/metrics").await.text.contains(&line) {
        assert!(since.elapsed() < PATIENCE, "{line}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_change_is_answered_at_once() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.pool.tick_secs = 3600.0;
        settings.api.max_study_wait_secs = 3600.0;
    })
    .await;
    let path = service.create(&digits()).await;
    let read = service.get(&path).await;
    let tag = read.header("etag").expect("an ETag");
    let change = async {
        waiting(&service, 2).await;
        let since = Instant::now();
        service.post(&format!("{path}/cancel"), &json!({})).await;
        since
    };
    let (with_tag, without, since) = tokio::join!(
        wait(&service, &path, 3600.0, Some(tag)),
        wait(&service, &path, 3600.0, None),
        change
    );
    let took = since.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    for answer in [&with_tag, &without] {
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.json()["state"], "cancelled");
        assert_ne!(answer.header("etag"), Some(tag));
    }
    waiting(&service, 0).await;
}

#[tokio::test]
async fn without_a_change_the_answer_comes_when_the_time_is_over() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.max_study_wait_secs = 0.5;
    })
    .await;
    let path = service.create(&digits()).await;
    let read = service.get(&path).await;
    let tag = read.header("etag").expect("an ETag");
    for secs in [0.3, 1e6, 1e300] {
        let least = Duration::from_secs_f64(f64::min(secs, 0.5));
        let since = Instant::now();
        let same = wait(&service, &path, secs, Some(tag)).await;
        assert_eq!((same.status, same.text.as_str()), (304, ""));
        assert!(since.elapsed() >= least, "{:?}", since.elapsed());
        let since = Instant::now();
        let whole = wait(&service, &path, secs, None).await;
        assert_eq!((whole.status, &whole.text), (200, &read.text));
        assert!(since.elapsed() >= least, "{:?}", since.elapsed());
    }
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        wait(&service, &path, bad, None)
            .await
            .problem(422, "invalid_parameter");
    }
    service
        .get(&format!("{path}?wait=3"))
        .await
        .problem(400, "malformed_request");
}

#[tokio::test]
async fn what_is_new_already_or_will_never_be_is_not_waited_for() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.max_study_wait_secs = 3600.0;
    })
    .await;
    let path = service.create(&digits()).await;
    let old = wait(&service, &path, 3600.0, Some("\"old\"")).await;
    assert_eq!(old.status, 200);
    service.post(&format!("{path}/cancel"), &json!({})).await;
    let ended = wait(&service, &path, 3600.0, None).await;
    assert_eq!(ended.status, 200);
    let tag = ended.header("etag").expect("an ETag");
    assert_eq!(wait(&service, &path, 3600.0, Some(tag)).await.status, 304);
}

#[tokio::test]
async fn one_that_is_deleted_is_said_to_be_gone() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.pool.tick_secs = 3600.0;
    })
    .await;
    let path = service.create(&digits()).await;
    let delete = async {
        waiting(&service, 1).await;
        execute(
            service.database.url(),
            "DELETE FROM studies; SELECT pg_notify('trialhead', '')",
        )
        .await;
    };
    let (answer, ()) = tokio::join!(wait(&service, &path, 50.0, None), delete);
    answer.problem(404, "not_found");
}

#[tokio::test]
async fn a_study_is_followed_to_its_end_without_a_stream() {
    let service = TestService::with_worker().await;
    let posted = service.post("/v1/studies", &digits()).await;
    let path = posted.header("location").expect("a Location");
    let mut tag = posted.header("etag").expect("an ETag").to_owned();
    let mut phases = vec![posted.json()["phase"].clone()];
    loop {
        let answer = wait(&service, path, 60.0, Some(&tag)).await;
        if answer.status == 304 {
            continue;
        }
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.header("etag").expect("an ETag").clone_into(&mut tag);
        let study = answer.json();
        phases.push(study["phase"].clone());
        if study["state"] != "queued" && study["state"] != "running" {
            assert_eq!(study["state"], "succeeded", "{study}");
            break;
        }
    }
    phases.dedup();
    assert!(phases.len() > 2, "{phases:?}");
}

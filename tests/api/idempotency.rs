//! Writes with an Idempotency-Key: sent again, they are answered as the first time and do nothing.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_postgres::NoTls;
use trialhead::access::Scope;

use crate::postgres::{TestDatabase, execute};
use crate::service::{Answer, TestService, digits};

const KEY: &str = "idempotency-key";

async fn create(service: &TestService, key: &str, body: &Value) -> Answer {
    let url = format!("{}/v1/studies", service.base);
    Answer::of(service.http.post(url).header(KEY, key).json(body)).await
}

async fn upload(service: &TestService, key: &str, query: &str, file: &str) -> Answer {
    let url = format!("{}/v1/datasets?{query}", service.base);
    Answer::of(
        service
            .http
            .post(url)
            .header(KEY, key)
            .body(file.to_owned()),
    )
    .await
}

async fn count(service: &TestService, list: &str) -> usize {
    let page = service.get(list).await.json();
    page["items"].as_array().expect("items").len()
}

fn is_replay_of(again: &Answer, first: &Answer) {
    assert_eq!(again.status, first.status, "{}", again.text);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(again.text, first.text);
    for header in ["location", "etag", "content-type"] {
        assert_eq!(again.header(header), first.header(header), "{header}");
    }
}

#[tokio::test]
async fn twins_make_one_study_and_get_one_answer() {
    let service = TestService::without_workers().await;
    let body = digits();
    let twins = futures::future::join_all((0..16).map(|_| create(&service, "twins", &body))).await;
    let (replayed, first): (Vec<_>, Vec<_>) = twins
        .iter()
        .partition(|answer| answer.header("idempotency-replayed").is_some());
    assert_eq!(first.len(), 1, "one request made the study");
    assert_eq!(first[0].status, 202, "{}", first[0].text);
    for again in replayed {
        is_replay_of(again, first[0]);
    }
    assert_eq!(count(&service, "/v1/studies").await, 1);
    let metrics = service.get("/metrics").await.text;
    let line = "trialhead_requests_replayed_total{operation=\"create_study\"} 15";
    assert!(metrics.contains(line), "{line} in {metrics}");
}

#[tokio::test]
async fn the_first_answer_stays_whatever_becomes_of_the_study() {
    let service = TestService::without_workers().await;
    let first = create(&service, "first", &digits()).await;
    let path = first.header("location").expect("a Location").to_owned();
    service.post(&format!("{path}/cancel"), &json!({})).await;
    is_replay_of(&create(&service, "first", &digits()).await, &first);
    assert_eq!(service.delete(&path).await.status, 204);
    // The order of members and white space make no other request.
    let mut members: Vec<_> = digits()
        .as_object()
        .expect("an object")
        .clone()
        .into_iter()
        .collect();
    members.reverse();
    let members: Vec<String> = members
        .into_iter()
        .map(|(name, value)| format!("\n  {}: {value}", json!(name)))
        .collect();
    let url = format!("{}/v1/studies", service.base);
    let again = service
        .http
        .post(url)
        .header(KEY, "first")
        .header("content-type", "application/json")
        .body(format!("{{{}}}", members.join(",")));
    is_replay_of(&Answer::of(again).await, &first);
    assert_eq!(count(&service, "/v1/studies").await, 0);

    let mut other = digits();
    other["seed"] = json!(8);
    let refused = create(&service, "first", &other).await;
    let problem = refused.problem(422, "idempotency_key_reused");
    assert!(
        problem["detail"]
            .as_str()
            .expect("text")
            .contains("Idempotency-Key"),
        "{problem}"
    );
    let second = create(&service, "second", &digits()).await;
    assert_eq!(second.status, 202);
    assert_ne!(second.json()["id"], first.json()["id"]);
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let service = TestService::without_workers().await;
    for bad in ["", "two words", "tab\there", &"k".repeat(256)] {
        create(&service, bad, &digits())
            .await
            .problem(400, "idempotency_key_invalid");
        upload(&service, bad, "format=text", "to be or not to be")
            .await
            .problem(400, "idempotency_key_invalid");
    }
    let url = format!("{}/v1/studies", service.base);
    let request = service.http.post(&url).json(&digits());
    let not_ascii = reqwest::header::HeaderValue::from_bytes("ä".as_bytes()).expect("a value");
    Answer::of(request.try_clone().expect("a copy").header(KEY, not_ascii))
        .await
        .problem(400, "idempotency_key_invalid");
    Answer::of(request.header(KEY, "a").header(KEY, "b"))
        .await
        .problem(400, "idempotency_key_invalid");
    assert_eq!(count(&service, "/v1/studies").await, 0);
    assert_eq!(
        create(&service, &"k".repeat(255), &digits()).await.status,
        202
    );
}

#[tokio::test]
async fn a_key_belongs_to_its_token_its_project_and_its_operation() {
    let (service, _) = TestService::guarded(|_| {}).await;
    let scopes = [Scope::Read, Scope::Write];
    // Tokens of one name are two all the same.
    let one = service.token("ci", &scopes, None).await;
    let other = service.token("ci", &scopes, None).await;
    let post = async |token: &str, project: &str| {
        let url = format!("{}/v1/studies", service.base);
        let request = service.http.post(url).header(KEY, "shared").json(&digits());
        let request = request.bearer_auth(token);
        Answer::of(request.header("trialhead-project", project)).await
    };
    let mut ids = BTreeSet::new();
    for (token, project) in [(&one, "a"), (&one, "b"), (&other, "a"), (&other, "b")] {
        let answer = post(token, project).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        assert_eq!(answer.header("idempotency-replayed"), None);
        ids.insert(answer.json()["id"].to_string());
        is_replay_of(&post(token, project).await, &answer);
    }
    assert_eq!(ids.len(), 4);
    let url = format!("{}/v1/datasets?format=text", service.base);
    let request = service
        .http
        .post(url)
        .header(KEY, "shared")
        .bearer_auth(&one);
    let request = request.header("trialhead-project", "a");
    assert_eq!(
        Answer::of(request.body("to be or not to be")).await.status,
        201
    );
}

#[tokio::test]
async fn only_what_was_done_is_kept() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.max_active_studies = 1;
    })
    .await;
    // A dry run does nothing, and an error has done nothing.
    let url = format!("{}/v1/studies?dry_run=true", service.base);
    let mut other = digits();
    other["seed"] = json!(8);
    let dry = Answer::of(service.http.post(url).header(KEY, "key").json(&other)).await;
    assert_eq!(dry.status, 200, "{}", dry.text);
    create(&service, "key", &json!({}))
        .await
        .problem(422, "invalid_study");
    let first = create(&service, "key", &digits()).await;
    assert_eq!(first.status, 202, "{}", first.text);
    create(&service, "late", &digits())
        .await
        .problem(429, "too_many_studies");
    // What was done is answered even when it could not be done any more.
    is_replay_of(&create(&service, "key", &digits()).await, &first);
    service
        .post(
            &format!("{}/cancel", first.header("location").expect("a Location")),
            &json!({}),
        )
        .await;
    assert_eq!(create(&service, "late", &digits()).await.status, 202);
}

#[tokio::test]
async fn there_is_no_study_without_its_answer() {
    let service = TestService::without_workers().await;
    execute(
        service.database.url(),
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'not today'; END $$; \
         CREATE TRIGGER refuse BEFORE UPDATE ON kept_answers FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    create(&service, "key", &digits())
        .await
        .problem(500, "internal");
    let answer = upload(&service, "key", "format=text", "to be or not to be").await;
    answer.problem(500, "internal");
    for list in ["/v1/studies", "/v1/datasets"] {
        assert_eq!(count(&service, list).await, 0, "{list}");
    }
    execute(
        service.database.url(),
        "DROP TRIGGER refuse ON kept_answers",
    )
    .await;
    let first = create(&service, "key", &digits()).await;
    assert_eq!(first.status, 202, "{}", first.text);
    assert_eq!(first.header("idempotency-replayed"), None);
}

#[tokio::test]
async fn a_twin_that_is_being_answered_is_waited_for_and_then_said_to_be_in_the_way() {
    let service = TestService::without_workers().await;
    let (mut client, connection) = tokio_postgres::connect(service.database.url(), NoTls)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let first = client.transaction().await.expect("begins");
    first
        .execute(
            "INSERT INTO kept_answers (project, caller, operation, key, request_sha256) \
             VALUES ('default', 'anonymous', 'create_study', 'key', 'x')",
            &[],
        )
        .await
        .expect("inserted");
    let refused = create(&service, "key", &digits()).await;
    refused.problem(409, "idempotency_key_in_use");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(count(&service, "/v1/studies").await, 0);
    // Its end lets the next one in at once.
    let (answer, rolled_back) =
        tokio::join!(create(&service, "key", &JSON_DIGITS), first.rollback());
    rolled_back.expect("rolled back");
    assert_eq!(answer.status, 202, "{}", answer.text);
}

static JSON_DIGITS: std::sync::LazyLock<Value> = std::sync::LazyLock::new(digits);

#[tokio::test]
async fn a_key_is_forgotten_after_its_time() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.idempotency_hours = 3;
    })
    .await;
    let age = async |minutes: u32| {
        let statement =
            format!("UPDATE kept_answers SET created_at = now() - interval '{minutes} minutes'");
        execute(service.database.url(), &statement).await;
    };
    let first = create(&service, "key", &digits()).await;
    age(179).await;
    is_replay_of(&create(&service, "key", &digits()).await, &first);
    age(181).await;
    let mut other = digits();
    other["seed"] = json!(8);
    let second = create(&service, "key", &other).await;
    assert_eq!(second.status, 202, "{}", second.text);
    assert_ne!(second.json()["id"], first.json()["id"]);
    is_replay_of(&create(&service, "key", &other).await, &second);
}

#[tokio::test]
async fn housekeeping_removes_old_answers() {
    let database = TestDatabase::create().await;
    execute(
        database.url(),
        "INSERT INTO kept_answers (project, caller, operation, key, request_sha256, created_at) VALUES \
         ('default', 'anonymous', 'create_study', 'old', 'x', now() - interval '25 hours'), \
         ('default', 'anonymous', 'create_study', 'young', 'x', now() - interval '23 hours')",
    )
    .await;
    let service = TestService::start_on(database, |settings| settings.workers = 0).await;
    let (client, connection) = tokio_postgres::connect(service.database.url(), NoTls)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    let since = std::time::Instant::now();
    loop {
        let rows = client
            .query("SELECT key FROM kept_answers", &[])
            .await
            .expect("rows");
        let keys: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if keys == ["young"] {
            break;
        }
        assert!(since.elapsed() < crate::service::PATIENCE, "{keys:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_upload_is_safe_to_repeat() {
    const FILE: &str = "a,label\n1,x\n2,y\n3,x\n4,y\n5,x\n6,y\n7,x\n8,y\n9,x\n10,y\n";
    let service = TestService::without_workers().await;
    let query = "format=csv&name=pairs";
    let twins =
        futures::future::join_all((0..3).map(|_| upload(&service, "key", query, FILE))).await;
    let first: Vec<_> = twins
        .iter()
        .filter(|answer| answer.header("idempotency-replayed").is_none())
        .collect();
    assert_eq!(first.len(), 1, "one request made the data set");
    let first = first[0];
    assert_eq!(first.status, 201, "{}", first.text);
    for again in &twins {
        if again.header("idempotency-replayed").is_some() {
            is_replay_of(again, first);
        }
    }
    assert_eq!(count(&service, "/v1/datasets").await, 1);
    for (query, file) in [
        (query, "another,file\n1,2\n"),
        ("format=csv&name=pairs&target=a", FILE),
        ("format=csv&name=other", FILE),
    ] {
        upload(&service, "key", query, file)
            .await
            .problem(422, "idempotency_key_reused");
    }
    // Without the key the file is known, and with a new key that is the answer that is kept.
    for _ in 0..2 {
        let known = upload(&service, "other-key", query, FILE).await;
        assert_eq!(known.status, 200, "{}", known.text);
        assert_eq!(known.text, first.text);
    }
    // With its digest nobody waits for the bytes, even when the data set is gone.
    let path = first.header("location").expect("a Location");
    assert_eq!(service.delete(path).await.status, 204);
    let digest = BASE64_STANDARD.encode(Sha256::digest(FILE));
    let announce = async |digest: &str| {
        let url = format!("{}/v1/datasets?{query}", service.base);
        let request = service.http.post(url).header(KEY, "key");
        Answer::of(request.header("repr-digest", format!("sha-256=:{digest}:"))).await
    };
    is_replay_of(&announce(&digest).await, first);
    let other = BASE64_STANDARD.encode(Sha256::digest("other"));
    announce(&other)
        .await
        .problem(422, "idempotency_key_reused");
}

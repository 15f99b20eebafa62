//! The lease protocol over REST: twice, late, out of order, after a loss, or by nobody any more.

use std::time::Duration;

use serde_json::{Value, json};
use trialhead::access::{Scope, TokenText};
use trialhead::probe::Task;
use trialhead::store::tokens;
use uuid::Uuid;

use crate::postgres::execute;
use crate::queue::{MODEL, study};
use crate::service::{Answer, TestService};

fn claim_body(lease: Uuid, wait_secs: f64) -> Value {
    json!({
        "lease_id": lease,
        "worker": "a worker elsewhere",
        "protocol": trialhead::probe::PROTOCOL,
        "device": {
            "host": "elsewhere", "hardware": "cpu", "backend": "cpu", "model": MODEL, "threads": 2,
            "memory_bytes": 1_u64 << 33, "available_bytes": 1_u64 << 33, "slots": 2,
        },
        "runners": ["burn"],
        "wait_secs": wait_secs,
    })
}

async fn claim(service: &TestService, lease: Uuid) -> Answer {
    service.post("/v1/leases", &claim_body(lease, 0.0)).await
}

/// Claims under a new lease and gives its path and the probe.
async fn claimed(service: &TestService) -> (String, Value) {
    let lease = Uuid::now_v7();
    let answer = claim(service, lease).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    (format!("/v1/leases/{lease}"), answer.json())
}

fn measurement(seq: u32, value: f64) -> Value {
    json!({"seq": seq, "metric": "my_own", "value": value, "unit": "count", "elapsed_secs": 0.1})
}

/// Without it a memory probe has told nothing.
fn peak(seq: u32, value: f64) -> Value {
    json!({"seq": seq, "metric": "peak_memory", "value": value, "unit": "bytes", "elapsed_secs": 0.1})
}

fn completion(held: &Value, outcome: Value, measurements: Value) -> Value {
    json!({
        "probe_id": held["probe_id"], "attempt": held["attempt"], "outcome": outcome,
        "measurements": measurements, "stderr_tail": "the end of the log", "device_secs": 1.5,
    })
}

fn beat(held: &Value, measurements: Value) -> Value {
    json!({
        "probe_id": held["probe_id"], "attempt": held["attempt"],
        "progress": {"phase": "training", "fraction": 0.5}, "measurements": measurements,
    })
}

fn succeeded() -> Value {
    json!({"outcome": "succeeded"})
}

async fn probe(service: &TestService, held: &Value) -> Value {
    let id = held["probe_id"].as_str().expect("an id");
    service.get(&format!("/v1/probes/{id}")).await.json()
}

async fn with_probes(count: u32, task: impl Fn(u32) -> Task) -> TestService {
    let service = TestService::without_workers().await;
    study(service.database.database(), MODEL, 0, count, task).await;
    service
}

fn memory(_: u32) -> Task {
    Task::Memory { steps: 1 }
}

fn smoke(_: u32) -> Task {
    Task::Smoke { steps: 1 }
}

#[tokio::test]
async fn the_same_lease_claims_once() {
    let service = with_probes(3, smoke).await;
    let lease = Uuid::now_v7();
    let first = claim(&service, lease).await;
    assert_eq!(first.status, 200, "{}", first.text);
    let held = first.json();
    assert_eq!(held["attempt"], 1);
    assert_eq!(held["spec"]["task"]["kind"], "smoke");
    assert_eq!(held["expires_in_secs"], 5.0);
    assert_eq!(claim(&service, lease).await.json(), held);
    let (_, other) = claimed(&service).await;
    assert_ne!(other["probe_id"], held["probe_id"]);

    // Many at once, and still one.
    let device = json!("another host");
    let mut body = claim_body(Uuid::now_v7(), 0.0);
    body["device"]["host"] = device;
    let all = futures::future::join_all((0..8).map(|_| service.post("/v1/leases", &body))).await;
    let answers: Vec<Value> = all.iter().map(Answer::json).collect();
    assert!(answers.iter().all(|one| *one == answers[0]), "{answers:?}");
    assert_ne!(answers[0]["probe_id"], held["probe_id"]);
    assert_eq!(claim(&service, Uuid::now_v7()).await.status, 204);

    // What it held has ended: the same claim, come late, takes nothing new.
    let path = format!("/v1/leases/{lease}/complete");
    let done = completion(&held, json!({"outcome": "handed_back"}), json!([]));
    assert_eq!(
        service.post(&path, &done).await.json(),
        json!({"state": "queued"})
    );
    claim(&service, lease).await.problem(409, "lease_lost");
    assert_eq!(probe(&service, &held).await["attempt"], 1);
}

#[tokio::test]
async fn measurements_come_in_any_order_and_are_stored_once() {
    let service = with_probes(1, memory).await;
    let (path, held) = claimed(&service).await;
    let heartbeat = format!("{path}/heartbeat");
    for batch in [
        json!([measurement(2, 2.0), measurement(1, 1.0)]),
        json!([]),
        // Again, and with another figure: the first counts.
        json!([measurement(1, 77.0), measurement(0, 0.0)]),
    ] {
        let answer = service.post(&heartbeat, &beat(&held, batch)).await;
        assert_eq!(
            answer.json(),
            json!({"expires_in_secs": 5.0, "cancel_requested": false})
        );
    }
    let running = probe(&service, &held).await;
    assert_eq!(running["progress"]["fraction"], 0.5);
    let study = held["study_id"].as_str().expect("an id");
    let measured = format!("/v1/studies/{study}/measurements");
    let list = service.get(&measured).await.json();
    assert_eq!(list["items"], json!([]), "no evidence before its end");

    let rest = json!([measurement(2, 99.0), peak(3, 3.0)]);
    let complete = format!("{path}/complete");
    let done = completion(&held, succeeded(), rest);
    for _ in 0..2 {
        let answer = service.post(&complete, &done).await;
        assert_eq!(answer.json(), json!({"state": "succeeded"}));
    }
    // Another story of the same attempt changes nothing, nor does a heartbeat that was overtaken.
    let failed = json!({"outcome": "failed", "reason": "crashed", "detail": "as told"});
    let other = completion(&held, failed, json!([measurement(4, 4.0)]));
    assert_eq!(
        service.post(&complete, &other).await.json(),
        json!({"state": "succeeded"})
    );
    service
        .post(&heartbeat, &beat(&held, json!([measurement(5, 5.0)])))
        .await
        .problem(409, "lease_lost");
    let list = service.get(&measured).await.json();
    let values: Vec<f64> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["value"].as_f64().expect("a figure"))
        .collect();
    assert_eq!(values, [0.0, 1.0, 2.0, 3.0]);
    let ended = probe(&service, &held).await;
    assert_eq!(ended["state"], "succeeded");
    assert_eq!(ended["stderr_tail"], "the end of the log");
    assert_eq!(ended["crashes"], 0);
}

#[tokio::test]
async fn a_crash_told_twice_counts_once() {
    let service = with_probes(1, memory).await;
    let (path, held) = claimed(&service).await;
    let failed = json!({"outcome": "failed", "reason": "crashed", "detail": "signal 11"});
    let done = completion(&held, failed, json!([]));
    for _ in 0..3 {
        let answer = service.post(&format!("{path}/complete"), &done).await;
        assert_eq!(answer.json(), json!({"state": "queued"}));
    }
    let probe = probe(&service, &held).await;
    assert_eq!(
        (&probe["crashes"], &probe["state"]),
        (&json!(1), &json!("queued"))
    );
}

#[tokio::test]
async fn what_comes_after_a_lease_was_lost_changes_nothing() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.pool.heartbeat_secs = 0.1;
        settings.pool.lease_margin_secs = 0.1;
        settings.pool.lease_secs = 2.0;
        settings.pool.tick_secs = 0.1;
    })
    .await;
    study(service.database.database(), MODEL, 0, 1, memory).await;
    let (lost, first) = claimed(&service).await;
    let told = service
        .post(
            &format!("{lost}/heartbeat"),
            &beat(&first, json!([measurement(0, 66.0), measurement(1, 66.0)])),
        )
        .await;
    assert_eq!(told.status, 200, "{}", told.text);
    let id = first["probe_id"].as_str().expect("an id");
    service
        .until(&format!("/v1/probes/{id}"), |probe| {
            probe["state"] == "queued"
        })
        .await;
    // A claim that waits gets it when it may be tried again.
    let lease = Uuid::now_v7();
    let again = service.post("/v1/leases", &claim_body(lease, 30.0)).await;
    let second = again.json();
    assert_eq!(second["probe_id"], first["probe_id"], "{}", again.text);
    assert_eq!(second["attempt"], 2);

    let late = completion(&first, succeeded(), json!([measurement(2, 66.0)]));
    service
        .post(&format!("{lost}/complete"), &late)
        .await
        .problem(409, "lease_lost");
    service
        .post(&format!("{lost}/heartbeat"), &beat(&first, json!([])))
        .await
        .problem(409, "lease_lost");
    // The lost lease with the new attempt's number is no holder either.
    service
        .post(&format!("{lost}/heartbeat"), &beat(&second, json!([])))
        .await
        .problem(409, "lease_lost");
    service.delete(lost.as_str()).await;
    assert_eq!(probe(&service, &second).await["state"], "running");

    let done = completion(&second, succeeded(), json!([peak(0, 1.0)]));
    let answer = service
        .post(&format!("/v1/leases/{lease}/complete"), &done)
        .await;
    assert_eq!(answer.json(), json!({"state": "succeeded"}));
    let study = first["study_id"].as_str().expect("an id");
    let list = service
        .get(&format!("/v1/studies/{study}/measurements"))
        .await
        .json();
    let items = list["items"].as_array().expect("items");
    assert_eq!(items.len(), 1, "only the completing attempt: {list}");
    assert_eq!(items[0]["value"], 1.0);
    let probe = probe(&service, &second).await;
    assert_eq!(
        (&probe["losses"], &probe["crashes"]),
        (&json!(1), &json!(0))
    );
}

#[tokio::test]
async fn a_lease_given_back_costs_nothing_and_is_spent() {
    let service = with_probes(1, memory).await;
    let (path, held) = claimed(&service).await;
    for _ in 0..2 {
        let answer = service.delete(path.as_str()).await;
        assert_eq!(answer.status, 204, "{}", answer.text);
    }
    let back = probe(&service, &held).await;
    assert_eq!(back["state"], "queued");
    assert_eq!((&back["losses"], &back["crashes"]), (&json!(0), &json!(0)));
    // Given back before its claim arrives.
    let early = Uuid::now_v7();
    assert_eq!(
        service.delete(&format!("/v1/leases/{early}")).await.status,
        204
    );
    claim(&service, early).await.problem(409, "lease_lost");
    let (_, again) = claimed(&service).await;
    assert_eq!(again["attempt"], 2);
}

#[tokio::test]
async fn a_claim_waits_for_a_probe_and_for_nobody_who_has_gone() {
    let service = TestService::without_workers().await;
    let url = format!("{}/v1/leases", service.base);
    let gone = service
        .http
        .post(&url)
        .json(&claim_body(Uuid::now_v7(), 30.0))
        .send();
    // The client closes its connection, as a process does that is killed.
    assert!(
        tokio::time::timeout(Duration::from_millis(500), gone)
            .await
            .is_err(),
        "nothing was there to be claimed"
    );
    let devices = service.get("/v1/devices").await.json();
    assert_eq!(devices["items"][0]["model"], MODEL, "kept known: {devices}");
    let body = claim_body(Uuid::now_v7(), 30.0);
    let waiting = service.post("/v1/leases", &body);
    let (answer, _) = tokio::join!(waiting, async {
        study(service.database.database(), MODEL, 0, 1, memory).await
    });
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["lease_id"], body["lease_id"]);
    assert_eq!(answer.json()["attempt"], 1);
}

#[tokio::test]
async fn a_worker_of_another_version_and_reports_that_cannot_be_right_are_refused() {
    let service = with_probes(1, memory).await;
    let mut other = claim_body(Uuid::now_v7(), 0.0);
    other["protocol"] = json!(99);
    let problem = service
        .post("/v1/leases", &other)
        .await
        .problem(409, "worker_version");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains("99"), "{detail}");
    // Whatever a newer version has added, it hears that it is newer.
    other["device"]["colour"] = json!("red");
    other["wishes"] = json!([]);
    let answer = service.post("/v1/leases", &other).await;
    answer.problem(409, "worker_version");

    let mut wrong = claim_body(Uuid::now_v7(), 0.0);
    wrong["worker"] = json!("");
    wrong["device"]["slots"] = json!(0);
    wrong["device"]["model"] = json!("a\u{0}b");
    wrong["device"]["driver"] = json!("x".repeat(200_000));
    wrong["runners"] = json!([]);
    let problem = service
        .post("/v1/leases", &wrong)
        .await
        .problem(422, "invalid_report");
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    assert_eq!(
        pointers,
        [
            "/worker",
            "/device/model",
            "/device/driver",
            "/device/slots",
            "/runners"
        ]
    );
    wrong = claim_body(Uuid::now_v7(), 0.0);
    wrong["device"]["driver"] = json!("550\u{0}");
    service
        .post("/v1/leases", &wrong)
        .await
        .problem(422, "invalid_report");
    wrong = claim_body(Uuid::now_v7(), 0.0);
    wrong["colour"] = json!("red");
    service
        .post("/v1/leases", &wrong)
        .await
        .problem(422, "invalid_report");

    let (path, held) = claimed(&service).await;
    for broken in [
        measurement(4_000_000_000, 0.0),
        json!({"seq": 0, "metric": "a\u{0}", "value": 1.0, "unit": "s", "elapsed_secs": 0.0}),
        json!({"seq": 0, "metric": "a", "value": null, "unit": "s", "elapsed_secs": 0.0}),
        json!({"seq": 0, "metric": "a", "step": u64::MAX, "value": 1.0, "unit": "s", "elapsed_secs": 0.0}),
    ] {
        let answer = service
            .post(&format!("{path}/heartbeat"), &beat(&held, json!([broken])))
            .await;
        answer.problem(422, "invalid_report");
    }
    let mut done = completion(&held, json!({"outcome": "tired"}), json!([]));
    service
        .post(&format!("{path}/complete"), &done)
        .await
        .problem(422, "invalid_report");
    // Texts for people are cut and cleaned, never a reason to refuse.
    done["outcome"] =
        json!({"outcome": "infeasible", "reason": "diverged", "detail": "\u{0}".repeat(9000)});
    done["stderr_tail"] = json!(format!("\u{0}{}", "x".repeat(100_000)));
    let answer = service.post(&format!("{path}/complete"), &done).await;
    assert_eq!(answer.json(), json!({"state": "infeasible"}));
    let ended = probe(&service, &held).await;
    let tail = ended["stderr_tail"].as_str().expect("a tail");
    assert_eq!(tail.len(), 16 << 10);
}

#[tokio::test]
async fn a_cancelled_probe_is_told_with_the_next_heartbeat() {
    let service = with_probes(1, memory).await;
    let (path, held) = claimed(&service).await;
    let study = held["study_id"].as_str().expect("an id");
    let cancelled = service
        .post(&format!("/v1/studies/{study}/cancel"), &json!({}))
        .await;
    assert_eq!(cancelled.json()["state"], "cancelled", "{}", cancelled.text);
    let answer = service
        .post(&format!("{path}/heartbeat"), &beat(&held, json!([])))
        .await;
    assert_eq!(answer.json()["cancel_requested"], true);
    let done = completion(&held, json!({"outcome": "cancelled"}), json!([]));
    let answer = service.post(&format!("{path}/complete"), &done).await;
    assert_eq!(answer.json(), json!({"state": "cancelled"}));
}

#[tokio::test]
async fn an_end_without_the_figures_that_were_asked_for_is_no_success() {
    let service = with_probes(1, memory).await;
    let (path, held) = claimed(&service).await;
    let empty = completion(&held, succeeded(), json!([measurement(0, 1.0)]));
    for _ in 0..2 {
        let answer = service.post(&format!("{path}/complete"), &empty).await;
        assert_eq!(answer.json(), json!({"state": "queued"}));
    }
    let tried = probe(&service, &held).await;
    assert_eq!(
        (&tried["crashes"], &tried["reason"]),
        (&json!(1), &json!("invalid_output"))
    );
    let detail = tried["detail"].as_str().expect("a detail");
    assert!(detail.contains("peak_memory"), "{detail}");

    // It may have come before, with a heartbeat; of this attempt.
    let lease = Uuid::now_v7();
    let again = service.post("/v1/leases", &claim_body(lease, 30.0)).await;
    let held = again.json();
    assert_eq!(held["attempt"], 2, "{}", again.text);
    let path = format!("/v1/leases/{lease}");
    let told = beat(&held, json!([peak(0, 1.0)]));
    service.post(&format!("{path}/heartbeat"), &told).await;
    let done = completion(&held, succeeded(), json!([]));
    let answer = service.post(&format!("{path}/complete"), &done).await;
    assert_eq!(answer.json(), json!({"state": "succeeded"}));
}

#[tokio::test]
async fn no_attempt_costs_more_device_time_than_has_passed() {
    let service = with_probes(1, memory).await;
    let (path, held) = claimed(&service).await;
    let mut done = completion(&held, succeeded(), json!([peak(0, 1.0)]));
    done["device_secs"] = json!(1e300);
    let answer = service.post(&format!("{path}/complete"), &done).await;
    assert_eq!(answer.json(), json!({"state": "succeeded"}));
    let counted = probe(&service, &held).await["device_secs"].as_f64();
    assert!(counted < Some(120.0), "{counted:?}");
}

#[tokio::test]
async fn a_worker_of_one_project_holds_nothing_of_another() {
    let (service, _) = TestService::guarded(|_| {}).await;
    // One slot of two: a second claim would be a matter of projects alone.
    study(service.database.database(), MODEL, 0, 2, smoke).await;
    let own = service.token("own", &[Scope::Work], Some("default")).await;
    let other = service.token("other", &[Scope::Work], Some("other")).await;
    let send = async |token: &str, method: reqwest::Method, path: &str, body: &Value| {
        let url = format!("{}{path}", service.base);
        let request = service.http.request(method, url).bearer_auth(token);
        Answer::of(request.json(body)).await
    };
    let post = reqwest::Method::POST;
    let lease = Uuid::now_v7();
    let claim = claim_body(lease, 0.0);
    let answer = send(&own, post.clone(), "/v1/leases", &claim).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let held = answer.json();

    let path = format!("/v1/leases/{lease}");
    let told = beat(&held, json!([]));
    let failed = json!({"outcome": "failed", "reason": "crashed", "detail": "as told"});
    let done = completion(&held, failed, json!([]));
    for (method, path, body) in [
        (post.clone(), "/v1/leases".to_owned(), &claim),
        (post.clone(), format!("{path}/heartbeat"), &told),
        (post.clone(), format!("{path}/complete"), &done),
        (reqwest::Method::DELETE, path.clone(), &json!({})),
    ] {
        let answer = send(&other, method.clone(), &path, body).await;
        let problem = answer.problem(409, "lease_lost");
        assert!(!problem.to_string().contains("digits"), "{problem}");
    }
    let answer = send(&own, post.clone(), &format!("{path}/heartbeat"), &told).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(
        send(&own, post.clone(), "/v1/leases", &claim).await.json(),
        held
    );
    let answer = send(&own, post, &format!("{path}/complete"), &done).await;
    assert_eq!(answer.json(), json!({"state": "queued"}));
}

#[tokio::test]
async fn a_token_that_is_revoked_while_a_claim_waits_gets_nothing() {
    let (service, _) = TestService::guarded(|_| {}).await;
    let token = service.token("gone", &[Scope::Work], None).await;
    let url = format!("{}/v1/leases", service.base);
    let body = claim_body(Uuid::now_v7(), 60.0);
    let waiting = Answer::of(service.http.post(url).bearer_auth(&token).json(&body));
    let (answer, ()) = tokio::join!(waiting, async {
        let database = service.database.database();
        // The claim waits as soon as its device is known.
        loop {
            let mut conn = database.connection().await.expect("a connection");
            let live = trialhead::store::devices::live(&mut conn, 60.0).await;
            if !live.expect("read").is_empty() {
                break;
            }
        }
        let mut conn = database.connection().await.expect("a connection");
        let id = TokenText::parse(&token).expect("a token").id();
        tokens::revoke(&mut conn, id).await.expect("revoked");
    });
    assert_eq!(answer.status, 401, "{}", answer.text);
}

#[tokio::test]
async fn a_worker_that_is_busy_for_long_still_offers_its_runners() {
    let alive = Duration::from_secs(2);
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.pool.heartbeat_secs = 0.1;
        settings.pool.lease_margin_secs = 0.1;
        settings.pool.lease_secs = alive.as_secs_f64();
    })
    .await;
    study(service.database.database(), MODEL, 0, 1, memory).await;
    let lease = Uuid::now_v7();
    let mut body = claim_body(lease, 0.0);
    body["runners"] = json!(["burn", "pytorch"]);
    let held = service.post("/v1/leases", &body).await.json();
    let path = format!("/v1/leases/{lease}/heartbeat");
    let since = std::time::Instant::now();
    while since.elapsed() < 2 * alive {
        let answer = service.post(&path, &beat(&held, json!([]))).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        tokio::time::sleep(alive / 10).await;
    }
    let devices = service.get("/v1/devices").await.json();
    assert_eq!(
        devices["items"][0]["runners"],
        json!(["burn", "pytorch"]),
        "{devices}"
    );
}

#[tokio::test]
async fn a_study_that_waits_for_a_worker_hears_of_one_at_once() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        // No tick comes while this runs.
        settings.pool.tick_secs = 3600.0;
        settings.pool.lease_secs = 7200.0;
    })
    .await;
    let id = study(service.database.database(), MODEL, 0, 2, memory).await;
    let path = format!("/v1/studies/{id}");
    // A look that is under way since the service started may put it in its own words between the two.
    let mut told = Value::Null;
    for _ in 0..5 {
        execute(
            service.database.url(),
            "UPDATE studies SET waiting_for = 'a worker'",
        )
        .await;
        told = service.get(&path).await.json()["waiting_for"].clone();
        if told == "a worker" {
            break;
        }
    }
    assert_eq!(told, "a worker");
    let mut elsewhere = claim_body(Uuid::now_v7(), 0.0);
    elsewhere["device"]["model"] = json!("another model");
    assert_eq!(service.post("/v1/leases", &elsewhere).await.status, 204);
    // That it is none of its own is heard too, in the words of the service.
    let study = service.until(&path, |it| it["waiting_for"] != "a worker");
    let words = study.await["waiting_for"].to_string();
    assert!(words.contains(MODEL), "{words}");
    claimed(&service).await;
    let study = service.until(&path, |it| it["waiting_for"].is_null());
    assert_eq!(study.await["state"], "running");
}

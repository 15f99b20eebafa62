//! Access tokens over HTTP: no operation lets in who it should not.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use trialhead::access::{Scope, TokenText};
use trialhead::store::devices::{self, NewDevice};

use crate::postgres::execute;
use crate::service::{Answer, PATIENCE, TestService, digits};

const SCOPES: [Scope; 4] = Scope::ALL;

/// Sends a request with a token, if one is given.
async fn send(
    service: &TestService,
    method: &str,
    path: &str,
    token: Option<&str>,
    project: Option<&str>,
) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let is_get = method == Method::GET;
    let mut request = service
        .http
        .request(method, format!("{}{path}", service.base));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(project) = project {
        request = request.header("trialhead-project", project);
    }
    if !is_get {
        request = request.json(&json!({}));
    }
    Answer::of(request).await
}

/// An operation of the document, with what it says of access.
struct Operation {
    method: String,
    path: String,
    /// None for a public one.
    scope: Option<Scope>,
    responses: Value,
}

impl Operation {
    fn all() -> Vec<Self> {
        let document =
            serde_json::to_value(trialhead::api::openapi::document()).expect("the document");
        let mut all = Vec::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let security = operation["security"].as_array().expect("security");
                assert_eq!(security.len(), 1, "{method} {path}");
                let scope = security[0]["token"][0].as_str();
                all.push(Self {
                    method: method.to_uppercase(),
                    path: path.clone(),
                    scope: scope.map(|name| Scope::parse(name).expect("a scope")),
                    responses: operation["responses"].clone(),
                });
            }
        }
        assert!(all.len() > 20, "only {} operations", all.len());
        all
    }

    /// Checks that an answer is one that the document names.
    fn is_documented(&self, answer: &Answer) {
        assert!(
            self.responses[answer.status.to_string()].is_object(),
            "{} {} does not document {}: {}",
            self.method,
            self.path,
            answer.status,
            answer.text
        );
    }
}

/// Things of one project, to be reached by nobody else.
struct Things {
    study: String,
    dataset: String,
    probe: String,
}

impl Things {
    async fn make(service: &TestService, token: &str) -> Self {
        // Without a device a study has no probes yet.
        let device = NewDevice {
            driver: None,
            runners: &["burn".to_owned()],
            host: "elsewhere",
            hardware: "cpu",
            backend: "cpu",
            model: "a device",
            threads: 1,
            memory_bytes: 8 << 30,
            available_bytes: 8 << 30,
            slots: 1,
            count: 1,
        };
        let mut conn = service.database.database().connection().await.expect("one");
        devices::register(&mut conn, &device, 0.0)
            .await
            .expect("a device");
        drop(conn);
        let url = format!("{}/v1/studies", service.base);
        let posted = Answer::of(service.http.post(url).bearer_auth(token).json(&digits())).await;
        assert_eq!(posted.status, 202, "{}", posted.text);
        let study = posted.json()["id"].as_str().expect("an id").to_owned();
        let url = format!("{}/v1/datasets?format=text", service.base);
        let upload = service.http.post(url).bearer_auth(token);
        let uploaded = Answer::of(upload.body("to be or not to be")).await;
        assert_eq!(uploaded.status, 201, "{}", uploaded.text);
        let dataset = uploaded.json()["id"].as_str().expect("an id").to_owned();
        let path = format!("/v1/studies/{study}/probes");
        let probes = send(service, "GET", &path, Some(token), None).await.json();
        let probe = &probes["items"][0]["probe"]["id"];
        Self {
            study,
            dataset,
            probe: probe.as_str().expect("a probe").to_owned(),
        }
    }

    /// The path of an operation on one of them.
    fn path(&self, template: &str) -> String {
        let id = if template.starts_with("/v1/studies") {
            &self.study
        } else if template.starts_with("/v1/datasets") {
            &self.dataset
        } else {
            &self.probe
        };
        template.replace("{id}", id)
    }
}

#[tokio::test]
async fn no_operation_lets_in_who_it_should_not() {
    let (service, admin) = TestService::guarded(|settings| {
        settings.api.failed_tokens_per_minute = 1_000_000;
    })
    .await;
    let of_a = service.token("of a", &[Scope::Admin], Some("a")).await;
    let things = Things::make(&service, &of_a).await;
    let mut by_scope = Vec::new();
    for scope in SCOPES {
        by_scope.push((
            scope,
            service.token(scope.as_str(), &[scope], Some("a")).await,
        ));
    }
    let all_but_admin = [Scope::Read, Scope::Write, Scope::Work];
    let of_b = service.token("of b", &all_but_admin, Some("b")).await;

    let revoked = service.token("revoked", &SCOPES, None).await;
    let expired = service.token("expired", &SCOPES, None).await;
    execute(
        service.database.url(),
        "UPDATE tokens SET revoked_at = now() WHERE name = 'revoked'; \
         UPDATE tokens SET expires_at = now() - interval '1 second' WHERE name = 'expired'",
    )
    .await;
    let stranger = TokenText::mint().expect("randomness").reveal();
    let wrong_secret = format!(
        "{}{}",
        &admin[..admin.len() - 43],
        &stranger[stranger.len() - 43..]
    );
    let refused = [
        (None, "token_missing"),
        (Some("trialhead_"), "token_malformed"),
        (Some(&admin[..admin.len() - 1]), "token_malformed"),
        (Some("' OR true --"), "token_malformed"),
        (Some(&stranger), "token_unknown"),
        (Some(&wrong_secret), "token_unknown"),
        (Some(&revoked), "token_revoked"),
        (Some(&expired), "token_expired"),
    ];

    for operation in Operation::all() {
        let path = things.path(&operation.path);
        let at = format!("{} {path}", operation.method);
        let Some(needed) = operation.scope else {
            let answer = send(&service, &operation.method, &path, None, None).await;
            assert_eq!(answer.status, 200, "{at}");
            continue;
        };
        for (token, code) in refused {
            let answer = send(&service, &operation.method, &path, token, None).await;
            answer.problem(401, code);
            operation.is_documented(&answer);
            let challenge = answer.header("www-authenticate").expect("a challenge");
            assert!(challenge.starts_with("Bearer realm="), "{at}: {challenge}");
            assert_eq!(
                challenge.contains("invalid_token"),
                code != "token_missing",
                "{at}: {challenge}"
            );
        }
        for (scope, token) in &by_scope {
            if needed.is_in(&[*scope]) {
                continue;
            }
            let answer = send(&service, &operation.method, &path, Some(token), None).await;
            answer.problem(403, "insufficient_scope");
            operation.is_documented(&answer);
            let challenge = answer.header("www-authenticate").expect("a challenge");
            assert!(
                challenge.contains(&format!("scope=\"{needed}\"")),
                "{challenge}"
            );
        }
        if operation.path.contains("{id}") {
            let answer = send(&service, &operation.method, &path, Some(&of_b), None).await;
            // Changing a definition says what it lacks before it looks for the study.
            if operation.method == "PUT" && answer.status == 428 {
                let query = format!("{path}?dry_run=true");
                let dry = send(&service, "PUT", &query, Some(&of_b), None).await;
                dry.problem(404, "not_found");
            } else if operation.path.starts_with("/v1/leases/") {
                // A lease is held by whoever has named it, and nothing is told of one that nobody has.
                let told = matches!(answer.status, 204 | 400 | 409 | 415 | 422);
                assert!(told, "{at}: {}", answer.text);
            } else {
                answer.problem(404, "not_found");
            }
            operation.is_documented(&answer);
        }
        if operation.method == "GET" {
            for (scope, token) in &by_scope {
                if !needed.is_in(&[*scope]) {
                    continue;
                }
                let answer = send(&service, "GET", &path, Some(token), None).await;
                assert!(matches!(answer.status, 200 | 404), "{at}: {}", answer.text);
                operation.is_documented(&answer);
                if answer.status == 404 {
                    // It is there, but has no answer yet.
                    assert!(path.contains(&things.study), "{at}: {}", answer.text);
                }
            }
        }
    }

    for list in ["/v1/studies", "/v1/datasets"] {
        let theirs = send(&service, "GET", list, Some(&of_b), None).await.json();
        assert_eq!(theirs["items"], json!([]), "{list}");
    }
    // Nothing of all that has changed anything.
    let path = things.path("/v1/studies/{id}");
    let study = send(&service, "GET", &path, Some(&of_a), None).await.json();
    assert_eq!(study["state"], "queued");
    assert_eq!(study["revision"], 1);
    let path = things.path("/v1/datasets/{id}");
    let answer = send(&service, "GET", &path, Some(&of_a), None).await;
    assert_eq!(answer.status, 200);
    // And whoever is let in is let in.
    let path = things.path("/v1/studies/{id}/cancel");
    let answer = send(&service, "POST", &path, Some(&by_scope[1].1), None).await;
    assert_eq!(answer.json()["state"], "cancelled", "{}", answer.text);
}

#[tokio::test]
async fn an_unknown_token_and_a_wrong_secret_are_answered_alike() {
    let (service, admin) = TestService::guarded(|_| {}).await;
    let stranger = TokenText::mint().expect("randomness").reveal();
    let wrong_secret = format!(
        "{}{}",
        &admin[..admin.len() - 43],
        &stranger[stranger.len() - 43..]
    );
    let ask = async |token: &str| send(&service, "GET", "/v1/studies", Some(token), None).await;
    let (unknown, wrong) = (ask(&stranger).await, ask(&wrong_secret).await);
    assert_eq!(unknown.text, wrong.text);
    assert_eq!(
        unknown.header("www-authenticate"),
        wrong.header("www-authenticate")
    );
}

#[tokio::test]
async fn what_a_token_makes_bears_its_name_and_stays_in_its_project() {
    let (service, admin) = TestService::guarded(|_| {}).await;
    let of_a = service
        .token("nightly", &[Scope::Read, Scope::Write], Some("a"))
        .await;
    let things = Things::make(&service, &of_a).await;
    let study = things.path("/v1/studies/{id}");
    let seen = send(&service, "GET", &study, Some(&of_a), None)
        .await
        .json();
    assert_eq!(seen["created_by"], "nightly");
    // A token of no project is in `default`, or where it says.
    let ask = async |token: &str, path: &str, project: Option<&str>| {
        send(&service, "GET", path, Some(token), project).await
    };
    ask(&admin, &study, None).await.problem(404, "not_found");
    assert_eq!(ask(&admin, &study, Some("a")).await.status, 200);
    ask(&admin, &study, Some("b"))
        .await
        .problem(404, "not_found");
    ask(&admin, &study, Some("no/project"))
        .await
        .problem(400, "malformed_request");
    // A bound one may name its own only.
    assert_eq!(ask(&of_a, &study, Some("a")).await.status, 200);
    ask(&of_a, "/v1/studies", Some("default"))
        .await
        .problem(404, "not_found");

    // Contents go to workers: of the project, or of all.
    let content = things.path("/v1/datasets/{id}/content");
    let everywhere = service.token("worker", &[Scope::Work], None).await;
    let of_b = service.token("worker b", &[Scope::Work], Some("b")).await;
    assert_eq!(ask(&everywhere, &content, None).await.status, 200);
    assert_eq!(ask(&everywhere, &content, Some("a")).await.status, 200);
    ask(&everywhere, &content, Some("b"))
        .await
        .problem(404, "not_found");
    ask(&of_b, &content, None).await.problem(404, "not_found");
    ask(&of_a, &content, None)
        .await
        .problem(403, "insufficient_scope");
}

#[tokio::test]
async fn a_revoked_token_is_let_in_no_more_within_seconds() {
    let (service, _) = TestService::guarded(|settings| {
        settings.api.token_cache_secs = 1.0;
    })
    .await;
    let token = service.token("soon gone", &[Scope::Read], None).await;
    let ask = async || send(&service, "GET", "/v1/catalog", Some(&token), None).await;
    assert_eq!(ask().await.status, 200);
    execute(
        service.database.url(),
        "UPDATE tokens SET revoked_at = now() WHERE name = 'soon gone'",
    )
    .await;
    let since = Instant::now();
    let mut answer = ask().await;
    while answer.status == 200 {
        assert!(since.elapsed() < PATIENCE, "it is still let in");
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer = ask().await;
    }
    answer.problem(401, "token_revoked");
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test]
async fn the_last_use_of_a_token_is_written_down() {
    let (service, _) = TestService::guarded(|_| {}).await;
    let token = service.token("used", &[Scope::Read], None).await;
    let last_use = async || {
        let mut conn = service.database.database().connection().await.expect("one");
        let rows = trialhead::store::tokens::list(&mut conn)
            .await
            .expect("a list");
        let row = rows.into_iter().find(|row| row.name == "used");
        row.expect("the token").last_used_at
    };
    assert_eq!(last_use().await, None);
    send(&service, "GET", "/v1/catalog", Some(&token), None).await;
    let first = last_use().await.expect("it was used");
    // Once a minute is enough.
    send(&service, "GET", "/v1/catalog", Some(&token), None).await;
    assert_eq!(last_use().await, Some(first));
    execute(
        service.database.url(),
        "UPDATE tokens SET last_used_at = last_used_at - interval '61 seconds'",
    )
    .await;
    send(&service, "GET", "/v1/catalog", Some(&token), None).await;
    assert!(last_use().await.expect("it was used") >= first);
}

#[tokio::test]
async fn a_peer_with_too_many_wrong_tokens_waits() {
    let (service, _) = TestService::guarded(|settings| {
        settings.api.failed_tokens_per_minute = 3;
    })
    .await;
    let good = service.token("good", &[Scope::Read], None).await;
    let ask =
        async |token: Option<&str>, path: &str| send(&service, "GET", path, token, None).await;
    // What is right never counts.
    for _ in 0..10 {
        assert_eq!(ask(Some(&good), "/v1/catalog").await.status, 200);
    }
    let stranger = TokenText::mint().expect("randomness").reveal();
    for _ in 0..3 {
        ask(Some(&stranger), "/v1/catalog")
            .await
            .problem(401, "token_unknown");
    }
    let answer = ask(Some(&stranger), "/v1/catalog").await;
    answer.problem(429, "too_many_failures");
    let wait: u64 = answer
        .header("retry-after")
        .and_then(|secs| secs.parse().ok())
        .expect("seconds");
    assert!((1..=21).contains(&wait), "{wait}");
    // Garbage counts like everything else, and nothing is looked up any more.
    ask(Some("garbage"), "/v1/catalog")
        .await
        .problem(429, "too_many_failures");
    // A token that was let in before goes on, though it is looked up each time; what is public stays so.
    assert_eq!(ask(Some(&good), "/v1/catalog").await.status, 200);
    assert_eq!(ask(Some(&stranger), "/healthz").await.status, 200);
    ask(None, "/v1/catalog").await.problem(401, "token_missing");
    let metrics = ask(Some(&good), "/metrics").await.text;
    for line in [
        "trialhead_refused_tokens_total{code=\"token_unknown\"} 3",
        "trialhead_refused_tokens_total{code=\"too_many_failures\"} 2",
        "trialhead_refused_tokens_total{code=\"token_missing\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn on_loopback_no_token_is_needed_but_one_that_is_sent_is_checked() {
    let service = TestService::without_workers().await;
    let reader = service.token("reader", &[Scope::Read], None).await;
    let stranger = TokenText::mint().expect("randomness").reveal();
    let ask = async |token: Option<&str>, method: &str| {
        send(&service, method, "/v1/studies", token, None).await
    };
    assert_eq!(ask(None, "GET").await.status, 200);
    assert_eq!(ask(Some(&reader), "GET").await.status, 200);
    ask(Some(&stranger), "GET")
        .await
        .problem(401, "token_unknown");
    ask(Some(&reader), "POST")
        .await
        .problem(403, "insufficient_scope");
    ask(None, "POST").await.problem(422, "invalid_study");
}

#[tokio::test]
async fn a_database_that_is_away_is_no_wrong_token() {
    let (service, admin) = TestService::guarded(|settings| {
        settings.api.failed_tokens_per_minute = 1;
    })
    .await;
    service.database.sever().await;
    for _ in 0..3 {
        let answer = send(&service, "GET", "/v1/catalog", Some(&admin), None).await;
        answer.problem(503, "unavailable");
    }
    service.database.mend().await;
    let since = Instant::now();
    loop {
        let answer = send(&service, "GET", "/v1/catalog", Some(&admin), None).await;
        if answer.status == 200 {
            break;
        }
        answer.problem(503, "unavailable");
        assert!(since.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn metrics_may_have_a_listener_of_their_own() {
    let (service, admin) = TestService::guarded(|settings| {
        settings.api.metrics_listen = Some("127.0.0.1:0".parse().expect("an address"));
    })
    .await;
    let metrics = service.metrics.clone().expect("its address");
    let get = async |path: &str| Answer::of(service.http.get(format!("{metrics}{path}"))).await;
    for (path, line) in [
        ("/metrics", "trialhead_build_info"),
        ("/metrics/service", "trialhead_studies"),
    ] {
        let answer = get(path).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(answer.text.contains(line), "{}", answer.text);
        // And nowhere else.
        send(&service, "GET", path, Some(&admin), None)
            .await
            .problem(404, "not_found");
    }
    for path in [
        "/v1/studies",
        "/v1/catalog",
        "/healthz",
        "/docs/",
        "/openapi.json",
    ] {
        get(path).await.problem(404, "not_found");
    }
}

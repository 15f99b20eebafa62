//! Bad input: a clear problem that names the field and the mend, and nothing is stored.

use serde_json::{Value, json};

use crate::service::{Answer, TestService, digits};

async fn raw(service: &TestService, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
    Answer::of(
        service
            .http
            .post(format!("{}/v1/studies", service.base))
            .header("content-type", content_type)
            .body(body),
    )
    .await
}

#[tokio::test]
async fn every_violation_is_told_at_once_with_its_pointer() {
    let service = TestService::without_workers().await;
    let mut body = digits();
    body["batch_sizes"] = json!({"min": 0, "max": 1_000_000_000_000_000_000_u64});
    body["optimizer"] = json!({"family": "adam", "learning_rate": -1.0, "momentum": 0.9});
    body["workload"]["model"]["hiden"] = json!([3]);
    body["workload"]["model"]["dropout"] = json!(1.0);
    body["budget"] = json!({"device_secs": 0});
    body["colour"] = json!("red");
    let problem = service
        .post("/v1/studies", &body)
        .await
        .problem(422, "invalid_study");
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| error["pointer"].as_str().expect("a pointer"))
        .collect();
    for pointer in [
        "/batch_sizes/min",
        "/batch_sizes/max",
        "/optimizer/learning_rate",
        "/optimizer/momentum",
        "/workload/model/hiden",
        "/workload/model/dropout",
        "/budget/device_secs",
        "/colour",
    ] {
        assert!(pointers.contains(&pointer), "{pointer} among {pointers:?}");
    }
    let list = service.get("/v1/studies").await.json();
    assert_eq!(list["items"], json!([]), "nothing is stored");
}

#[tokio::test]
async fn malformed_and_hostile_bodies_get_problems() {
    let service = TestService::without_workers().await;
    for malformed in [
        "",
        "{",
        "{\"workload\": }",
        "\u{feff}{}",
        "nul",
        "{\"a\": 1e999}",
    ] {
        let answer = raw(&service, "application/json", malformed).await;
        assert!(
            matches!(answer.status, 400 | 422),
            "{malformed}: {}",
            answer.text
        );
        answer.problem(
            answer.status,
            answer.json()["code"].as_str().expect("a code"),
        );
    }
    let deep = "[".repeat(200_000);
    raw(&service, "application/json", deep)
        .await
        .problem(400, "malformed_json");
    raw(&service, "application/json", vec![0xff, 0xfe, 0x00])
        .await
        .problem(400, "malformed_json");
    for value in ["null", "3", "[]", "\"study\"", "{}"] {
        raw(&service, "application/json", value)
            .await
            .problem(422, "invalid_study");
    }
    raw(&service, "text/plain", digits().to_string())
        .await
        .problem(415, "unsupported_media_type");
    raw(&service, "application/json", " ".repeat(2 << 20))
        .await
        .problem(413, "body_too_large");
}

#[tokio::test]
async fn absurd_numbers_are_violations_not_panics() {
    let service = TestService::without_workers().await;
    for pointer in [
        "/batch_sizes/min",
        "/batch_sizes/max",
        "/seed",
        "/priority",
        "/budget/device_secs",
        "/budget/probes",
        "/device/memory_budget_bytes",
        "/device/threads",
        "/workload/model/hidden/0",
        "/workload/model/dropout",
        "/optimizer/learning_rate",
        "/optimizer/momentum",
    ] {
        for number in [
            json!(-1),
            json!(-1e300),
            json!(1e300),
            json!(1_000_000_000_000_000_000_u64),
            json!("12"),
            json!(0.5),
            json!(null),
        ] {
            let mut body = digits();
            body["optimizer"] =
                json!({"family": "sgd_nesterov", "learning_rate": 0.1, "momentum": 0.9});
            body["budget"] = json!({"device_secs": 10.0, "probes": 10});
            body["priority"] = json!(1);
            body["workload"]["model"]["dropout"] = json!(0.1);
            *body.pointer_mut(pointer).expect("the field") = number.clone();
            let answer = service.post("/v1/studies?dry_run=true", &body).await;
            assert!(
                matches!(answer.status, 200 | 422),
                "{pointer} = {number}: {}",
                answer.text
            );
            if answer.status == 422 {
                let problem = answer.problem(422, "invalid_study");
                let errors = problem["errors"].as_array().expect("errors");
                assert!(
                    errors.iter().any(|error| error["pointer"]
                        .as_str()
                        .is_some_and(|at| pointer.starts_with(at) || at.starts_with(pointer))),
                    "{pointer} = {number}: {errors:?}"
                );
            } else {
                assert!(number != json!(-1) && number != json!(-1e300) || pointer == "/priority");
            }
        }
    }
}

#[tokio::test]
async fn unknown_routes_methods_and_ids_get_problems() {
    let service = TestService::without_workers().await;
    service.get("/v1/nothing").await.problem(404, "not_found");
    service.get("/").await.problem(404, "not_found");
    let answer = Answer::of(service.http.patch(format!("{}/v1/studies", service.base))).await;
    answer.problem(405, "method_not_allowed");
    let allow = answer.header("allow").expect("Allow");
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    let missing = uuid::Uuid::now_v7();
    for path in [
        format!("/v1/studies/{missing}"),
        format!("/v1/studies/{missing}/definition"),
        format!("/v1/studies/{missing}/probes"),
        format!("/v1/studies/{missing}/measurements"),
        format!("/v1/studies/{missing}/analysis"),
        format!("/v1/studies/{missing}/recommendations"),
        format!("/v1/studies/{missing}/report"),
        format!("/v1/probes/{missing}"),
        "/v1/studies/not-an-id".to_owned(),
    ] {
        service.get(&path).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn a_problem_names_the_path_that_was_asked_for() {
    let service = TestService::without_workers().await;
    let nobody = "/v1/studies/01981f6e-6f2a-7c3e-9a51-0d6e4b1f2a33";
    for path in [
        // Of a handler, of the way to it, and of the router.
        nobody.to_owned(),
        format!("{nobody}/analysis"),
        "/v1/nothing".to_owned(),
        "/v1/studies/not-an-id".to_owned(),
    ] {
        let problem = service.get(&path).await.problem(404, "not_found");
        assert_eq!(problem["instance"], path, "{problem}");
    }
}

#[tokio::test]
async fn a_query_that_an_operation_does_not_take_is_refused() {
    let service = TestService::without_workers().await;
    let study = service.post("/v1/studies", &digits()).await;
    let study = format!(
        "/v1/studies/{}",
        study.json()["id"].as_str().expect("an id")
    );
    for path in [
        format!("{study}/report?format=html"),
        format!("{study}/analysis?x"),
        "/v1/catalog?x=1".to_owned(),
    ] {
        let problem = service.get(&path).await.problem(400, "malformed_request");
        let detail = problem["detail"].as_str().expect("why");
        assert!(detail.contains("query"), "{path}: {problem}");
    }
    assert_eq!(service.get(&format!("{study}/report")).await.status, 200);
    // Programs that scrape may add something.
    assert_eq!(service.get("/healthz?from=a-balancer").await.status, 200);
}

#[tokio::test]
async fn every_answer_carries_a_request_id_and_keeps_the_callers() {
    let service = TestService::without_workers().await;
    let answer = service.get("/healthz").await;
    assert!(answer.header("x-request-id").is_some());
    let answer = Answer::of(
        service
            .http
            .get(format!("{}/v1/nothing", service.base))
            .header("x-request-id", "from-the-caller"),
    )
    .await;
    assert_eq!(answer.header("x-request-id"), Some("from-the-caller"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
}

#[tokio::test]
async fn a_foreign_host_name_is_refused() {
    let service = TestService::without_workers().await;
    let answer = Answer::of(
        service
            .http
            .get(format!("{}/v1/studies", service.base))
            .header("host", "attacker.example"),
    )
    .await;
    answer.problem(403, "host_not_allowed");
    // A page that was rebound to this address may set any header but Host.
    for name in ["x-forwarded-host", "forwarded"] {
        let answer = Answer::of(
            service
                .http
                .get(format!("{}/v1/studies", service.base))
                .header("host", "attacker.example")
                .header(name, "localhost")
                .header("forwarded", "host=localhost"),
        )
        .await;
        answer.problem(403, "host_not_allowed");
    }
}

#[tokio::test]
async fn health_is_told_whatever_host_is_asked_for() {
    let service =
        TestService::start(|settings| settings.api.allowed_hosts = vec!["trialhead".into()]).await;
    let ask = async |path: &str| {
        let request = service.http.get(format!("{}{path}", service.base));
        Answer::of(request.header("host", "10.1.2.3:8080")).await
    };
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(path).await.status, 200, "{path}");
    }
    ask("/v1/studies").await.problem(403, "host_not_allowed");
}

#[tokio::test]
async fn a_page_of_another_site_may_not_write() {
    let service = TestService::without_workers().await;
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("origin", "https://attacker.example"),
    ] {
        let url = format!("{}/v1/studies", service.base);
        let post = service.http.post(url).header(name, value).json(&digits());
        Answer::of(post).await.problem(403, "cross_site");
    }
    let list = service.get("/v1/studies").await.json();
    assert_eq!(list["items"], json!([]), "nothing is stored");
}

#[tokio::test]
async fn health_is_the_process_and_readiness_the_database() {
    let service = TestService::without_workers().await;
    assert_eq!(service.get("/healthz").await.status, 200);
    assert_eq!(service.get("/readyz").await.status, 200);
    service.database.sever().await;
    let answer = service.get("/v1/studies").await;
    answer.problem(503, "unavailable");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(service.get("/healthz").await.status, 200);
    assert_eq!(service.get("/readyz").await.status, 503);
    service.database.mend().await;
    service
        .until("/v1/studies", |list: &Value| list["items"].is_array())
        .await;
    assert_eq!(service.get("/readyz").await.status, 200);
}

/// Postgres has no NUL in its texts, and a 500 would say that something is wrong with the service.
#[tokio::test]
async fn a_nul_character_is_refused_where_it_stands() {
    let service = TestService::without_workers().await;
    for path in [
        "/v1/studies?workload=%00",
        "/v1/studies?label=a:%00",
        "/v1/studies?label=%00:b",
    ] {
        service.get(path).await.problem(422, "invalid_parameter");
    }
    let study = service.create(&digits()).await;
    service
        .get(&format!("{study}/measurements?metric=%00"))
        .await
        .problem(422, "invalid_parameter");
    for (pointer, change) in [
        ("/name", json!({"name": "a\u{0}b"})),
        ("/costs/currency", json!({"costs": {"currency": "a\u{0}"}})),
        ("/device/model", json!({"device": {"model": "a\u{0}"}})),
    ] {
        let mut body = digits();
        for (member, value) in change.as_object().expect("members") {
            body[member] = value.clone();
        }
        let problem = service.post("/v1/studies", &body).await;
        let problem = problem.problem(422, "invalid_study");
        let of_it: Vec<&Value> = problem["errors"]
            .as_array()
            .expect("errors")
            .iter()
            .filter(|error| error["pointer"] == pointer)
            .collect();
        assert_eq!(of_it.len(), 1, "{problem}");
    }
    for (parameters, file) in [
        ("format=csv&target=c", "a,c\n1,x\u{0}\n2,y\n3,x\u{0}\n4,y\n"),
        ("format=csv&target=c", "a\u{0},c\n1,x\n2,y\n3,x\n4,y\n"),
    ] {
        let upload = service
            .http
            .post(format!(
                "{}/v1/datasets?name=nul&{parameters}",
                service.base
            ))
            .header("content-type", "application/octet-stream")
            .body(file);
        let answer = Answer::of(upload).await;
        let problem = answer.problem(422, "invalid_dataset");
        assert!(problem["detail"].to_string().contains("NUL"), "{problem}");
    }
}

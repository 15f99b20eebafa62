//! Validators: whoever has the answer already gets 304, and any change of it gives another validator.

use serde_json::json;

use crate::postgres::execute;
use crate::service::{Answer, TestService, digits};

async fn get_unless(service: &TestService, path: &str, tag: &str) -> Answer {
    let url = format!("{}{path}", service.base);
    Answer::of(service.http.get(url).header("if-none-match", tag)).await
}

/// Reads a path twice, the second time with what the first one gave; gives the tag.
async fn is_conditional(service: &TestService, path: &str) -> String {
    let first = service.get(path).await;
    assert_eq!(first.status, 200, "{path}: {}", first.text);
    let tag = first
        .header("etag")
        .unwrap_or_else(|| panic!("{path} has no ETag"));
    assert!(tag.starts_with('"'), "{path}: {tag} is weak");
    assert_eq!(first.header("cache-control"), Some("no-cache"), "{path}");
    for known in [
        tag.to_owned(),
        format!("W/{tag}"),
        format!("\"other\", {tag}"),
        "*".to_owned(),
    ] {
        let again = get_unless(service, path, &known).await;
        assert_eq!(again.status, 304, "{path} with {known}");
        assert_eq!(again.text, "", "{path}");
        assert_eq!(again.header("etag"), Some(tag), "{path}");
        assert!(again.header("x-request-id").is_some(), "{path}");
    }
    let again = get_unless(service, path, "\"other\"").await;
    assert_eq!((again.status, &again.text), (200, &first.text), "{path}");
    tag.to_owned()
}

#[tokio::test]
async fn what_is_known_is_not_sent_again() {
    let service = TestService::with_worker().await;
    let path = service.create(&digits()).await;
    service.ended(&path).await;
    let url = format!("{}/v1/datasets?format=text", service.base);
    let uploaded = Answer::of(service.http.post(url).body("to be or not to be")).await;
    let dataset = uploaded.header("location").expect("a Location").to_owned();
    let document = serde_json::to_value(trialhead::api::openapi::document()).expect("JSON");
    for (template, path) in [
        ("/v1/studies/{id}", path.clone()),
        ("/v1/studies/{id}/definition", format!("{path}/definition")),
        (
            "/v1/studies/{id}/recommendations",
            format!("{path}/recommendations"),
        ),
        ("/v1/studies/{id}/analysis", format!("{path}/analysis")),
        ("/v1/catalog", "/v1/catalog".to_owned()),
        ("/v1/datasets", "/v1/datasets".to_owned()),
        ("/v1/datasets/{id}", dataset.clone()),
        ("", "/openapi.json".to_owned()),
    ] {
        is_conditional(&service, &path).await;
        if !template.is_empty() {
            let responses = &document["paths"][template]["get"]["responses"];
            assert!(responses["304"].is_object(), "{template}");
            for status in ["200", "304"] {
                assert!(
                    responses[status]["headers"]["ETag"].is_object(),
                    "{template}"
                );
            }
        }
    }
    // What a write answers with is what is read there, validator and all.
    let read = service.get(&dataset).await;
    assert_eq!(uploaded.header("etag"), read.header("etag"));
    // Nobody learns from a validator that something is there.
    get_unless(&service, &format!("/v1/studies/{}", uuid::Uuid::nil()), "*")
        .await
        .problem(404, "not_found");
}

#[tokio::test]
async fn every_change_of_a_study_gives_it_another_validator() {
    let service = TestService::without_workers().await;
    let posted = service.post("/v1/studies", &digits()).await;
    let path = posted.header("location").expect("a Location");
    let mut tags = vec![is_conditional(&service, path).await];
    assert_eq!(posted.header("etag"), Some(tags[0].as_str()));
    // Also one that tells of nothing but what the service is waiting for.
    execute(
        service.database.url(),
        "UPDATE studies SET waiting_for = 'better weather'",
    )
    .await;
    tags.push(is_conditional(&service, path).await);
    service.post(&format!("{path}/cancel"), &json!({})).await;
    tags.push(is_conditional(&service, path).await);
    for (number, tag) in tags.iter().enumerate() {
        assert!(!tags[number + 1..].contains(tag), "{tags:?}");
        let answer = get_unless(&service, path, tag).await;
        let is_last = number + 1 == tags.len();
        assert_eq!(answer.status, if is_last { 304 } else { 200 });
    }
}

#[tokio::test]
async fn a_definition_that_a_device_fills_in_is_another_answer_of_the_same_revision() {
    let service = TestService::without_workers().await;
    let path = service
        .create(&json!({"workload": {"dataset": {"builtin": "digits"}}}))
        .await;
    let at = format!("{path}/definition");
    let before = is_conditional(&service, &at).await;
    execute(
        service.database.url(),
        "UPDATE study_revisions SET definition = jsonb_set(definition, '{device,threads}', '3')",
    )
    .await;
    let after = is_conditional(&service, &at).await;
    assert_ne!(before, after);
    assert_eq!(get_unless(&service, &at, &before).await.status, 200);
    // It is no change that somebody could overwrite.
    let mut body = service.get(&at).await.json();
    body["name"] = json!("renamed");
    let url = format!("{}{at}", service.base);
    let request = service.http.put(url).header("if-match", before).json(&body);
    let changed = Answer::of(request).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    let tag = is_conditional(&service, &at).await;
    assert_eq!(changed.header("etag"), Some(tag.as_str()));
    assert!(tag.starts_with("\"2-"), "{tag}");
}

//! The OpenAPI document is the contract: committed, equal to the code, complete, and true.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::service::{TestService, digits};

fn document() -> Value {
    serde_json::to_value(trialhead::api::openapi::document()).expect("the document as JSON")
}

#[test]
fn the_committed_document_is_what_the_code_says() {
    let committed: Value =
        serde_json::from_str(include_str!("../../openapi/openapi.json")).expect("JSON");
    assert!(
        committed == document(),
        "openapi/openapi.json is out of date; refresh it with: cargo run --release -- openapi > openapi/openapi.json"
    );
}

/// Every operation: (path, method, operation).
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .expect("a path item")
                .iter()
                .map(move |(method, operation)| (path.clone(), method.clone(), operation.clone()))
        })
        .collect()
}

#[test]
fn every_operation_is_described_and_named() {
    let document = document();
    assert!(
        document["openapi"]
            .as_str()
            .expect("a version")
            .starts_with("3.1")
    );
    let mut names = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let at = format!("{method} {path}");
        let name = operation["operationId"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(!name.is_empty(), "{at} has no operationId");
        assert!(
            names.insert(name),
            "{at} has another operation's operationId"
        );
        assert!(operation["summary"].is_string(), "{at} has no summary");
        assert!(
            operation["description"].is_string(),
            "{at} has no description"
        );
        for (status, response) in operation["responses"].as_object().expect("responses") {
            assert!(response["description"].is_string(), "{at} {status}");
            if status.starts_with('4') || status.starts_with('5') {
                assert!(
                    response["content"]["application/problem+json"]["schema"].is_object()
                        || path == "/readyz",
                    "{at} {status} is no problem"
                );
            }
        }
    }
    for name in [
        "create_study",
        "list_studies",
        "get_study",
        "get_study_definition",
        "update_study_definition",
        "list_study_revisions",
        "cancel_study",
        "delete_study",
        "list_probes",
        "get_probe",
        "list_measurements",
        "get_analysis",
        "list_recommendations",
        "get_report",
        "upload_dataset",
        "list_datasets",
        "get_dataset",
        "get_dataset_content",
        "delete_dataset",
        "get_catalog",
        "list_devices",
    ] {
        assert!(names.contains(name), "{name} is not in the document");
    }
}

/// Checks a value against a schema of the document.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .build(&schema)
        .unwrap_or_else(|error| panic!("{at}: {error}"));
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{at}: {errors:?}");
}

/// What is sent and answered where there is something: (where it is, its content by kind).
fn contents(path: &str, method: &str, operation: &Value) -> Vec<(String, Value)> {
    let answers = operation["responses"].as_object().expect("responses");
    let answers = answers
        .iter()
        .filter(|(status, _)| status.starts_with('2'))
        .map(|(status, response)| (status.as_str(), response));
    std::iter::once(("request", &operation["requestBody"]))
        .chain(answers)
        .flat_map(|(place, it)| {
            let contents = it["content"].as_object().into_iter().flatten();
            contents.map(move |(kind, content)| {
                (format!("{method} {path} {place} {kind}"), content.clone())
            })
        })
        .collect()
}

#[test]
fn every_body_and_answer_has_an_example_that_validates() {
    let document = document();
    let mut missing = Vec::new();
    for (path, method, operation) in operations(&document) {
        for (at, content) in contents(&path, &method, &operation) {
            match content.get("example") {
                // What is no text has none.
                None if content["schema"]["format"] == "binary" => {}
                None => missing.push(at),
                Some(example) => check(&document, &content["schema"], example, &at),
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "have no example");
    for (name, schema) in document["components"]["schemas"]
        .as_object()
        .expect("schemas")
    {
        let examples = schema["examples"].as_array().cloned().unwrap_or_default();
        for example in schema.get("example").into_iter().chain(&examples) {
            check(&document, schema, example, name);
        }
    }
}

/// What the schema cannot say: that the service itself takes what the examples send.
#[tokio::test]
async fn the_service_takes_what_the_examples_send() {
    let service = TestService::without_workers().await;
    let document = document();
    let sent = |path: &str, method: &str, kind: &str| {
        document["paths"][path][method]["requestBody"]["content"][kind]["example"].clone()
    };
    let study = sent("/v1/studies", "post", "application/json");
    let path = service.create(&study).await;
    let etag = service.get(&format!("{path}/definition")).await;
    let put = service
        .http
        .put(format!("{}{path}/definition", service.base))
        .header("if-match", etag.header("etag").expect("an ETag"))
        .json(&sent(
            "/v1/studies/{id}/definition",
            "put",
            "application/json",
        ));
    let revised = crate::service::Answer::of(put).await;
    assert_eq!(revised.status, 200, "{}", revised.text);
    let text = sent("/v1/datasets", "post", "application/octet-stream");
    let upload = service
        .http
        .post(format!("{}/v1/datasets?format=text", service.base))
        .body(text.as_str().expect("a text").to_owned());
    let uploaded = crate::service::Answer::of(upload).await;
    assert_eq!(uploaded.status, 201, "{}", uploaded.text);
    // The worker's: it claims the study's first probe, and tells of that.
    let mut claim = sent("/v1/leases", "post", "application/json");
    claim["wait_secs"] = json!(10);
    let held = service.post("/v1/leases", &claim).await;
    assert_eq!(held.status, 200, "{}", held.text);
    let held = held.json();
    for verb in ["heartbeat", "complete"] {
        let template = format!("/v1/leases/{{id}}/{verb}");
        let mut body = sent(&template, "post", "application/json");
        body["probe_id"] = held["probe_id"].clone();
        body["attempt"] = held["attempt"].clone();
        let lease = held["lease_id"].as_str().expect("an id");
        let answer = service
            .post(&format!("/v1/leases/{lease}/{verb}"), &body)
            .await;
        assert_eq!(answer.status, 200, "{template}: {}", answer.text);
        if verb == "complete" {
            assert_eq!(answer.json()["state"], "succeeded", "{body}");
        }
    }
}

#[test]
fn answers_that_say_when_to_try_again_declare_it() {
    let document = document();
    for (path, method, operation) in operations(&document) {
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let at = format!("{method} {path} {status}");
            let declared = |name: &str| response["headers"][name].is_object();
            assert!(declared("X-Request-Id"), "{at}");
            let description = response["description"].as_str().expect("a description");
            let is_for_later =
                ["429", "503"].contains(&status.as_str()) || description.contains("Retry-After");
            assert_eq!(is_for_later, declared("Retry-After"), "{at}");
            assert!(status != "401" || declared("WWW-Authenticate"), "{at}");
        }
    }
}

/// The schema that a JSON pointer leads to, through references.
fn at_pointer<'a>(document: &'a Value, mut schema: &'a Value, pointer: &str) -> Option<&'a Value> {
    let resolve = |mut schema: &'a Value| {
        while let Some(reference) = schema["$ref"].as_str() {
            schema = document.pointer(reference.trim_start_matches('#'))?;
        }
        Some(schema)
    };
    for part in pointer.trim_start_matches('/').split('/') {
        schema = resolve(schema)?;
        schema = match part.parse::<usize>() {
            Ok(_) => schema.get("items")?,
            Err(_) => schema.get("properties")?.get(part)?,
        };
    }
    resolve(schema)
}

#[test]
fn links_lead_from_ids_in_answers_to_operations_that_take_them() {
    let document = document();
    let operations = operations(&document);
    let mut links_seen = 0;
    for (path, method, operation) in &operations {
        let body = |of: &Value| of["content"]["application/json"]["schema"].clone();
        for (status, response) in operation["responses"].as_object().expect("responses") {
            for (name, link) in response["links"].as_object().into_iter().flatten() {
                let at = format!("{method} {path} {status}: link {name}");
                let (target, _, linked) = operations
                    .iter()
                    .find(|(.., other)| other["operationId"] == link["operationId"])
                    .unwrap_or_else(|| panic!("{at}: no such operation"));
                let given = link["parameters"].as_object().expect("parameters");
                let wanted: Vec<&str> = linked["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "path")
                    .map(|parameter| parameter["name"].as_str().expect("a name"))
                    .collect();
                assert!(
                    given.keys().map(String::as_str).eq(wanted),
                    "{at}: {target} has other parameters in its path"
                );
                for expression in given.values() {
                    let expression = expression.as_str().expect("an expression");
                    let (schema, pointer) = match expression.split_once('#') {
                        Some(("$response.body", pointer)) => (body(response), pointer),
                        Some(("$request.body", pointer)) => {
                            (body(&operation["requestBody"]), pointer)
                        }
                        _ => panic!("{at}: {expression}"),
                    };
                    let id = at_pointer(&document, &schema, pointer)
                        .unwrap_or_else(|| panic!("{at}: {expression} leads nowhere"));
                    assert_eq!(id["format"], "uuid", "{at}: {expression}");
                }
                links_seen += 1;
            }
        }
    }
    assert_eq!(
        links_seen, 24,
        "links that are in the table and not in the document, or the other way round"
    );
}

#[tokio::test]
async fn real_answers_fit_their_schemas() {
    let service = TestService::with_worker().await;
    let document = document();
    let path = service.create(&digits()).await;
    service.ended(&path).await;
    let probes = service.get(&format!("{path}/probes")).await.json();
    let probe = probes["items"][0]["probe"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let url = format!("{}/v1/datasets?format=text", service.base);
    let uploaded =
        crate::service::Answer::of(service.http.post(url).body("to be or not to be")).await;
    let dataset = uploaded.header("location").expect("a Location").to_owned();
    for (template, path) in [
        ("/v1/studies", "/v1/studies".to_owned()),
        ("/v1/studies/{id}", path.clone()),
        ("/v1/studies/{id}/definition", format!("{path}/definition")),
        ("/v1/studies/{id}/revisions", format!("{path}/revisions")),
        ("/v1/studies/{id}/probes", format!("{path}/probes")),
        (
            "/v1/studies/{id}/measurements",
            format!("{path}/measurements"),
        ),
        ("/v1/studies/{id}/analysis", format!("{path}/analysis")),
        (
            "/v1/studies/{id}/recommendations",
            format!("{path}/recommendations"),
        ),
        ("/v1/probes/{id}", format!("/v1/probes/{probe}")),
        ("/v1/devices", "/v1/devices".to_owned()),
        ("/v1/catalog", "/v1/catalog".to_owned()),
        ("/v1/datasets", "/v1/datasets".to_owned()),
        ("/v1/datasets/{id}", dataset),
    ] {
        let answer = service.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        let schema = &document["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]
            ["schema"];
        assert!(schema.is_object(), "{template} documents its answer");
        check(&document, schema, &answer.json(), template);
    }
    let mut changed = digits();
    changed["optimizer"] = json!({"family": "adam"});
    let url = format!("{}{path}/definition?dry_run=true", service.base);
    let forecast = crate::service::Answer::of(service.http.put(url).json(&changed)).await;
    assert_eq!(forecast.status, 200, "{}", forecast.text);
    let schema = &document["paths"]["/v1/studies/{id}/definition"]["put"]["responses"]["200"]["content"]
        ["application/json"]["schema"];
    assert!(schema.is_object());
    check(&document, schema, &forecast.json(), "a revision");
    let problem = service.post("/v1/studies", &json!({})).await;
    let schema = &document["paths"]["/v1/studies"]["post"]["responses"]["422"]["content"]["application/problem+json"]
        ["schema"];
    check(&document, schema, &problem.json(), "a problem");
}

#[tokio::test]
async fn the_docs_are_browsed_without_any_outside_request() {
    let service = TestService::without_workers().await;
    let served = service.get("/openapi.json").await;
    assert_eq!(served.json(), document());
    let page = service.get("/docs/").await;
    assert_eq!(page.status, 200, "{}", page.text);
    for asset in [
        "swagger-ui.css",
        "swagger-ui-bundle.js",
        "swagger-initializer.js",
    ] {
        assert!(page.text.contains(asset), "{asset} in {}", page.text);
        let answer = service.get(&format!("/docs/{asset}")).await;
        assert_eq!(answer.status, 200, "{asset}");
    }
    for attribute in ["src=\"http", "href=\"http", "src=\"//", "href=\"//"] {
        assert!(
            !page.text.contains(attribute),
            "{attribute} in {}",
            page.text
        );
    }
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(
        policy.contains("default-src 'self'") || policy.contains("default-src 'none'"),
        "{policy}"
    );
}

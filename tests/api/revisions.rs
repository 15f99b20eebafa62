//! Revising studies: what is measured again and what is not, what becomes stale and by what, who was faster.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::service::{Answer, TestService, digits};

async fn put(service: &TestService, path: &str, body: &Value, if_match: Option<&str>) -> Answer {
    let mut request = service
        .http
        .put(format!("{}{path}", service.base))
        .json(body);
    if let Some(tag) = if_match {
        request = request.header("if-match", tag);
    }
    Answer::of(request).await
}

/// Revises a study at the revision it has, and gives what was answered.
async fn revise(service: &TestService, path: &str, body: &Value) -> Value {
    let at = format!("{path}/definition");
    let current = service.get(&at).await;
    let tag = current.header("etag").expect("an ETag").to_owned();
    let dry = put(service, &format!("{at}?dry_run=true"), body, None).await;
    assert_eq!(dry.status, 200, "{}", dry.text);
    assert_eq!(dry.header("etag"), Some(tag.as_str()));
    let unchanged = service.get(&at).await;
    assert_eq!(unchanged.text, current.text, "a dry run stores nothing");
    let answer = put(service, &at, body, Some(&tag)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_ne!(answer.header("etag"), Some(tag.as_str()));
    let (dry, mut answer) = (dry.json(), answer.json());
    // What is said before is what happens.
    for said in ["definition", "changes", "stale", "kept"] {
        assert_eq!(dry[said], answer[said], "{said}");
    }
    assert_eq!(answer["plan"], Value::Null);
    assert_eq!(answer["study"]["state"], "running");
    answer["plan"] = dry["plan"].clone();
    answer
}

/// A study with a target, which simulated children answer.
fn trained() -> Value {
    json!({
        "name": "before",
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 1024, "features": 8, "classes": 3, "seed": 1},
            "model": {"family": "mlp", "hidden": [8]},
            "target": {"metric": "validation_cross_entropy", "value": 0.2}
        },
        "optimizer": {"family": "sgd"},
        "batch_sizes": {"min": 16, "max": 64},
        "device": {"memory_budget_bytes": 1_073_741_824_u64, "threads": 1},
        "questions": ["feasible_batch_sizes", "throughput", "batch_size", "critical_batch_size"],
        "costs": {"device_hour": 1.0},
        "seed": 7
    })
}

/// Probes of the current revision, by kind: (taken over, made).
async fn counts(service: &TestService, path: &str) -> BTreeMap<String, (u64, u64)> {
    let mut counts = BTreeMap::<String, (u64, u64)>::new();
    let mut next = format!("{path}/probes?page_size=500");
    loop {
        let page = service.get(&next).await.json();
        for item in page["items"].as_array().expect("items") {
            let kind = item["probe"]["kind"].as_str().expect("a kind").to_owned();
            let count = counts.entry(kind).or_default();
            if item["reused"] == true {
                count.0 += 1;
            } else {
                count.1 += 1;
            }
        }
        match page["next_page_token"].as_str() {
            Some(token) => next = format!("{path}/probes?page_size=500&page_token={token}"),
            None => return counts,
        }
    }
}

fn sum(counts: &BTreeMap<String, (u64, u64)>) -> (u64, u64) {
    counts
        .values()
        .fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
}

async fn topics(service: &TestService, path: &str, query: &str) -> Vec<Value> {
    let answer = service
        .get(&format!("{path}/recommendations{query}"))
        .await
        .json();
    answer["items"].as_array().expect("items").clone()
}

#[tokio::test]
async fn what_is_changed_must_be_named_and_what_is_refused_changes_nothing() {
    let service = TestService::without_workers().await;
    let path = service.create(&digits()).await;
    let at = format!("{path}/definition");
    let first = service.get(&at).await;
    let tag = first.header("etag").expect("an ETag");
    assert!(tag.starts_with("\"1-"), "{tag}");
    let mut other = digits();
    other["name"] = json!("another");

    put(&service, &at, &other, None)
        .await
        .problem(428, "revision_required");
    put(&service, &at, &other, Some("\"2\""))
        .await
        .problem(412, "revision_changed");
    put(&service, &at, &other, Some("2"))
        .await
        .problem(422, "invalid_parameter");
    put(
        &service,
        &format!("{at}?dry_run=true"),
        &other,
        Some("\"2\""),
    )
    .await
    .problem(412, "revision_changed");
    let mut bad = other.clone();
    bad["batch_sizes"]["min"] = json!(0);
    bad["colour"] = json!("red");
    for query in ["", "?dry_run=true"] {
        let refused = put(&service, &format!("{at}{query}"), &bad, Some("\"1\"")).await;
        let problem = refused.problem(422, "invalid_study");
        assert!(problem["errors"].to_string().contains("/batch_sizes/min"));
    }
    let nobody = format!("/v1/studies/{}/definition", uuid::Uuid::nil());
    put(&service, &nobody, &other, Some("\"1\""))
        .await
        .problem(404, "not_found");
    assert_eq!(service.get(&at).await.text, first.text);
    assert_eq!(service.get(&path).await.json()["revision"], 1);

    // The same again is no change.
    let same = put(&service, &at, &digits(), Some("\"1\"")).await;
    assert_eq!(same.status, 200, "{}", same.text);
    assert_eq!(same.header("etag"), Some(tag));
    assert_eq!(same.json()["changes"], json!([]));

    // So is what was read, sent back.
    let read = put(&service, &at, &first.json(), Some(tag)).await;
    assert_eq!(read.status, 200, "{}", read.text);
    assert_eq!(read.json()["changes"], json!([]));

    // Also where the model was left open: it still is.
    let open = json!({"workload": {"dataset": {"builtin": "digits"}}});
    let left_open = format!("{}/definition", service.create(&open).await);
    let read = service.get(&left_open).await.json();
    assert_eq!(read["model_from"], "default", "{read}");
    let same = put(&service, &left_open, &read, Some("\"1\"")).await;
    assert_eq!(same.status, 200, "{}", same.text);
    assert_eq!(same.json()["changes"], json!([]));

    let changed = put(&service, &at, &other, Some("\"1\", \"7\"")).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    let now = service.get(&at).await;
    assert_eq!(changed.header("etag"), now.header("etag"));
    assert!(
        now.header("etag")
            .is_some_and(|tag| tag.starts_with("\"2-"))
    );
    assert_eq!(changed.json()["changes"][0]["pointer"], "/name");
    assert_eq!(service.get(&path).await.json()["name"], "another");
}

#[tokio::test]
async fn of_two_changes_at_once_one_is_told_that_somebody_was_faster() {
    let service = TestService::without_workers().await;
    let path = service.create(&digits()).await;
    let at = format!("{path}/definition");
    for round in 1..=5 {
        let tag = format!("\"{round}\"");
        let bodies: Vec<Value> = (0..4)
            .map(|number| {
                let mut body = digits();
                body["name"] = json!(format!("round {round}, number {number}"));
                body
            })
            .collect();
        let answers = futures::future::join_all(
            bodies
                .iter()
                .map(|body| put(&service, &at, body, Some(&tag))),
        )
        .await;
        let won = answers.iter().filter(|answer| answer.status == 200).count();
        let late = answers.iter().filter(|answer| answer.status == 412).count();
        assert_eq!((won, late), (1, 3), "{answers:?}");
    }
    assert_eq!(service.get(&path).await.json()["revision"], 6);
}

#[tokio::test]
async fn revisions_are_listed_newest_first_with_what_they_changed() {
    let service = TestService::without_workers().await;
    let path = service.create(&digits()).await;
    let mut body = digits();
    for number in 2..=5 {
        body["seed"] = json!(number * 100);
        revise(&service, &path, &body).await;
    }
    let mut seen = Vec::new();
    let mut next = format!("{path}/revisions?page_size=2");
    loop {
        let page = service.get(&next).await.json();
        seen.extend(page["items"].as_array().expect("items").clone());
        match page["next_page_token"].as_str() {
            Some(token) => next = format!("{path}/revisions?page_size=2&page_token={token}"),
            None => break,
        }
    }
    let numbers: Vec<i64> = seen
        .iter()
        .map(|it| it["revision"].as_i64().expect("a number"))
        .collect();
    assert_eq!(numbers, [5, 4, 3, 2, 1]);
    assert_eq!(seen[4]["changes"], json!([]));
    assert_eq!(
        seen[0]["changes"],
        json!([{"pointer": "/seed", "change": "seed", "before": 400, "after": 500}])
    );
    assert_eq!(seen[3]["changes"][0]["before"], 7);
    service
        .get(&format!("{path}/revisions?page_size=0"))
        .await
        .problem(422, "invalid_parameter");
}

#[tokio::test]
async fn prices_objective_names_and_budget_are_answered_from_what_is_stored() {
    let service = TestService::with_worker().await;
    let path = service.create(&trained()).await;
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let first = sum(&counts(&service, &path).await);
    assert_eq!(first.0, 0);
    let spent = study["progress"]["device_secs"].as_f64().expect("seconds");
    let before = topics(&service, &path, "").await;
    let of = |items: &[Value], topic: &str| -> Value {
        let mut items = items.iter();
        items
            .find(|item| item["topic"] == topic)
            .unwrap_or_else(|| panic!("{topic}"))
            .clone()
    };
    assert_eq!(of(&before, "batch_size")["basis"], "measured");
    of(&before, "retuning");

    let mut body = trained();
    let changes = [
        (
            "/costs",
            json!({"device_hour": 3.0, "planned_runs": 100}),
            "prices",
        ),
        (
            "/objective",
            json!("minimize_resource_consumption"),
            "objective",
        ),
        ("/name", json!("after"), "name_or_labels"),
        ("/labels", json!({"team": "vision"}), "name_or_labels"),
        ("/budget", json!({"device_secs": 1800.0}), "budget"),
        ("/priority", json!(3), "priority"),
    ];
    for (pointer, value, word) in changes {
        body[&pointer[1..]] = value;
        let answer = revise(&service, &path, &body).await;
        let mut changed = answer["changes"].as_array().expect("changes").iter();
        assert!(changed.any(|it| it["change"] == word), "{answer}");
        assert_eq!(answer["plan"]["probes"], 0, "{answer}");
        assert_eq!(answer["plan"]["estimated_device_secs"], 0.0);
        assert_eq!(answer["plan"]["reused_probes"], first.1);
        let study = service.ended(&path).await;
        assert_eq!(study["ended_because"], "answered", "{study}");
        // The same probes, none of them new, and they have cost what they had.
        assert_eq!(sum(&counts(&service, &path).await), (first.1, 0), "{word}");
        let counted = study["progress"]["device_secs"].as_f64().expect("seconds");
        assert!((counted - spent).abs() < 1e-6, "{counted} and {spent}");
    }
    let after = topics(&service, &path, "").await;
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|item| item["revision"] == 7), "{after:?}");
    // What no change touched has kept its name; what the prices decide has a new one, and the old one says why.
    for topic in ["training_throughput", "critical_batch_size"] {
        assert_eq!(of(&before, topic)["id"], of(&after, topic)["id"], "{topic}");
    }
    assert_ne!(
        of(&before, "batch_size")["id"],
        of(&after, "batch_size")["id"]
    );
    let money = |item: &Value| item["value"]["money"]["value"].as_f64().expect("money");
    let (old, new) = (of(&before, "batch_size"), of(&after, "batch_size"));
    assert!(money(&new) > 2.0 * money(&old), "{old} {new}");
    let all = topics(&service, &path, "?include_stale=true").await;
    let stale: Vec<&Value> = all.iter().filter(|item| item["stale"] == true).collect();
    assert!(!stale.is_empty());
    let mut named = stale.iter();
    assert!(
        named.any(|item| item["id"] == old["id"] && item["invalidated_by"] == json!(["prices"]))
    );
    assert!(after.iter().all(|item| item["stale"] == false));
}

#[tokio::test]
async fn another_optimizer_repeats_what_depends_on_it_and_another_learning_rate_next_to_nothing() {
    let service = TestService::with_worker().await;
    let path = service.create(&trained()).await;
    service.ended(&path).await;
    let first = counts(&service, &path).await;

    // Only whether it still runs is asked again: the learning rate is searched for anyway.
    let mut body = trained();
    body["optimizer"] = json!({"family": "sgd", "learning_rate": 0.03});
    let answer = revise(&service, &path, &body).await;
    assert_eq!(answer["changes"][0]["change"], "starting_learning_rate");
    assert_eq!(answer["stale"], json!([]));
    assert_eq!(answer["plan"]["probes"], 1, "{answer}");
    service.ended(&path).await;
    let again = counts(&service, &path).await;
    assert_eq!(again["smoke"], (0, 1));
    assert_eq!(sum(&again), (sum(&first).1 - 1, 1));

    // SGD → Adam: everything.
    body["optimizer"] = json!({"family": "adam"});
    let answer = revise(&service, &path, &body).await;
    let stale = answer["stale"].as_array().expect("stale");
    for topic in ["training_throughput", "batch_size", "critical_batch_size"] {
        let mut stale = stale.iter();
        let it = stale
            .find(|it| it["topic"] == topic)
            .unwrap_or_else(|| panic!("{topic} in {answer}"));
        let by = it["invalidated_by"].as_array().expect("words");
        assert!(by.contains(&json!("optimizer_family")), "{it}");
        assert!(!it["why"].as_str().expect("why").is_empty());
    }
    assert_eq!(answer["kept"], json!([]));
    assert_eq!(answer["plan"]["reused_probes"], 0);
    let expected = answer["plan"]["probes"].as_u64().expect("a count");
    let study = service.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let adam = counts(&service, &path).await;
    assert_eq!(sum(&adam).0, 0, "{adam:?}");
    let made = sum(&adam).1;
    assert!(
        made <= 2 * expected && expected <= 2 * made,
        "{expected} probes were expected, {made} were made"
    );

    // And back: nothing.
    body["optimizer"] = json!({"family": "sgd"});
    let answer = revise(&service, &path, &body).await;
    assert_eq!(answer["plan"]["probes"], 0, "{answer}");
    service.ended(&path).await;
    assert_eq!(sum(&counts(&service, &path).await), (sum(&first).1, 0));
}

#[tokio::test]
async fn other_data_keep_the_hardware_and_another_device_the_training() {
    let service = TestService::with_worker().await;
    let path = service.create(&trained()).await;
    service.ended(&path).await;
    let hardware = ["memory", "step_time", "confirmation"];
    let training = ["training", "learning_rate_range", "noise_scale"];

    let mut body = trained();
    body["workload"]["dataset"]["seed"] = json!(2);
    let answer = revise(&service, &path, &body).await;
    assert_eq!(answer["changes"][0]["change"], "data_set");
    let (reused, probes) = (
        answer["plan"]["reused_probes"].clone(),
        answer["plan"]["probes"].clone(),
    );
    service.ended(&path).await;
    let after = counts(&service, &path).await;
    for kind in hardware {
        assert!(after[kind].0 > 0 && after[kind].1 == 0, "{kind}: {after:?}");
    }
    for kind in training {
        assert!(after[kind].0 == 0 && after[kind].1 > 0, "{kind}: {after:?}");
    }
    // The simulated children learn these data at the same pace, so what was said before is so to the probe.
    assert_eq!(json!(sum(&after).0), reused);
    assert_eq!(json!(sum(&after).1), probes);

    body["device"]["threads"] = json!(2);
    let answer = revise(&service, &path, &body).await;
    assert_eq!(answer["changes"][0]["change"], "threads");
    let kept = answer["kept"].as_array().expect("topics");
    assert!(kept.contains(&json!("critical_batch_size")), "{answer}");
    let (reused, probes) = (
        answer["plan"]["reused_probes"].clone(),
        answer["plan"]["probes"].clone(),
    );
    service.ended(&path).await;
    let after = counts(&service, &path).await;
    for kind in hardware {
        assert!(after[kind].0 == 0 && after[kind].1 > 0, "{kind}: {after:?}");
    }
    for kind in training {
        assert!(after[kind].0 > 0 && after[kind].1 == 0, "{kind}: {after:?}");
    }
    assert_eq!(json!(sum(&after).0), reused);
    assert_eq!(json!(sum(&after).1), probes);
}

#[tokio::test]
async fn a_new_study_is_told_what_others_have_measured() {
    let service = TestService::with_worker().await;
    let mut body = digits();
    body["questions"] = json!(["feasible_batch_sizes", "throughput"]);
    let before = service.post("/v1/studies?dry_run=true", &body).await.json();
    assert_eq!(before["plan"]["reused_probes"], 0);
    assert!(before["plan"]["probes"].as_u64().expect("a count") > 0);
    let path = service.create(&body).await;
    service.ended(&path).await;
    let made = sum(&counts(&service, &path).await).1;
    body["name"] = json!("the same in another name");
    let after = service.post("/v1/studies?dry_run=true", &body).await.json();
    assert_eq!(after["plan"]["reused_probes"], made, "{after}");
    assert_eq!(after["plan"]["probes"], 0);
    // Who refuses what others measured has nothing to take over, but from its own revisions.
    body["reuse"] = json!(false);
    let refuses = service.post("/v1/studies?dry_run=true", &body).await.json();
    assert_eq!(refuses["plan"]["reused_probes"], 0);
    let own = service.create(&body).await;
    service.ended(&own).await;
    assert_eq!(sum(&counts(&service, &own).await), (0, made));
    body["labels"] = json!({"team": "sound"});
    revise(&service, &own, &body).await;
    service.ended(&own).await;
    assert_eq!(sum(&counts(&service, &own).await), (made, 0));
}

#[tokio::test]
async fn what_runs_goes_on_while_it_matters_and_stops_when_it_does_not() {
    let service = TestService::start(|settings| {
        let runner = crate::fake::executable().display().to_string();
        settings.pool.child_command = Some(vec![runner, "sleep".into()]);
    })
    .await;
    let path = service.create(&digits()).await;
    let probes = format!("{path}/probes");
    let running = |page: &Value| page["items"][0]["probe"]["state"] == "running";
    let page = service.until(&probes, running).await;
    let first = page["items"][0]["probe"]["id"]
        .as_str()
        .expect("id")
        .to_owned();

    // Another price: the same probe goes on for the new revision.
    let mut body = digits();
    body["costs"] = json!({"device_hour": 1.0});
    let answer = put(
        &service,
        &format!("{path}/definition"),
        &body,
        Some("\"1\""),
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let page = service.get(&probes).await.json();
    assert_eq!(page["items"][0]["probe"]["id"], json!(first));
    assert_eq!(page["items"][0]["probe"]["cancel_requested"], false);
    assert_eq!(page["items"][0]["probe"]["attempt"], 1);

    // Another model: it is stopped, and the new one's begins.
    body["workload"]["model"]["hidden"] = json!([32]);
    let answer = put(
        &service,
        &format!("{path}/definition"),
        &body,
        Some("\"2\""),
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let stopped = |probe: &Value| probe["state"] == "cancelled";
    service.until(&format!("/v1/probes/{first}"), stopped).await;
    let page = service.until(&probes, running).await;
    assert_ne!(page["items"][0]["probe"]["id"], json!(first));

    // A cancelled study comes back, and so does the probe that nobody wanted any more.
    service.post(&format!("{path}/cancel"), &json!({})).await;
    body["workload"]["model"]["hidden"] = json!([16]);
    let answer = put(&service, &format!("{path}/definition"), &body, Some("*")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["study"]["state"], "running");
    let page = service.until(&probes, running).await;
    assert_eq!(page["items"][0]["probe"]["id"], json!(first));
    assert_eq!(page["items"][0]["probe"]["attempt"], 2);
}

#[tokio::test]
async fn a_study_that_comes_back_counts_as_active() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.max_active_studies = 1;
    })
    .await;
    let first = service.create(&digits()).await;
    service.post(&format!("{first}/cancel"), &json!({})).await;
    let second = service.create(&digits()).await;
    let mut body = digits();
    body["name"] = json!("another");
    put(
        &service,
        &format!("{first}/definition"),
        &body,
        Some("\"1\""),
    )
    .await
    .problem(429, "too_many_studies");
    assert_eq!(service.get(&first).await.json()["revision"], 1);
    // One that is active already takes no further place.
    let answer = put(
        &service,
        &format!("{second}/definition"),
        &body,
        Some("\"1\""),
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

//! Queries ask for metrics and labels that the service has, and alerts say what to do.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::documents::{Document, items};
use crate::overlays::{Overlay, built, read, runs, skipped};

/// Metrics and labels that others add: the HTTP middleware, and Prometheus when it scrapes a pod.
const OTHERS: [&str; 5] = ["http_requests_total", "status", "le", "pod", "namespace"];

/// Words of PromQL and functions that the queries use.
const LANGUAGE: [&str; 19] = [
    "absent",
    "and",
    "by",
    "count",
    "group_left",
    "histogram_quantile",
    "max",
    "min",
    "offset",
    "on",
    "or",
    "rate",
    "sum",
    "unless",
    "vector",
    "m",
    "h",
    "without",
    "increase",
];

/// What is wrong with the queries of a document.
pub fn problems(document: &Document) -> Vec<String> {
    let mut found = Vec::new();
    match document.kind.as_str() {
        "PrometheusRule" => {
            for rule in items(&document.value, "/spec/groups")
                .iter()
                .flat_map(|group| items(group, "/rules"))
            {
                let alert = rule["alert"].as_str().unwrap_or_default();
                let told = ["summary", "description", "runbook"].iter().all(|part| {
                    rule["annotations"][part]
                        .as_str()
                        .is_some_and(|text| text.len() > 20)
                });
                if !told || !rule["labels"]["severity"].is_string() {
                    found.push(format!(
                        "alert {alert} does not say what it means, how bad it is and what to do"
                    ));
                }
                let unknown = unknown(rule["expr"].as_str().unwrap_or_default());
                found.extend(
                    unknown
                        .into_iter()
                        .map(|problem| format!("alert {alert}: {problem}")),
                );
            }
        }
        "ScaledJob" | "ScaledObject" => {
            let triggers = items(&document.value, "/spec/triggers");
            if triggers.is_empty() {
                found.push("nothing triggers it".into());
            }
            for trigger in triggers {
                let query = trigger["metadata"]["query"].as_str().unwrap_or_default();
                found.extend(unknown(query));
                if query.contains("vector(") {
                    found.push(format!("takes a lost API for an empty queue: {query:?}"));
                }
            }
        }
        _ => {}
    }
    found
        .into_iter()
        .map(|problem| format!("{document}: {problem}"))
        .collect()
}

/// What of a query is neither PromQL nor the service's.
fn unknown(query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = 0_i32;
    // Texts in quotes are values of labels.
    for (index, part) in query.split('"').enumerate() {
        if index % 2 == 1 {
            continue;
        }
        for character in part.chars() {
            open += i32::from(matches!(character, '(' | '{' | '['));
            open -= i32::from(matches!(character, ')' | '}' | ']'));
        }
        let words = part
            .split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
            .map(|word| word.trim_start_matches(|character: char| character.is_ascii_digit()))
            .filter(|word| !word.is_empty());
        for word in words {
            if !LANGUAGE.contains(&word) && !OTHERS.contains(&word) && !is_ours(word) {
                found.push(format!("{word} is not a metric or label of the service"));
            }
        }
    }
    if open != 0 || !query.contains("trialhead_") && !query.contains("http_") {
        found.push(format!("is not a whole query: {query:?}"));
    }
    found
}

/// Whether src/metrics.rs has it: as a metric, as a series of a histogram, or as a label.
fn is_ours(word: &str) -> bool {
    static NAMES: OnceLock<BTreeSet<String>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        read("src/metrics.rs")
            .split('"')
            .filter(|text| {
                !text.is_empty() && text.chars().all(|it| it.is_ascii_lowercase() || it == '_')
            })
            .map(str::to_owned)
            .collect()
    });
    ["", "_bucket", "_count", "_sum"].iter().any(|series| {
        word.strip_suffix(series)
            .is_some_and(|name| names.contains(name))
    })
}

/// The rules of an overlay, and the query of each scaler as a series of its own.
fn rules(overlays: &[Overlay]) -> Value {
    let documents = || overlays.iter().flat_map(|overlay| &overlay.documents);
    let mut groups: Vec<Value> = documents()
        .find(|document| document.kind == "PrometheusRule")
        .map(|document| items(&document.value, "/spec/groups").to_vec())
        .unwrap_or_default();
    let scalers = documents().filter(|document| document.kind.starts_with("Scaled"));
    let queries: Vec<Value> = scalers
        .map(|document| {
            let device = document.name.rsplit('-').next().unwrap_or_default();
            json!({
                "record": format!("{}:{device}", document.kind),
                "expr": document.text("/spec/triggers/0/metadata/query"),
            })
        })
        .collect();
    assert_eq!(queries.len(), 4, "two ways to scale two kinds of workers");
    groups.push(json!({"name": "queries", "rules": queries}));
    json!({"groups": groups})
}

#[test]
fn alerts_fire_when_they_should_and_workers_are_counted_right() {
    let overlays = built();
    if overlays.is_empty() {
        return; // said already
    }
    let promtool = Path::new("promtool");
    if let Err(why) = runs(promtool, &["--version"]) {
        skipped(&format!(
            "alerts and queries are checked for names only, not evaluated, for want of promtool ({why}), which Debian's \
             package prometheus has"
        ));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let write =
        |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("rules.json", &rules(overlays).to_string());
    write("alerts.yaml", &read("tests/kubernetes/alerts.yaml"));
    let output = Command::new(promtool)
        .args(["test", "rules", "alerts.yaml"])
        .current_dir(&folder)
        .output()
        .expect("promtool runs");
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

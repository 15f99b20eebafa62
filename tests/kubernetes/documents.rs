//! Documents, and whether each is what it claims to be.

use std::fmt;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::overlays::read;

/// One object of a manifest.
#[derive(Debug)]
pub struct Document {
    pub kind: String,
    pub name: String,
    pub value: Value,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl Document {
    /// The text at a pointer, empty if there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.value
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The template of its pods, if it makes any.
    pub fn pod(&self) -> Option<&Value> {
        let pointer = match self.kind.as_str() {
            "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => "/spec/template",
            "CronJob" => "/spec/jobTemplate/spec/template",
            "ScaledJob" => "/spec/jobTargetRef/template",
            _ => return None,
        };
        self.value.pointer(pointer)
    }

    /// Names of the alerts it defines.
    pub fn alerts(&self) -> impl Iterator<Item = &str> {
        items(&self.value, "/spec/groups")
            .iter()
            .filter(|_| self.kind == "PrometheusRule")
            .flat_map(|group| items(group, "/rules"))
            .filter_map(|rule| rule["alert"].as_str())
    }
}

/// The list at a pointer, empty if there is none.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The documents of a YAML stream.
pub fn parse(text: &str) -> Result<Vec<Document>, String> {
    let values: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    values
        .into_iter()
        .map(|value| {
            let text = |pointer: &str| {
                let found = value.pointer(pointer).and_then(Value::as_str);
                found
                    .map(str::to_owned)
                    .ok_or(format!("no {pointer} in {value}"))
            };
            Ok(Document {
                kind: text("/kind")?,
                name: text("/metadata/name")?,
                value,
            })
        })
        .collect()
}

/// What a cluster would refuse, or drop in silence.
pub fn problems(document: &Document) -> Vec<String> {
    let value = &document.value;
    let found = match (document.text("/apiVersion"), document.kind.as_str()) {
        ("v1", "ConfigMap") => typed::<ConfigMap>(value),
        ("v1", "Namespace") => typed::<Namespace>(value),
        ("v1", "PersistentVolumeClaim") => typed::<PersistentVolumeClaim>(value),
        ("v1", "Secret") => typed::<Secret>(value),
        ("v1", "Service") => typed::<Service>(value),
        ("v1", "ServiceAccount") => typed::<ServiceAccount>(value),
        ("apps/v1", "Deployment") => typed::<Deployment>(value),
        ("apps/v1", "StatefulSet") => typed::<StatefulSet>(value),
        ("batch/v1", "Job") => typed::<Job>(value),
        ("networking.k8s.io/v1", "NetworkPolicy") => typed::<NetworkPolicy>(value),
        ("policy/v1", "PodDisruptionBudget") => typed::<PodDisruptionBudget>(value),
        (
            "keda.sh/v1alpha1" | "monitoring.coreos.com/v1",
            "PodMonitor" | "PrometheusRule" | "ScaledJob" | "ScaledObject" | "ServiceMonitor",
        ) => custom(document),
        (version, kind) => vec![format!("{version} {kind} is not a type that is known here")],
    };
    found
        .into_iter()
        .map(|problem| format!("{document}: {problem}"))
        .collect()
}

/// Parses as the type, writes it again, and misses what is not there any more.
fn typed<T: DeserializeOwned + Serialize>(value: &Value) -> Vec<String> {
    let parsed: T = match serde_json::from_value(value.clone()) {
        Ok(parsed) => parsed,
        Err(error) => return vec![error.to_string()],
    };
    let again = serde_json::to_value(parsed).expect("a value");
    let mut lost = Vec::new();
    compare(value, &again, "", &mut lost);
    lost
}

fn compare(before: &Value, after: &Value, pointer: &str, lost: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                let pointer = format!("{pointer}/{key}");
                match after.get(key) {
                    Some(found) => compare(value, found, &pointer, lost),
                    None => lost.push(format!("{pointer} is not a field")),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                compare(before, after, &format!("{pointer}/{index}"), lost);
            }
        }
        _ if before == after => {}
        _ => lost.push(format!("{pointer} is {before}, understood as {after}")),
    }
}

/// Checks a custom resource against its schema, and what is of Kubernetes in it as its type.
fn custom(document: &Document) -> Vec<String> {
    let path = format!("k8s/schemas/{}.json", document.kind.to_lowercase());
    let schema: Value = serde_json::from_str(&read(&path)).expect("a schema is JSON");
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    let mut found: Vec<String> = validator
        .iter_errors(&document.value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    found.extend(typed::<ObjectMeta>(&document.value["metadata"]));
    if document.kind == "ScaledJob" {
        found.extend(typed::<JobSpec>(&document.value["spec"]["jobTargetRef"]));
    }
    found
}

//! What is sent and answered, for people in front of the document: recorded by `scripts/record-examples` from a service
//! that measured, never made up.

use serde_json::Value;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{Content, RefOr};

use super::openapi::OCTETS;

/// A recorded text.
struct Example {
    operation: &'static str,
    /// `request`, or the status of the answer.
    place: &'static str,
    kind: &'static str,
    text: &'static str,
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

macro_rules! examples {
    ($($operation:literal $place:literal $kind:expr, $extension:literal;)*) => {
        &[$(Example {
            operation: $operation,
            place: $place,
            kind: $kind,
            text: include_str!(concat!(
                "../../openapi/examples/", $operation, ".", $place, ".", $extension
            )),
        },)*]
    };
}

const EXAMPLES: &[Example] = examples! {
    "create_study" "request" JSON, "json";
    "create_study" "200" JSON, "json";
    "create_study" "202" JSON, "json";
    "list_studies" "200" JSON, "json";
    "get_study" "200" JSON, "json";
    "cancel_study" "200" JSON, "json";
    "get_study_definition" "200" JSON, "json";
    "update_study_definition" "request" JSON, "json";
    "update_study_definition" "200" JSON, "json";
    "list_study_revisions" "200" JSON, "json";
    "stream_study_events" "200" "text/event-stream", "events";
    "list_probes" "200" JSON, "json";
    "get_probe" "200" JSON, "json";
    "list_measurements" "200" JSON, "json";
    "list_measurements" "200" "text/csv", "csv";
    "list_measurements" "200" "application/x-ndjson", "ndjson";
    "get_analysis" "200" JSON, "json";
    "list_recommendations" "200" JSON, "json";
    "get_report" "200" "text/markdown", "md";
    "upload_dataset" "request" OCTETS, "txt";
    "upload_dataset" "200" JSON, "json";
    "upload_dataset" "201" JSON, "json";
    "list_datasets" "200" JSON, "json";
    "get_dataset" "200" JSON, "json";
    "get_catalog" "200" JSON, "json";
    "list_devices" "200" JSON, "json";
    "claim_lease" "request" JSON, "json";
    "claim_lease" "200" JSON, "json";
    "send_heartbeat" "request" JSON, "json";
    "send_heartbeat" "200" JSON, "json";
    "complete_lease" "request" JSON, "json";
    "complete_lease" "200" JSON, "json";
    "get_liveness" "200" JSON, "json";
    "get_readiness" "200" JSON, "json";
    "get_instance_metrics" "200" TEXT, "txt";
    "get_service_metrics" "200" TEXT, "txt";
};

/// Adds its examples to an operation.
pub fn add(operation: &mut Operation) {
    for example in EXAMPLES {
        if operation.operation_id.as_deref() == Some(example.operation)
            && let Some(content) = content(operation, example)
        {
            content.example = Some(example.value());
        }
    }
}

/// Where it belongs.
fn content<'a>(operation: &'a mut Operation, example: &Example) -> Option<&'a mut Content> {
    let content = if example.place == "request" {
        let RefOr::T(body) = operation.request_body.as_mut()? else {
            return None;
        };
        body.content.get_mut(example.kind)?
    } else {
        let response = operation.responses.responses.get_mut(example.place)?;
        let RefOr::T(response) = response else {
            return None;
        };
        response.content.get_mut(example.kind)?
    };
    match content {
        RefOr::T(content) => Some(content),
        RefOr::Ref(_) => None,
    }
}

impl Example {
    /// JSON as it is, everything else as one string.
    fn value(&self) -> Value {
        let text = || Value::String(self.text.to_owned());
        match self.kind {
            JSON => serde_json::from_str(self.text).unwrap_or_else(|_| text()),
            _ => text(),
        }
    }
}

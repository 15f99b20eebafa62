//! The JSON schema of a request: the published one, narrowed by a server's limits.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::limits::{DefinitionLimits, MAX_EXACT_INTEGER};
use crate::study::StudyRequest;

/// Where the schema of [`StudyRequest`] is in [`document`].
pub(super) const ROOT: &str = "/components/schemas/StudyRequest";

/// The schemas of a request by name, as the OpenAPI document has them.
pub fn request_schemas() -> BTreeMap<String, RefOr<Schema>> {
    let mut schemas = Vec::new();
    StudyRequest::schemas(&mut schemas);
    schemas.push((StudyRequest::name().into_owned(), StudyRequest::schema()));
    let mut schemas: BTreeMap<_, _> = schemas.into_iter().collect();
    schemas.values_mut().for_each(close_union);
    schemas
}

/// Says in the schema what the types already do: an alternative of a union refuses fields that it
/// does not know. (The generator sees `deny_unknown_fields` on structs only.)
fn close_union(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::OneOf(union)) = schema else {
        return;
    };
    for alternative in &mut union.items {
        if let RefOr::T(Schema::Object(object)) = alternative
            && !object.properties.is_empty()
        {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
}

/// The schemas of a request under `/components/schemas`, narrowed by a server's limits.
pub(super) fn document(limits: &DefinitionLimits) -> Value {
    let mut document = json!({"components": {"schemas": request_schemas()}});
    narrow(&mut document, limits);
    bound_integers(&mut document);
    document
}

/// A validator for the schema at `pointer` of `document`.
pub(super) fn compile(document: &Value, pointer: &str) -> jsonschema::Validator {
    let mut schema = document.clone();
    schema["$ref"] = Value::String(format!("#{pointer}"));
    jsonschema::draft202012::new(&schema)
        .expect("the schema is generated from types and a test compiles it")
}

/// The name of the property that tells the alternatives of a tagged union apart, if `branch` is
/// such an alternative: required, and with a single value.
pub(super) fn tag_of(branch: &Value) -> Option<(&str, &str)> {
    let required = branch.get("required")?.as_array()?;
    branch
        .get("properties")?
        .as_object()?
        .iter()
        .find_map(|(name, property)| {
            let options = property.get("enum")?.as_array()?;
            let is_tag = options.len() == 1 && required.iter().any(|field| field == name);
            is_tag.then_some((name.as_str(), options.first()?.as_str()?))
        })
}

/// Writes a server's limits into the schema, so that a bound is told as a bound.
fn narrow(document: &mut Value, limits: &DefinitionLimits) {
    let Some(schemas) = document
        .pointer_mut("/components/schemas")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let mut set = |schema: &str, property: &str, keyword: &str, bound: Value| {
        let Some(schema) = schemas.get_mut(schema) else {
            return;
        };
        if property.is_empty() {
            schema[keyword] = bound;
            return;
        }
        let (property, items) = match property.strip_suffix("[]") {
            Some(name) => (name, true),
            None => (property, false),
        };
        let alternatives = match schema.get_mut("oneOf") {
            Some(Value::Array(branches)) => branches.iter_mut().collect(),
            _ => vec![schema],
        };
        for alternative in alternatives {
            if let Some(target) = alternative
                .get_mut("properties")
                .and_then(|properties| properties.get_mut(property))
            {
                let target = if items { &mut target["items"] } else { target };
                target[keyword] = bound.clone();
            }
        }
    };
    set("BatchSize", "", "maximum", limits.max_batch_size.into());
    set(
        "Budget",
        "device_secs",
        "maximum",
        limits.max_device_secs.into(),
    );
    set("Budget", "probes", "maximum", limits.max_probes.into());
    set(
        "Bytes",
        "",
        "minimum",
        limits.min_memory_budget_bytes.into(),
    );
    set(
        "BuiltinDataset",
        "classes",
        "maximum",
        limits.max_classes.into(),
    );
    set("DeviceRequest", "model", "minLength", 1.into());
    set(
        "DeviceRequest",
        "model",
        "maxLength",
        limits.max_name_chars.into(),
    );
    set(
        "DeviceRequest",
        "threads",
        "maximum",
        limits.max_threads.into(),
    );
    set(
        "DeviceRequest",
        "count",
        "maximum",
        limits.max_devices.into(),
    );
    set("Grid", "values", "minItems", 1.into());
    set("Grid", "values", "maxItems", limits.max_grid_values.into());
    set(
        "Model",
        "hidden",
        "maxItems",
        limits.max_hidden_layers.into(),
    );
    for list in ["channels", "layers"] {
        set("Model", list, "maxItems", limits.max_hidden_layers.into());
    }
    for list in ["layers", "shortcut"] {
        set("Layer", list, "maxItems", limits.max_hidden_layers.into());
    }
    for list in ["hidden[]", "channels[]"] {
        set("Model", list, "minimum", 1.into());
        set("Model", list, "maximum", limits.max_hidden_units.into());
    }
    for width in ["units", "channels", "width"] {
        set("Layer", width, "maximum", limits.max_hidden_units.into());
    }
    set(
        "Optimizer",
        "learning_rate",
        "maximum",
        limits.max_learning_rate.into(),
    );
    set("Optimizer", "epsilon", "maximum", limits.max_epsilon.into());
    set(
        "Optimizer",
        "weight_decay",
        "maximum",
        limits.max_weight_decay.into(),
    );
    set(
        "StudyRequest",
        "labels",
        "maxProperties",
        limits.max_labels.into(),
    );
    set("StudyRequest", "name", "minLength", 1.into());
    set(
        "StudyRequest",
        "name",
        "maxLength",
        limits.max_name_chars.into(),
    );
}

/// An integer without a bound of its own is bounded by what JSON holds exactly.
fn bound_integers(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            let is_integer = match members.get("type") {
                Some(Value::String(name)) => name == "integer",
                Some(Value::Array(names)) => names.iter().any(|name| name == "integer"),
                _ => false,
            };
            if is_integer {
                members
                    .entry("maximum")
                    .or_insert_with(|| MAX_EXACT_INTEGER.into());
            }
            members.values_mut().for_each(bound_integers);
        }
        Value::Array(elements) => elements.iter_mut().for_each(bound_integers),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

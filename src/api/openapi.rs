//! The OpenAPI document: assembled from the very services that are served.

use std::collections::BTreeMap;

use actix_web::web::Data;
use actix_web::{App, HttpRequest, HttpResponse};
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as OpenApiDocument, Ref, RefOr, Required};
use utoipa_actix_web::AppExt;
use utoipa_actix_web::service_config::ServiceConfig;

use super::events::StudyEvent;
use super::problem::{Problem, ProblemCode};
use super::{
    answers, catalog, conditional, datasets, devices, events, examples, health, leases, links,
    measurements, metrics, probes, responses, revisions, studies,
};
use crate::access::Scope;
use crate::study::upload::{ArrayLayout, UploadTask};
use crate::study::validation::Violation;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Trialhead",
        description = "Measures where a deep-learning project should start: post a study (a workload, an optimizer, a device), and short training probes answer which batch sizes fit, what throughput each gives, and which one to begin with.\n\nErrors are RFC 9457 problem details with a stable `code`; lists come in pages by `page_size` and `page_token`; times are RFC 3339 in UTC, durations `…_secs`, sizes `…_bytes`. Unknown fields are refused.\n\nBeyond loopback every operation but health and readiness needs an access token (`Authorization: Bearer …`) with the scope it names. What belongs to another project is answered with 404.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")
    ),
    tags(
        (name = "studies", description = "What is asked"),
        (name = "answers", description = "What was found"),
        (name = "probes", description = "What was run"),
        (name = "measurements", description = "What was measured"),
        (name = "datasets", description = "What is trained on"),
        (name = "catalog", description = "What can be asked for"),
        (name = "devices", description = "Where it can run"),
        (name = "leases", description = "How workers get probes and tell their ends"),
        (name = "operations", description = "Health and metrics")
    ),
    components(schemas(Problem, ProblemCode, Violation, StudyEvent, ArrayLayout, UploadTask))
)]
struct Base;

/// Adds every operation. Served and documented by the same list; each request tries one after the other, so what programs ask
/// for all the time comes early.
pub fn operations(config: &mut ServiceConfig<'_>) {
    config
        .service(studies::create_study)
        .service(studies::list_studies)
        .service(studies::get_study)
        .service(studies::delete_study)
        .service(leases::claim_lease)
        .service(leases::send_heartbeat)
        .service(leases::complete_lease)
        .service(leases::release_lease)
        .service(events::stream_study_events)
        .service(studies::get_study_definition)
        .service(revisions::update_study_definition)
        .service(revisions::list_study_revisions)
        .service(studies::cancel_study)
        .service(probes::list_probes)
        .service(probes::get_probe)
        .service(measurements::list_measurements)
        .service(answers::get_analysis)
        .service(answers::list_recommendations)
        .service(answers::get_report)
        .service(datasets::upload_dataset)
        .service(datasets::list_datasets)
        .service(datasets::get_dataset)
        .service(datasets::get_dataset_content)
        .service(datasets::delete_dataset)
        .service(catalog::get_catalog)
        .service(devices::list_devices)
        .service(health::get_liveness)
        .service(health::get_readiness)
        .service(metrics::get_instance_metrics)
        .service(metrics::get_service_metrics);
}

/// The document as it is served.
#[derive(Debug)]
pub struct Served {
    json: String,
    etag: String,
}

impl Served {
    /// # Errors
    /// When it cannot be expressed as JSON: a defect.
    pub fn of(document: &OpenApiDocument) -> serde_json::Result<Self> {
        let json = serde_json::to_string(document)?;
        let etag = conditional::etag(&json);
        Ok(Self { json, etag })
    }
}

/// Gives the document, or 304 to whoever has it.
pub async fn get_document(request: HttpRequest, served: Data<Served>) -> HttpResponse {
    conditional::answer_as(&request, &served.etag, served.json.as_str())
}

/// The contract.
pub fn document() -> OpenApiDocument {
    let (_, mut document) = App::new()
        .into_utoipa_app()
        .openapi(Base::openapi())
        .configure(operations)
        .split_for_parts();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", token_scheme());
    name_variants(&mut components.schemas);
    for (path, item) in &mut document.paths.paths {
        let methods = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.patch,
        ];
        for operation in methods.into_iter().flatten() {
            document_access(path, operation);
            document_parameters(operation);
            document_files(operation);
            document_headers(operation);
            links::add(operation);
            examples::add(operation);
        }
    }
    document
}

fn token_scheme() -> SecurityScheme {
    SecurityScheme::Http(
        HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("trialhead_<id>_<secret>")
            .description(Some(
                "An access token, made by `trialhead token create`. Every operation names the scope it needs; `admin` stands for all. Needed as soon as the service listens beyond loopback; a token that is sent is checked in any case.",
            ))
            .build(),
    )
}

/// What every operation with a scope can answer, and which project it is for: said here once for all of them.
fn document_access(path: &str, operation: &mut Operation) {
    let Some(scope) = scope(operation) else {
        return;
    };
    let responses = &mut operation.responses.responses;
    responses.insert(
        "401".into(),
        responses::problem("An access token is missing, malformed, unknown, expired or revoked; WWW-Authenticate says how to send one"),
    );
    responses.insert(
        "403".into(),
        responses::problem(&format!(
            "The access token lacks the scope `{scope}`, or the Host header is not one that this service answers to, or a browser says that a page of another site writes (`cross_site`)"
        )),
    );
    let too_many = if scope == Scope::Work.as_str() {
        "Too many wrong access tokens came from the caller's address; go on after Retry-After"
    } else {
        "Too many requests of the caller come in a second or are under way at once, or too many wrong access tokens came from its address; go on after Retry-After"
    };
    let too_many = match responses.get("429") {
        Some(RefOr::T(own)) => format!("{}; or: {too_many}", own.description),
        _ => too_many.to_owned(),
    };
    responses.insert("429".into(), responses::problem(&too_many));
    if path.starts_with("/v1/") {
        operation.parameters.get_or_insert_default().push(
            ParameterBuilder::new()
                .name("Trialhead-Project")
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(
                    "The project, for callers whose token is bound to none; default: `default`",
                ))
                .schema(Some(
                    ObjectBuilder::new()
                        .schema_type(Type::String)
                        .min_length(Some(1))
                        .max_length(Some(64))
                        .pattern(Some("^[A-Za-z0-9._-]+$"))
                        .build(),
                ))
                .build()
                .into(),
        );
    }
}

/// A parameter is there or it is not: none can be null.
fn document_parameters(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else {
            continue;
        };
        let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema else {
            continue;
        };
        if let SchemaType::Array(types) = &object.schema_type
            && let Some(only) = types.iter().find(|kind| **kind != Type::Null)
        {
            object.schema_type = SchemaType::Type(only.clone());
        }
    }
}

/// What every answer carries, and what comes with a refusal: said here once for all of them.
fn document_headers(operation: &mut Operation) {
    let header = |kind: Type, description: &str| {
        HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(kind)))
            .description(Some(description))
            .build()
    };
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else {
            continue;
        };
        let is_promised = response.description.contains("Retry-After");
        let mut add = |name: &str, header: Header| {
            response.headers.insert(name.to_owned(), RefOr::T(header));
        };
        add(
            "X-Request-Id",
            header(
                Type::String,
                "Names the request in the service's log; the caller's own, where it sent one",
            ),
        );
        // A conflict that passes by itself says in its description when to try again.
        let is_for_later = ["429", "503"].contains(&status.as_str()) || is_promised;
        if is_for_later {
            add(
                "Retry-After",
                header(Type::Integer, "When to try again, seconds"),
            );
        }
        if status == "401" {
            add(
                "WWW-Authenticate",
                header(
                    Type::String,
                    "How to send an access token, and what was wrong with the one sent",
                ),
            );
        }
    }
}

/// A file is bytes, not a list of numbers.
fn document_files(operation: &mut Operation) {
    let mut contents = Vec::new();
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        contents.extend(body.content.get_mut(OCTETS));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            contents.extend(response.content.get_mut(OCTETS));
        }
    }
    for content in contents {
        if let RefOr::T(content) = content {
            let bytes = ObjectBuilder::new()
                .schema_type(Type::String)
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
                .build();
            content.schema = Some(RefOr::T(Schema::Object(bytes)));
        }
    }
}

pub(super) const OCTETS: &str = "application/octet-stream";

/// Gives each variant of a tagged enum a schema of its own, named by its tag and the enum: `ResidualLayer`. Generators name
/// what they make by it, and some can read neither a variant that has its own enum inside nor one put together of parts
/// where it stands.
fn name_variants(schemas: &mut BTreeMap<String, RefOr<Schema>>) {
    let mut named = BTreeMap::new();
    for (name, schema) in schemas.iter_mut() {
        let RefOr::T(Schema::OneOf(one_of)) = schema else {
            continue;
        };
        for variant in &mut one_of.items {
            if let Some(tag) = tag(variant) {
                let own_name = format!("{}{name}", pascal_case(&tag));
                let reference = RefOr::Ref(Ref::from_schema_name(own_name.clone()));
                named.insert(own_name, std::mem::replace(variant, reference));
            }
        }
    }
    schemas.extend(named);
}

/// The tag of a variant: the one value of the one member that has only one. None for anything else.
fn tag(variant: &RefOr<Schema>) -> Option<String> {
    let RefOr::T(schema) = variant else {
        return None;
    };
    let schema = serde_json::to_value(schema).ok()?;
    let parts = schema["allOf"].as_array().into_iter().flatten();
    let members = std::iter::once(&schema)
        .chain(parts)
        .filter_map(|part| part["properties"].as_object())
        .flat_map(|properties| properties.values());
    members
        .filter_map(|member| member["enum"].as_array())
        .find_map(|values| match values.as_slice() {
            [Value::String(tag)] => Some(tag.clone()),
            _ => None,
        })
}

/// `max_pool2d` as `MaxPool2d`.
fn pascal_case(text: &str) -> String {
    text.split('_')
        .map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|first| first.to_ascii_uppercase());
            first.into_iter().chain(letters).collect::<String>()
        })
        .collect()
}

/// The scope that an operation needs; none for a public one.
fn scope(operation: &Operation) -> Option<String> {
    let security = serde_json::to_value(operation.security.as_ref()?).ok()?;
    Some(security[0]["token"][0].as_str()?.to_owned())
}

//! Answers with a validator. The `ETag` is made from the very bytes of the answer, so it is a strong one: it changes when
//! anything in the answer does, by a change of the study or by another version of the service, and never without. A
//! conditional request saves the transfer, not the reading.

use std::collections::BTreeMap;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::{RefOr, Response, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses};

use super::problem::Problem;
use crate::store::StoreError;

const JSON: &str = "application/json";

/// The request's header, for the OpenAPI document.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IfNoneMatch {
    /// The `ETag` of an earlier answer, quotation marks included, or several separated by commas: as long as the answer
    /// is the same, 304 comes without it.
    #[param(rename = "If-None-Match", required = false, nullable = false)]
    pub if_none_match: String,
}

/// The answer is what the caller has already.
#[derive(Debug)]
pub struct NotModified;

impl IntoResponses for NotModified {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let etag = HeaderBuilder::new()
            .schema(Some(Object::with_type(Type::String)))
            .description(Some("The validator that still holds"))
            .build();
        let response = ResponseBuilder::new()
            .description("The answer is still the one that If-None-Match names")
            .header("ETag", etag)
            .build();
        BTreeMap::from([("304".to_owned(), response.into())])
    }
}

/// The strong validator of an answer's bytes.
pub fn etag(body: impl AsRef<[u8]>) -> String {
    format!("\"{}\"", digest(body))
}

/// What is in the quotation marks of [`etag`].
pub fn digest(body: impl AsRef<[u8]>) -> String {
    // Half of the hash: nobody gains anything by making two of their own answers collide.
    hex::encode(&Sha256::digest(body)[..16])
}

/// A value as the JSON that is answered.
///
/// # Errors
/// When it cannot be expressed: a defect.
pub fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::unreadable("answer", error))
}

/// Answers with a value as JSON, or with 304 when the caller has it already.
///
/// # Errors
/// When it cannot be expressed as JSON: a defect.
pub fn answer(request: &HttpRequest, value: &impl Serialize) -> Result<HttpResponse, Problem> {
    let body = json(value)?;
    let etag = etag(&body);
    Ok(answer_as(request, &etag, body))
}

/// The same with JSON and a validator that are at hand.
pub fn answer_as(request: &HttpRequest, etag: &str, body: impl Into<String>) -> HttpResponse {
    let is_known = is_known(request.headers(), etag);
    let mut response = if is_known {
        HttpResponse::NotModified()
    } else {
        HttpResponse::Ok()
    };
    // Whoever stores an answer asks whether it still holds.
    response
        .insert_header((ETAG, etag))
        .insert_header((CACHE_CONTROL, "no-cache"));
    if is_known {
        response.finish()
    } else {
        response
            .insert_header((CONTENT_TYPE, JSON))
            .body(body.into())
    }
}

/// Whether the caller has the answer with this validator (RFC 9110, 13.1.2: compared weakly).
pub fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn the_caller_has_what_it_names() {
        let known = |value: &str| {
            let request = TestRequest::default().insert_header((IF_NONE_MATCH, value));
            is_known(request.to_http_request().headers(), "\"abc\"")
        };
        for named in [
            "\"abc\"",
            "W/\"abc\"",
            "\"x\", \"abc\"",
            "\"x\",W/\"abc\"",
            "*",
        ] {
            assert!(known(named), "{named}");
        }
        for other in ["abc", "\"ab\"", "", "\"x\"", "W/abc"] {
            assert!(!known(other), "{other}");
        }
        assert!(!is_known(&HeaderMap::new(), "\"abc\""));
    }

    #[test]
    fn other_bytes_have_another_validator() {
        assert_eq!(etag("a"), etag("a"));
        assert_ne!(etag("a"), etag("b"));
        let tag = etag("a");
        assert!(
            tag.starts_with('"') && tag.ends_with('"') && tag.len() == 34,
            "{tag}"
        );
    }
}

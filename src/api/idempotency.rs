//! Writes that are safe to repeat: reads the `Idempotency-Key`, and gives the answers that were kept.

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, ETAG, LOCATION};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::IntoParams;

use super::conditional;
use super::problem::{Problem, ProblemCode};
use super::state::Api;
use crate::lifecycle::{ANONYMOUS, Caller};
use crate::store::StoreError;
use crate::store::kept_answers::{Answer, Answered, IdempotencyKey};

const HEADER: &str = "idempotency-key";

/// Marks an answer that was given before.
const REPLAYED: &str = "idempotency-replayed";

/// The header, for the OpenAPI document.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IdempotencyKeyHeader {
    /// Makes the request safe to repeat: 1 to 255 visible ASCII characters of the caller's choice. For 24 hours
    /// (`api.idempotency_hours`) the same key with the same request gets the first answer again, marked with
    /// `Idempotency-Replayed: true`. It belongs to the access token, the project and the operation. Only what was done is
    /// kept: after an error the request is tried anew.
    #[param(
        rename = "Idempotency-Key",
        required = false,
        nullable = false,
        min_length = 1,
        max_length = 255,
        pattern = "^[!-~]+$"
    )]
    pub idempotency_key: String,
}

/// The key that a request carries, if it carries one.
///
/// # Errors
/// 400 when it is none.
pub fn key(
    api: &Api,
    caller: &Caller,
    request: &HttpRequest,
    operation: &'static str,
) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = request.headers().get_all(HEADER);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let is_key = (1..=255).contains(&value.len())
        && value.as_bytes().iter().all(u8::is_ascii_graphic)
        && values.next().is_none();
    let key = value.to_str().ok().filter(|_| is_key).ok_or_else(|| {
        Problem::new(
            ProblemCode::IdempotencyKeyInvalid,
            "Idempotency-Key must come once and be 1 to 255 visible ASCII characters; a UUID is a good one",
        )
    })?;
    Ok(Some(IdempotencyKey {
        project: caller.project.clone(),
        caller: caller
            .token
            .map_or_else(|| ANONYMOUS.to_owned(), |token| token.to_string()),
        operation,
        key: key.to_owned(),
        keep_hours: api.context.idempotency_hours,
    }))
}

/// The answer to a write, as it is kept and given: what there is now, where it is, and its validator there.
///
/// # Errors
/// When the body cannot be expressed as JSON: a defect.
pub fn answer(
    status: StatusCode,
    location: String,
    body: &impl Serialize,
) -> Result<Answer, StoreError> {
    let body = conditional::json(body)?;
    let headers = [
        (LOCATION.to_string(), location),
        (ETAG.to_string(), conditional::etag(&body)),
    ];
    Ok(Answer {
        status: status.as_u16(),
        headers: headers.into(),
        body,
    })
}

/// Gives an answer, and says when it was given before.
pub fn respond(api: &Api, operation: &str, answered: Answered) -> HttpResponse {
    let Answered {
        answer,
        is_replayed,
    } = answered;
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    response.insert_header((CONTENT_TYPE, "application/json"));
    for (name, value) in &answer.headers {
        response.insert_header((name.as_str(), value.as_str()));
    }
    if is_replayed {
        response.insert_header((REPLAYED, "true"));
        api.metrics
            .requests_replayed_total
            .with_label_values(&[operation])
            .inc();
    }
    response.body(answer.body)
}

//! Errors as RFC 9457 problem details. The one place that knows which error is which status.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::access::{Refused, Scope};
use crate::lifecycle::{CreateError, EndError, FollowError, ReviseError};
use crate::pool::leases::LeaseError;
use crate::store::StoreError;
use crate::store::kept_answers::KeyError;
use crate::study::validation::{Rejected, Violation};
use crate::uploads::UploadError;

/// Seconds after which a request is worth sending again.
const RETRY_SECS: u64 = 2;

/// How a caller says who it is.
const CHALLENGE: &str = "Bearer realm=\"trialhead\"";

/// Declares the codes: variant, name in JSON, status, title.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $status:ident, $title:literal;)*) => {
        /// What went wrong, stable and machine-readable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ProblemCode {
            $($(#[$doc])* $variant,)*
        }

        impl ProblemCode {
            /// The name in JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON.
    MalformedJson = "malformed_json", BAD_REQUEST, "The body is not JSON";
    /// The request itself is not understood: an unknown query parameter, say.
    MalformedRequest = "malformed_request", BAD_REQUEST, "The request is not understood";
    /// The Idempotency-Key is none.
    IdempotencyKeyInvalid = "idempotency_key_invalid", BAD_REQUEST, "That is no Idempotency-Key";
    /// Last-Event-ID is no number of an event of the study.
    LastEventIdInvalid = "last_event_id_invalid", BAD_REQUEST, "There is no such event";
    /// The Host header is not one that the service answers to.
    HostNotAllowed = "host_not_allowed", FORBIDDEN, "Not this host";
    /// A browser sent the request for another site.
    CrossSite = "cross_site", FORBIDDEN, "Not from another site";
    /// The operation needs an access token.
    TokenMissing = "token_missing", UNAUTHORIZED, "An access token is needed";
    /// What was sent is no access token.
    TokenMalformed = "token_malformed", UNAUTHORIZED, "That is no access token";
    /// There is no such access token, or its secret is wrong.
    TokenUnknown = "token_unknown", UNAUTHORIZED, "No such access token";
    /// The access token has expired.
    TokenExpired = "token_expired", UNAUTHORIZED, "The access token has expired";
    /// The access token was revoked.
    TokenRevoked = "token_revoked", UNAUTHORIZED, "The access token was revoked";
    /// The access token does not allow this operation.
    InsufficientScope = "insufficient_scope", FORBIDDEN, "The access token does not allow this";
    /// There is no such route or thing.
    NotFound = "not_found", NOT_FOUND, "Not found";
    /// The route exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "Method not allowed";
    /// None of the accepted media types can be given.
    NotAcceptable = "not_acceptable", NOT_ACCEPTABLE, "No accepted media type can be given";
    /// The client took too long to send its request.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, "The request took too long to arrive";
    /// The study has ended already.
    StudyEnded = "study_ended", CONFLICT, "The study has ended";
    /// The study has not ended.
    StudyNotEnded = "study_not_ended", CONFLICT, "The study has not ended";
    /// A queued or running study needs the data set.
    DatasetInUse = "dataset_in_use", CONFLICT, "The data set is in use";
    /// The worker speaks another version of the lease protocol.
    WorkerVersion = "worker_version", CONFLICT, "Worker and service are of different versions";
    /// The lease holds nothing any more: it ran out, ended, or was used before. Nothing was changed.
    LeaseLost = "lease_lost", CONFLICT, "The lease was lost";
    /// The first request with the Idempotency-Key is being answered.
    IdempotencyKeyInUse = "idempotency_key_in_use", CONFLICT, "The first request with the Idempotency-Key is being answered";
    /// The definition has another revision than the request changes.
    RevisionChanged = "revision_changed", PRECONDITION_FAILED, "The definition was changed meanwhile";
    /// The request does not say which revision it changes.
    RevisionRequired = "revision_required", PRECONDITION_REQUIRED, "Say which revision is changed";
    /// The body is larger than allowed.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    /// No byte of the range is in the content.
    RangeNotSatisfiable = "range_not_satisfiable", RANGE_NOT_SATISFIABLE, "The range is not in the content";
    /// The body is not declared as JSON.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, "The body must be JSON";
    /// The study has violations; `errors` names each.
    InvalidStudy = "invalid_study", UNPROCESSABLE_ENTITY, "The study cannot be run as posted";
    /// Live workers have several device models that match; name one.
    AmbiguousDevice = "ambiguous_device", UNPROCESSABLE_ENTITY, "Several devices match";
    /// A query parameter or header has a value that is not allowed; `errors` names it.
    InvalidParameter = "invalid_parameter", UNPROCESSABLE_ENTITY, "A parameter is not allowed";
    /// The uploaded file is no data set.
    InvalidDataset = "invalid_dataset", UNPROCESSABLE_ENTITY, "The file is no data set";
    /// What a worker says cannot be right; `errors` names each part.
    InvalidReport = "invalid_report", UNPROCESSABLE_ENTITY, "What the worker says cannot be right";
    /// The Idempotency-Key was used with another body.
    IdempotencyKeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The Idempotency-Key was used with another request";
    /// The project has as many active studies as it may.
    TooManyStudies = "too_many_studies", TOO_MANY_REQUESTS, "Too many active studies";
    /// As many uploads are under way as may be.
    TooManyUploads = "too_many_uploads", TOO_MANY_REQUESTS, "Too many uploads at once";
    /// Too many wrong access tokens came from the same peer.
    TooManyFailures = "too_many_failures", TOO_MANY_REQUESTS, "Too many wrong access tokens";
    /// The caller sends requests too fast.
    TooManyRequests = "too_many_requests", TOO_MANY_REQUESTS, "Too many requests";
    /// The caller has too many requests under way.
    TooManyAtOnce = "too_many_at_once", TOO_MANY_REQUESTS, "Too many requests at once";
    /// As many requests wait for news of studies as may.
    TooManyListeners = "too_many_listeners", SERVICE_UNAVAILABLE, "Too many listeners";
    /// A defect of the service.
    Internal = "internal", INTERNAL_SERVER_ERROR, "The service failed";
    /// The database is away or the service is shutting down.
    Unavailable = "unavailable", SERVICE_UNAVAILABLE, "Not available just now";
}

/// An error, as RFC 9457 problem details.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "type": "/docs/#problem-invalid_study",
    "title": "The study cannot be run as posted",
    "status": 422,
    "detail": "1 violation; each is in errors with its JSON pointer",
    "code": "invalid_study",
    "errors": [{"pointer": "/batch_sizes/min", "detail": "must be at least 1, is 0"}]
}))]
pub struct Problem {
    /// Names the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, for people.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What happened this time, and what to do.
    pub detail: String,
    /// The path of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub instance: Option<String>,
    /// What went wrong, stable and machine-readable.
    pub code: ProblemCode,
    /// What was wrong with the input, one entry for each violation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Violation>,
    /// Methods that the route has.
    #[serde(skip)]
    #[schema(ignore)]
    pub allow: Option<String>,
    /// How the caller can say who it is.
    #[serde(skip)]
    #[schema(ignore)]
    pub challenge: Option<String>,
    /// Seconds to wait, where they are known.
    #[serde(skip)]
    #[schema(ignore)]
    pub retry_after_secs: Option<u64>,
}

impl Problem {
    /// A problem with its detail.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/docs/#problem-{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status().as_u16(),
            detail: detail.into(),
            instance: None,
            code,
            errors: Vec::new(),
            allow: None,
            challenge: None,
            retry_after_secs: None,
        }
    }

    /// A thing that does not exist in the caller's project.
    pub fn not_found(what: &str) -> Self {
        Self::new(ProblemCode::NotFound, format!("there is no such {what}"))
    }

    /// Nobody is known to have asked. Says how to ask (RFC 6750).
    pub fn unauthorized(code: ProblemCode, detail: &str) -> Self {
        let challenge = match code {
            ProblemCode::TokenMissing => CHALLENGE.to_owned(),
            _ => format!(
                "{CHALLENGE}, error=\"invalid_token\", error_description=\"{}\"",
                code.title()
            ),
        };
        Self {
            challenge: Some(challenge),
            ..Self::new(code, detail)
        }
    }

    /// The access token lacks the scope that is needed.
    pub fn insufficient_scope(needed: Scope) -> Self {
        Self {
            challenge: Some(format!(
                "{CHALLENGE}, error=\"insufficient_scope\", scope=\"{needed}\""
            )),
            ..Self::new(
                ProblemCode::InsufficientScope,
                format!("this needs an access token with the scope {needed}"),
            )
        }
    }

    /// A query parameter or header with a value that is not allowed.
    pub fn invalid_parameter(name: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            errors: vec![Violation::new(format!("?{name}"), detail.clone())],
            ..Self::new(ProblemCode::InvalidParameter, format!("{name} {detail}"))
        }
    }

    /// Refuses what no stored text can hold: Postgres has no NUL in its texts.
    ///
    /// # Errors
    /// The problem to answer with.
    pub fn unless_text(name: &str, value: Option<&str>) -> Result<(), Self> {
        match value {
            Some(value) if value.contains('\0') => Err(Self::invalid_parameter(
                name,
                "must not hold a NUL character",
            )),
            _ => Ok(()),
        }
    }

    /// No accepted media type can be given.
    pub fn not_acceptable(possible: &str) -> Self {
        Self::new(
            ProblemCode::NotAcceptable,
            format!("this answer can be given as {possible}"),
        )
    }

    fn invalid(code: ProblemCode, violations: Vec<Violation>) -> Self {
        let detail = match violations.len() {
            1 => "1 violation; it is in errors with its JSON pointer".to_owned(),
            count => format!("{count} violations; each is in errors with its JSON pointer"),
        };
        Self {
            errors: violations,
            ..Self::new(code, detail)
        }
    }

    /// The problem that a bare status stands for, when something below answered without one.
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(ProblemCode::NotFound, "there is no such route"),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(ProblemCode::MethodNotAllowed, "the route has other methods")
            }
            StatusCode::REQUEST_TIMEOUT => Self::new(
                ProblemCode::RequestTimeout,
                "nothing of the body came for longer than the limit (api.request_timeout_secs); send it whole",
            ),
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(
                ProblemCode::BodyTooLarge,
                "the body is larger than the limit (api.max_body_bytes)",
            ),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::new(
                ProblemCode::UnsupportedMediaType,
                "send the body with Content-Type: application/json",
            ),
            status if status.is_server_error() => Self::internal(),
            _ => Self::new(
                ProblemCode::MalformedRequest,
                "the request is not understood",
            ),
        }
    }

    /// A defect: nothing of the inside is told.
    pub fn internal() -> Self {
        Self::new(
            ProblemCode::Internal,
            "a defect of the service; its log tells more under this answer's x-request-id",
        )
    }

    /// The answer, for the path that was asked for.
    pub fn response(&self, path: Option<&str>) -> HttpResponse {
        let problem = Self {
            instance: path.map(ToOwned::to_owned).or(self.instance.clone()),
            ..self.clone()
        };
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(status);
        response.insert_header((CONTENT_TYPE, PROBLEM_JSON));
        if status == StatusCode::REQUEST_TIMEOUT {
            // What still comes of that request is none of the next one's.
            response.force_close();
        }
        let is_for_later = self.code == ProblemCode::IdempotencyKeyInUse
            || matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            );
        let retry_after = self.retry_after_secs.or(is_for_later.then_some(RETRY_SECS));
        if let Some(secs) = retry_after {
            response.insert_header((RETRY_AFTER, secs.to_string()));
        }
        if let Some(challenge) = &self.challenge {
            response.insert_header((WWW_AUTHENTICATE, challenge.as_str()));
        }
        if let Some(allow) = &self.allow {
            response.insert_header((ALLOW, allow.as_str()));
        }
        response.body(serde_json::to_string(&problem).unwrap_or_default())
    }
}

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse {
        self.response(None)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if error.is_transient() {
            tracing::warn!(%error, "the database is away");
            return Self::new(
                ProblemCode::Unavailable,
                "the database does not answer just now; try again",
            );
        }
        tracing::error!(%error, "a request failed");
        Self::internal()
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let (code, detail) = match refused {
            Refused::Malformed => (
                ProblemCode::TokenMalformed,
                "send `Authorization: Bearer trialhead_…` with the whole token, as `trialhead token create` printed it",
            ),
            Refused::Unknown => (
                ProblemCode::TokenUnknown,
                "there is no such token here: is it of another service, or mistyped?",
            ),
            Refused::Expired => (
                ProblemCode::TokenExpired,
                "make a new one with `trialhead token create`",
            ),
            Refused::Revoked => (
                ProblemCode::TokenRevoked,
                "make a new one with `trialhead token create`",
            ),
            Refused::Store(error) => return error.into(),
        };
        Self::unauthorized(code, detail)
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Reused => Self::new(
                ProblemCode::IdempotencyKeyReused,
                "the Idempotency-Key was used with another request: use a new key for a new request, or send the first request unchanged",
            ),
            KeyError::InUse => Self::new(
                ProblemCode::IdempotencyKeyInUse,
                "the first request with this Idempotency-Key is being answered; send the same again after Retry-After",
            ),
            KeyError::Store(error) => error.into(),
        }
    }
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Rejected(Rejected::Malformed(malformed)) => {
                Self::new(ProblemCode::MalformedJson, malformed.to_string())
            }
            CreateError::Rejected(Rejected::Invalid(violations)) => {
                Self::invalid(ProblemCode::InvalidStudy, violations)
            }
            CreateError::AmbiguousDevice(violations) => {
                Self::invalid(ProblemCode::AmbiguousDevice, violations)
            }
            CreateError::Key(error) => error.into(),
            CreateError::TooManyStudies { limit } => Self::new(
                ProblemCode::TooManyStudies,
                format!(
                    "the project has {limit} queued or running studies, as many as it may; wait for one to end or cancel one"
                ),
            ),
            CreateError::Store(error) => error.into(),
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::TooLarge { .. } => Self::new(ProblemCode::BodyTooLarge, error.to_string()),
            UploadError::Refused(detail) => Self::new(ProblemCode::InvalidDataset, detail),
            UploadError::BrokenOff(_) => {
                Self::new(ProblemCode::MalformedRequest, error.to_string())
            }
            UploadError::Busy(_) => Self::new(ProblemCode::TooManyUploads, error.to_string()),
            UploadError::Library(error) => {
                tracing::error!(%error, "a data set could not be kept or read");
                Self::internal()
            }
            UploadError::Key(error) => error.into(),
            UploadError::Store(error) => error.into(),
        }
    }
}

impl From<ReviseError> for Problem {
    fn from(error: ReviseError) -> Self {
        match error {
            ReviseError::NotFound => Self::not_found("study"),
            ReviseError::NoRevisionNamed => Self::new(
                ProblemCode::RevisionRequired,
                "send If-Match with the ETag of GET …/definition, so that nobody else's change is overwritten",
            ),
            ReviseError::AnotherRevision { current } => Self::new(
                ProblemCode::RevisionChanged,
                format!(
                    "the study is at revision {current} by now; read the definition again and send its ETag as If-Match"
                ),
            ),
            ReviseError::Refused(error) => error.into(),
            ReviseError::Store(error) => error.into(),
        }
    }
}

impl From<LeaseError> for Problem {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Away(detail) => {
                tracing::warn!(error = detail, "the database is away");
                Self::new(
                    ProblemCode::Unavailable,
                    "the database does not answer just now; try again",
                )
            }
            LeaseError::Lost => Self::new(
                ProblemCode::LeaseLost,
                "the lease ran out, has ended or was used before; end what runs under it and claim with a new one",
            ),
            LeaseError::Refused(detail) => Self::new(ProblemCode::WorkerVersion, detail),
            LeaseError::Invalid(wrong) => Self::invalid(
                ProblemCode::InvalidReport,
                wrong
                    .into_iter()
                    .map(|(pointer, detail)| Violation::new(pointer, detail))
                    .collect(),
            ),
            LeaseError::Failed(detail) => {
                tracing::error!(error = detail, "a worker's request failed");
                Self::internal()
            }
        }
    }
}

impl From<FollowError> for Problem {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::NotFound => Self::not_found("study"),
            FollowError::NotYet { .. } => Self::new(
                ProblemCode::LastEventIdInvalid,
                format!("{error}: is that number of another study?"),
            ),
            FollowError::TooMany { .. } => {
                Self::new(ProblemCode::TooManyListeners, error.to_string())
            }
            FollowError::Store(error) => error.into(),
        }
    }
}

impl From<EndError> for Problem {
    fn from(error: EndError) -> Self {
        match error {
            EndError::NotFound => Self::not_found("study"),
            EndError::AlreadyEnded(_) => Self::new(ProblemCode::StudyEnded, error.to_string()),
            EndError::StillActive(_) => Self::new(ProblemCode::StudyNotEnded, error.to_string()),
            EndError::Store(error) => error.into(),
        }
    }
}

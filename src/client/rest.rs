//! Requests of people's commands: any route, answers as JSON, and errors that a command can tell apart.

use std::time::Duration;

use reqwest::header::{
    ACCEPT, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use thiserror::Error;

use super::{Server, beginning};

/// Why a request came to nothing.
#[derive(Debug, Error)]
pub enum RestError {
    /// The service cannot be reached, or is not ready: worth trying again.
    #[error("{0}")]
    Away(String),
    /// It lets this caller not in.
    #[error("{0}")]
    Refused(String),
    /// It has no such thing.
    #[error("{0}")]
    Missing(String),
    /// What was asked is not valid: a sentence, and what is wrong where.
    #[error("{detail}{}", list(.errors))]
    Invalid {
        /// A sentence.
        detail: String,
        /// Pointers and details.
        errors: Vec<(String, String)>,
    },
    /// It does not go with how things stand.
    #[error("{0}")]
    Conflict(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

fn list(errors: &[(String, String)]) -> String {
    let lines: Vec<String> = errors
        .iter()
        .map(|(pointer, detail)| {
            format!(
                "\n  {}: {detail}",
                if pointer.is_empty() { "/" } else { pointer }
            )
        })
        .collect();
    lines.concat()
}

/// An answer: its status, what it is named by, and its body.
#[derive(Debug)]
pub struct Answer {
    /// 200, 201, 202, 204 or 304.
    pub status: StatusCode,
    /// The entity tag, if it has one.
    pub etag: Option<String>,
    /// How long to wait before asking again, if it says so.
    pub retry_after: Option<Duration>,
    /// JSON; null where there is none.
    pub body: Value,
}

/// A request to be sent.
#[derive(Debug)]
pub struct Ask<'a> {
    method: Method,
    path: &'a str,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
    patience: Duration,
}

/// How long an answer may take that the service has at once.
const PATIENCE: Duration = Duration::from_secs(30);

impl<'a> Ask<'a> {
    /// Reads something.
    pub fn get(path: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            headers: HeaderMap::new(),
            body: None,
            patience: PATIENCE,
        }
    }

    /// Sends JSON.
    pub fn post(path: &'a str, body: Vec<u8>) -> Self {
        let mut ask = Self {
            method: Method::POST,
            body: Some(body),
            ..Self::get(path)
        };
        ask.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        ask
    }

    /// With a header; one that cannot be sent is left out.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// With so much longer to wait for the answer.
    pub fn waiting(mut self, longer: Duration) -> Self {
        self.patience += longer;
        self
    }
}

impl Server {
    /// Asks, and reads the whole answer as JSON.
    ///
    /// # Errors
    /// See [`RestError`].
    pub async fn ask(&self, ask: Ask<'_>) -> Result<Answer, RestError> {
        let response = self.response(ask).await?;
        let headers = response.headers();
        let text = |name: HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let etag = text(ETAG);
        let retry_after = text(RETRY_AFTER)
            .and_then(|text| text.parse().ok())
            .map(Duration::from_secs);
        let status = response.status();
        let bytes = response
            .bytes()
            .await
            .map_err(|error| self.broken(&error))?;
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).map_err(|error| {
                RestError::Failed(format!(
                    "what answers at {} is no Trialhead service: {error}",
                    self.address()
                ))
            })?
        };
        Ok(Answer {
            status,
            etag,
            retry_after,
            body,
        })
    }

    /// Asks for something that may be long, in this form, to be read piece by piece.
    ///
    /// # Errors
    /// See [`RestError`].
    pub async fn stream(&self, path: &str, form: &str) -> Result<Response, RestError> {
        let ask = Ask {
            // As long as it takes: pieces come all the while.
            patience: Duration::from_secs(24 * 3600),
            ..Ask::get(path)
        };
        self.response(ask.with(ACCEPT, form)).await
    }

    async fn response(&self, ask: Ask<'_>) -> Result<Response, RestError> {
        let request = self
            .request(ask.method, ask.path, ask.patience)
            .map_err(|error| RestError::Refused(error.to_string()))?
            .headers(ask.headers);
        let request = match ask.body {
            Some(body) => request.body(body),
            None => request,
        };
        let response = request
            .send()
            .await
            .map_err(|error| RestError::Away(self.unreachable(&error).to_string()))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// An answer that broke off.
    pub fn broken(&self, error: &reqwest::Error) -> RestError {
        RestError::Away(format!(
            "the answer of {} broke off: {error}",
            self.address()
        ))
    }

    async fn refusal(&self, response: Response) -> RestError {
        let status = response.status();
        let wait = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map_or_else(String::new, |secs| format!(" (ask again in {secs} s)"));
        let body: Value = serde_json::from_slice(&beginning(response).await).unwrap_or_default();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let detail = match text("detail") {
            detail if detail.is_empty() => {
                format!("the service at {} answers {status}", self.address())
            }
            detail => detail,
        };
        let errors = body["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| {
                let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
                (text("pointer"), text("detail"))
            })
            .collect();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RestError::Refused(format!(
                "{detail} (TRIALHEAD_TOKEN, or the file of --token-file, must hold a token with the scopes that this needs)"
            )),
            StatusCode::NOT_FOUND if body["code"].is_null() => RestError::Failed(format!(
                "what answers at {} is no Trialhead service ({status})",
                self.address()
            )),
            StatusCode::NOT_FOUND => RestError::Missing(detail),
            StatusCode::BAD_REQUEST
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::PAYLOAD_TOO_LARGE => RestError::Invalid { detail, errors },
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => RestError::Conflict(detail),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                RestError::Away(format!("{detail}{wait}"))
            }
            status if status.is_server_error() => RestError::Away(format!("{detail}{wait}")),
            _ => RestError::Failed(detail),
        }
    }
}

//! The HTTP client behind `work`: the lease protocol over REST, and the contents of data sets.

mod contents;
mod leases;
pub mod rest;

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use thiserror::Error;
use url::Url;

use crate::pool::leases::LeaseError;
use crate::settings::WorkSettings;

pub use self::contents::Contents;
pub use self::leases::RestLeases;

/// Bytes of a problem's body that are read.
const PROBLEM_BYTES: usize = 64 << 10;

/// Why no client can be made of the settings.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No address, or one that is none.
    #[error("{0}")]
    Server(String),
    /// The token is none.
    #[error("TRIALHEAD_TOKEN {0}")]
    Token(&'static str),
    /// The certificates cannot be used.
    #[error("work.ca_file: {0}")]
    Certificates(String),
    /// The client cannot be made.
    #[error("the HTTP client cannot be made: {0}")]
    Http(#[from] reqwest::Error),
}

/// Where the access token is.
#[derive(Clone)]
pub enum Token {
    /// The service is open.
    None,
    /// Here.
    Text(Arc<str>),
    /// In a file, which may be replaced at any time.
    File(PathBuf),
}

impl fmt::Debug for Token {
    /// Leaves the token out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// A service, as seen from elsewhere.
#[derive(Debug, Clone)]
pub struct Server {
    base: Url,
    http: reqwest::Client,
    token: Token,
}

impl Server {
    /// The service that the settings name; `token` is used unless they name a file.
    ///
    /// # Errors
    /// When the address or the certificates cannot be used.
    pub fn new(settings: &WorkSettings, token: Option<&str>) -> Result<Self, ClientError> {
        let base = base(settings.server.as_deref())?;
        // The client takes the provider of the process; one that is there already is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("trialhead/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs_f64(settings.request_timeout_secs))
            // A token goes to the service it is for and nowhere else.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = &settings.ca_file {
            let unusable = |error: &dyn fmt::Display| {
                ClientError::Certificates(format!("{}: {error}", path.display()))
            };
            let pem = std::fs::read(path).map_err(|error| unusable(&error))?;
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(&error))?;
            for certificate in certificates {
                http = http.add_root_certificate(certificate);
            }
        }
        let token = match (&settings.token_file, token) {
            (Some(path), _) => Token::File(path.clone()),
            (None, Some(text)) => Token::Text(one_token(text).map_err(ClientError::Token)?.into()),
            (None, None) => Token::None,
        };
        Ok(Self {
            base,
            http: http.build()?,
            token,
        })
    }

    /// Its address, for people.
    pub fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        patience: Duration,
    ) -> Result<RequestBuilder, LeaseError> {
        let url = self
            .base
            .join(path)
            .map_err(|error| LeaseError::Failed(error.to_string()))?;
        let request = self.http.request(method, url).timeout(patience);
        let token = match &self.token {
            Token::None => return Ok(request),
            Token::Text(text) => text.to_string(),
            Token::File(path) => {
                let refused = |why: &dyn fmt::Display| {
                    LeaseError::Refused(format!("the token file {} {why}", path.display()))
                };
                let text = std::fs::read_to_string(path)
                    .map_err(|error| refused(&format_args!("cannot be read: {error}")))?;
                one_token(&text).map_err(|why| refused(&why))?.to_owned()
            }
        };
        Ok(request.bearer_auth(token))
    }

    /// Sends a request; an answer that is no success is an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, LeaseError> {
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.problem(response).await)
    }

    /// What kept a request from its answer.
    fn unreachable(&self, error: &reqwest::Error) -> LeaseError {
        let mut why = if error.is_timeout() {
            "no answer in time".to_owned()
        } else {
            error.to_string()
        };
        let mut cause = error.source();
        while let Some(error) = cause {
            why = error.to_string();
            cause = error.source();
        }
        LeaseError::Away(format!(
            "the service at {} cannot be reached: {why}",
            self.address()
        ))
    }

    async fn problem(&self, response: Response) -> LeaseError {
        #[derive(Default, Deserialize)]
        struct Problem {
            #[serde(default)]
            code: String,
            #[serde(default)]
            detail: String,
            #[serde(default)]
            errors: Vec<Violation>,
        }
        #[derive(Deserialize)]
        struct Violation {
            pointer: String,
            detail: String,
        }
        let status = response.status();
        let body = beginning(response).await;
        let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
        let address = self.address();
        let said = if problem.detail.is_empty() {
            status.to_string()
        } else {
            problem.detail
        };
        match (status, problem.code.as_str()) {
            (_, "lease_lost") => LeaseError::Lost,
            (_, "worker_version") => LeaseError::Refused(format!(
                "the service at {address} is of another version: {said}"
            )),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                let mend = match self.token {
                    Token::None => {
                        "set TRIALHEAD_TOKEN or --token-file to a token with the scope work"
                    }
                    _ => "the token must be valid and have the scope work",
                };
                LeaseError::Refused(format!(
                    "the service at {address} refuses this worker: {said} ({mend})"
                ))
            }
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, "") => LeaseError::Refused(
                format!("what answers at {address} is no Trialhead service ({status})"),
            ),
            (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS, _) => {
                LeaseError::Away(said)
            }
            (status, _) if status.is_server_error() || status.is_redirection() => {
                LeaseError::Away(format!("the service at {address} answers {status}: {said}"))
            }
            (_, "invalid_report") if !problem.errors.is_empty() => LeaseError::Invalid(
                problem
                    .errors
                    .into_iter()
                    .map(|one| (one.pointer, one.detail))
                    .collect(),
            ),
            _ => LeaseError::Failed(format!("the service answers {status}: {said}")),
        }
    }
}

/// The one token of a text; what is wrong with it says nothing of it.
fn one_token(text: &str) -> Result<&str, &'static str> {
    let token = text.trim();
    if token.is_empty() {
        Err("is empty: it must hold an access token")
    } else if token.lines().count() > 1 {
        Err("holds several lines: it must hold one access token and nothing else")
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("holds spaces or characters that no access token has")
    } else {
        Ok(token)
    }
}

/// The beginning of a body, enough for a problem.
async fn beginning(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece);
        if body.len() > PROBLEM_BYTES {
            break;
        }
    }
    body
}

fn base(server: Option<&str>) -> Result<Url, ClientError> {
    let Some(server) = server.filter(|server| !server.is_empty()) else {
        return Err(ClientError::Server(
            "no service is named: give --server http://HOST:PORT (or work.server)".into(),
        ));
    };
    let wrong = |why: &dyn fmt::Display| {
        ClientError::Server(format!(
            "--server {server:?} is no address ({why}); write http://HOST:PORT or https://HOST"
        ))
    };
    let mut url = Url::parse(server).map_err(|error| wrong(&error))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong(&"only http and https are spoken"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ClientError::Server(
            "--server must hold no user and password: use TRIALHEAD_TOKEN or --token-file".into(),
        ));
    }
    // What is joined to it replaces its last segment.
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_http_and_keeps_its_path() {
        let join = |server: &str| {
            let base = base(Some(server)).expect("an address");
            base.join("v1/leases").expect("joins").to_string()
        };
        assert_eq!(join("http://host:8080"), "http://host:8080/v1/leases");
        assert_eq!(join("https://host/a/b"), "https://host/a/b/v1/leases");
        for wrong in ["host:8080", "ftp://host", "http://", "http://u:p@host", ""] {
            let error = base(Some(wrong)).expect_err(wrong).to_string();
            assert!(error.contains("--server"), "{error}");
        }
        assert!(base(None).is_err());
    }

    #[test]
    fn a_token_is_one_word() {
        assert_eq!(one_token(" trialhead_abc\n"), Ok("trialhead_abc"));
        for wrong in ["", " \n", "a\nb", "a\r\nb\r\n", "a b", "a\u{7}", "tokén"] {
            let why = one_token(wrong).expect_err(wrong);
            assert!(!why.contains("tok\u{e9}"), "{why}");
        }
    }

    #[test]
    fn no_debug_output_shows_the_token() {
        let settings = WorkSettings {
            server: Some("http://localhost:1".into()),
            ..WorkSettings::default()
        };
        let server = Server::new(&settings, Some("hunter2\n")).expect("a client");
        assert!(!format!("{server:?}").contains("hunter2"));
    }
}

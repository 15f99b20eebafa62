//! Who is answered: what every request passes before any handler sees it. The operation's requirement comes from the
//! OpenAPI document ([`Operations`]), who asks from the bearer token; handlers get a [`Caller`].

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use actix_web::HttpMessage as _;
use actix_web::dev::ServiceRequest;
use actix_web::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap};
use prometheus::IntCounterVec;

use super::hosts::Hosts;
use super::operations::{Asked, Operation, Operations, Requirement};
use super::problem::{Problem, ProblemCode};
use crate::access::{
    Attempt, FailureLimiter, Identity, Party, Refused, RequestLimiter, Scope, TooMany, UnderWay,
    Verifier, is_project_name,
};
use crate::lifecycle::Caller;
use crate::settings::{ApiSettings, Settings};
use crate::store::connection::Database;

/// Names the project of a request, for callers that are bound to none.
pub const PROJECT_HEADER: &str = "trialhead-project";

/// Health is told whatever host is asked for.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];

/// Answers that wait are not asked about more often: each time costs a query.
const SHORTEST_TRUST: Duration = Duration::from_secs(1);

/// Decides who is answered.
#[derive(Debug)]
pub struct Access {
    hosts: Hosts,
    operations: Operations,
    /// Whether who comes without a token is turned away.
    needs_token: bool,
    /// None where there is no database to ask: every operation there is for anybody.
    verifier: Option<Verifier>,
    /// How long a token that was let in is taken as read.
    trusts: Duration,
    limiter: FailureLimiter,
    requests: RequestLimiter,
    failures: IntCounterVec,
}

impl Access {
    /// By the settings, for what is served at the main address.
    pub fn new(
        settings: &Settings,
        operations: Operations,
        database: Database,
        failures: IntCounterVec,
    ) -> Self {
        let api = &settings.api;
        let trusts = Duration::from_secs_f64(api.token_cache_secs);
        Self {
            hosts: Hosts::new(settings.listen, &api.allowed_hosts).with_origins(&api.cors_origins),
            operations,
            needs_token: settings.needs_token(),
            verifier: Some(Verifier::new(database, trusts)),
            trusts,
            limiter: FailureLimiter::new(api.failed_tokens_per_minute, api.max_failing_peers),
            requests: requests(api),
            failures,
        }
    }

    /// For what a worker tells, of which every operation is for anybody: it has nobody to ask about tokens.
    pub fn worker(
        settings: &Settings,
        listen: SocketAddr,
        operations: Operations,
        failures: IntCounterVec,
    ) -> Self {
        let api = &settings.api;
        Self {
            hosts: Hosts::new(listen, &[]),
            operations: operations.worker_alone(),
            needs_token: false,
            verifier: None,
            trusts: Duration::from_secs_f64(api.token_cache_secs),
            limiter: FailureLimiter::new(api.failed_tokens_per_minute, api.max_failing_peers),
            requests: requests(api),
            failures,
        }
    }

    /// The same for an address that serves nothing but metrics: whoever reaches it may read them.
    pub fn metrics(
        settings: &Settings,
        listen: SocketAddr,
        operations: Operations,
        database: Database,
        failures: IntCounterVec,
    ) -> Self {
        Self {
            // Scrapers go by address, so the names that people use are none of theirs.
            hosts: Hosts::new(listen, &[]),
            needs_token: false,
            ..Self::new(settings, operations, database, failures)
        }
    }

    /// Lets a request in, with its [`Caller`], or says why not. What is given counts it among those under way.
    ///
    /// # Errors
    /// The problem to answer with.
    pub async fn admit(&self, request: &ServiceRequest) -> Result<Option<UnderWay>, Problem> {
        let (method, headers) = (request.method(), request.headers());
        // A kubelet and a load balancer ask a pod by its address, and learn nothing here that anybody may not know.
        if !HEALTH.contains(&request.path()) {
            self.hosts.check(method, host(request), headers)?;
        }
        let operation = match self.operations.find(method.as_str(), request.path()) {
            Asked::Operation(operation) => operation,
            Asked::Documentation => return Ok(None),
            Asked::OtherMethods(methods) => {
                let detail = format!("{method} is not one of this route's methods: {methods}");
                return Err(Problem {
                    allow: Some(methods),
                    ..Problem::new(ProblemCode::MethodNotAllowed, detail)
                });
            }
            Asked::Nothing => return Err(Problem::not_found("route; /docs lists them all")),
        };
        let mut under_way = None;
        if let Requirement::Scope(scope) = operation.requirement {
            let peer = request.peer_addr();
            let identity = self.authenticate(headers, peer).await.inspect_err(|it| {
                self.failures.with_label_values(&[it.code.as_str()]).inc();
            })?;
            self.authorize(identity.as_ref(), scope)?;
            let caller = caller(identity, headers)?;
            tracing::Span::current().record("caller", caller.name.as_str());
            // A worker that has to wait loses its leases; what it claims is limited by what there is to do.
            if scope != Scope::Work {
                let party = caller
                    .token
                    .map_or_else(|| Party::at(peer.map(|peer| peer.ip())), Party::Token);
                let entered = self.requests.enter(party, waits(request), Instant::now());
                under_way = Some(entered.map_err(too_many)?);
            }
            request.extensions_mut().insert(caller);
        }
        must_be_json(operation, headers)?;
        if operation.refuses_query && !request.query_string().is_empty() {
            return Err(Problem::new(
                ProblemCode::MalformedRequest,
                "the query is not understood: this operation takes no query parameters",
            ));
        }
        Ok(under_way)
    }

    /// For how long an answer may wait before it is asked again whether its token is still good, seconds.
    pub fn trusts_secs(&self) -> f64 {
        self.trusts.max(SHORTEST_TRUST).as_secs_f64()
    }

    /// Whether a token that was let in is still good, for answers that wait for longer.
    ///
    /// # Errors
    /// The problem to answer with.
    pub async fn still_admits(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let (Some(Ok(token)), Some(verifier)) = (presented(headers), &self.verifier) else {
            return Ok(());
        };
        if verifier.remembered(token).is_none() {
            verifier.verify(token).await?;
        }
        Ok(())
    }

    /// Who asks: none without a token. A token that is presented is checked even where none is needed.
    async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<SocketAddr>,
    ) -> Result<Option<Identity>, Problem> {
        let Some(token) = presented(headers) else {
            return if self.needs_token {
                Err(Problem::unauthorized(
                    ProblemCode::TokenMissing,
                    "send an access token: `Authorization: Bearer trialhead_…`; one is made by `trialhead token create`",
                ))
            } else {
                Ok(None)
            };
        };
        let Some(verifier) = &self.verifier else {
            return Err(Problem::internal());
        };
        if let Ok(token) = token
            && let Some(identity) = verifier.remembered(token)
        {
            return Ok(Some(identity));
        }
        // Whoever shares an address with somebody who guesses, behind a proxy, say, goes on.
        let is_known = token.as_ref().is_ok_and(|token| verifier.knows(token));
        let attempt = (!is_known).then(|| self.attempt(peer)).transpose()?;
        let verdict = match token {
            Ok(token) => verifier.verify(token).await,
            Err(NotBearer) => Err(Refused::Malformed),
        };
        match verdict {
            Ok(identity) => {
                self.give_back(attempt);
                Ok(Some(identity))
            }
            Err(Refused::Store(error)) => {
                self.give_back(attempt);
                Err(error.into())
            }
            Err(refused) => Err(refused.into()),
        }
    }

    fn attempt(&self, peer: Option<SocketAddr>) -> Result<Attempt, Problem> {
        self.limiter
            .take(peer.map(|peer| peer.ip()), Instant::now())
            .map_err(|wait| Problem {
                retry_after_secs: Some(wait.as_secs() + 1),
                ..Problem::new(
                    ProblemCode::TooManyFailures,
                    "too many wrong access tokens came from your address; try again after Retry-After",
                )
            })
    }

    fn give_back(&self, attempt: Option<Attempt>) {
        if let Some(attempt) = attempt {
            self.limiter.give_back(attempt);
        }
    }

    fn authorize(&self, identity: Option<&Identity>, scope: Scope) -> Result<(), Problem> {
        match identity {
            // Without a token, where none is needed.
            None => Ok(()),
            Some(identity) if scope.is_in(&identity.scopes) => Ok(()),
            Some(_) => Err(Problem::insufficient_scope(scope)),
        }
    }
}

fn requests(api: &ApiSettings) -> RequestLimiter {
    RequestLimiter::new(
        api.requests_per_sec,
        api.request_burst,
        api.max_requests_at_once,
    )
}

/// Whether the request may be answered late on purpose, as a listener: `api.max_listeners` limits those.
fn waits(request: &ServiceRequest) -> bool {
    let Some(rest) = request.path().strip_prefix("/v1/studies/") else {
        return false;
    };
    match rest.split_once('/') {
        Some((_, rest)) => rest == "events",
        None => request
            .query_string()
            .split('&')
            .filter_map(|pair| pair.strip_prefix("wait_secs="))
            .any(|secs| secs.parse::<f64>().is_ok_and(|secs| secs > 0.0)),
    }
}

fn too_many(refused: TooMany) -> Problem {
    match refused {
        TooMany::Rate(wait) => Problem {
            retry_after_secs: Some(wait.as_secs() + 1),
            ..Problem::new(
                ProblemCode::TooManyRequests,
                "you send requests faster than api.requests_per_sec allows; go on after Retry-After, and more slowly",
            )
        },
        TooMany::AtOnce(count) => Problem {
            retry_after_secs: Some(1),
            ..Problem::new(
                ProblemCode::TooManyAtOnce,
                format!(
                    "{count} requests of yours are being answered, and no more may be at once (api.max_requests_at_once); wait for one to end"
                ),
            )
        },
    }
}

/// The host that was asked. What a proxy adds is not looked at: a page of another site could add it too.
fn host(request: &ServiceRequest) -> &str {
    match request.headers().get(HOST) {
        Some(host) => host.to_str().unwrap_or_default(),
        None => request.uri().authority().map_or("", |it| it.as_str()),
    }
}

/// The Authorization header is not one bearer token.
struct NotBearer;

/// The token that a request carries, if it carries any.
fn presented(headers: &HeaderMap) -> Option<Result<&str, NotBearer>> {
    let mut values = headers.get_all(AUTHORIZATION);
    let first = values.next()?;
    let token = first
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    Some(match (token, values.next()) {
        (Some(token), None) => Ok(token),
        _ => Err(NotBearer),
    })
}

/// Who asks, and for which project: the token's, else the one that the header names, else `default`.
fn caller(identity: Option<Identity>, headers: &HeaderMap) -> Result<Caller, Problem> {
    let named = headers
        .get(PROJECT_HEADER)
        .map(|value| {
            value
                .to_str()
                .ok()
                .filter(|name| is_project_name(name))
                .ok_or_else(|| {
                    Problem::new(
                        ProblemCode::MalformedRequest,
                        "Trialhead-Project must be 1 to 64 letters, digits, dots, dashes and underscores",
                    )
                })
        })
        .transpose()?;
    let default = Caller::default();
    let (name, token, own) = match identity {
        Some(identity) => (identity.name, Some(identity.token), identity.project),
        None => (default.name, None, None),
    };
    match (own, named) {
        // As for everything else of another project: it is not there.
        (Some(own), Some(named)) if own != named => Err(Problem::not_found("project")),
        (Some(project), _) => Ok(Caller {
            project,
            name,
            token,
            anywhere: false,
        }),
        (None, Some(named)) => Ok(Caller {
            project: named.to_owned(),
            name,
            token,
            anywhere: false,
        }),
        (None, None) => Ok(Caller {
            name,
            token,
            ..default
        }),
    }
}

/// Another content type would let a page of another site post without being asked for leave.
fn must_be_json(operation: &Operation, headers: &HeaderMap) -> Result<(), Problem> {
    let is_json = || {
        headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .and_then(|kind| kind.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    };
    if !operation.takes_json || is_json() {
        Ok(())
    } else {
        Err(Problem::new(
            ProblemCode::UnsupportedMediaType,
            "send the body with Content-Type: application/json",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};
    use uuid::Uuid;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_str(value).expect("a value"),
            );
        }
        headers
    }

    #[test]
    fn one_bearer_token_is_read_and_anything_else_is_none() {
        let read = |pairs: &[(&'static str, &str)]| match presented(&headers(pairs)) {
            None => "none".to_owned(),
            Some(Ok(token)) => token.to_owned(),
            Some(Err(NotBearer)) => "not a bearer token".to_owned(),
        };
        assert_eq!(read(&[]), "none");
        for good in ["Bearer abc", "bearer abc", "BEARER  abc", "Bearer abc "] {
            assert_eq!(read(&[("authorization", good)]), "abc", "{good}");
        }
        for bad in ["", "Bearer", "abc", "Basic YTpi", "Bearerabc"] {
            assert_eq!(
                read(&[("authorization", bad)]),
                "not a bearer token",
                "{bad}"
            );
        }
        let two = [("authorization", "Bearer a"), ("authorization", "Bearer b")];
        assert_eq!(read(&two), "not a bearer token");
    }

    fn identity(project: Option<&str>) -> Option<Identity> {
        Some(Identity {
            token: Uuid::nil(),
            name: "ci".into(),
            project: project.map(ToOwned::to_owned),
            scopes: vec![Scope::Read],
        })
    }

    #[test]
    fn the_token_says_which_project_and_only_an_unbound_one_may_name_another() {
        let asked = |identity: Option<Identity>, named: Option<&str>| {
            let pairs: Vec<_> = named
                .map(|name| (PROJECT_HEADER, name))
                .into_iter()
                .collect();
            caller(identity, &headers(&pairs))
        };
        let bound = asked(identity(Some("vision")), None).expect("a caller");
        assert_eq!(
            (bound.project.as_str(), bound.name.as_str()),
            ("vision", "ci")
        );
        assert_eq!(bound.project_filter(), Some("vision"));
        assert!(asked(identity(Some("vision")), Some("vision")).is_ok());
        let other = asked(identity(Some("vision")), Some("speech")).expect_err("refused");
        assert_eq!(other.status, 404);
        let free = asked(identity(None), None).expect("a caller");
        assert_eq!(free.project, "default");
        assert_eq!(free.project_filter(), None);
        let named = asked(identity(None), Some("speech")).expect("a caller");
        assert_eq!(named.project_filter(), Some("speech"));
        assert_eq!(asked(None, None).expect("a caller"), Caller::default());
        assert_eq!(
            asked(None, Some("speech")).expect("a caller").name,
            "anonymous"
        );
        for bad in ["", "a b", "../x"] {
            assert_eq!(asked(None, Some(bad)).expect_err("refused").status, 400);
        }
    }
}

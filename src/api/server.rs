//! The HTTP server: what every request passes on its way in and out.

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task;
use std::time::{Duration, Instant};

use actix_cors::Cors;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServerHandle, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::StatusCode;
use actix_web::http::header::{
    CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, STRICT_TRANSPORT_SECURITY,
};
use actix_web::middleware::{Condition, Next, from_fn};
use actix_web::web::{Data, PathConfig, PayloadConfig, QueryConfig, Redirect};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use actix_web_prom::PrometheusMetricsBuilder;
use futures::FutureExt;
use tokio::sync::{Mutex, watch};
use tracing::{Instrument, field};
use utoipa_actix_web::AppExt;
use utoipa_swagger_ui::{Config, SwaggerUi};
use uuid::Uuid;

use super::access::{Access, PROJECT_HEADER};
use super::operations::Operations;
use super::problem::{PROBLEM_JSON, Problem, ProblemCode};
use super::state::Api;
use super::{bodies, metrics, openapi, tls};
use crate::lifecycle::Context;
use crate::metrics::InstanceMetrics;
use crate::pool::leases::StoredLeases;
use crate::settings::Settings;
use crate::uploads::Uploads;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Swagger UI needs inline styles and data images; everything comes from the service itself.
const CONTENT_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";

/// Once it was reached by TLS, a browser shall use nothing else for a year.
const TRANSPORT_SECURITY: &str = "max-age=31536000";

const SECURITY_HEADERS: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("content-security-policy", CONTENT_POLICY),
];

/// A running server.
#[derive(Debug)]
pub struct Server {
    main: Listener,
    /// Of the metrics, where they have one.
    metrics: Option<Listener>,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) handle: ServerHandle,
    serving: tokio::task::JoinHandle<io::Result<()>>,
}

impl Server {
    /// Binds and serves.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn start(
        settings: &Settings,
        context: Context,
        uploads: Uploads,
        leases: StoredLeases,
        metrics: InstanceMetrics,
        stop: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let document = openapi::document();
        let served = Data::new(openapi::Served::of(&document)?);
        let all = Operations::of(&serde_json::to_value(&document)?).map_err(io::Error::other)?;
        let database = context.database.clone();
        let failures = metrics.refused_tokens_total.clone();
        let http_metrics = PrometheusMetricsBuilder::new("trialhead")
            .registry(metrics.registry.clone())
            .mask_unmatched_patterns("unmatched")
            .build()
            .map_err(io::Error::other)?;
        let api = Data::new(Api {
            context,
            uploads,
            leases,
            max_claim_wait_secs: settings.api.max_claim_wait_secs,
            max_study_wait: Duration::from_secs_f64(settings.api.max_study_wait_secs),
            tick: Duration::from_secs_f64(settings.pool.tick_secs),
            event_heartbeat: Duration::from_secs_f64(settings.api.event_heartbeat_secs),
            max_event_stream: Duration::from_secs_f64(settings.api.max_event_stream_secs),
            slow_listener: Duration::from_secs_f64(settings.api.slow_listener_secs),
            max_silence: NonZero::new(settings.api.request_timeout_secs)
                .map(|secs| Duration::from_secs(secs.get())),
            stop,
            metrics,
            service_metrics: Mutex::new(None),
            service_metrics_cache: Duration::from_secs_f64(
                settings.api.service_metrics_cache_secs.max(0.0),
            ),
        });
        let metrics = match settings.api.metrics_listen {
            None => None,
            Some(listen) => {
                let operations = all.clone().metrics_alone();
                let database = database.clone();
                let failures = failures.clone();
                let access = Access::metrics(settings, listen, operations, database, failures);
                Some(serve_metrics(settings, listen, api.clone(), access)?)
            }
        };
        let operations = match metrics {
            None => all,
            Some(_) => all.without_metrics(),
        };
        let access = Data::new(Access::new(settings, operations, database, failures));
        let max_body = settings.api.max_body_bytes;
        let origins = settings.api.cors_origins.clone();
        let mut server = HttpServer::new(move || {
            App::new()
                .into_utoipa_app()
                .map(|app| {
                    app.app_data(api.clone())
                        .app_data(access.clone())
                        .app_data(PayloadConfig::new(max_body))
                        .app_data(PathConfig::default().error_handler(|_, _| {
                            Problem::not_found("thing: the id is not a UUID").into()
                        }))
                        .app_data(QueryConfig::default().error_handler(|error, _| {
                            Problem::new(ProblemCode::MalformedRequest, error.to_string()).into()
                        }))
                })
                .configure(openapi::operations)
                .into_app()
                .service(Redirect::new("/docs", "/docs/"))
                .app_data(served.clone())
                .service(web::resource("/openapi.json").route(web::get().to(openapi::get_document)))
                .service(SwaggerUi::new("/docs/{_:.*}").config(Config::new(["/openapi.json"])))
                .default_service(web::to(no_such_route))
                .wrap(http_metrics.clone())
                .wrap(from_fn(pass))
                .wrap(Condition::new(!origins.is_empty(), cors(&origins)))
        })
        .max_connections(settings.api.max_connections)
        .client_request_timeout(Duration::from_secs(settings.api.request_timeout_secs))
        .shutdown_timeout(5)
        // A client that has gone is not waited for: a claim of a worker that was killed must take nothing.
        .h1_allow_half_closed(false)
        .disable_signals();
        if let Some(threads) = settings.api.threads {
            server = server.workers(threads.max(1));
        }
        let api = &settings.api;
        let server = match (&api.tls_certificate_file, &api.tls_key_file) {
            (Some(certificate), Some(key)) => {
                server.bind_rustls_0_23(settings.listen, tls::config(certificate, key)?)?
            }
            _ => server.bind(settings.listen)?,
        };
        let addresses = server.addrs();
        Ok(Self {
            main: Listener::of(&addresses, server.run())?,
            metrics,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.main.address
    }

    /// Where the metrics are, if they have a listener of their own.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|listener| listener.address)
    }

    /// Resolves when it has ended by itself.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn ended(&mut self) -> io::Result<()> {
        let serving = &mut self.main.serving;
        let ended = match &mut self.metrics {
            None => serving.await,
            Some(metrics) => tokio::select! {
                ended = serving => ended,
                ended = &mut metrics.serving => ended,
            },
        };
        ended.map_err(io::Error::other)?
    }

    /// Takes no more requests and lets those under way finish.
    pub async fn stop(&self) {
        self.main.handle.stop(true).await;
        if let Some(metrics) = &self.metrics {
            metrics.handle.stop(true).await;
        }
    }
}

impl Listener {
    pub(super) fn of(
        addresses: &[SocketAddr],
        running: actix_web::dev::Server,
    ) -> io::Result<Self> {
        let address = addresses.first().copied();
        Ok(Self {
            address: address.ok_or_else(|| io::Error::other("no address was bound"))?,
            handle: running.handle(),
            serving: tokio::spawn(running),
        })
    }
}

/// Serves the metrics alone, for whoever reaches the address.
fn serve_metrics(
    settings: &Settings,
    listen: SocketAddr,
    api: Data<Api>,
    access: Access,
) -> io::Result<Listener> {
    let access = Data::new(access);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(api.clone())
            .app_data(access.clone())
            .service(metrics::get_instance_metrics)
            .service(metrics::get_service_metrics)
            .default_service(web::to(no_such_route))
            .wrap(from_fn(pass))
    })
    .workers(1)
    .max_connections(settings.api.max_connections)
    .client_request_timeout(Duration::from_secs(settings.api.request_timeout_secs))
    .shutdown_timeout(5)
    .disable_signals()
    .bind(listen)?;
    let addresses = server.addrs();
    Listener::of(&addresses, server.run())
}

/// What pages of these origins may do: all that a program may, with a token that they have.
fn cors(origins: &[String]) -> Cors {
    let allowed = origins
        .iter()
        .fold(Cors::default(), |cors, origin| cors.allowed_origin(origin));
    allowed
        .allowed_methods(["GET", "HEAD", "POST", "PUT", "DELETE"])
        .allowed_headers([
            "authorization",
            "content-type",
            "idempotency-key",
            "if-match",
            "if-none-match",
            "last-event-id",
            "repr-digest",
            PROJECT_HEADER,
            "x-request-id",
        ])
        .expose_headers([
            "etag",
            "idempotency-replayed",
            "location",
            "retry-after",
            "x-request-id",
        ])
        .max_age(600)
}

/// Whatever is not in the document was answered before it came here.
pub(super) async fn no_such_route(request: HttpRequest) -> HttpResponse {
    Problem::not_found("route; /docs lists them all").response(Some(request.path()))
}

/// What every request passes: its id and log span, access, panics, problems, security headers.
pub(super) async fn pass(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let id = request_id(&request);
    let path = request.path().to_owned();
    let is_tls = request.app_config().secure();
    let began = Instant::now();
    let span = span(&request, &path, &id);
    let end = |headers: &mut HeaderMap, status: StatusCode| {
        span.in_scope(|| log(&path, status, began.elapsed()));
        add_headers(headers, id, is_tls);
    };
    match answer(request, next, &path).instrument(span.clone()).await {
        Ok(mut response) => {
            let status = response.status();
            end(response.headers_mut(), status);
            Ok(response)
        }
        // The request is gone with the handler, so the answer travels as the error's own.
        Err(problem) => {
            let mut response = problem.response(Some(&path));
            let status = response.status();
            end(response.headers_mut(), status);
            Err(InternalError::from_response(problem, response).into())
        }
    }
}

/// Everything that is logged while a request is answered stands in it. No header and no query: they may hold secrets.
fn span(request: &ServiceRequest, path: &str, id: &HeaderValue) -> tracing::Span {
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        path,
        request_id = %id.to_str().unwrap_or_default(),
        caller = field::Empty,
        study = field::Empty,
        probe = field::Empty,
        lease = field::Empty,
        dataset = field::Empty,
    );
    let mut segments = path.strip_prefix("/v1/").unwrap_or_default().split('/');
    if let (Some(kind), Some(thing)) = (segments.next(), segments.next())
        && let Ok(thing) = thing.parse::<Uuid>()
    {
        let name = match kind {
            "studies" => "study",
            "probes" => "probe",
            "leases" => "lease",
            "datasets" => "dataset",
            _ => return span,
        };
        span.record(name, field::display(thing));
    }
    span
}

/// One line for each request. What is asked all the time, by machines, is logged on demand only.
fn log(path: &str, status: StatusCode, took: Duration) {
    let (status, secs) = (status.as_u16(), took.as_secs_f64());
    let is_routine =
        path.starts_with("/v1/leases") || !(path.starts_with("/v1/") || path == "/openapi.json");
    if is_routine {
        tracing::debug!(status, secs, "answered");
    } else {
        tracing::info!(status, secs, "answered");
    }
}

fn add_headers(headers: &mut HeaderMap, id: HeaderValue, is_tls: bool) {
    headers.insert(REQUEST_ID.clone(), id);
    for (name, value) in SECURITY_HEADERS {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    if is_tls {
        headers.insert(
            STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static(TRANSPORT_SECURITY),
        );
    }
}

async fn answer(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
    path: &str,
) -> Result<ServiceResponse<BoxBody>, Problem> {
    let admitted = match request.app_data::<Data<Access>>() {
        Some(access) => access.admit(&request).await,
        None => Err(Problem::internal()),
    };
    let under_way = match admitted {
        Ok(under_way) => under_way,
        Err(problem) => {
            // It never comes to where the others are counted.
            if let Some(api) = request.app_data::<Data<Api>>() {
                let refused = &api.metrics.refused_requests_total;
                refused.with_label_values(&[problem.code.as_str()]).inc();
            }
            return Ok(request.into_response(problem.response(Some(path))));
        }
    };
    let patience = request
        .app_data::<Data<Api>>()
        .and_then(|api| api.max_silence);
    let patience = bodies::limit(&mut request, patience);
    let response = match AssertUnwindSafe(next.call(request)).catch_unwind().await {
        // However the handler took it.
        Ok(Ok(response)) if patience.is_over() => {
            let problem = Problem::of_status(StatusCode::REQUEST_TIMEOUT);
            let response = response.into_response(problem.response(Some(path)));
            return Ok(response.map_body(|_, body| {
                Held {
                    body: body.boxed(),
                    _until_sent: patience,
                }
                .boxed()
            }));
        }
        Ok(Ok(response)) => response.map_into_boxed_body(),
        Ok(Err(error)) => {
            return Err(Problem::of_status(error.as_response_error().status_code()));
        }
        Err(_) => {
            tracing::error!("a handler panicked");
            return Err(Problem::internal());
        }
    };
    // An answer that is written bit by bit is under way until its end.
    let response = match under_way {
        Some(under_way) => response.map_body(|_, body| {
            Held {
                body,
                _until_sent: under_way,
            }
            .boxed()
        }),
        None => response,
    };
    // A handler does not know what path it was asked by.
    let told = response.response().error();
    if let Some(problem) = told.and_then(|error| error.as_error::<Problem>().cloned()) {
        return Ok(response.into_response(problem.response(Some(path))));
    }
    let is_problem = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind == PROBLEM_JSON);
    let status = response.status();
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return Ok(response);
    }
    Ok(response.into_response(Problem::of_status(status).response(Some(path))))
}

/// A body that holds something until it was sent.
struct Held<T> {
    body: BoxBody,
    _until_sent: T,
}

impl<T: Unpin> MessageBody for Held<T> {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<web::Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(context)
    }
}

/// The caller's id if it is one, else a new one.
fn request_id(request: &ServiceRequest) -> HeaderValue {
    request
        .headers()
        .get(&REQUEST_ID)
        .filter(|id| (1..=128).contains(&id.len()) && id.to_str().is_ok())
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::from_str(&Uuid::now_v7().to_string())
                .unwrap_or_else(|_| HeaderValue::from_static("none"))
        })
}

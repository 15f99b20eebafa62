//! The HTTP server: what every request passes on its way in and out.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServerHandle, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::{Next, from_fn};
use actix_web::web::{Data, PathConfig, PayloadConfig, QueryConfig, Redirect};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use actix_web_prom::PrometheusMetricsBuilder;
use futures::FutureExt;
use tokio::sync::{Mutex, watch};
use tracing::Instrument;
use utoipa_actix_web::AppExt;
use utoipa_swagger_ui::SwaggerUi;
use uuid::Uuid;

use super::access::Access;
use super::openapi;
use super::problem::{PROBLEM_JSON, Problem, ProblemCode};
use super::state::Api;
use crate::lifecycle::{Caller, Context};
use crate::metrics::InstanceMetrics;
use crate::pool::leases::StoredLeases;
use crate::settings::Settings;
use crate::uploads::Uploads;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Swagger UI needs inline styles and data images; everything comes from the service itself.
const CONTENT_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";

const SECURITY_HEADERS: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("content-security-policy", CONTENT_POLICY),
];

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    handle: ServerHandle,
    serving: tokio::task::JoinHandle<io::Result<()>>,
}

impl Server {
    /// Binds and serves.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(
        settings: &Settings,
        context: Context,
        uploads: Uploads,
        leases: StoredLeases,
        metrics: InstanceMetrics,
        stop: watch::Receiver<bool>,
    ) -> io::Result<Self> {
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
            stop,
            caller: Caller::default(),
            metrics,
            service_metrics: Mutex::new(None),
            service_metrics_cache: Duration::from_secs_f64(
                settings.api.service_metrics_cache_secs.max(0.0),
            ),
        });
        let access = Data::new(Access::new(settings.listen, &settings.api.allowed_hosts));
        let document = openapi::document();
        let routes: Data<Routes> = Data::from(Arc::new(openapi::methods_by_path(&document)));
        let max_body = settings.api.max_body_bytes;
        let mut server = HttpServer::new(move || {
            App::new()
                .into_utoipa_app()
                .map(|app| {
                    app.app_data(api.clone())
                        .app_data(access.clone())
                        .app_data(routes.clone())
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
                .service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", document.clone()))
                .default_service(web::to(no_such_route))
                .wrap(http_metrics.clone())
                .wrap(from_fn(pass))
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
        let server = server.bind(settings.listen)?;
        let address = server
            .addrs()
            .first()
            .copied()
            .ok_or_else(|| io::Error::other("no address was bound"))?;
        let running = server.run();
        Ok(Self {
            address,
            handle: running.handle(),
            serving: tokio::spawn(running),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resolves when it has ended by itself.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn ended(&mut self) -> io::Result<()> {
        (&mut self.serving).await.map_err(io::Error::other)?
    }

    /// Takes no more requests and lets those under way finish.
    pub async fn stop(&self) {
        self.handle.stop(true).await;
    }
}

/// Every path with its methods.
type Routes = Vec<(Vec<String>, String)>;

/// 405 where the path exists with other methods, else 404.
async fn no_such_route(request: HttpRequest, routes: Data<Routes>) -> HttpResponse {
    let asked: Vec<&str> = request.path().split('/').collect();
    let allowed = routes.iter().find(|(path, _)| {
        path.len() == asked.len()
            && path
                .iter()
                .zip(&asked)
                .all(|(segment, asked)| segment.starts_with('{') || segment == asked)
    });
    let problem = match allowed {
        Some((_, methods)) => Problem {
            allow: Some(methods.clone()),
            ..Problem::new(
                ProblemCode::MethodNotAllowed,
                format!(
                    "{} is not one of this route's methods: {methods}",
                    request.method()
                ),
            )
        },
        None => Problem::not_found("route; /docs lists them all"),
    };
    problem.response(Some(request.path()))
}

/// What every request passes: its id and log span, access, panics, problems, security headers.
async fn pass(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let id = request_id(&request);
    let path = request.path().to_owned();
    let span = tracing::info_span!("request", method = %request.method(), path, request_id = %id.to_str().unwrap_or_default());
    match answer(request, next, &path).instrument(span.clone()).await {
        Ok(mut response) => {
            span.in_scope(|| tracing::debug!(status = response.status().as_u16(), "answered"));
            add_headers(response.headers_mut(), id);
            Ok(response)
        }
        // The request is gone with the handler, so the answer travels as the error's own.
        Err(problem) => {
            let mut response = problem.response(Some(&path));
            add_headers(response.headers_mut(), id);
            Err(InternalError::from_response(problem, response).into())
        }
    }
}

fn add_headers(headers: &mut HeaderMap, id: HeaderValue) {
    headers.insert(REQUEST_ID.clone(), id);
    for (name, value) in SECURITY_HEADERS {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
}

async fn answer(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
    path: &str,
) -> Result<ServiceResponse<BoxBody>, Problem> {
    let refused = match request.app_data::<Data<Access>>() {
        Some(access) => access
            .check(
                request.method(),
                request.connection_info().host(),
                request.headers(),
            )
            .err(),
        None => Some(Problem::internal()),
    };
    if let Some(problem) = refused {
        return Ok(request.into_response(problem.response(Some(path))));
    }
    let response = match AssertUnwindSafe(next.call(request)).catch_unwind().await {
        Ok(Ok(response)) => response.map_into_boxed_body(),
        Ok(Err(error)) => {
            return Err(Problem::of_status(error.as_response_error().status_code()));
        }
        Err(_) => {
            tracing::error!("a handler panicked");
            return Err(Problem::internal());
        }
    };
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

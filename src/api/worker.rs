//! What a worker away from its service tells of itself: whether it is alive, whether its service answers it, its metrics.
//! Read-only and without tokens, through the same gate as everything else that is served.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use actix_web::middleware::from_fn;
use actix_web::web::{Data, Json};
use actix_web::{App, HttpResponse, HttpServer, get, web};
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::Access;
use super::health::{self, Health, get_liveness};
use super::metrics::all_of;
use super::openapi;
use super::operations::Operations;
use super::problem::{Problem, ProblemCode};
use super::server::{Listener, no_such_route, pass};
use crate::metrics::InstanceMetrics;
use crate::settings::Settings;

/// What the handlers need.
#[derive(Debug)]
struct Told {
    metrics: InstanceMetrics,
    /// When the service last answered.
    answered: watch::Receiver<Option<Instant>>,
    /// After so long without an answer the worker is not ready.
    patience: Duration,
}

/// A running listener of a worker.
#[derive(Debug)]
pub struct WorkerServer {
    listener: Listener,
}

impl WorkerServer {
    /// Binds and serves.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(
        settings: &Settings,
        listen: SocketAddr,
        metrics: InstanceMetrics,
        answered: watch::Receiver<Option<Instant>>,
    ) -> io::Result<Self> {
        let document = serde_json::to_value(openapi::document())?;
        let operations = Operations::of(&document).map_err(io::Error::other)?;
        let failures = metrics.refused_tokens_total.clone();
        let access = Data::new(Access::worker(settings, listen, operations, failures));
        // A claim waits, and a worker with a probe beats; either is over, or tried again, within this.
        let secs = settings.work.wait_secs
            + settings.work.request_timeout_secs
            + settings.pool.heartbeat_secs
            + settings.pool.tick_secs;
        let told = Data::new(Told {
            metrics,
            answered,
            patience: Duration::from_secs_f64(secs),
        });
        let server = HttpServer::new(move || {
            App::new()
                .app_data(told.clone())
                .app_data(access.clone())
                .service(get_liveness)
                .service(get_worker_readiness)
                .service(get_worker_metrics)
                .default_service(web::to(no_such_route))
                .wrap(from_fn(pass))
        })
        .workers(1)
        .max_connections(settings.api.max_connections)
        .client_request_timeout(Duration::from_secs(settings.api.request_timeout_secs))
        .disable_signals()
        .bind(listen)?;
        let addresses = server.addrs();
        Ok(Self {
            listener: Listener::of(&addresses, server.run())?,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// Stops at once: nobody asks for anything that must be finished.
    pub async fn stop(&self) {
        self.listener.handle.stop(false).await;
    }
}

/// Whether the service answered this worker lately: it lets it claim, beat and complete.
#[get("/readyz")]
async fn get_worker_readiness(told: Data<Told>) -> Result<Json<Health>, Problem> {
    let unavailable = |detail: String| Err(Problem::new(ProblemCode::Unavailable, detail));
    let last = *told.answered.borrow();
    match last.map(|at| at.elapsed()) {
        Some(age) if age <= told.patience => Ok(health::ok()),
        Some(age) => unavailable(format!(
            "the service has not answered this worker for {} s",
            age.as_secs()
        )),
        None => unavailable("the service has not answered this worker yet".into()),
    }
}

/// Metrics of this worker.
#[get("/metrics")]
async fn get_worker_metrics(told: Data<Told>) -> Result<HttpResponse, Problem> {
    all_of(&told.metrics.registry)
}

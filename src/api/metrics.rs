//! Prometheus: this instance's metrics, and the service's, read from the database.

use std::time::Instant;

use actix_web::web::Data;
use actix_web::{HttpResponse, get};
use prometheus::{Encoder, Registry, TextEncoder};

use super::problem::Problem;
use super::responses::Always;
use super::state::Api;
use crate::metrics::service_registry;
use crate::store::{StoreError, service_metrics};

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

fn text(registry: &Registry) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    TextEncoder::new()
        .encode(&registry.gather(), &mut bytes)
        .map_err(|error| defect(&error))?;
    String::from_utf8(bytes).map_err(|error| defect(&error))
}

fn defect(error: &dyn std::error::Error) -> Problem {
    Problem::from(StoreError::Unreadable {
        what: "metrics".into(),
        why: error.to_string(),
    })
}

/// The answer with everything that is registered.
///
/// # Errors
/// A defect.
pub fn all_of(registry: &Registry) -> Result<HttpResponse, Problem> {
    Ok(answer(text(registry)?))
}

fn answer(text: String) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((actix_web::http::header::CONTENT_TYPE, TEXT_FORMAT))
        .body(text)
}

/// Metrics of this instance
///
/// Prometheus text: probes that it ran, leases it lost, children, HTTP requests, database connections.
#[utoipa::path(
    operation_id = "get_instance_metrics",
    tag = "operations",
    security(("token" = ["read"])),
    responses(
        (status = 200, description = "Prometheus text format", body = String, content_type = "text/plain"),
        Always,
    )
)]
#[get("/metrics")]
pub async fn get_instance_metrics(api: Data<Api>) -> Result<HttpResponse, Problem> {
    let connections = api.context.database.pool_use();
    let gauge = &api.metrics.database_connections;
    gauge
        .with_label_values(&["idle"])
        .set(i64::try_from(connections.available).unwrap_or(0));
    gauge
        .with_label_values(&["in_use"])
        .set(i64::try_from(connections.size.saturating_sub(connections.available)).unwrap_or(0));
    api.metrics
        .database_waiting
        .set(i64::try_from(connections.waiting).unwrap_or(0));
    all_of(&api.metrics.registry)
}

/// Metrics of the service
///
/// Prometheus text, read from the database and cached: scrape it once, from any instance.
#[utoipa::path(
    operation_id = "get_service_metrics",
    tag = "operations",
    security(("token" = ["read"])),
    responses(
        (status = 200, description = "Prometheus text format", body = String, content_type = "text/plain"),
        Always,
    )
)]
#[get("/metrics/service")]
pub async fn get_service_metrics(api: Data<Api>) -> Result<HttpResponse, Problem> {
    // Held while reading, so that many scrapes at once cost one read.
    let mut cached = api.service_metrics.lock().await;
    if let Some((read_at, text)) = cached.as_ref()
        && read_at.elapsed() < api.service_metrics_cache
    {
        return Ok(answer(text.clone()));
    }
    let mut conn = api.context.database.connection().await?;
    let counts = service_metrics::read(&mut conn).await?;
    let registry = service_registry(&counts).map_err(|error| defect(&error))?;
    let text = text(&registry)?;
    *cached = Some((Instant::now(), text.clone()));
    Ok(answer(text))
}

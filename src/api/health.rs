//! Liveness is the process, readiness the database with its tables.

use actix_web::get;
use actix_web::web::{Data, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::{Problem, ProblemCode};
use super::responses::Always;
use super::state::Api;
use crate::store::connection::migrations_ready;

/// How the service is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"status": "ok", "version": "0.1.0"}))]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The service's version.
    pub version: String,
}

/// What is well says.
pub fn ok() -> Json<Health> {
    Json(Health {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

/// Is the process alive?
///
/// Answers as long as the process serves requests, whatever the database does.
#[utoipa::path(
    operation_id = "get_liveness",
    tag = "operations",
    security(()),
    responses((status = 200, description = "It is", body = Health), Always)
)]
#[get("/healthz")]
pub async fn get_liveness() -> Json<Health> {
    ok()
}

/// Can the service do its work?
///
/// The database answers and has the tables that this version needs.
#[utoipa::path(
    operation_id = "get_readiness",
    tag = "operations",
    security(()),
    responses((status = 200, description = "It can", body = Health), Always)
)]
#[get("/readyz")]
pub async fn get_readiness(api: Data<Api>) -> Result<Json<Health>, Problem> {
    if migrations_ready(&api.context.database).await?.is_ready() {
        Ok(ok())
    } else {
        Err(Problem::new(
            ProblemCode::Unavailable,
            "the database lacks migrations of this version; run `trialhead migrate`",
        ))
    }
}

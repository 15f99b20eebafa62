//! What can be asked for.

use actix_web::get;
use actix_web::web::Json;

use super::responses::Always;
use crate::catalog::{Catalog, catalog};

/// Read the catalog
///
/// Model families with their parameters and default sizes, optimizers with their update rules,
/// data sets, metrics and probe kinds, each with its provenance.
#[utoipa::path(
    operation_id = "get_catalog",
    tag = "catalog",
    security(("token" = ["read"])),
    responses((status = 200, description = "The catalog", body = Catalog), Always)
)]
#[get("/v1/catalog")]
pub async fn get_catalog() -> Json<Catalog> {
    Json(catalog())
}

//! What can be asked for.

use std::sync::LazyLock;

use actix_web::{HttpRequest, HttpResponse, get};

use super::conditional::{self, IfNoneMatch, NotModified};
use super::problem::Problem;
use super::responses::Always;
use crate::catalog::{Catalog, catalog};
use crate::store::StoreError;

/// Read the catalog
///
/// Model families with their parameters and default sizes, optimizers with their update rules,
/// data sets, metrics and probe kinds, each with its provenance.
#[utoipa::path(
    operation_id = "get_catalog",
    tag = "catalog",
    security(("token" = ["read"])),
    params(IfNoneMatch),
    responses(
        (status = 200, description = "The catalog", body = Catalog, headers(("ETag" = String, description = "Changes when the answer does; give it as If-None-Match"))),
        NotModified,
        Always,
    )
)]
#[get("/v1/catalog")]
pub async fn get_catalog(request: HttpRequest) -> Result<HttpResponse, Problem> {
    /// It is the same until the program ends: JSON and its validator.
    static CATALOG: LazyLock<Result<(String, String), StoreError>> = LazyLock::new(|| {
        let body = conditional::json(&catalog())?;
        Ok((conditional::etag(&body), body))
    });
    match &*CATALOG {
        Ok((etag, body)) => Ok(conditional::answer_as(&request, etag, body.as_str())),
        Err(_) => Err(Problem::internal()),
    }
}

//! Leases: the worker's side of the pool, for workers anywhere. Everything may be sent twice, late or out
//! of order; what changes nothing says so.

use actix_web::web::{self, Data, Json, Path, ReqData};
use actix_web::{HttpRequest, HttpResponse, delete, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::access::Access;
use super::problem::{Problem, ProblemCode};
use super::responses::{Always, JsonBody, Missing};
use super::state::Api;
use crate::lifecycle::Caller;
use crate::pool::leases::{
    ClaimRequest, CompletionAnswer, CompletionRequest, HeartbeatAnswer, HeartbeatRequest, Lease,
    check_protocol,
};
use crate::study::LeaseId;

/// Reads a worker's report; what does not fit is named.
fn read<T: DeserializeOwned>(body: &web::Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let code = if error.is_data() {
            ProblemCode::InvalidReport
        } else {
            ProblemCode::MalformedJson
        };
        Problem::new(code, error.to_string())
    })
}

/// Claim a probe
///
/// Waits up to `wait_secs` for a probe that the device can run, and holds it under the lease that the worker
/// has named. The same lease claims once: sent again, the answer is the probe that it holds. The device is
/// kept known while its worker claims and runs probes.
#[utoipa::path(
    operation_id = "claim_lease",
    tag = "leases",
    security(("token" = ["work"])),
    request_body(content = ClaimRequest, description = "The lease, the worker and its device"),
    responses(
        (status = 200, description = "A probe, held by the lease", body = Lease),
        (status = 204, description = "Nothing came while the claim waited"),
        (status = 409, description = "`worker_version`: worker and service speak different versions; `lease_lost`: the lease was used before and holds nothing any more", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What the worker says cannot be right; `errors` names each part", body = Problem, content_type = "application/problem+json"),
        Always,
        JsonBody,
    )
)]
#[post("/v1/leases")]
pub async fn claim_lease(
    api: Data<Api>,
    caller: ReqData<Caller>,
    access: Data<Access>,
    request: HttpRequest,
    body: web::Bytes,
) -> Result<HttpResponse, Problem> {
    // Another version's claim may have other members: its version is what it must hear of.
    if let Ok(Spoken { protocol }) = serde_json::from_slice(&body) {
        check_protocol(protocol)?;
    }
    let mut claim: ClaimRequest = read(&body)?;
    let mut left = claim.wait_secs.min(api.max_claim_wait_secs);
    loop {
        // A token that is revoked meanwhile gets nothing more.
        claim.wait_secs = left.min(access.trusts_secs());
        left -= claim.wait_secs;
        let lease = api
            .leases
            .claim_of(caller.project_filter(), &claim, &mut api.stop.clone())
            .await?;
        match lease {
            Some(lease) => return Ok(HttpResponse::Ok().json(lease)),
            None if left > 0.0 && !*api.stop.borrow() => {
                access.still_admits(request.headers()).await?;
            }
            None => return Ok(HttpResponse::NoContent().finish()),
        }
    }
}

/// The version that a claim is of, whatever else it says.
#[derive(Deserialize)]
struct Spoken {
    protocol: u32,
}

/// Keep a lease
///
/// Prolongs the lease and stores what has been measured so far. Measurements may come in batches of any size
/// and order; each is stored once by its `seq`, and only those of the attempt that completes are evidence.
#[utoipa::path(
    operation_id = "send_heartbeat",
    tag = "leases",
    security(("token" = ["work"])),
    params(("id" = LeaseId, Path, description = "The lease")),
    request_body(content = HeartbeatRequest, description = "The attempt and what it has to say"),
    responses(
        (status = 200, description = "The lease holds", body = HeartbeatAnswer),
        (status = 409, description = "`lease_lost`: nothing was changed; end what runs under it", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What the worker says cannot be right; `errors` names each part", body = Problem, content_type = "application/problem+json"),
        Always,
        JsonBody,
        Missing,
    )
)]
#[post("/v1/leases/{id}/heartbeat")]
pub async fn send_heartbeat(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<LeaseId>,
    body: web::Bytes,
) -> Result<Json<HeartbeatAnswer>, Problem> {
    let beat: HeartbeatRequest = read(&body)?;
    let project = caller.project_filter();
    Ok(Json(api.leases.heartbeat_of(project, *id, &beat).await?))
}

/// Complete a lease
///
/// Stores how the attempt ended, once: sent again, the answer is the same. One that says that it succeeded and has not
/// told, with it or before, the figures that its kind of probe is for, is stored as failed (`invalid_output`).
#[utoipa::path(
    operation_id = "complete_lease",
    tag = "leases",
    security(("token" = ["work"])),
    params(("id" = LeaseId, Path, description = "The lease")),
    request_body(content = CompletionRequest, description = "The attempt and how it ended"),
    responses(
        (status = 200, description = "The state that the probe went to", body = CompletionAnswer),
        (status = 409, description = "`lease_lost`: nothing was changed", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What the worker says cannot be right; `errors` names each part", body = Problem, content_type = "application/problem+json"),
        Always,
        JsonBody,
        Missing,
    )
)]
#[post("/v1/leases/{id}/complete")]
pub async fn complete_lease(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<LeaseId>,
    body: web::Bytes,
) -> Result<Json<CompletionAnswer>, Problem> {
    let completion: CompletionRequest = read(&body)?;
    let project = caller.project_filter();
    let answer = api.leases.complete_of(project, *id, &completion).await?;
    Ok(Json(answer))
}

/// Give a lease back
///
/// Whatever it holds is queued again at no cost, and the lease is spent: a claim of it that is still on its
/// way comes to nothing.
#[utoipa::path(
    operation_id = "release_lease",
    tag = "leases",
    security(("token" = ["work"])),
    params(("id" = LeaseId, Path, description = "The lease")),
    responses(
        (status = 204, description = "It holds nothing any more"),
        (status = 409, description = "`lease_lost`: it holds a probe of another project than the token's; nothing was changed", body = Problem, content_type = "application/problem+json"),
        Always,
        Missing,
    )
)]
#[delete("/v1/leases/{id}")]
pub async fn release_lease(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<LeaseId>,
) -> Result<HttpResponse, Problem> {
    let project = caller.project_filter();
    api.leases.release_of(project, *id).await?;
    Ok(HttpResponse::NoContent().finish())
}

//! Studies: create, list, read, cancel, delete, and the definition they were resolved to.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::IF_NONE_MATCH;
use actix_web::web::{Bytes, Data, Json, Path, Query, ReqData};
use actix_web::{HttpRequest, HttpResponse, delete, get, post};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::conditional::{self, IfNoneMatch, NotModified};
use super::events::Counted;
use super::idempotency::{self, IdempotencyKeyHeader};
use super::pagination::{Page, PageRequest};
use super::problem::Problem;
use super::responses::{Always, Conflict, InvalidQuery, Missing};
use super::revisions;
use super::state::Api;
use crate::lifecycle::{self, Caller};
use crate::plan::DryRun;
use crate::store::StoreError;
use crate::store::kept_answers::Answer;
use crate::store::studies::{self, ProbeCounts, StudyFilter, StudyRow};
use crate::study::{EndedBecause, StudyDefinition, StudyId, StudyRequest, StudyState};

/// A study: where it stands. What it was resolved to is at `…/definition`, what it found at
/// `…/recommendations`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "01981f6e-6f2a-7c3e-9a51-0d6e4b1f2a33",
    "name": "digits, first batch size",
    "labels": {"team": "vision"},
    "workload": "digits/mlp",
    "state": "running",
    "ended_because": null,
    "ended_detail": null,
    "phase": "timing round 2 of 3",
    "waiting_for": null,
    "revision": 1,
    "priority": 0,
    "progress": {
        "probes": {"queued": 7, "running": 1, "succeeded": 19, "infeasible": 0, "failed": 0, "cancelled": 0},
        "probes_done": 19,
        "device_secs": 41.2,
        "remaining_probes": 20,
        "remaining_device_secs": 36.0
    },
    "created_by": "anonymous",
    "created_at": "2026-11-23T18:00:00Z",
    "updated_at": "2026-11-23T18:00:41Z",
    "started_at": "2026-11-23T18:00:00Z",
    "ended_at": null
}))]
pub struct Study {
    /// Names the study.
    pub id: StudyId,
    /// A name for people.
    pub name: String,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// Data set and model family, `digits/mlp`.
    pub workload: String,
    /// Where it stands.
    pub state: StudyState,
    /// Why it ended; null while it has not.
    pub ended_because: Option<EndedBecause>,
    /// What that means here, for people; null while it has not ended.
    pub ended_detail: Option<String>,
    /// What it is doing, for people.
    pub phase: String,
    /// What is missing, when no live worker can serve it; else null.
    pub waiting_for: Option<String>,
    /// The revision of its definition.
    pub revision: i32,
    /// Studies of higher priority get their probes run first.
    pub priority: i32,
    /// How far it is.
    pub progress: Progress,
    /// Who posted it.
    pub created_by: String,
    /// When it was posted.
    pub created_at: DateTime<Utc>,
    /// When it last moved on.
    pub updated_at: DateTime<Utc>,
    /// When its first probe was claimed.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// How far a study is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Planned probes, by state.
    pub probes: ProbesByState,
    /// Probes that have ended.
    pub probes_done: i64,
    /// Device time spent on what the current revision rests on, seconds. What others had measured cost nothing;
    /// what an earlier revision had measured counts.
    pub device_secs: f64,
    /// Probes still to come, about.
    pub remaining_probes: i64,
    /// Device time still to come, about, seconds.
    pub remaining_device_secs: f64,
}

/// Probes by state.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProbesByState {
    /// Waiting for a worker.
    pub queued: i64,
    /// Held by a worker.
    pub running: i64,
    /// Did what they were asked.
    pub succeeded: i64,
    /// Found that their task cannot be done.
    pub infeasible: i64,
    /// Failed after every attempt.
    pub failed: i64,
    /// Wanted by no study any more.
    pub cancelled: i64,
}

impl Study {
    fn new(row: StudyRow, counts: ProbeCounts, device_secs: f64) -> Self {
        Self {
            id: row.study_id(),
            state: row.study_state(),
            ended_because: row.why_ended(),
            labels: serde_json::from_value(row.labels).unwrap_or_default(),
            name: row.name,
            workload: row.workload,
            ended_detail: row.ended_detail,
            phase: row.phase,
            waiting_for: row.waiting_for,
            revision: row.revision,
            priority: row.priority,
            progress: Progress {
                probes: ProbesByState {
                    queued: counts.queued,
                    running: counts.running,
                    succeeded: counts.succeeded,
                    infeasible: counts.infeasible,
                    failed: counts.failed,
                    cancelled: counts.cancelled,
                },
                probes_done: counts.ended(),
                device_secs,
                remaining_probes: row.remaining_probes,
                remaining_device_secs: row.remaining_device_secs,
            },
            created_by: row.created_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
            started_at: row.started_at,
            ended_at: row.ended_at,
        }
    }
}

/// Adds progress to rows.
async fn with_progress(api: &Api, rows: Vec<StudyRow>) -> Result<Vec<Study>, Problem> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let mut conn = api.context.database.connection().await?;
    let mut progress: HashMap<_, _> = studies::progress(&mut conn, &ids).await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let (counts, device_secs) = progress.remove(&row.id).unwrap_or_default();
            Study::new(row, counts, device_secs)
        })
        .collect())
}

pub(super) async fn one(api: &Api, row: StudyRow) -> Result<Study, Problem> {
    with_progress(api, vec![row])
        .await?
        .pop()
        .ok_or_else(|| Problem::not_found("study"))
}

/// A study of the caller's project, or 404.
pub async fn find(api: &Api, caller: &Caller, id: StudyId) -> Result<StudyRow, Problem> {
    let mut conn = api.context.database.connection().await?;
    studies::find(&mut conn, &caller.project, id)
        .await?
        .ok_or_else(|| Problem::not_found("study"))
}

/// How a study is created.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CreateStudyQuery {
    /// Validate and plan, but store nothing.
    #[serde(default)]
    #[param(default = false)]
    pub dry_run: bool,
}

/// What a study would do.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DryRunAnswer {
    /// The definition with every default filled in.
    pub definition: StudyDefinition,
    /// The plan, as far as it can be known before anything was measured.
    pub plan: DryRun,
}

/// Create a study
///
/// Validates everything that can be known without running, stores the study with its first probes,
/// and answers at once; follow `Location` to see it move. With `?dry_run=true` nothing is stored
/// and the plan comes back. With an `Idempotency-Key` the request may be sent again: the same key
/// and body get the answer that the first one got.
#[utoipa::path(
    operation_id = "create_study",
    tag = "studies",
    security(("token" = ["write"])),
    params(
        CreateStudyQuery,
        IdempotencyKeyHeader,
    ),
    request_body = StudyRequest,
    responses(
        (status = 200, description = "The plan of a dry run; nothing was stored", body = DryRunAnswer),
        (status = 202, description = "The study, accepted", body = Study, headers(("Location" = String, description = "Where the study is"), ("ETag" = String, description = "That of the study there"), ("Idempotency-Replayed" = String, description = "`true`: this was the answer to the first request with the key"))),
        (status = 409, description = "The first request with the Idempotency-Key is being answered; try again after Retry-After", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than allowed", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not declared as JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The study cannot be run as posted; one entry for each violation. Or `idempotency_key_reused`: the key was used with another body", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "The project has as many active studies as it may", body = Problem, content_type = "application/problem+json"),
        Always,
    )
)]
#[post("/v1/studies")]
pub async fn create_study(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    query: Query<CreateStudyQuery>,
    body: Bytes,
) -> Result<HttpResponse, Problem> {
    let key = idempotency::key(&api, &caller, &request, CREATE)?;
    if query.dry_run {
        let (definition, plan) = lifecycle::dry_run(&api.context, &caller, &body).await?;
        return Ok(HttpResponse::Ok().json(DryRunAnswer { definition, plan }));
    }
    let answered = lifecycle::create(&api.context, &caller, &body, key.as_ref(), accepted).await?;
    Ok(idempotency::respond(&api, CREATE, answered))
}

/// The operation's id, for its keys.
const CREATE: &str = "create_study";

fn accepted(row: StudyRow, counts: ProbeCounts, device_secs: f64) -> Result<Answer, StoreError> {
    let study = Study::new(row, counts, device_secs);
    let location = format!("/v1/studies/{}", study.id);
    idempotency::answer(StatusCode::ACCEPTED, location, &study)
}

/// Which studies are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListStudiesQuery {
    /// Only studies in this state.
    pub state: Option<StudyState>,
    /// Only studies of this data set (`digits`) or data set and model family (`digits/mlp`).
    pub workload: Option<String>,
    /// Only studies with these labels: `team:vision`, several separated by commas.
    pub label: Option<String>,
    /// Items of a page, 1 to 500 (default 50).
    #[param(minimum = 1, maximum = 500, default = 50)]
    pub page_size: Option<i64>,
    /// `next_page_token` of the page before.
    pub page_token: Option<String>,
}

/// List studies
///
/// The newest first. Pages are cut by key, so a late page costs as much as the first.
#[utoipa::path(
    operation_id = "list_studies",
    tag = "studies",
    security(("token" = ["read"])),
    params(ListStudiesQuery),
    responses(
        (status = 200, description = "A page of studies", body = Page<Study>),
        Always,
        InvalidQuery,
    )
)]
#[get("/v1/studies")]
pub async fn list_studies(
    api: Data<Api>,
    caller: ReqData<Caller>,
    query: Query<ListStudiesQuery>,
) -> Result<Json<Page<Study>>, Problem> {
    let query = query.into_inner();
    let page = PageRequest::<StudyId>::new(query.page_size, query.page_token.as_deref())?;
    Problem::unless_text("workload", query.workload.as_deref())?;
    Problem::unless_text("label", query.label.as_deref())?;
    let filter = StudyFilter {
        state: query.state,
        workload: query.workload,
        labels: labels(query.label.as_deref())?,
        before: page.after,
    };
    let mut conn = api.context.database.connection().await?;
    let rows = studies::list(&mut conn, &caller.project, &filter, page.limit()).await?;
    drop(conn);
    let studies = with_progress(&api, rows).await?;
    Ok(Json(page.page(studies, |study| study.id)))
}

fn labels(text: Option<&str>) -> Result<BTreeMap<String, String>, Problem> {
    text.into_iter()
        .flat_map(|text| text.split(','))
        .map(|pair| match pair.split_once(':') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Problem::invalid_parameter(
                "label",
                "must be name:value, several separated by commas",
            )),
        })
        .collect()
}

/// How a study is read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GetStudyQuery {
    /// Wait up to so many seconds for a change: until the study is not the one that `If-None-Match` names or, without it, the
    /// one that was there when the request came. At most `api.max_study_wait_secs` (60) of them are waited.
    #[param(minimum = 0, default = 0)]
    pub wait_secs: Option<f64>,
}

impl GetStudyQuery {
    fn wait(&self, most: Duration) -> Result<Duration, Problem> {
        let secs = self.wait_secs.unwrap_or(0.0);
        if !(secs.is_finite() && secs >= 0.0) {
            let detail = format!("must be a number of seconds from 0 on, is {secs}");
            return Err(Problem::invalid_parameter("wait_secs", detail));
        }
        Ok(Duration::try_from_secs_f64(secs).map_or(most, |asked| asked.min(most)))
    }
}

/// Read a study
///
/// Its state, what it is doing, how far it is, and what it waits for. With `wait_secs` the answer comes when that changes, or
/// when the study has ended, or when the time is over: ask again with the new `ETag` to follow a study without a stream.
#[utoipa::path(
    operation_id = "get_study",
    tag = "studies",
    security(("token" = ["read"])),
    params(("id" = StudyId, Path, description = "The study"), GetStudyQuery, IfNoneMatch),
    responses(
        Always,
        Missing,
        InvalidQuery,
        NotModified,
        (status = 200, description = "The study", body = Study, headers(("ETag" = String, description = "Changes when the answer does; give it as If-None-Match"))),
        (status = 503, description = "As many requests wait for news of studies as may (`too_many_listeners`), the database is away or the service is shutting down; try again after Retry-After", body = Problem, content_type = "application/problem+json"),
    )
)]
#[get("/v1/studies/{id}")]
pub async fn get_study(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<StudyId>,
    query: Query<GetStudyQuery>,
) -> Result<HttpResponse, Problem> {
    let until = Instant::now() + query.wait(api.max_study_wait)?;
    let row = find(&api, &caller, *id).await?;
    let mut study = one(&api, row.clone()).await?;
    let mut body = conditional::json(&study)?;
    let known = conditional::etag(&body);
    let is_awaited = request.headers().get(IF_NONE_MATCH).is_none()
        || conditional::is_known(request.headers(), &known);
    if is_awaited && !study.state.has_ended() && Instant::now() < until {
        let mut watch = api.context.followers.watch(&row)?;
        let _counted = Counted::new(&api, "wait");
        let mut stop = api.stop.clone();
        loop {
            // Read after joining, so that no change is between them.
            study = one(&api, find(&api, &caller, *id).await?).await?;
            body = conditional::json(&study)?;
            let is_over = Instant::now() >= until || *stop.borrow();
            if conditional::etag(&body) != known || study.state.has_ended() || is_over {
                break;
            }
            let next_look = until.min(Instant::now() + api.tick);
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep_until(next_look) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    }
    let etag = conditional::etag(&body);
    Ok(conditional::answer_as(&request, &etag, body))
}

/// Read a study's definition
///
/// What was posted, with every default filled in: this is what is planned from.
#[utoipa::path(
    operation_id = "get_study_definition",
    tag = "studies",
    security(("token" = ["read"])),
    params(("id" = StudyId, Path, description = "The study"), IfNoneMatch),
    responses(
        (status = 200, description = "The definition of the current revision", body = StudyDefinition, headers(("ETag" = String, description = "The revision and what it says; give it as If-Match to change the definition, or as If-None-Match"))),
        NotModified,
        Always,
        Missing,
    )
)]
#[get("/v1/studies/{id}/definition")]
pub async fn get_study_definition(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<StudyId>,
) -> Result<HttpResponse, Problem> {
    let row = find(&api, &caller, *id).await?;
    let (etag, body) = revisions::stored(&api, &row).await?;
    Ok(conditional::answer_as(&request, &etag, body))
}

/// Cancel a study
///
/// Nothing more of it starts; what runs for it alone is told to stop and ends within seconds. Its
/// measurements stay.
#[utoipa::path(
    operation_id = "cancel_study",
    tag = "studies",
    security(("token" = ["write"])),
    params(("id" = StudyId, Path, description = "The study")),
    responses(
        (status = 200, description = "The study, cancelled", body = Study),
        Always,
        Missing,
        Conflict,
    )
)]
#[post("/v1/studies/{id}/cancel")]
pub async fn cancel_study(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<StudyId>,
) -> Result<Json<Study>, Problem> {
    let row = lifecycle::cancel(&api.context, &caller, *id).await?;
    Ok(Json(one(&api, row).await?))
}

/// Delete a study
///
/// Only one that has ended. Its probes and measurements stay as long as another study rests on
/// them, and for the retention time after.
#[utoipa::path(
    operation_id = "delete_study",
    tag = "studies",
    security(("token" = ["write"])),
    params(("id" = StudyId, Path, description = "The study")),
    responses(
        (status = 204, description = "It is gone"),
        Always,
        Missing,
        Conflict,
    )
)]
#[delete("/v1/studies/{id}")]
pub async fn delete_study(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<StudyId>,
) -> Result<HttpResponse, Problem> {
    lifecycle::delete(&api.context, &caller, *id).await?;
    Ok(HttpResponse::NoContent().finish())
}

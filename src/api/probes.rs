//! Probes: what was run, why, where it stands, how it ended.

use actix_web::get;
use actix_web::web::{Data, Json, Path, Query, ReqData};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::pagination::{Page, PageRequest};
use super::problem::Problem;
use super::responses::{Always, InvalidQuery, Missing};
use super::state::Api;
use super::studies;
use crate::analysis::MemoryPrediction;
use crate::lifecycle::Caller;
use crate::probe::{ProbeKind, ProbeSpec, ProbeState};
use crate::store::StoreError;
use crate::store::probes::{self, PlaceRow, ProbeFilter, ProbeRow};
use crate::study::{BatchSize, ProbeId, StudyId};

/// One bounded run of training code with one purpose.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Probe {
    /// Names the probe.
    pub id: ProbeId,
    /// What it is for.
    pub kind: ProbeKind,
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Where it stands.
    pub state: ProbeState,
    /// Why it is infeasible or failed: `out_of_memory`, `diverged`, `too_slow`, `crashed`, `lost`, …
    pub reason: Option<String>,
    /// What happened, for people.
    pub detail: Option<String>,
    /// Claims so far; only the completing one is evidence.
    pub attempt: i32,
    /// Attempts that crashed.
    pub crashes: i32,
    /// Attempts whose worker vanished.
    pub losses: i32,
    /// The worker that holds or held it.
    pub worker: Option<String>,
    /// The device model it is for.
    pub device_model: String,
    /// Whether it has been told to stop.
    pub cancel_requested: bool,
    /// How far it is, while it runs.
    pub progress: Option<ProbeProgress>,
    /// The end of its log.
    pub stderr_tail: Option<String>,
    /// Device time of its last attempt, seconds.
    pub device_secs: f64,
    /// When it was planned.
    pub created_at: DateTime<Utc>,
    /// When its last attempt started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// The run to another target from whose evaluations its figures were read; null where it was run itself.
    pub read_from: Option<ProbeId>,
    /// Everything its runner was told.
    pub spec: ProbeSpec,
}

/// How far a running probe is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProbeProgress {
    /// What it is doing.
    pub phase: String,
    /// 0 to 1.
    pub fraction: f64,
}

/// A probe with its place in a study's plan.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PlannedProbe {
    /// The wave it was planned in, from 0.
    pub wave: i32,
    /// Its place in the wave, from 0.
    pub position: i32,
    /// Whether it was there already: made by another study, or by an earlier revision of this one.
    pub reused: bool,
    /// Why it was planned.
    pub why: String,
    /// The peak of memory predicted when it was planned; null where it is no probe of memory, or nothing
    /// could be predicted yet.
    pub prediction: Option<MemoryPrediction>,
    /// The probe.
    pub probe: Probe,
}

impl TryFrom<ProbeRow> for Probe {
    type Error = StoreError;

    fn try_from(row: ProbeRow) -> Result<Self, StoreError> {
        let unreadable = |why: String| StoreError::Unreadable {
            what: format!("probe {}", row.id),
            why,
        };
        Ok(Self {
            id: ProbeId(row.id),
            kind: ProbeKind::parse(&row.kind).ok_or_else(|| unreadable(row.kind.clone()))?,
            batch_size: BatchSize(u64::try_from(row.batch_size).unwrap_or(0)),
            state: ProbeState::parse(&row.state).ok_or_else(|| unreadable(row.state.clone()))?,
            spec: serde_json::from_value(row.spec.clone())
                .map_err(|error| unreadable(error.to_string()))?,
            progress: row
                .progress_phase
                .zip(row.progress_fraction)
                .map(|(phase, fraction)| ProbeProgress { phase, fraction }),
            reason: row.reason,
            detail: row.detail,
            attempt: row.attempt,
            crashes: row.crashes,
            losses: row.losses,
            worker: row.worker,
            device_model: row.device_model,
            cancel_requested: row.cancel_requested,
            stderr_tail: row.stderr_tail,
            device_secs: row.device_secs,
            created_at: row.created_at,
            started_at: row.started_at,
            ended_at: row.ended_at,
            read_from: row.read_from.map(ProbeId),
        })
    }
}

/// Which probes are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListProbesQuery {
    /// Only probes in this state.
    pub state: Option<ProbeState>,
    /// Only probes of this kind.
    pub kind: Option<ProbeKind>,
    /// Items of a page, 1 to 500 (default 50).
    #[param(minimum = 1, maximum = 500, default = 50)]
    pub page_size: Option<i64>,
    /// `next_page_token` of the page before.
    pub page_token: Option<String>,
}

/// List a study's probes
///
/// In the order of its plan, each with the reason it was planned.
#[utoipa::path(
    operation_id = "list_probes",
    tag = "probes",
    security(("token" = ["read"])),
    params(("id" = StudyId, Path, description = "The study"), ListProbesQuery),
    responses(
        (status = 200, description = "A page of probes", body = Page<PlannedProbe>),
        Always,
        Missing,
        InvalidQuery,
    )
)]
#[get("/v1/studies/{id}/probes")]
pub async fn list_probes(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<StudyId>,
    query: Query<ListProbesQuery>,
) -> Result<Json<Page<PlannedProbe>>, Problem> {
    let page = PageRequest::<(i32, i32)>::new(query.page_size, query.page_token.as_deref())?;
    let study = studies::find(&api, &caller, *id).await?;
    let filter = ProbeFilter {
        state: query.state,
        kind: query.kind,
        after: page.after,
    };
    let mut conn = api.context.database.connection().await?;
    let rows = probes::list(&mut conn, &study, &filter, page.limit()).await?;
    let probes = rows
        .into_iter()
        .map(planned)
        .collect::<Result<Vec<_>, StoreError>>()?;
    Ok(Json(
        page.page(probes, |probe| (probe.wave, probe.position)),
    ))
}

fn planned((place, row): (PlaceRow, ProbeRow)) -> Result<PlannedProbe, StoreError> {
    Ok(PlannedProbe {
        wave: place.wave,
        position: place.position,
        reused: place.reused,
        prediction: place.prediction(),
        why: place.why,
        probe: row.try_into()?,
    })
}

/// Read a probe
///
/// Everything about it, the end of its log too.
#[utoipa::path(
    operation_id = "get_probe",
    tag = "probes",
    security(("token" = ["read"])),
    params(("id" = ProbeId, Path, description = "The probe")),
    responses(
        (status = 200, description = "The probe", body = Probe),
        Always,
        Missing,
    )
)]
#[get("/v1/probes/{id}")]
pub async fn get_probe(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<ProbeId>,
) -> Result<Json<Probe>, Problem> {
    let mut conn = api.context.database.connection().await?;
    let row = probes::find(&mut conn, &caller.project, *id)
        .await?
        .ok_or_else(|| Problem::not_found("probe"))?;
    Ok(Json(row.try_into()?))
}

//! What a study found: analysis, recommendations, report. All are stored snapshots; reading
//! them computes nothing.

use actix_web::web::{Data, Path, Query, ReqData};
use actix_web::{HttpRequest, HttpResponse, get};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::conditional::{self, IfNoneMatch, NotModified};
use super::problem::Problem;
use super::responses::{Always, InvalidQuery, Missing};
use super::state::Api;
use super::studies;
use crate::analysis::Analysis;
use crate::lifecycle::Caller;
use crate::recommendation::{self, Advice};
use crate::store::recommendations::RecommendationRow;
use crate::store::{StoreError, recommendations, studies as study_store};
use crate::study::{RecommendationId, StudyId};

/// What the measurements of a study mean so far.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StudyAnalysis {
    /// The study.
    pub study_id: StudyId,
    /// The revision of its definition.
    pub revision: i32,
    /// The numbers; parts that nothing is known about yet are null.
    pub analysis: Analysis,
}

/// Read a study's analysis
///
/// The numbers with their intervals: memory against batch size, time per step and throughput,
/// the gain of each doubling, the fits.
#[utoipa::path(
    operation_id = "get_analysis",
    tag = "answers",
    security(("token" = ["read"])),
    params(("id" = StudyId, Path, description = "The study"), IfNoneMatch),
    responses(
        (status = 200, description = "The analysis so far", body = StudyAnalysis, headers(("ETag" = String, description = "Changes when the answer does; give it as If-None-Match"))),
        NotModified,
        Always,
        Missing,
    )
)]
#[get("/v1/studies/{id}/analysis")]
pub async fn get_analysis(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<StudyId>,
) -> Result<HttpResponse, Problem> {
    let study = studies::find(&api, &caller, *id).await?;
    let answer = StudyAnalysis {
        study_id: *id,
        revision: study.revision,
        analysis: stored_analysis(&api, *id).await?,
    };
    conditional::answer(&request, &answer)
}

async fn stored_analysis(api: &Api, id: StudyId) -> Result<Analysis, Problem> {
    let mut conn = api.context.database.connection().await?;
    let stored = study_store::analysis(&mut conn, id).await?;
    Ok(stored
        .map(serde_json::from_value)
        .transpose()
        .map_err(|error| StoreError::Unreadable {
            what: format!("analysis of study {id}"),
            why: error.to_string(),
        })?
        .unwrap_or_default())
}

/// One piece of advice with its evidence and how sure it is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Recommendation {
    /// Names the recommendation; the same while its topic stays current.
    pub id: RecommendationId,
    /// The study.
    pub study_id: StudyId,
    /// The revision of its definition.
    pub revision: i32,
    /// The advice.
    #[serde(flatten)]
    pub advice: Advice,
    /// Whether a change has made it stale.
    pub stale: bool,
    /// What made it stale.
    pub invalidated_by: Vec<String>,
    /// When the topic was first answered.
    pub created_at: DateTime<Utc>,
    /// When the answer last changed.
    pub updated_at: DateTime<Utc>,
}

impl TryFrom<RecommendationRow> for Recommendation {
    type Error = StoreError;

    fn try_from(row: RecommendationRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: RecommendationId(row.id),
            study_id: StudyId(row.study),
            revision: row.revision,
            advice: row.advice()?,
            stale: row.stale,
            invalidated_by: serde_json::from_value(row.invalidated_by).unwrap_or_default(),
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// What a study recommends.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Recommendations {
    /// One for each topic that something can be said about.
    pub items: Vec<Recommendation>,
}

/// Which recommendations are read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RecommendationsQuery {
    /// Also those that a change has made stale.
    #[serde(default)]
    #[param(default = false)]
    pub include_stale: bool,
}

/// Read a study's recommendations
///
/// The advice so far, current first. While the study runs they can change; when it has ended they
/// are final.
#[utoipa::path(
    operation_id = "list_recommendations",
    tag = "answers",
    security(("token" = ["read"])),
    params(("id" = StudyId, Path, description = "The study"), RecommendationsQuery, IfNoneMatch),
    responses(
        (status = 200, description = "The recommendations", body = Recommendations, headers(("ETag" = String, description = "Changes when the answer does; give it as If-None-Match"))),
        NotModified,
        Always,
        Missing,
        InvalidQuery,
    )
)]
#[get("/v1/studies/{id}/recommendations")]
pub async fn list_recommendations(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<StudyId>,
    query: Query<RecommendationsQuery>,
) -> Result<HttpResponse, Problem> {
    studies::find(&api, &caller, *id).await?;
    let mut conn = api.context.database.connection().await?;
    let rows = recommendations::list(&mut conn, *id, query.include_stale).await?;
    let answer = Recommendations {
        items: rows
            .into_iter()
            .map(Recommendation::try_from)
            .collect::<Result<_, _>>()?,
    };
    conditional::answer(&request, &answer)
}

/// Read a study's report
///
/// The whole answer as Markdown, for a person or a pull request.
#[utoipa::path(
    operation_id = "get_report",
    tag = "answers",
    security(("token" = ["read"])),
    params(("id" = StudyId, Path, description = "The study")),
    responses(
        (status = 200, description = "The report", body = String, content_type = "text/markdown"),
        Always,
        Missing,
    )
)]
#[get("/v1/studies/{id}/report")]
pub async fn get_report(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<StudyId>,
) -> Result<HttpResponse, Problem> {
    let study = studies::find(&api, &caller, *id).await?;
    let analysis = stored_analysis(&api, *id).await?;
    let mut conn = api.context.database.connection().await?;
    let definition = study_store::definition(&mut conn, &study).await?;
    let advices = recommendations::list(&mut conn, *id, false)
        .await?
        .iter()
        .map(RecommendationRow::advice)
        .collect::<Result<Vec<_>, _>>()?;
    let words = study.ended_detail.as_ref().unwrap_or(&study.phase);
    let state = if words.is_empty() || *words == study.state {
        study.state.clone()
    } else {
        format!("{}: {words}", study.state)
    };
    Ok(HttpResponse::Ok()
        .content_type("text/markdown; charset=utf-8")
        .body(recommendation::report::report(
            &definition,
            &state,
            &analysis,
            &advices,
        )))
}

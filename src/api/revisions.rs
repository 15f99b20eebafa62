//! Revisions: changing a study's definition, with what that makes stale and what it costs said before.

use actix_web::http::header::{ETAG, IF_MATCH};
use actix_web::web::{Bytes, Data, Json, Path, Query, ReqData};
use actix_web::{HttpRequest, HttpResponse, get, put};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::conditional;
use super::pagination::{Page, PageRequest};
use super::problem::Problem;
use super::responses::{Always, InvalidQuery, Missing};
use super::state::Api;
use super::studies::{self, Study};
use crate::lifecycle::revise::Consequences;
use crate::lifecycle::{self, Caller, Expected};
use crate::plan::DryRun;
use crate::recommendation::Topic;
use crate::store::StoreError;
use crate::store::studies::{self as study_store, RevisionRow, StudyRow};
use crate::study::{Change, Changed, StudyDefinition, StudyId, StudyRequest, changes};

/// The definition of a study's current revision as JSON, with its validator: the revision's number, which is all that
/// `If-Match` looks at, and what makes it exact. A device that turns up fills in what was open, which is no change of what
/// is asked, but is another answer.
pub async fn stored(api: &Api, study: &StudyRow) -> Result<(String, String), Problem> {
    let mut conn = api.context.database.connection().await?;
    let definition = study_store::definition(&mut conn, study).await?;
    let body = conditional::json(&definition)?;
    let etag = format!("\"{}-{}\"", study.revision, conditional::digest(&body));
    Ok((etag, body))
}

/// How a study is revised.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UpdateDefinitionQuery {
    /// Say what the change would do, and store nothing.
    #[serde(default)]
    #[param(default = false)]
    pub dry_run: bool,
}

/// A topic whose recommendation a change makes stale.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StaleTopic {
    /// The topic.
    pub topic: Topic,
    /// What makes it stale.
    pub invalidated_by: Vec<Change>,
    /// Why, for people.
    pub why: String,
}

/// What a revision does, or would do.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RevisionAnswer {
    /// The study: as it is now, or for a dry run as it stays.
    pub study: Study,
    /// The new definition with every default filled in.
    pub definition: StudyDefinition,
    /// What differs from the definition before; empty when nothing does, and then there is no new revision.
    pub changes: Vec<Changed>,
    /// Recommendations that no longer hold, until the new revision has its own.
    pub stale: Vec<StaleTopic>,
    /// Topics whose recommendations still hold.
    pub kept: Vec<Topic>,
    /// For a dry run, what must be measured, what it takes, and what is taken over; else null, and the study's
    /// progress tells.
    pub plan: Option<DryRun>,
}

impl RevisionAnswer {
    fn new(
        study: Study,
        definition: StudyDefinition,
        consequences: Consequences,
        plan: Option<DryRun>,
    ) -> Self {
        let why = |changes: &[Change]| {
            let sentences: Vec<&str> = changes.iter().map(|change| change.why()).collect();
            sentences.join("; ")
        };
        Self {
            study,
            definition,
            changes: consequences.changes,
            stale: consequences
                .stale
                .into_iter()
                .map(|(topic, invalidated_by)| StaleTopic {
                    topic,
                    why: why(&invalidated_by),
                    invalidated_by,
                })
                .collect(),
            kept: consequences.kept,
            plan,
        }
    }
}

/// Change a study's definition
///
/// The body is a whole study, as for creating one, or the definition as it was read, edited; what it leaves open has its
/// default, except that the device stays the one it was. The new revision is planned from its beginning and takes over every measurement that does not
/// depend on what changed, so a change of price, objective, name or budget is answered without a new probe. Whatever
/// state the study was in, it runs again. Recommendations that the change invalidates are marked stale at once.
/// With `?dry_run=true` nothing is stored: the answer says what becomes stale, how many probes are taken over, how many
/// must be made, and about how many device-seconds those take.
#[utoipa::path(
    operation_id = "update_study_definition",
    tag = "studies",
    security(("token" = ["write"])),
    params(
        ("id" = StudyId, Path, description = "The study"),
        UpdateDefinitionQuery,
        ("If-Match" = Option<String>, Header, description = "The ETag of the definition that is changed; required, but for a dry run"),
    ),
    request_body = StudyRequest,
    responses(
        (status = 200, description = "What the change does, or for a dry run would do", body = RevisionAnswer, headers(("ETag" = String, description = "That of the definition; for a dry run of the one that stays"))),
        (status = 412, description = "The definition has another revision by now", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than allowed", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not declared as JSON", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The study cannot be run as posted; one entry for each violation", body = Problem, content_type = "application/problem+json"),
        (status = 428, description = "If-Match is missing", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "The study had ended, and the project has as many active studies as it may", body = Problem, content_type = "application/problem+json"),
        Always,
        Missing,
    )
)]
#[put("/v1/studies/{id}/definition")]
pub async fn update_study_definition(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<StudyId>,
    query: Query<UpdateDefinitionQuery>,
    body: Bytes,
) -> Result<HttpResponse, Problem> {
    let expected = if_match(&request)?;
    let (row, answer) = if query.dry_run {
        let it = lifecycle::forecast_revision(&api.context, &caller, *id, &body, &expected).await?;
        (it.study, (it.definition, it.consequences, Some(it.plan)))
    } else {
        let it = lifecycle::revise(&api.context, &caller, *id, &body, &expected).await?;
        (it.study, (it.definition, it.consequences, None))
    };
    let (definition, consequences, plan) = answer;
    let (etag, _) = stored(&api, &row).await?;
    let study = studies::one(&api, row).await?;
    Ok(HttpResponse::Ok()
        .insert_header((ETAG, etag))
        .json(RevisionAnswer::new(study, definition, consequences, plan)))
}

/// The revisions that a request may change: strong tags only, as RFC 9110 has it for If-Match.
fn if_match(request: &HttpRequest) -> Result<Expected, Problem> {
    let mut revisions = Vec::new();
    let mut values = request.headers().get_all(IF_MATCH).peekable();
    if values.peek().is_none() {
        return Ok(Expected::Unsaid);
    }
    for value in values {
        let text = value.to_str().unwrap_or_default();
        for tag in text.split(',').map(str::trim) {
            if tag == "*" {
                return Ok(Expected::Any);
            }
            let quoted = tag
                .strip_prefix("W/")
                .unwrap_or(tag)
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'));
            let Some(inside) = quoted else {
                return Err(Problem::invalid_parameter(
                    "If-Match",
                    "must be the ETag of the definition, quotation marks included, or *",
                ));
            };
            if !tag.starts_with("W/") {
                // Another's tag is one that does not match.
                let revision = inside.split_once('-').map_or(inside, |(number, _)| number);
                revisions.extend(revision.parse::<i32>());
            }
        }
    }
    Ok(Expected::OneOf(revisions))
}

/// Which revisions are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListRevisionsQuery {
    /// Items of a page, 1 to 500 (default 50).
    #[param(minimum = 1, maximum = 500, default = 50)]
    pub page_size: Option<i64>,
    /// `next_page_token` of the page before.
    pub page_token: Option<String>,
}

/// A revision of a study.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StudyRevision {
    /// Its number, from 1.
    pub revision: i32,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// What it changed; empty for the first.
    pub changes: Vec<Changed>,
    /// The definition.
    pub definition: StudyDefinition,
}

/// List a study's revisions
///
/// The newest first, each with what it changed against the one before.
#[utoipa::path(
    operation_id = "list_study_revisions",
    tag = "studies",
    security(("token" = ["read"])),
    params(("id" = StudyId, Path, description = "The study"), ListRevisionsQuery),
    responses(
        (status = 200, description = "A page of revisions", body = Page<StudyRevision>),
        Always,
        Missing,
        InvalidQuery,
    )
)]
#[get("/v1/studies/{id}/revisions")]
pub async fn list_study_revisions(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<StudyId>,
    query: Query<ListRevisionsQuery>,
) -> Result<Json<Page<StudyRevision>>, Problem> {
    let query = query.into_inner();
    let page = PageRequest::<i32>::new(query.page_size, query.page_token.as_deref())?;
    studies::find(&api, &caller, *id).await?;
    let mut conn = api.context.database.connection().await?;
    // One more than is shown: what the last one of the page changed is seen against the one before it.
    let rows = study_store::revisions(&mut conn, *id, page.after, page.limit() + 1).await?;
    drop(conn);
    let definitions = rows
        .iter()
        .map(RevisionRow::definition)
        .collect::<Result<Vec<_>, StoreError>>()?;
    let mut revisions: Vec<StudyRevision> = rows
        .iter()
        .zip(&definitions)
        .enumerate()
        .map(|(index, (row, definition))| StudyRevision {
            revision: row.revision,
            created_at: row.created_at,
            changes: definitions
                .get(index + 1)
                .map_or_else(Vec::new, |before| changes::between(before, definition)),
            definition: definition.clone(),
        })
        .collect();
    revisions.truncate(usize::try_from(page.limit()).unwrap_or(usize::MAX));
    Ok(Json(page.page(revisions, |it| it.revision)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn if_match_names_revisions_by_strong_tags() {
        let read = |value: &str| {
            let request = TestRequest::default().insert_header((IF_MATCH, value));
            if_match(&request.to_http_request())
        };
        assert_eq!(read("\"3\"").expect("a tag"), Expected::OneOf(vec![3]));
        assert_eq!(read("\"3-0af1\"").expect("a tag"), Expected::OneOf(vec![3]));
        assert_eq!(
            read("\"3\", \"4\"").expect("tags"),
            Expected::OneOf(vec![3, 4])
        );
        assert_eq!(read("W/\"3\"").expect("a tag"), Expected::OneOf(vec![]));
        assert_eq!(read("\"x\"").expect("a tag"), Expected::OneOf(vec![]));
        assert_eq!(read("*").expect("any"), Expected::Any);
        for bad in ["3", "", "\"3", "\"3\", 4"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let none = TestRequest::default().to_http_request();
        assert_eq!(if_match(&none).expect("none"), Expected::Unsaid);
    }
}

//! Recommendations: stored snapshots, one a topic and revision.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Integer, Jsonb, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::error::StoreError;
use super::json::Json;
use super::schema::recommendations;
use super::statement::statement;
use crate::recommendation::{Advice, Topic};
use crate::study::{Change, StudyId};

type SqlUuid = diesel::sql_types::Uuid;

/// A recommendation as stored.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = recommendations, check_for_backend(diesel::pg::Pg))]
pub struct RecommendationRow {
    pub id: Uuid,
    pub study: Uuid,
    pub revision: i32,
    pub topic: String,
    pub body: serde_json::Value,
    pub stale: bool,
    pub invalidated_by: serde_json::Value,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl RecommendationRow {
    /// The advice itself.
    ///
    /// # Errors
    /// When a newer version stored something this one cannot read.
    pub fn advice(&self) -> Result<Advice, StoreError> {
        serde_json::from_value(self.body.clone())
            .map_err(|error| StoreError::unreadable(format!("recommendation {}", self.id), error))
    }
}

/// Marks topics as stale, with what made them so, whichever revision answered them. True if there were any.
pub async fn mark_stale(
    conn: &mut AsyncPgConnection,
    study: StudyId,
    topics: &[(Topic, Vec<Change>)],
) -> Result<bool, StoreError> {
    let mut marked = 0;
    for (topic, changes) in topics {
        let words: Vec<&str> = changes.iter().map(|change| change.as_str()).collect();
        let words = serde_json::to_value(words)
            .map_err(|error| StoreError::unreadable("recommendation", error))?;
        marked += diesel::update(
            recommendations::table
                .filter(recommendations::study.eq(study.0))
                .filter(recommendations::topic.eq(topic.as_str()))
                .filter(recommendations::stale.eq(false)),
        )
        .set((
            recommendations::stale.eq(true),
            recommendations::invalidated_by.eq(words),
            recommendations::updated_at.eq(diesel::dsl::now),
        ))
        .execute(conn)
        .await?;
    }
    Ok(marked > 0)
}

/// Replaces what is recommended for a revision. Ids stay while the topic stays, also when an earlier revision answered
/// it and nothing has made that stale. True if anything changed.
pub async fn replace(
    conn: &mut AsyncPgConnection,
    study: StudyId,
    revision: i32,
    advices: &[Advice],
) -> Result<bool, StoreError> {
    let topics: Vec<&str> = advices.iter().map(|advice| advice.topic.as_str()).collect();
    let mut changed = diesel::delete(
        recommendations::table
            .filter(recommendations::study.eq(study.0))
            .filter(recommendations::revision.eq(revision))
            .filter(recommendations::topic.ne_all(&topics)),
    )
    .execute(conn)
    .await?;
    if revision > 1 {
        changed += statement(
            "UPDATE recommendations r SET revision = $2, updated_at = now() \
             WHERE r.study = $1 AND r.revision < $2 AND NOT r.stale AND r.topic = ANY($3) AND NOT EXISTS (\
                SELECT 1 FROM recommendations o WHERE o.study = $1 AND o.revision = $2 AND o.topic = r.topic)",
        )
        .bind::<SqlUuid, _>(study.0)
        .bind::<Integer, _>(revision)
        .bind::<Array<Text>, _>(&topics)
        .execute(conn)
        .await?;
    }
    changed += insert(conn, study, revision, advices).await?;
    Ok(changed > 0)
}

/// Recommendations as columns, with new ids.
pub(super) struct Rows<'a> {
    pub ids: Vec<Uuid>,
    pub topics: Vec<&'a str>,
    pub grades: Vec<&'a str>,
    pub bodies: Vec<Json<'a, Advice>>,
}

impl<'a> Rows<'a> {
    pub fn of(advices: impl IntoIterator<Item = &'a Advice>) -> Self {
        let advices: Vec<&Advice> = advices.into_iter().collect();
        let grade = |advice: &&'a Advice| advice.confidence.grade.as_str();
        Self {
            ids: advices.iter().map(|_| Uuid::now_v7()).collect(),
            topics: advices.iter().map(|advice| advice.topic.as_str()).collect(),
            grades: advices.iter().map(grade).collect(),
            bodies: advices.into_iter().map(Json).collect(),
        }
    }
}

/// Stores what is recommended for a revision; what says the same already stays as it is. Gives how many changed.
async fn insert(
    conn: &mut AsyncPgConnection,
    study: StudyId,
    revision: i32,
    advices: &[Advice],
) -> Result<usize, StoreError> {
    if advices.is_empty() {
        return Ok(0);
    }
    let rows = Rows::of(advices);
    Ok(statement(
        "INSERT INTO recommendations (id, study, revision, topic, grade, body) \
         SELECT id, $1, $2, topic, grade, body \
         FROM unnest($3::uuid[], $4::text[], $5::text[], $6::jsonb[]) AS advice (id, topic, grade, body) \
         ON CONFLICT (study, revision, topic) DO UPDATE \
         SET grade = excluded.grade, body = excluded.body, updated_at = now() \
         WHERE recommendations.body <> excluded.body",
    )
    .bind::<SqlUuid, _>(study.0)
    .bind::<Integer, _>(revision)
    .bind::<Array<SqlUuid>, _>(rows.ids)
    .bind::<Array<Text>, _>(rows.topics)
    .bind::<Array<Text>, _>(rows.grades)
    .bind::<Array<Jsonb>, _>(rows.bodies)
    .execute(conn)
    .await?)
}

/// Recommendations of a study, current ones first, then by topic.
pub async fn list(
    conn: &mut AsyncPgConnection,
    study: StudyId,
    include_stale: bool,
) -> Result<Vec<RecommendationRow>, StoreError> {
    let mut query = recommendations::table
        .filter(recommendations::study.eq(study.0))
        .order((
            recommendations::stale,
            recommendations::revision.desc(),
            recommendations::created_at,
            recommendations::topic,
        ))
        .select(RecommendationRow::as_select())
        .into_boxed();
    if !include_stale {
        query = query.filter(recommendations::stale.eq(false));
    }
    Ok(query.load(conn).await?)
}

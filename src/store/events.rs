//! The log of a study: numbered under the study's row, so no number is missing or given twice.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::Value;

use super::error::StoreError;
use super::schema::{studies, study_events};
use crate::study::StudyId;

/// What an event tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The study changed its state or phase.
    Study,
    /// A probe changed its state.
    Probe,
    /// The recommendations changed.
    Recommendations,
}

impl EventKind {
    /// The name stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Study => "study",
            Self::Probe => "probe",
            Self::Recommendations => "recommendations",
        }
    }
}

/// Appends one event. Takes the study's row for the rest of the transaction.
pub async fn append(
    conn: &mut AsyncPgConnection,
    study: StudyId,
    kind: EventKind,
    data: &Value,
) -> Result<(), StoreError> {
    let next: i64 = diesel::update(studies::table.find(study.0))
        .set(studies::next_event_seq.eq(studies::next_event_seq + 1))
        .returning(studies::next_event_seq)
        .get_result(conn)
        .await?;
    diesel::insert_into(study_events::table)
        .values((
            study_events::study.eq(study.0),
            study_events::seq.eq(next - 1),
            study_events::kind.eq(kind.as_str()),
            study_events::data.eq(data),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Events of a study after a number, oldest first: `(seq, kind, data)`.
pub async fn list_after(
    conn: &mut AsyncPgConnection,
    study: StudyId,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, String, Value)>, StoreError> {
    Ok(study_events::table
        .filter(study_events::study.eq(study.0))
        .filter(study_events::seq.gt(after))
        .order(study_events::seq)
        .select((study_events::seq, study_events::kind, study_events::data))
        .limit(limit)
        .load(conn)
        .await?)
}

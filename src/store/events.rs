//! The log of a study: numbered under the study's row, so no number is missing or given twice, and a number that can be
//! read comes after every smaller one.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Jsonb, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::Value;
use uuid::Uuid;

use super::error::StoreError;
use super::schema::study_events;
use super::statement::statement;
use crate::study::{StudyId, StudyState};

type SqlUuid = diesel::sql_types::Uuid;

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

/// Appends events. Takes the study's row for the rest of the transaction.
pub async fn append(
    conn: &mut AsyncPgConnection,
    study: StudyId,
    log: &[(EventKind, Value)],
) -> Result<(), StoreError> {
    let (kinds, data): (Vec<&str>, Vec<&Value>) =
        log.iter().map(|(kind, data)| (kind.as_str(), data)).unzip();
    statement(
        "WITH numbered AS (\
            UPDATE studies SET next_event_seq = next_event_seq + cardinality($2::text[]) WHERE id = $1 \
            RETURNING next_event_seq - cardinality($2::text[]) AS first) \
         INSERT INTO study_events (study, seq, kind, data) \
         SELECT $1, first + place - 1, kind, data \
         FROM numbered, unnest($2::text[], $3::jsonb[]) WITH ORDINALITY AS log (kind, data, place)",
    )
    .bind::<SqlUuid, _>(study.0)
    .bind::<Array<Text>, _>(kinds)
    .bind::<Array<Jsonb>, _>(data)
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

/// An event as stored.
#[derive(Debug, Clone)]
pub struct Event {
    pub seq: i64,
    pub kind: String,
    pub data: Value,
    pub created_at: DateTime<Utc>,
}

/// What is new of a study: its events after a number, and where it stands with all that are there.
#[derive(Debug, Clone)]
pub struct News {
    /// An unknown one (a newer version's) reads as running.
    pub state: StudyState,
    /// The number of its last event, whether or not that is among these; 0 before the first.
    pub newest: i64,
    /// When anything of its row was last changed that people see.
    pub updated_at: DateTime<Utc>,
    /// Oldest first.
    pub events: Vec<Event>,
}

impl News {
    /// The number up to which somebody knows everything who knew everything up to `after`.
    pub fn upto(&self, after: i64) -> i64 {
        self.events.last().map_or(after, |event| event.seq)
    }
}

/// What is new of each study after a number of its own, at one moment for all of them; at most so many events of each.
/// Studies that are not there any more are left out.
pub async fn news(
    conn: &mut AsyncPgConnection,
    after: &[(StudyId, i64)],
    limit: i64,
) -> Result<HashMap<StudyId, News>, StoreError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        study: Uuid,
        #[diesel(sql_type = Text)]
        state: String,
        #[diesel(sql_type = BigInt)]
        newest: i64,
        #[diesel(sql_type = Timestamptz)]
        updated_at: DateTime<Utc>,
        #[diesel(sql_type = Nullable<BigInt>)]
        seq: Option<i64>,
        #[diesel(sql_type = Nullable<Text>)]
        kind: Option<String>,
        #[diesel(sql_type = Nullable<Jsonb>)]
        data: Option<Value>,
        #[diesel(sql_type = Nullable<Timestamptz>)]
        created_at: Option<DateTime<Utc>>,
    }
    let (studies, numbers): (Vec<Uuid>, Vec<i64>) =
        after.iter().map(|(study, seq)| (study.0, *seq)).unzip();
    let rows: Vec<Row> = statement(
        "SELECT s.id AS study, s.state, s.next_event_seq - 1 AS newest, s.updated_at, \
                e.seq, e.kind, e.data, e.created_at \
         FROM unnest($1::uuid[], $2::bigint[]) AS asked (study, seq) \
         JOIN studies s ON s.id = asked.study \
         LEFT JOIN LATERAL (\
            SELECT * FROM study_events e WHERE e.study = asked.study AND e.seq > asked.seq \
            ORDER BY e.seq LIMIT $3) e ON s.next_event_seq - 1 > asked.seq \
         ORDER BY s.id, e.seq",
    )
    .bind::<Array<SqlUuid>, _>(studies)
    .bind::<Array<BigInt>, _>(numbers)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await?;
    let mut all = HashMap::<StudyId, News>::new();
    for row in rows {
        let news = all.entry(StudyId(row.study)).or_insert_with(|| News {
            state: StudyState::parse(&row.state).unwrap_or(StudyState::Running),
            newest: row.newest,
            updated_at: row.updated_at,
            events: Vec::new(),
        });
        if let (Some(seq), Some(kind), Some(data), Some(created_at)) =
            (row.seq, row.kind, row.data, row.created_at)
        {
            news.events.push(Event {
                seq,
                kind,
                data,
                created_at,
            });
        }
    }
    Ok(all)
}

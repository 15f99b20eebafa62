//! Studies: the rows, their definitions, their lists.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::dsl::now;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::QueryFragment;
use diesel::sql_types::{Array, BigInt, Double, Integer, Jsonb, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::age;
use super::error::StoreError;
use super::events::EventKind;
use super::json::Json;
use super::probes::{LinkedWave, NewProbe, Wanted, made_sql, wanted_sql};
use super::recommendations;
use super::schema::{studies, study_revisions};
use super::statement::{Statement, statement};
use super::transaction::all_in_one_way;
use crate::analysis::Analysis;
use crate::recommendation::Advice;
use crate::study::{DeviceChoice, EndedBecause, StudyDefinition, StudyId, StudyState};

type SqlUuid = diesel::sql_types::Uuid;

/// A study as stored, without its definition and analysis.
#[derive(Debug, Clone, Queryable, QueryableByName, Selectable)]
#[diesel(table_name = studies, check_for_backend(diesel::pg::Pg))]
pub struct StudyRow {
    pub id: Uuid,
    pub project: String,
    pub created_by: String,
    pub name: String,
    pub labels: serde_json::Value,
    pub workload: String,
    pub state: String,
    pub ended_because: Option<String>,
    pub ended_detail: Option<String>,
    pub phase: String,
    pub waiting_for: Option<String>,
    pub revision: i32,
    pub priority: i32,
    pub evidence_version: i64,
    pub advanced_version: i64,
    pub remaining_probes: i64,
    pub remaining_device_secs: f64,
    pub next_event_seq: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
}

impl StudyRow {
    /// The study's id.
    pub fn study_id(&self) -> StudyId {
        StudyId(self.id)
    }

    /// The state. An unknown one (a newer version's) reads as running.
    pub fn study_state(&self) -> StudyState {
        StudyState::parse(&self.state).unwrap_or(StudyState::Running)
    }

    /// Why it ended, if it has.
    pub fn why_ended(&self) -> Option<EndedBecause> {
        self.ended_because.as_deref().and_then(EndedBecause::parse)
    }
}

/// A study to be stored, with all that belongs to it from the beginning.
#[derive(Debug, Clone)]
pub struct NewStudy<'a> {
    pub id: StudyId,
    pub project: &'a str,
    pub created_by: &'a str,
    pub definition: &'a StudyDefinition,
    /// Where it stands.
    pub advanced: Advanced<'a>,
    /// The first events of its log.
    pub log: Vec<(EventKind, serde_json::Value)>,
    /// What is recommended already.
    pub advices: &'a [Advice],
    /// Its first wave, where that is not linked afterwards.
    pub wave: &'a [NewProbe],
}

/// Stores a study that has no wave yet.
pub async fn insert(
    conn: &mut AsyncPgConnection,
    new: &NewStudy<'_>,
) -> Result<StudyRow, StoreError> {
    let inserted: Inserted = inserting(std::slice::from_ref(new))
        .get_result(conn)
        .await?;
    Ok(inserted.study)
}

/// Stores studies with their first waves in one way to the server, each unless one of its wave's probes is answered already:
/// then nothing is stored of it, and it is missing from what is given back. No two may ask for the same probe. What runs to
/// other targets may tell is not looked for: such a wave is not to be given here.
pub async fn insert_together(
    conn: &mut AsyncPgConnection,
    news: &[NewStudy<'_>],
) -> Result<Vec<(StudyRow, LinkedWave)>, StoreError> {
    let inserted: Vec<Inserted> = all_in_one_way(conn, inserting(news)).await?;
    let linked = inserted.into_iter().map(|inserted| {
        let mut linked = LinkedWave::default();
        for (state, &device_secs) in inserted.states.iter().zip(&inserted.device_secs) {
            linked.add(state, device_secs);
        }
        (inserted.study, linked)
    });
    Ok(linked.collect())
}

#[derive(QueryableByName)]
struct Inserted {
    #[diesel(embed)]
    study: StudyRow,
    /// Of the probes of its wave, and the device time of earlier attempts at each, seconds.
    #[diesel(sql_type = Array<Text>)]
    states: Vec<String>,
    #[diesel(sql_type = Array<Double>)]
    device_secs: Vec<f64>,
}

fn inserting(news: &[NewStudy<'_>]) -> Statement<impl QueryFragment<Pg>> {
    fn each<'a, 'n, T>(news: &'a [NewStudy<'n>], of: impl Fn(&'a NewStudy<'n>) -> T) -> Vec<T> {
        news.iter().map(of).collect()
    }
    let state = |new: &NewStudy<'_>| {
        let ended = new.advanced.ending().state;
        ended.unwrap_or(StudyState::Queued.as_str())
    };
    let (mut logs, mut places, mut kinds, mut data) = (vec![], vec![], vec![], vec![]);
    for new in news {
        for (place, (kind, what)) in (1_i64..).zip(&new.log) {
            logs.push(new.id.0);
            places.push(place);
            kinds.push(kind.as_str());
            data.push(what);
        }
    }
    let advised = news
        .iter()
        .flat_map(|new| vec![new.id.0; new.advices.len()]);
    let advised: Vec<Uuid> = advised.collect();
    let advices = recommendations::Rows::of(news.iter().flat_map(|new| new.advices));
    let studies = statement(insert_sql())
        .bind::<Array<SqlUuid>, _>(each(news, |new| new.id.0))
        .bind::<Array<Text>, _>(each(news, |new| new.project))
        .bind::<Array<Text>, _>(each(news, |new| new.created_by))
        .bind::<Array<Text>, _>(each(news, |new| new.definition.name.as_str()))
        .bind::<Array<Jsonb>, _>(each(news, |new| Json(&new.definition.labels)))
        .bind::<Array<Text>, _>(each(news, |new| workload_name(new.definition)))
        .bind::<Array<Integer>, _>(each(news, |new| new.definition.priority))
        .bind::<Array<Text>, _>(each(news, state))
        .bind::<Array<Nullable<Text>>, _>(each(news, |new| new.advanced.ending().because))
        .bind::<Array<Nullable<Text>>, _>(each(news, |new| new.advanced.ending().detail))
        .bind::<Array<BigInt>, _>(each(news, |new| new.advanced.version))
        .bind::<Array<Text>, _>(each(news, |new| new.advanced.phase))
        .bind::<Array<Nullable<Text>>, _>(each(news, |new| new.advanced.waiting_for))
        .bind::<Array<Integer>, _>(each(news, |new| new.advanced.wave.unwrap_or(0)))
        .bind::<Array<BigInt>, _>(each(news, |new| new.advanced.remaining_probes))
        .bind::<Array<Double>, _>(each(news, |new| new.advanced.remaining_device_secs))
        .bind::<Array<Jsonb>, _>(each(news, |new| Json(new.advanced.analysis)))
        .bind::<Array<Jsonb>, _>(each(news, |new| Json(new.definition)))
        .bind::<Array<SqlUuid>, _>(logs)
        .bind::<Array<BigInt>, _>(places)
        .bind::<Array<Text>, _>(kinds)
        .bind::<Array<Jsonb>, _>(data)
        .bind::<Array<SqlUuid>, _>(advised)
        .bind::<Array<SqlUuid>, _>(advices.ids)
        .bind::<Array<Text>, _>(advices.topics)
        .bind::<Array<Text>, _>(advices.grades)
        .bind::<Array<Jsonb>, _>(advices.bodies);
    let wanted = news.iter().flat_map(|new| {
        let wave = (0_i32..).zip(new.wave);
        wave.map(|(position, probe)| (new.id, position, probe))
    });
    Wanted::of(wanted.collect()).bound_to(studies)
}

/// Studies with all that belongs to them from the beginning in one way to the server.
fn insert_sql() -> String {
    format!(
        "WITH {}, \
         new AS MATERIALIZED (\
            SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::text[], $7::int[], \
                $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::text[], $14::int[], $15::bigint[], \
                $16::float8[], $17::jsonb[], $18::jsonb[]) \
            AS n (id, project, created_by, name, labels, workload, priority, state, ended_because, ended_detail, version, \
                phase, waiting_for, wave, remaining_probes, remaining_device_secs, analysis, definition)), \
         log AS MATERIALIZED (\
            SELECT * FROM unnest($19::uuid[], $20::bigint[], $21::text[], $22::jsonb[]) AS l (study, place, kind, data)), \
         study AS (\
            INSERT INTO studies (id, project, created_by, name, labels, workload, priority, state, ended_because, \
                ended_detail, ended_at, evidence_version, advanced_version, phase, waiting_for, wave, remaining_probes, \
                remaining_device_secs, analysis, next_event_seq) \
            SELECT id, project, created_by, name, labels, workload, priority, state, ended_because, ended_detail, \
                CASE WHEN ended_because IS NOT NULL THEN now() END, version, version, phase, waiting_for, wave, \
                remaining_probes, remaining_device_secs, analysis, \
                1 + (SELECT count(*) FROM log WHERE log.study = new.id) \
            FROM new WHERE NOT EXISTS (\
                SELECT 1 FROM wanted CROSS JOIN LATERAL (\
                    SELECT 1 FROM probes p WHERE p.project = new.project AND p.inputs = wanted.inputs \
                      AND p.state IN ('succeeded', 'infeasible') OFFSET 0) answered \
                WHERE wanted.study = new.id) \
            RETURNING id, project, created_by, name, labels, workload, state, ended_because, ended_detail, phase, \
                waiting_for, revision, priority, evidence_version, advanced_version, remaining_probes, \
                remaining_device_secs, next_event_seq, created_at, updated_at, started_at, ended_at), \
         revised AS (\
            INSERT INTO study_revisions (study, revision, definition) \
            SELECT study.id, study.revision, new.definition FROM study JOIN new ON new.id = study.id), \
         logged AS (\
            INSERT INTO study_events (study, seq, kind, data) SELECT log.study, log.place, log.kind, log.data \
            FROM log JOIN study ON study.id = log.study), \
         advised AS (\
            INSERT INTO recommendations (id, study, revision, topic, grade, body) \
            SELECT advice.id, study.id, study.revision, advice.topic, advice.grade, advice.body \
            FROM study JOIN unnest($23::uuid[], $24::uuid[], $25::text[], $26::text[], $27::jsonb[]) \
                AS advice (study, id, topic, grade, body) ON advice.study = study.id), \
         place AS (SELECT id AS study, revision, 0 AS wave, project, created_by FROM study), \
         {} \
         SELECT study.*, states, device_secs FROM study CROSS JOIN LATERAL (\
            SELECT coalesce(array_agg(p.state), '{{}}') AS states, coalesce(array_agg(p.device_secs), '{{}}') AS device_secs \
            FROM wanted w JOIN probe p ON p.identity = w.identity WHERE w.study = study.id) wave",
        wanted_sql(28),
        made_sql(),
    )
}

/// `digits/mlp`: what lists are filtered by.
pub fn workload_name(definition: &StudyDefinition) -> String {
    format!(
        "{}/{}",
        definition.workload.dataset.name(),
        definition.workload.model.family()
    )
}

fn definition_json(definition: &StudyDefinition) -> Result<serde_json::Value, StoreError> {
    serde_json::to_value(definition).map_err(|error| StoreError::unreadable("definition", error))
}

/// Stores a definition anew when a device has filled in what was open.
pub async fn update_definition(
    conn: &mut AsyncPgConnection,
    id: StudyId,
    revision: i32,
    definition: &StudyDefinition,
) -> Result<(), StoreError> {
    diesel::update(study_revisions::table.find((id.0, revision)))
        .set(study_revisions::definition.eq(definition_json(definition)?))
        .execute(conn)
        .await?;
    Ok(())
}

/// Gives a study its next revision, to be planned from its beginning, whatever state it was in.
pub async fn revise(
    conn: &mut AsyncPgConnection,
    study: &StudyRow,
    definition: &StudyDefinition,
) -> Result<(), StoreError> {
    let labels = serde_json::to_value(&definition.labels)
        .map_err(|error| StoreError::unreadable("labels", error))?;
    let revision = study.revision + 1;
    diesel::insert_into(study_revisions::table)
        .values((
            study_revisions::study.eq(study.id),
            study_revisions::revision.eq(revision),
            study_revisions::definition.eq(definition_json(definition)?),
        ))
        .execute(conn)
        .await?;
    diesel::update(studies::table.find(study.id))
        .set((
            studies::name.eq(&definition.name),
            studies::labels.eq(labels),
            studies::workload.eq(workload_name(definition)),
            studies::priority.eq(definition.priority),
            studies::revision.eq(revision),
            studies::state.eq(StudyState::Running.as_str()),
            studies::ended_because.eq(None::<String>),
            studies::ended_detail.eq(None::<String>),
            studies::ended_at.eq(None::<DateTime<Utc>>),
            studies::phase.eq(""),
            studies::waiting_for.eq(None::<String>),
            studies::wave.eq(0),
            studies::evidence_version.eq(studies::evidence_version + 1),
            studies::updated_at.eq(now),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// A revision of a study's definition.
#[derive(Debug, Clone, Queryable)]
pub struct RevisionRow {
    pub revision: i32,
    pub definition: serde_json::Value,
    pub created_at: DateTime<Utc>,
}

impl RevisionRow {
    /// The definition.
    ///
    /// # Errors
    /// When a newer version stored something this one cannot read.
    pub fn definition(&self) -> Result<StudyDefinition, StoreError> {
        serde_json::from_value(self.definition.clone())
            .map_err(|error| StoreError::unreadable(format!("revision {}", self.revision), error))
    }
}

/// Revisions of a study, the newest first.
pub async fn revisions(
    conn: &mut AsyncPgConnection,
    id: StudyId,
    before: Option<i32>,
    limit: i64,
) -> Result<Vec<RevisionRow>, StoreError> {
    Ok(study_revisions::table
        .filter(study_revisions::study.eq(id.0))
        .filter(study_revisions::revision.lt(before.unwrap_or(i32::MAX)))
        .order(study_revisions::revision.desc())
        .select((
            study_revisions::revision,
            study_revisions::definition,
            study_revisions::created_at,
        ))
        .limit(limit)
        .load(conn)
        .await?)
}

/// One study of a project.
pub async fn find(
    conn: &mut AsyncPgConnection,
    project: &str,
    id: StudyId,
) -> Result<Option<StudyRow>, StoreError> {
    Ok(studies::table
        .find(id.0)
        .filter(studies::project.eq(project))
        .select(StudyRow::as_select())
        .first(conn)
        .await
        .optional()?)
}

/// One study, whatever its project: for the service's own loops.
pub async fn find_anywhere(
    conn: &mut AsyncPgConnection,
    id: StudyId,
) -> Result<Option<StudyRow>, StoreError> {
    Ok(studies::table
        .find(id.0)
        .select(StudyRow::as_select())
        .first(conn)
        .await
        .optional()?)
}

/// Makes the plan due of active studies that wait for nothing: a probe of theirs ended in the very
/// moment in which they linked it, so its end was not theirs to hear. Gives how many.
pub async fn nudge_stuck(conn: &mut AsyncPgConnection) -> Result<usize, StoreError> {
    Ok(statement(
        "UPDATE studies s SET evidence_version = evidence_version + 1 \
         WHERE s.state IN ('queued', 'running') AND s.waiting_for IS NULL \
           AND s.evidence_version = s.advanced_version AND NOT EXISTS (\
            SELECT 1 FROM study_probes sp WHERE sp.study = s.id AND sp.revision = s.revision \
              AND sp.wave = s.wave AND sp.open)",
    )
    .execute(conn)
    .await?)
}

/// Says of active studies whose probes no live worker can run what they wait for, and stops saying
/// so once one can. Gives how many changed. Written so that there is one way to do it, study by study: where Postgres may
/// choose, it joins thousands of studies that came since it looked last as if they were one.
pub async fn refresh_waiting(
    conn: &mut AsyncPgConnection,
    alive_secs: f64,
) -> Result<usize, StoreError> {
    Ok(statement(
        "WITH looked AS MATERIALIZED (\
            SELECT a.id, a.waiting_for AS before, n.now FROM studies a CROSS JOIN LATERAL (\
                SELECT count(*) AS open, min(CASE WHEN p.state = 'queued' AND NOT EXISTS (\
                        SELECT 1 FROM devices e JOIN device_runners r ON r.device = e.id \
                        WHERE e.backend = p.backend AND e.model = p.device_model AND r.runner = p.runner \
                          AND e.last_seen > now() - make_interval(secs => $1) \
                          AND r.last_seen > now() - make_interval(secs => $1)) \
                    THEN 'a live worker with the ' || p.backend || ' device \"' || p.device_model || '\"' \
                        || CASE WHEN p.runner = 'burn' THEN '' ELSE ' that offers the runner \"' || p.runner || '\"' END \
                    END) AS now \
                FROM study_probes sp JOIN probes p ON p.id = sp.probe \
                WHERE sp.study = a.id AND sp.revision = a.revision AND sp.wave = a.wave AND sp.open) n \
            WHERE a.state IN ('queued', 'running') AND n.open > 0), \
         changed AS (\
            UPDATE studies s SET waiting_for = l.now, updated_at = now(), next_event_seq = s.next_event_seq + 1 \
            FROM looked l WHERE s.id = l.id AND s.ended_at IS NULL AND l.before IS DISTINCT FROM l.now \
              AND s.waiting_for IS DISTINCT FROM l.now \
            RETURNING s.id, s.waiting_for, s.next_event_seq - 1 AS seq) \
         INSERT INTO study_events (study, seq, kind, data) \
         SELECT id, seq, $2, jsonb_build_object('waiting_for', waiting_for) FROM changed",
    )
    .bind::<Double, _>(alive_secs)
    .bind::<Text, _>(EventKind::Study.as_str())
    .execute(conn)
    .await?)
}

/// The definition of a study's current revision.
pub async fn definition(
    conn: &mut AsyncPgConnection,
    study: &StudyRow,
) -> Result<StudyDefinition, StoreError> {
    let value: serde_json::Value = study_revisions::table
        .find((study.id, study.revision))
        .select(study_revisions::definition)
        .first(conn)
        .await?;
    serde_json::from_value(value)
        .map_err(|error| StoreError::unreadable(format!("study {}", study.id), error))
}

/// The stored analysis of a study.
pub async fn analysis(
    conn: &mut AsyncPgConnection,
    id: StudyId,
) -> Result<Option<serde_json::Value>, StoreError> {
    Ok(studies::table
        .find(id.0)
        .select(studies::analysis)
        .first(conn)
        .await
        .optional()?
        .flatten())
}

/// What a list of studies is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct StudyFilter {
    pub state: Option<StudyState>,
    /// `digits`, or `digits/mlp`.
    pub workload: Option<String>,
    /// Label names with their values.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Continue after this study (exclusive).
    pub before: Option<StudyId>,
}

/// Studies of a project, newest first.
pub async fn list(
    conn: &mut AsyncPgConnection,
    project: &str,
    filter: &StudyFilter,
    limit: i64,
) -> Result<Vec<StudyRow>, StoreError> {
    let mut query = studies::table
        .filter(studies::project.eq(project))
        .select(StudyRow::as_select())
        .order(studies::id.desc())
        .limit(limit)
        .into_boxed();
    if let Some(state) = filter.state {
        query = query.filter(studies::state.eq(state.as_str()));
    }
    if let Some(workload) = &filter.workload {
        if workload.contains('/') {
            query = query.filter(studies::workload.eq(workload.clone()));
        } else {
            query = query.filter(studies::workload.like(format!("{}/%", escaped(workload))));
        }
    }
    if !filter.labels.is_empty() {
        let labels = serde_json::to_value(&filter.labels)
            .map_err(|error| StoreError::unreadable("labels", error))?;
        query = query.filter(studies::labels.contains(labels));
    }
    if let Some(before) = filter.before {
        query = query.filter(studies::id.lt(before.0));
    }
    Ok(query.load(conn).await?)
}

/// A text with LIKE's own characters taken literally.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '%' | '_' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// Probes of a study's current revision, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCounts {
    pub queued: i64,
    pub running: i64,
    pub succeeded: i64,
    pub infeasible: i64,
    pub failed: i64,
    pub cancelled: i64,
}

impl ProbeCounts {
    /// Counts probes of a state.
    pub(super) fn add(&mut self, state: &str, probes: i64) {
        match state {
            "queued" => self.queued += probes,
            "running" => self.running += probes,
            "succeeded" => self.succeeded += probes,
            "infeasible" => self.infeasible += probes,
            "failed" => self.failed += probes,
            _ => self.cancelled += probes,
        }
    }

    /// Probes that have ended.
    pub fn ended(&self) -> i64 {
        self.succeeded + self.infeasible + self.failed + self.cancelled
    }
}

/// The same with the device-seconds spent, as it is kept of a study that has ended.
#[derive(Debug, Serialize, Deserialize)]
struct Counted {
    probes: ProbeCounts,
    device_secs: f64,
}

#[derive(QueryableByName)]
struct StateCount {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    study: Uuid,
    #[diesel(sql_type = diesel::sql_types::Text)]
    state: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    probes: i64,
    #[diesel(sql_type = diesel::sql_types::Double)]
    device_secs: f64,
}

/// Probe counts and device-seconds spent, for each of the given studies: kept of those that have ended.
pub async fn progress(
    conn: &mut AsyncPgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, (ProbeCounts, f64)>, StoreError> {
    // Of another revision, or since it goes on, they are not its.
    let kept: Vec<(Uuid, Option<serde_json::Value>)> = studies::table
        .filter(studies::id.eq_any(ids))
        .filter(studies::ended_at.is_not_null())
        .filter(studies::counted_revision.eq(studies::revision.nullable()))
        .select((studies::id, studies::counted))
        .load(conn)
        .await?;
    let mut progress: HashMap<_, _> = kept
        .into_iter()
        .filter_map(|(id, counted)| {
            // What a newer version keeps is counted anew.
            let counted: Counted = serde_json::from_value(counted?).ok()?;
            Some((id, (counted.probes, counted.device_secs)))
        })
        .collect();
    let open: Vec<Uuid> = ids
        .iter()
        .copied()
        .filter(|id| !progress.contains_key(id))
        .collect();
    if !open.is_empty() {
        progress.extend(count_probes(conn, &open).await?);
    }
    Ok(progress)
}

/// Keeps the counts of studies that have ended, some at a time, as soon as none of their probes is open. Gives how many.
pub async fn keep_counts(conn: &mut AsyncPgConnection, at_once: i64) -> Result<usize, StoreError> {
    #[derive(QueryableByName)]
    struct Ended {
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        id: Uuid,
        #[diesel(sql_type = Integer)]
        revision: i32,
    }
    let ended: Vec<Ended> = statement(
        "SELECT s.id, s.revision FROM studies s \
         WHERE s.ended_at IS NOT NULL AND s.counted_revision IS DISTINCT FROM s.revision AND NOT EXISTS (\
            SELECT 1 FROM study_probes sp JOIN probes p ON p.id = sp.probe \
            WHERE sp.study = s.id AND sp.revision = s.revision AND p.state IN ('queued', 'running')) \
         ORDER BY s.ended_at LIMIT $1",
    )
    .bind::<BigInt, _>(at_once)
    .load(conn)
    .await?;
    let ids: Vec<Uuid> = ended.iter().map(|study| study.id).collect();
    let counts = count_probes(conn, &ids).await?;
    let mut kept = 0;
    for Ended { id, revision } in ended {
        let (probes, device_secs) = counts.get(&id).copied().unwrap_or_default();
        let counted = serde_json::to_value(Counted {
            probes,
            device_secs,
        })
        .map_err(|error| StoreError::unreadable("counts", error))?;
        // Revised meanwhile, these are not its counts any more.
        let study = studies::table
            .find(id)
            .filter(studies::revision.eq(revision))
            .filter(studies::ended_at.is_not_null());
        kept += diesel::update(study)
            .set((
                studies::counted.eq(counted),
                studies::counted_revision.eq(revision),
            ))
            .execute(conn)
            .await?;
    }
    Ok(kept)
}

async fn count_probes(
    conn: &mut AsyncPgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, (ProbeCounts, f64)>, StoreError> {
    let rows: Vec<StateCount> = statement(
        "SELECT sp.study, p.state, count(*) AS probes, \
                coalesce(sum(p.device_secs) FILTER (WHERE NOT sp.reused OR sp.paid_before), 0) AS device_secs \
         FROM study_probes sp \
         JOIN studies s ON s.id = sp.study AND s.revision = sp.revision \
         JOIN probes p ON p.id = sp.probe \
         WHERE sp.study = ANY($1) GROUP BY sp.study, p.state",
    )
    .bind::<diesel::sql_types::Array<diesel::sql_types::Uuid>, _>(ids)
    .load(conn)
    .await?;
    let mut progress = HashMap::<Uuid, (ProbeCounts, f64)>::new();
    for row in rows {
        let (counts, device_secs) = progress.entry(row.study).or_default();
        *device_secs += row.device_secs;
        counts.add(&row.state, row.probes);
    }
    Ok(progress)
}

/// Studies of a project that have not ended.
pub async fn count_active(conn: &mut AsyncPgConnection, project: &str) -> Result<i64, StoreError> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    // Those of all projects, by the index that has no others: there is one plan for that.
    let row: Count = statement(
        "SELECT count(*) AS count FROM (\
            SELECT project FROM studies WHERE state IN ('queued', 'running') OFFSET 0) active \
         WHERE project = $1",
    )
    .bind::<Text, _>(project)
    .get_result(conn)
    .await?;
    Ok(row.count)
}

/// Takes the row of a study for the rest of the transaction.
pub async fn lock(
    conn: &mut AsyncPgConnection,
    project: &str,
    id: StudyId,
) -> Result<Option<StudyRow>, StoreError> {
    Ok(studies::table
        .find(id.0)
        .filter(studies::project.eq(project))
        .select(StudyRow::as_select())
        .for_update()
        .first(conn)
        .await
        .optional()?)
}

/// Marks a study as cancelled.
pub async fn set_cancelled(conn: &mut AsyncPgConnection, id: StudyId) -> Result<(), StoreError> {
    diesel::update(studies::table.find(id.0))
        .set((
            studies::state.eq(StudyState::Cancelled.as_str()),
            studies::ended_because.eq(EndedBecause::Cancelled.as_str()),
            studies::phase.eq("cancelled"),
            studies::waiting_for.eq(None::<String>),
            studies::remaining_probes.eq(0),
            studies::remaining_device_secs.eq(0.0),
            studies::ended_at.eq(now.into_sql::<diesel::sql_types::Timestamptz>().nullable()),
            studies::updated_at.eq(now),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Deletes a study; its probes stay for others.
pub async fn delete(conn: &mut AsyncPgConnection, id: StudyId) -> Result<(), StoreError> {
    diesel::delete(studies::table.find(id.0))
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes studies that ended long ago, some at a time; their probes stay for others. Gives how many.
pub async fn remove_ended(
    conn: &mut AsyncPgConnection,
    older_than_days: u32,
    at_once: i64,
) -> Result<usize, StoreError> {
    age::remove(
        conn,
        "DELETE FROM studies WHERE id IN (\
            SELECT id FROM studies WHERE ended_at < now() - make_interval(days => $1) \
              AND state NOT IN ('queued', 'running') ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        older_than_days,
        at_once,
    )
    .await
}

/// Active studies whose evidence is ahead of their plan and whose wave is complete. In the middle of a wave there is
/// nothing to plan, so a completion costs no look at everything that came before it.
pub async fn due(conn: &mut AsyncPgConnection, limit: i64) -> Result<Vec<StudyId>, StoreError> {
    #[derive(QueryableByName)]
    struct Due {
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        id: Uuid,
    }
    let rows: Vec<Due> = statement(
        "SELECT s.id FROM studies s WHERE s.state IN ('queued', 'running') \
           AND s.evidence_version > s.advanced_version AND NOT EXISTS (\
            SELECT 1 FROM study_probes sp WHERE sp.study = s.id AND sp.revision = s.revision \
              AND sp.wave = s.wave AND sp.open) \
         ORDER BY s.priority DESC, s.updated_at LIMIT $1",
    )
    .bind::<diesel::sql_types::BigInt, _>(limit)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| StudyId(row.id)).collect())
}

/// An active study that waits for something, and what it asked for.
#[derive(Debug, Clone)]
pub struct WaitingStudy {
    pub id: StudyId,
    pub waiting_for: Option<String>,
    pub device: DeviceChoice,
    pub runner: String,
}

/// Active studies that wait and have nothing to run yet: what others wait for is for [`refresh_waiting`] to say.
pub async fn waiting(conn: &mut AsyncPgConnection) -> Result<Vec<WaitingStudy>, StoreError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        id: Uuid,
        #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
        waiting_for: Option<String>,
        #[diesel(sql_type = diesel::sql_types::Jsonb)]
        device: serde_json::Value,
        #[diesel(sql_type = diesel::sql_types::Text)]
        runner: String,
    }
    let rows: Vec<Row> = statement(
        "SELECT s.id, s.waiting_for, r.definition -> 'device' AS device, \
            coalesce(r.definition #>> '{runner,name}', 'burn') AS runner \
         FROM studies s JOIN study_revisions r ON r.study = s.id AND r.revision = s.revision \
         WHERE s.state IN ('queued', 'running') AND s.waiting_for IS NOT NULL AND NOT EXISTS (\
            SELECT 1 FROM study_probes sp WHERE sp.study = s.id AND sp.revision = s.revision) \
         ORDER BY s.priority DESC, s.id",
    )
    .load(conn)
    .await?;
    let read = |row: Row| match serde_json::from_value(row.device) {
        Ok(device) => Some(WaitingStudy {
            id: StudyId(row.id),
            waiting_for: row.waiting_for,
            device,
            runner: row.runner,
        }),
        // One that a newer version stored must not hold up the others.
        Err(error) => {
            tracing::error!(study = %row.id, %error, "the device of a waiting study cannot be read");
            None
        }
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

/// What an advance writes about the study itself.
#[derive(Debug, Clone)]
pub struct Advanced<'a> {
    /// The evidence version that the plan was made from.
    pub version: i64,
    pub phase: &'a str,
    pub waiting_for: Option<&'a str>,
    /// The wave to be worked on, where a new one begins.
    pub wave: Option<i32>,
    pub remaining_probes: i64,
    pub remaining_device_secs: f64,
    pub analysis: &'a Analysis,
    /// Set when the study has its end.
    pub ended: Option<(EndedBecause, &'a str)>,
}

/// How a study ended, as it is stored; all none while it has not.
struct Ending<'a> {
    state: Option<&'static str>,
    because: Option<&'static str>,
    detail: Option<&'a str>,
}

impl<'a> Advanced<'a> {
    fn ending(&self) -> Ending<'a> {
        Ending {
            state: self.ended.map(|(because, _)| because.state().as_str()),
            because: self.ended.map(|(because, _)| because.as_str()),
            detail: self.ended.map(|(_, detail)| detail),
        }
    }
}

/// Writes an advance if nothing has changed since it was computed. False when something has.
pub async fn set_advanced(
    conn: &mut AsyncPgConnection,
    id: StudyId,
    advanced: &Advanced<'_>,
) -> Result<bool, StoreError> {
    let Ending {
        state,
        because,
        detail,
    } = advanced.ending();
    let updated = statement(
        "UPDATE studies SET advanced_version = $2, phase = $3, waiting_for = $4, \
            remaining_probes = $5, remaining_device_secs = $6, analysis = $7, \
            state = coalesce($8, state), ended_because = $9, ended_detail = $10, \
            ended_at = CASE WHEN $8 IS NULL THEN NULL ELSE now() END, \
            wave = coalesce($11, wave), updated_at = now() \
         WHERE id = $1 AND evidence_version = $2 AND advanced_version <= $2 \
           AND state IN ('queued', 'running')",
    )
    .bind::<diesel::sql_types::Uuid, _>(id.0)
    .bind::<BigInt, _>(advanced.version)
    .bind::<diesel::sql_types::Text, _>(advanced.phase)
    .bind::<diesel::sql_types::Nullable<diesel::sql_types::Text>, _>(advanced.waiting_for)
    .bind::<BigInt, _>(advanced.remaining_probes)
    .bind::<diesel::sql_types::Double, _>(advanced.remaining_device_secs)
    .bind::<Jsonb, _>(Json(advanced.analysis))
    .bind::<diesel::sql_types::Nullable<diesel::sql_types::Text>, _>(state)
    .bind::<diesel::sql_types::Nullable<diesel::sql_types::Text>, _>(because)
    .bind::<diesel::sql_types::Nullable<diesel::sql_types::Text>, _>(detail)
    .bind::<diesel::sql_types::Nullable<Integer>, _>(advanced.wave)
    .execute(conn)
    .await?;
    Ok(updated == 1)
}

/// Makes the plan of a study due: something that it waited for had ended already when it was linked, so no completion
/// will come.
pub async fn make_due(conn: &mut AsyncPgConnection, id: StudyId) -> Result<(), StoreError> {
    diesel::update(studies::table.find(id.0))
        .set(studies::evidence_version.eq(studies::evidence_version + 1))
        .execute(conn)
        .await?;
    Ok(())
}

//! Probes: linking a study's waves, reading them back as evidence, listing them.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::QueryFragment;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Jsonb, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::age;
use super::answers::{self, Known};
use super::error::StoreError;
use super::json::Json;
use super::schema::{measurements, probes, study_probes};
use super::statement::{Statement, statement};
use super::studies::{ProbeCounts, StudyRow};
use crate::analysis::{Evidence, MemoryPrediction, ProbeRecord};
use crate::probe::{FailureReason, InfeasibleReason, Metric, ProbeKind, ProbeSpec, ProbeState};
use crate::study::{Bytes, ProbeId, StudyId};

type SqlUuid = diesel::sql_types::Uuid;

/// A probe to be linked to a study, and made if its project has none like it.
#[derive(Debug, Clone)]
pub struct NewProbe {
    /// Hash of everything that it is told.
    pub identity: String,
    /// Hash of what its figures depend on.
    pub inputs: String,
    /// Hash of what its course depends on, where it is a training run.
    pub course: Option<String>,
    pub spec: ProbeSpec,
    pub why: String,
    pub prediction: Option<MemoryPrediction>,
}

/// Where a wave belongs.
#[derive(Debug, Clone, Copy)]
pub struct WavePlace<'a> {
    pub project: &'a str,
    pub created_by: &'a str,
    pub study: StudyId,
    pub revision: i32,
    pub wave: i32,
}

/// A probe as it was when it was linked.
#[derive(QueryableByName)]
struct Linked {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    state: String,
    /// Device time of earlier attempts, seconds.
    #[diesel(sql_type = Double)]
    device_secs: f64,
}

impl Linked {
    fn has_ended(&self) -> bool {
        ProbeState::parse(&self.state).is_some_and(ProbeState::has_ended)
    }
}

/// What a wave came to when it was linked.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkedWave {
    /// In which states its probes are.
    pub counts: ProbeCounts,
    /// Device time that is the study's already: of attempts at what had failed or was cancelled, and is open again.
    pub device_secs: f64,
}

impl LinkedWave {
    /// Counts a probe. What has ended was paid for by others.
    pub(super) fn add(&mut self, state: &str, device_secs: f64) {
        self.counts.add(state, 1);
        if !ProbeState::parse(state).is_some_and(ProbeState::has_ended) {
            self.device_secs += device_secs;
        }
    }
}

/// Queues a probe again that had failed or was cancelled; an ended or an open one stays as it is. The update that
/// changes nothing makes the row visible to RETURNING, and waits for whoever ends the probe just now.
const REVIVE: &str = "\
    state = CASE WHEN p.state IN ('failed', 'cancelled') THEN 'queued' ELSE p.state END, \
    crashes = CASE WHEN p.state IN ('failed', 'cancelled') THEN 0 ELSE p.crashes END, \
    losses = CASE WHEN p.state IN ('failed', 'cancelled') THEN 0 ELSE p.losses END, \
    ended_at = CASE WHEN p.state IN ('failed', 'cancelled') THEN NULL ELSE p.ended_at END, \
    reason = CASE WHEN p.state IN ('failed', 'cancelled') THEN NULL ELSE p.reason END, \
    detail = CASE WHEN p.state IN ('failed', 'cancelled') THEN NULL ELSE p.detail END, \
    cancel_requested = false";

/// Stores a wave. A probe that the project already has is linked, not made again, and so is one that was told
/// something else and has found what is asked for; one whose figures a run to another target tells is stored as
/// ended; one that failed or was cancelled is queued again with fresh attempts. Some may have ended already.
pub async fn link_wave(
    conn: &mut AsyncPgConnection,
    place: WavePlace<'_>,
    wave: &[NewProbe],
) -> Result<LinkedWave, StoreError> {
    let mut came_to = LinkedWave::default();
    let known = answers::find(conn, place.project, None, wave).await?;
    // In one order for everybody: two studies that link the same probes must not wait for each other. Rows that are
    // there come first, by their ids, then what other runs tell, then what nothing is known of, each by its identity. That two
    // studies know different things of the same two probes can still make them wait: Postgres ends one, which is tried again.
    let mut wave: Vec<(i32, &NewProbe, Option<Known>)> = (0_i32..)
        .zip(wave.iter().zip(known))
        .map(|(position, (new, known))| (position, new, known))
        .collect();
    wave.sort_by(|(_, a, found_a), (_, b, found_b)| {
        let row = |known: &Option<Known>| match known {
            Some(Known::Answered(answer)) => Some(answer.id),
            Some(Known::Read(_)) | None => None,
        };
        let (a_row, b_row) = (row(found_a), row(found_b));
        (a_row.is_none(), a_row, &a.identity).cmp(&(b_row.is_none(), b_row, &b.identity))
    });
    let mut unknown = Vec::new();
    for (position, new, known) in wave {
        let (found, differs) = match &known {
            Some(Known::Answered(answer)) => {
                (revive(conn, answer.id).await?, answer.spec != new.spec)
            }
            Some(Known::Read(reading)) => {
                let id = answers::insert_reading(conn, place, new, reading).await?;
                let linked = id.map(|id| Linked {
                    id,
                    state: reading.state().as_str().to_owned(),
                    device_secs: 0.0,
                });
                (linked, false)
            }
            None => (None, false),
        };
        let Some(linked) = found else {
            unknown.push((place.study, position, new));
            continue;
        };
        let has_ended = linked.has_ended();
        came_to.add(&linked.state, linked.device_secs);
        let predicted = |of| predicted(new, of);
        let spec = differs.then(|| serde_json::to_value(&new.spec)).transpose();
        let spec = spec.map_err(|error| StoreError::unreadable("probe spec", error))?;
        diesel::insert_into(study_probes::table)
            .values((
                study_probes::study.eq(place.study.0),
                study_probes::revision.eq(place.revision),
                study_probes::probe.eq(linked.id),
                study_probes::wave.eq(place.wave),
                study_probes::position.eq(position),
                study_probes::reused.eq(has_ended),
                study_probes::open.eq(!has_ended),
                study_probes::spec.eq(spec),
                study_probes::why.eq(&new.why),
                study_probes::predicted_bytes.eq(predicted(|it| it.peak_bytes)),
                study_probes::predicted_lower_bytes.eq(predicted(|it| it.ci_lower)),
                study_probes::predicted_upper_bytes.eq(predicted(|it| it.ci_upper)),
            ))
            .execute(conn)
            .await?;
    }
    for linked in make_or_find(conn, place, unknown).await? {
        came_to.add(&linked.state, linked.device_secs);
    }
    if place.revision == 1 {
        return Ok(came_to);
    }
    // What an earlier revision of the study has made cost this study something.
    statement(
        "UPDATE study_probes sp SET paid_before = true \
         WHERE sp.study = $1 AND sp.revision = $2 AND sp.wave = $3 AND sp.reused AND EXISTS (\
            SELECT 1 FROM study_probes o WHERE o.study = sp.study AND o.probe = sp.probe \
              AND o.revision < sp.revision AND (o.paid_before OR NOT o.reused))",
    )
    .bind::<SqlUuid, _>(place.study.0)
    .bind::<Integer, _>(place.revision)
    .bind::<Integer, _>(place.wave)
    .execute(conn)
    .await?;
    Ok(came_to)
}

/// A figure of what is predicted of a probe's memory.
fn predicted(new: &NewProbe, of: fn(&MemoryPrediction) -> Bytes) -> Option<i64> {
    let bytes = new.prediction.as_ref().map(|it| of(it).0);
    bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// Probes by what they are told: made, or found; and linked as they are.
async fn make_or_find(
    conn: &mut AsyncPgConnection,
    place: WavePlace<'_>,
    wanted: Vec<(StudyId, i32, &NewProbe)>,
) -> Result<Vec<Linked>, StoreError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let made = statement(format!(
        "WITH place AS (SELECT $1 AS study, $2 AS revision, $3 AS wave, $4 AS project, $5 AS created_by), {}, {} \
         SELECT id, state, device_secs FROM probe",
        wanted_sql(6),
        made_sql()
    ))
    .bind::<SqlUuid, _>(place.study.0)
    .bind::<Integer, _>(place.revision)
    .bind::<Integer, _>(place.wave)
    .bind::<Text, _>(place.project)
    .bind::<Text, _>(place.created_by);
    Ok(Wanted::of(wanted).bound_to(made).load(conn).await?)
}

/// Part of a statement: `wanted` are the probes whose columns are bound from this parameter on.
pub(super) fn wanted_sql(first: usize) -> String {
    let columns = [
        ("study", "uuid"),
        ("id", "uuid"),
        ("position", "int"),
        ("identity", "text"),
        ("inputs", "text"),
        ("kind", "text"),
        ("batch_size", "bigint"),
        ("backend", "text"),
        ("device_model", "text"),
        ("exclusive", "bool"),
        ("spec", "jsonb"),
        ("course", "text"),
        ("runner", "text"),
        ("why", "text"),
        ("peak", "bigint"),
        ("lower", "bigint"),
        ("upper", "bigint"),
    ];
    let bound = (first..).zip(columns);
    let bound: Vec<String> = bound
        .map(|(at, (_, of))| format!("${at}::{of}[]"))
        .collect();
    let names = columns.map(|(name, _)| name);
    format!(
        "wanted AS MATERIALIZED (SELECT * FROM unnest({}) AS w ({}))",
        bound.join(", "),
        names.join(", ")
    )
}

/// Parts of a statement: `probe` is what is made or found of `wanted`, `linked` links that where another part, `place`, says.
/// What is wanted for a study that has no place is left out. Probes are made in the order of `wanted`, whichever their studies:
/// `OFFSET 0` keeps the planner from going by study.
pub(super) fn made_sql() -> String {
    format!(
        "probe AS (\
            INSERT INTO probes AS p (id, project, created_by, identity, inputs, kind, batch_size, backend, device_model, \
                exclusive, spec, course, runner) \
            SELECT w.id, place.project, place.created_by, w.identity, w.inputs, w.kind, w.batch_size, w.backend, \
                w.device_model, w.exclusive, w.spec, w.course, w.runner \
            FROM wanted w CROSS JOIN LATERAL (\
                SELECT project, created_by FROM place WHERE place.study = w.study OFFSET 0) place \
            ON CONFLICT (project, identity) DO UPDATE SET {REVIVE} \
            RETURNING id, identity, state, device_secs, state NOT IN ('queued', 'running') AS ended), \
         linked AS (\
            INSERT INTO study_probes (study, revision, wave, position, probe, reused, open, why, predicted_bytes, \
                predicted_lower_bytes, predicted_upper_bytes) \
            SELECT place.study, place.revision, place.wave, w.position, p.id, p.ended, NOT p.ended, w.why, w.peak, \
                w.lower, w.upper \
            FROM wanted w JOIN place ON place.study = w.study JOIN probe p ON p.identity = w.identity)"
    )
}

/// Probes as columns.
pub(super) struct Wanted<'a> {
    studies: Vec<Uuid>,
    positions: Vec<i32>,
    /// In one order for everybody: two studies that link the same probes must not wait for each other.
    probes: Vec<&'a NewProbe>,
}

impl<'a> Wanted<'a> {
    /// Of each: who wants it, and at which place of its wave.
    pub(super) fn of(mut wanted: Vec<(StudyId, i32, &'a NewProbe)>) -> Self {
        wanted.sort_by(|(_, _, a), (_, _, b)| a.identity.cmp(&b.identity));
        let studies = wanted.iter().map(|(study, _, _)| study.0).collect();
        let places = wanted.into_iter().map(|(_, position, new)| (position, new));
        let (positions, probes) = places.unzip();
        Self {
            studies,
            positions,
            probes,
        }
    }

    /// Binds them to a statement with [`wanted_sql`], as its last.
    pub(super) fn bound_to<Bound: QueryFragment<Pg>>(
        self,
        statement: Statement<Bound>,
    ) -> Statement<impl QueryFragment<Pg>> {
        fn each<'a, T>(probes: &[&'a NewProbe], of: impl Fn(&'a NewProbe) -> T) -> Vec<T> {
            probes.iter().map(|new| of(new)).collect()
        }
        let probes = &self.probes;
        let batch_size = |new: &NewProbe| i64::try_from(new.spec.batch_size.0).unwrap_or(i64::MAX);
        statement
            .bind::<Array<SqlUuid>, _>(self.studies)
            .bind::<Array<SqlUuid>, _>(each(probes, |_| Uuid::now_v7()))
            .bind::<Array<Integer>, _>(self.positions)
            .bind::<Array<Text>, _>(each(probes, |new| new.identity.as_str()))
            .bind::<Array<Text>, _>(each(probes, |new| new.inputs.as_str()))
            .bind::<Array<Text>, _>(each(probes, |new| new.spec.kind().as_str()))
            .bind::<Array<BigInt>, _>(each(probes, batch_size))
            .bind::<Array<Text>, _>(each(probes, |new| new.spec.device.backend.as_str()))
            .bind::<Array<Text>, _>(each(probes, |new| new.spec.device.model.as_str()))
            .bind::<Array<Bool>, _>(each(probes, |new| new.spec.kind().is_exclusive()))
            .bind::<Array<Jsonb>, _>(each(probes, |new| Json(&new.spec)))
            .bind::<Array<Nullable<Text>>, _>(each(probes, |new| new.course.as_deref()))
            .bind::<Array<Text>, _>(each(probes, |new| new.spec.runner.name.as_str()))
            .bind::<Array<Text>, _>(each(probes, |new| new.why.as_str()))
            .bind::<Array<Nullable<BigInt>>, _>(each(probes, |new| {
                predicted(new, |it| it.peak_bytes)
            }))
            .bind::<Array<Nullable<BigInt>>, _>(each(probes, |new| {
                predicted(new, |it| it.ci_lower)
            }))
            .bind::<Array<Nullable<BigInt>>, _>(each(probes, |new| {
                predicted(new, |it| it.ci_upper)
            }))
    }
}

/// A probe by its id, to be linked; none when it has been removed meanwhile.
async fn revive(conn: &mut AsyncPgConnection, id: Uuid) -> Result<Option<Linked>, StoreError> {
    Ok(statement(format!(
        "UPDATE probes p SET {REVIVE} WHERE id = $1 RETURNING id, state, device_secs"
    ))
    .bind::<SqlUuid, _>(id)
    .get_result(conn)
    .await
    .optional()?)
}

/// A figure of a whole probe.
#[derive(QueryableByName)]
pub(super) struct Figure {
    #[diesel(sql_type = SqlUuid)]
    probe: Uuid,
    #[diesel(sql_type = Text)]
    metric: String,
    #[diesel(sql_type = diesel::sql_types::Double)]
    value: f64,
}

pub(super) fn figures_by_probe(figures: Vec<Figure>) -> HashMap<Uuid, BTreeMap<Metric, f64>> {
    let mut by_probe = HashMap::<Uuid, BTreeMap<Metric, f64>>::new();
    for figure in figures {
        if let Some(metric) = Metric::parse(&figure.metric) {
            by_probe
                .entry(figure.probe)
                .or_default()
                .insert(metric, figure.value);
        }
    }
    by_probe
}

/// Cancels the probes that only earlier revisions of a study want: queued ones at once, and running ones of the
/// kinds given by request. What the new revision comes to want is queued again when it is linked.
pub async fn cancel_superseded(
    conn: &mut AsyncPgConnection,
    study: StudyId,
    kinds: &[ProbeKind],
) -> Result<(), StoreError> {
    const SUPERSEDED: &str = "\
        SELECT p.id FROM probes p JOIN study_probes sp ON sp.probe = p.id \
        WHERE sp.study = $1 AND (p.state = 'queued' OR (p.state = 'running' AND p.kind = ANY($2))) \
          AND NOT EXISTS (\
            SELECT 1 FROM study_probes o JOIN studies s ON s.id = o.study AND s.revision = o.revision \
            WHERE o.probe = p.id AND s.state IN ('queued', 'running')) \
        ORDER BY p.id FOR UPDATE OF p";
    let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
    statement(format!(
        "UPDATE probes SET \
            state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END, \
            ended_at = CASE WHEN state = 'queued' THEN now() ELSE ended_at END, \
            cancel_requested = (state = 'running') \
         WHERE id IN ({SUPERSEDED})"
    ))
    .bind::<SqlUuid, _>(study.0)
    .bind::<diesel::sql_types::Array<Text>, _>(kinds)
    .execute(conn)
    .await?;
    Ok(())
}

/// Cancels the probes that only this study wants: queued ones at once, running ones by request.
pub async fn cancel_unwanted(
    conn: &mut AsyncPgConnection,
    study: StudyId,
) -> Result<(), StoreError> {
    const UNWANTED: &str = "\
        SELECT p.id FROM probes p JOIN study_probes sp ON sp.probe = p.id \
        WHERE sp.study = $1 AND p.state IN ('queued', 'running') AND NOT EXISTS (\
            SELECT 1 FROM study_probes o JOIN studies s ON s.id = o.study AND s.revision = o.revision \
            WHERE o.probe = p.id AND o.study <> $1 AND s.state IN ('queued', 'running')) \
        ORDER BY p.id FOR UPDATE OF p";
    statement(format!(
        "UPDATE probes SET \
            state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END, \
            ended_at = CASE WHEN state = 'queued' THEN now() ELSE ended_at END, \
            cancel_requested = (state = 'running') \
         WHERE id IN ({UNWANTED})"
    ))
    .bind::<SqlUuid, _>(study.0)
    .execute(conn)
    .await?;
    Ok(())
}

/// Queues cancelled probes that an active study wants: it linked them in the very moment in which
/// another one gave them up. Gives how many.
pub async fn requeue_wanted(conn: &mut AsyncPgConnection) -> Result<usize, StoreError> {
    Ok(statement(
        "UPDATE probes SET state = 'queued', ended_at = NULL, cancel_requested = false WHERE id IN (\
            SELECT p.id FROM studies s \
            JOIN study_probes sp ON sp.study = s.id AND sp.revision = s.revision AND sp.wave = s.wave \
            JOIN probes p ON p.id = sp.probe AND p.state = 'cancelled' \
            WHERE s.state IN ('queued', 'running') FOR UPDATE OF p SKIP LOCKED)",
    )
    .execute(conn)
    .await?)
}

/// A probe as stored, with its place in a study.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = probes, check_for_backend(diesel::pg::Pg))]
pub struct ProbeRow {
    pub id: Uuid,
    pub kind: String,
    pub batch_size: i64,
    pub spec: serde_json::Value,
    pub state: String,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub attempt: i32,
    pub crashes: i32,
    pub losses: i32,
    pub worker: Option<String>,
    pub device_model: String,
    pub cancel_requested: bool,
    pub progress_phase: Option<String>,
    pub progress_fraction: Option<f64>,
    pub stderr_tail: Option<String>,
    pub device_secs: f64,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub read_from: Option<Uuid>,
}

/// Where a probe stands in a study's plan.
#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = study_probes, check_for_backend(diesel::pg::Pg))]
pub struct PlaceRow {
    pub wave: i32,
    pub position: i32,
    pub reused: bool,
    pub why: String,
    pub predicted_bytes: Option<i64>,
    pub predicted_lower_bytes: Option<i64>,
    pub predicted_upper_bytes: Option<i64>,
    pub spec: Option<serde_json::Value>,
    pub paid_before: bool,
}

impl PlaceRow {
    /// The peak of memory that was predicted when the probe was planned.
    pub fn prediction(&self) -> Option<MemoryPrediction> {
        let bytes = |bytes: i64| Bytes(u64::try_from(bytes).unwrap_or(0));
        Some(MemoryPrediction {
            peak_bytes: bytes(self.predicted_bytes?),
            ci_lower: bytes(self.predicted_lower_bytes?),
            ci_upper: bytes(self.predicted_upper_bytes?),
        })
    }
}

/// What a list of probes is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct ProbeFilter {
    pub state: Option<ProbeState>,
    pub kind: Option<ProbeKind>,
    /// Continue after this (wave, position).
    pub after: Option<(i32, i32)>,
}

/// Probes of a study's current revision in plan order.
pub async fn list(
    conn: &mut AsyncPgConnection,
    study: &StudyRow,
    filter: &ProbeFilter,
    limit: i64,
) -> Result<Vec<(PlaceRow, ProbeRow)>, StoreError> {
    let mut query = study_probes::table
        .inner_join(probes::table)
        .filter(study_probes::study.eq(study.id))
        .filter(study_probes::revision.eq(study.revision))
        .select((PlaceRow::as_select(), ProbeRow::as_select()))
        .order((study_probes::wave, study_probes::position))
        .limit(limit)
        .into_boxed();
    if let Some(state) = filter.state {
        query = query.filter(probes::state.eq(state.as_str()));
    }
    if let Some(kind) = filter.kind {
        query = query.filter(probes::kind.eq(kind.as_str()));
    }
    if let Some((wave, position)) = filter.after {
        query = query.filter(
            study_probes::wave.gt(wave).or(study_probes::wave
                .eq(wave)
                .and(study_probes::position.gt(position))),
        );
    }
    Ok(query.load(conn).await?)
}

/// One probe of a project.
pub async fn find(
    conn: &mut AsyncPgConnection,
    project: &str,
    id: ProbeId,
) -> Result<Option<ProbeRow>, StoreError> {
    Ok(probes::table
        .find(id.0)
        .filter(probes::project.eq(project))
        .select(ProbeRow::as_select())
        .first(conn)
        .await
        .optional()?)
}

/// Studies that a probe belongs to.
pub async fn studies_of(
    conn: &mut AsyncPgConnection,
    id: ProbeId,
) -> Result<Vec<StudyId>, StoreError> {
    let ids: Vec<Uuid> = study_probes::table
        .filter(study_probes::probe.eq(id.0))
        .select(study_probes::study)
        .distinct()
        .order(study_probes::study)
        .load(conn)
        .await?;
    Ok(ids.into_iter().map(StudyId).collect())
}

/// Everything that is known about a study's current revision, in plan order.
pub async fn evidence(
    conn: &mut AsyncPgConnection,
    study: &StudyRow,
) -> Result<Evidence, StoreError> {
    let figures: Vec<Figure> = statement(
        "SELECT m.probe, m.metric, m.value FROM study_probes sp \
         JOIN probes p ON p.id = sp.probe \
         JOIN measurements m ON m.probe = p.id AND m.attempt = p.attempt \
         WHERE sp.study = $1 AND sp.revision = $2 AND m.step IS NULL \
           AND p.state IN ('succeeded', 'infeasible')",
    )
    .bind::<SqlUuid, _>(study.id)
    .bind::<Integer, _>(study.revision)
    .load(conn)
    .await?;
    let mut by_probe = figures_by_probe(figures);
    let rows = list(conn, study, &ProbeFilter::default(), i64::MAX).await?;
    let mut records = Vec::with_capacity(rows.len());
    for (place, row) in rows {
        records.push(ProbeRecord {
            id: ProbeId(row.id),
            spec: serde_json::from_value(place.spec.clone().unwrap_or(row.spec))
                .map_err(|error| StoreError::unreadable(format!("probe {}", row.id), error))?,
            state: match ProbeState::parse(&row.state) {
                // The study wants it, so `requeue_wanted` is about to queue it again.
                Some(ProbeState::Cancelled) => ProbeState::Queued,
                Some(state) => state,
                None => {
                    return Err(StoreError::unreadable(
                        format!("probe {}", row.id),
                        "its state",
                    ));
                }
            },
            infeasible: row.reason.as_deref().and_then(InfeasibleReason::parse),
            failure: row.reason.as_deref().and_then(FailureReason::parse),
            detail: row.detail,
            wave: u32::try_from(place.wave).unwrap_or(0),
            position: u32::try_from(place.position).unwrap_or(0),
            reused: place.reused && !place.paid_before,
            prediction: place.prediction(),
            device_secs: row.device_secs,
            figures: by_probe.remove(&row.id).unwrap_or_default(),
        });
    }
    Ok(Evidence { probes: records })
}

/// One measured figure with the probe it belongs to.
#[derive(Debug, Clone, Queryable, QueryableByName)]
pub struct MeasurementRow {
    #[diesel(sql_type = SqlUuid)]
    pub probe: Uuid,
    #[diesel(sql_type = Integer)]
    pub wave: i32,
    #[diesel(sql_type = Integer)]
    pub position: i32,
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub batch_size: i64,
    #[diesel(sql_type = Integer)]
    pub seq: i32,
    #[diesel(sql_type = Text)]
    pub metric: String,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::BigInt>)]
    pub step: Option<i64>,
    #[diesel(sql_type = diesel::sql_types::Double)]
    pub value: f64,
    #[diesel(sql_type = Text)]
    pub unit: String,
    #[diesel(sql_type = diesel::sql_types::Double)]
    pub elapsed_secs: f64,
}

/// What a list of measurements is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct MeasurementFilter {
    pub metric: Option<String>,
    pub kind: Option<ProbeKind>,
    pub batch_size: Option<i64>,
    /// Continue after this (wave, position, seq).
    pub after: Option<(i32, i32, i32)>,
}

/// Measurements of the completing attempts of a study's current revision, in plan order.
pub async fn list_measurements(
    conn: &mut AsyncPgConnection,
    study: &StudyRow,
    filter: &MeasurementFilter,
    limit: i64,
) -> Result<Vec<MeasurementRow>, StoreError> {
    let mut query = study_probes::table
        .inner_join(
            probes::table.inner_join(
                measurements::table.on(measurements::probe
                    .eq(probes::id)
                    .and(measurements::attempt.eq(probes::attempt))),
            ),
        )
        .filter(study_probes::study.eq(study.id))
        .filter(study_probes::revision.eq(study.revision))
        .filter(probes::state.eq_any(["succeeded", "infeasible"]))
        .select((
            probes::id,
            study_probes::wave,
            study_probes::position,
            probes::kind,
            probes::batch_size,
            measurements::seq,
            measurements::metric,
            measurements::step,
            measurements::value,
            measurements::unit,
            measurements::elapsed_secs,
        ))
        .order((
            study_probes::wave,
            study_probes::position,
            measurements::seq,
        ))
        .limit(limit)
        .into_boxed();
    if let Some(metric) = &filter.metric {
        query = query.filter(measurements::metric.eq(metric.clone()));
    }
    if let Some(kind) = filter.kind {
        query = query.filter(probes::kind.eq(kind.as_str()));
    }
    if let Some(batch_size) = filter.batch_size {
        query = query.filter(probes::batch_size.eq(batch_size));
    }
    if let Some((wave, position, seq)) = filter.after {
        let later_in_probe = study_probes::position
            .eq(position)
            .and(measurements::seq.gt(seq));
        query = query.filter(
            study_probes::wave.gt(wave).or(study_probes::wave
                .eq(wave)
                .and(study_probes::position.gt(position).or(later_in_probe))),
        );
    }
    Ok(query.load(conn).await?)
}

/// Removes probes that no study links any more and that ended long ago. Gives how many.
pub async fn remove_unlinked(
    conn: &mut AsyncPgConnection,
    older_than_days: u32,
    at_once: i64,
) -> Result<usize, StoreError> {
    age::remove(
        conn,
        "DELETE FROM probes WHERE id IN (\
            SELECT p.id FROM probes p WHERE p.ended_at < now() - make_interval(days => $1) \
              AND NOT EXISTS (SELECT 1 FROM study_probes sp WHERE sp.probe = p.id) LIMIT $2)",
        older_than_days,
        at_once,
    )
    .await
}

/// Removes events of studies that are older than they are kept. Gives how many.
pub async fn remove_old_events(
    conn: &mut AsyncPgConnection,
    older_than_days: u32,
    at_once: i64,
) -> Result<usize, StoreError> {
    age::remove_rows(
        conn,
        ("study_events", "created_at"),
        older_than_days,
        at_once,
    )
    .await
}

//! What is known already of probes that are wanted: one that has ended and answers, or a training run to another
//! target from whose evaluations the figures are read.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Double, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::error::StoreError;
use super::json::Json;
use super::probes::{Figure, NewProbe, WavePlace, figures_by_probe};
use super::statement::statement;
use crate::analysis::ProbeRecord;
use crate::probe::course::{Evaluations, Retraced, retrace};
use crate::probe::inputs::{self, Ended};
use crate::probe::{InfeasibleReason, Metric, ProbeSpec, ProbeState, Task};
use crate::study::{Bytes, ProbeId, StudyId};

type SqlUuid = diesel::sql_types::Uuid;

/// Figures of a whole run that a run to another target has too.
const COMMON: [Metric; 4] = [
    Metric::FirstLoss,
    Metric::ChanceLoss,
    Metric::IrreducibleLoss,
    // Of the whole run; to be measured on the part of it, its clock would have to be kept.
    Metric::EvaluationShare,
];

/// What is known of a probe that is wanted.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// It, or one that has found what is asked for, has ended.
    Answered(Box<Answer>),
    /// It was not run, and a run to another target tells what it would have found.
    Read(Reading),
}

/// A probe that has ended and is the answer to one that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub id: Uuid,
    pub spec: ProbeSpec,
    state: ProbeState,
    infeasible: Option<InfeasibleReason>,
    detail: Option<String>,
    device_secs: f64,
    /// Whether the study that asks has made it itself.
    is_own: bool,
}

/// Figures read from the evaluations of a run to another target.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// The run.
    pub source: Uuid,
    attempt: i32,
    /// The last step that is taken over; none when it diverged, for then all are.
    steps: Option<u64>,
    infeasible: Option<InfeasibleReason>,
    detail: Option<String>,
    /// Seconds that the run had taken until then.
    elapsed_secs: f64,
    /// Its figures: read, or common to all runs of the course.
    figures: BTreeMap<Metric, f64>,
}

#[derive(QueryableByName)]
struct AnswerRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    inputs: String,
    #[diesel(sql_type = Text)]
    identity: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<Text>)]
    reason: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    detail: Option<String>,
    #[diesel(sql_type = diesel::sql_types::Jsonb)]
    spec: serde_json::Value,
    #[diesel(sql_type = Double)]
    device_secs: f64,
    #[diesel(sql_type = Nullable<Double>)]
    peak: Option<f64>,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    is_own: bool,
}

/// For each probe wanted, what the project knows of it. `study` is the one that asks.
pub(super) async fn find(
    conn: &mut AsyncPgConnection,
    project: &str,
    study: Option<StudyId>,
    wanted: &[NewProbe],
) -> Result<Vec<Option<Known>>, StoreError> {
    let answers = find_answers(conn, project, study, wanted).await?;
    let open: Vec<&NewProbe> = wanted
        .iter()
        .zip(&answers)
        .filter(|(new, answer)| answer.is_none() && new.course.is_some())
        .map(|(new, _)| new)
        .collect();
    let courses = if open.is_empty() {
        HashMap::new()
    } else {
        find_courses(conn, project, &open).await?
    };
    Ok(wanted
        .iter()
        .zip(answers)
        .map(|(new, answer)| match answer {
            Some(answer) => Some(Known::Answered(Box::new(answer))),
            None => {
                let courses = courses.get(new.course.as_ref()?)?;
                let reading = courses.iter().find_map(|course| course.read(&new.spec));
                reading.map(Known::Read)
            }
        })
        .collect())
}

/// For each probe wanted, one of the project's that has ended and answers it. The very same one comes first, then the one that
/// ended last. Each is looked up apart, so that a plan can be kept.
async fn find_answers(
    conn: &mut AsyncPgConnection,
    project: &str,
    study: Option<StudyId>,
    wanted: &[NewProbe],
) -> Result<Vec<Option<Answer>>, StoreError> {
    let hashes: BTreeSet<&str> = wanted.iter().map(|new| new.inputs.as_str()).collect();
    let hashes: Vec<&str> = hashes.into_iter().collect();
    let rows: Vec<AnswerRow> = statement(
        "SELECT p.id, p.inputs, p.identity, p.state, p.reason, p.detail, p.spec, p.device_secs, \
            CASE WHEN p.kind IN ('smoke', 'memory', 'confirmation') THEN (\
               SELECT m.value FROM measurements m WHERE m.probe = p.id AND m.attempt = p.attempt \
               AND m.metric = 'peak_memory' AND m.step IS NULL LIMIT 1) END AS peak, \
            EXISTS (SELECT 1 FROM study_probes sp WHERE sp.study = $3 AND sp.probe = p.id \
               AND (sp.paid_before OR NOT sp.reused)) AS is_own \
         FROM unnest($2::text[]) AS asked (inputs) CROSS JOIN LATERAL (\
            SELECT p.id, p.inputs, p.identity, p.state, p.reason, p.detail, p.spec, p.device_secs, p.kind, p.attempt, p.ended_at \
            FROM probes p WHERE p.project = $1 AND p.inputs = asked.inputs \
              AND p.state IN ('succeeded', 'infeasible') OFFSET 0) p \
         ORDER BY p.ended_at DESC, p.id",
    )
    .bind::<Text, _>(project)
    .bind::<Array<Text>, _>(hashes)
    .bind::<Nullable<SqlUuid>, _>(study.map(|id| id.0))
    .load(conn)
    .await?;
    let mut by_inputs = HashMap::<String, Vec<(String, Option<Bytes>, Answer)>>::new();
    for row in rows {
        // What a newer version stored may be of a kind that this one does not know: then it answers nothing.
        let (Ok(spec), Some(state)) = (
            serde_json::from_value(row.spec),
            ProbeState::parse(&row.state),
        ) else {
            continue;
        };
        let peak = row.peak.map(|bytes| Bytes(bytes.max(0.0) as u64));
        let answer = Answer {
            id: row.id,
            spec,
            state,
            infeasible: row.reason.as_deref().and_then(InfeasibleReason::parse),
            detail: row.detail,
            device_secs: row.device_secs,
            is_own: row.is_own,
        };
        by_inputs
            .entry(row.inputs)
            .or_default()
            .push((row.identity, peak, answer));
    }
    Ok(wanted
        .iter()
        .map(|new| {
            let rows = by_inputs.get(&new.inputs)?;
            let answers = |(_, peak, answer): &&(String, Option<Bytes>, Answer)| {
                let ended = Ended {
                    spec: answer.spec.clone(),
                    state: answer.state,
                    infeasible: answer.infeasible,
                    peak: *peak,
                };
                inputs::answers(&ended, &new.spec)
            };
            let same = rows.iter().find(|(identity, ..)| *identity == new.identity);
            let found = same.filter(answers).or_else(|| rows.iter().find(answers));
            found.map(|(_, _, answer)| answer.clone())
        })
        .collect())
}

/// A training run that has ended, with its evaluations.
#[derive(Debug)]
struct Course {
    id: Uuid,
    attempt: i32,
    diverged: bool,
    detail: Option<String>,
    evaluations: Evaluations,
    /// Seconds since its start, by step.
    elapsed: BTreeMap<u64, f64>,
    /// Figures of the whole run.
    figures: BTreeMap<Metric, f64>,
}

#[derive(QueryableByName)]
struct CourseRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Text)]
    course: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<Text>)]
    detail: Option<String>,
}

#[derive(QueryableByName)]
struct Point {
    #[diesel(sql_type = SqlUuid)]
    probe: Uuid,
    #[diesel(sql_type = Text)]
    metric: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    step: Option<i64>,
    #[diesel(sql_type = Double)]
    value: f64,
    #[diesel(sql_type = Double)]
    elapsed_secs: f64,
}

/// The runs of each course that is wanted, the one that ended last first.
async fn find_courses(
    conn: &mut AsyncPgConnection,
    project: &str,
    wanted: &[&NewProbe],
) -> Result<HashMap<String, Vec<Course>>, StoreError> {
    let hashes: BTreeSet<&str> = wanted
        .iter()
        .filter_map(|new| new.course.as_deref())
        .collect();
    let hashes: Vec<&str> = hashes.into_iter().collect();
    let rows: Vec<CourseRow> = statement(
        "SELECT p.id, p.attempt, p.course, p.state, p.detail \
         FROM unnest($2::text[]) AS asked (course) CROSS JOIN LATERAL (\
            SELECT p.id, p.attempt, p.course, p.state, p.detail, p.ended_at FROM probes p \
            WHERE p.project = $1 AND p.course = asked.course AND p.read_from IS NULL \
              AND p.state IN ('succeeded', 'infeasible') AND (p.state = 'succeeded' OR p.reason = 'diverged') OFFSET 0) p \
         ORDER BY p.ended_at DESC, p.id",
    )
    .bind::<Text, _>(project)
    .bind::<Array<Text>, _>(hashes)
    .load(conn)
    .await?;
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let points: Vec<Point> = statement(
        "SELECT m.probe, m.metric, m.step, m.value, m.elapsed_secs FROM probes p \
         JOIN measurements m ON m.probe = p.id AND m.attempt = p.attempt WHERE p.id = ANY($1)",
    )
    .bind::<Array<SqlUuid>, _>(ids)
    .load(conn)
    .await?;
    let mut by_probe = HashMap::<Uuid, Vec<Point>>::new();
    for point in points {
        by_probe.entry(point.probe).or_default().push(point);
    }
    let mut courses = HashMap::<String, Vec<Course>>::new();
    for row in rows {
        let mut course = Course {
            id: row.id,
            attempt: row.attempt,
            diverged: row.state == ProbeState::Infeasible.as_str(),
            detail: row.detail,
            evaluations: Evaluations::new(),
            elapsed: BTreeMap::new(),
            figures: BTreeMap::new(),
        };
        for point in by_probe.remove(&row.id).unwrap_or_default() {
            let Some(metric) = Metric::parse(&point.metric) else {
                continue;
            };
            match point.step.map(u64::try_from) {
                None => {
                    course.figures.insert(metric, point.value);
                }
                Some(Ok(step)) => {
                    let evaluation = course.evaluations.entry(step).or_default();
                    evaluation.insert(metric, point.value);
                    course.elapsed.insert(step, point.elapsed_secs);
                }
                Some(Err(_)) => {}
            }
        }
        courses.entry(row.course).or_default().push(course);
    }
    Ok(courses)
}

impl Course {
    /// What a run to another target would have found on this course.
    fn read(&self, wanted: &ProbeSpec) -> Option<Reading> {
        let Task::Training(run) = &wanted.task else {
            return None;
        };
        let common = |metric: Metric| Some((metric, *self.figures.get(&metric)?));
        let reading = Reading {
            source: self.id,
            attempt: self.attempt,
            steps: None,
            infeasible: None,
            detail: None,
            elapsed_secs: 0.0,
            figures: COMMON.into_iter().filter_map(common).collect(),
        };
        // A run that sets the target says what learning is worth; one that had a target does not.
        if run.target.is_none() && !self.figures.contains_key(&Metric::ChanceLoss) {
            return None;
        }
        match retrace(run, wanted.workload.loss, &self.evaluations, self.diverged)? {
            Retraced::Ended { steps, figures } => Some(Reading {
                steps: Some(steps),
                elapsed_secs: self.elapsed_until(steps),
                figures: reading.figures.into_iter().chain(figures).collect(),
                ..reading
            }),
            Retraced::Diverged => Some(Reading {
                infeasible: Some(InfeasibleReason::Diverged),
                detail: self.detail.clone(),
                elapsed_secs: self.elapsed_until(u64::MAX),
                figures: BTreeMap::new(),
                ..reading
            }),
        }
    }

    fn elapsed_until(&self, step: u64) -> f64 {
        let last = self.elapsed.range(..=step).next_back();
        last.map_or(0.0, |(_, secs)| *secs)
    }
}

impl Reading {
    /// How the probe ends.
    pub(super) fn state(&self) -> ProbeState {
        match self.infeasible {
            Some(_) => ProbeState::Infeasible,
            None => ProbeState::Succeeded,
        }
    }
}

/// Stores a probe whose figures were read, with the part of the evaluations that they come from. None when the
/// project has it already.
pub(super) async fn insert_reading(
    conn: &mut AsyncPgConnection,
    place: WavePlace<'_>,
    new: &NewProbe,
    reading: &Reading,
) -> Result<Option<Uuid>, StoreError> {
    #[derive(QueryableByName)]
    struct Inserted {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let inserted: Option<Inserted> = statement(
        "INSERT INTO probes (id, project, created_by, identity, inputs, course, kind, batch_size, backend, \
            device_model, exclusive, spec, state, reason, detail, device_secs, started_at, ended_at, read_from) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, now(), now(), $17) \
         ON CONFLICT (project, identity) DO NOTHING RETURNING id",
    )
    .bind::<SqlUuid, _>(Uuid::now_v7())
    .bind::<Text, _>(place.project)
    .bind::<Text, _>(place.created_by)
    .bind::<Text, _>(&new.identity)
    .bind::<Text, _>(&new.inputs)
    .bind::<Nullable<Text>, _>(&new.course)
    .bind::<Text, _>(new.spec.kind().as_str())
    .bind::<BigInt, _>(i64::try_from(new.spec.batch_size.0).unwrap_or(i64::MAX))
    .bind::<Text, _>(new.spec.device.backend.as_str())
    .bind::<Text, _>(&new.spec.device.model)
    .bind::<diesel::sql_types::Bool, _>(new.spec.kind().is_exclusive())
    .bind::<diesel::sql_types::Jsonb, _>(Json(&new.spec))
    .bind::<Text, _>(reading.state().as_str())
    .bind::<Nullable<Text>, _>(reading.infeasible.map(InfeasibleReason::as_str))
    .bind::<Nullable<Text>, _>(&reading.detail)
    .bind::<Double, _>(reading.elapsed_secs)
    .bind::<SqlUuid, _>(reading.source)
    .get_result(conn)
    .await
    .optional()?;
    let Some(Inserted { id }) = inserted else {
        return Ok(None);
    };
    let last = reading.steps.and_then(|steps| i64::try_from(steps).ok());
    statement(
        "INSERT INTO measurements (probe, attempt, seq, metric, step, value, unit, elapsed_secs) \
         SELECT $1, 0, seq, metric, step, value, unit, elapsed_secs FROM measurements \
         WHERE probe = $2 AND attempt = $3 AND step <= $4",
    )
    .bind::<SqlUuid, _>(id)
    .bind::<SqlUuid, _>(reading.source)
    .bind::<Integer, _>(reading.attempt)
    .bind::<BigInt, _>(last.unwrap_or(i64::MAX))
    .execute(conn)
    .await?;
    let (metrics, values): (Vec<Metric>, Vec<f64>) = reading.figures.iter().unzip();
    let units: Vec<&str> = metrics.iter().map(|metric| metric.unit()).collect();
    let metrics: Vec<&str> = metrics.iter().map(|metric| metric.as_str()).collect();
    statement(
        "INSERT INTO measurements (probe, attempt, seq, metric, step, value, unit, elapsed_secs) \
         SELECT $1, 0, \
            (SELECT coalesce(max(seq), -1) FROM measurements WHERE probe = $1 AND attempt = 0) + f.number::int, \
            f.metric, NULL, f.value, f.unit, $5 \
         FROM unnest($2::text[], $3::float8[], $4::text[]) WITH ORDINALITY AS f (metric, value, unit, number)",
    )
    .bind::<SqlUuid, _>(id)
    .bind::<Array<Text>, _>(metrics)
    .bind::<Array<Double>, _>(values)
    .bind::<Array<Text>, _>(units)
    .bind::<Double, _>(reading.elapsed_secs)
    .execute(conn)
    .await?;
    Ok(Some(id))
}

/// For each probe wanted, what is known already, as evidence of a wave; reads only. `study` is the one that asks.
pub async fn find_known(
    conn: &mut AsyncPgConnection,
    project: &str,
    study: Option<StudyId>,
    wave: u32,
    wanted: &[NewProbe],
) -> Result<Vec<Option<ProbeRecord>>, StoreError> {
    let known = find(conn, project, study, wanted).await?;
    let ids: Vec<Uuid> = known
        .iter()
        .filter_map(|known| match known {
            Some(Known::Answered(answer)) => Some(answer.id),
            Some(Known::Read(_)) | None => None,
        })
        .collect();
    let figures: Vec<Figure> = statement(
        "SELECT m.probe, m.metric, m.value FROM probes p \
         JOIN measurements m ON m.probe = p.id AND m.attempt = p.attempt \
         WHERE p.id = ANY($1) AND m.step IS NULL",
    )
    .bind::<Array<SqlUuid>, _>(ids)
    .load(conn)
    .await?;
    let by_probe = figures_by_probe(figures);
    Ok((0_u32..)
        .zip(wanted.iter().zip(known))
        .map(|(position, (new, known))| {
            let record = |id: Uuid, state: ProbeState| ProbeRecord {
                id: ProbeId(id),
                spec: new.spec.clone(),
                state,
                infeasible: None,
                failure: None,
                detail: None,
                wave,
                position,
                reused: true,
                device_secs: 0.0,
                prediction: new.prediction,
                figures: BTreeMap::new(),
            };
            Some(match known? {
                Known::Answered(answer) => ProbeRecord {
                    infeasible: answer.infeasible,
                    detail: answer.detail,
                    reused: !answer.is_own,
                    device_secs: answer.device_secs,
                    figures: by_probe.get(&answer.id).cloned().unwrap_or_default(),
                    ..record(answer.id, answer.state)
                },
                Known::Read(reading) => ProbeRecord {
                    infeasible: reading.infeasible,
                    detail: reading.detail.clone(),
                    device_secs: reading.elapsed_secs,
                    figures: reading.figures.clone(),
                    ..record(reading.source, reading.state())
                },
            })
        })
        .collect())
}

//! The lease protocol's writes: claim, heartbeat, complete, reap. Each is one short transaction (a claim that finds what it
//! looked for taken meanwhile begins another), fenced by (probe, lease, attempt, running). The locks are taken in the order
//! device → studies by their ids → probe; what has one and wants an earlier one passes over a row that somebody has. A
//! heartbeat takes only its probe. All deadlines are Postgres' own clock.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::QueryFragment;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Jsonb, Nullable, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::age;
use super::error::StoreError;
use super::json::JsonText;
use super::statement::{Statement, statement};
use super::transaction::{
    NOTHING_FIRST, begin_by_kept_plans, begin_with, end, end_with, finish, give_up, in_one_way,
};
use crate::probe::{
    FailureReason, InfeasibleReason, Measurement, Outcome, ProbeKind, ProbeSpec, ProbeState,
};
use crate::study::{DeviceId, LeaseId, ProbeId, StudyId};

type SqlUuid = diesel::sql_types::Uuid;

/// No attempt can have taken longer than since its claim; by so much a worker's clock may differ all the same.
const CLOCK_SLACK_SECS: f64 = 60.0;

/// What a worker asks for.
#[derive(Debug, Clone)]
pub struct Claim<'a> {
    /// Chosen by the worker, so that a repeated claim finds the first one's answer.
    pub lease: LeaseId,
    pub worker: &'a str,
    pub device: DeviceId,
    /// What this worker says that the device is. Another worker of the host may have said something else of the same
    /// row since: what is handed out goes by this.
    pub backend: &'a str,
    pub model: &'a str,
    /// Only probes whose memory budget it has.
    pub memory_bytes: i64,
    /// How many devices may train together on it.
    pub count: i32,
    /// Only probes of this project.
    pub project: Option<&'a str>,
    /// The runners that the worker offers: it gets probes of these only.
    pub runners: &'a [String],
    pub lease_secs: f64,
    /// For a probe that cannot be handed out.
    pub retries: RetryPolicy,
}

/// What a claim came to.
#[derive(Debug, Clone)]
pub enum Claiming {
    /// The worker holds a probe now, or holds it still.
    Claimed(Box<Claimed>),
    /// Nothing is open that may run there now.
    Nothing,
    /// The lease was used before and holds nothing any more: a claim that came late.
    Spent,
}

impl Claiming {
    /// The probe, if there is one.
    pub fn claimed(self) -> Option<Claimed> {
        match self {
            Self::Claimed(claimed) => Some(*claimed),
            Self::Nothing | Self::Spent => None,
        }
    }
}

/// A probe that a worker now holds.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub probe: ProbeId,
    pub lease: LeaseId,
    pub attempt: i32,
    pub exclusive: bool,
    pub spec: ProbeSpec,
    /// Studies that wait for it, one named for log lines.
    pub study: StudyId,
    /// Whose it is.
    pub project: String,
}

/// A study that has something for a device.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    study: Uuid,
    priority: i32,
    exclusive: bool,
}

/// What runs on a device, and what could.
#[derive(Default, QueryableByName)]
struct DeviceLoad {
    #[diesel(sql_type = Bool)]
    is_lease_used: bool,
    /// Whether one more probe that shares it may run.
    #[diesel(sql_type = Bool)]
    has_room: bool,
    #[diesel(sql_type = Bool)]
    is_shared: bool,
    /// The candidates, where it has room: their studies, the one whose turn it is first, with each one's priority and whether it
    /// wants the device alone.
    #[diesel(sql_type = Array<SqlUuid>)]
    studies: Vec<Uuid>,
    #[diesel(sql_type = Array<Integer>)]
    priorities: Vec<i32>,
    #[diesel(sql_type = Array<Bool>)]
    exclusive: Vec<bool>,
}

impl DeviceLoad {
    fn candidates(&self) -> impl Iterator<Item = Candidate> {
        let all = self
            .studies
            .iter()
            .zip(&self.priorities)
            .zip(&self.exclusive);
        all.map(|((&study, &priority), &exclusive)| Candidate {
            study,
            priority,
            exclusive,
        })
    }
}

#[derive(QueryableByName)]
struct ClaimedRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Bool)]
    exclusive: bool,
    #[diesel(sql_type = Jsonb)]
    spec: JsonText,
    #[diesel(sql_type = Text)]
    project: String,
}

/// What runs on a device whose row is taken already, and where one more probe may: the first open probe of each active
/// study that this device model, with its memory, and these runners can do, the study whose turn it is first: by priority,
/// then by who has waited longest. All probes of a study have one memory budget, so that of the first is looked at: a
/// specification is long, and to read each that is queued would cost most of a claim.
/// Studies that are said to wait for a worker are looked at when there are no others: a thousand that wait for a GPU
/// would stand before each claim of a processor, and that they wait may have ceased to be true.
///
/// Its plan is kept, so there is only one that it can have: study after study in the order of their turns, of each the open
/// probes in theirs, of each its row. `OFFSET 0` keeps the parts apart, and that a state is compared as it is not
/// stored keeps the index of all queued probes out of it.
fn look_sql(waits: &str) -> String {
    format!(
        "SELECT used.is_lease_used, runs.alone = 0 AND runs.shared < d.slots AS has_room, runs.shared > 0 AS is_shared, \
            open.studies, open.priorities, open.exclusive \
         FROM devices d \
         CROSS JOIN LATERAL (\
            SELECT EXISTS (SELECT 1 FROM leases WHERE id = $9) AS is_lease_used OFFSET 0) used \
         CROSS JOIN LATERAL (\
            SELECT count(*) FILTER (WHERE p.exclusive) AS alone, count(*) FILTER (WHERE NOT p.exclusive) AS shared \
            FROM probes p WHERE p.device = d.id AND p.state = 'running') runs \
         CROSS JOIN LATERAL (\
            SELECT coalesce(array_agg(turn.study), '{{}}') AS studies, \
                coalesce(array_agg(turn.priority), '{{}}') AS priorities, \
                coalesce(array_agg(turn.exclusive), '{{}}') AS exclusive \
            FROM (\
                SELECT s.id AS study, s.priority, q.exclusive FROM studies s \
                CROSS JOIN LATERAL (\
                    SELECT p.exclusive, p.memory FROM (\
                        SELECT sp.probe FROM study_probes sp \
                        WHERE sp.study = s.id AND sp.revision = s.revision AND sp.wave = s.wave AND sp.open \
                        ORDER BY sp.position OFFSET 0) sp \
                    CROSS JOIN LATERAL (\
                        SELECT p.exclusive, (p.spec #>> '{{limits,memory_bytes}}')::numeric AS memory FROM probes p \
                        WHERE p.id = sp.probe AND p.state || '' = 'queued' AND p.not_before <= now() \
                          AND p.backend = $1 AND p.device_model = $2 AND p.device_count <= $6 \
                          AND p.runner = ANY($4) OFFSET 0) p \
                    LIMIT 1) q \
                WHERE NOT used.is_lease_used AND runs.alone = 0 AND runs.shared < d.slots \
                  AND s.state IN ('queued', 'running') AND s.waiting_for {waits} \
                  AND ($3::text IS NULL OR s.project = $3) AND s.id <> ALL($7) AND coalesce(q.memory, 0) <= $5 \
                ORDER BY s.priority DESC, s.last_claimed_at NULLS FIRST, s.id LIMIT 8) turn) open \
         WHERE d.id = $8"
    )
}

/// Takes the row of the first of several active studies, and its first open probe.
///
/// `turn` is that study: the first that nobody has just now. No more is taken than one, so that no two claims ever wait for
/// each other. An active study is one that has not ended: said so, no index of active studies can tempt the plan.
///
/// `taken` is the probe; one that another worker is just taking is passed over. The lease is noted in the same statement, and
/// a lease that was noted before undoes it. The study has had its turn, and its log says so. Others that wait for the
/// same probe would have to be locked for that; they hear of its end. As for what is open, there is one plan that it can
/// have.
const TAKE: &str = "\
    WITH turn AS MATERIALIZED (\
        SELECT s.id, s.revision, s.wave, s.started_at IS NULL AS starts, asked.exclusive \
        FROM unnest($5::uuid[], $8::bool[]) WITH ORDINALITY AS asked (id, exclusive, place) \
        JOIN studies s ON s.id = asked.id \
        WHERE s.ended_at IS NULL ORDER BY asked.place LIMIT 1 FOR UPDATE OF s SKIP LOCKED), \
    taken AS (UPDATE probes SET state = 'running', attempt = attempt + 1, lease = $1, \
        lease_expires_at = now() + make_interval(secs => $2), worker = $3, device = $4, \
        started_at = now(), ended_at = NULL, reason = NULL, detail = NULL, \
        progress_phase = NULL, progress_fraction = NULL, cancel_requested = false \
    WHERE id = (\
        SELECT q.id FROM (\
            SELECT sp.probe FROM study_probes sp \
            WHERE sp.study = (SELECT id FROM turn) AND sp.revision = (SELECT revision FROM turn) \
              AND sp.wave = (SELECT wave FROM turn) AND sp.open \
            ORDER BY sp.position OFFSET 0) sp \
        CROSS JOIN LATERAL (\
            SELECT p.id FROM probes p \
            WHERE p.id = sp.probe AND p.state || '' = 'queued' AND p.not_before <= now() \
              AND p.backend = $6 AND p.device_model = $7 AND p.device_count <= $11 \
              AND p.exclusive = (SELECT exclusive FROM turn) AND p.runner = ANY($9) FOR UPDATE SKIP LOCKED) q \
        LIMIT 1) \
      AND coalesce((spec #>> '{limits,memory_bytes}')::numeric, 0) <= $10 \
    RETURNING id, attempt, exclusive, spec, project, kind, batch_size), \
    noted AS (INSERT INTO leases (id, probe, attempt) SELECT $1, id, attempt FROM taken), \
    numbered AS (UPDATE studies s SET last_claimed_at = clock_timestamp(), \
        started_at = coalesce(s.started_at, now()), state = 'running', \
        updated_at = CASE WHEN turn.starts THEN now() ELSE s.updated_at END, \
        next_event_seq = s.next_event_seq + CASE WHEN turn.starts THEN 2 ELSE 1 END \
    FROM turn, taken WHERE s.id = turn.id RETURNING s.id, s.next_event_seq AS next, turn.starts), \
    logged AS (INSERT INTO study_events (study, seq, kind, data) \
        SELECT numbered.id, numbered.next - 1, 'probe', jsonb_build_object('probe_id', taken.id, 'kind', taken.kind, \
            'batch_size', taken.batch_size, 'state', 'running', 'reason', NULL, 'attempt', taken.attempt) \
        FROM numbered, taken \
        UNION ALL SELECT numbered.id, numbered.next - 2, 'study', jsonb_build_object('state', 'running') \
        FROM numbered WHERE numbered.starts) \
    SELECT turn.id AS study, taken.id, taken.attempt, taken.exclusive, taken.spec, taken.project \
    FROM turn LEFT JOIN taken ON true";

/// Waits for whoever has a study just now. In a statement of its own: one that has waited has to look again at all that it
/// does.
const WAIT: &str = "SELECT 1 FROM studies WHERE id = $1 FOR UPDATE";

/// How often a claim looks again when what it found was taken by somebody else meanwhile.
const MAX_LOOKS: usize = 32;

/// What a lease that was used before still holds, prolonged.
const HELD: &str = "\
    UPDATE probes p SET lease_expires_at = now() + make_interval(secs => $2) FROM leases l \
    WHERE l.id = $1 AND p.id = l.probe AND p.lease = l.id AND p.attempt = l.attempt AND p.state || '' = 'running' \
      AND ($3::text IS NULL OR p.project = $3) \
    RETURNING p.id, p.attempt, p.exclusive, p.spec, p.project, \
        (SELECT sp.study FROM study_probes sp WHERE sp.probe = p.id LIMIT 1) AS study";

/// Claims one probe for a device, if one is open that may run there now.
///
/// An exclusive probe needs its device empty; while one waits, no shared probe starts. The same lease
/// claims once: asked again, the answer is the probe it holds, or that it is spent.
pub async fn claim(
    conn: &mut AsyncPgConnection,
    claim: &Claim<'_>,
) -> Result<Claiming, StoreError> {
    let mut tried = Vec::new();
    let mut late = None;
    let mut is_busy = false;
    for _ in 0..MAX_LOOKS {
        match look(conn, claim, &tried, is_busy).await {
            Ok(Look::Busy) => is_busy = true,
            Ok(Look::Done(claiming)) => return Ok(claiming),
            // What is open there now may be of another sort. A second time it is somebody else's turn.
            Ok(Look::Late(study)) => {
                is_busy = false;
                if late == Some(study) {
                    tried.push(study);
                }
                late = Some(study);
            }
            // Noted by somebody else meanwhile: the same claim sent twice, or given back while it was under way.
            Err(StoreError::Other(DieselError::DatabaseError(
                DatabaseErrorKind::UniqueViolation,
                information,
            ))) if information.table_name() == Some("leases") => {
                return held(conn, claim).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Claiming::Nothing)
}

/// What one look for a probe came to.
enum Look {
    Done(Claiming),
    /// What this study had open was taken meanwhile.
    Late(Uuid),
    /// Somebody is at each of the studies whose turn it is.
    Busy,
}

/// Looks for a probe once, but not for one of the studies in `tried`. Where somebody `is_busy` with each study, the one whose
/// turn it is is waited for.
async fn look(
    conn: &mut AsyncPgConnection,
    claim: &Claim<'_>,
    tried: &[Uuid],
    is_busy: bool,
) -> Result<Look, StoreError> {
    // What runs on a device changes under its row alone, and is seen as it is once that is had.
    let device = statement("SELECT 1 FROM devices WHERE id = $1 FOR UPDATE")
        .bind::<SqlUuid, _>(claim.device.0);
    let looking = looking(claim, tried, "IS NULL");
    let load: Option<DeviceLoad> = begin_with(conn, Some(device), looking).await?;
    let load = match load {
        Some(load) => match load.or_waiting(conn, claim, tried).await {
            Ok(load) => load,
            Err(error) => {
                give_up(conn).await;
                return Err(error);
            }
        },
        None => DeviceLoad::default(),
    };
    if load.is_lease_used {
        end(conn).await?;
        return Ok(Look::Done(held(conn, claim).await?));
    }
    let mut candidates: Vec<Candidate> = load.candidates().collect();
    // While an exclusive probe waits for the device to be empty, what comes after it does not start.
    if load.is_shared
        && let Some(waits) = candidates.iter().position(|it| it.exclusive)
    {
        candidates.truncate(waits);
    }
    let Some(first) = candidates.as_slice().first().copied() else {
        end(conn).await?;
        return Ok(Look::Done(Claiming::Nothing));
    };
    candidates.retain(|it| it.priority == first.priority);
    let wait = is_busy.then(|| {
        candidates.truncate(1);
        statement(WAIT).bind::<SqlUuid, _>(first.study)
    });
    let taken: Option<Taken> = end_with(conn, wait, taking(claim, &candidates)).await?;
    match taken {
        Some(Taken {
            study,
            probe: Some(row),
        }) => Ok(Look::Done(hand_out(conn, claim, row, study).await?)),
        Some(Taken { study, probe: None }) => Ok(Look::Late(study)),
        None if is_busy => Ok(Look::Late(first.study)),
        None => Ok(Look::Busy),
    }
}

/// Looks at a device whose row is taken already, and at what is open for it.
fn looking(
    claim: &Claim<'_>,
    tried: &[Uuid],
    waits: &str,
) -> Statement<impl QueryFragment<Pg> + Send> {
    statement(look_sql(waits))
        .bind::<Text, _>(claim.backend)
        .bind::<Text, _>(claim.model)
        .bind::<Nullable<Text>, _>(claim.project)
        .bind::<Array<Text>, _>(claim.runners)
        .bind::<BigInt, _>(claim.memory_bytes)
        .bind::<Integer, _>(claim.count)
        .bind::<Array<SqlUuid>, _>(tried)
        .bind::<SqlUuid, _>(claim.device.0)
        .bind::<SqlUuid, _>(claim.lease.0)
}

/// Takes a probe of the first of these studies that nobody else has just now.
fn taking(claim: &Claim<'_>, candidates: &[Candidate]) -> Statement<impl QueryFragment<Pg> + Send> {
    let studies: Vec<Uuid> = candidates.iter().map(|it| it.study).collect();
    let exclusive: Vec<bool> = candidates.iter().map(|it| it.exclusive).collect();
    statement(TAKE)
        .bind::<SqlUuid, _>(claim.lease.0)
        .bind::<Double, _>(claim.lease_secs)
        .bind::<Text, _>(claim.worker)
        .bind::<SqlUuid, _>(claim.device.0)
        .bind::<Array<SqlUuid>, _>(studies)
        .bind::<Text, _>(claim.backend)
        .bind::<Text, _>(claim.model)
        .bind::<Array<Bool>, _>(exclusive)
        .bind::<Array<Text>, _>(claim.runners)
        .bind::<BigInt, _>(claim.memory_bytes)
        .bind::<Integer, _>(claim.count)
}

impl DeviceLoad {
    /// This, or where nothing is open among the studies that wait for no worker, what is among those that are said to.
    async fn or_waiting(
        self,
        conn: &mut AsyncPgConnection,
        claim: &Claim<'_>,
        tried: &[Uuid],
    ) -> Result<Self, StoreError> {
        let mut looked = self;
        // What ceases to wait between two looks, as it does when its first worker comes, is found by the third.
        for waits in ["IS NOT NULL", "IS NULL"] {
            if !looked.has_room || looked.is_lease_used || !looked.studies.is_empty() {
                break;
            }
            looked = looking(claim, tried, waits).get_result(conn).await?;
        }
        Ok(looked)
    }
}

/// What was taken.
#[derive(QueryableByName)]
struct Taken {
    #[diesel(sql_type = SqlUuid)]
    study: Uuid,
    #[diesel(embed)]
    probe: Option<ClaimedRow>,
}

impl ClaimedRow {
    fn claimed(self, lease: LeaseId, study: Uuid) -> Result<Claimed, StoreError> {
        let spec = self
            .spec
            .read()
            .map_err(|error| StoreError::unreadable(format!("probe {}", self.id), error))?;
        Ok(Claimed {
            probe: ProbeId(self.id),
            lease,
            attempt: self.attempt,
            exclusive: self.exclusive,
            spec,
            study: StudyId(study),
            project: self.project,
        })
    }
}

/// Hands out a probe that the lease holds. What this version cannot read must not be held by a worker that never hears of it:
/// the attempt is lost, and an instance of a newer version may hand the probe out after its pause.
async fn hand_out(
    conn: &mut AsyncPgConnection,
    claim: &Claim<'_>,
    row: ClaimedRow,
    study: Uuid,
) -> Result<Claiming, StoreError> {
    let fence = Fence {
        probe: ProbeId(row.id),
        lease: claim.lease,
        attempt: row.attempt,
    };
    match row.claimed(claim.lease, study) {
        Ok(claimed) => Ok(Claiming::Claimed(Box::new(claimed))),
        Err(error) => {
            let completion = Completion {
                fence,
                outcome: Outcome::Failed {
                    reason: FailureReason::Lost,
                    detail: error.to_string(),
                },
                measurements: Vec::new(),
                stderr_tail: String::new(),
                device_secs: 0.0,
            };
            if let Err(also) = complete(conn, &completion, claim.retries).await {
                tracing::warn!(probe = %completion.fence.probe, error = %also, "an attempt that cannot be handed out is held until its lease runs out");
            }
            Err(error)
        }
    }
}

/// What a lease that was used before still holds.
async fn held(conn: &mut AsyncPgConnection, claim: &Claim<'_>) -> Result<Claiming, StoreError> {
    #[derive(QueryableByName)]
    struct Held {
        #[diesel(embed)]
        claimed: ClaimedRow,
        #[diesel(sql_type = Nullable<SqlUuid>)]
        study: Option<Uuid>,
    }
    let held: Option<Held> = statement(HELD)
        .bind::<SqlUuid, _>(claim.lease.0)
        .bind::<Double, _>(claim.lease_secs)
        .bind::<Nullable<Text>, _>(claim.project)
        .get_result(conn)
        .await
        .optional()?;
    match held {
        Some(Held { claimed, study }) => {
            hand_out(conn, claim, claimed, study.unwrap_or_default()).await
        }
        None => Ok(Claiming::Spent),
    }
}

/// Which attempt writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    pub probe: ProbeId,
    pub lease: LeaseId,
    pub attempt: i32,
}

impl Claimed {
    /// What fences this attempt's writes.
    pub fn fence(&self) -> Fence {
        Fence {
            probe: self.probe,
            lease: self.lease,
            attempt: self.attempt,
        }
    }
}

/// Whether a probe is of this project: a lease of another project's is none of this caller's.
pub async fn is_of_project(
    conn: &mut AsyncPgConnection,
    probe: ProbeId,
    project: &str,
) -> Result<bool, StoreError> {
    let rows = statement("SELECT 1 FROM probes WHERE id = $1 AND project = $2")
        .bind::<SqlUuid, _>(probe.0)
        .bind::<Text, _>(project)
        .execute(conn)
        .await?;
    Ok(rows > 0)
}

/// The names of the figures that an attempt has told of its whole probe so far.
async fn told(conn: &mut AsyncPgConnection, fence: Fence) -> Result<Vec<String>, StoreError> {
    #[derive(QueryableByName)]
    struct Told {
        #[diesel(sql_type = Text)]
        metric: String,
    }
    let rows: Vec<Told> = statement(
        "SELECT DISTINCT metric FROM measurements WHERE probe = $1 AND attempt = $2 AND step IS NULL",
    )
    .bind::<SqlUuid, _>(fence.probe.0)
    .bind::<Integer, _>(fence.attempt)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.metric).collect())
}

/// What a heartbeat brings back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heartbeat {
    /// The lease holds for another period.
    Held {
        /// No study wants the probe any more.
        cancel_requested: bool,
    },
    /// The probe is somebody else's now, or has ended.
    Lost,
}

/// What a worker says while it runs a probe.
#[derive(Debug, Clone, Copy)]
pub struct Beat<'a> {
    pub fence: Fence,
    pub lease_secs: f64,
    /// Phase and fraction.
    pub progress: Option<(&'a str, f64)>,
    /// What has been measured since the last acknowledged beat, or earlier: each seq is stored once.
    pub measurements: &'a [Measurement],
}

/// Prolongs a lease, and stores what it brings.
pub async fn heartbeat(
    conn: &mut AsyncPgConnection,
    beat: Beat<'_>,
) -> Result<Heartbeat, StoreError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Bool)]
        cancel_requested: bool,
    }
    let fence = beat.fence;
    let (phase, fraction) = beat.progress.unzip();
    let held = statement(format!(
        "WITH held AS (\
            UPDATE probes SET lease_expires_at = now() + make_interval(secs => $4), \
                progress_phase = coalesce($5, progress_phase), \
                progress_fraction = coalesce($6, progress_fraction) \
            WHERE id = $1 AND lease = $2 AND attempt = $3 AND state || '' = 'running' \
            RETURNING id, attempt, cancel_requested), \
         measured AS ({}) \
         SELECT cancel_requested FROM held",
        measure_sql("held", 7)
    ))
    .bind::<SqlUuid, _>(fence.probe.0)
    .bind::<SqlUuid, _>(fence.lease.0)
    .bind::<Integer, _>(fence.attempt)
    .bind::<Double, _>(beat.lease_secs)
    .bind::<Nullable<Text>, _>(phase)
    .bind::<Nullable<Double>, _>(fraction);
    let held = Measured::of(beat.measurements).bound_to(held);
    let row: Option<Row> = in_one_way(conn, NOTHING_FIRST, held).await?;
    Ok(match row {
        Some(row) => Heartbeat::Held {
            cancel_requested: row.cancel_requested,
        },
        None => Heartbeat::Lost,
    })
}

/// How an attempt ended, as its worker tells it.
#[derive(Debug, Clone)]
pub struct Completion {
    pub fence: Fence,
    pub outcome: Outcome,
    pub measurements: Vec<Measurement>,
    pub stderr_tail: String,
    /// Device time of the attempt, seconds.
    pub device_secs: f64,
}

/// How often a probe is tried, and with what pauses.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    pub max_crashes: i32,
    pub max_losses: i32,
    pub delay_secs: f64,
    pub max_delay_secs: f64,
}

impl RetryPolicy {
    /// Pause before the next try after `count` bad ends, seconds.
    fn delay(&self, count: i32) -> f64 {
        (self.delay_secs * 2_f64.powi(count.saturating_sub(1).clamp(0, 30)))
            .min(self.max_delay_secs)
    }
}

/// What a completion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// The probe is in this state now.
    Now(ProbeState),
    /// This very attempt had completed before, and made this of the probe: nothing changed.
    Already(ProbeState),
    /// The lease was lost: nothing changed.
    Fenced,
}

/// What a probe of a kind that succeeded would have told and did not, by the names of the figures that came before its end.
pub type Missing<'a> = &'a (dyn Fn(&str, &[String]) -> Option<String> + Sync);

/// Ends an attempt: stores what it measured, its outcome, and makes the plan of every study that
/// waits for it due. O(1) in the size of the study.
pub async fn complete(
    conn: &mut AsyncPgConnection,
    completion: &Completion,
    policy: RetryPolicy,
) -> Result<Completed, StoreError> {
    complete_whole(conn, completion, policy, &|_, _| None).await
}

/// The same, but one that succeeded and has something missing has failed.
pub async fn complete_whole(
    conn: &mut AsyncPgConnection,
    completion: &Completion,
    policy: RetryPolicy,
    missing: Missing<'_>,
) -> Result<Completed, StoreError> {
    if let Some(end) = AttemptEnd::foreseen(&completion.outcome) {
        let kinds = (completion.outcome == Outcome::Succeeded).then(|| {
            let is_whole = |kind: &ProbeKind| missing(kind.as_str(), &[]).is_none();
            ProbeKind::ALL.into_iter().filter(is_whole).collect()
        });
        let ending = ending(completion.fence, &end, kinds, Told::by(completion));
        let lock = statement(lock_waiting_sql()).bind::<SqlUuid, _>(completion.fence.probe.0);
        let ended: Option<Ended> = in_one_way(conn, Some(lock), ending).await?;
        if ended.is_some() {
            return Ok(Completed::Now(end.state));
        }
    }
    // It depends on what came before, or the lease was lost.
    begin_by_kept_plans(conn).await?;
    let ended = complete_within(conn, completion, policy, missing).await;
    finish(conn, ended).await
}

/// In the caller's transaction.
async fn complete_within(
    conn: &mut AsyncPgConnection,
    completion: &Completion,
    policy: RetryPolicy,
    missing: Missing<'_>,
) -> Result<Completed, StoreError> {
    let fence = completion.fence;
    let Some(attempt) = lock_attempt(conn, fence.probe).await? else {
        return Ok(Completed::Fenced);
    };
    if attempt.lease != Some(fence.lease.0)
        || attempt.attempt != fence.attempt
        || attempt.state != ProbeState::Running.as_str()
    {
        return completed_before(conn, fence).await;
    }
    let mut end = AttemptEnd::of(&completion.outcome, &attempt, policy);
    if completion.outcome == Outcome::Succeeded && missing(&attempt.kind, &[]).is_some() {
        // What was told before came with heartbeats.
        let told = told(conn, fence).await?;
        if let Some(detail) = missing(&attempt.kind, &told) {
            let outcome = Outcome::Failed {
                reason: FailureReason::InvalidOutput,
                detail,
            };
            end = AttemptEnd::of(&outcome, &attempt, policy);
        }
    }
    let ending = ending(fence, &end, None, Told::by(completion));
    ending.execute(conn).await?;
    Ok(Completed::Now(end.state))
}

/// What the first completion of this attempt made of the probe, if there was one.
async fn completed_before(
    conn: &mut AsyncPgConnection,
    fence: Fence,
) -> Result<Completed, StoreError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Nullable<Text>)]
        became: Option<String>,
        /// Of the probe, if this attempt was its last.
        #[diesel(sql_type = Nullable<Text>)]
        state: Option<String>,
    }
    let row: Option<Row> = statement(
        "SELECT l.became, p.state FROM leases l \
         LEFT JOIN probes p ON p.id = l.probe AND p.lease = l.id AND p.attempt = l.attempt \
         WHERE l.id = $1 AND l.probe = $2 AND l.attempt = $3",
    )
    .bind::<SqlUuid, _>(fence.lease.0)
    .bind::<SqlUuid, _>(fence.probe.0)
    .bind::<Integer, _>(fence.attempt)
    .get_result(conn)
    .await
    .optional()?;
    let noted = |state: Option<String>| ProbeState::parse(&state?);
    let state = row.and_then(|row| {
        noted(row.became).or_else(|| noted(row.state).filter(|state| state.keeps_answer()))
    });
    Ok(state.map_or(Completed::Fenced, Completed::Already))
}

/// Gives a lease back at no cost, whatever it holds, and spends it: a claim of it that is still under way
/// comes to nothing. Whether it was the caller's to give: what another project's lease holds it goes on holding.
pub async fn release(
    conn: &mut AsyncPgConnection,
    lease: LeaseId,
    project: Option<&str>,
    policy: RetryPolicy,
) -> Result<bool, StoreError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Nullable<SqlUuid>)]
        probe: Option<Uuid>,
        #[diesel(sql_type = Integer)]
        attempt: i32,
    }
    let spent = statement(
        "INSERT INTO leases (id, probe, attempt) VALUES ($1, NULL, 0) ON CONFLICT DO NOTHING",
    )
    .bind::<SqlUuid, _>(lease.0)
    .execute(conn)
    .await?;
    if spent > 0 {
        return Ok(true);
    }
    let row: Option<Row> = statement("SELECT probe, attempt FROM leases WHERE id = $1")
        .bind::<SqlUuid, _>(lease.0)
        .get_result(conn)
        .await
        .optional()?;
    let Some((probe, attempt)) = row.and_then(|row| Some((row.probe?, row.attempt))) else {
        return Ok(true);
    };
    if let Some(project) = project
        && !is_of_project(conn, ProbeId(probe), project).await?
    {
        return Ok(false);
    }
    let completion = Completion {
        fence: Fence {
            probe: ProbeId(probe),
            lease,
            attempt,
        },
        outcome: Outcome::HandedBack,
        measurements: Vec::new(),
        stderr_tail: String::new(),
        device_secs: 0.0,
    };
    complete(conn, &completion, policy).await?;
    Ok(true)
}

/// Forgets leases that were given so many days ago. Gives how many.
pub async fn remove_old(
    conn: &mut AsyncPgConnection,
    older_than_days: u32,
    at_once: i64,
) -> Result<usize, StoreError> {
    age::remove_rows(conn, ("leases", "claimed_at"), older_than_days, at_once).await
}

/// Returns probes whose lease ran out to the queue, or ends them when they were lost too often.
/// Gives how many there were.
pub async fn reap(conn: &mut AsyncPgConnection, policy: RetryPolicy) -> Result<usize, StoreError> {
    #[derive(QueryableByName)]
    struct Expired {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let expired: Vec<Expired> = statement(
        "SELECT id FROM probes WHERE state = 'running' AND lease_expires_at < now() \
         ORDER BY lease_expires_at LIMIT 100",
    )
    .load(conn)
    .await?;
    let mut reaped = 0;
    for Expired { id } in expired {
        let probe = ProbeId(id);
        let done: bool = conn
            .transaction(async move |conn| {
                let Some(attempt) = lock_attempt(conn, probe).await? else {
                    return Ok::<_, StoreError>(false);
                };
                if attempt.state != ProbeState::Running.as_str() || !attempt.expired {
                    return Ok(false);
                }
                let end =
                    AttemptEnd::lost("its worker stopped sending heartbeats", &attempt, policy);
                let fence = Fence {
                    probe,
                    lease: LeaseId(attempt.lease.unwrap_or_default()),
                    attempt: attempt.attempt,
                };
                let ending = ending(fence, &end, None, Told::default());
                Ok(ending.execute(conn).await? > 0)
            })
            .await?;
        reaped += usize::from(done);
    }
    Ok(reaped)
}

#[derive(QueryableByName)]
struct Attempt {
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    lease: Option<Uuid>,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Integer)]
    crashes: i32,
    #[diesel(sql_type = Integer)]
    losses: i32,
    #[diesel(sql_type = Bool)]
    cancel_requested: bool,
    #[diesel(sql_type = Bool)]
    expired: bool,
    #[diesel(sql_type = Text)]
    kind: String,
}

/// What the probe `$1` is linked to, by one plan.
const LINKED: &str = "(SELECT study, revision FROM study_probes WHERE probe = $1 OFFSET 0)";

/// Takes the rows of the active studies that the probe `$1` belongs to, in the order of their ids. Said as it is, that order
/// would tempt the plan to go through all studies in it.
fn lock_waiting_sql() -> String {
    format!("{} FOR UPDATE OF s", waiting_sql())
}

fn waiting_sql() -> String {
    format!(
        "SELECT s.id FROM {LINKED} sp JOIN studies s ON s.id = sp.study AND s.revision = sp.revision \
         WHERE s.ended_at IS NULL ORDER BY uuid_send(s.id)"
    )
}

/// Takes the row of a probe, and before it those of the active studies that it belongs to, in the order of their ids.
async fn lock_attempt(
    conn: &mut AsyncPgConnection,
    probe: ProbeId,
) -> Result<Option<Attempt>, StoreError> {
    Ok(statement(format!(
        "SELECT p.state, p.lease, p.attempt, p.crashes, p.losses, p.cancel_requested, p.kind, \
            coalesce(p.lease_expires_at < now(), false) AS expired \
         FROM (SELECT count(*) FROM ({}) locked) waiting CROSS JOIN probes p WHERE p.id = $1 FOR UPDATE OF p",
        lock_waiting_sql()
    ))
    .bind::<SqlUuid, _>(probe.0)
    .get_result::<Attempt>(conn)
    .await
    .optional()?)
}

/// What the end of an attempt makes of its probe.
#[derive(Debug, Clone)]
struct AttemptEnd {
    state: ProbeState,
    reason: Option<&'static str>,
    detail: Option<String>,
    /// Where there is one more of them than before.
    crashes: Option<i32>,
    losses: Option<i32>,
    /// Pause before the next try.
    delay_secs: f64,
}

impl AttemptEnd {
    fn to(state: ProbeState) -> Self {
        Self {
            state,
            reason: None,
            detail: None,
            crashes: None,
            losses: None,
            delay_secs: 0.0,
        }
    }

    fn infeasible(reason: InfeasibleReason, detail: &str) -> Self {
        Self {
            reason: Some(reason.as_str()),
            detail: Some(detail.to_owned()),
            ..Self::to(ProbeState::Infeasible)
        }
    }

    /// What an outcome comes to, where that is the same whatever came before.
    fn foreseen(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Succeeded => Some(Self::to(ProbeState::Succeeded)),
            Outcome::Infeasible { reason, detail } => Some(Self::infeasible(*reason, detail)),
            Outcome::Cancelled | Outcome::HandedBack | Outcome::Failed { .. } => None,
        }
    }

    fn of(outcome: &Outcome, attempt: &Attempt, policy: RetryPolicy) -> Self {
        if let Some(end) = Self::foreseen(outcome) {
            return end;
        }
        // Nobody wants it: it goes nowhere, whatever became of the attempt.
        if attempt.cancel_requested {
            return Self::to(ProbeState::Cancelled);
        }
        let Outcome::Failed { reason, detail } = outcome else {
            // Cancelled, and wanted again by another study before the child had ended.
            return Self::to(ProbeState::Queued);
        };
        if *reason == FailureReason::Lost {
            return Self::lost(detail, attempt, policy);
        }
        let crashes = attempt.crashes + 1;
        Self {
            crashes: Some(crashes),
            ..Self::bad(*reason, detail, crashes, policy.max_crashes, policy)
        }
    }

    fn lost(detail: &str, attempt: &Attempt, policy: RetryPolicy) -> Self {
        if attempt.cancel_requested {
            return Self::to(ProbeState::Cancelled);
        }
        let losses = attempt.losses + 1;
        Self {
            losses: Some(losses),
            ..Self::bad(
                FailureReason::Lost,
                detail,
                losses,
                policy.max_losses,
                policy,
            )
        }
    }

    /// The bad end of this number: tried again after a pause, unless it is the last of so many.
    fn bad(
        reason: FailureReason,
        detail: &str,
        number: i32,
        last: i32,
        policy: RetryPolicy,
    ) -> Self {
        let state = if number >= last {
            ProbeState::Failed
        } else {
            ProbeState::Queued
        };
        Self {
            reason: Some(reason.as_str()),
            detail: Some(detail.to_owned()),
            delay_secs: policy.delay(number),
            ..Self::to(state)
        }
    }
}

/// What came with the end of an attempt: of one that was lost, nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Told<'a> {
    /// Whether it was its lease that ended it.
    is_completed: bool,
    stderr_tail: Option<&'a str>,
    device_secs: f64,
    measurements: &'a [Measurement],
}

impl<'a> Told<'a> {
    fn by(completion: &'a Completion) -> Self {
        Self {
            is_completed: true,
            stderr_tail: Some(&completion.stderr_tail),
            device_secs: completion.device_secs,
            measurements: &completion.measurements,
        }
    }
}

/// The probe whose attempt has ended.
#[derive(QueryableByName)]
struct Ended {
    #[diesel(sql_type = SqlUuid)]
    #[expect(dead_code, reason = "that there is one says all")]
    id: Uuid,
}

/// Writes the end of a running attempt with what came with it, tells the probe's studies, and makes their plans due when the
/// probe has ended with it. The lease stays on an ended probe: it says who has ended it. What became of a probe that may be
/// queued again is noted with the lease that completes it, so that a repeated completion is recognised.
///
/// A study that was linked to the probe after its studies were taken is taken here, after the probe, so only if nobody has it.
/// Otherwise it hears nothing, its log does not say so, and it is found among those that wait for nothing
/// (`studies::nudge_stuck`).
///
/// Gives the probe where it did so: not where another attempt has it, or none, or where its kind is not one of `kinds`.
fn ending(
    fence: Fence,
    end: &AttemptEnd,
    kinds: Option<Vec<ProbeKind>>,
    told: Told<'_>,
) -> Statement<impl QueryFragment<Pg>> {
    let kinds = kinds.map(|kinds| kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>());
    // Of a probe that keeps its answer its own row says so.
    let noted = if told.is_completed && !end.state.keeps_answer() {
        "noted AS (UPDATE leases SET became = $4 FROM ended WHERE leases.id = $2), "
    } else {
        ""
    };
    let ended = statement(format!(
        "WITH ended AS (\
            UPDATE probes SET state = $4, reason = $5, detail = $6, crashes = coalesce($7, crashes), \
                losses = coalesce($8, losses), not_before = now() + make_interval(secs => $9), \
                lease_expires_at = NULL, stderr_tail = coalesce($10, stderr_tail), \
                device_secs = least($11, device_count * (extract(epoch FROM now() - coalesce(started_at, now()))::float8 + $12)), \
                lease = CASE WHEN $4 = 'queued' THEN NULL ELSE lease END, \
                ended_at = CASE WHEN $4 = 'queued' THEN NULL ELSE now() END \
            WHERE id = $1 AND lease = $2 AND attempt = $3 AND state || '' = 'running' \
              AND ($13::text[] IS NULL OR kind = ANY($13)) \
            RETURNING id, attempt, kind, batch_size), \
         {noted}\
         numbered AS (\
            UPDATE studies s SET next_event_seq = s.next_event_seq + 1, evidence_version = s.evidence_version + $14 \
            FROM ended, ({} FOR NO KEY UPDATE OF s SKIP LOCKED) waiting WHERE s.id = waiting.id RETURNING s.id, s.next_event_seq - 1 AS seq), \
         logged AS (\
            INSERT INTO study_events (study, seq, kind, data) \
            SELECT numbered.id, numbered.seq, 'probe', jsonb_build_object('probe_id', ended.id, 'kind', ended.kind, \
                'batch_size', ended.batch_size, 'state', $4, 'reason', $5, 'attempt', ended.attempt) \
            FROM numbered, ended), \
         measured AS ({}) \
         SELECT id FROM ended",
        waiting_sql(),
        measure_sql("ended", 15)
    ))
    .bind::<SqlUuid, _>(fence.probe.0)
    .bind::<SqlUuid, _>(fence.lease.0)
    .bind::<Integer, _>(fence.attempt)
    .bind::<Text, _>(end.state.as_str())
    .bind::<Nullable<Text>, _>(end.reason)
    .bind::<Nullable<Text>, _>(end.detail.as_deref())
    .bind::<Nullable<Integer>, _>(end.crashes)
    .bind::<Nullable<Integer>, _>(end.losses)
    .bind::<Double, _>(end.delay_secs)
    .bind::<Nullable<Text>, _>(told.stderr_tail)
    .bind::<Double, _>(told.device_secs)
    .bind::<Double, _>(CLOCK_SLACK_SECS)
    .bind::<Nullable<Array<Text>>, _>(kinds)
    .bind::<BigInt, _>(i64::from(end.state.has_ended()));
    Measured::of(told.measurements).bound_to(ended)
}

/// Measurements as columns.
struct Measured<'a> {
    seqs: Vec<i32>,
    metrics: Vec<&'a str>,
    steps: Vec<Option<i64>>,
    values: Vec<f64>,
    units: Vec<&'a str>,
    elapsed: Vec<f64>,
}

impl<'a> Measured<'a> {
    fn of(measurements: &'a [Measurement]) -> Self {
        let all = || measurements.iter();
        let step = |step| i64::try_from(step).unwrap_or(i64::MAX);
        Self {
            seqs: all()
                .map(|it| i32::try_from(it.seq).unwrap_or(i32::MAX))
                .collect(),
            metrics: all().map(|it| it.metric.as_str()).collect(),
            steps: all().map(|it| it.step.map(step)).collect(),
            values: all().map(|it| it.value).collect(),
            units: all().map(|it| it.unit.as_str()).collect(),
            elapsed: all().map(|it| it.elapsed_secs).collect(),
        }
    }

    /// Binds them to a statement of [`measure_sql`], as its last.
    fn bound_to<Bound: QueryFragment<Pg>>(
        self,
        statement: Statement<Bound>,
    ) -> Statement<impl QueryFragment<Pg>> {
        statement
            .bind::<Array<Integer>, _>(self.seqs)
            .bind::<Array<Text>, _>(self.metrics)
            .bind::<Array<Nullable<BigInt>>, _>(self.steps)
            .bind::<Array<Double>, _>(self.values)
            .bind::<Array<Text>, _>(self.units)
            .bind::<Array<Double>, _>(self.elapsed)
    }
}

/// Stores measurements of the attempt that a part of the statement gives, with their first parameter. Each seq is stored once.
/// In a transaction with kept plans: that the probe is there is looked up for each row, by a statement of Postgres' own,
/// and to plan that anew for each would cost three times what the row does.
fn measure_sql(attempt: &str, first: usize) -> String {
    let [seqs, metrics, steps, values, units, elapsed] = [0, 1, 2, 3, 4, 5].map(|it| first + it);
    format!(
        "INSERT INTO measurements (probe, attempt, seq, metric, step, value, unit, elapsed_secs) \
         SELECT {attempt}.id, {attempt}.attempt, m.* FROM {attempt}, \
            unnest(${seqs}::int[], ${metrics}::text[], ${steps}::bigint[], ${values}::float8[], ${units}::text[], ${elapsed}::float8[]) AS m \
         ON CONFLICT DO NOTHING"
    )
}

//! Creating a study: validate everything that can be known without running, then store the study
//! and its first wave of probes in one transaction.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::advance::{self, Step};
use super::device::{self, Choice, Wish};
use super::replay::{Asked, replay};
use super::{Caller, Context};
use crate::analysis::Evidence;
use crate::plan::{self, DryRun};
use crate::store::studies::{IdempotencyKey, NewStudy, StudyRow};
use crate::store::{self, Connection, StoreError, datasets, devices, studies};
use crate::study::validation::{self, Rejected, Violation};
use crate::study::{
    Dataset, DeviceChoice, DeviceRequest, StudyDefinition, StudyId, StudyRequest, defaults,
};

/// Why a study was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// What was posted is not JSON, or not a study that can be run; every violation.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Live workers have several device models that match.
    #[error("several live device models match")]
    AmbiguousDevice(Vec<Violation>),
    /// The key was used with another body.
    #[error("this Idempotency-Key was used with another request")]
    IdempotencyKeyReused,
    /// The key is not one.
    #[error("the Idempotency-Key must be 1 to 255 visible ASCII characters")]
    IdempotencyKeyInvalid,
    /// The project has as many active studies as it may.
    #[error("the project has {limit} queued or running studies, as many as it may")]
    TooManyStudies {
        /// As many as it may.
        limit: u64,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A study that exists now.
#[derive(Debug, Clone)]
pub struct Created {
    /// The study.
    pub study: StudyRow,
    /// Whether an earlier request with the same key had made it.
    pub replayed: bool,
}

/// Parses, resolves against the live devices, and checks. What a revision leaves open about its device stays as it
/// was: the memory that is free changes from minute to minute, and that is no change of what is asked.
pub(super) async fn define(
    context: &Context,
    caller: &Caller,
    body: &[u8],
    before: Option<&StudyDefinition>,
) -> Result<(StudyDefinition, Option<String>), CreateError> {
    let mut conn = context.database.connection().await?;
    let stored = match validation::named_dataset(body) {
        None => None,
        Some(id) => match datasets::find(&mut conn, &caller.project, id).await? {
            None => None,
            Some(row) => Some(row.stored()?),
        },
    };
    let mut request = context.rules.parse_body(body, stored.as_ref())?;
    if let Some(before) = before {
        keep_device(&mut request.device, &before.device);
    }
    let live = devices::live(&mut conn, context.alive_secs).await?;
    let choice = device::choose(wish(&request), &live);
    if let Some(violation) = choice.violation() {
        return Err(match choice {
            Choice::Ambiguous { .. } => CreateError::AmbiguousDevice(vec![violation]),
            _ => Rejected::Invalid(vec![violation]).into(),
        });
    }
    let (device, waiting_for) = match choice {
        Choice::One(facts) => (Some(facts), None),
        Choice::None { waiting_for } => (None, Some(waiting_for)),
        Choice::Ambiguous { .. } | Choice::TooSmall { .. } => (None, None),
    };
    let definition = defaults::resolve(request, device.as_ref()).ok_or_else(dataset_is_gone)?;
    Ok((definition, waiting_for))
}

/// Fills in what is left open, where it is the same device model.
fn keep_device(asked: &mut DeviceRequest, before: &DeviceChoice) {
    let is_same =
        asked.backend == before.backend && (asked.model.is_none() || asked.model == before.model);
    if is_same {
        asked.model = before.model.clone();
        // Fewer or more devices have another share of threads and memory each.
        if asked.count == before.count {
            asked.threads = asked.threads.or(before.threads);
            asked.memory_budget_bytes = asked.memory_budget_bytes.or(before.memory_budget_bytes);
        }
    }
}

/// It was there when the study was read, or the study would have been refused then.
pub(super) fn dataset_is_gone() -> CreateError {
    let violation = Violation::new("/workload/dataset/id", "the data set was deleted just now");
    Rejected::Invalid(vec![violation]).into()
}

fn wish(request: &StudyRequest) -> Wish<'_> {
    Wish {
        backend: request.device.backend,
        model: request.device.model.as_deref(),
        count: request.device.count,
        memory_budget: request.device.memory_budget_bytes,
        runner: &request.runner.name,
    }
}

/// Creates a study, or finds the one that an earlier request with the same key made.
///
/// # Errors
/// See [`CreateError`]; nothing is stored then.
pub async fn create(
    context: &Context,
    caller: &Caller,
    body: &[u8],
    idempotency_key: Option<&str>,
) -> Result<Created, CreateError> {
    if let Some(key) = idempotency_key
        && !((1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(CreateError::IdempotencyKeyInvalid);
    }
    let (definition, waiting_for) = define(context, caller, body, None).await?;
    let id = StudyId(Uuid::now_v7());
    let step = advance::work_out(
        caller.project.clone(),
        id,
        definition.clone(),
        Evidence::default(),
        waiting_for,
    )
    .await?;
    let request_hash = hash(body);
    let mut conn = context.database.connection().await?;
    store::begin(&mut conn).await?;
    let work = store_study(
        &mut conn,
        context,
        caller,
        id,
        &definition,
        &step,
        idempotency_key.map(|key| IdempotencyKey {
            project: &caller.project,
            created_by: &caller.name,
            key,
            request_hash: &request_hash,
        }),
    )
    .await;
    let outcome = store::finish(&mut conn, work).await?;
    let (id, replayed) = match outcome {
        None => (id, false),
        Some((_, hash)) if hash != request_hash => return Err(CreateError::IdempotencyKeyReused),
        Some((first, _)) => (first, true),
    };
    let study = studies::find(&mut conn, &caller.project, id)
        .await?
        .ok_or_else(|| StoreError::Unavailable("the study was deleted just now".into()))?;
    if !replayed {
        context.waker.wake();
        tracing::info!(study = %id, name = study.name, "study created");
    }
    Ok(Created { study, replayed })
}

/// Tells whether two bodies ask for the same: the order of members and white space do not count.
fn hash(body: &[u8]) -> String {
    let canonical = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|value| serde_json_canonicalizer::to_vec(&value).ok());
    hex::encode(Sha256::digest(canonical.as_deref().unwrap_or(body)))
}

/// One transaction: key, study, first revision, first wave. Gives the study that had the key before.
async fn store_study(
    conn: &mut Connection,
    context: &Context,
    caller: &Caller,
    id: StudyId,
    definition: &StudyDefinition,
    step: &Step,
    key: Option<IdempotencyKey<'_>>,
) -> Result<Option<(StudyId, String)>, CreateError> {
    let new = NewStudy {
        id,
        project: &caller.project,
        created_by: &caller.name,
        definition,
    };
    if let Dataset::Uploaded(dataset) = &definition.workload.dataset
        && !datasets::hold(conn, dataset.id).await?
    {
        return Err(dataset_is_gone());
    }
    let active = studies::count_active(conn, new.project).await?;
    // The study first: the key refers to it, and is claimed before anything else can commit.
    studies::insert(conn, &new).await?;
    if let Some(key) = key
        && let Some(first) =
            studies::claim_idempotency_key(conn, &key, id, context.idempotency_hours).await?
    {
        studies::delete(conn, id).await?;
        return Ok(Some(first));
    }
    let limit = context.max_active_studies;
    if u64::try_from(active).unwrap_or(0) >= limit {
        return Err(CreateError::TooManyStudies { limit });
    }
    let place = advance::Place {
        project: &caller.project,
        created_by: &caller.name,
        study: id,
        revision: 1,
        version: 1,
        wave: 0,
    };
    advance::apply(conn, place, step).await?;
    Ok(None)
}

/// What a study would do, without storing anything.
///
/// # Errors
/// As [`create`].
pub async fn dry_run(
    context: &Context,
    caller: &Caller,
    body: &[u8],
) -> Result<(StudyDefinition, DryRun), CreateError> {
    let (definition, waiting_for) = define(context, caller, body, None).await?;
    let asked = Asked {
        project: &caller.project,
        study: None,
        definition: &definition,
        stand_ins: &Evidence::default(),
    };
    let replay = replay(context, asked).await?;
    let mut dry_run = plan::forecast(
        &definition,
        replay.probes,
        replay.device_secs,
        replay.reused,
    );
    if let Some(waiting_for) = waiting_for {
        dry_run
            .warnings
            .push(format!("the study would wait for {waiting_for}"));
    }
    Ok((definition, dry_run))
}

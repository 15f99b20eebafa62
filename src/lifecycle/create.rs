//! Creating a study: validate everything that can be known without running, then store the study
//! and its first wave of probes in one transaction: most often by one statement, together with what else is created at that
//! moment, otherwise by several of its own.

use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::advance::{self, Creation};
use super::device::{self, Choice, Wish};
use super::replay::{Asked, replay};
use super::{Caller, Context};
use crate::analysis::Evidence;
use crate::plan::{self, DryRun};
use crate::store::kept_answers::{self, Answer, Answered, IdempotencyKey, KeyError};
use crate::store::probes::LinkedWave;
use crate::store::studies::{ProbeCounts, StudyRow};
use crate::store::{self, Connection, StoreError, datasets, studies};
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
    /// The request's key.
    #[error(transparent)]
    Key(#[from] KeyError),
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

/// Parses, resolves against the live devices, and checks. What a revision leaves open about its device stays as it
/// was: the memory that is free changes from minute to minute, and that is no change of what is asked.
pub(super) async fn define(
    context: &Context,
    caller: &Caller,
    body: &[u8],
    before: Option<&StudyDefinition>,
) -> Result<(StudyDefinition, Option<String>), CreateError> {
    let stored = match validation::named_dataset(body) {
        None => None,
        Some(id) => {
            let mut conn = context.database.connection().await?;
            let row = datasets::find(&mut conn, &caller.project, id).await?;
            row.map(|row| row.stored()).transpose()?
        }
    };
    let mut request = context.rules.parse_body(body, stored.as_ref())?;
    if let Some(before) = before {
        keep_device(&mut request.device, &before.device);
    }
    let live = context.live_devices().await?;
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

/// Creates a study and says what `answer` makes of it. With a key the answer is kept, and whoever comes with the same key
/// and body again gets that answer, even when the study could not be created any more.
///
/// # Errors
/// See [`CreateError`]; nothing is stored then.
pub async fn create(
    context: &Context,
    caller: &Caller,
    body: &[u8],
    key: Option<&IdempotencyKey>,
    answer: impl Fn(StudyRow, ProbeCounts, f64) -> Result<Answer, StoreError>,
) -> Result<Answered, CreateError> {
    // What tells the same request again.
    let request = key.map_or_else(String::new, |_| hash(body));
    if let Some(key) = key {
        let mut conn = context.database.connection().await?;
        if let Some(answer) = kept_answers::find(&mut conn, key, &request).await? {
            return Ok(Answered {
                answer,
                is_replayed: true,
            });
        }
    }
    let (definition, waiting_for) = define(context, caller, body, None).await?;
    let id = StudyId(Uuid::now_v7());
    let step = advance::first_step(&caller.project, id, &definition, waiting_for)?;
    let creation = Arc::new(Creation {
        id,
        project: caller.project.clone(),
        created_by: caller.name.clone(),
        definition,
        step,
    });
    let begun = if key.is_none()
        && !matches!(creation.definition.workload.dataset, Dataset::Uploaded(_))
        && creation.may_be_unknown()
        && context.room.take(&caller.project)
    {
        let together = &context.together;
        together
            .begin(&context.database, Arc::clone(&creation))
            .await?
    } else {
        None
    };
    if let Some((row, linked)) = begun {
        created(context, &creation);
        let answer = answer(row, linked.counts, linked.device_secs)?;
        return Ok(Answered {
            answer,
            is_replayed: false,
        });
    }
    let mut conn = context.database.connection().await?;
    store::begin_by_kept_plans(&mut conn).await?;
    let work = async {
        if let Some(key) = key
            && let Some(answer) = kept_answers::claim(&mut conn, key, &request).await?
        {
            return Ok(Answered {
                answer,
                is_replayed: true,
            });
        }
        let (row, linked) = store_study(&mut conn, context, &creation).await?;
        let answer = answer(row, linked.counts, linked.device_secs)?;
        if let Some(key) = key {
            kept_answers::keep(&mut conn, key, &answer).await?;
        }
        Ok::<_, CreateError>(Answered {
            answer,
            is_replayed: false,
        })
    }
    .await;
    let answered = store::finish(&mut conn, work).await?;
    if !answered.is_replayed {
        created(context, &creation);
    }
    Ok(answered)
}

fn created(context: &Context, creation: &Creation) {
    context.waker.wake();
    tracing::info!(study = %creation.id, name = creation.definition.name, "study created");
}

/// Tells whether two bodies ask for the same: the order of members and white space do not count.
fn hash(body: &[u8]) -> String {
    let canonical = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|value| serde_json_canonicalizer::to_vec(&value).ok());
    hex::encode(Sha256::digest(canonical.as_deref().unwrap_or(body)))
}

/// In the caller's transaction: study, first revision, first wave.
async fn store_study(
    conn: &mut Connection,
    context: &Context,
    creation: &Creation,
) -> Result<(StudyRow, LinkedWave), CreateError> {
    if let Dataset::Uploaded(dataset) = &creation.definition.workload.dataset
        && !datasets::hold(conn, dataset.id).await?
    {
        return Err(dataset_is_gone());
    }
    has_room(conn, context, &creation.project).await?;
    Ok(advance::begin(conn, creation).await?)
}

/// Refuses one more study where the project has as many active ones as it may.
pub(super) async fn has_room(
    conn: &mut Connection,
    context: &Context,
    project: &str,
) -> Result<(), CreateError> {
    if context.room.take(project) {
        return Ok(());
    }
    let limit = context.max_active_studies;
    let at = Instant::now();
    let active = studies::count_active(conn, project).await?;
    match limit.checked_sub(u64::try_from(active).unwrap_or(0)) {
        None | Some(0) => Err(CreateError::TooManyStudies { limit }),
        Some(free) => {
            context.room.counted(project, at, free);
            Ok(())
        }
    }
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

//! Revising a study: another definition, planned from its beginning, with everything that is known already taken
//! over. What the change makes stale is said at once; what holds stays, and is made anew under the new revision.
//!
//! All of it is one transaction under the study's row: the revision, the marks, the cancelled probes, the first
//! wave. Whoever is killed in the middle has changed nothing.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::advance::{self, Applied, Step};
use super::create::{self, CreateError};
use super::replay::{Asked, replay};
use super::{Caller, Context};
use crate::analysis::Evidence;
use crate::plan::{self, DryRun};
use crate::probe::inputs::figures;
use crate::probe::{InfeasibleReason, Metric, ProbeKind};
use crate::recommendation::{Topic, staleness};
use crate::store::events::{self, EventKind};
use crate::store::probes::WavePlace;
use crate::store::studies::StudyRow;
use crate::store::{self, Connection, StoreError, datasets, probes, recommendations, studies};
use crate::study::{
    BatchSize, Change, Changed, Dataset, MaxFrom, Model, ModelFrom, StudyDefinition, StudyId,
    changes,
};

/// Why a study was not revised; nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ReviseError {
    /// The project has no such study.
    #[error("there is no such study")]
    NotFound,
    /// The request does not say which revision it changes.
    #[error("the request does not say which revision it changes")]
    NoRevisionNamed,
    /// The revision that the request changes is not the current one.
    #[error("the study is at revision {current}")]
    AnotherRevision {
        /// The current one.
        current: i32,
    },
    /// The definition is refused.
    #[error(transparent)]
    Refused(#[from] CreateError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which revision a request changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// It does not say.
    Unsaid,
    /// Whichever is current.
    Any,
    /// One of these.
    OneOf(Vec<i32>),
}

impl Expected {
    fn check(&self, current: i32) -> Result<(), ReviseError> {
        match self {
            Self::Unsaid | Self::Any => Ok(()),
            Self::OneOf(revisions) if revisions.contains(&current) => Ok(()),
            Self::OneOf(_) => Err(ReviseError::AnotherRevision { current }),
        }
    }
}

/// What a change does to the advice so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Consequences {
    /// What differs.
    pub changes: Vec<Changed>,
    /// Topics that were answered and are stale now, each with what makes it so.
    pub stale: Vec<(Topic, Vec<Change>)>,
    /// Topics that were answered and still hold.
    pub kept: Vec<Topic>,
}

/// A study with its revision.
#[derive(Debug, Clone)]
pub struct Revised {
    /// The study as it is now.
    pub study: StudyRow,
    /// Its definition.
    pub definition: StudyDefinition,
    /// What the change does. Empty when nothing was different: then there is no new revision.
    pub consequences: Consequences,
}

/// What a revision would do.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// The study as it is.
    pub study: StudyRow,
    /// The definition that it would have.
    pub definition: StudyDefinition,
    /// What the change would do.
    pub consequences: Consequences,
    /// What would be measured, and what taken over.
    pub plan: DryRun,
}

/// What is asked, beside what there was.
struct Proposal {
    study: StudyRow,
    old: StudyDefinition,
    new: StudyDefinition,
    waiting_for: Option<String>,
}

async fn propose(
    context: &Context,
    caller: &Caller,
    id: StudyId,
    body: &[u8],
    expected: &Expected,
) -> Result<Proposal, ReviseError> {
    let mut conn = context.database.connection().await?;
    let study = studies::find(&mut conn, &caller.project, id)
        .await?
        .ok_or(ReviseError::NotFound)?;
    expected.check(study.revision)?;
    let old = studies::definition(&mut conn, &study).await?;
    drop(conn);
    let body = as_posted(body, &old);
    let (new, waiting_for) = create::define(context, caller, &body, Some(&old)).await?;
    // What is known needs no worker, so a device that is away just now is waited for only when a probe wants it.
    let waiting_for = waiting_for.filter(|_| new.device.resolved().is_none());
    Ok(Proposal {
        study,
        old,
        new,
        waiting_for,
    })
}

/// A definition that was read, edited and sent back, as it would have been posted: without what the service has
/// filled in and nobody may ask for. Anything else stays as it is.
fn as_posted(body: &[u8], old: &StudyDefinition) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(body) else {
        return body.to_vec();
    };
    if let Some(batch_sizes) = value.get_mut("batch_sizes").and_then(Value::as_object_mut)
        && let Some(from) = take::<MaxFrom>(batch_sizes, "max_from")
    {
        // The number of examples is a default; another number than that was asked for.
        let is_default = from == MaxFrom::Dataset
            && read::<BatchSize>(batch_sizes, "max") == Some(old.batch_sizes.max);
        if is_default {
            batch_sizes.remove("max");
        }
    }
    if let Some(body) = value.as_object_mut()
        && take::<ModelFrom>(body, "model_from") == Some(ModelFrom::Default)
        && let Some(workload) = value.get_mut("workload").and_then(Value::as_object_mut)
        // Compared as what it means: a program may write 0 where the service writes 0.0.
        && read::<Model>(workload, "model").as_ref() == Some(&old.workload.model)
    {
        // The model was left open, and still is.
        workload.remove("model");
    }
    if let Some(dataset) = value
        .pointer_mut("/workload/dataset")
        .and_then(Value::as_object_mut)
        && dataset.contains_key("id")
    {
        for known in ["name", "content", "contents"] {
            dataset.remove(known);
        }
    }
    serde_json::to_vec(&value).unwrap_or_else(|_| body.to_vec())
}

/// A member, where it is one.
fn read<T: DeserializeOwned>(object: &Map<String, Value>, name: &str) -> Option<T> {
    T::deserialize(object.get(name)?).ok()
}

/// A member that the service fills in, taken out; what is none stays and is refused like any other unknown one.
fn take<T: DeserializeOwned>(object: &mut Map<String, Value>, name: &str) -> Option<T> {
    let read = read(object, name)?;
    object.remove(name);
    Some(read)
}

/// Whether another budget of memory moves the batch size at which training begins: what was measured there, or below,
/// does not fit any more, or might fit now.
fn moves_first_batch_size(
    old: &StudyDefinition,
    new: &StudyDefinition,
    evidence: &Evidence,
) -> bool {
    let budget = |definition: &StudyDefinition| definition.device.memory_budget_bytes;
    let (Some(first), Some(before), Some(after)) =
        (old.first_batch_size(), budget(old), budget(new))
    else {
        return false;
    };
    evidence.probes.iter().any(|probe| {
        let is_of_memory = matches!(
            probe.kind(),
            ProbeKind::Smoke | ProbeKind::Memory | ProbeKind::Confirmation
        );
        let peak = probe.figure(Metric::PeakMemory);
        let fits_no_more = peak.is_some_and(|peak| peak > after.0 as f64);
        let may_fit_now = after > before && probe.infeasible == Some(InfeasibleReason::OutOfMemory);
        is_of_memory && probe.batch_size() <= first && (fits_no_more || may_fit_now)
    })
}

impl Proposal {
    async fn consequences(&self, conn: &mut Connection) -> Result<Consequences, StoreError> {
        let mut changed = changes::between(&self.old, &self.new);
        let of_memory = changed
            .iter_mut()
            .find(|changed| changed.change == Change::MemoryBudget);
        if let Some(change) = of_memory {
            let evidence = probes::evidence(conn, &self.study).await?;
            if moves_first_batch_size(&self.old, &self.new, &evidence) {
                change.change = Change::FirstBatchSize;
            }
        }
        let stale = staleness::stale_topics(&staleness::kinds(&changed), self.new.tunes());
        let rows = recommendations::list(conn, self.study.study_id(), false).await?;
        let mut answered: Vec<Topic> = rows
            .iter()
            .filter_map(|row| Topic::parse(&row.topic))
            .collect();
        answered.sort_unstable();
        answered.dedup();
        let (stale_now, kept): (Vec<Topic>, Vec<Topic>) = answered
            .into_iter()
            .partition(|topic| stale.iter().any(|(it, _)| it == topic));
        Ok(Consequences {
            changes: changed,
            stale: stale
                .into_iter()
                .filter(|(topic, _)| stale_now.contains(topic))
                .collect(),
            kept,
        })
    }
}

/// Gives a study another definition.
///
/// # Errors
/// See [`ReviseError`]; nothing is stored then.
pub async fn revise(
    context: &Context,
    caller: &Caller,
    id: StudyId,
    body: &[u8],
    expected: &Expected,
) -> Result<Revised, ReviseError> {
    if *expected == Expected::Unsaid {
        return Err(ReviseError::NoRevisionNamed);
    }
    let proposal = propose(context, caller, id, body, expected).await?;
    if proposal.old == proposal.new {
        let mut conn = context.database.connection().await?;
        let consequences = proposal.consequences(&mut conn).await?;
        return Ok(Revised {
            study: proposal.study,
            definition: proposal.old,
            consequences,
        });
    }
    let waiting_for = proposal.waiting_for.clone();
    let step = advance::first_step(&caller.project, id, &proposal.new, waiting_for)?;
    let mut conn = context.database.connection().await?;
    store::begin(&mut conn).await?;
    let work = store_revision(&mut conn, context, caller, &proposal, &step).await;
    let consequences = store::finish(&mut conn, work).await?;
    let study = studies::find(&mut conn, &caller.project, id)
        .await?
        .ok_or(ReviseError::NotFound)?;
    context.waker.wake();
    tracing::info!(study = %id, revision = study.revision, "study revised");
    Ok(Revised {
        study,
        definition: proposal.new,
        consequences,
    })
}

async fn store_revision(
    conn: &mut Connection,
    context: &Context,
    caller: &Caller,
    proposal: &Proposal,
    step: &Step,
) -> Result<Consequences, ReviseError> {
    let id = proposal.study.study_id();
    // Of two requests that change the same revision, the second waits here and finds another one.
    let study = studies::lock(conn, &caller.project, id)
        .await?
        .ok_or(ReviseError::NotFound)?;
    if study.revision != proposal.study.revision {
        return Err(ReviseError::AnotherRevision {
            current: study.revision,
        });
    }
    if let Dataset::Uploaded(dataset) = &proposal.new.workload.dataset
        && !datasets::hold(conn, dataset.id).await?
    {
        return Err(create::dataset_is_gone().into());
    }
    if study.study_state().has_ended() {
        create::has_room(conn, context, &caller.project).await?;
    }
    let consequences = proposal.consequences(conn).await?;
    studies::revise(conn, &study, &proposal.new).await?;
    recommendations::mark_stale(conn, id, &consequences.stale).await?;
    let kinds = staleness::kinds(&consequences.changes);
    probes::cancel_superseded(conn, id, &in_vain(&kinds)).await?;
    let data = json!({
        "revision": study.revision + 1,
        "changes": kinds,
        "stale": consequences.stale.iter().map(|(topic, _)| topic).collect::<Vec<_>>(),
    });
    events::append(conn, id, &[(EventKind::Study, data)]).await?;
    let place = WavePlace {
        project: &caller.project,
        created_by: &study.created_by,
        study: id,
        revision: study.revision + 1,
        wave: 0,
    };
    let version = study.evidence_version + 1;
    if advance::apply(conn, place, version, step).await? == Applied::Overtaken {
        // Impossible under the study's row, and then nothing must stay of it.
        return Err(StoreError::Unavailable("the study changed meanwhile".into()).into());
    }
    Ok(consequences)
}

/// Kinds of probes of which those that run for the old definition tell the new one nothing.
fn in_vain(changes: &[Change]) -> Vec<ProbeKind> {
    ProbeKind::ALL
        .into_iter()
        .filter(|kind| {
            figures(*kind)
                .iter()
                .all(|figure| changes.iter().any(|change| change.invalidates(*figure)))
        })
        .collect()
}

/// What a revision would do, without storing anything.
///
/// # Errors
/// As [`revise`]; a request that does not say which revision it changes is answered for the current one.
pub async fn forecast_revision(
    context: &Context,
    caller: &Caller,
    id: StudyId,
    body: &[u8],
    expected: &Expected,
) -> Result<Forecast, ReviseError> {
    let proposal = propose(context, caller, id, body, expected).await?;
    let mut conn = context.database.connection().await?;
    let consequences = proposal.consequences(&mut conn).await?;
    let stand_ins = probes::evidence(&mut conn, &proposal.study).await?;
    drop(conn);
    let asked = Asked {
        project: &caller.project,
        study: Some(id),
        definition: &proposal.new,
        stand_ins: &stand_ins,
    };
    let replay = replay(context, asked).await?;
    let mut plan = plan::forecast(
        &proposal.new,
        replay.probes,
        replay.device_secs,
        replay.reused,
    );
    plan.warnings.extend(replay.warning());
    if let Some(waiting_for) = &proposal.waiting_for {
        plan.warnings
            .push(format!("the study would wait for {waiting_for}"));
    }
    Ok(Forecast {
        study: proposal.study,
        definition: proposal.new,
        consequences,
        plan,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::fixtures::succeeded;
    use crate::probe::Task;
    use crate::study::{resolve, validation};

    #[test]
    fn a_definition_written_by_another_program_means_the_same() {
        let body = json!({"workload": {"dataset": {"builtin": "digits"}}});
        let request = validation::parse(&body, &Default::default()).expect("valid");
        let old = resolve(request, None).expect("known");
        assert_eq!(old.model_from, ModelFrom::Default);
        let mut sent = serde_json::to_value(&old).expect("JSON");
        assert_eq!(sent["workload"]["model"]["dropout"], json!(0.0));
        // As jq and JavaScript write it.
        sent["workload"]["model"]["dropout"] = json!(0);
        let body = serde_json::to_vec(&sent).expect("JSON");
        let posted: Value = serde_json::from_slice(&as_posted(&body, &old)).expect("JSON");
        assert_eq!(posted["workload"].get("model"), None);
        assert_eq!(posted.get("model_from"), None);
        assert_eq!(posted["batch_sizes"].get("max"), None);

        // What the service never says is not taken silently.
        sent["model_from"] = json!("bogus");
        sent["batch_sizes"]["max_from"] = json!(5);
        let body = serde_json::to_vec(&sent).expect("JSON");
        let posted: Value = serde_json::from_slice(&as_posted(&body, &old)).expect("JSON");
        assert_eq!(posted["model_from"], "bogus");
        assert_eq!(posted["batch_sizes"]["max_from"], 5);
    }

    #[test]
    fn a_budget_of_memory_under_which_training_cannot_begin_as_before_moves_the_first_batch_size() {
        let with_budget = |bytes: u64| {
            let body = json!({
                "workload": {"dataset": {"builtin": "digits"}},
                "device": {"memory_budget_bytes": bytes}
            });
            let request = validation::parse(&body, &Default::default()).expect("valid");
            resolve(request, None).expect("known")
        };
        let old = with_budget(1 << 30);
        let first = old.first_batch_size().expect("a range");
        let peak = succeeded(
            Task::Memory { steps: 3 },
            first.0,
            0,
            &[(Metric::PeakMemory, 5e8)],
        );
        let evidence = Evidence { probes: vec![peak] };
        let moves = |bytes| moves_first_batch_size(&old, &with_budget(bytes), &evidence);
        assert!(!moves(1 << 31) && !moves(6 << 27));
        assert!(moves(1 << 28));
    }

    #[test]
    fn what_still_matters_goes_on_running() {
        assert_eq!(in_vain(&[Change::Prices, Change::Budget]), []);
        assert_eq!(in_vain(&[Change::Model]), ProbeKind::ALL);
        let in_vain = in_vain(&[Change::DeviceModel]);
        assert!(in_vain.contains(&ProbeKind::StepTime));
        assert!(!in_vain.contains(&ProbeKind::Training));
    }
}

//! Advancing a study: read the evidence at a version, work out what it means and what comes next
//! on a blocking thread with no transaction open, and commit only if nothing has changed since.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::DateTime;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Context;
use super::device::{self, Choice, Wish};
use crate::analysis::{self, Analysis, Evidence};
use crate::plan::{self, Next, Plan, PlannedProbe};
use crate::probe::{ProbeKind, fingerprint, inputs};
use crate::recommendation::{self, Advice};
use crate::store::devices::DeviceRow;
use crate::store::events::{self, EventKind};
use crate::store::probes::{LinkedWave, NewProbe, WavePlace};
use crate::store::studies::{self, Advanced, NewStudy, StudyRow};
use crate::store::{self, Connection, StoreError, devices, probes, recommendations};
use crate::study::defaults::DeviceFactsForDefaults;
use crate::study::{DeviceChoice, EndedBecause, StudyDefinition, StudyId, StudyState, defaults};

/// How often an advance starts over because the evidence changed under it. Every completion may
/// change it once, and the next wake-up tries again anyway.
const MAX_TRIES: usize = 8;

/// Waves in a row that need no new probe, before another study gets its turn. Nobody's wake-up is waited for
/// between them: a study that asks what is known already has its answer as fast as it can be worked out.
const MAX_ANSWERED: usize = 16;

/// Wake-ups within this time lead to one look.
const COALESCE: Duration = Duration::from_millis(40);

/// So many times as long as a look took is waited before the next: among thousands of studies it takes a while.
pub const PAUSE_FOR_A_LOOK: u32 = 19;

/// Studies that wait for a device are looked at this often at most,
const WAITING_EVERY: Duration = Duration::from_secs(1);
/// and this often at least. In between they are looked at while devices come, go or change, and for as long after that as it
/// may take to store a study that was worked out before.
const WAITING_ALWAYS: Duration = Duration::from_secs(10);
const STILL: Duration = Duration::from_secs(5);

/// Studies that one look takes on.
const STUDIES_PER_LOOK: i64 = 64;

/// What an advance did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// The study moved on, or its answers were refreshed.
    Moved,
    /// There was nothing to do.
    Nothing,
    /// The evidence kept changing; the next wake-up tries again.
    Overtaken,
}

/// What the evidence makes of a study: everything that is to be written.
#[derive(Debug, Clone)]
pub struct Step {
    analysis: Analysis,
    plan: Plan,
    advices: Vec<Advice>,
    wave: Vec<NewProbe>,
    waiting_for: Option<String>,
}

/// Analysis, plan and recommendations.
///
/// # Errors
/// When a result cannot be expressed as JSON: a defect.
fn work_out(
    project: &str,
    study: StudyId,
    definition: &StudyDefinition,
    evidence: &Evidence,
    waiting_for: Option<String>,
) -> Result<Step, StoreError> {
    let analysis = analysis::analyze(definition, evidence);
    let plan = plan::plan(definition, evidence, &analysis);
    let advices = recommendation::recommend(definition, evidence, &analysis);
    let owner = (!definition.reuse).then_some(study);
    let wave = match &plan.next {
        Next::Wave(planned) => new_probes(project, owner, planned)
            .map_err(|error| StoreError::unreadable(format!("study {study}"), error))?,
        _ => Vec::new(),
    };
    Ok(Step {
        analysis,
        plan,
        advices,
        wave,
        waiting_for,
    })
}

/// Planned probes as they are looked for and stored. `owner` is the study that refuses reuse.
pub(super) fn new_probes(
    project: &str,
    owner: Option<StudyId>,
    planned: &[PlannedProbe],
) -> Result<Vec<NewProbe>, serde_json::Error> {
    planned
        .iter()
        .map(|probe| {
            Ok(NewProbe {
                identity: fingerprint::identity(project, owner, &probe.spec)?,
                inputs: inputs::inputs(project, owner, &probe.spec)?,
                course: inputs::course(project, owner, &probe.spec)?,
                spec: probe.spec.clone(),
                why: probe.why.clone(),
                prediction: probe.prediction,
            })
        })
        .collect()
}

/// The first step of a study or of a revision. Nothing is looked up of what was measured before, so it takes less time
/// than to hand it to another thread would.
///
/// # Errors
/// When a result cannot be expressed as JSON: a defect.
pub fn first_step(
    project: &str,
    study: StudyId,
    definition: &StudyDefinition,
    waiting_for: Option<String>,
) -> Result<Step, StoreError> {
    work_out(
        project,
        study,
        definition,
        &Evidence::default(),
        waiting_for,
    )
}

/// What writing a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Nothing was written: the evidence has moved on.
    Overtaken,
    /// It is written, and there is something to wait for, or the study has ended.
    Written,
    /// It is written, and everything that it asks for is known already.
    Answered,
}

impl Step {
    /// How the study ends with it, if it does.
    fn ended(&self) -> Option<(EndedBecause, &str)> {
        match &self.plan.next {
            Next::Done { because, detail } => Some((*because, detail)),
            _ => None,
        }
    }

    /// What is written about the study itself.
    fn advanced(&self, version: i64, wave: i32) -> Advanced<'_> {
        Advanced {
            version,
            phase: &self.plan.phase,
            waiting_for: self.waiting_for.as_deref(),
            wave: (!self.wave.is_empty()).then_some(wave),
            remaining_probes: i64::try_from(self.plan.remaining_probes).unwrap_or(i64::MAX),
            remaining_device_secs: self.plan.remaining_device_secs,
            analysis: &self.analysis,
            ended: self.ended(),
        }
    }

    /// What the study's log says of it.
    fn log(&self, is_advice_new: bool) -> Vec<(EventKind, Value)> {
        let mut log = Vec::new();
        if is_advice_new {
            let topics: Vec<_> = self.advices.iter().map(|advice| advice.topic).collect();
            log.push((EventKind::Recommendations, json!({ "topics": topics })));
        }
        let because = self.ended().map(|(because, _)| because);
        let study = json!({
            "phase": self.plan.phase,
            "state": because.map(EndedBecause::state),
            "ended_because": because,
            "probes_planned": self.wave.len(),
        });
        log.push((EventKind::Study, study));
        log
    }
}

/// A study to be created, and its first step.
#[derive(Debug)]
pub struct Creation {
    pub id: StudyId,
    pub project: String,
    /// The name of who asked for it.
    pub created_by: String,
    pub definition: StudyDefinition,
    pub step: Step,
}

impl Creation {
    fn new_study<'a>(&'a self, wave: &'a [NewProbe]) -> NewStudy<'a> {
        let step = &self.step;
        NewStudy {
            id: self.id,
            project: &self.project,
            created_by: &self.created_by,
            definition: &self.definition,
            advanced: step.advanced(1, 0),
            log: step.log(!step.advices.is_empty()),
            advices: &step.advices,
            wave,
        }
    }

    /// The probes that it asks for first.
    pub(super) fn wave(&self) -> &[NewProbe] {
        &self.step.wave
    }

    /// Whether [`begin_unknown`] may be tried.
    pub(super) fn may_be_unknown(&self) -> bool {
        let wave = self.wave();
        wave.len() <= SHORT_WAVE && wave.iter().all(|new| new.course.is_none())
    }
}

/// Longest first wave that is stored with its study.
const SHORT_WAVE: usize = 16;

/// Stores a study with its first step, inside the caller's transaction.
///
/// # Errors
/// Those of the database.
pub async fn begin(
    conn: &mut Connection,
    creation: &Creation,
) -> Result<(StudyRow, LinkedWave), StoreError> {
    let row = studies::insert(conn, &creation.new_study(&[])).await?;
    let place = WavePlace {
        project: &creation.project,
        created_by: &creation.created_by,
        study: creation.id,
        revision: row.revision,
        wave: 0,
    };
    let linked = link(conn, place, &creation.step).await?;
    Ok((row, linked))
}

/// The same of several in one transaction of their own and in one way to the database, where nothing is known yet of what they
/// ask for first, as it is most often: of one that asks for a probe that is answered already nothing is stored, and what is
/// given back for it is none. A probe that another study has, but that is not answered, is linked. No two of them may ask for
/// the same.
///
/// # Errors
/// Those of the database; nothing is stored then.
pub async fn begin_unknown(
    conn: &mut Connection,
    creations: &[Arc<Creation>],
) -> Result<Vec<Option<(StudyRow, LinkedWave)>>, StoreError> {
    let news = creations.iter().map(|it| it.new_study(it.wave()));
    let begun = studies::insert_together(conn, &news.collect::<Vec<_>>()).await?;
    for (row, linked) in &begun {
        if linked.counts.ended() > 0
            && let Err(error) = studies::make_due(conn, row.study_id()).await
        {
            // Ended while it was linked. The study is stored: it is found later among those that wait for nothing.
            tracing::warn!(study = %row.id, %error, "the plan of a new study is not due yet");
        }
    }
    let mut begun: HashMap<StudyId, _> = begun
        .into_iter()
        .map(|begun| (begun.0.study_id(), begun))
        .collect();
    Ok(creations.iter().map(|it| begun.remove(&it.id)).collect())
}

/// Links the wave of a step, if it has one. When some of it has ended already, the plan is due again.
async fn link(
    conn: &mut Connection,
    place: WavePlace<'_>,
    step: &Step,
) -> Result<LinkedWave, StoreError> {
    if step.wave.is_empty() {
        return Ok(LinkedWave::default());
    }
    let linked = probes::link_wave(conn, place, &step.wave).await?;
    if linked.counts.ended() > 0 {
        studies::make_due(conn, place.study).await?;
    }
    Ok(linked)
}

/// Writes a step, worked out from the evidence of a version, inside the caller's transaction.
///
/// # Errors
/// Those of the database.
pub async fn apply(
    conn: &mut Connection,
    place: WavePlace<'_>,
    version: i64,
    step: &Step,
) -> Result<Applied, StoreError> {
    let advanced = step.advanced(version, place.wave);
    if !studies::set_advanced(conn, place.study, &advanced).await? {
        return Ok(Applied::Overtaken);
    }
    let ended = link(conn, place, step).await?.counts.ended();
    if advanced.ended.is_some() && place.revision > 1 {
        // The plan is past everything that earlier revisions began.
        probes::cancel_superseded(conn, place.study, &ProbeKind::ALL).await?;
    }
    let is_advice_new =
        recommendations::replace(conn, place.study, place.revision, &step.advices).await?;
    events::append(conn, place.study, &step.log(is_advice_new)).await?;
    let is_answered = ended > 0 && usize::try_from(ended).is_ok_and(|it| it == step.wave.len());
    Ok(if is_answered {
        Applied::Answered
    } else {
        Applied::Written
    })
}

/// Moves a study on as far as its evidence allows.
///
/// # Errors
/// Those of the database; nothing is half-written then.
pub async fn advance(context: &Context, id: StudyId) -> Result<Advance, StoreError> {
    let mut tries = 0;
    let mut answered = 0;
    while tries < MAX_TRIES {
        let mut conn = context.database.connection().await?;
        let Some(study) = studies::find_anywhere(&mut conn, id).await? else {
            return Ok(Advance::Nothing);
        };
        let nothing = if answered > 0 {
            Advance::Moved
        } else {
            Advance::Nothing
        };
        if study.study_state().has_ended() {
            return Ok(nothing);
        }
        let mut definition = studies::definition(&mut conn, &study).await?;
        let mut filled = false;
        let mut waiting_for = None;
        if definition.device.resolved().is_none() {
            let live = devices::live(&mut conn, context.alive_secs).await?;
            match found(&definition.device, &definition.runner.name, &live) {
                Ok(facts) => {
                    defaults::fill_device(&mut definition, &facts);
                    filled = true;
                }
                Err(what) => waiting_for = Some(what),
            }
        }
        if study.evidence_version == study.advanced_version
            && !filled
            && waiting_for == study.waiting_for
        {
            return Ok(nothing);
        }
        let evidence = probes::evidence(&mut conn, &study).await?;
        let wave = i32::try_from(evidence.next_wave()).unwrap_or(i32::MAX);
        drop(conn);

        let project = study.project.clone();
        let work = move || {
            let step = work_out(&project, id, &definition, &evidence, waiting_for)?;
            Ok::<_, StoreError>((step, definition))
        };
        let (step, definition) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| StoreError::unreadable(format!("study {id}"), error))??;

        let place = WavePlace {
            project: &study.project,
            created_by: &study.created_by,
            study: id,
            revision: study.revision,
            wave,
        };
        let version = study.evidence_version;
        let new_definition = filled.then_some(&definition);
        let mut conn = context.database.connection().await?;
        store::begin(&mut conn).await?;
        let work = write(&mut conn, place, version, &step, new_definition).await;
        let applied = store::finish(&mut conn, work).await?;
        drop(conn);
        match applied {
            Applied::Overtaken => tries += 1,
            Applied::Answered if answered < MAX_ANSWERED => {
                context.waker.tell();
                log_step(id, &step.plan);
                answered += 1;
            }
            Applied::Written | Applied::Answered => {
                context.waker.wake();
                log_step(id, &step.plan);
                return Ok(Advance::Moved);
            }
        }
    }
    Ok(Advance::Overtaken)
}

/// The live device for a study, or what it has to wait for.
fn found(
    asked: &DeviceChoice,
    runner: &str,
    live: &[DeviceRow],
) -> Result<DeviceFactsForDefaults, String> {
    let wish = Wish {
        backend: asked.backend,
        model: asked.model.as_deref(),
        count: asked.count,
        memory_budget: asked.memory_budget_bytes,
        runner,
    };
    match device::choose(wish, live) {
        Choice::One(facts) => Ok(facts),
        Choice::None { waiting_for } => Err(waiting_for),
        unfit @ (Choice::Ambiguous { .. } | Choice::TooSmall { .. }) => {
            Err(unfit.violation().map_or_else(
                || "a device that fits".to_owned(),
                |violation| {
                    format!(
                        "a device that fits: {} {}",
                        violation.pointer, violation.detail
                    )
                },
            ))
        }
    }
}

/// Writes a step and, when a device has just filled it in, the definition.
async fn write(
    conn: &mut Connection,
    place: WavePlace<'_>,
    version: i64,
    step: &Step,
    new_definition: Option<&StudyDefinition>,
) -> Result<Applied, StoreError> {
    let applied = apply(conn, place, version, step).await?;
    if applied != Applied::Overtaken
        && let Some(definition) = new_definition
    {
        studies::update_definition(conn, place.study, place.revision, definition).await?;
    }
    Ok(applied)
}

fn log_step(study: StudyId, plan: &Plan) {
    match &plan.next {
        Next::Done { because, detail } => {
            let state: StudyState = because.state();
            if matches!(
                because,
                EndedBecause::PipelineBroken | EndedBecause::ProbesFailed
            ) {
                tracing::warn!(%study, state = state.as_str(), because = because.as_str(), detail, "study ended");
            } else {
                tracing::info!(%study, state = state.as_str(), because = because.as_str(), detail, "study ended");
            }
        }
        Next::Wave(wave) => {
            tracing::info!(%study, probes = wave.len(), phase = plan.phase, "wave planned");
        }
        Next::WaitForDevice | Next::WaitForProbes => {
            tracing::debug!(%study, phase = plan.phase, "study waits");
        }
    }
}

/// Advances every study that is due, on wake-ups and on a slow tick, until told to stop. Those that wait for a device are
/// looked at less often: mostly none has come.
pub async fn run_advancer(context: Context, tick: Duration, mut stop: watch::Receiver<bool>) {
    let mut wake = context.waker.subscribe();
    let waiting_every = WAITING_EVERY.min(tick);
    let mut next_waiting = Instant::now();
    let mut looks = Looks::default();
    loop {
        wake.mark_unchanged();
        let mut full = false;
        let mut took = Duration::ZERO;
        match advance_due(&context, &mut took).await {
            Ok(moved) => full = moved >= STUDIES_PER_LOOK,
            Err(error) => tracing::warn!(%error, "studies could not be advanced; trying again"),
        }
        if Instant::now() >= next_waiting {
            next_waiting = Instant::now() + waiting_every;
            match advance_waiting(&context, &mut looks).await {
                Ok(moved) if moved >= STUDIES_PER_LOOK => {
                    full = true;
                    next_waiting = Instant::now();
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "waiting studies could not be looked at; trying again");
                }
            }
        }
        if full {
            // Some were left for the next look.
            continue;
        }
        let was_woken = tokio::select! {
            _ = wake.changed() => true,
            () = tokio::time::sleep(waiting_every) => false,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        if was_woken {
            // Many completions at once are one look, not many.
            let pause = COALESCE.max((PAUSE_FOR_A_LOOK * took).min(waiting_every));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

/// One look at everything that is due. Gives how many studies moved, and how long it took to find them.
async fn advance_due(context: &Context, took: &mut Duration) -> Result<i64, StoreError> {
    let due = {
        let mut conn = context.database.connection().await?;
        let began = Instant::now();
        let due = studies::due(&mut conn, STUDIES_PER_LOOK).await;
        *took = began.elapsed();
        due?
    };
    advance_each(context, due).await
}

/// When waiting studies have to be looked at.
#[derive(Debug, Default)]
struct Looks {
    /// What the devices were when they were looked at, and since when.
    devices: Option<(Vec<DeviceRow>, Instant)>,
    last: Option<Instant>,
}

impl Looks {
    fn is_due(&mut self, live: &[DeviceRow]) -> bool {
        // That one was seen again is no change.
        let devices: Vec<DeviceRow> = live
            .iter()
            .map(|device| DeviceRow {
                last_seen: DateTime::UNIX_EPOCH,
                ..device.clone()
            })
            .collect();
        if !matches!(&self.devices, Some((known, _)) if *known == devices) {
            self.devices = Some((devices, Instant::now()));
        }
        let within = |at: Option<Instant>, time| at.is_some_and(|at| at.elapsed() < time);
        let changed = self.devices.as_ref().map(|(_, since)| *since);
        within(changed, STILL) || !within(self.last, WAITING_ALWAYS)
    }
}

/// Advances the waiting studies for which a device has come, or something else is missing than before.
async fn advance_waiting(context: &Context, looks: &mut Looks) -> Result<i64, StoreError> {
    let live = context.live_devices().await?;
    if !looks.is_due(&live) {
        return Ok(0);
    }
    let changed: Vec<StudyId> = {
        let mut conn = context.database.connection().await?;
        studies::waiting(&mut conn)
            .await?
            .into_iter()
            // Where the device is known, its worker is waited for: housekeeping says when it is there.
            .filter(|study| study.device.resolved().is_none())
            .filter(|study| match found(&study.device, &study.runner, &live) {
                Ok(_) => true,
                Err(what) => study.waiting_for.as_ref() != Some(&what),
            })
            .map(|study| study.id)
            .take(usize::try_from(STUDIES_PER_LOOK).unwrap_or(usize::MAX))
            .collect()
    };
    let found = changed.len();
    let moved = advance_each(context, changed).await?;
    // Where it was full, some were left for the next look.
    let is_full = i64::try_from(found).is_ok_and(|found| found >= STUDIES_PER_LOOK);
    looks.last = (!is_full).then(Instant::now);
    Ok(moved)
}

async fn advance_each(context: &Context, ids: Vec<StudyId>) -> Result<i64, StoreError> {
    let mut moved = 0;
    for id in ids {
        match advance(context, id).await {
            Ok(Advance::Moved) => moved += 1,
            Ok(Advance::Nothing | Advance::Overtaken) => {}
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            // One study that cannot be read must not hold up the others.
            Err(error) => tracing::error!(study = %id, %error, "study could not be advanced"),
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn device(model: &str) -> DeviceRow {
        DeviceRow {
            id: Uuid::nil(),
            host: "here".into(),
            hardware: "cpu".into(),
            backend: "cpu".into(),
            model: model.into(),
            driver: None,
            threads: 2,
            memory_bytes: 1 << 30,
            available_bytes: 1 << 30,
            slots: 1,
            count: 1,
            runners: vec!["burn".into()],
            last_seen: DateTime::UNIX_EPOCH,
        }
    }

    /// Looks at `live` so long after they came, and so long after the last look.
    fn looks(live: &[DeviceRow], came: Duration, last: Duration) -> Looks {
        let before = |time| Instant::now().checked_sub(time);
        Looks {
            devices: before(came).map(|at| (live.to_vec(), at)),
            last: before(last),
        }
    }

    #[test]
    fn waiting_studies_are_looked_at_while_devices_change_and_now_and_then() {
        let second = Duration::from_secs(1);
        let live = [device("a")];
        assert!(Looks::default().is_due(&live), "nobody has looked yet");
        assert!(looks(&live, 2 * second, second).is_due(&live), "just come");
        assert!(!looks(&live, 2 * STILL, second).is_due(&live));
        assert!(looks(&live, 2 * STILL, WAITING_ALWAYS).is_due(&live));
        // Another one, or none any more, is a change; that it was seen again is none.
        assert!(looks(&live, 2 * STILL, second).is_due(&[device("b")]));
        assert!(looks(&live, 2 * STILL, second).is_due(&[]));
        let mut again = device("a");
        again.last_seen += second;
        assert!(!looks(&live, 2 * STILL, second).is_due(&[again]));
        // Where the last look was full, there is more to be looked at.
        let mut full = looks(&live, 2 * STILL, second);
        full.last = None;
        assert!(full.is_due(&live));
    }
}

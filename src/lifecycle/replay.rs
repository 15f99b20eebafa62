//! Planning a study in memory: from no evidence, wave after wave, each answered by what is stored, until
//! something is missing. This is what a study would do with everything that is known, and it writes nothing.
//!
//! Where a probe is missing and a revision before has one like it (the same task at the same batch size on another
//! device, say), that one stands in, so that what comes after it can be counted too: another device takes other
//! times, but a study of it goes the same way, about. Without a stand-in the plan's own estimate of what is left has
//! to do.

use super::Context;
use super::advance::new_probes;
use crate::analysis::{self, Evidence, ProbeRecord};
use crate::plan::{self, Next, PlannedProbe};
use crate::probe::{ProbeKind, ProbeSpec, ProbeState, Task};
use crate::store::{StoreError, answers};
use crate::study::{EndedBecause, ProbeId, StudyDefinition, StudyId};

/// Waves that are followed at most: no study has as many.
const MOST_WAVES: u32 = 10_000;

/// What a study would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Probes that are taken over.
    pub reused: u64,
    /// Probes that must be made, about.
    pub probes: u64,
    /// Device time that they take, about, seconds.
    pub device_secs: f64,
    /// How the study would end, as far as that was followed.
    pub ends: Option<EndedBecause>,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub project: &'a str,
    /// The study, if there is one already: what it made itself counts against its budget.
    pub study: Option<StudyId>,
    pub definition: &'a StudyDefinition,
    /// Probes that stand in for those that are missing.
    pub stand_ins: &'a Evidence,
}

/// Follows a study's plan as far as what is stored answers it.
///
/// # Errors
/// Those of the database.
pub async fn replay(context: &Context, asked: Asked<'_>) -> Result<Replay, StoreError> {
    let owner = asked.study.filter(|_| !asked.definition.reuse);
    let mut evidence = Evidence::default();
    let mut replay = Replay {
        reused: 0,
        probes: 0,
        device_secs: 0.0,
        ends: None,
    };
    for wave in 0..MOST_WAVES {
        let (next, remaining) = look(asked.definition, &evidence).await?;
        let planned = match next {
            Next::Wave(planned) => planned,
            Next::WaitForDevice => {
                replay.add(remaining);
                return Ok(replay);
            }
            Next::WaitForProbes => return Ok(replay),
            Next::Done { because, .. } => {
                replay.ends = Some(because);
                return Ok(replay);
            }
        };
        let wanted = new_probes(asked.project, owner, &planned)
            .map_err(|error| StoreError::unreadable("a plan", error))?;
        // A new study that refuses reuse has nothing to take over.
        let known = if asked.study.is_none() && !asked.definition.reuse {
            vec![None; wanted.len()]
        } else {
            let mut conn = context.database.connection().await?;
            answers::find_known(&mut conn, asked.project, asked.study, wave, &wanted).await?
        };
        let mut is_complete = true;
        for (position, (planned, known)) in (0_u32..).zip(planned.into_iter().zip(known)) {
            if let Some(known) = known {
                replay.reused += 1;
                evidence.probes.push(known);
                continue;
            }
            let stand_in = stand_in(asked.stand_ins, &planned.spec);
            is_complete &= stand_in.is_some();
            if let Some(stand_in) = stand_in {
                replay.add((1, stand_in.device_secs));
            }
            evidence
                .probes
                .push(assumed(planned, stand_in, wave, position));
        }
        if !is_complete {
            let (_, remaining) = look(asked.definition, &evidence).await?;
            replay.add(remaining);
            return Ok(replay);
        }
    }
    Ok(replay)
}

impl Replay {
    /// What the caller should know before.
    pub fn warning(&self) -> Option<String> {
        (self.ends == Some(EndedBecause::BudgetExhausted)).then(|| {
            "the budget ends before everything that is asked is answered: what was spent before counts too, so raise it, or ask less".to_owned()
        })
    }

    fn add(&mut self, (probes, device_secs): (u64, f64)) {
        self.probes += probes;
        self.device_secs += device_secs;
    }
}

/// What the plan makes of the evidence, on a blocking thread: what comes next, and about how much is left.
async fn look(
    definition: &StudyDefinition,
    evidence: &Evidence,
) -> Result<(Next, (u64, f64)), StoreError> {
    let (definition, evidence) = (definition.clone(), evidence.clone());
    let work = move || {
        let analysis = analysis::analyze(&definition, &evidence);
        let plan = plan::plan(&definition, &evidence, &analysis);
        (
            plan.next,
            (plan.remaining_probes, plan.remaining_device_secs),
        )
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| StoreError::unreadable("a plan", error))
}

/// A probe like the one that is missing: one with the same task, else a training run to another target.
fn stand_in<'a>(stand_ins: &'a Evidence, wanted: &ProbeSpec) -> Option<&'a ProbeRecord> {
    let kind = wanted.kind();
    let is_like = |probe: &&ProbeRecord| {
        let spec = &probe.spec;
        probe.state.has_ended()
            && (spec.batch_size, spec.replicate) == (wanted.batch_size, wanted.replicate)
            && match kind {
                // How training goes is a matter of its hyperparameters.
                ProbeKind::Training | ProbeKind::NoiseScale => {
                    spec.optimizer == wanted.optimizer
                        && spec.workload.label_smoothing == wanted.workload.label_smoothing
                        && spec.workload.model.dropout() == wanted.workload.model.dropout()
                }
                _ => true,
            }
    };
    let mut same = stand_ins.of_kind(kind).filter(is_like);
    same.find(|probe| probe.spec.task == wanted.task)
        .or_else(|| {
            let mut like = stand_ins.of_kind(kind).filter(is_like);
            like.find(|probe| is_other_target(&probe.spec.task, &wanted.task))
        })
        .or_else(|| nearest(stand_ins, wanted))
}

/// Of probes that ask whether and how a batch size runs, the one with the nearest batch size.
fn nearest<'a>(stand_ins: &'a Evidence, wanted: &ProbeSpec) -> Option<&'a ProbeRecord> {
    let kind = wanted.kind();
    let of_memory = matches!(
        kind,
        ProbeKind::Smoke | ProbeKind::Memory | ProbeKind::Confirmation
    );
    let distance = |probe: &&ProbeRecord| {
        let ratio = probe.batch_size().as_f64() / wanted.batch_size.as_f64();
        ratio.ln().abs()
    };
    stand_ins
        .of_kind(kind)
        .filter(|probe| of_memory && probe.succeeded())
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// Whether two training runs differ in nothing but target and cap.
fn is_other_target(a: &Task, b: &Task) -> bool {
    match (a, b) {
        (Task::Training(a), Task::Training(b)) => {
            a.target.is_some() == b.target.is_some() && a.endless() == b.endless()
        }
        _ => false,
    }
}

/// A probe that is yet to be made: as its stand-in was, or open.
fn assumed(
    planned: PlannedProbe,
    stand_in: Option<&ProbeRecord>,
    wave: u32,
    position: u32,
) -> ProbeRecord {
    let open = ProbeRecord {
        id: ProbeId(uuid::Uuid::nil()),
        spec: planned.spec,
        state: ProbeState::Queued,
        infeasible: None,
        failure: None,
        detail: None,
        wave,
        position,
        reused: false,
        device_secs: 0.0,
        prediction: planned.prediction,
        figures: Default::default(),
    };
    match stand_in {
        None => open,
        Some(it) => ProbeRecord {
            state: it.state,
            infeasible: it.infeasible,
            failure: it.failure,
            detail: it.detail.clone(),
            device_secs: it.device_secs,
            figures: it.figures.clone(),
            ..open
        },
    }
}

//! Does the pipeline run at all: a few steps and two evaluations at the smallest batch size.

use super::Wish;
use super::specs::{self as tasks, Specs};
use crate::analysis::{Analysis, Evidence};
use crate::probe::{FailureReason, InfeasibleReason, ProbeKind, ProbeState};
use crate::study::{EndedBecause, StudyDefinition};

pub fn wish(
    specs: &Specs<'_>,
    definition: &StudyDefinition,
    evidence: &Evidence,
    _analysis: &Analysis,
) -> Wish {
    let Some(probe) = evidence.of_kind(ProbeKind::Smoke).next() else {
        let min = definition.batch_sizes.min;
        return Wish::Probes(vec![specs.probe(
                tasks::SMOKE,
            min,
            0,
            format!("before anything is measured: does training run at batch size {min}, and does evaluation repeat?"),
        )]);
    };
    let detail = probe.detail.clone().unwrap_or_default();
    match (probe.state, probe.infeasible) {
        (ProbeState::Succeeded, _) => Wish::Nothing,
        // What fits is the next phase's to say.
        (
            ProbeState::Infeasible,
            Some(InfeasibleReason::OutOfMemory | InfeasibleReason::TooSlow),
        ) => Wish::Nothing,
        (ProbeState::Infeasible, Some(InfeasibleReason::DeviceUnsupported)) => Wish::End(
            EndedBecause::ProbesFailed,
            format!("the device cannot run this workload: {detail}"),
        ),
        (ProbeState::Infeasible, Some(InfeasibleReason::RunnerUnsupported)) => Wish::End(
            EndedBecause::ProbesFailed,
            format!("the runner cannot train this workload: {detail}"),
        ),
        (ProbeState::Infeasible, _) => Wish::End(
            EndedBecause::PipelineBroken,
            format!("E_PIPELINE: {detail}; the smoke probe's log tells more"),
        ),
        // It ended every time, whoever ran it: the training code's own doing.
        (ProbeState::Failed, _) if probe.failure == Some(FailureReason::Crashed) => Wish::End(
            EndedBecause::PipelineBroken,
            format!("E_PIPELINE: the smoke probe crashed in every attempt: {detail}"),
        ),
        _ => Wish::End(
            EndedBecause::ProbesFailed,
            format!("the smoke probe failed after every attempt: {detail}; its log tells more"),
        ),
    }
}

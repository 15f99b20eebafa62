//! What keeps steps from being shorter, what would mend it, and how far that would get.

use serde_json::{Value, json};

use super::throughput::{rate, time};
use super::{Advice, Basis, Confidence, Grade, Topic, devices, is_contended, references};
use crate::analysis::devices::SERIES;
use crate::analysis::{
    Analysis, Bottleneck, BottleneckAnalysis, BottleneckPoint, Caveat, CommunicationPoint,
    Estimate, Evidence, Finding,
};
use crate::probe::{InfeasibleReason, ProbeKind};
use crate::study::StudyDefinition;

const PLAYBOOK: &str = "determining-the-feasible-batch-sizes-and-estimating-training-throughput";

/// Reading the loss in every step is remarked on from this ratio on, where training does not do it.
const READBACK_WORTH_A_WORD: f64 = 1.05;

pub fn advise(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let Some(bottleneck) = analysis.bottleneck.as_ref() else {
        return of_communication(definition, evidence, analysis);
    };
    let start = analysis.start.as_ref()?;
    let mut point = bottleneck.nearest(start.batch_size)?.clone();
    if let Some(communication) = devices::communication(analysis) {
        point.findings.extend(devices::finding(communication));
        if communication.is_bound.is_none() {
            point.undetermined.push(Bottleneck::CommunicationBound);
        }
    }
    let point = &point;
    let (grade, because) = grade(bottleneck, point, analysis);
    Some(Advice {
        topic: Topic::Bottleneck,
        value: json!({
            "bottleneck": point.findings.first().map(|finding| finding.label),
            "batch_size": point.batch_size,
            "fix_bottleneck_first": first_to_fix(bottleneck, analysis).is_some(),
            "findings": point.findings,
            "undetermined": point.undetermined,
            "communication": by_batch_size(analysis),
            "time_secs": parts(point),
            "by_batch_size": bottleneck.points.iter().map(|point| json!({
                "batch_size": point.batch_size,
                "labels": point.findings.iter().map(|finding| finding.label).collect::<Vec<_>>(),
                "undetermined": point.undetermined,
            })).collect::<Vec<_>>(),
        }),
        summary: summary(definition, point),
        basis: Basis::Measured,
        confidence: Confidence {
            grade,
            because,
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| {
            matches!(probe.kind(), ProbeKind::InputPipeline | ProbeKind::StepTime)
        }),
        caveats: [&bottleneck.caveats[..], devices::caveats(analysis)].concat(),
        playbook: PLAYBOOK.into(),
    })
}

fn by_batch_size(analysis: &Analysis) -> Option<&[CommunicationPoint]> {
    analysis.devices.as_ref().map(|it| &it.communication[..])
}

/// What can be said where the parts of a step were not timed, because the runner does so on one device only.
fn of_communication(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let devices = analysis.devices.as_ref()?;
    let point = devices::communication(analysis)?;
    let finding = devices::finding(point);
    let (label, size) = (Bottleneck::CommunicationBound, point.batch_size);
    let known = devices::said(&point.share, devices.devices);
    let mut summary = match (&finding, point.is_bound) {
        (Some(finding), _) => format!(
            "Training is {}: at batch size {size}, {known}. To mend it: {}. That would reach {} examples/s at most.",
            name(label),
            finding.fix,
            rate(finding.ceiling_examples_per_sec.unwrap_or(0.0))
        ),
        (None, Some(_)) => {
            format!("Communication does not hold training up: at batch size {size}, {known}.")
        }
        (None, None) => format!(
            "Whether communication holds training up is not told apart from noise: at batch size {size}, {known}."
        ),
    };
    if evidence
        .of_kind(ProbeKind::InputPipeline)
        .any(|probe| probe.infeasible == Some(InfeasibleReason::RunnerUnsupported))
    {
        summary.push_str(&format!(
            " The runner times the parts of a step on one device only: ask the same of device.count 1 and batch size {}.",
            size.0 / u64::from(devices.devices)
        ));
    }
    let (grade, because) = if is_contended(&devices.caveats) {
        (Grade::Low, "the host was not steady while times were taken")
    } else {
        // Loading, launching and arithmetic were not looked at.
        (
            Grade::Moderate,
            "communication is all that was looked at, the other parts of a step were not",
        )
    };
    Some(Advice {
        topic: Topic::Bottleneck,
        value: json!({
            "bottleneck": finding.as_ref().map(|finding| finding.label),
            "batch_size": size,
            "devices": definition.device.count,
            "fix_bottleneck_first": false,
            "findings": finding.as_slice(),
            "undetermined": if point.is_bound.is_none() { vec![label] } else { Vec::new() },
            "communication": devices.communication,
        }),
        summary,
        basis: Basis::Measured,
        confidence: Confidence {
            grade,
            because: because.into(),
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| probe.series() == SERIES),
        caveats: devices.caveats.clone(),
        playbook: PLAYBOOK.into(),
    })
}

/// What is to be mended before a batch size is chosen, at the batch size to start with.
pub fn first_to_fix<'a>(
    bottleneck: &'a BottleneckAnalysis,
    analysis: &Analysis,
) -> Option<&'a Finding> {
    let start = analysis.start.as_ref()?;
    bottleneck
        .nearest(start.batch_size)?
        .findings
        .iter()
        .find(|finding| finding.label.comes_first())
}

/// What other advice about a batch size has to say of its bottlenecks.
pub fn remarks(analysis: &Analysis) -> Vec<Caveat> {
    let point = analysis
        .bottleneck
        .as_ref()
        .zip(analysis.start.as_ref())
        .and_then(|(bottleneck, start)| bottleneck.nearest(start.batch_size));
    point
        .into_iter()
        .flat_map(|point| point.findings.iter().map(move |finding| (finding, point)))
        .filter_map(|(finding, point)| {
            Some(Caveat {
                code: finding.label.caveat_code()?.to_owned(),
                detail: format!("{}: {}", said(finding, point), finding.fix),
            })
        })
        .chain(devices::remark(analysis))
        .collect()
}

fn parts(point: &BottleneckPoint) -> Value {
    let parts = &point.parts;
    json!({
        "prefetched": parts.prefetched.value,
        "unprefetched": parts.unprefetched.value,
        "load": parts.load.value,
        "transfer": parts.transfer.value,
        "synthetic": parts.synthetic.value,
        "readback": parts.readback.value,
        "forward": parts.forward.value,
        "forward_backward": parts.forward_backward.value,
        "optimizer": parts.optimizer_secs,
    })
}

fn grade(
    bottleneck: &BottleneckAnalysis,
    point: &BottleneckPoint,
    analysis: &Analysis,
) -> (Grade, String) {
    if is_contended(&bottleneck.caveats) || is_contended(devices::caveats(analysis)) {
        (
            Grade::Low,
            "the host was not steady while times were taken".into(),
        )
    } else if point.input_ratio.ci_lower.is_none() {
        (Grade::Low, "one process has no interval".into())
    } else if point.undetermined.is_empty() {
        (
            Grade::High,
            "every ratio is told apart from its threshold".into(),
        )
    } else {
        (
            Grade::Moderate,
            "some ratios are not told apart from their thresholds".into(),
        )
    }
}

fn name(label: Bottleneck) -> &'static str {
    match label {
        Bottleneck::InputBound => "input-bound",
        Bottleneck::SyncBound => "synchronisation-bound",
        Bottleneck::LaunchBound => "launch-bound",
        Bottleneck::ComputeBound => "compute-bound",
        Bottleneck::BandwidthBound => "bandwidth-bound",
        Bottleneck::CommunicationBound => "communication-bound",
    }
}

/// What was found, with its figures.
fn said(finding: &Finding, point: &BottleneckPoint) -> String {
    let ratio = &finding.ratio;
    let at = format!("at batch size {}", point.batch_size);
    match finding.label {
        Bottleneck::InputBound => format!(
            "{at} a step takes {} as long as on synthetic data, because it waits for its batch",
            times(ratio)
        ),
        Bottleneck::SyncBound => format!(
            "{at} reading the loss in every step makes it take {} as long",
            times(ratio)
        ),
        Bottleneck::LaunchBound => format!(
            "{at} a step hardly takes longer with a larger batch (d ln t/d ln B {}), so launching work costs more than the work",
            figure(ratio)
        ),
        Bottleneck::ComputeBound => format!(
            "{at} the model's arithmetic runs at {} of the rate of a plain matrix multiplication",
            figure(ratio)
        ),
        Bottleneck::BandwidthBound => format!(
            "{at} the model's arithmetic runs at only {} of the rate of a plain matrix multiplication",
            figure(ratio)
        ),
        Bottleneck::CommunicationBound => format!(
            "{at} the devices spend {} of a step on bringing their gradients together",
            figure(ratio)
        ),
    }
}

fn figure(estimate: &Estimate) -> String {
    match (estimate.ci_lower, estimate.ci_upper) {
        (Some(lower), Some(upper)) => format!("{:.2} ({lower:.2} to {upper:.2})", estimate.value),
        _ => format!("{:.2}", estimate.value),
    }
}

fn times(estimate: &Estimate) -> String {
    match (estimate.ci_lower, estimate.ci_upper) {
        (Some(lower), Some(upper)) => {
            format!("{:.2} times ({lower:.2} to {upper:.2})", estimate.value)
        }
        _ => format!("{:.2} times", estimate.value),
    }
}

fn summary(definition: &StudyDefinition, point: &BottleneckPoint) -> String {
    let size = point.batch_size;
    let mut text = match point.findings.first() {
        Some(finding) => {
            let mut text = format!(
                "Training is {}: {}. To mend it: {}.",
                name(finding.label),
                said(finding, point),
                finding.fix
            );
            if let Some(ceiling) = finding.ceiling_examples_per_sec {
                text.push_str(&format!(
                    " That would reach {} examples/s at most.",
                    rate(ceiling)
                ));
            }
            text
        }
        None => format!(
            "Nothing stands out at batch size {size}: neither loading ({:.2}) nor launching is what a step waits for.",
            point.input_ratio.value
        ),
    };
    let parts = &point.parts;
    text.push_str(&format!(
        " Of {} a step on synthetic data, the forward pass takes {}, the backward pass {} and the optimizer {}; gathering a batch takes {}.",
        time(parts.synthetic.value),
        time(parts.forward.value),
        time((parts.forward_backward.value - parts.forward.value).max(0.0)),
        time(parts.optimizer_secs),
        time(parts.load.value),
    ));
    let would_cost = point
        .readback_ratio
        .ci_lower
        .is_some_and(|lower| lower >= READBACK_WORTH_A_WORD);
    if would_cost && !definition.workload.read_loss_every_step {
        text.push_str(&format!(
            " Do not read the loss in every step: it would take {} as long.",
            times(&point.readback_ratio)
        ));
    }
    text
}

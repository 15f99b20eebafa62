//! What several devices bring, as a part of the advice on throughput, bottlenecks and resources.

use serde_json::{Value, json};

use super::throughput::{rate, time};
use crate::analysis::devices::COMMUNICATION_BOUND;
use crate::analysis::{
    Analysis, Bottleneck, Caveat, CommunicationPoint, DevicesAnalysis, Estimate, Finding,
};
use crate::study::StudyDefinition;

/// Communication at the batch size to start with, or else the nearest that was timed.
pub fn communication(analysis: &Analysis) -> Option<&CommunicationPoint> {
    let start = analysis.start.as_ref()?.batch_size.as_f64();
    let distance = |it: &&CommunicationPoint| (it.batch_size.as_f64() / start).ln().abs();
    analysis
        .devices
        .as_ref()?
        .communication
        .iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// What keeps steps at a batch size from being shorter, if it is communication.
pub fn finding(point: &CommunicationPoint) -> Option<Finding> {
    (point.is_bound == Some(true)).then(|| Finding {
        label: Bottleneck::CommunicationBound,
        ratio: point.share,
        threshold: COMMUNICATION_BOUND,
        fix: "a larger batch for each device, or the gradients of several micro-batches added up before they are averaged; reduce while the backward pass still runs, in fewer and larger pieces, in lower precision; a faster link; or fewer devices".into(),
        ceiling_examples_per_sec: Some(point.batch_size.as_f64() / point.alone_secs),
    })
}

/// What was found, with its figures.
pub fn said(share: &Estimate, devices: u32) -> String {
    format!(
        "{} of a step on {devices} devices is communication: one of them with its share alone would be done by then",
        percent(share)
    )
}

/// What it puts on other advice.
pub fn remark(analysis: &Analysis) -> Option<Caveat> {
    let finding = finding(communication(analysis)?)?;
    Some(Caveat {
        code: finding.label.caveat_code()?.to_owned(),
        detail: format!(
            "{}: {}",
            said(&finding.ratio, analysis.devices.as_ref()?.devices),
            finding.fix
        ),
    })
}

/// Remarks on how times on several devices were taken, for every advice that rests on them.
pub fn caveats(analysis: &Analysis) -> &[Caveat] {
    analysis.devices.as_ref().map_or(&[], |it| &it.caveats)
}

/// What the figures for fewer devices take for granted, where that is not known to hold.
pub fn steps_remark(definition: &StudyDefinition, analysis: &Analysis) -> Option<Caveat> {
    let devices = analysis.devices.as_ref()?;
    let tells = devices
        .by_count
        .iter()
        .any(|it| it.devices < devices.devices);
    (tells && definition.workload.may_look_across_examples()).then(|| Caveat {
        code: "W_STEPS_BY_SHARE".into(),
        detail: format!(
            "the steps were counted on {} devices; if the model normalises over a device's share of the batch, fewer devices with larger shares train otherwise",
            devices.devices
        ),
    })
}

/// Every batch size and number of devices that was timed.
pub fn throughput(devices: &DevicesAnalysis) -> Vec<Value> {
    devices
        .points
        .iter()
        .map(|point| {
            let secs = point.time_per_step_secs;
            json!({
                "batch_size": point.batch_size,
                "devices": point.devices,
                "examples_per_sec": point.batch_size.as_f64() / secs.value,
                "time_per_step_secs": secs,
                "speed_up": point.speed_up,
                "efficiency": point.speed_up.map(|it| it.scaled(1.0 / f64::from(point.devices))),
            })
        })
        .collect()
}

/// How training throughput grows with the devices at the batch size to start with.
pub fn throughput_text(analysis: &Analysis) -> Option<String> {
    let devices = analysis.devices.as_ref()?;
    let size = communication(analysis)?.batch_size;
    let points: Vec<_> = devices
        .points
        .iter()
        .filter(|it| it.batch_size == size)
        .collect();
    let parts: Vec<String> = points
        .iter()
        .map(|it| {
            let examples = rate(size.as_f64() / it.time_per_step_secs.value);
            let gain = it.speed_up.map_or_else(String::new, |speed_up| {
                format!(" ({:.2} times one's)", speed_up.value)
            });
            format!("{} on {}{gain}", examples, it.devices)
        })
        .collect();
    (points.len() > 1).then(|| {
        format!(
            " At batch size {size}, examples/s by number of devices: {}.",
            parts.join(", ")
        )
    })
}

/// What training takes on each number of devices, in a sentence.
pub fn resources_text(devices: &DevicesAnalysis) -> Option<String> {
    let parts: Vec<String> = devices
        .by_count
        .iter()
        .map(|it| {
            format!(
                "{} on {} (batch size {}, {} of devices)",
                time(it.training_time_secs.value),
                it.devices,
                it.batch_size,
                time(it.device_secs.value)
            )
        })
        .collect();
    (parts.len() > 1).then(|| format!(" By number of devices, a run takes {}.", parts.join(", ")))
}

fn percent(share: &Estimate) -> String {
    let of = |value: f64| format!("{:.0}%", value * 100.0);
    match (share.ci_lower, share.ci_upper) {
        (Some(lower), Some(upper)) => {
            format!("{} ({} to {})", of(share.value), of(lower), of(upper))
        }
        _ => of(share.value),
    }
}

//! The training throughput at each batch size, and where it stops rising.

use serde_json::json;

use super::{Advice, Basis, Confidence, Grade, Topic, devices, is_contended, references};
use crate::analysis::{Analysis, Evidence, GainRegion, SaturationAnalysis, ThroughputPoint};
use crate::probe::ProbeKind;
use crate::study::StudyDefinition;

const PLAYBOOK: &str = "determining-the-feasible-batch-sizes-and-estimating-training-throughput";

pub fn advise(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let throughput = analysis.throughput.as_ref()?;
    let peak = throughput.points.iter().max_by(|a, b| {
        a.examples_per_sec
            .value
            .total_cmp(&b.examples_per_sec.value)
    })?;
    let saturation = analysis.saturation.as_ref();
    let mut summary = format!(
        "The highest training throughput measured is {} examples/s, at batch size {} ({} a step).",
        rate(peak.examples_per_sec.value),
        peak.batch_size,
        time(peak.time_per_step_secs.value)
    );
    if let Some(saturation) = saturation {
        summary.push_str(&where_it_stops(saturation));
    }
    summary.extend(devices::throughput_text(analysis));
    let undetermined = saturation.is_none_or(|saturation| {
        saturation
            .gains
            .iter()
            .any(|gain| gain.region == GainRegion::Undetermined)
    });
    let (grade, because) =
        if is_contended(&throughput.caveats) || is_contended(devices::caveats(analysis)) {
            (Grade::Low, "the host was not steady while times were taken")
        } else if throughput.between_child_sd.is_none() {
            (Grade::Low, "one round has no interval")
        } else if undetermined {
            (
                Grade::Moderate,
                "some doublings' gains are not told apart from the thresholds",
            )
        } else {
            (
                Grade::High,
                "every doubling's gain is told apart from the thresholds",
            )
        };
    Some(Advice {
        topic: Topic::TrainingThroughput,
        value: json!({
            "training_throughput": throughput.points.iter().map(point).collect::<Vec<_>>(),
            "highest_at_batch_size": peak.batch_size,
            "stops_rising_at": saturation.and_then(|saturation| saturation.saturation_batch_size),
            "falls_after": saturation.map(|saturation| saturation.dips.clone()).unwrap_or_default(),
            "rounds": throughput.rounds,
            "devices": definition.device.count,
            "by_device_count": analysis.devices.as_ref().map(devices::throughput),
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
        evidence: references(evidence, |probe| probe.kind() == ProbeKind::StepTime),
        caveats: [&throughput.caveats[..], devices::caveats(analysis)].concat(),
        playbook: PLAYBOOK.into(),
    })
}

fn point(point: &ThroughputPoint) -> serde_json::Value {
    json!({
        "batch_size": point.batch_size,
        "examples_per_sec": point.examples_per_sec.value,
        "ci_lower": point.examples_per_sec.ci_lower,
        "ci_upper": point.examples_per_sec.ci_upper,
        "time_per_step_secs": point.time_per_step_secs.value,
        "synthetic_time_per_step_secs": point.synthetic_time_per_step_secs.map(|time| time.value),
    })
}

fn where_it_stops(saturation: &SaturationAnalysis) -> String {
    let mut text = match saturation.saturation_batch_size {
        Some(size) => format!(" It stops rising at {size}: doublings from there gain at most 10%."),
        None => {
            " Where it stops rising is beyond the batch sizes measured, or not told from noise."
                .into()
        }
    };
    if let Some(model) = &saturation.time_model
        && model.max_residual <= 0.05
    {
        text.push_str(&format!(
            " A step costs {} however small the batch, and {} for each example; the two are equal at a batch of {:.0}.",
            time(model.fixed_secs),
            time(model.secs_per_example),
            model.knee
        ));
    }
    if let Some(dip) = saturation.dips.first() {
        text.push_str(&format!(" Throughput falls after {dip}, as measured."));
    }
    text
}

/// `58,000`: three significant figures are enough for a rate.
pub fn rate(value: f64) -> String {
    if value <= 0.0 || !value.is_finite() {
        return "0".into();
    }
    let scale = 10_f64.powf(2.0 - value.log10().floor());
    let rounded = (value * scale).round() / scale;
    if rounded < 100.0 {
        return format!("{rounded}");
    }
    let digits = format!("{rounded:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.10 ms`.
pub fn time(secs: f64) -> String {
    if secs >= 1.0 {
        format!("{secs:.2} s")
    } else if secs >= 1e-3 {
        format!("{:.2} ms", secs * 1e3)
    } else if secs >= 1e-6 {
        format!("{:.1} µs", secs * 1e6)
    } else {
        format!("{:.2} ns", secs * 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(rate(58_123.4), "58,100");
        assert_eq!(rate(1_234_567.0), "1,230,000");
        assert_eq!(rate(12.345), "12.3");
        assert_eq!(time(0.0011), "1.10 ms");
        assert_eq!(time(2.0), "2.00 s");
        assert_eq!(time(3.2e-5), "32.0 µs");
    }
}

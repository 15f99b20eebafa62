//! What a worker may say. It is admitted, but it may be another version, or somebody else's program: what
//! the database cannot hold is refused with its place, and texts for people are cut.

use super::{ClaimRequest, CompletionRequest, HeartbeatRequest, LeaseError};
use crate::pool::child::{DETAIL_CHARS, PHASE_CHARS, check_measurement, clean, is_name};
use crate::pool::inventory::DeviceFacts;
use crate::probe::{Measurement, Outcome, ProbeKind, required_figures};
use crate::settings::PoolSettings;

/// Longest name of a worker, a host, a device.
const NAME_CHARS: usize = 200;

/// Longest list of the cards that are offered together.
const HARDWARE_BYTES: usize = 16_384;

/// Most runners of one worker.
const RUNNERS: usize = 64;

type Wrong = Vec<(String, String)>;

fn refused(wrong: Wrong) -> Result<(), LeaseError> {
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(LeaseError::Invalid(wrong))
    }
}

fn name(place: &str, text: &str, wrong: &mut Wrong) {
    if !is_name(text, NAME_CHARS) {
        wrong.push((
            place.to_owned(),
            format!("must be 1 to {NAME_CHARS} characters without control characters or spaces at its ends"),
        ));
    }
}

pub(super) fn claim(request: &ClaimRequest) -> Result<(), LeaseError> {
    let mut wrong = Vec::new();
    name("/worker", &request.worker, &mut wrong);
    device(&request.device, &mut wrong);
    if request.runners.is_empty() || request.runners.len() > RUNNERS {
        wrong.push((
            "/runners".to_owned(),
            format!("must have 1 to {RUNNERS} names"),
        ));
    }
    for (index, runner) in request.runners.iter().enumerate() {
        name(&format!("/runners/{index}"), runner, &mut wrong);
    }
    if !(request.wait_secs.is_finite() && request.wait_secs >= 0.0) {
        wrong.push(("/wait_secs".to_owned(), "must be at least 0".to_owned()));
    }
    refused(wrong)
}

fn device(device: &DeviceFacts, wrong: &mut Wrong) {
    for (place, text) in [
        ("/device/host", &device.host),
        ("/device/model", &device.model),
    ] {
        name(place, text, wrong);
    }
    for hardware in device.hardware_ids() {
        name("/device/hardware", hardware, wrong);
    }
    if device.hardware.len() > HARDWARE_BYTES {
        wrong.push((
            "/device/hardware".to_owned(),
            format!("must be at most {HARDWARE_BYTES} bytes"),
        ));
    }
    if let Some(driver) = &device.driver {
        name("/device/driver", driver, wrong);
    }
    for (place, bytes) in [
        ("/device/memory_bytes", device.memory_bytes),
        ("/device/available_bytes", device.available_bytes),
    ] {
        if i64::try_from(bytes.0).is_err() {
            wrong.push((place.to_owned(), format!("must be at most {}", i64::MAX)));
        }
    }
    for (place, number) in [
        ("/device/threads", device.threads),
        ("/device/slots", device.slots),
        ("/device/count", device.count),
    ] {
        if !(1..=65_536).contains(&number) {
            wrong.push((place.to_owned(), "must be 1 to 65536".to_owned()));
        }
    }
}

pub(super) fn heartbeat(
    request: &mut HeartbeatRequest,
    settings: &PoolSettings,
) -> Result<(), LeaseError> {
    if let Some(progress) = &mut request.progress {
        progress.phase = clean(&progress.phase, PHASE_CHARS);
        progress.fraction = if progress.fraction.is_finite() {
            progress.fraction.clamp(0.0, 1.0)
        } else {
            0.0
        };
    }
    let mut wrong = Vec::new();
    measurements(&request.measurements, settings, &mut wrong);
    refused(wrong)
}

pub(super) fn completion(
    request: &mut CompletionRequest,
    settings: &PoolSettings,
) -> Result<(), LeaseError> {
    let mut wrong = Vec::new();
    measurements(&request.measurements, settings, &mut wrong);
    if !(request.device_secs.is_finite() && request.device_secs >= 0.0) {
        wrong.push(("/device_secs".to_owned(), "must be at least 0".to_owned()));
    }
    if let Outcome::Infeasible { detail, .. } | Outcome::Failed { detail, .. } =
        &mut request.outcome
    {
        *detail = clean(detail, DETAIL_CHARS);
    }
    let skipped = request
        .stderr_tail
        .chars()
        .count()
        .saturating_sub(settings.log_tail_bytes);
    if skipped > 0 || request.stderr_tail.contains('\0') {
        let tail: String = request.stderr_tail.chars().skip(skipped).collect();
        request.stderr_tail = clean(&tail, usize::MAX);
    }
    refused(wrong)
}

/// What a probe of this kind that succeeded would have told and did not: `stored` are the figures that came before,
/// `last` come with its end.
pub(super) fn missing(kind: &str, stored: &[String], last: &[Measurement]) -> Option<String> {
    let missing: Vec<&str> = required_figures(ProbeKind::parse(kind)?)
        .iter()
        .map(|metric| metric.as_str())
        .filter(|metric| !stored.iter().any(|it| it == metric))
        .filter(|metric| {
            !last
                .iter()
                .any(|it| it.step.is_none() && it.metric == **metric)
        })
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "its worker says that it succeeded, without a measurement, with no step, of {}",
            missing.join(", ")
        )
    })
}

fn measurements(measurements: &[Measurement], settings: &PoolSettings, wrong: &mut Wrong) {
    for (index, measurement) in measurements.iter().enumerate() {
        let problem = if measurement.seq as usize >= settings.max_events {
            Err(format!(
                "has seq {}: a probe has at most {} measurements (pool.max_events)",
                measurement.seq, settings.max_events
            ))
        } else {
            check_measurement(measurement)
        };
        if let Err(problem) = problem {
            wrong.push((format!("/measurements/{index}"), problem));
            // One says enough of a worker that counts wrongly.
            return;
        }
    }
}

//! Which batch sizes fit the memory budget; when none does, what would.

use serde_json::json;

use super::{Advice, Basis, Confidence, Grade, Topic, references};
use crate::analysis::memory_search::LimitedBy;
use crate::analysis::{Analysis, Caveat, Evidence, Feasibility, MemoryAnalysis, memory};
use crate::probe::{InfeasibleReason, ProbeKind};
use crate::study::{BatchSize, Bytes, Model, Optimizer, StudyDefinition, Workload};

const PLAYBOOK: &str = "determining-the-feasible-batch-sizes-and-estimating-training-throughput";

pub fn advise(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let feasibility = analysis.feasibility.as_ref()?;
    let budget = definition.device.memory_budget_bytes?;
    match feasibility.largest_feasible {
        Some(largest) => Some(what_fits(
            definition,
            evidence,
            analysis,
            feasibility,
            budget,
            largest,
        )),
        None if !feasibility.search_ended => None,
        None if feasibility.limited_by == LimitedBy::Time => {
            Some(too_slow(definition, evidence, budget))
        }
        None => Some(what_would_fit(definition, evidence, budget)),
    }
}

/// Memory is that of one device, and a batch is that of all.
pub fn on_each_device(definition: &StudyDefinition) -> &'static str {
    if definition.device.count > 1 {
        " on each device"
    } else {
        ""
    }
}

fn what_fits(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
    feasibility: &Feasibility,
    budget: Bytes,
    largest: BatchSize,
) -> Advice {
    let reserve = memory::reserve(budget);
    let confirmed = feasibility.confirmed.contains(&largest);
    let fitting: Vec<BatchSize> = definition
        .grid_batch_sizes()
        .into_iter()
        .filter(|size| *size <= largest)
        .collect();
    let memory = analysis.memory.as_ref();
    let peak = memory.and_then(|memory| peak_at(memory, largest));
    let limit = match feasibility.limited_by {
        LimitedBy::Memory => {
            format!("memory is the limit: {budget}, of which {reserve} stays free")
        }
        LimitedBy::Range => {
            format!("the range that was asked for ends there, not memory ({budget})")
        }
        LimitedBy::Dataset => {
            format!("the training set has no more examples; memory ({budget}) is not the limit")
        }
        LimitedBy::Time => "a larger batch takes longer than a probe may".to_owned(),
    };
    let mut summary = format!("Batch sizes up to {largest} fit: {limit}.");
    if let Some(peak) = peak {
        summary.push_str(&format!(" At {largest}, training peaks at {peak}"));
        match memory.and_then(|memory| memory.fit.as_ref()) {
            Some(fit) => summary.push_str(&format!(
                "; each example adds {} to {}{}.",
                Bytes(fit.bytes_per_example.max(0.0) as u64),
                Bytes(fit.fixed_bytes.max(0.0) as u64),
                on_each_device(definition)
            )),
            None => summary.push('.'),
        }
    }
    summary.push_str(if confirmed {
        " A run of 200 steps with evaluation survived there."
    } else {
        " It has not been confirmed by a longer run yet."
    });
    let mut value = json!({
        "feasible_batch_sizes": fitting,
        "largest_feasible_batch_size": largest,
        "limited_by": feasibility.limited_by,
        "memory_budget_bytes": budget,
        "reserve_bytes": reserve,
        "peak_bytes_at_largest": peak,
        "confirmed": confirmed,
        "fit": memory.and_then(|memory| memory.fit.clone()),
        "split": memory.and_then(|memory| memory.split.clone()),
        "prediction_error_at_largest": memory.and_then(|memory| prediction_error(memory, largest)),
    });
    if feasibility.limited_by != LimitedBy::Memory {
        value["at_least"] = json!(largest);
    }
    let (grade, because) = if confirmed {
        (
            Grade::High,
            "measured, and confirmed by a run of 200 steps with evaluation",
        )
    } else if feasibility.search_ended {
        (
            Grade::Moderate,
            "measured in a short run; the confirmation is still to come",
        )
    } else {
        (Grade::Low, "the search goes on")
    };
    Advice {
        topic: Topic::FeasibleBatchSizes,
        value,
        summary,
        basis: Basis::Measured,
        confidence: Confidence {
            grade,
            because: because.into(),
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: memory_evidence(evidence),
        caveats: Vec::new(),
        playbook: PLAYBOOK.into(),
    }
}

fn memory_evidence(evidence: &Evidence) -> Vec<super::EvidenceRef> {
    references(evidence, |probe| {
        matches!(probe.kind(), ProbeKind::Memory | ProbeKind::Confirmation)
            || (probe.kind() == ProbeKind::Smoke && !probe.succeeded())
    })
}

/// How far the last prediction at a batch size was off, relative.
fn prediction_error(memory: &MemoryAnalysis, size: BatchSize) -> Option<f64> {
    memory
        .points
        .iter()
        .filter(|point| point.batch_size == size)
        .filter_map(|point| point.prediction_error)
        .next_back()
}

/// The highest peak measured at a batch size.
fn peak_at(memory: &MemoryAnalysis, size: BatchSize) -> Option<Bytes> {
    memory
        .points
        .iter()
        .filter(|point| point.batch_size == size)
        .filter_map(|point| point.peak_bytes)
        .max()
}

/// Bytes that parameters, their gradients and the optimizer's state need at the least: arithmetic,
/// activations and the process itself not counted.
fn least_bytes(workload: &Workload, optimizer: &Optimizer) -> Option<u64> {
    let parameters = workload.parameters()?;
    Some(
        parameters
            .saturating_mul(workload.dtype.bytes())
            .saturating_mul(2 + optimizer.state_per_parameter()),
    )
}

/// The same model with its widths scaled down, as large as arithmetic lets fit.
fn scaled_to_fit(definition: &StudyDefinition, usable: u64) -> Option<Model> {
    let fitting = |share: f64| -> Option<Model> {
        let workload = Workload {
            model: definition.workload.model.scaled(share)?,
            ..definition.workload.clone()
        };
        let needs = least_bytes(&workload, &definition.optimizer)?;
        (needs <= usable).then_some(workload.model)
    };
    let mut best = fitting(0.0)?;
    if fitting(1.0).is_some() {
        return None;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        match fitting(middle) {
            Some(model) => {
                best = model;
                low = middle;
            }
            None => high = middle,
        }
    }
    Some(best)
}

/// A probe of the smallest batch size did not come to an end: whether it fits is not known, or not confirmed.
fn too_slow(definition: &StudyDefinition, evidence: &Evidence, budget: Bytes) -> Advice {
    let min = definition.batch_sizes.min;
    let slow: Vec<_> = evidence
        .probes
        .iter()
        .filter(|probe| {
            probe.batch_size() == min && probe.infeasible == Some(InfeasibleReason::TooSlow)
        })
        .collect();
    let allowed = slow
        .iter()
        .map(|probe| probe.spec.limits.wall_secs)
        .fold(0.0, f64::max);
    let only_confirmations = slow
        .iter()
        .all(|probe| probe.kind() == ProbeKind::Confirmation);
    let found = if only_confirmations {
        format!(
            "No batch size is confirmed to fit: the longer run that confirms the smallest, {min}, did not come to an end within {allowed:.0} s. A short run fitted."
        )
    } else {
        format!(
            "Which batch sizes fit is not known: a few steps of training at the smallest batch size, {min}, did not come to an end within {allowed:.0} s."
        )
    };
    none_fits(
        definition,
        evidence,
        budget,
        LimitedBy::Time,
        format!(
            "{found} Memory is not what ended it. A smaller model, a smaller least batch size or a faster device would end sooner; where the device was busy with something else or with compiling kernels, ask again with \"reuse\": false."
        ),
        (
            Grade::Moderate,
            "the smallest batch size ran out of time, which depends on what else the device did",
        ),
    )
}

/// The answer where there is no largest batch size.
fn none_fits(
    definition: &StudyDefinition,
    evidence: &Evidence,
    budget: Bytes,
    limited_by: LimitedBy,
    summary: String,
    (grade, because): (Grade, &str),
) -> Advice {
    let workload = &definition.workload;
    Advice {
        topic: Topic::FeasibleBatchSizes,
        value: json!({
            "feasible_batch_sizes": [],
            "largest_feasible_batch_size": null,
            "limited_by": limited_by,
            "memory_budget_bytes": budget,
            "needs_at_least_bytes": least_bytes(workload, &definition.optimizer).unwrap_or(0),
            "parameters": workload.parameters(),
            "model_that_could_fit": null,
            "confirmed": false,
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
        evidence: memory_evidence(evidence),
        caveats: Vec::new(),
        playbook: PLAYBOOK.into(),
    }
}

fn what_would_fit(definition: &StudyDefinition, evidence: &Evidence, budget: Bytes) -> Advice {
    let workload = &definition.workload;
    let min = definition.batch_sizes.min;
    let needs = least_bytes(workload, &definition.optimizer).unwrap_or(0);
    let data = Bytes(workload.dataset.bytes());
    let usable = budget
        .0
        .saturating_sub(memory::reserve(budget).0)
        .saturating_sub(data.0);
    let smaller = scaled_to_fit(definition, usable);
    let mut summary = format!(
        "Nothing fits: training ran out of the budget of {budget} at batch size {min}. Parameters, gradients and optimizer state alone need {} by arithmetic.",
        Bytes(needs)
    );
    match &smaller {
        Some(model) => summary.push_str(&format!(
            " By the same arithmetic the sizes of {} {} could fit; so could a larger budget or an optimizer with less state than {}.",
            model.family(),
            model.size(),
            definition.optimizer.family()
        )),
        None => summary.push_str(
            " A larger budget, a smaller model or an optimizer with less state could fit; activations and the process itself come on top.",
        ),
    }
    let mut advice = none_fits(
        definition,
        evidence,
        budget,
        LimitedBy::Memory,
        summary,
        (
            Grade::High,
            "the smallest batch size ran out of memory; what would fit is arithmetic, a rule of thumb",
        ),
    );
    advice.value["model_that_could_fit"] = json!(smaller);
    advice.caveats.push(Caveat {
        code: "W_ARITHMETIC_ONLY".into(),
        detail: "needs_at_least_bytes and model_that_could_fit count parameters, gradients and optimizer state only".into(),
    });
    advice
}

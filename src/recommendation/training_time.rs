//! The batch size that minimises training time or resource consumption, measured: time per step × steps to
//! target, with the hyperparameters tuned anew at every batch size. What that uses up, and whether what has to
//! be paid before pays.

use serde_json::{Value, json};

use super::throughput::time;
use super::{
    Advice, Basis, Confidence, Grade, Topic, accumulation, bells, bottleneck, devices,
    is_contended, probability, references, sizes, three_figures,
};
use crate::analysis::batch_norm::confounded;
use crate::analysis::steps::StepsPoint;
use crate::analysis::training_time::{Direction, NEAR_TIE, UpfrontDecision};
use crate::analysis::{
    Analysis, Caveat, Estimate, Evidence, ProbeRecord, StepsAnalysis, TrainingTimeAnalysis,
    TrainingTimePoint,
};
use crate::probe::{ProbeKind, Task};
use crate::study::{BatchSize, Objective, ProjectPhase, StudyDefinition};

const TIME: &str = "choosing-the-batch-size-to-minimize-training-time";
const RESOURCES: &str = "choosing-the-batch-size-to-minimize-resource-consumption";

/// Graded high from this probability of being within 5% of the best on.
const HIGH: f64 = 0.9;
/// And moderate from this.
const MODERATE: f64 = 0.6;
/// More examples to the target by this factor make a budget in epochs misleading.
const MORE_EXAMPLES: f64 = 1.1;

/// The decision with everything that it needs to be told.
struct Decided<'a> {
    decision: &'a TrainingTimeAnalysis,
    steps: &'a StepsAnalysis,
    /// The best of those whose steps were measured: what is recommended.
    point: &'a TrainingTimePoint,
    trained: &'a StepsPoint,
}

fn decided(analysis: &Analysis) -> Option<Decided<'_>> {
    let decision = analysis.training_time.as_ref()?;
    let steps = analysis.steps.as_ref()?;
    let size = decision.measured_batch_size?;
    Some(Decided {
        decision,
        steps,
        point: decision.points.iter().find(|it| it.batch_size == size)?,
        trained: steps.points.iter().find(|it| it.batch_size == size)?,
    })
}

/// The batch size, where training to a target was measured.
pub fn batch_size(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let it = decided(analysis)?;
    let size = it.point.batch_size;
    let throughput = analysis.throughput.as_ref()?;
    let is_confirmed = analysis
        .feasibility
        .as_ref()
        .is_some_and(|feasibility| feasibility.confirmed.contains(&size));
    let mut caveats = it.steps.caveats.clone();
    let trained: Vec<BatchSize> = it.steps.points.iter().map(|it| it.batch_size).collect();
    caveats.extend(confounded(definition, &trained));
    if !is_confirmed {
        caveats.push(Caveat {
            code: "W_NOT_CONFIRMED".into(),
            detail: "no run of 200 steps has shown yet that it never runs out of memory".into(),
        });
    }
    if it.decision.batch_size != size {
        caveats.push(Caveat {
            code: "W_NOT_TRIED".into(),
            detail: format!(
                "{} may be better by the curve, but it was not trained",
                it.decision.batch_size
            ),
        });
    }
    caveats.extend(epoch_budget(definition, &it));
    caveats.extend(throughput.caveats.iter().cloned());
    caveats.extend(bottleneck::remarks(analysis));
    caveats.extend(accumulation::remarks(analysis));
    caveats.extend(bells::remark(definition));
    let first = analysis
        .bottleneck
        .as_ref()
        .and_then(|bottleneck| bottleneck::first_to_fix(bottleneck, analysis));
    let (grade, because) = grade(
        it.point.p_within_5pct,
        is_confirmed,
        is_contended(&throughput.caveats),
    );
    let summary = summary(definition, &it);
    Some(Advice {
        topic: Topic::BatchSize,
        value: json!({
            "batch_size": size,
            "objective": it.decision.objective,
            "target": it.steps.target,
            "target_source": it.steps.target_source,
            "steps_to_target": it.point.steps,
            "time_per_step_secs": it.point.time_per_step_secs,
            "training_time_secs": it.point.training_time_secs,
            "device_secs": it.point.device_secs,
            "money": it.point.money,
            "currency": it.point.money.map(|_| &definition.costs.currency),
            "optimizer": it.trained.optimizer,
            "runs_per_device_hour": it.point.runs_per_device_hour,
            "pareto": it.decision.pareto,
            "confirmed": is_confirmed,
            "fix_bottleneck_first": first.is_some(),
        }),
        summary: match first {
            Some(finding) => format!("Mend the bottleneck first: {}. {summary}", finding.fix),
            None => summary,
        },
        basis: Basis::Measured,
        confidence: Confidence {
            grade,
            because,
            p_best: Some(it.point.p_best),
            p_within_5pct: Some(it.point.p_within_5pct),
            near_ties: near_ties(&it),
        },
        evidence: references(evidence, |probe| is_behind(probe, size)),
        caveats,
        playbook: match it.decision.objective {
            Objective::MinimizeTrainingTime | Objective::Pareto => TIME,
            Objective::MinimizeResourceConsumption => RESOURCES,
        }
        .into(),
    })
}

fn near_ties(it: &Decided<'_>) -> Vec<BatchSize> {
    let mut ties = it.decision.near_ties.clone();
    if it.decision.batch_size != it.point.batch_size {
        ties.push(it.decision.batch_size);
    }
    ties.retain(|size| *size != it.point.batch_size);
    ties.sort();
    ties.dedup();
    ties
}

/// The probes behind a decision for a batch size: every time, and the runs that gave steps.
fn is_behind(probe: &ProbeRecord, size: BatchSize) -> bool {
    match probe.kind() {
        ProbeKind::StepTime | ProbeKind::NoiseScale | ProbeKind::LearningRateRange => true,
        ProbeKind::Confirmation | ProbeKind::Memory => probe.batch_size() == size,
        ProbeKind::Training => {
            let has_target = matches!(&probe.spec.task, Task::Training(run) if run.target.is_some() && !run.compares_with_chance);
            // Of other batch sizes the runs with fresh seeds: they are what the curve was fitted to.
            has_target && (probe.batch_size() == size || probe.spec.replicate > 0)
        }
        ProbeKind::InputPipeline => true,
        ProbeKind::Smoke | ProbeKind::GradientAccumulation => false,
    }
}

fn grade(p_within: f64, is_confirmed: bool, is_contended: bool) -> (Grade, String) {
    if is_contended {
        return (
            Grade::Low,
            "the host was not steady while times were taken".into(),
        );
    }
    if !is_confirmed {
        return (Grade::Low, "no longer run has confirmed it yet".into());
    }
    let grade = if p_within >= HIGH {
        Grade::High
    } else if p_within >= MODERATE {
        Grade::Moderate
    } else {
        Grade::Low
    };
    (
        grade,
        format!(
            "it is within 5% of the best with a probability of {}",
            probability(p_within)
        ),
    )
}

/// A budget in epochs gives a larger batch fewer steps, so it makes larger batches look worse than they are.
fn epoch_budget(definition: &StudyDefinition, it: &Decided<'_>) -> Option<Caveat> {
    let examples = |point: &TrainingTimePoint| point.batch_size.as_f64() * point.steps.value;
    let least = it.decision.points.iter().map(examples).reduce(f64::min)?;
    let needed = examples(it.point);
    let in_an_epoch = definition.workload.dataset.facts().training_examples as f64;
    (needed > MORE_EXAMPLES * least).then(|| Caveat {
        code: "W_EPOCH_BUDGET".into(),
        detail: format!(
            "it takes {:.1} epochs to the target, {:.1} times as many as the smallest batch size: budget steps, because so many epochs as a smaller batch needs would end the training too early",
            needed / in_an_epoch,
            needed / least
        ),
    })
}

fn summary(definition: &StudyDefinition, it: &Decided<'_>) -> String {
    let point = it.point;
    let what = match it.decision.objective {
        Objective::MinimizeTrainingTime => "the least training time",
        Objective::MinimizeResourceConsumption => "the least resource consumption",
        Objective::Pareto => "the best of training time and resource consumption",
    };
    let mut text = format!(
        "Batch size {} gives {what}: {} steps of {}, together {}{}.",
        point.batch_size,
        count(point.steps.value),
        time(point.time_per_step_secs),
        time(point.training_time_secs.value),
        range(&point.training_time_secs, time),
    );
    if let (Some(money), Some(_)) = (&point.money, definition.costs.device_hour) {
        text.push_str(&format!(
            " A run costs {} {}.",
            amount(money.value),
            definition.costs.currency
        ));
    }
    let ties = near_ties(it);
    match ties.is_empty() {
        true => text.push_str(&format!(
            " It is within 5% of the best with a probability of {}.",
            probability(point.p_within_5pct)
        )),
        false => text.push_str(&format!(" {} cannot be told apart from it.", sizes(&ties))),
    }
    text.push_str(&format!(
        " The learning rate goes with it: {}.",
        super::optimizer_text(&it.trained.optimizer)
    ));
    text
}

/// A count of steps, a figure more where it is small.
pub fn count(value: f64) -> String {
    if value < 30.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// An amount of money: two decimals, more where it is next to nothing.
fn amount(value: f64) -> String {
    if value == 0.0 || value.abs() >= 0.01 {
        format!("{value:.2}")
    } else {
        format!("{value:.2e}")
    }
}

fn range(estimate: &Estimate, say: impl Fn(f64) -> String) -> String {
    match (estimate.ci_lower, estimate.ci_upper) {
        (Some(lower), Some(upper)) => format!(" (95%: {} to {})", say(lower), say(upper)),
        _ => String::new(),
    }
}

/// Why a run's energy is not known.
const NO_ENERGY: &str = "the processors of the device's host do not tell their energy, or not to the user that probes run as (the kernel's powercap counters)";

/// What training uses up at each batch size.
pub fn resource_consumption(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let it = decided(analysis)?;
    let used = |point: &TrainingTimePoint| point.money.unwrap_or(point.device_secs).value;
    let least = it
        .decision
        .points
        .iter()
        .min_by(|a, b| used(a).total_cmp(&used(b)))?;
    let by_batch_size: Vec<Value> = it
        .decision
        .points
        .iter()
        .map(|point| {
            json!({
                "batch_size": point.batch_size,
                "device_secs": point.device_secs,
                "money": point.money,
                "energy_kwh": point.energy_kwh,
                "to_next": point.resources_to_next,
            })
        })
        .collect();
    let direction = |wanted: Direction| -> Vec<BatchSize> {
        it.decision
            .points
            .iter()
            .filter_map(|point| point.resources_to_next.as_ref())
            .filter(|change| change.direction == wanted)
            .map(|change| change.to)
            .collect()
    };
    let currency = &definition.costs.currency;
    let mut text = match &least.money {
        Some(money) => format!(
            "A run to the target costs least at batch size {}: {} {currency}{}, {} of the device.",
            least.batch_size,
            amount(money.value),
            range(money, amount),
            time(least.device_secs.value)
        ),
        None => format!(
            "A run to the target takes the fewest device-seconds at batch size {}: {}{}.",
            least.batch_size,
            time(least.device_secs.value),
            range(&least.device_secs, time)
        ),
    };
    if let Some(energy) = &least.energy_kwh {
        text.push_str(&format!(
            " It uses {} kWh{}.",
            three_figures(energy.value),
            range(energy, three_figures)
        ));
    }
    for (wanted, says) in [
        (Direction::Decrease, "saves some"),
        (Direction::Same, "changes nothing"),
        (Direction::Increase, "takes more"),
    ] {
        let to = direction(wanted);
        if !to.is_empty() {
            text.push_str(&format!(" Going on to {} {says}.", sizes(&to)));
        }
    }
    let devices = analysis.devices.as_ref();
    text.extend(devices.and_then(devices::resources_text));
    let throughput = analysis.throughput.as_ref()?;
    let (grade, because) = grade(
        least.p_resources_within_5pct,
        true,
        is_contended(&throughput.caveats),
    );
    Some(Advice {
        topic: Topic::ResourceConsumption,
        value: json!({
            "resource_consumption": least.device_secs,
            "batch_size": least.batch_size,
            "by_batch_size": by_batch_size,
            "devices": definition.device.count,
            "by_device_count": devices.map(|it| &it.by_count),
            "money": least.money,
            "currency": least.money.map(|_| currency),
            "energy_kwh": least.energy_kwh,
            "energy_why_not": least.energy_kwh.is_none().then_some(NO_ENERGY),
        }),
        summary: text,
        basis: Basis::Measured,
        confidence: Confidence {
            grade,
            because,
            p_best: None,
            p_within_5pct: Some(least.p_resources_within_5pct),
            near_ties: it
                .decision
                .points
                .iter()
                .filter(|point| point.batch_size != least.batch_size)
                .filter(|point| point.p_resources_within_5pct >= NEAR_TIE)
                .map(|point| point.batch_size)
                .collect(),
        },
        evidence: references(evidence, |probe| is_behind(probe, least.batch_size)),
        caveats: it
            .steps
            .caveats
            .iter()
            .chain(&throughput.caveats)
            .chain(super::devices::caveats(analysis))
            .cloned()
            .chain(super::devices::steps_remark(definition, analysis))
            .collect(),
        playbook: RESOURCES.into(),
    })
}

/// Whether what has to be paid for larger batch sizes pays.
pub fn upfront_cost(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let it = decided(analysis)?;
    if it.decision.upfront.is_empty() {
        return None;
    }
    let summary: Vec<String> = it
        .decision
        .upfront
        .iter()
        .map(|level| level_text(definition, level))
        .collect();
    Some(Advice {
        topic: Topic::UpfrontCost,
        value: json!({
            "upfront_cost": it.decision.upfront.last().map(|level| level.amount),
            "currency": definition.costs.currency,
            "defer": it.decision.upfront.iter().all(|level| level.defer),
            "levels": it.decision.upfront,
        }),
        summary: summary.join(" "),
        basis: Basis::Measured,
        confidence: Confidence {
            grade: if it.point.p_within_5pct >= MODERATE {
                Grade::Moderate
            } else {
                Grade::Low
            },
            because: "what is saved is the difference of two estimates, and the runs that are planned are the study's own figure".into(),
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |probe| is_behind(probe, it.point.batch_size)),
        caveats: Vec::new(),
        playbook: RESOURCES.into(),
    })
}

fn level_text(definition: &StudyDefinition, level: &UpfrontDecision) -> String {
    let currency = &definition.costs.currency;
    let runs = match level.break_even_runs {
        None => format!(
            "{} {currency} for batch size {} instead of {} are never earned back: a run saves nothing.",
            amount(level.amount),
            level.batch_size,
            level.instead_of
        ),
        Some(runs) => format!(
            "{} {currency} for batch size {} instead of {} are earned back after {runs:.0} runs, which save {} {currency} each.",
            amount(level.amount),
            level.batch_size,
            level.instead_of,
            amount(level.saved_per_run)
        ),
    };
    let planned = level.planned_runs.map_or_else(
        || " How many runs are planned is not known.".to_owned(),
        |planned| format!(" {planned} are planned."),
    );
    let verdict = match (level.defer, definition.project_phase) {
        (true, ProjectPhase::Early) => " Put it off: the project is early.",
        (true, ProjectPhase::Late) => " Leave it.",
        (false, _) => "",
    };
    format!("{runs}{planned}{verdict}")
}

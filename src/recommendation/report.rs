//! The whole answer as Markdown, for a person or a pull request: the answer first, then the numbers.

use std::fmt::Write as _;

use super::throughput::{rate, time};
use super::training_time::count;
use super::{Advice, Basis, Topic, feasible, optimizer_text};
use crate::analysis::steps::Regime;
use crate::analysis::{Analysis, Estimate};
use crate::study::{Bytes, StudyDefinition};

/// The report. `state_text` says where the study stands.
pub fn report(
    definition: &StudyDefinition,
    state_text: &str,
    analysis: &Analysis,
    advices: &[Advice],
) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_report(&mut text, definition, state_text, analysis, advices);
    text
}

fn write_report(
    out: &mut String,
    definition: &StudyDefinition,
    state_text: &str,
    analysis: &Analysis,
    advices: &[Advice],
) -> std::fmt::Result {
    let workload = &definition.workload;
    writeln!(out, "# {}\n", escaped(&definition.name))?;
    writeln!(out, "State: {state_text}.\n")?;
    if advices.is_empty() {
        writeln!(out, "Nothing can be recommended yet.\n")?;
    }
    for advice in advices {
        let basis = match advice.basis {
            Basis::Measured => "measured",
            Basis::RuleOfThumb => "rule of thumb",
        };
        writeln!(out, "## {}\n", heading(advice.topic))?;
        writeln!(out, "{}\n", advice.summary)?;
        writeln!(
            out,
            "*Confidence: {} ({}). Basis: {basis}, from {} probes.*\n",
            advice.confidence.grade.as_str(),
            advice.confidence.because,
            advice.evidence.len()
        )?;
        if let Some(configuration) = advice.value.get("configuration").filter(|it| !it.is_null()) {
            // Pretty JSON of a JSON value cannot fail.
            let text = serde_json::to_string_pretty(configuration).unwrap_or_default();
            writeln!(out, "```json\n{text}\n```\n")?;
        }
        for caveat in &advice.caveats {
            writeln!(out, "- `{}`: {}", caveat.code, caveat.detail)?;
        }
        if !advice.caveats.is_empty() {
            writeln!(out)?;
        }
    }
    write_memory(out, definition, analysis)?;
    write_throughput(out, analysis)?;
    write_parts(out, analysis)?;
    write_steps(out, analysis)?;
    super::tables::write_optimizers(out, analysis)?;
    super::tables::write_ghost_batches(out, analysis)?;
    let device = &definition.device;
    writeln!(out, "## What was asked\n")?;
    writeln!(
        out,
        "{} ({} training examples), {} {} with {} parameters, {}; on {} with {} threads and a memory budget of {}.",
        workload.dataset.name(),
        workload.dataset.facts().training_examples,
        workload.model.family(),
        workload.model.size(),
        workload
            .parameters()
            .map_or("?".into(), |parameters| parameters.to_string()),
        definition.optimizer.family(),
        device.model.as_deref().unwrap_or("a device still to come"),
        device
            .threads
            .map_or("its".into(), |threads| threads.to_string()),
        device
            .memory_budget_bytes
            .map_or("its own".into(), |budget| budget.to_string()),
    )
}

fn heading(topic: Topic) -> &'static str {
    match topic {
        Topic::FeasibleBatchSizes => "Which batch sizes fit",
        Topic::TrainingThroughput => "Training throughput",
        Topic::Bottleneck => "What keeps a step from being shorter",
        Topic::GradientAccumulation => "Gradient accumulation",
        Topic::BatchSize => "The batch size to start with",
        Topic::CriticalBatchSize => "The critical batch size",
        Topic::ResourceConsumption => "What training uses up",
        Topic::UpfrontCost => "What has to be paid before",
        Topic::QualityAcrossBatchSizes => "Quality across batch sizes",
        Topic::Retuning => "What a change would take",
        Topic::StartFrom => "The model to start from",
        Topic::InitialConfiguration => "The configuration to start with",
        Topic::LearningRate => "The learning rate to start with",
        Topic::NumberOfSteps => "The number of steps",
        Topic::Optimizer => "The optimizer to start with",
        Topic::BatchNorm => "Batch normalization",
    }
}

fn write_memory(
    out: &mut String,
    definition: &StudyDefinition,
    analysis: &Analysis,
) -> std::fmt::Result {
    let Some(memory) = &analysis.memory else {
        return Ok(());
    };
    writeln!(out, "## Memory\n")?;
    writeln!(
        out,
        "| Batch size | Peak | Predicted | |\n|---:|---:|---|---|"
    )?;
    for point in &memory.points {
        let peak = point
            .peak_bytes
            .map_or_else(|| "—".to_owned(), |peak| peak.to_string());
        let verdict = if point.fits { "ran" } else { "out of memory" };
        let predicted = point.prediction.map_or_else(String::new, |it| {
            format!("{} ({} to {})", it.peak_bytes, it.ci_lower, it.ci_upper)
        });
        writeln!(
            out,
            "| {} | {peak} | {predicted} | {verdict} |",
            point.batch_size
        )?;
    }
    if let Some(fit) = &memory.fit {
        writeln!(
            out,
            "\nFit: {} + {} for each example{}, within {:.1}%.",
            Bytes(fit.fixed_bytes.max(0.0) as u64),
            Bytes(fit.bytes_per_example.max(0.0) as u64),
            feasible::on_each_device(definition),
            fit.max_relative_residual * 100.0
        )?;
    }
    if let Some(split) = &memory.split {
        writeln!(
            out,
            "\nOf what does not grow: data set {}, parameters {}, between steps {} (the optimizer's state, batches loaded ahead), the rest {}.",
            split.dataset_bytes,
            split.parameter_bytes,
            split.optimizer_state_bytes,
            split.other_fixed_bytes.map_or_else(
                || "not known".to_owned(),
                |bytes| Bytes(bytes.max(0.0) as u64).to_string()
            )
        )?;
    }
    writeln!(out)
}

fn write_throughput(out: &mut String, analysis: &Analysis) -> std::fmt::Result {
    let Some(throughput) = &analysis.throughput else {
        return Ok(());
    };
    writeln!(out, "## Time per step\n")?;
    writeln!(
        out,
        "| Batch size | Time per step | 95% interval | Examples/s | Gain of the last doubling |\n|---:|---:|---|---:|---|"
    )?;
    for point in &throughput.points {
        let gain = analysis
            .saturation
            .as_ref()
            .and_then(|saturation| {
                saturation
                    .gains
                    .iter()
                    .find(|gain| gain.to == point.batch_size)
            })
            .map_or_else(String::new, |gain| {
                format!(
                    "{:.2}{}",
                    gain.gain.value,
                    range(&gain.gain, |it| format!("{it:.2}"))
                )
            });
        writeln!(
            out,
            "| {} | {} |{} | {} | {gain} |",
            point.batch_size,
            time(point.time_per_step_secs.value),
            range(&point.time_per_step_secs, time),
            rate(point.examples_per_sec.value),
        )?;
    }
    writeln!(
        out,
        "\n{} round{}, every batch size once in each, in processes of their own.\n",
        throughput.rounds,
        if throughput.rounds == 1 { "" } else { "s" }
    )
}

fn write_parts(out: &mut String, analysis: &Analysis) -> std::fmt::Result {
    let Some(bottleneck) = &analysis.bottleneck else {
        return Ok(());
    };
    writeln!(out, "## Where a step's time goes\n")?;
    writeln!(
        out,
        "| Batch size | Gathering ahead | Gathering first | Load | Transfer | Synthetic | With readback | Forward | Forward and backward | Optimizer |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    for point in &bottleneck.points {
        let parts = &point.parts;
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            point.batch_size,
            time(parts.prefetched.value),
            time(parts.unprefetched.value),
            time(parts.load.value),
            time(parts.transfer.value),
            time(parts.synthetic.value),
            time(parts.readback.value),
            time(parts.forward.value),
            time(parts.forward_backward.value),
            time(parts.optimizer_secs),
        )?;
    }
    writeln!(out)
}

fn write_steps(out: &mut String, analysis: &Analysis) -> std::fmt::Result {
    let Some(steps) = analysis.steps.as_ref().filter(|it| !it.points.is_empty()) else {
        return Ok(());
    };
    writeln!(out, "## Steps to target\n")?;
    writeln!(
        out,
        "| Batch size | Steps | On the curve | Regime | Training time | P(within 5%) | Optimizer |\n|---:|---|---|---|---|---:|---|"
    )?;
    for point in &steps.points {
        let measured = match (&point.steps, point.more_than_steps) {
            (Some(steps), _) => {
                format!("{}{}", count(steps.value), range(steps, count))
            }
            (None, Some(cap)) => format!("more than {cap}"),
            (None, None) => "—".to_owned(),
        };
        let fitted = point.fitted_steps.map_or_else(String::new, |it| {
            format!("{}{}", count(it.value), range(&it, count))
        });
        let regime = steps
            .regimes
            .iter()
            .find(|it| it.batch_size == point.batch_size)
            .map_or("", |it| match it.regime {
                Regime::PerfectScaling => "perfect scaling",
                Regime::DiminishingReturns => "diminishing returns",
                Regime::NoGain => "no gain",
                Regime::Undetermined => "undetermined",
            });
        let decided = analysis.training_time.as_ref().and_then(|decision| {
            let mut points = decision.points.iter();
            points.find(|it| it.batch_size == point.batch_size)
        });
        writeln!(
            out,
            "| {} | {measured} | {fitted} | {regime} | {} | {} | {} |",
            point.batch_size,
            decided.map_or_else(String::new, |it| {
                format!(
                    "{}{}",
                    time(it.training_time_secs.value),
                    range(&it.training_time_secs, time)
                )
            }),
            decided.map_or_else(String::new, |it| format!("{:.2}", it.p_within_5pct)),
            optimizer_text(&point.optimizer),
        )?;
    }
    if let Some(curve) = &steps.curve {
        writeln!(
            out,
            "\nS(B) = (S_min^k + (E_min/B)^k)^(1/k) with S_min = {} steps, E_min = {} examples, k = {:.2}.",
            count(curve.min_steps.value),
            count(curve.min_examples.value),
            curve.sharpness.value
        )?;
    }
    writeln!(out)
}

/// An interval in brackets.
pub(super) fn range(estimate: &Estimate, say: impl Fn(f64) -> String) -> String {
    match (estimate.ci_lower, estimate.ci_upper) {
        (Some(lower), Some(upper)) => format!(" ({} to {})", say(lower), say(upper)),
        _ => " (no interval)".into(),
    }
}

/// A name is the caller's text: it must not become markup.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' => escaped.push(' '),
            '<' => escaped.push_str("&lt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' => {
                escaped.push('\\');
                escaped.push(character);
            }
            other => escaped.push(other),
        }
    }
    escaped
}

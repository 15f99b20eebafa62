//! The tables of comparisons in the report.

use std::fmt::Write as _;

use super::optimizer_text;
use super::report::range;
use super::throughput::time;
use super::training_time::count;
use crate::analysis::Analysis;
use crate::analysis::quality::Verdict;

/// The candidates of a comparison of optimizers.
pub(super) fn write_optimizers(out: &mut String, analysis: &Analysis) -> std::fmt::Result {
    let Some(comparison) = &analysis.optimizers else {
        return Ok(());
    };
    writeln!(
        out,
        "## Optimizers at batch size {}\n",
        comparison.batch_size
    )?;
    writeln!(
        out,
        "| Candidate | Steps | Training time | Tuned | Runs | With |\n|---|---|---|---|---:|---|"
    )?;
    for candidate in &comparison.candidates {
        if let Some(other) = candidate.identical_to {
            writeln!(
                out,
                "| {} | identical to candidate {} | | | | |",
                candidate.named.family(),
                other + 1
            )?;
            continue;
        }
        let steps = match (&candidate.steps, candidate.more_than_steps) {
            (Some(steps), _) => format!("{}{}", count(steps.value), range(steps, count)),
            (None, Some(cap)) => format!("more than {cap}"),
            (None, None) => "—".to_owned(),
        };
        let tuned: Vec<&str> = candidate.tuned.iter().map(|it| it.as_str()).collect();
        writeln!(
            out,
            "| {} | {steps} | {} | {} | {} | {} |",
            candidate.named.family(),
            candidate
                .training_time_secs
                .as_ref()
                .map_or_else(String::new, |it| format!(
                    "{}{}",
                    time(it.value),
                    range(it, time)
                )),
            tuned.join(", "),
            candidate.runs,
            optimizer_text(&candidate.optimizer),
        )?;
    }
    writeln!(out)
}

/// The ghost batches that were trained with.
pub(super) fn write_ghost_batches(out: &mut String, analysis: &Analysis) -> std::fmt::Result {
    let probe = analysis
        .batch_norm
        .as_ref()
        .and_then(|it| it.probe.as_ref());
    let Some(probe) = probe else {
        return Ok(());
    };
    writeln!(
        out,
        "## Ghost batches at batch size {}\n\n| Ghost batch | Least loss | Seeds | |\n|---:|---|---:|---|",
        probe.batch_size
    )?;
    for point in &probe.points {
        let loss = point.loss.as_ref().map_or_else(
            || "—".to_owned(),
            |loss| {
                let figure = |value: f64| format!("{value:.4}");
                format!("{}{}", figure(loss.value), range(loss, figure))
            },
        );
        let verdict = match point.verdict {
            _ if probe.best == Some(point.ghost_batch_size) => "the least",
            Some(Verdict::Equivalent) => "the same",
            Some(Verdict::Inconclusive) => "cannot be told apart",
            Some(Verdict::Different) => "worse",
            None => "",
        };
        writeln!(
            out,
            "| {} | {loss} | {} | {verdict} |",
            point.ghost_batch_size, point.seeds
        )?;
    }
    writeln!(out)
}

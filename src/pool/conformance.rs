//! Whether a program keeps the contract of a runner: it is started as a worker would start it, once for each kind of
//! probe, and what it says is checked.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::sync::watch;

use super::child::{self, ChildConfig, ChildReport, Spawner};
use crate::probe::{InfeasibleReason, Metric, Outcome, ProbeKind, ProbeSpec, Task};
use crate::study::EvaluationMetric;

/// Kinds without which no study comes far.
const NEEDED: [ProbeKind; 4] = [
    ProbeKind::Smoke,
    ProbeKind::Memory,
    ProbeKind::StepTime,
    ProbeKind::Confirmation,
];

/// Two runs from one seed may differ by as much, relative: not every device adds up in one order.
const SAME: f64 = 0.01;

/// Other seeds that are tried before they are taken for one: an accuracy on few examples may well be the same for two.
const OTHER_SEEDS: u64 = 4;

/// What a program made of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind.
    pub kind: ProbeKind,
    /// How it went.
    pub verdict: Verdict,
    /// What was measured, or what is wrong and would mend it.
    pub detail: String,
}

/// How a kind went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should.
    Ok,
    /// The runner does not do it, and need not.
    Unsupported,
    /// It breaks the contract.
    Problem,
}

impl Verdict {
    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unsupported => "unsupported",
            Self::Problem => "problem",
        }
    }
}

/// Checks a program with these specifications, all of one runner, one after another.
pub async fn check(spawner: &Spawner, config: &ChildConfig, specs: &[ProbeSpec]) -> Vec<Finding> {
    let mut findings = Vec::with_capacity(specs.len());
    for spec in specs {
        findings.push(one(spawner, config, spec).await);
    }
    findings
}

async fn one(spawner: &Spawner, config: &ChildConfig, spec: &ProbeSpec) -> Finding {
    let finding = |verdict, detail: String| Finding {
        kind: spec.kind(),
        verdict,
        // A log may hold anything, what moves a terminal's cursor too.
        detail: detail.chars().filter(|it| !it.is_control()).collect(),
    };
    let report = run(spawner, config, spec).await;
    let told = match told(&report) {
        Ok(told) => told,
        Err(End::Unsupported(detail)) if NEEDED.contains(&spec.kind()) => {
            return finding(
                Verdict::Problem,
                format!(
                    "{detail}; no study comes far without {} probes",
                    spec.kind().as_str()
                ),
            );
        }
        Err(End::Unsupported(detail)) => return finding(Verdict::Unsupported, detail),
        Err(End::Problem(detail)) => return finding(Verdict::Problem, detail),
    };
    if let Err(problem) = plausible(spec, &report, &told) {
        return finding(Verdict::Problem, problem);
    }
    if spec.kind() == ProbeKind::Training
        && let Err(problem) = seeded(spawner, config, spec, &told).await
    {
        return finding(Verdict::Problem, problem);
    }
    finding(
        Verdict::Ok,
        format!(
            "{} measurements in {:.1} s",
            report.measurements.len(),
            report.wall_secs
        ),
    )
}

async fn run(spawner: &Spawner, config: &ChildConfig, spec: &ProbeSpec) -> ChildReport {
    let (_control, control) = watch::channel(None);
    let (progress, _told) = watch::channel(None);
    child::run(spawner, config, spec, None, control, &progress).await
}

/// Figures of the whole probe.
type Told = BTreeMap<Metric, f64>;

enum End {
    Unsupported(String),
    Problem(String),
}

fn told(report: &ChildReport) -> Result<Told, End> {
    let log = report.stderr_tail.trim();
    let with_log = |what: String| {
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        let end: Vec<&str> = lines.into_iter().rev().collect();
        if end.is_empty() {
            what
        } else {
            format!("{what}; its log ends: {}", end.join(" | "))
        }
    };
    match &report.outcome {
        Outcome::Succeeded => Ok(report
            .measurements
            .iter()
            .filter(|measured| measured.step.is_none())
            .filter_map(|measured| Some((Metric::parse(&measured.metric)?, measured.value)))
            .collect()),
        Outcome::Infeasible {
            reason: InfeasibleReason::RunnerUnsupported,
            detail,
        } => Err(End::Unsupported(detail.clone())),
        Outcome::Infeasible { reason, detail } => Err(End::Problem(with_log(format!(
            "it ended as {}: {detail}",
            reason.as_str()
        )))),
        Outcome::Failed { detail, .. } => Err(End::Problem(with_log(detail.clone()))),
        Outcome::Cancelled | Outcome::HandedBack => {
            Err(End::Problem("it was stopped before its end".into()))
        }
    }
}

/// What the events cannot show one by one.
fn plausible(spec: &ProbeSpec, report: &ChildReport, told: &Told) -> Result<(), String> {
    let get = |metric: Metric| told.get(&metric).copied();
    let at_steps = |metric: Metric| -> Vec<u64> {
        report
            .measurements
            .iter()
            .filter(|it| it.metric == metric.as_str())
            .filter_map(|it| it.step)
            .collect()
    };
    match &spec.task {
        Task::Smoke { steps } | Task::Memory { steps } | Task::Confirmation { steps } => {
            if get(Metric::Steps).is_some_and(|made| made != *steps as f64) {
                return Err(format!("steps must be the {steps} of the task"));
            }
            if get(Metric::EvaluationDifference).is_some_and(|it| it != 0.0) {
                return Err(
                    "evaluation_difference must be 0: evaluate twice without training in between, with dropout off"
                        .into(),
                );
            }
        }
        Task::StepTime(_) => {
            let blocks = at_steps(Metric::BlockTimePerStep).len() as u64;
            if blocks == 0 {
                return Err(
                    "block_time_per_step must be told of every block, with its index as step"
                        .into(),
                );
            }
        }
        Task::Training(run) => {
            let of_loss = EvaluationMetric::of_loss(spec.workload.loss);
            let metric = Metric::from(run.target.as_ref().map_or(of_loss, |it| it.metric));
            let looks = at_steps(metric);
            if looks.first() != Some(&0) {
                return Err(format!(
                    "{} must be told first at step 0, before any training",
                    metric.as_str()
                ));
            }
            if let Some(pair) = looks.windows(2).find(|pair| {
                pair[1] <= pair[0]
                    || (pair[1] as f64)
                        > (pair[0] as f64 * run.evaluation_ratio)
                            .ceil()
                            .max(pair[0] as f64 + 1.0)
            }) {
                return Err(format!(
                    "after an evaluation at step {} the next is at max(t + 1, ⌈{}·t⌉), not at step {}",
                    pair[0], run.evaluation_ratio, pair[1]
                ));
            }
            let cap = run.max_steps as f64;
            for metric in [Metric::Steps, Metric::BestStep, Metric::StepsToTarget] {
                if get(metric).is_some_and(|steps| steps > cap) {
                    return Err(format!(
                        "{} must be at most max_steps, {cap}",
                        metric.as_str()
                    ));
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// The same seed must give the same training, another one another.
async fn seeded(
    spawner: &Spawner,
    config: &ChildConfig,
    spec: &ProbeSpec,
    first: &Told,
) -> Result<(), String> {
    let best = |told: &Told| told.get(&Metric::BestEvaluation).copied();
    let (Some(expected), mut again) = (best(first), spec.clone()) else {
        return Ok(());
    };
    let of = async |spec: &ProbeSpec| match told(&run(spawner, config, spec).await) {
        Ok(told) => best(&told).ok_or_else(|| "a second run told no best_evaluation".to_owned()),
        Err(End::Problem(detail) | End::Unsupported(detail)) => {
            Err(format!("a second run ended differently: {detail}"))
        }
    };
    let second = of(&again).await?;
    if (second / expected - 1.0).abs() > SAME {
        return Err(format!(
            "the seed must decide everything random: two runs from seed {} gave a best_evaluation of {expected} and of {second}",
            spec.seed
        ));
    }
    for other in 1..=OTHER_SEEDS {
        again.seed = spec.seed.wrapping_add(other) & ((1 << 53) - 1);
        if of(&again).await? != expected {
            return Ok(());
        }
    }
    Err(format!(
        "the seed must decide everything random: seeds {} to {} gave the very same best_evaluation, {expected}",
        spec.seed, again.seed
    ))
}

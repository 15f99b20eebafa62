//! The adaptive design against the full one, on digits with real training: how much longer does training take
//! at the batch size that it chooses, where does it see the critical batch size, and what does it cost? The cost is
//! device time, Σ steps·t(B) over all training probes, against a full search as it is usually done: 24 trials capped
//! at 4·S(B), the best three with five seeds, at every one of nine batch sizes.
//!
//! Times per step are measured once, by the full study, and serve all.
//!
//! `cargo bench --profile release --bench adaptive_design`

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and ends when something is wrong"
)]

#[path = "../tests/support/children.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod children;
#[path = "../tests/support/fake.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod fake;

use std::collections::BTreeMap;

use children::Children;
use serde_json::json;
use trialhead::analysis::{self, Analysis, Evidence, ProbeRecord};
use trialhead::plan::{Next, plan};
use trialhead::probe::{Metric, ProbeKind, ProbeSpec, Task};
use trialhead::statistics::sequences::sobol;
use trialhead::study::validation::{DefinitionLimits, parse};
use trialhead::study::{
    BatchSize, Bytes, Configuration, DeviceFactsForDefaults, ProbeId, Regularisation,
    StudyDefinition, resolve,
};

const SEEDS: std::ops::Range<u64> = 11..16;
/// The full search that the cost is held against.
const TRIALS: u32 = 24;
const CAP: f64 = 4.0;
const RUNS_WITH_SEEDS: f64 = 15.0;
/// Its learning rates reach this far down from the one that diverges.
const DOWN: f64 = 300.0;

fn definition(optimizer: &str, design: &str, seed: u64) -> StudyDefinition {
    let body = json!({
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": {"family": "mlp", "hidden": [64]},
            "target": {"metric": "validation_cross_entropy", "value": 0.20}
        },
        "optimizer": {"family": optimizer},
        "batch_sizes": {"min": 4, "max": 1024},
        "device": {"memory_budget_bytes": 1_u64 << 31},
        "questions": ["batch_size", "critical_batch_size"],
        "budget": {"device_secs": 86400, "probes": 10_000},
        "design": design,
        "seed": seed
    });
    let threads = std::thread::available_parallelism().map_or(1, |it| it.get() as u32);
    let facts = DeviceFactsForDefaults {
        model: "this host".into(),
        threads,
        available_bytes: Bytes(4 << 30),
    };
    let request = parse(&body, &DefinitionLimits::default()).expect("valid");
    resolve(request, Some(&facts)).expect("known")
}

/// Runs a study to its end; what needs the device alone is taken from `timed` where that has it.
async fn run(
    children: &mut Children,
    definition: &StudyDefinition,
    timed: Option<&Evidence>,
) -> (Evidence, Analysis) {
    let mut evidence = Evidence::default();
    loop {
        let analysis = analysis::analyze(definition, &evidence);
        let wave = match plan(definition, &evidence, &analysis).next {
            Next::Wave(wave) => wave,
            Next::Done { .. } => return (evidence, analysis),
            other => panic!("{other:?}"),
        };
        let number = evidence.next_wave();
        for (position, planned) in (0_u32..).zip(&wave) {
            let spec = &planned.spec;
            let known = timed.into_iter().flat_map(|it| &it.probes).find(|probe| {
                let is_same = probe.kind() == spec.kind()
                    && probe.batch_size() == spec.batch_size
                    && probe.spec.replicate == spec.replicate;
                spec.kind().is_exclusive() && is_same
            });
            let record = match known {
                Some(known) => ProbeRecord {
                    id: ProbeId(uuid::Uuid::from_u128(
                        (u128::from(number) << 32) + u128::from(position),
                    )),
                    spec: spec.clone(),
                    wave: number,
                    position,
                    ..known.clone()
                },
                None => children.run(planned, number, position).await,
            };
            evidence.probes.push(record);
        }
    }
}

/// Σ steps·t(B) over the training probes, seconds.
fn cost(evidence: &Evidence, times: &BTreeMap<BatchSize, f64>) -> f64 {
    evidence
        .probes
        .iter()
        .filter(|probe| {
            matches!(
                probe.kind(),
                ProbeKind::Training | ProbeKind::LearningRateRange | ProbeKind::NoiseScale
            )
        })
        .map(|probe| {
            let steps = probe.figure(Metric::Steps).unwrap_or(0.0);
            steps * times[&probe.batch_size()]
        })
        .sum()
}

/// What the full search costs: its trials are trained, its runs with seeds take S(B) steps each.
async fn full_search(
    children: &mut Children,
    definition: &StudyDefinition,
    full: (&Evidence, &Analysis),
    times: &BTreeMap<BatchSize, f64>,
) -> f64 {
    let (evidence, analysis) = full;
    let steps = analysis.steps.as_ref().expect("trained");
    let (_, highest) = steps.learning_rates.expect("tested");
    let template = evidence
        .of_kind(ProbeKind::Training)
        .find(|probe| matches!(&probe.spec.task, Task::Training(run) if run.target.is_some()))
        .expect("a trial");
    let mut space = definition.search.space(Configuration {
        optimizer: definition.optimizer.clone(),
        regularisation: Regularisation::default(),
    });
    space.axes[0].upper = highest.ln();
    space.axes[0].lower = (highest / DOWN).ln();
    let mut total = 0.0;
    for point in &steps.points {
        let needed = point.steps.expect("reached").value;
        let mut made = RUNS_WITH_SEEDS * needed;
        for index in 0..TRIALS {
            let shares: Vec<f64> = (0..space.axes.len() as u32)
                .map(|axis| sobol(index, axis, point.batch_size.0))
                .collect();
            let mut spec = ProbeSpec {
                batch_size: point.batch_size,
                optimizer: space.at(&space.within(&shares)).optimizer,
                ..template.spec.clone()
            };
            if let Task::Training(run) = &mut spec.task {
                run.max_steps = (CAP * needed).ceil() as u64;
            }
            // One that diverged at once has made hardly any.
            made += children
                .run_alone(spec)
                .await
                .figure(Metric::Steps)
                .unwrap_or(0.0);
        }
        total += made * times[&point.batch_size];
    }
    total
}

#[tokio::main]
async fn main() {
    let program = fake::reachable(env!("CARGO_BIN_EXE_trialhead").as_ref(), "program");
    let mut children = Children::new(vec![program.display().to_string(), "probe".into()]);
    for optimizer in ["sgd", "sgd_nesterov"] {
        let asked = definition(optimizer, "full", 7);
        let (evidence, full) = run(&mut children, &asked, None).await;
        let times: BTreeMap<BatchSize, f64> = full
            .throughput
            .as_ref()
            .expect("timed")
            .points
            .iter()
            .map(|point| (point.batch_size, point.mean_time_per_step_secs))
            .collect();
        let decision = full.training_time.as_ref().expect("decided");
        let training_time = |size: BatchSize| {
            let mut points = decision.points.iter();
            let point = points.find(|it| it.batch_size == size).expect("listed");
            point.training_time_secs.value
        };
        let best = decision
            .points
            .iter()
            .map(|point| point.training_time_secs.value)
            .fold(f64::INFINITY, f64::min);
        let reference = full_search(&mut children, &asked, (&evidence, &full), &times).await;
        println!(
            "{optimizer}, full: batch size {:?}, near-ties {:?}, critical batch size {}; its training took {:.3} s of the device, a full search {reference:.3} s",
            decision.measured_batch_size,
            decision.near_ties,
            critical(&full),
            cost(&evidence, &times),
        );
        for seed in SEEDS {
            let asked = definition(optimizer, "adaptive", seed);
            let (trained, found) = run(&mut children, &asked, Some(&evidence)).await;
            let choice = found.training_time.as_ref().expect("decided");
            let size = choice.measured_batch_size.expect("measured");
            let is_same = decision.measured_batch_size == Some(size)
                || decision.near_ties.contains(&size)
                || decision
                    .measured_batch_size
                    .is_some_and(|full| choice.near_ties.contains(&full));
            println!(
                "{optimizer}, adaptive, seed {seed}: batch size {size}, near-ties {:?} ({}); training time {:.1}% above the least by the full curve; critical batch size {}; cost {:.3} of a full search",
                choice.near_ties,
                if is_same {
                    "the same decision or a declared tie"
                } else {
                    "another decision"
                },
                100.0 * (training_time(size) / best - 1.0),
                critical(&found),
                cost(&trained, &times) / reference
            );
        }
    }
}

fn critical(analysis: &Analysis) -> String {
    let limits = &analysis.steps.as_ref().expect("trained").limits;
    match (&limits.critical_batch_size, limits.why) {
        (Some(it), _) => format!(
            "{:.0} ({:.0} to {:.0})",
            it.value,
            it.ci_lower.unwrap_or(f64::NAN),
            it.ci_upper.unwrap_or(f64::NAN)
        ),
        (None, why) => format!("{why:?}"),
    }
}

//! Whole studies in simulated worlds: plan → probes → evidence → analysis → plan, to the end.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use trialhead::analysis::{self, Analysis, Evidence, ProbeRecord};
use trialhead::plan::{Next, Plan, dry_run, plan};
use trialhead::probe::{InfeasibleReason, Metric, ProbeKind, ProbeSpec, ProbeState};
use trialhead::recommendation::{self, Topic};
use trialhead::study::{BatchSize, EndedBecause, StudyDefinition};

use crate::worlds::{self, End, Place, record};

const MIB: f64 = 1048576.0;

/// A world: memory a + b·B under a budget, t(B) = α + β·B with noise between children.
#[derive(Debug, Clone)]
struct World {
    fixed: f64,
    each: f64,
    alpha: f64,
    beta: f64,
    noise: f64,
    /// Batch sizes above this die in a confirmation although they ran in a memory probe.
    confirmation_limit: u64,
    /// Gathering an example takes so long.
    loading: f64,
    /// Rounds in which the whole host is slower.
    slow_round: Option<u32>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            fixed: 50.0 * MIB,
            each: 0.1 * MIB,
            alpha: 1e-3,
            beta: 1e-5,
            noise: 0.01,
            confirmation_limit: u64::MAX,
            loading: 0.0,
            slow_round: None,
        }
    }
}

fn definition(change: serde_json::Value) -> StudyDefinition {
    let mut body = json!({
        "workload": {"dataset": {"builtin": "synthetic", "examples": 100_000}},
        "batch_sizes": {"min": 1, "max": 65536},
        "device": {"memory_budget_bytes": (1024.0 * MIB) as u64},
        "seed": 3
    });
    for (key, value) in change.as_object().expect("changes") {
        body[key] = value.clone();
    }
    worlds::definition(&body)
}

impl World {
    fn answer(&self, spec: &ProbeSpec, place: Place) -> ProbeRecord {
        let size = spec.batch_size.as_f64();
        let peak = self.fixed + self.each * size;
        let mut random = ChaCha8Rng::seed_from_u64(place.id as u64);
        let mut figures = BTreeMap::new();
        let dies = peak > spec.limits.memory_bytes.as_f64()
            || (spec.kind() == ProbeKind::Confirmation
                && spec.batch_size.0 > self.confirmation_limit);
        if !dies {
            match spec.kind() {
                ProbeKind::StepTime => {
                    let slow = if self.slow_round == Some(spec.replicate) {
                        1.3
                    } else {
                        1.0
                    };
                    let noise = (self.noise * (random.random::<f64>() - 0.5) * 3.4).exp();
                    let synthetic = (self.alpha + self.beta * size) * noise * slow;
                    let t = synthetic + self.loading * size;
                    figures.insert(Metric::SyntheticTimePerStepMedian, synthetic);
                    figures.insert(Metric::TimePerStepMedian, t);
                    figures.insert(Metric::TimePerStepMean, t * 1.01);
                    figures.insert(Metric::CanaryTimePerStep, 1e-4 * slow);
                    figures.insert(Metric::RunQueueDelayRatio, 0.0);
                    figures.insert(Metric::Converged, 1.0);
                }
                ProbeKind::InputPipeline => {
                    let mut t = |share: f64| {
                        let noise = (0.01 * (random.random::<f64>() - 0.5)).exp();
                        (self.alpha + self.beta * size) * share * noise
                    };
                    let load = self.loading * size + 1e-7;
                    figures.extend([
                        (Metric::SyntheticTimePerStep, t(1.0)),
                        (Metric::PrefetchedTimePerStep, t(1.0).max(load)),
                        (Metric::UnprefetchedTimePerStep, t(1.0) + load),
                        (Metric::LoadTimePerStep, load),
                        (Metric::TransferTimePerStep, 1e-7),
                        (Metric::ReadbackTimePerStep, t(1.0)),
                        (Metric::ForwardTimePerStep, t(0.3)),
                        (Metric::ForwardBackwardTimePerStep, t(0.8)),
                        (Metric::MatmulRate, 1e11),
                        (Metric::RunQueueDelayRatio, 0.0),
                    ]);
                }
                ProbeKind::GradientAccumulation => {
                    let t = self.alpha + self.beta * size;
                    figures.extend([
                        (Metric::SyntheticTimePerStep, t),
                        (Metric::ForwardBackwardTimePerStep, 0.8 * t),
                        (Metric::AccumulatedTimePerStep, (4.0 * 0.8 + 0.2) * t),
                    ]);
                }
                _ => {
                    figures.insert(Metric::PeakMemory, peak);
                }
            }
        }
        let steps_secs = 20.0 * (self.alpha + self.beta * size);
        let infeasible = if steps_secs > spec.limits.wall_secs {
            figures.clear();
            Some(InfeasibleReason::TooSlow)
        } else {
            dies.then_some(InfeasibleReason::OutOfMemory)
        };
        let end = End {
            infeasible,
            device_secs: 1.0,
            figures,
        };
        record(spec, place, end)
    }
}

#[derive(Debug)]
struct Run {
    evidence: Evidence,
    because: EndedBecause,
    plans: Vec<Plan>,
}

impl Run {
    fn count(&self, kind: ProbeKind) -> usize {
        self.evidence.of_kind(kind).count()
    }

    fn advice(&self, definition: &StudyDefinition, topic: Topic) -> recommendation::Advice {
        let analysis = analysis::analyze(definition, &self.evidence);
        recommendation::recommend(definition, &self.evidence, &analysis)
            .into_iter()
            .find(|advice| advice.topic == topic)
            .unwrap_or_else(|| panic!("no {topic:?}"))
    }
}

/// Runs a study to its end; `order` shuffles the order in which the probes of a wave finish.
fn run(definition: &StudyDefinition, world: &World, order: u64) -> Run {
    let mut evidence = Evidence::default();
    let mut plans = Vec::new();
    let mut shuffle = ChaCha8Rng::seed_from_u64(order);
    loop {
        let analysis = analysis::analyze(definition, &evidence);
        let plan = plan(definition, &evidence, &analysis);
        plans.push(plan.clone());
        assert!(plans.len() < 200, "the study does not end");
        match plan.next {
            Next::Wave(planned) => {
                let wave = evidence.next_wave();
                let mut open: Vec<ProbeRecord> = (0_u32..)
                    .zip(&planned)
                    .map(|(position, probe)| {
                        assert!(!probe.why.is_empty());
                        let place = Place {
                            id: (u128::from(wave) << 32) + u128::from(position) + 1,
                            wave,
                            position,
                        };
                        let mut record = world.answer(&probe.spec, place);
                        record.state = ProbeState::Queued;
                        record
                    })
                    .collect();
                let start = evidence.probes.len();
                evidence.probes.append(&mut open);
                let mut finish: Vec<usize> = (start..evidence.probes.len()).collect();
                finish.shuffle(&mut shuffle);
                for index in finish {
                    // While one is open, nothing else is planned, whichever finished.
                    let analysis = analysis::analyze(definition, &evidence);
                    let waiting = trialhead::plan::plan(definition, &evidence, &analysis);
                    assert_eq!(waiting.next, Next::WaitForProbes);
                    let record = &evidence.probes[index];
                    let place = Place {
                        id: record.id.0.as_u128(),
                        wave: record.wave,
                        position: record.position,
                    };
                    evidence.probes[index] = world.answer(&record.spec.clone(), place);
                }
            }
            Next::Done { because, .. } => {
                return Run {
                    evidence,
                    because,
                    plans,
                };
            }
            other => panic!("nothing to wait for: {other:?}"),
        }
    }
}

#[test]
fn a_study_goes_through_its_phases_and_answers_everything() {
    let definition = definition(json!({}));
    let run = run(&definition, &World::default(), 1);
    assert_eq!(run.because, EndedBecause::Answered);
    assert_eq!(run.count(ProbeKind::Smoke), 1);
    assert!(
        (4..=8).contains(&run.count(ProbeKind::Memory)),
        "{}",
        run.count(ProbeKind::Memory)
    );
    assert!(run.count(ProbeKind::StepTime) >= 3 * 14);
    assert!(run.count(ProbeKind::Confirmation) >= 1);
    // 1024 MiB less a reserve of 10%, less 50 MiB, at 0.1 MiB an example.
    let limit = (1024.0 * 0.9 - 50.0) / 0.1;
    let feasible = run.advice(&definition, Topic::FeasibleBatchSizes);
    let largest = feasible.value["largest_feasible_batch_size"]
        .as_f64()
        .expect("a size");
    assert!(
        largest <= limit && largest >= limit * (1.0 - 1.0 / 31.0),
        "{largest} of {limit}"
    );
    assert_eq!(feasible.value["limited_by"], "memory");
    assert_eq!(feasible.value["confirmed"], true);
    // α/β = 100: from 512 a doubling gains 1.09.
    let start = run.advice(&definition, Topic::BatchSize);
    assert!(
        [256, 512].contains(&start.value["batch_size"].as_u64().expect("a size")),
        "{start:?}"
    );
    assert_eq!(start.value["confirmed"], true);
    assert!(
        start
            .caveats
            .iter()
            .any(|caveat| caveat.code == "W_BELOW_CRITICAL_ASSUMED")
    );
}

/// A device that is far from saturated: the largest batch size that fits is the one to start with.
#[test]
fn row_15_37_the_largest_batch_size_that_the_hardware_supports() {
    let definition = definition(json!({}));
    let world = World {
        alpha: 1.0,
        beta: 1e-6,
        ..World::default()
    };
    let run = run(&definition, &world, 1);
    let feasible = run.advice(&definition, Topic::FeasibleBatchSizes);
    let start = run.advice(&definition, Topic::BatchSize);
    let largest = feasible.value["largest_feasible_batch_size"].as_u64();
    let chosen = start.value["batch_size"].as_u64().expect("a size");
    // The largest that was timed: that limit itself, or the power of two below it.
    assert!(
        Some(chosen) <= largest && Some(2 * chosen) > largest,
        "{chosen}, {largest:?}"
    );
    assert_eq!(start.basis, recommendation::Basis::RuleOfThumb);
}

#[test]
fn the_order_in_which_probes_finish_changes_nothing() {
    let definition = definition(json!({}));
    let world = World {
        noise: 0.05,
        ..World::default()
    };
    let first = run(&definition, &world, 1);
    let second = run(&definition, &world, 2);
    assert_eq!(first.plans, second.plans);
    assert_eq!(first.evidence, second.evidence);
}

#[test]
fn a_small_budget_of_time_ends_early_and_still_confirms() {
    let definition = definition(json!({"budget": {"device_secs": 20.0}}));
    let run = run(&definition, &World::default(), 1);
    assert_eq!(run.because, EndedBecause::BudgetExhausted);
    assert!(run.evidence.device_secs() <= 20.0);
    assert!(run.count(ProbeKind::StepTime) > 0, "one round at least");
    assert!(
        run.count(ProbeKind::Confirmation) > 0,
        "what is recommended is confirmed"
    );
    run.advice(&definition, Topic::BatchSize);
}

#[test]
fn a_budget_bends_the_plan_and_the_answer_says_so() {
    let full = run(&definition(json!({})), &World::default(), 1);
    let definition = definition(json!({"budget": {"device_secs": 40.0}}));
    let run = run(&definition, &World::default(), 1);
    assert!(full.evidence.device_secs() > 60.0);
    assert!(run.evidence.device_secs() <= 40.0);
    // Fewer batch sizes, each in three rounds: an interval for every figure.
    let advice = run.advice(&definition, Topic::TrainingThroughput);
    assert_eq!(advice.value["rounds"], 3);
    let remark = advice
        .caveats
        .iter()
        .find(|caveat| caveat.code == "W_BUDGET")
        .expect("it says so");
    assert!(remark.detail.contains("batch sizes"), "{remark:?}");
    let start = run.advice(&definition, Topic::BatchSize);
    assert_eq!(start.value["confirmed"], true);
    assert!(start.caveats.iter().any(|caveat| caveat.code == "W_BUDGET"));
    let quiet = full.advice(&super::studies::definition(json!({})), Topic::BatchSize);
    assert!(quiet.caveats.iter().all(|caveat| caveat.code != "W_BUDGET"));
}

#[test]
fn a_slow_loader_is_named_and_does_not_hide_where_the_device_saturates() {
    let definition = definition(json!({"batch_sizes": {"min": 1, "max": 4096}}));
    let sound = run(&definition, &World::default(), 1);
    // Loading takes ten times as long as an example's arithmetic: throughput as trained stops rising at once.
    let world = World {
        loading: 1e-4,
        ..World::default()
    };
    let run = run(&definition, &world, 1);
    let start = run.advice(&definition, Topic::BatchSize);
    let without = sound.advice(&definition, Topic::BatchSize);
    assert_eq!(start.value["batch_size"], without.value["batch_size"]);
    assert_eq!(start.value["fix_bottleneck_first"], true);
    assert_eq!(without.value["fix_bottleneck_first"], false);
    assert!(start.summary.starts_with("Mend the bottleneck first"));
    let bottleneck = run.advice(&definition, Topic::Bottleneck);
    assert_eq!(bottleneck.value["bottleneck"], "input_bound");
    let size = start.value["batch_size"].as_f64().expect("a size");
    let ceiling = bottleneck.value["findings"][0]["ceiling_examples_per_sec"]
        .as_f64()
        .expect("a ceiling");
    let truth = size / (1e-3 + 1e-5 * size);
    assert!((ceiling / truth - 1.0).abs() < 0.05, "{ceiling} of {truth}");
    let accumulation = run.advice(&definition, Topic::GradientAccumulation);
    let ratio = accumulation.value["throughput_ratio"]["value"]
        .as_f64()
        .expect("a ratio");
    let expected = accumulation.value["expected_ratio"]
        .as_f64()
        .expect("a ratio");
    assert!((ratio / expected - 1.0).abs() < 0.05);
}

#[test]
fn a_budget_of_probes_is_kept_too() {
    let definition = definition(json!({"budget": {"probes": 4}}));
    let run = run(&definition, &World::default(), 1);
    assert_eq!(run.because, EndedBecause::BudgetExhausted);
    assert!(run.evidence.probes.len() <= 4);
}

#[test]
fn nothing_feasible_is_an_answer_with_what_would_fit() {
    let definition = definition(json!({
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": {"family": "mlp", "hidden": [20_000, 20_000]}
        },
        "batch_sizes": {"min": 1, "max": 64}
    }));
    let world = World {
        fixed: 5000.0 * MIB,
        ..World::default()
    };
    let run = run(&definition, &world, 1);
    assert_eq!(run.because, EndedBecause::NothingFeasible);
    assert!(run.evidence.probes.len() <= 2);
    let advice = run.advice(&definition, Topic::FeasibleBatchSizes);
    // 64·20000 + 20000 + 20000² + 20000 + 20000·10 + 10 parameters; Adam: 16 bytes each.
    let parameters = 64_u64 * 20_000 + 20_000 + 20_000 * 20_000 + 20_000 + 20_000 * 10 + 10;
    assert_eq!(advice.value["needs_at_least_bytes"], parameters * 16);
    let smaller = advice.value["model_that_could_fit"]["hidden"][0]
        .as_u64()
        .expect("a size");
    assert!((6000..8000).contains(&smaller), "{smaller}");
}

#[test]
fn what_is_too_slow_is_not_said_to_be_too_large() {
    let definition = definition(json!({}));
    let world = World {
        alpha: 10.0,
        ..World::default()
    };
    let run = run(&definition, &world, 1);
    assert_eq!(run.because, EndedBecause::NothingFeasible);
    assert_eq!(run.evidence.probes.len(), 1);
    let advice = run.advice(&definition, Topic::FeasibleBatchSizes);
    assert_eq!(advice.value["limited_by"], "time");
    assert_eq!(advice.value["model_that_could_fit"], json!(null));
    assert!(advice.summary.contains("not known"), "{}", advice.summary);
    assert!(
        advice.summary.contains("within 120 s"),
        "{}",
        advice.summary
    );
}

#[test]
fn a_confirmation_that_fails_is_followed_by_a_smaller_one() {
    let definition = definition(json!({"questions": ["feasible_batch_sizes"]}));
    let world = World {
        confirmation_limit: 8000,
        ..World::default()
    };
    let run = run(&definition, &world, 1);
    assert_eq!(run.because, EndedBecause::Answered);
    assert!(run.count(ProbeKind::Confirmation) >= 2);
    let advice = run.advice(&definition, Topic::FeasibleBatchSizes);
    let largest = advice.value["largest_feasible_batch_size"]
        .as_u64()
        .expect("a size");
    assert!(largest <= 8000, "{largest}");
    assert_eq!(advice.value["confirmed"], true);
    assert_eq!(
        run.count(ProbeKind::StepTime),
        0,
        "times were not asked for"
    );
}

#[test]
fn a_round_on_a_slower_host_is_repeated_and_left_out() {
    let definition = definition(json!({"batch_sizes": {"min": 64, "max": 1024}}));
    let disturbed = World {
        slow_round: Some(1),
        noise: 0.002,
        ..World::default()
    };
    let run = run(&definition, &disturbed, 1);
    let rounds = run
        .evidence
        .of_kind(ProbeKind::StepTime)
        .map(|probe| probe.spec.replicate + 1)
        .max()
        .expect("rounds");
    assert!(rounds >= 4, "{rounds} rounds");
    let analysis = analysis::analyze(&definition, &run.evidence);
    let throughput = analysis.throughput.expect("times");
    assert_eq!(throughput.rounds_repeated, 1);
    let point = &throughput.points[0];
    let truth = 1e-3 + 64.0 * 1e-5;
    assert!((point.time_per_step_secs.value / truth - 1.0).abs() < 0.01);
    assert!(
        throughput
            .caveats
            .iter()
            .all(|caveat| caveat.code != "W_CANARY")
    );
}

#[test]
fn the_range_ends_the_search_when_memory_does_not() {
    let definition = definition(json!({"batch_sizes": {"min": 8, "max": 100}}));
    let run = run(&definition, &World::default(), 1);
    let advice = run.advice(&definition, Topic::FeasibleBatchSizes);
    assert_eq!(advice.value["largest_feasible_batch_size"], 100);
    assert_eq!(advice.value["limited_by"], "range");
    assert_eq!(advice.value["at_least"], 100);
    let timed: std::collections::BTreeSet<BatchSize> = run
        .evidence
        .of_kind(ProbeKind::StepTime)
        .map(|probe| probe.batch_size())
        .collect();
    let timed: Vec<u64> = timed.into_iter().map(|size| size.0).collect();
    assert_eq!(timed, [8, 16, 32, 64]);
}

#[test]
fn a_broken_pipeline_ends_the_study_with_its_code() {
    let definition = definition(json!({}));
    let mut evidence = Evidence::default();
    let first = plan(&definition, &evidence, &Analysis::default());
    let Next::Wave(wave) = first.next else {
        panic!("a smoke probe comes first");
    };
    let place = Place {
        id: 1,
        wave: 0,
        position: 0,
    };
    let mut record = World::default().answer(&wave[0].spec, place);
    record.state = ProbeState::Infeasible;
    record.infeasible = Some(InfeasibleReason::PipelineBroken);
    record.detail = Some("two evaluations of the same parameters differ".into());
    evidence.probes.push(record);
    let analysis = analysis::analyze(&definition, &evidence);
    match plan(&definition, &evidence, &analysis).next {
        Next::Done { because, detail } => {
            assert_eq!(because, EndedBecause::PipelineBroken);
            assert!(
                detail.contains("E_PIPELINE") && detail.contains("differ"),
                "{detail}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_device_nothing_is_planned() {
    let mut definition = definition(json!({}));
    definition.device.model = None;
    let plan = plan(&definition, &Evidence::default(), &Analysis::default());
    assert_eq!(plan.next, Next::WaitForDevice);
}

#[test]
fn a_dry_run_estimates_and_warns() {
    let fits = dry_run(&definition(json!({"batch_sizes": {"min": 1, "max": 64}})));
    assert!(
        fits.probes > 20 && fits.estimated_device_secs > 20.0,
        "{fits:?}"
    );
    assert!(fits.warnings.is_empty(), "{fits:?}");
    let tight = dry_run(&definition(json!({"budget": {"device_secs": 5.0}})));
    assert!(
        tight
            .warnings
            .iter()
            .any(|warning| warning.contains("budget")),
        "{tight:?}"
    );
}

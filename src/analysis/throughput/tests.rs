use proptest::prelude::*;

use super::*;
use crate::analysis::fixtures::{rounds, timed};
use crate::probe::ProbeState;

const SIZES: [u64; 5] = [8, 16, 32, 64, 128];

/// Additive, knee at 64: 1 ms and 1/64 ms an example.
fn secs(size: u64) -> f64 {
    1e-3 + 1e-3 / 64.0 * size as f64
}

/// Scatter that is the same for every run: at most 1% either way.
fn scattered(size: u64, round: u32) -> f64 {
    let phase = (size.trailing_zeros() * 7 + round * 5) % 11;
    secs(size) * (1.0 + (f64::from(phase) - 5.0) * 2e-3)
}

fn codes(analysis: &ThroughputAnalysis) -> Vec<&str> {
    analysis
        .caveats
        .iter()
        .map(|caveat| caveat.code.as_str())
        .collect()
}

fn sizes(analysis: &ThroughputAnalysis) -> Vec<u64> {
    analysis
        .points
        .iter()
        .map(|point| point.batch_size.0)
        .collect()
}

proptest! {
    #[test]
    fn known_times_are_found_whatever_slows_a_whole_round(
        drift in prop::collection::vec(-0.02..0.02_f64, 3),
        scale in 1e-5..10.0_f64,
    ) {
        let evidence = rounds(&SIZES, 3, |size, round| {
            scale * secs(size) * drift[round as usize].exp()
        });
        let analysis = analyze(&evidence).expect("an analysis");
        let mean_drift = drift.iter().sum::<f64>() / 3.0;
        for point in &analysis.points {
            let expected = scale * secs(point.batch_size.0) * mean_drift.exp();
            prop_assert!((point.time_per_step_secs.value / expected - 1.0).abs() < 1e-9);
            let rate = point.batch_size.as_f64() / expected;
            prop_assert!((point.examples_per_sec.value / rate - 1.0).abs() < 1e-9);
        }
        // All rounds agree up to their own factor: no residual.
        prop_assert!(analysis.between_child_sd.expect("a deviation") < 1e-9);
        prop_assert_eq!(analysis.degrees_of_freedom, 8);
        prop_assert_eq!(analysis.rounds, 3);
        prop_assert!(analysis.caveats.is_empty(), "{:?}", analysis.caveats);
    }
}

#[test]
fn more_rounds_give_narrower_intervals_and_one_round_gives_none() {
    let width = |count: u32| {
        let analysis = analyze(&rounds(&SIZES, count, scattered)).expect("an analysis");
        let time = analysis.points[0].time_per_step_secs;
        time.ci_lower
            .zip(time.ci_upper)
            .map(|(lower, upper)| (upper / lower).ln())
    };
    assert_eq!(width(1), None);
    let (three, eight) = (width(3).expect("a width"), width(8).expect("a width"));
    assert!(three > eight && eight > 0.0, "{three} {eight}");

    let single = analyze(&rounds(&SIZES, 1, scattered)).expect("an analysis");
    assert_eq!(single.between_child_sd, None);
    assert_eq!(single.points[0].examples_per_sec.ci_lower, None);
    assert_eq!(codes(&single), ["W_UNRELIABLE"]);
}

#[test]
fn nothing_is_said_before_the_first_round_ended() {
    let mut evidence = rounds(&SIZES, 1, scattered);
    evidence.probes[4].state = ProbeState::Running;
    assert_eq!(analyze(&evidence), None);
    assert_eq!(analyze(&Evidence::default()), None);
}

#[test]
fn a_round_under_way_changes_nothing() {
    let three = analyze(&rounds(&SIZES, 3, scattered)).expect("an analysis");
    let mut evidence = rounds(&SIZES, 4, scattered);
    evidence.probes.last_mut().expect("a probe").state = ProbeState::Queued;
    assert_eq!(analyze(&evidence), Some(three));
}

#[test]
fn a_batch_size_that_failed_once_costs_a_round_only_when_rounds_are_plenty() {
    let mut evidence = rounds(&SIZES, 4, scattered);
    evidence.probes[4].state = ProbeState::Failed;
    let analysis = analyze(&evidence).expect("an analysis");
    assert_eq!((analysis.rounds, sizes(&analysis)), (3, SIZES.to_vec()));
    assert!(analysis.caveats.is_empty());
}

#[test]
fn a_batch_size_that_keeps_failing_does_not_take_the_others_with_it() {
    let mut evidence = rounds(&SIZES, 3, scattered);
    for probe in &mut evidence.probes {
        if probe.batch_size() == BatchSize(128) && probe.spec.replicate > 0 {
            probe.state = ProbeState::Infeasible;
        }
    }
    let analysis = analyze(&evidence).expect("an analysis");
    assert_eq!(
        (analysis.rounds, sizes(&analysis)),
        (3, SIZES[..4].to_vec())
    );
    assert_eq!(codes(&analysis), ["W_UNRELIABLE"]);
    assert!(analysis.caveats[0].detail.contains("128"));
}

#[test]
fn a_round_cut_short_by_cancellation_costs_that_round_alone() {
    let mut evidence = rounds(&SIZES, 3, scattered);
    for probe in &mut evidence.probes[7..] {
        probe.state = ProbeState::Cancelled;
    }
    let analysis = analyze(&evidence).expect("an analysis");
    assert_eq!((analysis.rounds, sizes(&analysis)), (1, SIZES.to_vec()));
}

fn with_canary(mut evidence: Evidence, canary: impl Fn(u32) -> f64) -> Evidence {
    for probe in &mut evidence.probes {
        let time = canary(probe.spec.replicate);
        probe.figures.insert(Metric::CanaryTimePerStep, time);
    }
    evidence
}

#[test]
fn a_round_with_its_canary_off_is_named_and_left_out_once_it_was_repeated() {
    let slow_round = |round: u32| if round == 1 { 1.3 } else { 1.0 };
    let disturbed = |count| {
        let times = |size, round| scattered(size, round) * slow_round(round);
        with_canary(rounds(&SIZES, count, times), slow_round)
    };
    let three = disturbed(3);
    assert_eq!(rounds_off(&three), [1]);
    let kept = analyze(&three).expect("an analysis");
    assert_eq!((kept.rounds, kept.rounds_repeated), (3, 0));
    assert_eq!(codes(&kept), ["W_CANARY", "W_DRIFT"]);

    let four = disturbed(4);
    assert_eq!(rounds_off(&four), [1]);
    let left_out = analyze(&four).expect("an analysis");
    assert_eq!((left_out.rounds, left_out.rounds_repeated), (3, 1));
    assert!(left_out.caveats.is_empty(), "{:?}", left_out.caveats);
    let expected = secs(64);
    let value = left_out.points[3].time_per_step_secs.value;
    assert!((value / expected - 1.0).abs() < 0.02, "{value}");
}

#[test]
fn two_rounds_do_not_tell_which_canary_is_off_and_one_child_is_not_a_round() {
    let two = with_canary(rounds(&SIZES, 2, scattered), |round| 1.0 + f64::from(round));
    assert!(rounds_off(&two).is_empty());
    let mut one_child = rounds(&SIZES, 3, scattered);
    one_child.probes[7]
        .figures
        .insert(Metric::CanaryTimePerStep, 1.0);
    assert!(rounds_off(&one_child).is_empty());
}

#[test]
fn what_the_children_saw_is_remarked_on() {
    let remarks = |change: &dyn Fn(&mut ProbeRecord)| {
        let mut evidence = rounds(&SIZES, 3, scattered);
        for probe in evidence
            .probes
            .iter_mut()
            .filter(|probe| probe.batch_size() == BatchSize(16))
        {
            change(probe);
        }
        let analysis = analyze(&evidence).expect("an analysis");
        analysis.caveats
    };
    let set = |metric, value: f64| {
        remarks(&move |probe: &mut ProbeRecord| {
            probe.figures.insert(metric, value);
        })
    };
    let one = |caveats: Vec<Caveat>, code: &str, part: &str| {
        assert_eq!(caveats.len(), 1, "{caveats:?}");
        assert_eq!(caveats[0].code, code);
        assert!(caveats[0].detail.contains(part), "{caveats:?}");
    };
    one(set(Metric::Converged, 0.0), "W_UNRELIABLE", "3 of 15");
    one(
        set(Metric::TimePerStepMean, secs(16) * 1.2),
        "W_STALLS",
        "batch size 16",
    );
    one(
        set(Metric::RunQueueDelayRatio, 0.11),
        "W_HOST_CONTENDED",
        "11% of the time in 3 of 15",
    );
    assert!(set(Metric::RunQueueDelayRatio, 0.04).is_empty());
    // A step over a second: 20 single-step blocks were all that was wanted.
    let slow = remarks(&|probe: &mut ProbeRecord| {
        probe.figures.insert(Metric::Converged, 0.0);
        probe.figures.insert(Metric::Blocks, 20.0);
    });
    assert!(slow.is_empty(), "{slow:?}");
}

#[test]
fn a_kernel_that_does_not_tell_of_contention_is_remarked_on() {
    let mut evidence = rounds(&SIZES, 3, scattered);
    for probe in &mut evidence.probes {
        probe.figures.remove(&Metric::RunQueueDelayRatio);
    }
    let analysis = analyze(&evidence).expect("an analysis");
    assert_eq!(codes(&analysis), ["W_CONTENTION_UNKNOWN"]);
}

#[test]
fn times_that_are_not_times_are_no_evidence() {
    let mut evidence = rounds(&SIZES, 3, scattered);
    evidence.probes.push(timed(256, 0, f64::NAN));
    evidence.probes.push(timed(512, 0, 0.0));
    let analysis = analyze(&evidence).expect("an analysis");
    assert_eq!(sizes(&analysis), SIZES);
    assert!(analysis.points.iter().all(|point| {
        point.time_per_step_secs.value.is_finite() && point.mean_time_per_step_secs.is_finite()
    }));
}

fn probabilities(
    evidence: &Evidence,
    candidates: &[u64],
) -> std::collections::BTreeMap<u64, (f64, f64)> {
    let candidates: Vec<BatchSize> = candidates.iter().copied().map(BatchSize).collect();
    let analysis = analyze(evidence).expect("an analysis");
    best_throughput_probabilities(&analysis.curve().expect("a curve"), &candidates, 7)
        .into_iter()
        .map(|(size, best, within)| (size.0, (best, within)))
        .collect()
}

#[test]
fn a_clear_winner_is_surely_best_and_only_candidates_count() {
    let evidence = rounds(&SIZES, 3, scattered);
    let all = probabilities(&evidence, &SIZES);
    assert!(all[&128].0 > 0.999, "{all:?}");
    assert!(all[&64].1 < 0.001, "{all:?}");
    let feasible = probabilities(&evidence, &[8, 64]);
    assert_eq!(feasible.len(), 2);
    assert!(feasible[&64].0 > 0.999, "{feasible:?}");
}

#[test]
fn equals_share_the_probability() {
    // The same throughput at two batch sizes, up to a scatter of about 1%.
    let evidence = rounds(&[64, 128], 3, |size, round| {
        size as f64 * scattered(64, round + size as u32) / secs(64)
    });
    let shared = probabilities(&evidence, &[64, 128]);
    assert!((shared[&64].0 + shared[&128].0 - 1.0).abs() < 1e-9);
    assert!((0.02..0.98).contains(&shared[&64].0), "{shared:?}");
    assert!(shared[&64].1 > 0.9 && shared[&128].1 > 0.9, "{shared:?}");
}

#[test]
fn single_runs_give_no_probability_and_the_seed_decides_the_draws() {
    assert!(probabilities(&rounds(&SIZES, 1, scattered), &SIZES).is_empty());
    let evidence = rounds(&SIZES, 3, scattered);
    assert_eq!(
        probabilities(&evidence, &SIZES),
        probabilities(&evidence, &SIZES)
    );
}

use super::*;
use crate::analysis::fixtures::succeeded;
use crate::analysis::{GainRegion, ProbeRecord};
use crate::probe::{Task, TurnSampling};
use crate::study::{Dataset, Model};

/// Times of the parts of a step, milliseconds.
#[derive(Clone, Copy)]
struct Truth {
    load: f64,
    synthetic: f64,
    readback: f64,
    /// Of the plain matrix multiplication's rate.
    arithmetic: f64,
}

const SOUND: Truth = Truth {
    load: 0.1,
    synthetic: 10.0,
    readback: 10.0,
    arithmetic: 0.8,
};

fn workload() -> Workload {
    Workload::new(Dataset::digits(), Model::mlp(vec![64]))
}

/// A child whose figures are off by its own factor, the ratios by a little.
fn child(truth: Truth, size: u64, replicate: u32) -> ProbeRecord {
    let host = 1.0 + 0.1 * f64::from(replicate);
    // Not the same at every batch size, or it would be the round's.
    let sign = if size == 64 { -1.0 } else { 1.0 };
    let off = 1.0 + 0.004 * sign * (f64::from(replicate) - 1.0);
    let secs = |ms: f64| ms * 1e-3 * host;
    let operations = 64.0 * 64.0 + 64.0 * 10.0;
    let forward_backward = 0.8 * truth.synthetic;
    let rate = operations * 6.0 * size as f64 / secs(forward_backward);
    let figures = [
        (
            Metric::PrefetchedTimePerStep,
            secs(truth.load.max(truth.synthetic)) * off,
        ),
        (
            Metric::UnprefetchedTimePerStep,
            secs(truth.load + 0.01 + truth.synthetic) * off,
        ),
        (Metric::LoadTimePerStep, secs(truth.load)),
        (Metric::TransferTimePerStep, secs(0.01)),
        (Metric::SyntheticTimePerStep, secs(truth.synthetic)),
        (Metric::ReadbackTimePerStep, secs(truth.readback) * off),
        (Metric::ForwardTimePerStep, secs(0.3 * truth.synthetic)),
        (Metric::ForwardBackwardTimePerStep, secs(forward_backward)),
        (Metric::MatmulRate, rate / truth.arithmetic),
    ];
    let task = Task::InputPipeline(TurnSampling::default());
    succeeded(task, size, replicate, &figures)
}

fn evidence(truth: Truth, children: u32) -> Evidence {
    let probes = [16, 64]
        .into_iter()
        .flat_map(|size| (0..children).map(move |replicate| child(truth, size, replicate)))
        .collect();
    Evidence { probes }
}

/// A curve whose doublings all gain as much.
fn saturation(gain: f64) -> SaturationAnalysis {
    let estimate = Estimate {
        value: gain,
        ci_lower: Some(gain * 0.99),
        ci_upper: Some(gain * 1.01),
    };
    let doubling = |from: u64| DoublingGain {
        from: BatchSize(from),
        to: BatchSize(2 * from),
        gain: estimate,
        region: GainRegion::Undetermined,
    };
    SaturationAnalysis {
        of_synthetic_data: true,
        gains: [16, 32].map(doubling).to_vec(),
        saturation_batch_size: None,
        peak_batch_size: BatchSize(64),
        highest_examples_per_sec: Some(9e3),
        dips: Vec::new(),
        time_model: None,
    }
}

fn labels(workload: &Workload, truth: Truth, gain: f64) -> Vec<Bottleneck> {
    let analysis = analyze(workload, &evidence(truth, 3), Some(&saturation(gain)));
    let analysis = analysis.expect("an analysis");
    assert_eq!(analysis.points.len(), 2);
    let labels = |point: &BottleneckPoint| -> Vec<Bottleneck> {
        point.findings.iter().map(|finding| finding.label).collect()
    };
    let first = labels(&analysis.points[0]);
    assert_eq!(first, labels(&analysis.points[1]));
    first
}

#[test]
fn every_fault_has_its_label_and_a_sound_step_has_none() {
    let logs = Workload {
        read_loss_every_step: true,
        ..workload()
    };
    // A gain of 1.5 lies between: neither launching nor the device's work is all of it.
    assert_eq!(labels(&logs, SOUND, 1.5), []);
    let slow_loader = Truth { load: 2.0, ..SOUND };
    assert_eq!(
        labels(&workload(), slow_loader, 1.5),
        [Bottleneck::InputBound]
    );
    let slow_readback = Truth {
        readback: 11.0,
        ..SOUND
    };
    assert_eq!(labels(&logs, slow_readback, 1.5), [Bottleneck::SyncBound]);
    assert_eq!(
        labels(&workload(), slow_readback, 1.5),
        [],
        "nobody reads it back"
    );
    assert_eq!(labels(&workload(), SOUND, 1.9), [Bottleneck::LaunchBound]);
    assert_eq!(labels(&workload(), SOUND, 1.02), [Bottleneck::ComputeBound]);
    let mover = Truth {
        arithmetic: 0.1,
        ..SOUND
    };
    assert_eq!(
        labels(&workload(), mover, 1.02),
        [Bottleneck::BandwidthBound]
    );
}

#[test]
fn figures_ceilings_and_fixes_follow_from_the_parts() {
    let slow_loader = Truth { load: 5.0, ..SOUND };
    let analysis = analyze(&workload(), &evidence(slow_loader, 3), None).expect("an analysis");
    let point = &analysis.points[1];
    assert!((point.input_ratio.value - 1.501).abs() < 0.01);
    assert!((point.prefetch_ratio.value - 1.0 / 1.501).abs() < 0.01);
    assert!((point.unexplained_ratio.value - 1.0).abs() < 0.01);
    let host = (1.0_f64 * 1.1 * 1.2).cbrt();
    assert!((point.parts.optimizer_secs - 2e-3 * host).abs() < 1e-5);
    assert!((point.arithmetic_ratio.expect("known").value - 0.8).abs() < 1e-9);
    let finding = point.finding(Bottleneck::InputBound).expect("found");
    let ceiling = finding.ceiling_examples_per_sec.expect("known");
    assert!((ceiling / (64.0 / (10e-3 * host)) - 1.0).abs() < 1e-9);
    assert!(finding.fix.contains("input_pipeline.threads: 1"));
    // Slower than one thread can gather.
    let slower = Truth {
        load: 35.0,
        ..SOUND
    };
    let analysis = analyze(&workload(), &evidence(slower, 3), None).expect("an analysis");
    assert!(analysis.points[0].findings[0].fix.contains("4 threads"));
    // The first to be mended, wherever it was measured.
    assert_eq!(
        analysis.nearest(BatchSize(20)).expect("a point").batch_size,
        BatchSize(16)
    );
}

#[test]
fn what_the_intervals_cannot_tell_is_undetermined() {
    let close = Truth {
        load: 0.99,
        ..SOUND
    };
    let analysis = analyze(&workload(), &evidence(close, 3), None).expect("an analysis");
    let point = &analysis.points[0];
    assert!(point.findings.is_empty());
    assert_eq!(point.undetermined, [Bottleneck::InputBound]);
    // One child tells nothing from chance, however far it is past the threshold.
    let far = Truth {
        load: 50.0,
        ..SOUND
    };
    let analysis = analyze(&workload(), &evidence(far, 1), None).expect("an analysis");
    assert_eq!(analysis.points[0].undetermined, [Bottleneck::InputBound]);
    let has = |code: &str| analysis.caveats.iter().any(|caveat| caveat.code == code);
    assert!(has("W_UNRELIABLE"));
}

#[test]
fn parts_that_do_not_add_up_are_remarked_on() {
    let mut evidence = evidence(SOUND, 3);
    for probe in &mut evidence.probes {
        let time = probe
            .figures
            .get_mut(&Metric::UnprefetchedTimePerStep)
            .expect("a figure");
        *time *= 1.3;
    }
    let analysis = analyze(&workload(), &evidence, None).expect("an analysis");
    let hidden = analysis
        .caveats
        .iter()
        .find(|caveat| caveat.code == "W_HIDDEN_BARRIER");
    assert!(hidden.expect("a remark").detail.contains("1.30"));
}

#[test]
fn children_that_failed_take_no_others_with_them() {
    let mut evidence = evidence(SOUND, 3);
    evidence.probes[0].state = crate::probe::ProbeState::Failed;
    let analysis = analyze(&workload(), &evidence, None).expect("an analysis");
    assert_eq!(analysis.points.len(), 1);
    assert_eq!(analysis.points[0].batch_size, BatchSize(64));
    evidence.probes.clear();
    assert_eq!(analyze(&workload(), &evidence, None), None);
}

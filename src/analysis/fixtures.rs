//! Evidence with known truths, for this module's tests.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Evidence, ProbeRecord};
use crate::probe::{
    Limits, Metric, PROTOCOL, ProbeDevice, ProbeSpec, ProbeState, StepTimeSampling, Task,
};
use crate::study::{
    Backend, BatchSize, Bytes, Dataset, GradientClipping, Model, Optimizer, ProbeId, Schedule,
    Workload,
};

/// A probe that did what it was asked.
pub(crate) fn succeeded(
    task: Task,
    batch_size: u64,
    replicate: u32,
    figures: &[(Metric, f64)],
) -> ProbeRecord {
    ProbeRecord {
        id: ProbeId(Uuid::from_u64_pair(batch_size, u64::from(replicate))),
        spec: ProbeSpec {
            protocol: PROTOCOL,
            runner: Default::default(),
            task,
            workload: Workload::new(Dataset::digits(), Model::mlp(vec![64])),
            optimizer: Optimizer::adam(),
            schedule: Schedule::default(),
            gradient_clipping: GradientClipping::default(),
            device: ProbeDevice {
                backend: Backend::Cpu,
                model: "test".into(),
                count: 1,
                threads: 2,
            },
            batch_size: BatchSize(batch_size),
            replicate,
            seed: 0,
            limits: Limits {
                memory_bytes: Bytes(1 << 30),
                wall_secs: 60.0,
            },
        },
        state: ProbeState::Succeeded,
        infeasible: None,
        failure: None,
        detail: None,
        wave: replicate,
        position: 0,
        reused: false,
        device_secs: 1.0,
        prediction: None,
        figures: figures.iter().copied().collect::<BTreeMap<_, _>>(),
    }
}

/// A child that timed a batch size in a round, without a stall, a canary of 1 ms and no contention.
pub(crate) fn timed(batch_size: u64, round: u32, secs: f64) -> ProbeRecord {
    succeeded(
        Task::StepTime(StepTimeSampling::default()),
        batch_size,
        round,
        &[
            (Metric::TimePerStepMedian, secs),
            (Metric::TimePerStepMean, secs),
            (Metric::CanaryTimePerStep, 1e-3),
            (Metric::RunQueueDelayRatio, 0.0),
            (Metric::Converged, 1.0),
            (Metric::Blocks, 63.0),
        ],
    )
}

/// Every batch size timed in every round, as `secs(batch size, round)` says.
pub(crate) fn rounds(sizes: &[u64], rounds: u32, secs: impl Fn(u64, u32) -> f64) -> Evidence {
    let probes = (0..rounds)
        .flat_map(|round| sizes.iter().map(move |size| (*size, round)))
        .map(|(size, round)| timed(size, round, secs(size, round)))
        .collect();
    Evidence { probes }
}

//! One small specification of each kind, done in seconds: what a runner is checked with, and what `docs/runners/` shows.

use super::PROTOCOL;
use super::spec::{
    Accumulation, Limits, NoiseScaleRun, ProbeDevice, ProbeKind, ProbeSpec, RangeTest,
    StepTimeSampling, Task, TrainingRun, TurnSampling,
};
use crate::study::{
    Backend, BatchSize, Bytes, Dataset, EvaluationMetric, EvaluationTarget, GradientClipping,
    Model, Optimizer, Runner, Schedule, Workload,
};

/// Optimizer steps that a training probe takes at most.
const TRAINING_STEPS: u64 = 200;

/// A small task of a kind; training is to a target, where there is one.
pub fn task(kind: ProbeKind, target: Option<EvaluationTarget>) -> Task {
    let turns = TurnSampling {
        warm_up_secs: 0.1,
        block_secs: 0.01,
        max_rounds: 3,
        max_secs: 2.0,
        ..TurnSampling::default()
    };
    match kind {
        ProbeKind::Smoke => Task::Smoke { steps: 5 },
        ProbeKind::Memory => Task::Memory { steps: 5 },
        ProbeKind::Confirmation => Task::Confirmation { steps: 20 },
        ProbeKind::StepTime => Task::StepTime(StepTimeSampling {
            warm_up_secs: 0.1,
            block_secs: 0.01,
            first_look_blocks: 20,
            max_blocks: 40,
            max_secs: 2.0,
            canary_secs: 0.05,
            ..StepTimeSampling::default()
        }),
        ProbeKind::InputPipeline => Task::InputPipeline(turns),
        ProbeKind::GradientAccumulation => Task::GradientAccumulation(Accumulation {
            micro_batches: 2,
            with_whole_batch: true,
            sampling: turns,
        }),
        ProbeKind::Training => Task::Training(TrainingRun::new(TRAINING_STEPS, target, 1.1)),
        ProbeKind::LearningRateRange => Task::LearningRateRange(RangeTest {
            steps: 40,
            ..RangeTest::usual(false)
        }),
        ProbeKind::NoiseScale => Task::NoiseScale(NoiseScaleRun {
            steps: 10,
            small_batch: 16,
            small_batches: 8,
            points: 3,
        }),
    }
}

/// A small specification of a kind on the digits, for the service's own runner.
pub fn on_digits(kind: ProbeKind) -> ProbeSpec {
    let target = EvaluationTarget {
        metric: EvaluationMetric::ValidationCrossEntropy,
        value: 0.5,
    };
    ProbeSpec {
        protocol: PROTOCOL,
        runner: Runner::default(),
        task: task(kind, Some(target)),
        workload: Workload::new(Dataset::digits(), Model::mlp(vec![32])),
        optimizer: Optimizer::nesterov(0.05, 0.9),
        schedule: Schedule::default(),
        gradient_clipping: GradientClipping::default(),
        device: ProbeDevice {
            backend: Backend::Cpu,
            model: "a processor, 1 thread".into(),
            count: 1,
            threads: 1,
        },
        batch_size: BatchSize(32),
        replicate: 0,
        seed: 7,
        limits: Limits {
            memory_bytes: Bytes(2 * Bytes::GIB),
            wall_secs: 120.0,
        },
    }
}

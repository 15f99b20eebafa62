//! Probe specs: everything about them that is the same throughout a study, in one place.

use super::PlannedProbe;
use crate::probe::{
    Limits, PROTOCOL, ProbeDevice, ProbeKind, ProbeSpec, StepTimeSampling, Task, TurnSampling,
};
use crate::study::{Backend, BatchSize, ResolvedDevice, StudyDefinition, Workload};

/// Optimizer steps of a smoke probe: enough for every optimizer state to exist and move.
const SMOKE_STEPS: u64 = 20;
/// Optimizer steps of a memory probe: the second holds the optimizer state, the rest let the heap fragment as it will.
const MEMORY_STEPS: u64 = 20;
/// Optimizer steps of a confirmation.
const CONFIRMATION_STEPS: u64 = 200;

/// What a probe on a GPU may take more, seconds: before its first step burn compiles and times several kernels for each shape
/// that no process has seen before. On an H200 that is minutes.
const KERNEL_TUNING_SECS: f64 = 900.0;

/// Wall-clock limits, seconds. Past them a batch size is too slow to be probed, which is an answer.
fn wall_secs(kind: ProbeKind, backend: Backend) -> f64 {
    let tuning = if backend.is_gpu() {
        KERNEL_TUNING_SECS
    } else {
        0.0
    };
    let steps = match kind {
        ProbeKind::Smoke | ProbeKind::Memory => 120.0,
        // The sampling cap, the canary, the warm-up, and twenty steps of a slow batch.
        ProbeKind::StepTime => 300.0,
        // At least three rounds of nine parts, the slowest of which gathers ahead first.
        ProbeKind::InputPipeline | ProbeKind::GradientAccumulation => 300.0,
        ProbeKind::Confirmation | ProbeKind::Training => 900.0,
        ProbeKind::LearningRateRange | ProbeKind::NoiseScale => 300.0,
    };
    tuning + steps
}

/// Does training run, and does evaluation repeat?
pub const SMOKE: Task = Task::Smoke { steps: SMOKE_STEPS };
/// How much memory does it take?
pub const MEMORY: Task = Task::Memory {
    steps: MEMORY_STEPS,
};
/// Does it survive a longer run?
pub const CONFIRMATION: Task = Task::Confirmation {
    steps: CONFIRMATION_STEPS,
};

/// How long does a step take?
pub fn step_time() -> Task {
    Task::StepTime(StepTimeSampling::default())
}

/// What does a step's time go into?
pub fn input_pipeline() -> Task {
    Task::InputPipeline(TurnSampling::default())
}

/// Makes the specs of a study.
#[derive(Debug)]
pub struct Specs<'a> {
    definition: &'a StudyDefinition,
    device: ResolvedDevice,
}

impl<'a> Specs<'a> {
    /// None while the device is not known.
    pub fn new(definition: &'a StudyDefinition) -> Option<Self> {
        Some(Self {
            definition,
            device: definition.device.resolved()?,
        })
    }

    /// One probe.
    pub fn probe(
        &self,
        task: Task,
        batch_size: BatchSize,
        replicate: u32,
        why: String,
    ) -> PlannedProbe {
        let kind = task.kind();
        let spec = ProbeSpec {
            protocol: PROTOCOL,
            runner: self.definition.runner.clone(),
            task,
            // The target is not part of what is trained: only those that need it name it.
            workload: Workload {
                target: None,
                ..self.definition.workload.clone()
            },
            optimizer: self.definition.optimizer.clone(),
            schedule: self.definition.schedule.clone(),
            gradient_clipping: self.definition.gradient_clipping.clone(),
            device: ProbeDevice {
                backend: self.device.backend,
                model: self.device.model.clone(),
                count: self.device.count,
                threads: self.device.threads,
            },
            batch_size,
            replicate,
            seed: self.definition.seed,
            limits: Limits {
                memory_bytes: self.device.memory_budget,
                wall_secs: wall_secs(kind, self.device.backend),
            },
        };
        PlannedProbe {
            spec,
            why,
            prediction: None,
        }
    }
}

//! The short probes: does the pipeline run, how much memory does it take, does it survive.

use std::io;

use burn::tensor::Tensor;
use thiserror::Error;

use super::accumulation;
use super::events::EventLog;
use super::faults::Faults;
use super::gpu;
use super::memory;
use super::noise_scale;
use super::parts;
use super::range_test;
use super::session::{Session, SessionError, agreement};
use super::step_time;
use super::training;
use crate::probe::{InfeasibleReason, Metric, ProbeSpec, Task};
use crate::study::Backend;

/// How a task ended, when nothing went wrong with the child itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TaskEnd {
    /// It did what it was asked.
    Finished,
    /// It found that this cannot be done.
    Infeasible {
        reason: InfeasibleReason,
        detail: String,
    },
}

impl TaskEnd {
    /// The loss is no longer a number.
    pub(super) fn diverged(steps: u64) -> Self {
        Self::Infeasible {
            reason: InfeasibleReason::Diverged,
            detail: format!("the training loss was no longer finite after {steps} steps"),
        }
    }
}

/// Why a task could not be carried out.
#[derive(Debug, Error)]
pub(super) enum TaskError {
    /// Nobody reads the events any more.
    #[error("the events cannot be written: {0}")]
    Events(#[from] io::Error),
    /// Training failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Does what the spec says.
pub(super) fn run(
    spec: &ProbeSpec,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    if spec.device.count > 1 {
        return Ok(TaskEnd::Infeasible {
            reason: InfeasibleReason::DeviceUnsupported,
            detail: format!(
                "burn trains on one device here, it has no collectives, and device.count is {}; name a runner that trains on several, or set it to 1",
                spec.device.count
            ),
        });
    }
    let result = match &spec.task {
        Task::Smoke { steps } => smoke(spec, *steps, faults, log),
        Task::Memory { steps } | Task::Confirmation { steps } => watched(spec, *steps, faults, log),
        Task::StepTime(sampling) => step_time::run(spec, sampling, faults, log),
        Task::Training(run) => training::run(spec, run, faults, log),
        Task::LearningRateRange(test) => range_test::run(spec, test, faults, log),
        Task::NoiseScale(run) => noise_scale::run(spec, run, faults, log),
        Task::InputPipeline(sampling) => parts::run(spec, sampling, faults, log),
        Task::GradientAccumulation(run) => accumulation::run(spec, run, faults, log),
    };
    match result {
        Err(TaskError::Session(SessionError::NotAddressable(what))) => Ok(TaskEnd::Infeasible {
            reason: InfeasibleReason::OutOfMemory,
            detail: SessionError::NotAddressable(what).to_string(),
        }),
        Err(TaskError::Session(error @ SessionError::OverBudget { .. })) => {
            Ok(TaskEnd::Infeasible {
                reason: InfeasibleReason::OutOfMemory,
                detail: error.to_string(),
            })
        }
        Err(TaskError::Session(SessionError::Unsupported(detail))) => Ok(TaskEnd::Infeasible {
            reason: InfeasibleReason::DeviceUnsupported,
            detail,
        }),
        other => other,
    }
}

/// A few steps, and the evaluation twice: a pipeline that trains must give a finite loss, and the
/// same loss for the same parameters. A GPU must compute what the processor computes.
fn smoke(
    spec: &ProbeSpec,
    steps: u64,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    let mut session = Session::new(spec, faults)?;
    if let Some(diverged) = train(&mut session, steps, log)? {
        return Ok(diverged);
    }
    let first = session.evaluate().loss;
    let second = session.evaluate().loss;
    log.measurement(Metric::Steps, session.steps() as f64)?;
    if !first.is_finite() {
        return Ok(TaskEnd::diverged(session.steps()));
    }
    log.measurement(Metric::ValidationLoss, first)?;
    let difference = (first - second).abs();
    if difference.is_nan() || difference > allowed_difference(spec.device.backend, first) {
        // Also when the second one is not a number, which JSON could not hold.
        if difference.is_finite() {
            log.measurement(Metric::EvaluationDifference, difference)?;
        }
        return Ok(TaskEnd::Infeasible {
            reason: InfeasibleReason::PipelineBroken,
            detail: format!(
                "two evaluations of the same parameters gave losses of {first} and {second}"
            ),
        });
    }
    log.measurement(Metric::EvaluationDifference, difference)?;
    drop(session);
    if spec.device.backend.is_gpu()
        && let Some(difference) = agreement::check(spec)?
    {
        log.measurement(Metric::GradientDifference, difference)?;
    }
    Ok(TaskEnd::Finished)
}

/// How far two evaluations of the same parameters may be apart. A processor adds up in one order. A GPU does not:
/// its threads end in any order, and a kernel that is tuned in between may add up otherwise.
fn allowed_difference(backend: Backend, loss: f64) -> f64 {
    if backend.is_gpu() {
        GPU_EVALUATION_TOLERANCE * loss.abs()
    } else {
        0.0
    }
}

/// Of the loss: two hundred times the rounding of a float32 sum of a thousand terms, and far below what a layer that
/// draws random numbers makes.
const GPU_EVALUATION_TOLERANCE: f64 = 1e-3;

/// Training steps and one evaluation, with the memory watched from before the data set is loaded.
fn watched(
    spec: &ProbeSpec,
    steps: u64,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    // What is limited on a GPU is its pool, which tells by itself.
    let is_watched = memory::start_watching();
    if !(is_watched || spec.device.backend.is_gpu()) {
        return Ok(TaskEnd::Infeasible {
            reason: InfeasibleReason::DeviceUnsupported,
            detail: "peak memory cannot be measured here: the kernel does not tell the size of \
                     the data segments, or the program lacks the watched allocator"
                .into(),
        });
    }
    let held_before = memory::in_use();
    let mut session = Session::new(spec, faults)?;
    if let Some(diverged) = train(&mut session, steps, log)? {
        return Ok(diverged);
    }
    let loaded = session.loaded_bytes();
    let between_steps = session.memory_in_use(held_before) - loaded.dataset - loaded.parameters;
    let validation_loss = session.evaluate().loss;
    if !validation_loss.is_finite() {
        return Ok(TaskEnd::diverged(session.steps()));
    }
    let bytes = |bytes: i64| bytes.max(0) as f64;
    log.measurement(Metric::DatasetMemory, bytes(loaded.dataset))?;
    log.measurement(Metric::ParameterMemory, bytes(loaded.parameters))?;
    log.measurement(Metric::OptimizerStateMemory, bytes(between_steps))?;
    session.check_memory()?;
    let process = memory::peak();
    if let Some(pool) = session.pool_peak() {
        log.measurement(Metric::PeakMemoryInUse, pool.in_use_bytes as f64)?;
        log.measurement(Metric::PeakMemory, pool.reserved_bytes as f64)?;
        if let Some(bytes) = gpu::driver_memory() {
            log.measurement(Metric::DriverMemory, bytes as f64)?;
        }
    } else if let Some(peak) = process {
        log.measurement(Metric::PeakMemoryInUse, peak.in_use_bytes as f64)?;
        log.measurement(Metric::PeakMemory, peak.data_bytes as f64)?;
    }
    if let Some(peak) = process {
        log.measurement(Metric::PeakResidentMemory, peak.resident_bytes as f64)?;
    }
    log.measurement(Metric::ValidationLoss, validation_loss)?;
    log.measurement(Metric::Steps, session.steps() as f64)?;
    Ok(TaskEnd::Finished)
}

/// Steps whose loss is read each time: nothing is timed here. Says so if the loss leaves the
/// finite numbers.
fn train(
    session: &mut Session,
    steps: u64,
    log: &mut EventLog,
) -> Result<Option<TaskEnd>, TaskError> {
    let mut last_loss = None;
    for step in 0..steps {
        let loss = read(session.step()?);
        if !(loss.is_finite() && session.finish_steps()?) {
            return Ok(Some(TaskEnd::diverged(step + 1)));
        }
        session.check_memory()?;
        if step == 0 {
            log.measurement(Metric::FirstLoss, loss)?;
        }
        if (step + 1) % PROGRESS_EVERY_STEPS == 0 {
            log.progress("training", (step + 1) as f64 / steps as f64)?;
        }
        last_loss = Some(loss);
    }
    if let Some(loss) = last_loss {
        log.measurement(Metric::LastLoss, loss)?;
    }
    Ok(None)
}

const PROGRESS_EVERY_STEPS: u64 = 50;

/// Waits for a loss.
pub(super) fn read(loss: Tensor<1>) -> f64 {
    f64::from(loss.into_scalar::<f32>())
}

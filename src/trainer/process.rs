//! The child process from start to end.

use std::io::Read;
use std::process::ExitCode;
use std::time::Instant;

use thiserror::Error;

use super::events::EventLog;
use super::faults::Faults;
use super::memory;
use super::tasks::{self, TaskEnd, TaskError};
use crate::probe::{InfeasibleReason, PROTOCOL, ProbeSpec, Task};
use crate::study::{Layer, Loss, NetworkError, Normalization, Optimizer, Target};

/// A spec is a page of JSON; more is not one.
const MAX_SPEC_BYTES: u64 = 1 << 20;

/// A network deeper than this is a mistake, and its description alone would fill memory.
const MAX_LAYERS: u64 = 100_000;

const EXIT_FAILED: u8 = 1;
const EXIT_BAD_SPEC: u8 = 2;
const EXIT_NO_EVENTS: u8 = 3;

/// Runs the probe whose spec is on stdin: the whole of the child process.
///
/// Exit codes: 0 when the last event is `finished` or `infeasible`, 2 when the spec is not one that
/// can be run, 1 when training failed, 3 when events cannot be written. Out of memory is met by the
/// allocator, which aborts the process.
pub fn run_probe() -> ExitCode {
    run_probe_with(Faults::default())
}

/// The same with slowness on purpose: for programs that test what finds it.
pub fn run_probe_with(faults: Faults) -> ExitCode {
    let started = Instant::now();
    memory::keep_freed_memory();
    let mut log = match EventLog::open(started) {
        Ok(log) => log,
        Err(error) => return no_events(&TaskError::Events(error)),
    };
    let end = log
        .started()
        .map_err(TaskError::Events)
        .and_then(|()| supervise(faults, &mut log));
    match end {
        Ok(code) => code,
        Err(error) => no_events(&error),
    }
}

fn supervise(faults: Faults, log: &mut EventLog) -> Result<ExitCode, TaskError> {
    let spec = match read_spec(std::io::stdin().lock()) {
        Ok(spec) => spec,
        Err(error) => {
            log.failed(error.to_string())?;
            return Ok(ExitCode::from(EXIT_BAD_SPEC));
        }
    };
    if spec.device.backend.is_gpu() {
        // Before the first step, for minutes where no process has kept those of these shapes.
        log.progress("compiling kernels", 0.0)?;
    }
    let end = match start_threads(spec.device.threads) {
        // On a thread of the pool, so that as many are awake as the spec names: a main thread beside
        // them would be one more than the processors, and they would wait for each other.
        Ok(()) => rayon::scope(|_| tasks::run(&spec, faults, log)),
        Err(error) => Ok(TaskEnd::Infeasible {
            // The only thing that starting a thread needs is room for its stack.
            reason: InfeasibleReason::OutOfMemory,
            detail: format!(
                "{} threads do not fit the memory limit: {error}",
                spec.device.threads
            ),
        }),
    };
    match end {
        Ok(TaskEnd::Finished) => log.finished()?,
        Ok(TaskEnd::Infeasible { reason, detail }) => log.infeasible(reason, detail)?,
        Err(TaskError::Events(error)) => return Err(TaskError::Events(error)),
        Err(error @ TaskError::Session(_)) => {
            log.failed(error.to_string())?;
            return Ok(ExitCode::from(EXIT_FAILED));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "stderr is the child's log")]
fn no_events(error: &TaskError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(EXIT_NO_EVENTS)
}

/// Fixes the number of threads of burn's pool, before burn is first used.
fn start_threads(threads: u32) -> Result<(), rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads as usize)
        .build_global()
}

/// What is wrong with a spec.
#[derive(Debug, Error)]
enum SpecError {
    #[error("the probe's spec cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    #[error("the probe's spec is longer than {MAX_SPEC_BYTES} bytes")]
    TooLong,
    #[error("the probe's spec is not one: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the probe's spec speaks protocol {0}, this runner speaks {PROTOCOL}")]
    Protocol(u64),
    #[error("workload.model does not fit the data set: {0}")]
    Network(#[from] NetworkError),
    #[error("{field} must be {allowed}")]
    Value {
        field: &'static str,
        allowed: &'static str,
    },
}

fn read_spec(input: impl Read) -> Result<ProbeSpec, SpecError> {
    let mut bytes = Vec::new();
    input.take(MAX_SPEC_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SPEC_BYTES {
        return Err(SpecError::TooLong);
    }
    let value: serde_json::Value = serde_json::from_slice(&bytes)?;
    // First of all: another version's spec need not have the fields of this one.
    if let Some(protocol) = value.get("protocol").and_then(serde_json::Value::as_u64)
        && protocol != u64::from(PROTOCOL)
    {
        return Err(SpecError::Protocol(protocol));
    }
    let spec: ProbeSpec = serde_json::from_value(value)?;
    check(&spec)?;
    Ok(spec)
}

/// Checks what would otherwise panic deep inside the training code. The service has checked the
/// same before; a runner trusts no one's word for it.
fn check(spec: &ProbeSpec) -> Result<(), SpecError> {
    let require = |holds: bool, field, allowed| {
        holds
            .then_some(())
            .ok_or(SpecError::Value { field, allowed })
    };
    let workload = &spec.workload;
    let facts = workload.dataset.facts();
    require(spec.batch_size.0 >= 1, "batch_size", "at least 1")?;
    require(
        (1..=1024).contains(&spec.device.threads),
        "device.threads",
        "between 1 and 1024",
    )?;
    require(
        (1..=u64::from(u32::MAX)).contains(&facts.training_examples),
        "workload.dataset.examples",
        "between 1 and 2^32 - 1",
    )?;
    require(
        facts.input.numbers() >= 1,
        "workload.dataset",
        "one whose examples have at least 1 number",
    )?;
    let fewest = match facts.target {
        Target::Values { .. } => 1,
        Target::Classes { .. } | Target::NextToken { .. } => 2,
    };
    require(
        (fewest..=u64::from(u32::MAX)).contains(&facts.target.width()),
        "workload.dataset.classes",
        "between 2 and 2^32 - 1",
    )?;
    require(
        workload.loss == Loss::of(&facts.target),
        "workload.loss",
        "the loss of the task",
    )?;
    require(
        (0.0..1.0).contains(&workload.label_smoothing),
        "workload.label_smoothing",
        "at least 0 and below 1",
    )?;
    require(
        workload.validation_examples != Some(0),
        "workload.validation_examples",
        "at least 1",
    )?;
    require(
        workload.input_pipeline.threads <= 256,
        "workload.input_pipeline.threads",
        "at most 256",
    )?;
    let network = workload.network()?;
    require(
        network.depth() <= MAX_LAYERS,
        "workload.model",
        "a network of at most 100000 layers",
    )?;
    let sane = network.all(|placed| match &placed.layer {
        Layer::Dropout { probability } => (0.0..1.0).contains(probability),
        Layer::Norm { normalization } => match normalization {
            Normalization::None {} => true,
            Normalization::Batch { momentum, epsilon }
            | Normalization::GhostBatch {
                momentum, epsilon, ..
            } => (0.0..=1.0).contains(momentum) && *epsilon > 0.0,
            Normalization::Group { epsilon, .. } | Normalization::Layer { epsilon } => {
                *epsilon > 0.0
            }
        },
        _ => placed.output.numbers() >= 1,
    });
    require(
        sane,
        "workload.model",
        "one whose layers have at least 1 unit, a dropout below 1 and an epsilon above 0",
    )?;
    if let Task::GradientAccumulation(run) = &spec.task {
        require(
            (2..=1 << 20).contains(&run.micro_batches),
            "task.micro_batches",
            "between 2 and 2^20",
        )?;
    }
    if let Task::Training(run) = &spec.task {
        require(
            spec.batch_size.0 <= facts.training_examples,
            "batch_size",
            "at most the number of training examples in a training probe",
        )?;
        require(
            run.evaluation_ratio.is_finite() && run.evaluation_ratio >= 1.0,
            "task.evaluation_ratio",
            "a finite number, at least 1",
        )?;
        require(
            run.target
                .as_ref()
                .is_none_or(|target| target.metric.fits(&facts.target)),
            "task.target.metric",
            "a metric that the task has",
        )?;
    }
    check_optimizer(&spec.optimizer)
}

fn check_optimizer(optimizer: &Optimizer) -> Result<(), SpecError> {
    let require = |holds: bool, field, allowed| {
        holds
            .then_some(())
            .ok_or(SpecError::Value { field, allowed })
    };
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let fraction = |value: f64| (0.0..1.0).contains(&value);
    let (fractions, epsilon, weight_decay) = match *optimizer {
        Optimizer::Sgd { weight_decay, .. } => ([0.0; 2], 1.0, weight_decay),
        Optimizer::SgdMomentum {
            momentum,
            weight_decay,
            ..
        }
        | Optimizer::SgdNesterov {
            momentum,
            weight_decay,
            ..
        } => ([momentum, 0.0], 1.0, weight_decay),
        Optimizer::RmsProp {
            rho,
            momentum,
            epsilon,
            ..
        } => ([rho, momentum], epsilon, 0.0),
        Optimizer::Adam {
            beta_1,
            beta_2,
            epsilon,
            ..
        }
        | Optimizer::NAdam {
            beta_1,
            beta_2,
            epsilon,
            ..
        } => ([beta_1, beta_2], epsilon, 0.0),
        Optimizer::AdamW {
            beta_1,
            beta_2,
            epsilon,
            weight_decay,
            ..
        } => ([beta_1, beta_2], epsilon, weight_decay),
    };
    require(
        positive(optimizer.learning_rate()),
        "optimizer.learning_rate",
        "a finite number above 0",
    )?;
    require(
        fractions.into_iter().all(fraction),
        "optimizer's momentum, rho, beta_1 and beta_2",
        "at least 0 and below 1",
    )?;
    require(
        positive(epsilon),
        "optimizer.epsilon",
        "a finite number above 0",
    )?;
    require(
        weight_decay.is_finite() && weight_decay >= 0.0,
        "optimizer.weight_decay",
        "a finite number, at least 0",
    )
}

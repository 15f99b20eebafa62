//! What the figures of a probe depend on, and whether what is known of one probe answers another.
//!
//! Two probes with the same *inputs* measure the same thing. Inputs are less than a specification: how fast a step
//! is does not depend on the learning rate, and in how many steps training gets to its target does not depend on
//! the device. So each kind of probe hashes exactly what it depends on, and what differs otherwise keeps nobody
//! from taking a figure over: another price, another name, and for half of the kinds another optimizer setting or
//! another device. [`Change`](crate::study::Change) is the same table in words.
//!
//! - **Of the device**: `memory`, `confirmation`, `step_time`, `input_pipeline`, `gradient_accumulation`. They depend
//!   on the shapes of what is computed, on the arithmetic and the state of the optimizer, and on the device; not on
//!   any number that training multiplies with, on what the examples say, nor on the seed: other random numbers take
//!   the same time and the same memory. An `input_pipeline` probe times all parts of a step in one child, in turn;
//!   gathering a batch would be the same under another optimizer, but the other parts are not, so the whole probe is
//!   made again, and what it says about gathering comes with it for nothing.
//! - **Of the training**: `training`, `learning_rate_range`, `noise_scale`. They depend on everything that decides the
//!   numbers, seed included, and on nothing that only decides how fast they come: on the CPU the same seed gives the
//!   same bits whatever the number of threads and however batches are gathered. Several devices that average their
//!   gradients take the steps of one, unless each normalises over its own share of a batch.
//! - `smoke` asks whether this very pipeline runs here, so it depends on all of it, and it is the cheapest.
//!
//! Of somebody else's program ([`Runner`]) the same holds: name, version and options are inputs of every kind, and
//! another data set of its own is another program.
//!
//! Limits are inputs of no kind. They decide outcomes, so [`answers`] looks at them: a run that was stopped by a
//! limit says nothing about a higher one.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::fingerprint::{EXTERNAL, MEASUREMENT_PROTOCOL, RUNNER};
use super::outcome::InfeasibleReason;
use super::spec::{Batches, ProbeDevice, ProbeKind, ProbeSpec, Task};
use super::state::ProbeState;
use crate::study::{
    Backend, BatchSize, Bytes, Contents, DType, Dataset, EvaluationMetric, ExternalFacts, Figure,
    GradientClipping, Hyperparameter, InputPipeline, Loss, Model, Optimizer, OptimizerForm, Runner,
    Schedule, Shape, StudyId, Target, Workload,
};

/// Which training arithmetic a seed's numbers come from: raised when the same seed gives other bits than before.
/// Unlike [`RUNNER`] it does not change with every release, because the steps to a target do not.
pub const TRAINING: &str = "burn-0.22.1/training-2";

/// What the figures of a probe depend on.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum Inputs<'a> {
    Device(Box<DeviceInputs<'a>>),
    Training(Box<TrainingInputs<'a>>),
    /// All of the specification but its limits.
    Everything {
        runner: &'a str,
        measurement_protocol: u32,
        spec: Box<ProbeSpec>,
    },
}

/// Of the device: shapes, arithmetic, state, and where.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct DeviceInputs<'a> {
    runner: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<Program<'a>>,
    measurement_protocol: u32,
    protocol: u32,
    task: &'a Task,
    model: &'a Model,
    loss: Loss,
    smooths_labels: bool,
    dtype: DType,
    input: Shape,
    target: Target,
    /// How examples are held, and how much memory they take.
    storage: &'a str,
    held_bytes: u64,
    /// How many there are, where batches are gathered: what fits a cache is gathered faster.
    examples: Option<u64>,
    input_pipeline: &'a InputPipeline,
    reads_loss_every_step: Option<bool>,
    optimizer: OptimizerForm,
    gradient_clipping: &'static str,
    device: &'a ProbeDevice,
    batch_size: BatchSize,
    replicate: u32,
}

/// Of the training: everything that decides the numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct TrainingInputs<'a> {
    training: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<Program<'a>>,
    protocol: u32,
    backend: Backend,
    /// Where a share of the batch may be seen by itself: how many make one.
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<u32>,
    task: &'a Task,
    dataset: DatasetContent<'a>,
    model: &'a Model,
    loss: Loss,
    label_smoothing: f64,
    dtype: DType,
    validation_examples: Option<u64>,
    optimizer: Optimizer,
    schedule: &'a Schedule,
    gradient_clipping: &'a GradientClipping,
    batch_size: BatchSize,
    replicate: u32,
    seed: u64,
}

/// What a data set says, whatever it is called.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum DatasetContent<'a> {
    Builtin(&'a Dataset),
    Uploaded {
        content: &'a str,
        contents: Contents,
        sequence_length: Option<u64>,
    },
    External(&'a ExternalFacts),
}

/// Somebody else's program: all that it is told of itself, and the data set that it brings along.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Program<'a> {
    #[serde(flatten)]
    runner: &'a Runner,
    #[serde(skip_serializing_if = "Option::is_none")]
    dataset: Option<&'a str>,
}

impl<'a> Program<'a> {
    /// None for the service's own.
    fn of(spec: &'a ProbeSpec) -> Option<Self> {
        (!spec.runner.is_burn()).then_some(Self {
            runner: &spec.runner,
            dataset: match &spec.workload.dataset {
                Dataset::External(dataset) => Some(&dataset.external.name),
                Dataset::Builtin(_) | Dataset::Uploaded(_) => None,
            },
        })
    }
}

/// Versions of what runs: arguments, so that a test can change them.
#[derive(Debug, Clone, Copy)]
struct Versions<'a> {
    runner: &'a str,
    measurement_protocol: u32,
    training: &'a str,
}

const NOW: Versions<'static> = Versions {
    runner: RUNNER,
    measurement_protocol: MEASUREMENT_PROTOCOL,
    training: TRAINING,
};

impl<'a> Inputs<'a> {
    fn of(spec: &'a ProbeSpec, versions: Versions<'a>) -> Self {
        // The service's own versions are nothing to another program, which has one of its own.
        let versions = if spec.runner.is_burn() {
            versions
        } else {
            Versions {
                runner: EXTERNAL,
                training: EXTERNAL,
                ..versions
            }
        };
        match spec.kind() {
            ProbeKind::Smoke => Self::Everything {
                runner: versions.runner,
                measurement_protocol: versions.measurement_protocol,
                spec: Box::new(without_limits(spec)),
            },
            ProbeKind::Memory
            | ProbeKind::Confirmation
            | ProbeKind::StepTime
            | ProbeKind::InputPipeline
            | ProbeKind::GradientAccumulation => {
                Self::Device(Box::new(DeviceInputs::of(spec, versions)))
            }
            ProbeKind::Training | ProbeKind::LearningRateRange | ProbeKind::NoiseScale => {
                Self::Training(Box::new(TrainingInputs::of(spec, versions)))
            }
        }
    }
}

impl<'a> DeviceInputs<'a> {
    fn of(spec: &'a ProbeSpec, versions: Versions<'a>) -> Self {
        // Every field is named, so that one that is added has its place here too.
        let ProbeSpec {
            protocol,
            runner: _,
            task,
            workload,
            optimizer,
            schedule: _,
            gradient_clipping,
            device,
            batch_size,
            replicate,
            seed: _,
            limits: _,
        } = spec;
        let Workload {
            dataset,
            model,
            loss,
            label_smoothing,
            dtype,
            validation_examples: _,
            input_pipeline,
            read_loss_every_step,
            target: _,
        } = workload;
        let facts = dataset.facts();
        let gathers = match task {
            Task::StepTime(sampling) => sampling.batches != Batches::Synthetic,
            Task::InputPipeline(_) => true,
            _ => false,
        };
        Self {
            runner: versions.runner,
            program: Program::of(spec),
            measurement_protocol: versions.measurement_protocol,
            protocol: *protocol,
            task,
            model,
            loss: *loss,
            smooths_labels: *label_smoothing > 0.0,
            dtype: *dtype,
            input: facts.input,
            target: facts.target,
            storage: dataset.storage(),
            held_bytes: dataset.bytes(),
            examples: gathers.then_some(facts.training_examples),
            input_pipeline,
            // The parts of a step are timed with and without, whatever the study does.
            reads_loss_every_step: matches!(task, Task::StepTime(_))
                .then_some(*read_loss_every_step),
            optimizer: optimizer.form(),
            gradient_clipping: match gradient_clipping {
                GradientClipping::None {} => "none",
                GradientClipping::GlobalNorm { .. } => "global_norm",
                GradientClipping::Value { .. } => "value",
            },
            device,
            batch_size: *batch_size,
            replicate: *replicate,
        }
    }
}

impl<'a> TrainingInputs<'a> {
    fn of(spec: &'a ProbeSpec, versions: Versions<'a>) -> Self {
        let ProbeSpec {
            protocol,
            runner: _,
            task,
            workload,
            optimizer,
            schedule,
            gradient_clipping,
            device,
            batch_size,
            replicate,
            seed,
            limits: _,
        } = spec;
        let Workload {
            dataset,
            model,
            loss,
            label_smoothing,
            dtype,
            validation_examples,
            input_pipeline: _,
            read_loss_every_step: _,
            target: _,
        } = workload;
        let mut optimizer = optimizer.clone();
        if spec.kind() == ProbeKind::LearningRateRange {
            // The test has learning rates of its own.
            optimizer.set(Hyperparameter::LearningRate, 0.0);
        }
        Self {
            training: versions.training,
            program: Program::of(spec),
            protocol: *protocol,
            backend: device.backend,
            devices: (device.count > 1 && workload.may_look_across_examples())
                .then_some(device.count),
            task,
            dataset: match dataset {
                builtin @ Dataset::Builtin(_) => DatasetContent::Builtin(builtin),
                Dataset::Uploaded(dataset) => DatasetContent::Uploaded {
                    content: &dataset.content,
                    contents: dataset.contents,
                    sequence_length: dataset.sequence_length,
                },
                Dataset::External(dataset) => DatasetContent::External(&dataset.external),
            },
            model,
            loss: *loss,
            label_smoothing: *label_smoothing,
            dtype: *dtype,
            validation_examples: *validation_examples,
            optimizer,
            schedule,
            gradient_clipping,
            batch_size: *batch_size,
            replicate: *replicate,
            seed: *seed,
        }
    }
}

/// A specification with limits that no other has.
fn without_limits(spec: &ProbeSpec) -> ProbeSpec {
    let mut spec = spec.clone();
    spec.limits.memory_bytes = Bytes(0);
    spec.limits.wall_secs = 0.0;
    spec
}

#[derive(Serialize)]
struct Keyed<'a> {
    project: &'a str,
    study: Option<String>,
    kind: ProbeKind,
    inputs: Inputs<'a>,
}

/// SHA-256 of the canonical JSON (RFC 8785) of what a probe's figures depend on, within a project. `study` is the
/// study that refuses reuse, so that its probes are its own.
///
/// # Errors
/// When the spec holds a number that JSON cannot express (NaN or an infinity).
pub fn inputs(
    project: &str,
    study: Option<StudyId>,
    spec: &ProbeSpec,
) -> Result<String, serde_json::Error> {
    hash(project, study, spec, NOW)
}

fn hash(
    project: &str,
    study: Option<StudyId>,
    spec: &ProbeSpec,
    versions: Versions<'_>,
) -> Result<String, serde_json::Error> {
    let bytes = serde_json_canonicalizer::to_vec(&Keyed {
        project,
        study: study.map(|id| id.to_string()),
        kind: spec.kind(),
        inputs: Inputs::of(spec, versions),
    })?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

#[derive(Serialize)]
struct KeyedCourse<'a> {
    project: &'a str,
    study: Option<String>,
    /// Whether the recursion of the second moments is followed instead of sampled steps.
    is_expected: bool,
    inputs: TrainingInputs<'a>,
}

/// SHA-256 of what the course of a training run depends on: all of its [`inputs`] but where it ends, its target and
/// its cap. None for other kinds. What runs with the same course have found tells of each other; see
/// [`course`](super::course).
///
/// # Errors
/// When the spec holds a number that JSON cannot express (NaN or an infinity).
pub fn course(
    project: &str,
    study: Option<StudyId>,
    spec: &ProbeSpec,
) -> Result<Option<String>, serde_json::Error> {
    let Task::Training(run) = &spec.task else {
        return Ok(None);
    };
    let is_expected = run
        .target
        .as_ref()
        .is_some_and(|target| target.metric == EvaluationMetric::ExpectedExcessLoss);
    let endless = Task::Training(run.endless());
    let bytes = serde_json_canonicalizer::to_vec(&KeyedCourse {
        project,
        study: study.map(|id| id.to_string()),
        is_expected,
        inputs: TrainingInputs {
            task: &endless,
            ..TrainingInputs::of(spec, NOW)
        },
    })?;
    Ok(Some(hex::encode(Sha256::digest(bytes))))
}

/// Whether two specifications ask for the same figures.
pub fn is_same(a: &ProbeSpec, b: &ProbeSpec) -> bool {
    // What differs most often comes first: plans compare each probe with all before it.
    (a.batch_size, a.replicate, a.kind()) == (b.batch_size, b.replicate, b.kind())
        && (a.kind() != ProbeKind::Training || a.optimizer == b.optimizer)
        && (a == b || Inputs::of(a, NOW) == Inputs::of(b, NOW))
}

/// What a kind of probe tells.
pub fn figures(kind: ProbeKind) -> &'static [Figure] {
    match kind {
        ProbeKind::Smoke | ProbeKind::Memory | ProbeKind::Confirmation => &[Figure::Memory],
        ProbeKind::StepTime | ProbeKind::GradientAccumulation => &[Figure::Throughput],
        ProbeKind::InputPipeline => &[Figure::Throughput, Figure::LoaderTime],
        ProbeKind::LearningRateRange => &[Figure::LearningRate],
        ProbeKind::NoiseScale => &[Figure::NoiseScale],
        ProbeKind::Training => &[Figure::StepsToTarget],
    }
}

/// A probe that has ended, as far as it decides whether another may take over what it found.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// What it did.
    pub spec: ProbeSpec,
    /// How it ended.
    pub state: ProbeState,
    /// Why its task cannot be done, when `infeasible`.
    pub infeasible: Option<InfeasibleReason>,
    /// The peak of what its memory limit limits, where it was measured.
    pub peak: Option<Bytes>,
}

/// Whether a probe that has ended is the answer to another one with the same inputs.
pub fn answers(ended: &Ended, wanted: &ProbeSpec) -> bool {
    let spec = &ended.spec;
    let (had, has) = (&spec.limits, &wanted.limits);
    // Where training stops because of where it runs. Figures of the device have their device among their inputs.
    let same_place = spec.device == wanted.device
        && spec.workload.input_pipeline == wanted.workload.input_pipeline;
    match (ended.state, ended.infeasible) {
        (ProbeState::Succeeded, _) => match spec.kind() {
            ProbeKind::Smoke | ProbeKind::Memory | ProbeKind::Confirmation => {
                had.memory_bytes <= has.memory_bytes
                    || ended.peak.is_some_and(|peak| peak <= has.memory_bytes)
            }
            _ => true,
        },
        (ProbeState::Infeasible, Some(InfeasibleReason::OutOfMemory)) => {
            same_place && has.memory_bytes <= had.memory_bytes
        }
        (ProbeState::Infeasible, Some(InfeasibleReason::TooSlow)) => {
            same_place && has.wall_secs <= had.wall_secs
        }
        (ProbeState::Infeasible, Some(InfeasibleReason::DeviceUnsupported)) => same_place,
        // The same program does not learn it.
        (ProbeState::Infeasible, Some(InfeasibleReason::RunnerUnsupported)) => true,
        (ProbeState::Infeasible, _) => match Inputs::of(spec, NOW) {
            // Whether the loss stays finite is a matter of the numbers, which are no inputs here.
            Inputs::Device(_) => without_limits(spec) == without_limits(wanted),
            Inputs::Training(_) | Inputs::Everything { .. } => true,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests;

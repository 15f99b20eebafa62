//! What a step's time goes into: its parts are timed in turn on the same model and the same examples.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};

use super::events::EventLog;
use super::faults::Faults;
use super::session::{Session, SessionError, StagedBatch};
use super::tasks::{TaskEnd, TaskError};
use super::turns;
use crate::probe::{Metric, ProbeSpec, TurnSampling};
use crate::study::InputPipeline;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Steps on batches that other threads gathered ahead.
    Prefetched,
    /// Steps each of which gathers its batch first.
    Unprefetched,
    /// Gathering a batch.
    Load,
    /// Copying a gathered batch to the device.
    Transfer,
    /// Steps on one staged batch.
    Synthetic,
    /// The same, each followed by reading the loss.
    Readback,
    Forward,
    ForwardBackward,
    /// A plain matrix multiplication.
    Matmul,
}

const PARTS: [(Part, Metric); 9] = [
    (Part::Prefetched, Metric::PrefetchedTimePerStep),
    (Part::Unprefetched, Metric::UnprefetchedTimePerStep),
    (Part::Load, Metric::LoadTimePerStep),
    (Part::Transfer, Metric::TransferTimePerStep),
    (Part::Synthetic, Metric::SyntheticTimePerStep),
    (Part::Readback, Metric::ReadbackTimePerStep),
    (Part::Forward, Metric::ForwardTimePerStep),
    (Part::ForwardBackward, Metric::ForwardBackwardTimePerStep),
    (Part::Matmul, Metric::MatmulRate),
];

/// Rows and columns of the matrices whose multiplication shows the device's rate of arithmetic: large enough
/// to keep a processor's units busy, small enough for a few milliseconds.
const MATMUL_SIZE: usize = 512;

/// Runs an input-pipeline probe.
pub(super) fn run(
    spec: &ProbeSpec,
    sampling: &TurnSampling,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    let mut session = Session::new(spec, faults)?;
    let configured = &spec.workload.input_pipeline;
    let ahead = InputPipeline {
        threads: configured.threads.max(1),
        prefetch_batches: configured.prefetch_batches.max(1),
    };
    let none = InputPipeline {
        threads: 0,
        ..ahead.clone()
    };
    let staged = session.stage_one_batch();
    let mut loader = session.open_loader(&none)?;
    let gathered = loader.next_batch().map_err(SessionError::from)?;
    let matrices = Matrices::new(&session.plain_device());
    let mut time = |session: &mut Session, part: Part, steps: u64| match part {
        Part::Prefetched => {
            // Its threads end with it, so that they do not work ahead while other parts are timed.
            let mut loader = session.open_loader(&ahead)?;
            // What is ready when the clock starts was not loaded for free.
            for _ in 0..=ahead.prefetch_batches {
                session.step_from(&mut loader)?;
            }
            session.finish_steps()?;
            let start = Instant::now();
            for _ in 0..steps {
                session.step_from(&mut loader)?;
            }
            session.finish_steps()?;
            Ok(start.elapsed())
        }
        Part::Unprefetched => {
            let start = Instant::now();
            for _ in 0..steps {
                session.step_from(&mut loader)?;
            }
            session.finish_steps()?;
            Ok(start.elapsed())
        }
        Part::Load => {
            let start = Instant::now();
            for _ in 0..steps {
                drop(loader.next_batch()?);
            }
            Ok(start.elapsed())
        }
        Part::Transfer => {
            let mut total = Duration::ZERO;
            for _ in 0..steps {
                let batch = gathered.clone();
                let start = Instant::now();
                let moved = session.to_device(batch);
                session.synchronise()?;
                total += start.elapsed();
                drop(moved);
            }
            Ok(total)
        }
        Part::Synthetic => stepped(session, steps, |session| {
            session.step_on(staged.clone());
        }),
        Part::Readback => stepped(session, steps, |session| {
            let loss = session.step_on(staged.clone());
            session.read_back(loss);
        }),
        Part::Forward => forward_passes(session, steps, &staged),
        Part::ForwardBackward => forward_and_backward_passes(session, steps, &staged),
        Part::Matmul => {
            let start = Instant::now();
            for _ in 0..steps {
                matrices.multiply();
            }
            session.synchronise()?;
            Ok(start.elapsed())
        }
    };
    let parts: Vec<Part> = PARTS.iter().map(|(part, _)| *part).collect();
    let times = turns::in_turn(spec, &mut session, &parts, sampling, &mut time, log)?;
    for ((part, metric), time) in PARTS.into_iter().zip(times) {
        let figure = if part == Part::Matmul {
            Matrices::OPERATIONS / time
        } else {
            time
        };
        log.measurement(metric, figure)?;
    }
    // The steps go on for as long as the sampling takes, so a divergence is the study's learning rate's: the
    // arithmetic takes its time all the same.
    log.measurement(Metric::Steps, session.steps() as f64)?;
    Ok(TaskEnd::Finished)
}

/// Times steps, the device's work included.
pub(super) fn stepped(
    session: &mut Session,
    steps: u64,
    mut step: impl FnMut(&mut Session),
) -> Result<Duration, SessionError> {
    let start = Instant::now();
    for _ in 0..steps {
        step(session);
    }
    session.finish_steps()?;
    Ok(start.elapsed())
}

/// Times forward passes over a staged batch. Each is followed by its backward pass, off the clock: without
/// it the graphs that automatic differentiation keeps would pile up.
fn forward_passes(
    session: &Session,
    steps: u64,
    batch: &StagedBatch,
) -> Result<Duration, SessionError> {
    let mut total = Duration::ZERO;
    for _ in 0..steps {
        let start = Instant::now();
        let forward = session.forward(batch.clone());
        session.synchronise()?;
        total += start.elapsed();
        session.backward_of(&forward);
    }
    Ok(total)
}

/// Times forward and backward passes over a staged batch.
pub(super) fn forward_and_backward_passes(
    session: &Session,
    steps: u64,
    batch: &StagedBatch,
) -> Result<Duration, SessionError> {
    let start = Instant::now();
    let mut last = None;
    for _ in 0..steps {
        let loss = session.forward(batch.clone());
        session.backward_of(&loss);
        last = Some(loss);
    }
    if let Some(loss) = last {
        // What was launched surfaces when it is read.
        let _loss = loss.into_scalar::<f32>();
    }
    session.synchronise()?;
    Ok(start.elapsed())
}

struct Matrices {
    left: Tensor<2>,
    right: Tensor<2>,
}

impl Matrices {
    /// Multiplications and additions of one product.
    const OPERATIONS: f64 = 2.0 * (MATMUL_SIZE * MATMUL_SIZE * MATMUL_SIZE) as f64;

    fn new(device: &Device) -> Self {
        let matrix = || Tensor::random([MATMUL_SIZE; 2], Distribution::Normal(0.0, 1.0), device);
        Self {
            left: matrix(),
            right: matrix(),
        }
    }

    fn multiply(&self) {
        drop(self.left.clone().matmul(self.right.clone()));
    }
}

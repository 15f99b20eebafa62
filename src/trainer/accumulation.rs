//! Gradient accumulation against plain steps, timed in turn.

use super::events::EventLog;
use super::faults::Faults;
use super::parts::{forward_and_backward_passes, stepped};
use super::session::{Session, SessionError};
use super::tasks::{TaskEnd, TaskError};
use super::turns;
use crate::probe::{Accumulation, Metric, ProbeSpec};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// A step on a micro-batch.
    MicroBatch,
    /// Forward and backward pass on a micro-batch.
    ForwardBackward,
    /// A step on the gradients of several.
    Accumulated,
    /// A step on one batch of all their examples.
    WholeBatch,
}

/// Runs a gradient-accumulation probe.
pub(super) fn run(
    spec: &ProbeSpec,
    run: &Accumulation,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    let mut session = Session::new(spec, faults)?;
    let micro_batch = session.stage_one_batch();
    let mut compared = vec![
        (Variant::MicroBatch, Metric::SyntheticTimePerStep),
        (Variant::ForwardBackward, Metric::ForwardBackwardTimePerStep),
        (Variant::Accumulated, Metric::AccumulatedTimePerStep),
    ];
    let whole = if run.with_whole_batch {
        compared.push((Variant::WholeBatch, Metric::WholeBatchTimePerStep));
        let examples = spec.batch_size.0.saturating_mul(run.micro_batches);
        let examples =
            usize::try_from(examples).map_err(|_| SessionError::NotAddressable("the batch"))?;
        Some(session.stage(examples))
    } else {
        None
    };
    let mut time = |session: &mut Session, variant: Variant, steps: u64| match variant {
        Variant::MicroBatch => stepped(session, steps, |session| {
            session.step_on(micro_batch.clone());
        }),
        Variant::ForwardBackward => forward_and_backward_passes(session, steps, &micro_batch),
        Variant::Accumulated => stepped(session, steps, |session| {
            session.accumulated_step(&micro_batch, run.micro_batches);
        }),
        Variant::WholeBatch => stepped(session, steps, |session| {
            if let Some(whole) = &whole {
                session.step_on(whole.clone());
            }
        }),
    };
    let variants: Vec<Variant> = compared.iter().map(|(variant, _)| *variant).collect();
    let times = turns::in_turn(spec, &mut session, &variants, &run.sampling, &mut time, log)?;
    for ((_, metric), time) in compared.into_iter().zip(times) {
        log.measurement(metric, time)?;
    }
    log.measurement(Metric::Steps, session.steps() as f64)?;
    Ok(TaskEnd::Finished)
}

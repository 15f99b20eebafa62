//! Variants of a step compared within one child, in turn: a block of each a round, so that what slows the
//! host for a while slows all of them alike.

use std::time::{Duration, Instant};

use super::events::EventLog;
use super::run_queue;
use super::session::{Session, SessionError};
use super::step_time::{median, steps_in};
use super::tasks::TaskError;
use crate::probe::{Metric, ProbeSpec, TurnSampling};

/// Makes so many steps of a variant and tells how long they took, waiting for the device included, and
/// everything that is not the variant's own left out.
pub(super) type Timed<'a, V> =
    &'a mut dyn FnMut(&mut Session, V, u64) -> Result<Duration, SessionError>;

/// Times the variants in turn: the median over rounds of each one's time per step, in their order. Events
/// are written only before and after.
pub(super) fn in_turn<V: Copy>(
    spec: &ProbeSpec,
    session: &mut Session,
    variants: &[V],
    sampling: &TurnSampling,
    timed: Timed<'_, V>,
    log: &mut EventLog,
) -> Result<Vec<f64>, TaskError> {
    log.progress("warming up", 0.1)?;
    let start = Instant::now();
    let mut rough = vec![f64::INFINITY; variants.len()];
    let mut warmed = 0;
    while warmed < sampling.warm_up_steps.max(1)
        || start.elapsed().as_secs_f64() < sampling.warm_up_secs
    {
        for (&variant, rough) in variants.iter().zip(&mut rough) {
            // The fastest step so far: the first ones are slow.
            *rough = rough.min(timed(session, variant, 1)?.as_secs_f64());
        }
        warmed += 1;
        session.check_memory()?;
    }
    log.measurement(Metric::WarmUpSecs, start.elapsed().as_secs_f64())?;

    log.progress("sampling", 0.2)?;
    let delay_before = run_queue::delay_nanos();
    let start = Instant::now();
    let mut times = vec![Vec::new(); variants.len()];
    let mut rounds = 0;
    while rounds < sampling.min_rounds.max(1)
        || (rounds < sampling.max_rounds && start.elapsed().as_secs_f64() < sampling.max_secs)
    {
        for ((&variant, rough), times) in variants.iter().zip(&rough).zip(&mut times) {
            let steps = steps_in(sampling.block_secs, *rough);
            let time = timed(session, variant, steps)?.as_secs_f64();
            times.push(time / steps as f64);
        }
        rounds += 1;
    }
    let sampling_secs = start.elapsed().as_secs_f64();
    log.measurement(Metric::SamplingSecs, sampling_secs)?;
    log.measurement(Metric::Blocks, rounds as f64)?;
    if let Some((before, after)) = delay_before.zip(run_queue::delay_nanos()) {
        let threads = f64::from(spec.device.threads.max(1));
        let delay = after.saturating_sub(before) as f64 * 1e-9;
        log.measurement(
            Metric::RunQueueDelayRatio,
            delay / (sampling_secs * threads),
        )?;
    }
    Ok(times.into_iter().map(median).collect())
}

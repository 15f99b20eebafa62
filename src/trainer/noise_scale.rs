//! The gradient noise scale along a training run (McCandlish et al. 2018, arXiv:1812.06162, appendix A.1).

use std::time::Instant;

use super::events::EventLog;
use super::faults::Faults;
use super::session::Session;
use super::tasks::{TaskEnd, TaskError, read};
use crate::datasets::BatchOrder;
use crate::probe::{Metric, NoiseScaleRun, ProbeSpec};
use crate::statistics::noise::{GradientNoise, noise_scale};

/// Seconds between two reports of progress.
const PROGRESS_SECS: u64 = 2;
/// Draws the batches that are measured, so that they are not those that are trained on.
const MEASURED: u64 = 0x6e6f_6973_6500_0000;

/// Runs a noise-scale probe.
pub(super) fn run(
    spec: &ProbeSpec,
    run: &NoiseScaleRun,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    let mut session = Session::new(spec, faults)?;
    let examples = session.training_examples();
    let small = usize::try_from(run.small_batch)
        .unwrap_or(usize::MAX)
        .max(1);
    let wanted = usize::try_from(run.small_batches).unwrap_or(usize::MAX);
    // Of a small data set the big batch is half: beyond, hardly any variance would be left.
    let batches = wanted.min(examples / small / 2).max(2);
    let mut order = BatchOrder::new(examples, small * batches, spec.seed ^ MEASURED);
    let mut seen = Vec::new();
    let mut reported = Instant::now();
    for step in looks(run.steps, run.points) {
        while session.steps() < step {
            if !read(session.step()?).is_finite() {
                return Ok(TaskEnd::diverged(session.steps()));
            }
            if reported.elapsed().as_secs() >= PROGRESS_SECS {
                reported = Instant::now();
                let share = session.steps() as f64 / run.steps.max(1) as f64;
                log.progress("measuring the noise of the gradient", share)?;
            }
        }
        let big = order.next_batch().to_vec();
        let (small_square, big_square) = session.gradient_squares(big.chunks_exact(small));
        let noise = GradientNoise::from_squares(
            small_square,
            small as f64,
            big_square,
            (small * batches) as f64,
            examples as f64,
        );
        if !noise.square.is_finite() || !noise.variance.is_finite() {
            return Ok(TaskEnd::diverged(step));
        }
        let elapsed_secs = log.elapsed_secs();
        log.measurement_at(
            Metric::GradientSquare,
            Some(step),
            noise.square,
            elapsed_secs,
        )?;
        log.measurement_at(
            Metric::GradientVariance,
            Some(step),
            noise.variance,
            elapsed_secs,
        )?;
        seen.push((step as f64, noise));
    }
    if let Some(scale) = noise_scale(&seen) {
        log.measurement(Metric::NoiseScale, scale)?;
    }
    log.measurement(Metric::Steps, session.steps() as f64)?;
    Ok(TaskEnd::Finished)
}

/// The steps after which it is measured, evenly spaced in the logarithm, each once.
fn looks(steps: u64, points: u64) -> Vec<u64> {
    let last = steps.max(1) as f64;
    let mut looks: Vec<u64> = (0..points)
        .map(|index| last.powf(index as f64 / (points.max(2) - 1) as f64).round() as u64)
        .collect();
    looks.dedup();
    looks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_close_at_first_and_end_at_the_last_step() {
        let looks = looks(1000, 18);
        assert_eq!((looks[0], looks[1]), (1, 2));
        assert_eq!(looks.last(), Some(&1000));
        assert!(looks.is_sorted_by(|a, b| a < b));
        assert_eq!(super::looks(3, 18), [1, 2, 3]);
    }
}

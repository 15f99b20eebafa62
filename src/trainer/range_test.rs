//! A learning-rate range test (Smith 2017, arXiv:1506.01186): the learning rate rises until training
//! diverges.

use std::time::Instant;

use super::events::EventLog;
use super::faults::Faults;
use super::learner;
use super::tasks::{TaskEnd, TaskError};
use crate::probe::{Metric, ProbeSpec, RangeTest};

/// Weight of the newest loss in the smoothed one.
const NEWEST: f64 = 0.2;
/// Seconds between two reports of progress.
const PROGRESS_SECS: u64 = 2;

/// Runs a range test.
pub(super) fn run(
    spec: &ProbeSpec,
    test: &RangeTest,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    let mut learner = learner::open(spec, test.is_expected, faults)?;
    let factor = (test.upper / test.lower).ln() / (test.steps.max(2) - 1) as f64;
    let mut smoothed: Option<f64> = None;
    let mut least = f64::INFINITY;
    let mut reported = Instant::now();
    for index in 0..test.steps {
        let learning_rate = test.lower * (factor * index as f64).exp();
        learner.set_learning_rate(learning_rate);
        // The loss of a step is that of the parameters before it; an expectation is looked at after it.
        let loss = match learner.step()? {
            Some(loss) => loss,
            None => learner.evaluate().loss,
        };
        let steps = learner.steps();
        if loss.is_finite() {
            let elapsed_secs = log.elapsed_secs();
            log.measurement_at(Metric::TrainingLoss, Some(steps), loss, elapsed_secs)?;
        }
        let mean = smoothed.map_or(loss, |before| before + NEWEST * (loss - before));
        smoothed = Some(mean);
        least = least.min(mean);
        if !loss.is_finite() || mean > test.divergence_ratio * least {
            log.measurement(Metric::DivergentLearningRate, learning_rate)?;
            break;
        }
        if reported.elapsed().as_secs() >= PROGRESS_SECS {
            reported = Instant::now();
            log.progress(
                "raising the learning rate",
                steps as f64 / test.steps as f64,
            )?;
        }
    }
    log.measurement(Metric::Steps, learner.steps() as f64)?;
    Ok(TaskEnd::Finished)
}

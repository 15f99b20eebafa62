//! Time per step, sampled until it is known well enough.
//!
//! The device is synchronised only at the borders of blocks of steps: synchronising every step
//! would hide the overlap of host and device that training has. While it samples, the child does
//! nothing else: no events, no files.

use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use super::energy::EnergyCounters;
use super::events::EventLog;
use super::faults::Faults;
use super::run_queue;
use super::session::{Session, SessionError};
use super::tasks::{TaskEnd, TaskError, read};
use crate::probe::{Batches, Limits, Metric, ProbeDevice, ProbeSpec, StepTimeSampling, Task};
use crate::statistics::stopping::{BlockSampler, Decision, SampleSummary, StoppingRule};
use crate::study::{
    BatchSize, BuiltinDataset, GradientClipping, Model, Optimizer, Runner, Schedule, Workload,
};

/// From this time per step on, a block is one step, and as many are made as must be: the interval
/// then comes from repetitions in other children alone.
const SLOW_STEP_SECS: f64 = 1.0;

/// A measured block.
#[derive(Debug, Clone, Copy)]
struct Block {
    time_per_step: f64,
    elapsed_secs: f64,
}

/// Runs a step-time probe.
pub(super) fn run(
    spec: &ProbeSpec,
    sampling: &StepTimeSampling,
    faults: Faults,
    log: &mut EventLog,
) -> Result<TaskEnd, TaskError> {
    if sampling.canary_secs > 0.0 {
        log.progress("canary", 0.0)?;
        let canary = canary_time_per_step(spec, sampling.canary_secs)?;
        log.measurement(Metric::CanaryTimePerStep, canary)?;
    }
    let mut session = Session::new(spec, faults)?;
    let staged = (sampling.batches != Batches::Loaded).then(|| session.stage_one_batch());

    log.progress("warming up", 0.1)?;
    let start = Instant::now();
    let loaded: Step<'_> = &mut |session| session.step();
    let synthetic = &mut |session: &mut Session| {
        let staged = staged.clone();
        let batch = staged.unwrap_or_else(|| session.stage_one_batch());
        Ok(session.step_on(batch))
    };
    let first: Step<'_> = match sampling.batches {
        Batches::Loaded | Batches::Both => loaded,
        Batches::Synthetic => synthetic,
    };
    let first_loss = read(first(&mut session)?);
    let finite = session.finish_steps()?;
    let compile_secs = start.elapsed().as_secs_f64();
    if !(finite && first_loss.is_finite()) {
        return Ok(TaskEnd::diverged(session.steps()));
    }
    log.measurement(Metric::CompileSecs, compile_secs)?;
    log.measurement(Metric::FirstLoss, first_loss)?;

    let start = Instant::now();
    let Some(rough) = warm_up(&mut session, first, sampling)? else {
        return Ok(TaskEnd::diverged(session.steps()));
    };
    log.measurement(Metric::WarmUpSecs, start.elapsed().as_secs_f64())?;

    log.progress("sampling", 0.2)?;
    let Some(sample) = sample(&mut session, first, sampling, rough, log)? else {
        return Ok(TaskEnd::diverged(session.steps()));
    };
    let mut sampling_secs = sample.wall_secs;
    let last_loss = read(first(&mut session)?);
    if !last_loss.is_finite() {
        return Ok(TaskEnd::diverged(session.steps()));
    }
    for (index, block) in (0_u64..).zip(&sample.blocks) {
        log.measurement_at(
            Metric::BlockTimePerStep,
            Some(index),
            block.time_per_step,
            block.elapsed_secs,
        )?;
    }
    if let Some(summary) = sample.summary {
        summarise(&summary, log)?;
        if sampling.batches == Batches::Synthetic {
            synthetic_times(&summary, log)?;
        }
    }
    log.measurement(Metric::StepsPerBlock, sample.steps_per_block as f64)?;
    if let Some(joules) = sample.energy_joules_per_step {
        log.measurement(Metric::EnergyPerStep, joules)?;
    }
    let mut delay = sample.run_queue_delay_nanos;

    if sampling.batches == Batches::Both {
        log.progress("sampling synthetic data", 0.6)?;
        // One batch over and over may diverge where training does not: then its time stays unknown.
        let rough = sample.summary.map_or(rough, |summary| summary.median);
        if let Some(second) = self::sample(&mut session, synthetic, sampling, rough, log)? {
            sampling_secs += second.wall_secs;
            delay = delay
                .zip(second.run_queue_delay_nanos)
                .map(|(first, second)| first + second);
            if let Some(summary) = second.summary {
                synthetic_times(&summary, log)?;
            }
        }
    }
    log.measurement(Metric::SamplingSecs, sampling_secs)?;
    if let Some(delay) = delay {
        let threads = f64::from(spec.device.threads.max(1));
        let ratio = delay as f64 * 1e-9 / (sampling_secs * threads);
        log.measurement(Metric::RunQueueDelayRatio, ratio)?;
    }
    log.measurement(Metric::LastLoss, last_loss)?;
    log.measurement(Metric::Steps, session.steps() as f64)?;
    Ok(TaskEnd::Finished)
}

/// One step, on whatever batch.
type Step<'a> = &'a mut dyn FnMut(&mut Session) -> Result<Tensor<1>, SessionError>;

fn synthetic_times(summary: &SampleSummary, log: &mut EventLog) -> Result<(), TaskError> {
    log.measurement(Metric::SyntheticTimePerStepMedian, summary.median)?;
    log.measurement(Metric::SyntheticTimePerStepMean, summary.mean)?;
    Ok(())
}

fn summarise(summary: &SampleSummary, log: &mut EventLog) -> Result<(), TaskError> {
    log.measurement(Metric::TimePerStepMedian, summary.median)?;
    log.measurement(Metric::TimePerStepMean, summary.mean)?;
    if let Some(half_width) = summary.median_half_width {
        log.measurement(Metric::WithinRunMedianHalfWidth, half_width)?;
    }
    if let Some(half_width) = summary.mean_half_width {
        log.measurement(Metric::WithinRunMeanHalfWidth, half_width)?;
    }
    log.measurement(Metric::Blocks, summary.blocks as f64)?;
    log.measurement(Metric::Converged, f64::from(u8::from(summary.converged)))?;
    Ok(())
}

/// Discards steps until enough have passed in number and in time. Returns a rough time per step, or
/// `None` when the loss diverged.
fn warm_up(
    session: &mut Session,
    step: Step<'_>,
    sampling: &StepTimeSampling,
) -> Result<Option<f64>, TaskError> {
    let start = Instant::now();
    let mut times = Vec::new();
    while (times.len() as u64) < sampling.warm_up_steps.max(1)
        || start.elapsed().as_secs_f64() < sampling.warm_up_secs
    {
        let before = Instant::now();
        step(session)?;
        if !session.finish_steps()? {
            return Ok(None);
        }
        times.push(before.elapsed().as_secs_f64());
        session.check_memory()?;
    }
    // The later half: the earliest steps may still be slow.
    let settled = times.split_off(times.len() / 2);
    Ok(Some(median(settled)))
}

/// What the sampling gave.
#[derive(Debug)]
struct Sample {
    blocks: Vec<Block>,
    summary: Option<SampleSummary>,
    steps_per_block: u64,
    wall_secs: f64,
    run_queue_delay_nanos: Option<u64>,
    energy_joules_per_step: Option<f64>,
}

/// Times blocks until the stopping rule is content or a cap is hit; `None` when the loss diverged.
fn sample(
    session: &mut Session,
    step: Step<'_>,
    sampling: &StepTimeSampling,
    rough_time_per_step: f64,
    log: &EventLog,
) -> Result<Option<Sample>, TaskError> {
    let slow = rough_time_per_step > SLOW_STEP_SECS;
    let steps_per_block = if slow {
        1
    } else {
        steps_in(sampling.block_secs, rough_time_per_step)
    };
    let mut sampler = BlockSampler::new(StoppingRule {
        first_look_blocks: sampling.first_look_blocks,
        growth: sampling.growth,
        max_blocks: sampling.max_blocks,
        median_half_width: sampling.median_half_width,
        mean_half_width: sampling.mean_half_width,
        drift: sampling.drift,
    });
    // Room for every block, so that the loop does not allocate; no more than a sane spec asks for.
    let room = usize::try_from(sampling.max_blocks.min(1 << 16)).unwrap_or(0);
    let mut blocks: Vec<Block> = Vec::with_capacity(room);
    let mut steps = 0;

    let mut energy = EnergyCounters::start(session.backend());
    let delay_before = run_queue::delay_nanos();
    let start = Instant::now();
    loop {
        let before = Instant::now();
        for _ in 0..steps_per_block {
            step(session)?;
        }
        let finite = session.finish_steps()?;
        let time_per_step = before.elapsed().as_secs_f64() / steps_per_block as f64;
        if !finite {
            return Ok(None);
        }
        blocks.push(Block {
            time_per_step,
            elapsed_secs: log.elapsed_secs(),
        });
        steps += steps_per_block;
        let decision = sampler.push(time_per_step);
        let enough = decision != Decision::Continue
            || slow
            || start.elapsed().as_secs_f64() >= sampling.max_secs;
        if enough && steps >= sampling.min_steps {
            break;
        }
    }
    let wall_secs = start.elapsed().as_secs_f64();
    let energy_joules_per_step = energy
        .as_mut()
        .and_then(EnergyCounters::joules)
        .map(|joules| joules / steps as f64);
    let run_queue_delay_nanos = delay_before
        .zip(run_queue::delay_nanos())
        .map(|(before, after)| after.saturating_sub(before));
    Ok(Some(Sample {
        blocks,
        summary: sampler.summary(),
        steps_per_block,
        wall_secs,
        run_queue_delay_nanos,
        energy_joules_per_step,
    }))
}

/// Steps that last `block_secs`, at least one.
pub(super) fn steps_in(block_secs: f64, time_per_step: f64) -> u64 {
    // A float beyond the range of u64 saturates.
    ((block_secs / time_per_step).ceil() as u64).max(1)
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median time of a fixed reference step, seconds: the same for every study, so that two children
/// whose canaries agree ran on a device in the same condition.
fn canary_time_per_step(spec: &ProbeSpec, canary_secs: f64) -> Result<f64, TaskError> {
    let reference = ProbeSpec {
        protocol: spec.protocol,
        runner: Runner::default(),
        task: Task::Smoke { steps: 0 },
        workload: Workload::new(
            BuiltinDataset::Synthetic {
                examples: 512,
                features: 256,
                classes: 10,
                seed: 0,
            }
            .into(),
            Model::mlp(vec![256]),
        ),
        optimizer: Optimizer::sgd(1e-3),
        schedule: Schedule::default(),
        gradient_clipping: GradientClipping::default(),
        device: ProbeDevice {
            backend: spec.device.backend,
            model: spec.device.model.clone(),
            count: 1,
            threads: spec.device.threads,
        },
        batch_size: BatchSize(128),
        replicate: 0,
        seed: 0,
        limits: Limits {
            memory_bytes: spec.limits.memory_bytes,
            wall_secs: spec.limits.wall_secs,
        },
    };
    let mut session = Session::new(&reference, Faults::default())?;
    session.step()?;
    session.finish_steps()?;
    let budget = Duration::try_from_secs_f64(canary_secs).unwrap_or(Duration::from_secs(1));
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < budget || times.is_empty() {
        let before = Instant::now();
        session.step()?;
        session.finish_steps()?;
        times.push(before.elapsed().as_secs_f64());
    }
    // The first steps warm caches.
    let settled = times.split_off(times.len() / 4);
    Ok(median(settled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_lasts_at_least_as_long_as_asked() {
        assert_eq!(steps_in(0.02, 0.003), 7);
        assert_eq!(steps_in(0.02, 0.5), 1);
        assert_eq!(steps_in(0.0, 0.5), 1);
    }
}

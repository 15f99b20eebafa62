//! Random series and evidence made of them.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use trialhead::analysis::{self, Analysis, Evidence, ProbeRecord};
use trialhead::plan::{Next, plan};
use trialhead::probe::{
    InfeasibleReason, Limits, Metric, PROTOCOL, ProbeDevice, ProbeSpec, ProbeState,
    StepTimeSampling, Task,
};
use trialhead::statistics::stopping::{BlockSampler, Decision, SampleSummary, StoppingRule};
use trialhead::study::validation::{DefinitionLimits, parse};
use trialhead::study::{
    Backend, BatchSize, Bytes, Dataset, DeviceFactsForDefaults, EndedBecause, GradientClipping,
    Model, Optimizer, ProbeId, Schedule, StudyDefinition, Workload, resolve,
};
use uuid::Uuid;

/// A generator of its own for each simulated thing.
pub fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// One draw of a standard normal variable.
pub fn standard_normal(random: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(random)
}

/// How the times of a child's blocks scatter. The undisturbed time is 1.
#[derive(Debug, Clone, Copy)]
pub struct World {
    pub name: &'static str,
    /// Standard deviation of ln t of a block.
    pub scatter: f64,
    /// Correlation of ln t of neighbouring blocks (first-order autoregression).
    pub correlation: f64,
    /// Share of blocks that take five times as long, at random.
    pub outliers: f64,
    /// Every so many blocks one takes five times as long; 0 for none.
    pub hiccup_every: u64,
    /// The first block is faster by this much, and the difference fades with an e-folding of 100
    /// blocks: a processor that heats up.
    pub drift: f64,
}

impl World {
    pub const QUIET: Self = Self {
        name: "quiet",
        scatter: 0.01,
        correlation: 0.0,
        outliers: 0.0,
        hiccup_every: 0,
        drift: 0.0,
    };
    pub const TYPICAL: Self = Self {
        name: "typical",
        scatter: 0.05,
        correlation: 0.3,
        outliers: 0.02,
        ..Self::QUIET
    };
    pub const NOISY: Self = Self {
        name: "noisy",
        scatter: 0.12,
        correlation: 0.5,
        ..Self::QUIET
    };
    pub const HICCUP: Self = Self {
        name: "hiccup",
        scatter: 0.05,
        hiccup_every: 50,
        ..Self::QUIET
    };
    pub const DRIFT: Self = Self {
        name: "drift",
        scatter: 0.02,
        drift: 0.10,
        ..Self::QUIET
    };

    /// An endless series of blocks.
    pub fn series(self, mut random: ChaCha8Rng) -> impl FnMut() -> f64 {
        let innovation = self.scatter * (1.0 - self.correlation.powi(2)).sqrt();
        let mut state = self.scatter * standard_normal(&mut random);
        let mut block = 0_u64;
        move || {
            state = self.correlation * state + innovation * standard_normal(&mut random);
            let mut time = state.exp() * (1.0 - self.drift * (-(block as f64) / 100.0).exp());
            block += 1;
            if random.random::<f64>() < self.outliers {
                time *= 5.0;
            }
            if self.hiccup_every > 0 && block.is_multiple_of(self.hiccup_every) {
                time *= 5.0;
            }
            time
        }
    }
}

/// The rule that children use by default.
pub fn default_rule() -> StoppingRule {
    let sampling = StepTimeSampling::default();
    StoppingRule {
        first_look_blocks: sampling.first_look_blocks,
        growth: sampling.growth,
        max_blocks: sampling.max_blocks,
        median_half_width: sampling.median_half_width,
        mean_half_width: sampling.mean_half_width,
        drift: sampling.drift,
    }
}

/// Samples a series until the rule decides; also the number of blocks timed.
pub fn sample(rule: StoppingRule, mut series: impl FnMut() -> f64) -> (SampleSummary, u64) {
    let mut sampler = BlockSampler::new(rule);
    let mut blocks = 1;
    while sampler.push(series()) == Decision::Continue {
        blocks += 1;
    }
    (sampler.summary().expect("at least one block"), blocks)
}

/// Where a probe stands in its study.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub id: u128,
    pub wave: u32,
    pub position: u32,
}

/// What a simulated child came to.
#[derive(Debug, Default)]
pub struct End {
    pub infeasible: Option<InfeasibleReason>,
    pub device_secs: f64,
    pub figures: BTreeMap<Metric, f64>,
}

/// The record of a probe that has ended.
pub fn record(spec: &ProbeSpec, place: Place, end: End) -> ProbeRecord {
    ProbeRecord {
        id: ProbeId(Uuid::from_u128(place.id)),
        spec: spec.clone(),
        state: match end.infeasible {
            Some(_) => ProbeState::Infeasible,
            None => ProbeState::Succeeded,
        },
        infeasible: end.infeasible,
        failure: None,
        detail: None,
        wave: place.wave,
        position: place.position,
        reused: false,
        device_secs: end.device_secs,
        prediction: None,
        figures: end.figures,
    }
}

/// A study as posted, on a simulated device.
pub fn definition(body: &serde_json::Value) -> StudyDefinition {
    let facts = DeviceFactsForDefaults {
        model: "simulated".into(),
        threads: 2,
        available_bytes: Bytes(8 << 30),
    };
    let request = parse(body, &DefinitionLimits::default()).expect("valid");
    resolve(request, Some(&facts)).expect("known")
}

/// Runs a study to its end, every probe answered as soon as it is planned.
pub fn run(
    definition: &StudyDefinition,
    answer: impl Fn(&ProbeSpec, Place) -> ProbeRecord,
) -> (Evidence, Analysis, EndedBecause) {
    let mut evidence = Evidence::default();
    for _ in 0..300 {
        let analysis = analysis::analyze(definition, &evidence);
        match plan(definition, &evidence, &analysis).next {
            Next::Wave(planned) => {
                let wave = evidence.next_wave();
                for (position, probe) in (0_u32..).zip(&planned) {
                    let place = Place {
                        id: (u128::from(wave) << 32) + u128::from(position) + 1,
                        wave,
                        position,
                    };
                    evidence.probes.push(answer(&probe.spec, place));
                }
            }
            Next::Done { because, .. } => return (evidence, analysis, because),
            other => panic!("{other:?}"),
        }
    }
    panic!("the study does not end");
}

/// A child that timed a batch size in a round.
pub fn timed(batch_size: u64, round: u32, secs: f64) -> ProbeRecord {
    let place = Place {
        id: Uuid::from_u64_pair(batch_size, u64::from(round)).as_u128(),
        wave: round,
        position: 0,
    };
    let end = End {
        infeasible: None,
        device_secs: 1.0,
        figures: BTreeMap::from([
            (Metric::TimePerStepMedian, secs),
            (Metric::TimePerStepMean, secs),
            (Metric::Converged, 1.0),
            (Metric::RunQueueDelayRatio, 0.0),
        ]),
    };
    record(
        &ProbeSpec {
            protocol: PROTOCOL,
            runner: Default::default(),
            task: Task::StepTime(StepTimeSampling::default()),
            workload: Workload::new(Dataset::digits(), Model::mlp(vec![64])),
            optimizer: Optimizer::adam(),
            schedule: Schedule::default(),
            gradient_clipping: GradientClipping::default(),
            device: ProbeDevice {
                backend: Backend::Cpu,
                model: "simulated".into(),
                count: 1,
                threads: 2,
            },
            batch_size: BatchSize(batch_size),
            replicate: round,
            seed: 0,
            limits: Limits {
                memory_bytes: Bytes(1 << 30),
                wall_secs: 60.0,
            },
        },
        place,
        end,
    )
}

/// Adds a round that times every batch size once.
pub fn add_round(evidence: &mut Evidence, sizes: &[u64], mut secs: impl FnMut(u64, u32) -> f64) {
    let round = evidence.next_wave();
    for &size in sizes {
        evidence.probes.push(timed(size, round, secs(size, round)));
    }
}

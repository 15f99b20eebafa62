//! What the measurements mean, as numbers with units: memory, throughput, saturation,
//! bottlenecks, gradient accumulation, steps to target, training time, quality across batch sizes, where to start.
//! Pure and deterministic: the same evidence gives the same analysis.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub mod accumulation;
pub mod batch_norm;
pub mod bottleneck;
pub mod decision;
pub mod devices;
pub mod evidence;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod initial;
pub mod memory;
pub mod memory_search;
pub mod optimizers;
pub mod quality;
pub mod saturation;
pub mod steps;
pub mod throughput;
pub mod training_time;

pub use accumulation::AccumulationPoint;
pub use batch_norm::BatchNormAnalysis;
pub use bottleneck::{Bottleneck, BottleneckAnalysis, BottleneckPoint, Finding, StepParts};
pub use decision::{Feasibility, StartChoice};
pub use devices::{CommunicationPoint, DeviceCountPoint, DevicesAnalysis};
pub use evidence::{Evidence, ProbeRecord};
pub use initial::InitialAnalysis;
pub use memory::{MemoryAnalysis, MemoryFit, MemoryPoint, MemoryPrediction, MemorySplit};
pub use optimizers::OptimizerAnalysis;
pub use quality::{QualityAnalysis, QualityPair, QualityPoint};
pub use saturation::{DoublingGain, GainRegion, SaturationAnalysis, TimeModel};
pub use steps::{StepsAnalysis, StepsFit, StepsPoint};
pub use throughput::{Curve, ThroughputAnalysis, ThroughputPoint};

pub use training_time::{TrainingTimeAnalysis, TrainingTimePoint};

use crate::study::StudyDefinition;

/// A remark that limits what a number is worth. Codes begin with `W_`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Caveat {
    /// Stable, machine-readable.
    #[schema(example = "W_HOST_CONTENDED")]
    pub code: String,
    /// What was seen, with the figures.
    pub detail: String,
}

/// An estimate with its 95% confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Lower end of the 95% interval; null where the data give none.
    pub ci_lower: Option<f64>,
    /// Upper end of the 95% interval; null where the data give none.
    pub ci_upper: Option<f64>,
}

impl Estimate {
    /// From an estimate of the logarithm and the half-width of its interval.
    pub fn of_ln(ln: f64, half_width: Option<f64>) -> Self {
        Self {
            value: ln.exp(),
            ci_lower: half_width.map(|half| (ln - half).exp()),
            ci_upper: half_width.map(|half| (ln + half).exp()),
        }
    }

    /// So many times as much.
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            ci_lower: self.ci_lower.map(|it| it * factor),
            ci_upper: self.ci_upper.map(|it| it * factor),
        }
    }
}

/// Everything that has been worked out about a study.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Analysis {
    /// Memory against batch size; null before the first memory probe ended.
    pub memory: Option<MemoryAnalysis>,
    /// Throughput against batch size; null before the first round ended.
    pub throughput: Option<ThroughputAnalysis>,
    /// Where throughput stops rising; null with fewer than two batch sizes timed.
    pub saturation: Option<SaturationAnalysis>,
    /// What keeps steps from being shorter; null before it was measured.
    pub bottleneck: Option<BottleneckAnalysis>,
    /// How steps scale with the devices that share them; null for one device.
    #[serde(default)]
    pub devices: Option<DevicesAnalysis>,
    /// What gradient accumulation brings, by micro-batch size.
    #[serde(default)]
    pub gradient_accumulation: Vec<AccumulationPoint>,
    /// What fits; null before the first memory probe ended.
    pub feasibility: Option<Feasibility>,
    /// The batch size to start with; null before throughput was measured.
    pub start: Option<StartChoice>,
    /// Steps to target against batch size; null before training to a target has begun.
    #[serde(default)]
    pub steps: Option<StepsAnalysis>,
    /// Training time and resource consumption against batch size; null before both times and steps are known.
    #[serde(default)]
    pub training_time: Option<TrainingTimeAnalysis>,
    /// The quality that training ends with, across batch sizes; null before it was measured.
    #[serde(default)]
    pub quality: Option<QualityAnalysis>,
    /// Where to start: model, learning rate, number of steps; null where it is not asked for.
    #[serde(default)]
    pub initial: Option<InitialAnalysis>,
    /// The comparison of optimizers; null where none is asked for.
    #[serde(default)]
    pub optimizers: Option<OptimizerAnalysis>,
    /// Over how many examples batch normalization should take its statistics; null where it is not asked.
    #[serde(default)]
    pub batch_norm: Option<BatchNormAnalysis>,
    /// Remarks on the whole study.
    pub caveats: Vec<Caveat>,
}

/// Works out everything the evidence allows.
pub fn analyze(definition: &StudyDefinition, evidence: &Evidence) -> Analysis {
    // Comparisons train with other optimizers and networks: nothing else is read off their probes.
    let all = evidence;
    let evidence = &*all.own();
    let memory = memory::analyze(definition, evidence);
    let feasibility = decision::feasibility(definition, evidence);
    let mut throughput = throughput::analyze(evidence);
    if let Some(throughput) = &mut throughput {
        let remark = throughput::not_paid_for(definition, feasibility.as_ref(), throughput);
        throughput.caveats.extend(remark);
    }
    let saturation = throughput.as_ref().and_then(saturation::analyze);
    let start = throughput
        .as_ref()
        .and_then(|throughput| decision::start_choice(throughput, definition.seed));
    let caveats = throughput
        .as_ref()
        .map(|throughput| throughput.caveats.clone())
        .unwrap_or_default();
    let training = steps::read(definition, evidence, feasibility.as_ref());
    let steps = training
        .as_ref()
        .and_then(|training| steps::analyze(definition, training));
    let training_time = throughput
        .as_ref()
        .zip(steps.as_ref())
        .and_then(|(throughput, steps)| training_time::analyze(definition, throughput, steps));
    let mut devices = devices::analyze(definition, all);
    if let (Some(devices), Some(throughput), Some(feasibility), Some(decision)) =
        (&mut devices, &throughput, &feasibility, &training_time)
        && let Some(fit) = steps.as_ref().and_then(|steps| steps.fit.as_ref())
    {
        let sizes: Vec<_> = decision.points.iter().map(|it| it.batch_size).collect();
        devices.by_count =
            devices::by_count(definition, devices, throughput, feasibility, fit, &sizes);
    }
    let quality = training
        .as_ref()
        .zip(steps.as_ref())
        .and_then(|(training, steps)| {
            quality::analyze(quality::Known {
                definition,
                evidence,
                training,
                steps,
                decision: training_time.as_ref(),
                largest_feasible: feasibility.as_ref().and_then(|it| it.largest_feasible),
            })
        });
    let initial = initial::analyze(
        definition,
        evidence,
        feasibility.as_ref(),
        throughput.as_ref(),
    );
    let optimizers = training
        .as_ref()
        .and_then(|training| optimizers::analyze(definition, all, training));
    let batch_norm = batch_norm::analyze(batch_norm::Known {
        definition,
        evidence: all,
        training: training.as_ref(),
        steps: steps.as_ref(),
        decision: training_time.as_ref(),
        largest_feasible: feasibility.as_ref().and_then(|it| it.largest_feasible),
    });
    let bottleneck = bottleneck::analyze(&definition.workload, evidence, saturation.as_ref());
    Analysis {
        memory,
        throughput,
        saturation,
        bottleneck,
        devices,
        gradient_accumulation: accumulation::analyze(evidence),
        feasibility,
        start,
        steps,
        training_time,
        quality,
        initial,
        optimizers,
        batch_norm,
        caveats,
    }
}

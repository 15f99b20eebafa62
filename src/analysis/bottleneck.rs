//! What a step's time goes into, and what keeps it from being shorter.
//!
//! Every child times all parts in turn, so a ratio of two of them is of one process on one host at one
//! time; how far it can be trusted comes from several children, as for the time per step. A label is given
//! when the whole interval of its ratio is past the threshold, withheld when the whole interval is not, and
//! otherwise undetermined.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::saturation::DoublingGain;
use super::{Caveat, Estimate, Evidence, ProbeRecord, SaturationAnalysis};
use crate::probe::{Metric, ProbeKind};
use crate::statistics::blocked::BlockedDesign;
use crate::study::{BatchSize, InputPipeline, ProbeId, Workload};

/// What keeps a step from being shorter.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// Training waits for its batches: t_real/t_synthetic ≥ 1.10.
    InputBound,
    /// Training waits for the loss to be read back in every step: with/without ≥ 1.05.
    SyncBound,
    /// The time hardly depends on the batch size: d ln t/d ln B ≤ 0.2. Launching work costs more than the work.
    LaunchBound,
    /// The time grows with the batch size (d ln t/d ln B ≥ 0.8), and arithmetic runs at half or more of
    /// the rate of a plain matrix multiplication.
    ComputeBound,
    /// The time grows with the batch size, and arithmetic runs below half of that rate: the rest goes into
    /// moving numbers.
    BandwidthBound,
    /// Several devices spend 15% or more of a step on bringing their gradients together:
    /// (t(B, n) − t(B/n, 1))/t(B, n).
    CommunicationBound,
}

impl Bottleneck {
    /// The code of the caveat that it puts on other advice.
    pub fn caveat_code(self) -> Option<&'static str> {
        match self {
            Self::InputBound => Some("W_INPUT_BOUND"),
            Self::SyncBound => Some("W_SYNC_BOUND"),
            Self::LaunchBound => Some("W_LAUNCH_BOUND"),
            Self::CommunicationBound => Some("W_COMMUNICATION_BOUND"),
            // The device is busy: that is what a batch size is chosen for.
            Self::ComputeBound | Self::BandwidthBound => None,
        }
    }

    /// Whether a larger batch is no answer to it, so that it is to be mended before one is chosen.
    pub fn comes_first(self) -> bool {
        matches!(self, Self::InputBound | Self::SyncBound)
    }
}

/// Something that keeps a step from being shorter, with its evidence and its mend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// What.
    pub label: Bottleneck,
    /// The ratio behind it.
    pub ratio: Estimate,
    /// The threshold that the ratio's whole interval is past.
    pub threshold: f64,
    /// What would mend it.
    pub fix: String,
    /// Training throughput that the mend would reach at this batch size, examples per second; null where
    /// that was not measured.
    pub ceiling_examples_per_sec: Option<f64>,
}

/// Times of the parts of a step, seconds. They are measured apart, so they need not add up where a host and
/// a device work at the same time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepParts {
    /// A step with batches gathered ahead.
    pub prefetched: Estimate,
    /// A step that gathers its batch first.
    pub unprefetched: Estimate,
    /// Gathering a batch.
    pub load: Estimate,
    /// Copying it to the device.
    pub transfer: Estimate,
    /// A step on one staged batch.
    pub synthetic: Estimate,
    /// The same with the loss read back.
    pub readback: Estimate,
    /// The forward pass and the loss.
    pub forward: Estimate,
    /// Forward and backward pass.
    pub forward_backward: Estimate,
    /// The optimizer's step: synthetic − forward and backward; 0 where that is below the scatter.
    pub optimizer_secs: f64,
}

/// What keeps a step from being shorter at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BottleneckPoint {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Children that measured it.
    pub replicates: u64,
    /// Where the time goes.
    pub parts: StepParts,
    /// As configured over synthetic: what the input pipeline costs.
    pub input_ratio: Estimate,
    /// Gathering ahead over gathering at the step's beginning: below 1 it helps.
    pub prefetch_ratio: Estimate,
    /// With over without reading the loss back.
    pub readback_ratio: Estimate,
    /// A step that gathers its batch first over the sum of its parts: far from 1, something is hidden.
    pub unexplained_ratio: Estimate,
    /// d ln t/d ln B on synthetic data, from here to the next larger batch size timed (to the next smaller one
    /// at the end of the range).
    pub elasticity: Option<Estimate>,
    /// The model's rate of arithmetic, forward and backward, over that of a plain matrix multiplication.
    pub arithmetic_ratio: Option<Estimate>,
    /// What was found, in the order in which it is to be mended.
    pub findings: Vec<Finding>,
    /// What the intervals are too wide to tell.
    pub undetermined: Vec<Bottleneck>,
    /// The probes behind it.
    pub probe_ids: Vec<ProbeId>,
}

impl BottleneckPoint {
    /// The finding with a label.
    pub fn finding(&self, label: Bottleneck) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.label == label)
    }
}

/// What keeps steps from being shorter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BottleneckAnalysis {
    /// By batch size.
    pub points: Vec<BottleneckPoint>,
    /// Remarks: `W_HIDDEN_BARRIER`, `W_UNRELIABLE`, `W_HOST_CONTENDED`.
    pub caveats: Vec<Caveat>,
}

impl BottleneckAnalysis {
    /// What was found at a batch size, or else at the nearest measured one.
    pub fn nearest(&self, size: BatchSize) -> Option<&BottleneckPoint> {
        let distance =
            |point: &&BottleneckPoint| (point.batch_size.as_f64() / size.as_f64()).ln().abs();
        self.points
            .iter()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }
}

/// Confidence of the intervals.
const CONFIDENCE: f64 = 0.95;
/// From here on training waits for its batches.
pub const INPUT_BOUND: f64 = 1.10;
/// From here on reading the loss back is worth doing more rarely.
pub const SYNC_BOUND: f64 = 1.05;
/// Up to here the time hardly depends on the batch size.
pub const LAUNCH_BOUND: f64 = 0.2;
/// From here on the time grows with the batch size.
pub const BUSY: f64 = 0.8;
/// From this share of a matrix multiplication's rate on it is arithmetic that takes the time (Williams et al. 2009:
/// the two roofs of the roofline model; half-way to the upper one).
pub const ARITHMETIC: f64 = 0.5;
/// Parts that add up to this far off hide something.
const UNEXPLAINED: f64 = 0.10;
/// Multiply-accumulate operations of forward and backward pass over those of the forward pass: the backward
/// pass multiplies for the gradients of the inputs and of the weights.
const PASSES: f64 = 3.0;
/// A multiplication and an addition.
const OPERATIONS: f64 = 2.0;

/// The children of some batch sizes, in columns by replicate, and the ratios between what they timed.
struct Table<'a> {
    rows: Vec<(BatchSize, Vec<&'a ProbeRecord>)>,
}

impl<'a> Table<'a> {
    /// The succeeded children, as far as every batch size has them: a batch size whose children failed is left
    /// out rather than the replicates of the others.
    fn read(evidence: &'a Evidence) -> Option<Self> {
        let mut cells = BTreeMap::<BatchSize, BTreeMap<u32, &ProbeRecord>>::new();
        let is_complete = |probe: &&ProbeRecord| {
            NEEDED.iter().all(|metric| {
                probe
                    .figure(*metric)
                    .is_some_and(|figure| figure.is_finite() && figure > 0.0)
            })
        };
        for probe in evidence
            .of_kind(ProbeKind::InputPipeline)
            .filter(|probe| probe.succeeded())
            .filter(is_complete)
        {
            let row = cells.entry(probe.batch_size()).or_default();
            row.insert(probe.spec.replicate, probe);
        }
        let most = cells.values().map(BTreeMap::len).max()?;
        cells.retain(|_, row| row.len() == most);
        let common: BTreeSet<u32> = cells
            .values()
            .map(|row| row.keys().copied().collect::<BTreeSet<u32>>())
            .reduce(|a, b| a.intersection(&b).copied().collect())?;
        if common.is_empty() {
            return None;
        }
        Some(Self {
            rows: cells
                .into_iter()
                .map(|(size, row)| {
                    let children = common
                        .iter()
                        .filter_map(|replicate| row.get(replicate).copied())
                        .collect();
                    (size, children)
                })
                .collect(),
        })
    }

    /// A positive figure of each child, averaged in the logarithm, for each batch size.
    fn estimates(&self, value: impl Fn(&ProbeRecord) -> f64) -> Vec<Estimate> {
        let table: Vec<Vec<f64>> = self
            .rows
            .iter()
            .map(|(_, row)| row.iter().map(|probe| value(probe).ln()).collect())
            .collect();
        let Some(design) = BlockedDesign::fit(&table) else {
            return Vec::new();
        };
        let half_width = design.half_width(CONFIDENCE);
        let estimate = |ln: &f64| Estimate::of_ln(*ln, half_width);
        design.means.iter().map(estimate).collect()
    }
}

const NEEDED: [Metric; 8] = [
    Metric::PrefetchedTimePerStep,
    Metric::UnprefetchedTimePerStep,
    Metric::LoadTimePerStep,
    Metric::TransferTimePerStep,
    Metric::SyntheticTimePerStep,
    Metric::ReadbackTimePerStep,
    Metric::ForwardTimePerStep,
    Metric::ForwardBackwardTimePerStep,
];

/// Reads the `input_pipeline` probes. `None` before one has ended.
pub fn analyze(
    workload: &Workload,
    evidence: &Evidence,
    saturation: Option<&SaturationAnalysis>,
) -> Option<BottleneckAnalysis> {
    let table = Table::read(evidence)?;
    let figure =
        |metric: Metric| move |probe: &ProbeRecord| probe.figure(metric).unwrap_or(f64::NAN);
    let of = |metric| table.estimates(figure(metric));
    let ratio =
        |above, below| table.estimates(move |probe| figure(above)(probe) / figure(below)(probe));
    let configured = if workload.input_pipeline.threads == 0 {
        Metric::UnprefetchedTimePerStep
    } else {
        Metric::PrefetchedTimePerStep
    };
    let prefetched = of(Metric::PrefetchedTimePerStep);
    let unprefetched = of(Metric::UnprefetchedTimePerStep);
    let load = of(Metric::LoadTimePerStep);
    let transfer = of(Metric::TransferTimePerStep);
    let synthetic = of(Metric::SyntheticTimePerStep);
    let readback = of(Metric::ReadbackTimePerStep);
    let forward = of(Metric::ForwardTimePerStep);
    let forward_backward = of(Metric::ForwardBackwardTimePerStep);
    let input_ratio = ratio(configured, Metric::SyntheticTimePerStep);
    let prefetch_ratio = ratio(
        Metric::PrefetchedTimePerStep,
        Metric::UnprefetchedTimePerStep,
    );
    let readback_ratio = ratio(Metric::ReadbackTimePerStep, Metric::SyntheticTimePerStep);
    let unexplained = table.estimates(|probe| {
        let get = |metric| figure(metric)(probe);
        get(Metric::UnprefetchedTimePerStep)
            / (get(Metric::LoadTimePerStep)
                + get(Metric::TransferTimePerStep)
                + get(Metric::SyntheticTimePerStep))
    });
    let multiplications = workload
        .network()
        .ok()
        .map(|network| network.multiplications() as f64)
        .filter(|count| *count > 0.0);
    let has_rate = table.rows.iter().all(|(_, row)| {
        row.iter()
            .all(|probe| probe.figure(Metric::MatmulRate).is_some())
    });
    let arithmetic = multiplications.filter(|_| has_rate).map(|count| {
        table.estimates(|probe| {
            // Of one device, as the rate is.
            let share = probe.batch_size().as_f64() / f64::from(probe.spec.device.count.max(1));
            let operations = count * OPERATIONS * PASSES * share;
            operations
                / figure(Metric::ForwardBackwardTimePerStep)(probe)
                / figure(Metric::MatmulRate)(probe)
        })
    });
    let mut points = Vec::with_capacity(table.rows.len());
    for (index, (size, row)) in table.rows.iter().enumerate() {
        let mut point = BottleneckPoint {
            batch_size: *size,
            replicates: row.len() as u64,
            parts: StepParts {
                prefetched: prefetched[index],
                unprefetched: unprefetched[index],
                load: load[index],
                transfer: transfer[index],
                synthetic: synthetic[index],
                readback: readback[index],
                forward: forward[index],
                forward_backward: forward_backward[index],
                optimizer_secs: (synthetic[index].value - forward_backward[index].value).max(0.0),
            },
            input_ratio: input_ratio[index],
            prefetch_ratio: prefetch_ratio[index],
            readback_ratio: readback_ratio[index],
            unexplained_ratio: unexplained[index],
            elasticity: saturation.and_then(|saturation| elasticity(saturation, *size)),
            arithmetic_ratio: arithmetic.as_ref().map(|ratios| ratios[index]),
            findings: Vec::new(),
            undetermined: Vec::new(),
            probe_ids: row.iter().map(|probe| probe.id).collect(),
        };
        find(&mut point, workload, saturation);
        points.push(point);
    }
    let caveats = caveats(&points, &table);
    Some(BottleneckAnalysis { points, caveats })
}

/// d ln t/d ln B = 1 − log₂ g.
fn elasticity(saturation: &SaturationAnalysis, size: BatchSize) -> Option<Estimate> {
    let gain: &DoublingGain = saturation
        .gains
        .iter()
        .find(|gain| gain.from == size)
        .or_else(|| saturation.gains.iter().find(|gain| gain.to == size))?;
    let of = |gain: f64| 1.0 - gain.log2();
    Some(Estimate {
        value: of(gain.gain.value),
        ci_lower: gain.gain.ci_upper.map(of),
        ci_upper: gain.gain.ci_lower.map(of),
    })
}

/// Whether an estimate is past a threshold: by its whole interval, not at all, or it cannot be told.
fn is_at_least(estimate: &Estimate, threshold: f64) -> Option<bool> {
    if estimate.ci_lower? >= threshold {
        Some(true)
    } else if estimate.ci_upper? < threshold {
        Some(false)
    } else {
        None
    }
}

fn find(point: &mut BottleneckPoint, workload: &Workload, saturation: Option<&SaturationAnalysis>) {
    let rate = |secs: f64| point.batch_size.as_f64() / secs;
    let mut findings = Vec::new();
    let mut undetermined = Vec::new();
    let mut judge = |is: Option<bool>, label, finding: &dyn Fn() -> Finding| match is {
        Some(true) => findings.push(finding()),
        Some(false) => {}
        None => undetermined.push(label),
    };
    judge(
        is_at_least(&point.input_ratio, INPUT_BOUND),
        Bottleneck::InputBound,
        &|| Finding {
            label: Bottleneck::InputBound,
            ratio: point.input_ratio,
            threshold: INPUT_BOUND,
            fix: input_fix(point, &workload.input_pipeline),
            ceiling_examples_per_sec: Some(rate(point.parts.synthetic.value)),
        },
    );
    if workload.read_loss_every_step {
        judge(
            is_at_least(&point.readback_ratio, SYNC_BOUND),
            Bottleneck::SyncBound,
            &|| {
                Finding {
                label: Bottleneck::SyncBound,
                ratio: point.readback_ratio,
                threshold: SYNC_BOUND,
                fix: "read the loss every 50 steps or so instead of after each (read_loss_every_step: false), or keep a running sum on the device".into(),
                ceiling_examples_per_sec: Some(rate(point.parts.synthetic.value)),
            }
            },
        );
    }
    if let Some(elasticity) = point.elasticity {
        // The threshold is an upper one here.
        let launch = is_at_least(&elasticity, LAUNCH_BOUND).map(|above| !above);
        judge(launch, Bottleneck::LaunchBound, &|| {
            Finding {
            label: Bottleneck::LaunchBound,
            ratio: elasticity,
            threshold: LAUNCH_BOUND,
            fix: "a larger batch costs hardly more time a step; if it may not be larger, fuse layers or capture the step as one graph so that fewer pieces of work are launched".into(),
            ceiling_examples_per_sec: saturation
                .and_then(|saturation| saturation.highest_examples_per_sec),
        }
        });
        if is_at_least(&elasticity, BUSY) == Some(true)
            && let Some(arithmetic) = point.arithmetic_ratio
        {
            let ceiling = rate(point.parts.forward_backward.value * arithmetic.value);
            match is_at_least(&arithmetic, ARITHMETIC) {
                Some(true) => findings.push(Finding {
                    label: Bottleneck::ComputeBound,
                    ratio: arithmetic,
                    threshold: ARITHMETIC,
                    fix: "the device is busy with arithmetic: lower precision, a smaller model or a faster device".into(),
                    ceiling_examples_per_sec: Some(ceiling),
                }),
                Some(false) => findings.push(Finding {
                    label: Bottleneck::BandwidthBound,
                    ratio: arithmetic,
                    threshold: ARITHMETIC,
                    fix: "most of the time goes into moving numbers, not into multiplying them: wider layers, fused element-wise operations, fewer normalisations, lower precision".into(),
                    ceiling_examples_per_sec: Some(ceiling),
                }),
                None => undetermined.extend([Bottleneck::ComputeBound, Bottleneck::BandwidthBound]),
            }
        }
    }
    point.findings = findings;
    point.undetermined = undetermined;
}

fn input_fix(point: &BottleneckPoint, pipeline: &InputPipeline) -> String {
    let parts = &point.parts;
    let ahead_is_enough = parts.prefetched.value < INPUT_BOUND * parts.synthetic.value;
    if pipeline.threads == 0 && ahead_is_enough {
        return "gather batches ahead of the step that needs them (input_pipeline.threads: 1, measured to be enough)".into();
    }
    let threads = (parts.load.value / parts.synthetic.value).ceil().max(1.0);
    let have = pipeline.threads.max(1);
    if threads <= f64::from(have) {
        // Enough threads, and still too slow: they want the processors that training has.
        return "the threads that gather batches and the training want the same processors: prepare the data beforehand so that gathering takes less work, or give it processors of its own".into();
    }
    format!(
        "gather with {threads:.0} threads (input_pipeline.threads: {threads:.0}) if storage and processors allow it, or make gathering faster: prepared data, faster storage, a cheaper format"
    )
}

fn caveats(points: &[BottleneckPoint], table: &Table<'_>) -> Vec<Caveat> {
    let mut caveats = Vec::new();
    let hidden: Vec<String> = points
        .iter()
        .filter(|point| {
            let ratio = &point.unexplained_ratio;
            is_at_least(ratio, 1.0 + UNEXPLAINED) == Some(true)
                || is_at_least(ratio, 1.0 - UNEXPLAINED) == Some(false)
        })
        .map(|point| {
            format!(
                "{:.2} at batch size {}",
                point.unexplained_ratio.value, point.batch_size
            )
        })
        .collect();
    if !hidden.is_empty() {
        caveats.push(Caveat {
            code: "W_HIDDEN_BARRIER".into(),
            detail: format!(
                "a step that gathers its batch first takes {} times as long as loading, copying and training apart: something waits, or overlaps, that these parts do not show",
                hidden.join(", ")
            ),
        });
    }
    if table.rows.iter().any(|(_, row)| row.len() < 2) {
        caveats.push(Caveat {
            code: "W_UNRELIABLE".into(),
            detail:
                "one process only timed the parts of a step, so nothing can be told from chance"
                    .into(),
        });
    }
    caveats.extend(super::throughput::contention(
        &table
            .rows
            .iter()
            .flat_map(|(_, row)| row.iter().copied())
            .collect::<Vec<_>>(),
    ));
    caveats
}

#[cfg(test)]
mod tests;

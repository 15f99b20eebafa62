//! Several devices that train together: how long a step takes on how many of them, and how much of it is spent on
//! bringing their gradients together.
//!
//! A batch is that of all devices together, so n of them take B/n examples each. With perfect scaling a step on n
//! devices takes as long as a step on one with its share alone, t(B, n) = t(B/n, 1); what it takes longer is
//! communication. t(B, n) = α + βB/n + [n > 1]·(c₀ + 2(n − 1)λ + 2(n − 1)/n·V/bw): a step of one device, starting a
//! reduction, the latency of its 2(n − 1) turns around a ring, and moving V bytes of gradients around it
//! (Patarasuk & Yuan 2009, *Bandwidth optimal all-reduce algorithms*).
//!
//! All numbers of devices are timed in the same rounds, one child each, so ratios come from differences within a round,
//! as those between batch sizes do ([`throughput`](super::throughput)).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::memory_search::LimitedBy;
use super::throughput::contention;
use super::training_time::Price;
use super::{Caveat, Estimate, Evidence, Feasibility, ProbeRecord, StepsFit, ThroughputAnalysis};
use crate::probe::{Metric, ProbeKind};
use crate::statistics::blocked::BlockedDesign;
use crate::statistics::intervals::standard_deviation;
use crate::statistics::regression::{Loss, least_squares};
use crate::study::{BatchSize, Objective, ProbeId, StudyDefinition};

/// The series of the probes that are timed on fewer devices than the study's, or beside them: no candidate of a
/// comparison has such a number.
pub const SERIES: u32 = 100;
/// A step whose share of communication is surely this much is bound by it.
pub const COMMUNICATION_BOUND: f64 = 0.15;
/// Confidence of the intervals.
const CONFIDENCE: f64 = 0.95;
/// Standard errors in the half-width of such an interval.
const STANDARD_ERRORS: f64 = 1.96;
/// Residuals of ln t beyond this count linearly.
const FIT_SCALE: f64 = 0.02;
/// A fit with a larger residual is remarked on.
const TRUSTED_RESIDUAL: f64 = 0.10;
/// Numbers of devices beyond one from which on the parts of communication can be told apart.
const PARTS_TOLD_FROM: usize = 3;

/// How long a step takes on some of the devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DevicesPoint {
    /// Examples per step, of all devices together.
    pub batch_size: BatchSize,
    /// Devices that train together.
    pub devices: u32,
    /// t(B, n), seconds: geometric mean over children of the median within each.
    pub time_per_step_secs: Estimate,
    /// How many times as fast as one device with the whole batch; null where that was not timed.
    pub speed_up: Option<Estimate>,
    /// The probes behind it.
    pub probe_ids: Vec<ProbeId>,
}

/// How much of a step on all devices goes into communication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommunicationPoint {
    /// Examples per step, of all devices together.
    pub batch_size: BatchSize,
    /// t(B, n), seconds.
    pub together_secs: f64,
    /// t(B/n, 1): one device with its share alone, seconds.
    pub alone_secs: f64,
    /// (t(B, n) − t(B/n, 1))/t(B, n).
    pub share: Estimate,
    /// Whether steps are bound by communication: the whole interval of the share is at or above 0.15, or below it; null
    /// when neither.
    pub is_bound: Option<bool>,
}

/// t(B, n) as fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DevicesModel {
    /// α: what a step of one device takes however small its share, seconds.
    pub fixed_secs: f64,
    /// β: what an example of its share adds, seconds.
    pub secs_per_example: f64,
    /// What communication adds to a step, seconds, by number of devices.
    pub communication: Vec<CommunicationCost>,
    /// Its parts; null unless three or more numbers of devices beyond one were timed, which is what it takes to tell
    /// them apart.
    pub parts: Option<CommunicationParts>,
    /// Largest |ln(measured/fitted)|.
    pub max_residual: f64,
}

/// What communication adds to a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommunicationCost {
    /// Devices that train together.
    pub devices: u32,
    /// Seconds a step.
    pub secs: f64,
}

/// What communication consists of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommunicationParts {
    /// c₀: starting it, seconds.
    pub start_secs: f64,
    /// λ: the latency of one turn, seconds.
    pub latency_secs: f64,
    /// V/bw: moving all gradients once, seconds.
    pub transfer_secs: f64,
}

/// Training to the target on some of the devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceCountPoint {
    /// Devices that train together.
    pub devices: u32,
    /// The batch size that is best by the study's objective on so many.
    pub batch_size: BatchSize,
    /// T = t(B, n)·S(B), seconds.
    pub training_time_secs: Estimate,
    /// R = n·T, device-seconds.
    pub device_secs: Estimate,
    /// What a run costs in the study's currency; null without a price of a device-hour.
    pub money: Option<Estimate>,
    /// R of it over R of the number of devices that uses the least.
    pub resources_over_least: f64,
}

/// What is known about training on several devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DevicesAnalysis {
    /// Devices of the study.
    pub devices: u32,
    /// Rounds in which everything was timed.
    pub rounds: u64,
    /// By batch size and number of devices.
    pub points: Vec<DevicesPoint>,
    /// How much of a step goes into communication, by batch size.
    pub communication: Vec<CommunicationPoint>,
    /// t(B, n) as fitted; null with too few points.
    pub model: Option<DevicesModel>,
    /// Training to the target, by number of devices; empty where its steps are not known. They are taken to depend on the
    /// batch size and not on how many devices share it.
    pub by_count: Vec<DeviceCountPoint>,
    /// Remarks: `W_DEVICES_MISFIT`, `W_UNRELIABLE`, `W_HOST_CONTENDED`.
    pub caveats: Vec<Caveat>,
}

/// A batch size on a number of devices.
pub type Cell = (BatchSize, u32);

/// The numbers of devices that are timed: all, and then always the largest divisor that is at most half, down to one.
/// Each shares out every batch that all of them do.
pub fn counts(devices: u32) -> Vec<u32> {
    let mut counts = vec![devices.max(1)];
    while let Some(last) = counts.last().copied().filter(|last| *last > 1) {
        let next = (1..=last / 2).rev().find(|it| devices.is_multiple_of(*it));
        counts.push(next.unwrap_or(1));
    }
    counts
}

/// Whether so many devices can hold a batch, as far as is known: each has the memory that each has when all train.
pub fn fits(definition: &StudyDefinition, feasibility: &Feasibility, (size, count): Cell) -> bool {
    let all = u64::from(definition.device.count.max(1));
    let is_limit = matches!(feasibility.limited_by, LimitedBy::Memory | LimitedBy::Time);
    size.0.is_multiple_of(u64::from(count))
        && (!is_limit
            || feasibility
                .largest_feasible
                .is_some_and(|largest| size.0 / u64::from(count) <= largest.0 / all))
}

/// One child that did what it was asked.
struct Child<'a> {
    probe: &'a ProbeRecord,
    median: f64,
}

/// The children by cell and round: cells that were timed in fewer rounds than others are left out.
struct Table<'a> {
    cells: Vec<Cell>,
    rows: Vec<Vec<Child<'a>>>,
    design: BlockedDesign,
}

impl<'a> Table<'a> {
    fn read(evidence: &'a Evidence) -> Option<Self> {
        let mut rows = BTreeMap::<Cell, BTreeMap<u32, Child<'a>>>::new();
        for probe in evidence.of_kind(ProbeKind::StepTime) {
            let median = probe
                .figure(Metric::TimePerStepMedian)
                .filter(|secs| probe.succeeded() && secs.is_finite() && *secs > 0.0);
            if let Some(median) = median {
                let cell = (probe.batch_size(), probe.spec.device.count);
                rows.entry(cell)
                    .or_default()
                    .insert(probe.spec.replicate, Child { probe, median });
            }
        }
        let most = rows.values().map(BTreeMap::len).max()?;
        rows.retain(|_, row| row.len() == most);
        let rounds: BTreeSet<u32> = rows
            .values()
            .map(|row| row.keys().copied().collect::<BTreeSet<u32>>())
            .reduce(|a, b| a.intersection(&b).copied().collect())?;
        let (cells, rows): (Vec<Cell>, Vec<Vec<Child<'a>>>) = rows
            .into_iter()
            .map(|(cell, row)| {
                let kept = row.into_iter().filter(|(round, _)| rounds.contains(round));
                (cell, kept.map(|(_, child)| child).collect())
            })
            .unzip();
        let ln: Vec<Vec<f64>> = rows
            .iter()
            .map(|row: &Vec<Child<'_>>| row.iter().map(|child| child.median.ln()).collect())
            .collect();
        let design = BlockedDesign::fit(&ln)?;
        Some(Self {
            cells,
            rows,
            design,
        })
    }

    fn ln_time(&self, cell: Cell) -> Option<f64> {
        let index = self.cells.iter().position(|it| *it == cell)?;
        self.design.means.get(index).copied()
    }
}

/// Reads the probes that were timed on several numbers of devices. `None` where there are none.
pub fn analyze(definition: &StudyDefinition, evidence: &Evidence) -> Option<DevicesAnalysis> {
    let devices = definition.device.count;
    if devices < 2 {
        return None;
    }
    let evidence = evidence.series(SERIES);
    let table = Table::read(&evidence)?;
    let half = table.design.half_width(CONFIDENCE);
    let half_of_ratio = table.design.difference_half_width(CONFIDENCE);
    let points: Vec<DevicesPoint> = table
        .cells
        .iter()
        .zip(&table.rows)
        .zip(&table.design.means)
        .map(|((&(batch_size, count), row), ln)| DevicesPoint {
            batch_size,
            devices: count,
            time_per_step_secs: Estimate::of_ln(*ln, half),
            speed_up: table
                .ln_time((batch_size, 1))
                .filter(|_| count > 1)
                .map(|alone| Estimate::of_ln(alone - ln, half_of_ratio)),
            probe_ids: row.iter().map(|child| child.probe.id).collect(),
        })
        .collect();
    let communication = table
        .cells
        .iter()
        .filter(|(_, count)| *count == devices)
        .filter_map(|&(size, _)| communication(&table, size, devices, half_of_ratio))
        .collect();
    let model = fit(&points);
    let children: Vec<&ProbeRecord> = table.rows.iter().flatten().map(|it| it.probe).collect();
    let mut caveats: Vec<Caveat> = contention(&children).into_iter().collect();
    if table.design.blocks < 2 {
        caveats.push(Caveat {
            code: "W_UNRELIABLE".into(),
            detail: "every number of devices was timed in one round only, so nothing can be told from chance".into(),
        });
    }
    if let Some(model) = model
        .as_ref()
        .filter(|it| it.max_residual > TRUSTED_RESIDUAL)
    {
        caveats.push(Caveat {
            code: "W_DEVICES_MISFIT".into(),
            detail: format!(
                "times on several numbers of devices lie up to {:.0}% off the curve that the figures for fewer devices are read from",
                model.max_residual.exp_m1() * 100.0
            ),
        });
    }
    Some(DevicesAnalysis {
        devices,
        rounds: table.design.blocks,
        points,
        communication,
        model,
        by_count: Vec::new(),
        caveats,
    })
}

fn communication(
    table: &Table<'_>,
    size: BatchSize,
    devices: u32,
    half_width: Option<f64>,
) -> Option<CommunicationPoint> {
    let together = table.ln_time((size, devices))?;
    let alone = table.ln_time((BatchSize(size.0 / u64::from(devices)), 1))?;
    let share = |ln_ratio: f64| -ln_ratio.exp_m1();
    let ln = alone - together;
    let share = Estimate {
        value: share(ln),
        ci_lower: half_width.map(|half| share(ln + half)),
        ci_upper: half_width.map(|half| share(ln - half)),
    };
    let is_bound = match (share.ci_lower, share.ci_upper) {
        (Some(lower), _) if lower >= COMMUNICATION_BOUND => Some(true),
        (_, Some(upper)) if upper < COMMUNICATION_BOUND => Some(false),
        _ => None,
    };
    Some(CommunicationPoint {
        batch_size: size,
        together_secs: together.exp(),
        alone_secs: alone.exp(),
        share,
        is_bound,
    })
}

/// What each of the five terms is multiplied with: α, β, c₀, λ, V/bw.
fn terms(size: f64, count: u32) -> [f64; 5] {
    let count = f64::from(count);
    let others = count - 1.0;
    let is_several = f64::from(u8::from(others > 0.0));
    [
        1.0,
        size / count,
        is_several,
        2.0 * others,
        2.0 * others / count,
    ]
}

/// Fits t(B, n). The terms are positive, so their logarithms are what is sought.
pub fn fit(points: &[DevicesPoint]) -> Option<DevicesModel> {
    let shares: BTreeSet<u64> = points
        .iter()
        .map(|it| it.batch_size.0 / u64::from(it.devices))
        .collect();
    let several: BTreeSet<u32> = points
        .iter()
        .map(|it| it.devices)
        .filter(|count| *count > 1)
        .collect();
    // α and β, and what communication adds on each number of devices.
    if shares.len() < 2 || several.is_empty() || points.len() < 2 + several.len() {
        return None;
    }
    let secs = |it: &DevicesPoint| it.time_per_step_secs.value;
    let least = points.iter().map(secs).reduce(f64::min)?;
    let largest_share = *shares.last()? as f64;
    let most = points.iter().map(secs).reduce(f64::max)?;
    let start = [
        0.5 * least,
        0.5 * most / largest_share,
        0.1 * least,
        0.01 * least,
        0.1 * least,
    ]
    .map(f64::ln);
    let fit = least_squares(start, Loss::SoftL1(FIT_SCALE), |parameters, push| {
        for point in points {
            let terms = terms(point.batch_size.as_f64(), point.devices);
            let parts: [f64; 5] = std::array::from_fn(|it| parameters[it].exp() * terms[it]);
            let whole: f64 = parts.iter().sum();
            push(whole.ln() - secs(point).ln(), parts.map(|it| it / whole));
        }
    })?;
    let [
        fixed_secs,
        secs_per_example,
        start_secs,
        latency_secs,
        transfer_secs,
    ] = fit.parameters.map(f64::exp);
    let parts = CommunicationParts {
        start_secs,
        latency_secs,
        transfer_secs,
    };
    let mut model = DevicesModel {
        fixed_secs,
        secs_per_example,
        communication: several
            .iter()
            .map(|count| CommunicationCost {
                devices: *count,
                secs: parts.secs(*count),
            })
            .collect(),
        parts: (several.len() >= PARTS_TOLD_FROM).then_some(parts),
        max_residual: 0.0,
    };
    model.max_residual = points
        .iter()
        .filter_map(|it| {
            let fitted = model.time_per_step(it.batch_size.as_f64(), it.devices)?;
            Some((secs(it) / fitted).ln().abs())
        })
        .fold(0.0, f64::max);
    Some(model)
}

impl CommunicationParts {
    /// What communication adds to a step of so many devices, seconds.
    pub fn secs(&self, devices: u32) -> f64 {
        let [_, _, start, latency, transfer] = terms(0.0, devices);
        start * self.start_secs + latency * self.latency_secs + transfer * self.transfer_secs
    }
}

impl DevicesModel {
    /// t(B, n), seconds; none for a number of devices that was not timed, unless the parts of communication are known.
    pub fn time_per_step(&self, batch_size: f64, devices: u32) -> Option<f64> {
        let known = self.communication.iter().find(|it| it.devices == devices);
        let communication = match (devices, known, &self.parts) {
            (0 | 1, _, _) => 0.0,
            (_, Some(known), _) => known.secs,
            (_, None, parts) => parts.as_ref()?.secs(devices),
        };
        let share = batch_size / f64::from(devices.max(1));
        Some(self.fixed_secs + self.secs_per_example * share + communication)
    }
}

/// The largest share of a batch that one device was seen to hold.
fn largest_share_held(devices: &DevicesAnalysis, largest_feasible: Option<BatchSize>) -> u64 {
    let all = u64::from(devices.devices.max(1));
    let timed = devices
        .points
        .iter()
        .map(|it| it.batch_size.0 / u64::from(it.devices.max(1)));
    timed
        .chain(largest_feasible.map(|size| size.0 / all))
        .max()
        .unwrap_or(0)
}

/// Training to the target on each number of devices that was timed: times of all devices as they were measured, scaled
/// to fewer by the fitted curve.
pub fn by_count(
    definition: &StudyDefinition,
    devices: &DevicesAnalysis,
    throughput: &ThroughputAnalysis,
    feasibility: &Feasibility,
    fit: &StepsFit,
    sizes: &[BatchSize],
) -> Vec<DeviceCountPoint> {
    let Some(model) = &devices.model else {
        return Vec::new();
    };
    let timed: BTreeSet<u32> = devices.points.iter().map(|it| it.devices).collect();
    let largest_share = largest_share_held(devices, feasibility.largest_feasible);
    let holds = |size: BatchSize, count: u32| {
        fits(definition, feasibility, (size, count)) && size.0 / u64::from(count) <= largest_share
    };
    let ln_error = BlockedDesign::fit(&throughput.ln_time_per_step)
        .and_then(|design| design.half_width(CONFIDENCE))
        .map_or(0.0, |half| half / STANDARD_ERRORS);
    let price = Price::of_device_hours(definition);
    let mut points: Vec<DeviceCountPoint> = timed
        .into_iter()
        .filter_map(|count| {
            let candidates = throughput
                .points
                .iter()
                .filter(|it| sizes.contains(&it.batch_size) && holds(it.batch_size, count));
            candidates
                .filter_map(|it| {
                    let size = it.batch_size.as_f64();
                    let scale = model.time_per_step(size, count)?
                        / model.time_per_step(size, devices.devices)?;
                    let ln_steps: Vec<f64> = fit
                        .draws
                        .iter()
                        .map(|curve| curve.ln_steps(size.ln()))
                        .collect();
                    let ln_sd = standard_deviation(&ln_steps)
                        .unwrap_or(0.0)
                        .hypot(ln_error)
                        .hypot(if count == devices.devices {
                            0.0
                        } else {
                            model.max_residual
                        });
                    let ln_time =
                        fit.curve.ln_steps(size.ln()) + (it.mean_time_per_step_secs * scale).ln();
                    let time = Estimate::of_ln(ln_time, Some(STANDARD_ERRORS * ln_sd));
                    let device_secs = time.scaled(f64::from(count));
                    Some(DeviceCountPoint {
                        devices: count,
                        batch_size: it.batch_size,
                        training_time_secs: time,
                        device_secs,
                        money: price.map(|second| device_secs.scaled(second)),
                        resources_over_least: 1.0,
                    })
                })
                .min_by(|a, b| {
                    let minimised = |it: &DeviceCountPoint| match definition.objective {
                        Objective::MinimizeResourceConsumption => it.device_secs.value,
                        Objective::MinimizeTrainingTime | Objective::Pareto => {
                            it.training_time_secs.value
                        }
                    };
                    minimised(a).total_cmp(&minimised(b))
                })
        })
        .collect();
    let least = points
        .iter()
        .map(|it| it.device_secs.value)
        .fold(f64::INFINITY, f64::min);
    for point in &mut points {
        point.resources_over_least = point.device_secs.value / least;
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::fixtures::timed;

    #[test]
    fn numbers_of_devices_halve_and_share_out_every_batch() {
        assert_eq!(counts(1), [1]);
        assert_eq!(counts(2), [2, 1]);
        assert_eq!(counts(7), [7, 1]);
        assert_eq!(counts(8), [8, 4, 2, 1]);
        assert_eq!(counts(12), [12, 6, 3, 1]);
        for devices in 1..=64 {
            assert!(counts(devices).iter().all(|it| devices.is_multiple_of(*it)));
        }
    }

    fn probe(size: u64, count: u32, round: u32, secs: f64) -> ProbeRecord {
        let mut probe = timed(size, round, secs);
        probe.spec.device.count = count;
        probe
    }

    fn cells(list: &[Cell], rounds: u32, secs: impl Fn(Cell, u32) -> f64) -> Evidence {
        let probes = (0..rounds)
            .flat_map(|round| list.iter().map(move |cell| (*cell, round)))
            .map(|(cell, round)| probe(cell.0.0, cell.1, round, secs(cell, round)))
            .collect();
        Evidence { probes }
    }

    #[test]
    fn a_round_that_is_slow_for_all_changes_no_share_and_a_cell_that_failed_is_left_out() {
        let list = [(BatchSize(64), 2), (BatchSize(32), 1), (BatchSize(64), 1)];
        let mut evidence = cells(&list, 3, |(size, count), round| {
            let alone = 1e-3 + 1e-5 * size.as_f64() / f64::from(count);
            let together = alone + if count > 1 { 5e-4 } else { 0.0 };
            together * (1.0 + f64::from(round))
        });
        let table = Table::read(&evidence).expect("a table");
        let half = table.design.difference_half_width(CONFIDENCE);
        let found = communication(&table, BatchSize(64), 2, half).expect("a share");
        assert!(
            (found.share.value - 5e-4 / 1.82e-3).abs() < 1e-9,
            "{found:?}"
        );
        assert_eq!(found.is_bound, Some(true));
        evidence
            .probes
            .retain(|it| it.spec.replicate != 2 || it.batch_size() != BatchSize(32));
        let table = Table::read(&evidence).expect("a table");
        assert_eq!(table.cells, [(BatchSize(64), 1), (BatchSize(64), 2)]);
    }

    #[test]
    fn one_device_is_given_no_batch_beyond_what_one_was_seen_to_hold() {
        let point = |size: u64, devices: u32| DevicesPoint {
            batch_size: BatchSize(size),
            devices,
            time_per_step_secs: Estimate::of_ln(0.0, None),
            speed_up: None,
            probe_ids: Vec::new(),
        };
        let analysis = DevicesAnalysis {
            devices: 8,
            points: vec![point(512, 8), point(512, 4), point(64, 1)],
            ..DevicesAnalysis::default()
        };
        assert_eq!(largest_share_held(&analysis, None), 128);
        let largest = Some(BatchSize(60_000));
        assert_eq!(largest_share_held(&analysis, largest), 7_500);
    }

    #[test]
    fn two_devices_tell_what_communication_takes_but_not_of_what_it_is_made() {
        let list: Vec<Cell> = [16, 64, 256]
            .into_iter()
            .flat_map(|size| [(BatchSize(size), 1), (BatchSize(size), 2)])
            .collect();
        let truth = |(size, count): Cell| {
            1e-3 + 2e-5 * size.as_f64() / f64::from(count) + if count > 1 { 7e-4 } else { 0.0 }
        };
        let points: Vec<DevicesPoint> = list
            .iter()
            .map(|cell| DevicesPoint {
                batch_size: cell.0,
                devices: cell.1,
                time_per_step_secs: Estimate::of_ln(truth(*cell).ln(), None),
                speed_up: None,
                probe_ids: Vec::new(),
            })
            .collect();
        let model = fit(&points).expect("a fit");
        assert!(model.max_residual < 0.01, "{model:?}");
        assert!(
            (model.communication[0].secs - 7e-4).abs() < 3e-5,
            "{model:?}"
        );
        assert_eq!(model.parts, None);
        assert_eq!(model.time_per_step(64.0, 4), None);
        let at = model.time_per_step(128.0, 2).expect("was timed");
        assert!((at / truth((BatchSize(128), 2)) - 1.0).abs() < 0.02, "{at}");
    }
}

//! Peak memory against batch size, m(B) = a + b·B, and what follows from it under a budget.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Evidence, ProbeRecord};
use crate::probe::{Metric, ProbeKind};
use crate::statistics::intervals::two_sided_t;
use crate::statistics::regression::weighted_line;
use crate::study::{BatchSize, Bytes, ProbeId, StudyDefinition};

/// Peak memory at one batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryPoint {
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Peak of what the limit limits; null when the probe ran out of memory.
    pub peak_bytes: Option<Bytes>,
    /// Peak resident memory, for comparison; null where the platform does not tell.
    pub peak_resident_bytes: Option<Bytes>,
    /// Peak of what was allocated and not freed; null where it is not known.
    pub peak_in_use_bytes: Option<Bytes>,
    /// Whether it ran within the limit.
    pub fits: bool,
    /// What was predicted before it ran; null when nothing could be.
    pub prediction: Option<MemoryPrediction>,
    /// Predicted over measured, less 1; null without one of them.
    pub prediction_error: Option<f64>,
    /// The probe that measured it.
    pub probe_id: ProbeId,
}

/// Weighted least squares fit of m(B) = a + b·B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryFit {
    /// a: parameters, optimizer state and the process itself, bytes.
    pub fixed_bytes: f64,
    /// b: activations, bytes per example.
    pub bytes_per_example: f64,
    /// Points that the fit uses.
    pub points: u64,
    /// Largest relative residual over those points.
    pub max_relative_residual: f64,
}

impl MemoryFit {
    /// Predicted peak at a batch size, bytes.
    pub fn predict(&self, batch_size: BatchSize) -> f64 {
        self.fixed_bytes + self.bytes_per_example * batch_size.as_f64()
    }
}

/// A peak predicted before it is measured, with its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryPrediction {
    /// Predicted peak.
    pub peak_bytes: Bytes,
    /// Lower end of the interval.
    pub ci_lower: Bytes,
    /// Upper end of the interval.
    pub ci_upper: Bytes,
}

/// What memory goes into. What does not grow with the batch was allocated before the first step or stays
/// between steps; what grows is the slope of the fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemorySplit {
    /// The data set, where it is not mapped from a file.
    pub dataset_bytes: Bytes,
    /// The model's parameters.
    pub parameter_bytes: Bytes,
    /// What stays between steps beyond these: the optimizer's state, batches loaded ahead.
    pub optimizer_state_bytes: Bytes,
    /// Activations and their gradients, bytes per example; null before memory has grown with the batch.
    pub activation_bytes_per_example: Option<f64>,
    /// The rest of what does not grow: the process, the threads' stacks, gradients of the parameters;
    /// null without a fit.
    pub other_fixed_bytes: Option<f64>,
}

/// What is known about memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryAnalysis {
    /// What was measured, by batch size.
    pub points: Vec<MemoryPoint>,
    /// The fit; null with fewer than two batch sizes measured, or where memory does not grow.
    pub fit: Option<MemoryFit>,
    /// What memory goes into; null where the runner does not tell.
    pub split: Option<MemorySplit>,
    /// The study's memory budget M.
    pub budget_bytes: Bytes,
    /// Kept free of it: max(5% of M, min(512 MiB, 10% of M)).
    pub reserve_bytes: Bytes,
    /// Largest batch size that ran within the budget, whatever the reserve.
    pub largest_that_ran: Option<BatchSize>,
    /// Smallest batch size that ran out of memory.
    pub smallest_out_of_memory: Option<BatchSize>,
}

/// A peak below this times the smallest batch size's is not told from noise: there the process
/// itself, not the activations, is the peak. Chosen: twice the page and allocator noise of about 1%.
const FLAT_GROWTH: f64 = 1.02;

/// Points that grow which must remain before flat ones are dropped: a line through two shows no misfit.
const MIN_GROWING_POINTS: usize = 3;

/// Share of any budget kept free. Chosen: fragmentation and the run-to-run scatter of the peak.
const RESERVE_SHARE: f64 = 0.05;
/// Share of a small budget kept free. Chosen, so that the absolute reserve does not eat it up.
const RESERVE_MAX_SHARE: f64 = 0.10;
/// Kept free where 5% is less and 10% more. Chosen: what a framework allocates late and for good
/// (workspaces, a first evaluation) is of this order whatever the model.
const RESERVE_ENOUGH: u64 = 512 * Bytes::MIB;

/// What is kept free of a budget M: max(5% of M, min(512 MiB, 10% of M)).
pub fn reserve(budget: Bytes) -> Bytes {
    let small = (RESERVE_MAX_SHARE * budget.as_f64()).min(RESERVE_ENOUGH as f64);
    Bytes((RESERVE_SHARE * budget.as_f64()).max(small) as u64)
}

/// The points that a fit uses.
fn used(points: &[(BatchSize, f64)]) -> Option<Vec<(BatchSize, f64)>> {
    let (_, floor) = points.iter().min_by_key(|(batch_size, _)| *batch_size)?;
    let growing: Vec<_> = points
        .iter()
        .copied()
        .filter(|(_, peak)| *peak >= FLAT_GROWTH * floor)
        .collect();
    Some(if growing.len() >= MIN_GROWING_POINTS {
        growing
    } else {
        points.to_vec()
    })
}

/// Fits m(B) = a + b·B to (batch size, peak bytes), weights ∝ √B. Small batch sizes whose peak is
/// not told from the smallest one's are left out once three others remain: there the process
/// itself is the peak. `None` with fewer than two batch sizes, or when memory does not grow.
pub fn fit(points: &[(BatchSize, f64)]) -> Option<MemoryFit> {
    let used = used(points)?;
    let weighted: Vec<_> = used
        .iter()
        .map(|(batch_size, peak)| {
            let b = batch_size.as_f64();
            (b, *peak, b.sqrt())
        })
        .collect();
    let line = weighted_line(&weighted)?;
    if line.slope <= 0.0 {
        return None;
    }
    let residual = |(batch_size, peak): &(BatchSize, f64)| {
        ((line.intercept + line.slope * batch_size.as_f64()) / peak - 1.0).abs()
    };
    Some(MemoryFit {
        fixed_bytes: line.intercept,
        bytes_per_example: line.slope,
        points: used.len() as u64,
        max_relative_residual: used.iter().map(residual).fold(0.0, f64::max),
    })
}

/// Scatter of a peak from run to run that is assumed before residuals tell, relative: heaps fragment.
const USUAL_SCATTER: f64 = 0.015;
/// How many residuals that assumption is worth.
const USUAL_SCATTER_FREEDOM: f64 = 3.0;
/// Nothing is predicted further beyond the largest batch size measured than this factor: twice the search's
/// stride.
const MOST_EXTRAPOLATED: f64 = 16.0;
/// Nor from two points unless one is twice the other: a first workspace, taken once, looks like growth.
const DOUBLED: f64 = 2.0;
/// Confidence of a prediction's interval.
const PREDICTION_CONFIDENCE: f64 = 0.95;

/// Predicts the peak at a batch size from the line through what was measured, with a 95% interval. Every
/// peak scatters in proportion to itself; by how much comes from the residuals, pooled with what is usual.
/// `None` where [`fit`] has no line, or too little is known yet.
pub fn predict(points: &[(BatchSize, f64)], size: BatchSize) -> Option<MemoryPrediction> {
    let model = fit(points)?;
    let used = used(points)?;
    let least = used
        .iter()
        .map(|(_, peak)| *peak)
        .fold(f64::INFINITY, f64::min);
    let most = used.iter().map(|(_, peak)| *peak).fold(0.0, f64::max);
    let largest = used
        .iter()
        .map(|(size, _)| size.as_f64())
        .fold(0.0, f64::max);
    if size.as_f64() > MOST_EXTRAPOLATED * largest
        || (used.len() < MIN_GROWING_POINTS && most < DOUBLED * least)
    {
        return None;
    }
    let at = |size: BatchSize| model.predict(size);
    // The prediction is linear in the peaks: Σ cᵢ mᵢ.
    let weight = |size: BatchSize| size.as_f64().sqrt();
    let total: f64 = used.iter().map(|(size, _)| weight(*size)).sum();
    let mean = used
        .iter()
        .map(|(size, _)| weight(*size) * size.as_f64())
        .sum::<f64>()
        / total;
    let spread: f64 = used
        .iter()
        .map(|(size, _)| weight(*size) * (size.as_f64() - mean).powi(2))
        .sum();
    let coefficient = |of: BatchSize| {
        weight(of) * (1.0 / total + (size.as_f64() - mean) * (of.as_f64() - mean) / spread)
    };
    let residuals: f64 = used
        .iter()
        .map(|(size, peak)| (peak / at(*size) - 1.0).powi(2))
        .sum();
    let freedom = USUAL_SCATTER_FREEDOM + used.len() as f64 - 2.0;
    let scatter = ((USUAL_SCATTER_FREEDOM * USUAL_SCATTER.powi(2) + residuals) / freedom).sqrt();
    let variance: f64 = used
        .iter()
        .map(|(size, _)| (coefficient(*size) * at(*size)).powi(2))
        .sum::<f64>()
        + at(size).powi(2);
    let half = two_sided_t(PREDICTION_CONFIDENCE, freedom)? * scatter * variance.sqrt();
    let bytes = |value: f64| Bytes(value.max(0.0) as u64);
    Some(MemoryPrediction {
        peak_bytes: bytes(at(size)),
        ci_lower: bytes(at(size) - half),
        ci_upper: bytes(at(size) + half),
    })
}

/// Peaks by batch size, as far as memory probes and confirmations measured them.
pub fn peaks(evidence: &Evidence) -> Vec<(BatchSize, f64)> {
    evidence
        .probes
        .iter()
        .filter(|probe| matches!(probe.kind(), ProbeKind::Memory | ProbeKind::Confirmation))
        .filter(|probe| probe.succeeded())
        .filter_map(|probe| Some((probe.batch_size(), probe.figure(Metric::PeakMemory)?)))
        .collect()
}

/// The least that any probe saw, which is without the workspaces that larger batches ask for and that stay
/// between steps too; what grows, from the fit.
fn split(evidence: &Evidence, fit: Option<&MemoryFit>) -> Option<MemorySplit> {
    let bytes = |metric: Metric| -> Option<Bytes> {
        evidence
            .probes
            .iter()
            .filter(|probe| probe.succeeded())
            .filter_map(|probe| probe.figure(metric))
            .min_by(f64::total_cmp)
            .map(|bytes| Bytes(bytes as u64))
    };
    let dataset_bytes = bytes(Metric::DatasetMemory)?;
    let parameter_bytes = bytes(Metric::ParameterMemory)?;
    let optimizer_state_bytes = bytes(Metric::OptimizerStateMemory)?;
    let known = dataset_bytes.as_f64() + parameter_bytes.as_f64() + optimizer_state_bytes.as_f64();
    Some(MemorySplit {
        dataset_bytes,
        parameter_bytes,
        optimizer_state_bytes,
        activation_bytes_per_example: fit.map(|fit| fit.bytes_per_example),
        other_fixed_bytes: fit.map(|fit| fit.fixed_bytes - known),
    })
}

/// Reads the memory probes and what confirmations measured. `None` while the budget is not known, or
/// before the first of them ended.
pub fn analyze(definition: &StudyDefinition, evidence: &Evidence) -> Option<MemoryAnalysis> {
    let budget = definition.device.resolved()?.memory_budget;
    let mut points: Vec<MemoryPoint> = evidence
        .probes
        .iter()
        .filter(|probe| matches!(probe.kind(), ProbeKind::Memory | ProbeKind::Confirmation))
        .filter_map(|probe| point(probe, budget))
        .collect();
    if points.is_empty() {
        return None;
    }
    points.sort_by_key(|point| point.batch_size);
    let measured: Vec<(BatchSize, f64)> = points
        .iter()
        .filter_map(|point| Some((point.batch_size, point.peak_bytes?.as_f64())))
        .collect();
    let fit = fit(&measured);
    // A longer run may run out where a short one did not: then the batch size does not fit.
    let never_ran_out = |size: BatchSize| {
        points
            .iter()
            .filter(|point| point.batch_size == size)
            .all(|point| point.fits)
    };
    Some(MemoryAnalysis {
        split: split(evidence, fit.as_ref()),
        fit,
        budget_bytes: budget,
        reserve_bytes: reserve(budget),
        largest_that_ran: points
            .iter()
            .map(|point| point.batch_size)
            .filter(|size| never_ran_out(*size))
            .max(),
        smallest_out_of_memory: points
            .iter()
            .filter(|point| point.peak_bytes.is_none())
            .map(|point| point.batch_size)
            .min(),
        points,
    })
}

/// What a probe tells of memory, if it ran or ran out.
fn point(probe: &ProbeRecord, budget: Bytes) -> Option<MemoryPoint> {
    let ran = |metric| {
        probe
            .figure(metric)
            .filter(|_| probe.succeeded())
            .map(|bytes| Bytes(bytes as u64))
    };
    let peak_bytes = ran(Metric::PeakMemory);
    let prediction = probe.prediction;
    (peak_bytes.is_some() || probe.out_of_memory()).then(|| MemoryPoint {
        batch_size: probe.batch_size(),
        peak_bytes,
        peak_resident_bytes: ran(Metric::PeakResidentMemory),
        peak_in_use_bytes: ran(Metric::PeakMemoryInUse),
        fits: peak_bytes.is_some_and(|peak| peak <= budget),
        prediction,
        prediction_error: prediction
            .zip(peak_bytes)
            .map(|(predicted, peak)| predicted.peak_bytes.as_f64() / peak.as_f64() - 1.0),
        probe_id: probe.id,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::analysis::fixtures::succeeded;
    use crate::probe::{InfeasibleReason, ProbeState, Task};
    use crate::study::{
        Backend, BatchSizes, Budget, DeviceChoice, Grid, MaxFrom, Objective, Question, Resolution,
    };

    const BUDGET: u64 = 1000 * Bytes::MIB;

    fn definition() -> StudyDefinition {
        let spec = succeeded(Task::Memory { steps: 5 }, 1, 0, &[]).spec;
        StudyDefinition {
            name: "test".into(),
            labels: std::collections::BTreeMap::new(),
            workload: spec.workload,
            runner: Default::default(),
            model_from: crate::study::ModelFrom::Study,
            optimizer: spec.optimizer,
            schedule: spec.schedule,
            gradient_clipping: spec.gradient_clipping,
            batch_sizes: BatchSizes {
                min: BatchSize(1),
                max: BatchSize(1 << 20),
                max_from: MaxFrom::Range,
                grid: Grid::PowersOfTwo,
                resolution: Resolution::OneThirtySecond,
            },
            device: DeviceChoice {
                backend: Backend::Cpu,
                model: Some("test".into()),
                count: 1,
                memory_budget_bytes: Some(Bytes(BUDGET)),
                threads: Some(2),
            },
            objective: Objective::MinimizeTrainingTime,
            budget: Budget::default(),
            questions: Question::usual(false),
            costs: crate::study::Costs::default(),
            project_phase: crate::study::ProjectPhase::Early,
            search: crate::study::Search::default(),
            design: crate::study::Design::Adaptive,
            quality: Default::default(),
            optimizers: Default::default(),
            batch_norm: Default::default(),
            reuse: true,
            priority: 0,
            seed: 0,
        }
    }

    /// 100 MiB and 1 MiB an example.
    fn ran(task: Task, batch_size: u64) -> ProbeRecord {
        let peak = ((100 + batch_size) * Bytes::MIB) as f64;
        let figures = [
            (Metric::PeakMemory, peak),
            (Metric::PeakResidentMemory, peak / 2.0),
        ];
        succeeded(task, batch_size, 0, &figures)
    }

    fn ran_out(task: Task, batch_size: u64) -> ProbeRecord {
        ProbeRecord {
            state: ProbeState::Infeasible,
            infeasible: Some(InfeasibleReason::OutOfMemory),
            ..ran(task, batch_size)
        }
    }

    const MEMORY: Task = Task::Memory { steps: 5 };
    const CONFIRMATION: Task = Task::Confirmation { steps: 200 };

    #[test]
    fn what_ran_and_what_ran_out_is_read_from_searches_and_confirmations() {
        let mut crashed = ran(MEMORY, 2);
        crashed.state = ProbeState::Failed;
        let evidence = Evidence {
            probes: vec![
                ran(MEMORY, 8),
                ran(MEMORY, 1),
                ran(MEMORY, 64),
                ran_out(MEMORY, 4096),
                ran_out(MEMORY, 901),
                ran(MEMORY, 800),
                ran(CONFIRMATION, 700),
                crashed,
            ],
        };
        let analysis = analyze(&definition(), &evidence).expect("an analysis");
        let sizes: Vec<u64> = analysis.points.iter().map(|it| it.batch_size.0).collect();
        assert_eq!(sizes, [1, 8, 64, 700, 800, 901, 4096]);
        assert_eq!(analysis.largest_that_ran, Some(BatchSize(800)));
        assert_eq!(analysis.smallest_out_of_memory, Some(BatchSize(901)));
        assert_eq!(analysis.points[5].peak_bytes, None);
        assert_eq!(
            analysis.points[0].peak_resident_bytes,
            Some(Bytes(101 * Bytes::MIB / 2))
        );
        assert_eq!(analysis.reserve_bytes, Bytes(100 * Bytes::MIB));
        let fit = analysis.fit.expect("a fit");
        assert!((fit.bytes_per_example / Bytes::MIB as f64 - 1.0).abs() < 1e-9);
        assert!((fit.fixed_bytes / (100 * Bytes::MIB) as f64 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_batch_size_that_a_confirmation_ran_out_of_memory_at_did_not_fit() {
        let evidence = Evidence {
            probes: vec![
                ran(MEMORY, 400),
                ran(MEMORY, 800),
                ran_out(CONFIRMATION, 800),
            ],
        };
        let analysis = analyze(&definition(), &evidence).expect("an analysis");
        assert_eq!(analysis.largest_that_ran, Some(BatchSize(400)));
        assert_eq!(analysis.smallest_out_of_memory, Some(BatchSize(800)));
    }

    #[test]
    fn a_run_above_the_budget_shows_the_line_but_does_not_fit() {
        let evidence = Evidence {
            probes: vec![ran(MEMORY, 400), ran(MEMORY, 950)],
        };
        let analysis = analyze(&definition(), &evidence).expect("an analysis");
        assert_eq!(analysis.largest_that_ran, Some(BatchSize(400)));
        assert_eq!(analysis.smallest_out_of_memory, None);
        assert_eq!(analysis.fit.expect("a fit").points, 2);
    }

    #[test]
    fn nothing_is_said_before_the_budget_or_a_peak_is_known() {
        let evidence = Evidence {
            probes: vec![ran(MEMORY, 8)],
        };
        let mut unresolved = definition();
        unresolved.device.memory_budget_bytes = None;
        assert_eq!(analyze(&unresolved, &evidence), None);
        assert_eq!(analyze(&definition(), &Evidence::default()), None);
    }

    proptest! {
        #[test]
        fn a_known_line_is_found_again(a in 1e6..1e9_f64, b in 1e3..1e6_f64) {
            let points: Vec<_> = [1_u64, 8, 64, 512, 4096]
                .iter()
                .map(|&batch_size| (BatchSize(batch_size), a + b * batch_size as f64))
                .collect();
            let fit = fit(&points).expect("a fit");
            prop_assert!((fit.bytes_per_example / b - 1.0).abs() < 1e-6);
            prop_assert!((fit.predict(BatchSize(10_000)) / (a + b * 1e4) - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn a_floor_of_the_process_does_not_bend_the_line() {
        let peak = |batch_size: u64| (1e4 * batch_size as f64 + 5e6).max(50e6);
        let points: Vec<_> = [1_u64, 8, 64, 8192, 16384, 32768]
            .iter()
            .map(|&batch_size| (BatchSize(batch_size), peak(batch_size)))
            .collect();
        let fit = fit(&points).expect("a fit");
        assert_eq!(fit.points, 3);
        assert!((fit.bytes_per_example / 1e4 - 1.0).abs() < 1e-6, "{fit:?}");
    }

    #[test]
    fn the_reserve_is_a_tenth_then_half_a_gib_then_a_twentieth() {
        assert_eq!(reserve(Bytes(1000)), Bytes(100));
        assert_eq!(reserve(Bytes(8 * Bytes::GIB)), Bytes(512 * Bytes::MIB));
        assert_eq!(
            reserve(Bytes(80 * Bytes::GIB)),
            Bytes((80.0 * Bytes::GIB as f64 * 0.05) as u64)
        );
    }

    #[test]
    fn predictions_hold_the_truth_as_often_as_they_say() {
        use rand::SeedableRng;
        use rand_distr::{Distribution, Normal};
        // Peaks that scatter as assumed or more, a search that has seen 1, 8, 64, 512 and asks for 4096.
        for scatter in [0.015, 0.02, 0.025] {
            let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
            let noise = Normal::new(1.0, scatter).expect("a distribution");
            let held = (0..2000)
                .filter(|_| {
                    let mut peak =
                        |size: u64| (50e6 + 1e5 * size as f64) * noise.sample(&mut random);
                    let seen = [1, 8, 64, 512].map(|size| (BatchSize(size), peak(size)));
                    let predicted = predict(&seen, BatchSize(4096)).expect("a prediction");
                    let measured = peak(4096);
                    (predicted.ci_lower.as_f64()..=predicted.ci_upper.as_f64()).contains(&measured)
                })
                .count();
            let share = held as f64 / 2000.0;
            assert!((0.92..=0.995).contains(&share), "{share} at {scatter}");
        }
    }

    #[test]
    fn what_was_predicted_is_kept_beside_what_was_measured() {
        let predicted = MemoryPrediction {
            peak_bytes: Bytes(510 * Bytes::MIB),
            ci_lower: Bytes(490 * Bytes::MIB),
            ci_upper: Bytes(530 * Bytes::MIB),
        };
        let evidence = Evidence {
            probes: vec![ProbeRecord {
                prediction: Some(predicted),
                ..ran(MEMORY, 400)
            }],
        };
        let analysis = analyze(&definition(), &evidence).expect("an analysis");
        let point = &analysis.points[0];
        assert_eq!(point.prediction, Some(predicted));
        let error = point.prediction_error.expect("both are known");
        assert!((error - 0.02).abs() < 1e-9, "{error}");
    }

    #[test]
    fn memory_is_split_into_what_grows_and_what_stays() {
        let told = |size: u64, workspace: u64| {
            let mut probe = ran(MEMORY, size);
            probe.figures.extend([
                (Metric::DatasetMemory, (10 * Bytes::MIB) as f64),
                (Metric::ParameterMemory, (20 * Bytes::MIB) as f64),
                (
                    Metric::OptimizerStateMemory,
                    ((40 + workspace) * Bytes::MIB) as f64,
                ),
            ]);
            probe
        };
        let evidence = Evidence {
            probes: vec![told(1, 0), told(400, 7)],
        };
        let split = analyze(&definition(), &evidence)
            .and_then(|analysis| analysis.split)
            .expect("a split");
        assert_eq!(split.parameter_bytes, Bytes(20 * Bytes::MIB));
        assert_eq!(split.optimizer_state_bytes, Bytes(40 * Bytes::MIB));
        let each = split.activation_bytes_per_example.expect("a fit");
        assert!((each / Bytes::MIB as f64 - 1.0).abs() < 1e-6);
        // 100 MiB stay, 70 of which are known.
        let rest = split.other_fixed_bytes.expect("a fit");
        assert!((rest / (30 * Bytes::MIB) as f64 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn memory_that_does_not_grow_has_no_fit() {
        assert_eq!(fit(&[(BatchSize(1), 5.0), (BatchSize(2), 5.0)]), None);
        assert_eq!(fit(&[(BatchSize(1), 5.0)]), None);
        assert_eq!(fit(&[]), None);
    }
}

//! Peak memory against batch size, m(B) = a + b·B, and what follows from it under a budget.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Evidence, ProbeRecord};
use crate::probe::{Metric, ProbeKind};
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
    /// Whether it ran within the limit.
    pub fits: bool,
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

/// What is known about memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemoryAnalysis {
    /// What was measured, by batch size.
    pub points: Vec<MemoryPoint>,
    /// The fit; null with fewer than two batch sizes measured, or where memory does not grow.
    pub fit: Option<MemoryFit>,
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

/// Fits m(B) = a + b·B to (batch size, peak bytes), weights ∝ √B. Small batch sizes whose peak is
/// not told from the smallest one's are left out once three others remain: there the process
/// itself is the peak. `None` with fewer than two batch sizes, or when memory does not grow.
pub fn fit(points: &[(BatchSize, f64)]) -> Option<MemoryFit> {
    let (_, floor) = points.iter().min_by_key(|(batch_size, _)| *batch_size)?;
    let growing: Vec<_> = points
        .iter()
        .filter(|(_, peak)| *peak >= FLAT_GROWTH * floor)
        .collect();
    let used = if growing.len() >= MIN_GROWING_POINTS {
        growing
    } else {
        points.iter().collect()
    };
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
    let residual = |(batch_size, peak): &&(BatchSize, f64)| {
        ((line.intercept + line.slope * batch_size.as_f64()) / peak - 1.0).abs()
    };
    Some(MemoryFit {
        fixed_bytes: line.intercept,
        bytes_per_example: line.slope,
        points: used.len() as u64,
        max_relative_residual: used.iter().map(residual).fold(0.0, f64::max),
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
    // A longer run may run out where a short one did not: then the batch size does not fit.
    let never_ran_out = |size: BatchSize| {
        points
            .iter()
            .filter(|point| point.batch_size == size)
            .all(|point| point.fits)
    };
    Some(MemoryAnalysis {
        fit: fit(&measured),
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
    (peak_bytes.is_some() || probe.out_of_memory()).then(|| MemoryPoint {
        batch_size: probe.batch_size(),
        peak_bytes,
        peak_resident_bytes: ran(Metric::PeakResidentMemory),
        fits: peak_bytes.is_some_and(|peak| peak <= budget),
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
                memory_budget_bytes: Some(Bytes(BUDGET)),
                threads: Some(2),
            },
            objective: Objective::MinimizeTrainingTime,
            budget: Budget::default(),
            questions: Question::all(),
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
    fn memory_that_does_not_grow_has_no_fit() {
        assert_eq!(fit(&[(BatchSize(1), 5.0), (BatchSize(2), 5.0)]), None);
        assert_eq!(fit(&[(BatchSize(1), 5.0)]), None);
        assert_eq!(fit(&[]), None);
    }
}

//! What gradient accumulation brings: an optimizer step on the gradients of k micro-batches of b examples
//! against a step on b, and against a step on all k·b where those fit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Estimate, Evidence, ProbeRecord};
use crate::probe::{Metric, ProbeKind, Task};
use crate::statistics::blocked::BlockedDesign;
use crate::study::{BatchSize, ProbeId};

/// Gradient accumulation at one micro-batch size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccumulationPoint {
    /// b: examples of a micro-batch.
    pub micro_batch_size: BatchSize,
    /// k: micro-batches of a step.
    pub micro_batches: u64,
    /// k·b: examples of an optimizer step.
    pub batch_size: BatchSize,
    /// Throughput accumulating over throughput at b: k·t(b)/t_accumulated.
    pub throughput_ratio: Estimate,
    /// What that ratio is when accumulation saves k − 1 optimizer steps and costs nothing:
    /// k·t(b)/(k·t(b) − (k − 1)·t_optimizer).
    pub expected_ratio: f64,
    /// Throughput accumulating over throughput of a step on all k·b examples; null where they were not timed.
    pub whole_batch_ratio: Option<Estimate>,
    /// Time of an accumulated step, seconds.
    pub time_per_step_secs: Estimate,
    /// Children that measured it.
    pub replicates: u64,
    /// The probes behind it.
    pub probe_ids: Vec<ProbeId>,
}

/// Confidence of the intervals.
const CONFIDENCE: f64 = 0.95;

/// Reads the `gradient_accumulation` probes, by micro-batch size. Empty before one has ended.
pub fn analyze(evidence: &Evidence) -> Vec<AccumulationPoint> {
    let mut cells = BTreeMap::<(BatchSize, u64), Vec<&ProbeRecord>>::new();
    for probe in evidence
        .of_kind(ProbeKind::GradientAccumulation)
        .filter(|probe| probe.succeeded())
    {
        if let Task::GradientAccumulation(run) = &probe.spec.task {
            let cell = cells.entry((probe.batch_size(), run.micro_batches));
            cell.or_default().push(probe);
        }
    }
    cells
        .into_iter()
        .filter_map(|((size, micro_batches), probes)| point(size, micro_batches, &probes))
        .collect()
}

fn point(
    size: BatchSize,
    micro_batches: u64,
    probes: &[&ProbeRecord],
) -> Option<AccumulationPoint> {
    let k = micro_batches as f64;
    let column = |metric: Metric| -> Option<Vec<f64>> {
        probes.iter().map(|probe| probe.figure(metric)).collect()
    };
    let plain = column(Metric::SyntheticTimePerStep)?;
    let accumulated = column(Metric::AccumulatedTimePerStep)?;
    let forward_backward = column(Metric::ForwardBackwardTimePerStep)?;
    let estimate = |values: Vec<f64>| -> Option<Estimate> {
        let logs = values.into_iter().map(f64::ln).collect();
        let design = BlockedDesign::fit(&[logs])?;
        Some(Estimate::of_ln(
            design.means[0],
            design.half_width(CONFIDENCE),
        ))
    };
    let pairs = |above: &[f64], below: &[f64], factor: f64| -> Vec<f64> {
        above
            .iter()
            .zip(below)
            .map(|(above, below)| factor * above / below)
            .collect()
    };
    let t = estimate(plain.clone())?.value;
    let optimizer = (t - estimate(forward_backward)?.value).max(0.0);
    let whole_batch_ratio = column(Metric::WholeBatchTimePerStep)
        .and_then(|whole| estimate(pairs(&whole, &accumulated, 1.0)));
    Some(AccumulationPoint {
        micro_batch_size: size,
        micro_batches,
        batch_size: BatchSize(size.0.saturating_mul(micro_batches)),
        throughput_ratio: estimate(pairs(&plain, &accumulated, k))?,
        expected_ratio: k * t / (k * t - (k - 1.0) * optimizer),
        whole_batch_ratio,
        time_per_step_secs: estimate(accumulated)?,
        replicates: probes.len() as u64,
        probe_ids: probes.iter().map(|probe| probe.id).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::fixtures::succeeded;
    use crate::probe::{Accumulation, TurnSampling};

    /// A step of 10 ms, 2 of which are the optimizer's; four micro-batches share one.
    fn child(replicate: u32, scatter: f64, whole: Option<f64>) -> ProbeRecord {
        let mut figures = vec![
            (Metric::SyntheticTimePerStep, 10e-3),
            (Metric::ForwardBackwardTimePerStep, 8e-3),
            (Metric::AccumulatedTimePerStep, 34e-3 * scatter),
        ];
        figures.extend(whole.map(|time| (Metric::WholeBatchTimePerStep, time)));
        succeeded(
            Task::GradientAccumulation(Accumulation {
                micro_batches: 4,
                with_whole_batch: whole.is_some(),
                sampling: TurnSampling::default(),
            }),
            16,
            replicate,
            &figures,
        )
    }

    #[test]
    fn the_ratio_is_k_plain_steps_over_an_accumulated_one() {
        let probes = [0.99, 1.0, 1.01]
            .into_iter()
            .enumerate()
            .map(|(index, scatter)| child(index as u32, scatter, Some(17e-3)))
            .collect();
        let points = analyze(&Evidence { probes });
        let [point] = points.as_slice() else {
            panic!("one point: {points:?}");
        };
        assert_eq!((point.micro_batch_size.0, point.batch_size.0), (16, 64));
        assert!((point.throughput_ratio.value / (40.0 / 34.0) - 1.0).abs() < 1e-3);
        assert!((point.expected_ratio / (40.0 / 34.0) - 1.0).abs() < 1e-9);
        let whole = point.whole_batch_ratio.expect("was timed");
        assert!((whole.value - 0.5).abs() < 1e-3);
        assert!(whole.ci_lower < Some(0.5) && whole.ci_upper > Some(0.5));
    }

    #[test]
    fn one_child_has_no_interval_and_none_no_point() {
        let evidence = Evidence {
            probes: vec![child(0, 1.0, None)],
        };
        let points = analyze(&evidence);
        assert_eq!(points[0].throughput_ratio.ci_lower, None);
        assert_eq!(points[0].whole_batch_ratio, None);
        assert!(analyze(&Evidence::default()).is_empty());
    }
}

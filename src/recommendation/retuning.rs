//! What must be measured and tuned again when something changes, and about what that takes: the table of
//! [`study::changes`](crate::study::changes), with the device-seconds that this study's own probes took.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Advice, Basis, Confidence, Grade, Topic, references};
use crate::analysis::{Analysis, Evidence, ProbeRecord};
use crate::probe::inputs::figures;
use crate::probe::{ProbeKind, Task};
use crate::study::{BatchSize, Change, Figure, StudyDefinition};

const PLAYBOOK: &str = "changing-the-batch-size-requires-re-tuning-most-hyperparameters";

/// The changes that a project meets.
const CHANGES: [Change; 8] = [
    Change::BatchSize,
    Change::OptimizerFamily,
    Change::OptimizerSettings,
    Change::Model,
    Change::DataSet,
    Change::Target,
    Change::DeviceModel,
    Change::Prices,
];

/// What a change takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cost {
    probes: u64,
    device_secs: f64,
}

/// Only where a batch size was recommended from measurements: before, there is nothing to be measured again.
pub fn advise(
    _definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Option<Advice> {
    let chosen = analysis.training_time.as_ref()?.measured_batch_size?;
    let rows: Vec<(Change, Cost)> = CHANGES
        .into_iter()
        .map(|change| (change, cost(change, evidence)))
        .collect();
    Some(Advice {
        topic: Topic::Retuning,
        value: json!({
            "retuning": rows.iter().map(|(change, cost)| row(*change, *cost)).collect::<Vec<_>>(),
            "batch_size": chosen,
        }),
        summary: summary(chosen, &rows),
        basis: Basis::Measured,
        confidence: Confidence {
            grade: Grade::Moderate,
            because: "it is what this study's own probes took; another workload or device takes another time".into(),
            p_best: None,
            p_within_5pct: None,
            near_ties: Vec::new(),
        },
        evidence: references(evidence, |_| true),
        caveats: Vec::new(),
        playbook: PLAYBOOK.into(),
    })
}

fn row(change: Change, cost: Cost) -> Value {
    let stale = change.stale();
    let kept: Vec<Figure> = Figure::ALL
        .into_iter()
        .filter(|figure| !stale.contains(figure))
        .collect();
    json!({
        "change": change,
        "stale": stale,
        "kept": kept,
        "probes": cost.probes,
        "estimated_device_secs": cost.device_secs,
        "why": change.why(),
    })
}

fn cost(change: Change, evidence: &Evidence) -> Cost {
    let ended = || {
        evidence
            .probes
            .iter()
            .filter(|probe| probe.state.has_ended())
    };
    if change == Change::BatchSize {
        return of_one_batch_size(ended().filter(|probe| reaches_for_target(probe)));
    }
    ended()
        .filter(|probe| {
            let tells = figures(probe.kind());
            tells.iter().any(|figure| change.invalidates(*figure))
        })
        .fold(Cost::default(), Cost::plus)
}

impl Cost {
    fn plus(self, probe: &ProbeRecord) -> Self {
        Self {
            probes: self.probes + 1,
            device_secs: self.device_secs + probe.device_secs,
        }
    }
}

fn reaches_for_target(probe: &ProbeRecord) -> bool {
    probe.kind() == ProbeKind::Training
        && matches!(&probe.spec.task, Task::Training(run) if run.target.is_some())
}

/// What tuning at one batch size took, on average over those that were tuned.
fn of_one_batch_size<'a>(trials: impl Iterator<Item = &'a ProbeRecord>) -> Cost {
    let mut by_size = BTreeMap::<BatchSize, Cost>::new();
    for trial in trials {
        let cost = by_size.entry(trial.batch_size()).or_default();
        *cost = cost.plus(trial);
    }
    let sizes = by_size.len().max(1) as u64;
    let all = by_size.values().fold(Cost::default(), |sum, cost| Cost {
        probes: sum.probes + cost.probes,
        device_secs: sum.device_secs + cost.device_secs,
    });
    Cost {
        probes: all.probes.div_ceil(sizes),
        device_secs: all.device_secs / sizes as f64,
    }
}

fn summary(chosen: BatchSize, rows: &[(Change, Cost)]) -> String {
    let secs = |change: Change| {
        let found = rows.iter().find(|(it, _)| *it == change);
        found.map_or(0.0, |(_, cost)| cost.device_secs)
    };
    format!(
        "The learning rate and the other hyperparameters were tuned at batch size {chosen}. At another one they have to be tuned again, about {:.1} s of device time. Another optimizer takes about {:.1} s of measuring and tuning, another model {:.1} s, other data {:.1} s, another device {:.1} s; other prices take none.",
        secs(Change::BatchSize),
        secs(Change::OptimizerFamily),
        secs(Change::Model),
        secs(Change::DataSet),
        secs(Change::DeviceModel),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::fixtures::{succeeded, timed};
    use crate::probe::{RangeTest, TrainingRun};
    use crate::study::{EvaluationMetric, EvaluationTarget};

    #[test]
    fn a_change_costs_what_the_probes_of_its_row_took() {
        let trial = |batch_size, replicate| {
            let target = EvaluationTarget {
                metric: EvaluationMetric::ValidationCrossEntropy,
                value: 0.2,
            };
            let run = TrainingRun::new(100, Some(target), 1.03);
            succeeded(Task::Training(run), batch_size, replicate, &[])
        };
        let mut probes = vec![timed(16, 0, 1.0), timed(32, 0, 1.0)];
        probes.push(succeeded(
            Task::LearningRateRange(RangeTest::usual(false)),
            16,
            0,
            &[],
        ));
        probes.push(succeeded(Task::Memory { steps: 20 }, 16, 0, &[]));
        probes.extend([trial(16, 0), trial(16, 1), trial(16, 2), trial(64, 0)]);
        let evidence = Evidence { probes };
        // Every probe of the fixtures takes a second.
        for (change, probes) in [
            (Change::Prices, 0),
            (Change::BatchSize, 2),
            (Change::DeviceModel, 3),
            (Change::Target, 4),
            (Change::DataSet, 5),
            (Change::OptimizerFamily, 8),
            (Change::Model, 8),
        ] {
            let cost = cost(change, &evidence);
            assert_eq!(cost.probes, probes, "{change:?}");
            assert_eq!(cost.device_secs, probes as f64, "{change:?}");
        }
    }
}

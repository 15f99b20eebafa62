//! Real children without a service: probes run one after another, their evidence collected, whole studies
//! planned wave by wave.

use std::collections::BTreeMap;

use tokio::sync::watch;
use trialhead::analysis::{self, Evidence, ProbeRecord};
use trialhead::plan::{Next, PlannedProbe, plan};
use trialhead::pool::child::{self, ChildConfig, Spawner};
use trialhead::probe::{Metric, Outcome, ProbeSpec, ProbeState};
use trialhead::study::{EndedBecause, ProbeId, StudyDefinition};
use uuid::Uuid;

/// Runs children with one command.
pub struct Children {
    spawner: Spawner,
    config: ChildConfig,
    next_id: u128,
}

impl Children {
    pub fn new(command: Vec<String>) -> Self {
        Self {
            spawner: Spawner::new().expect("a spawner"),
            config: ChildConfig {
                command: Some(command),
                ..ChildConfig::default()
            },
            next_id: 1,
        }
    }

    /// Runs one probe to its end.
    pub async fn run(&mut self, planned: &PlannedProbe, wave: u32, position: u32) -> ProbeRecord {
        let spec = &planned.spec;
        let (_control, control) = watch::channel(None);
        let (progress, _progress) = watch::channel(None);
        let report = child::run(&self.spawner, &self.config, spec, None, control, &progress).await;
        let figures: BTreeMap<Metric, f64> = report
            .measurements
            .iter()
            .filter(|measured| measured.step.is_none())
            .filter_map(|measured| Some((Metric::parse(&measured.metric)?, measured.value)))
            .collect();
        let id = ProbeId(Uuid::from_u128(self.next_id));
        self.next_id += 1;
        let (state, infeasible) = match report.outcome {
            Outcome::Succeeded => (ProbeState::Succeeded, None),
            Outcome::Infeasible { reason, .. } => (ProbeState::Infeasible, Some(reason)),
            other => panic!("{other:?}: {}", report.stderr_tail),
        };
        ProbeRecord {
            id,
            spec: spec.clone(),
            state,
            infeasible,
            failure: None,
            detail: None,
            wave,
            position,
            reused: false,
            device_secs: 0.0,
            prediction: planned.prediction,
            figures,
        }
    }

    /// Runs one probe that nobody planned.
    pub async fn run_alone(&mut self, spec: ProbeSpec) -> ProbeRecord {
        let planned = PlannedProbe {
            spec,
            why: String::new(),
            prediction: None,
        };
        self.run(&planned, 0, 0).await
    }

    /// Runs a study to its end.
    pub async fn study(&mut self, definition: &StudyDefinition) -> (Evidence, EndedBecause) {
        let mut evidence = Evidence::default();
        loop {
            let analysis = analysis::analyze(definition, &evidence);
            match plan(definition, &evidence, &analysis).next {
                Next::Wave(wave) => {
                    let number = evidence.next_wave();
                    for (position, planned) in (0_u32..).zip(&wave) {
                        let record = self.run(planned, number, position).await;
                        evidence.probes.push(record);
                    }
                }
                Next::Done { because, .. } => return (evidence, because),
                other => panic!("nothing to wait for: {other:?}"),
            }
        }
    }
}

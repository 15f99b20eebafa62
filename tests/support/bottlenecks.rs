//! Known bottlenecks, injected into real children, and what the analysis makes of them.

use serde_json::json;
use trialhead::analysis::{self, Bottleneck, Evidence};
use trialhead::probe::{Batches, ProbeSpec, StepTimeSampling, Task, TurnSampling};
use trialhead::study::validation::{DefinitionLimits, parse};
use trialhead::study::{Bytes, DeviceFactsForDefaults, StudyDefinition, resolve};

use super::children::Children;

/// What is injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injected {
    Nothing,
    /// A sleep in the loader.
    Load,
    /// A readback each step, which takes a while.
    Readback,
    /// A sleep per launch.
    Launch,
}

pub const ALL: [Injected; 4] = [
    Injected::Nothing,
    Injected::Load,
    Injected::Readback,
    Injected::Launch,
];

impl Injected {
    /// What the runner is told: microseconds for loading a batch, for reading a loss, for a launch.
    pub fn arguments(self) -> [&'static str; 3] {
        match self {
            Self::Nothing => ["0", "0", "0"],
            Self::Load => ["1500", "0", "0"],
            Self::Readback => ["0", "1500", "0"],
            // So long that it is nearly all of a step on slow hosts, too.
            Self::Launch => ["0", "0", "4000"],
        }
    }

    /// The label that must be found, and no other of a fault.
    pub fn label(self) -> Option<Bottleneck> {
        match self {
            Self::Nothing => None,
            Self::Load => Some(Bottleneck::InputBound),
            Self::Readback => Some(Bottleneck::SyncBound),
            Self::Launch => Some(Bottleneck::LaunchBound),
        }
    }
}

const CHILDREN: u32 = 3;

fn definition(injected: Injected) -> StudyDefinition {
    let body = json!({
        "workload": {
            "dataset": {"builtin": "synthetic", "examples": 4096, "features": 256},
            "model": {"family": "mlp", "hidden": [256, 256]},
            "read_loss_every_step": injected == Injected::Readback
        },
        "optimizer": {"family": "sgd_nesterov"},
        "batch_sizes": {"min": 128, "max": 512},
        "device": {"memory_budget_bytes": 1_u64 << 30}
    });
    let facts = DeviceFactsForDefaults {
        model: "test".into(),
        threads: 2,
        available_bytes: Bytes(8 << 30),
    };
    let request = parse(&body, &DefinitionLimits::default()).expect("valid");
    resolve(request, Some(&facts)).expect("known")
}

/// The probes of a study that timing is about, with shorter sampling than it would use.
fn specs(definition: &StudyDefinition) -> Vec<ProbeSpec> {
    let timed = Task::StepTime(StepTimeSampling {
        warm_up_secs: 0.05,
        block_secs: 0.005,
        first_look_blocks: 40,
        max_blocks: 60,
        canary_secs: 0.0,
        batches: Batches::Synthetic,
        ..StepTimeSampling::default()
    });
    let parts = Task::InputPipeline(TurnSampling {
        warm_up_steps: 3,
        warm_up_secs: 0.05,
        max_rounds: 5,
        ..TurnSampling::default()
    });
    let sizes = definition.grid_batch_sizes();
    let mut specs = Vec::new();
    for replicate in 0..CHILDREN {
        for &size in &sizes {
            specs.push(spec(definition, timed.clone(), size.0, replicate));
        }
        for &size in &sizes[..2] {
            specs.push(spec(definition, parts.clone(), size.0, replicate));
        }
    }
    specs
}

/// A probe of a study.
pub fn spec(
    definition: &StudyDefinition,
    task: Task,
    batch_size: u64,
    replicate: u32,
) -> ProbeSpec {
    let spec = json!({
        "protocol": 1, "task": task, "workload": definition.workload,
        "optimizer": definition.optimizer,
        "device": {"backend": "cpu", "model": "test", "threads": 2},
        "batch_size": batch_size, "replicate": replicate, "seed": 1,
        "limits": {"memory_bytes": definition.device.memory_budget_bytes, "wall_secs": 300.0}
    });
    serde_json::from_value(spec).expect("a spec")
}

/// Measures with an injected bottleneck, and gives the faults found at each batch size, with the ratios.
pub async fn found(runner: &std::path::Path, injected: Injected) -> Vec<(Vec<Bottleneck>, String)> {
    let definition = definition(injected);
    let mut command = vec![runner.display().to_string()];
    command.extend(injected.arguments().map(str::to_owned));
    let mut children = Children::new(command);
    let mut evidence = Evidence::default();
    for spec in specs(&definition) {
        evidence.probes.push(children.run_alone(spec).await);
    }
    let analysis = analysis::analyze(&definition, &evidence);
    let bottleneck = analysis.bottleneck.expect("an analysis");
    bottleneck
        .points
        .iter()
        .map(|point| {
            let faults = point
                .findings
                .iter()
                .map(|finding| finding.label)
                .filter(|label| label.caveat_code().is_some())
                .collect();
            let figures = format!(
                "input {:.2}, readback {:.2}, elasticity {:.2}",
                point.input_ratio.value,
                point.readback_ratio.value,
                point.elasticity.map_or(f64::NAN, |it| it.value)
            );
            (faults, figures)
        })
        .collect()
}

//! Random models under random memory budgets: is a confirmed batch size ever wrong?

use std::path::Path;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use trialhead::analysis;
use trialhead::probe::{ProbeKind, Task};
use trialhead::study::validation::{DefinitionLimits, parse};
use trialhead::study::{
    BatchSize, Bytes, DeviceFactsForDefaults, EndedBecause, StudyDefinition, resolve,
};

use super::bottlenecks::spec;
use super::children::Children;

/// What became of one study.
#[derive(Debug)]
pub struct Confirmed {
    pub model: String,
    pub budget: Bytes,
    pub batch_size: BatchSize,
    pub probes: usize,
    /// Predicted over measured at the final batch size, less 1; none when it was not predicted.
    pub prediction_error: Option<f64>,
    pub survived: bool,
    /// How the longer run ended, for people.
    pub ended: String,
}

/// A study of what fits.
pub fn definition(model: &Value, dataset: &Value, budget: u64) -> StudyDefinition {
    let body = json!({
        "workload": {"dataset": dataset, "model": model},
        "batch_sizes": {"min": 1, "max": 1 << 20},
        "device": {"memory_budget_bytes": budget},
        "questions": ["feasible_batch_sizes"]
    });
    let facts = DeviceFactsForDefaults {
        model: "test".into(),
        threads: 2,
        available_bytes: Bytes(8 << 30),
    };
    let request = parse(&body, &DefinitionLimits::default()).expect("valid");
    resolve(request, Some(&facts)).expect("known")
}

fn random_study(seed: u64) -> (StudyDefinition, String) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut pick = |values: &[u64]| *values.choose(&mut random).expect("one");
    let (model, dataset) = match seed % 3 {
        0 => {
            let layers = pick(&[1, 2, 3]);
            let hidden: Vec<u64> = (0..layers).map(|_| pick(&[64, 128, 256, 512])).collect();
            (
                json!({"family": "mlp", "hidden": hidden}),
                json!({"builtin": "synthetic", "examples": 2000, "features": pick(&[32, 64, 256])}),
            )
        }
        1 => {
            let stages = pick(&[1, 2, 3]);
            let channels: Vec<u64> = (0..stages).map(|_| pick(&[4, 8, 16])).collect();
            (
                json!({"family": "cnn", "channels": channels}),
                json!({"builtin": "synthetic_images", "examples": 1000, "channels": 3, "height": pick(&[8, 16]), "width": 16}),
            )
        }
        _ => (
            json!({"family": "transformer_lm", "width": pick(&[16, 32, 64]), "depth": pick(&[1, 2])}),
            json!({"builtin": "markov_text", "examples": 1000, "sequence_length": pick(&[16, 32, 64])}),
        ),
    };
    // Log-uniform from 32 to 128 MiB.
    let budget = (32.0 * 4_f64.powf(random.random::<f64>()) * Bytes::MIB as f64) as u64;
    let name = format!("{model} on {dataset}");
    (definition(&model, &dataset, budget), name)
}

/// Searches, confirms, and trains for so many steps at what was confirmed.
pub async fn confirm(program: &Path, seed: u64, steps: u64) -> Confirmed {
    let (definition, model) = random_study(seed);
    let mut children = Children::new(vec![program.display().to_string(), "probe".into()]);
    let (evidence, because) = children.study(&definition).await;
    assert_eq!(because, EndedBecause::Answered, "{model}");
    let analysis = analysis::analyze(&definition, &evidence);
    let feasibility = analysis.feasibility.expect("known");
    let batch_size = feasibility.largest_feasible.expect("something fits");
    assert!(feasibility.confirmed.contains(&batch_size), "{model}");
    let last = evidence
        .of_kind(ProbeKind::Memory)
        .filter(|probe| probe.batch_size() == batch_size)
        .last()
        .expect("was searched");
    let memory = analysis.memory.expect("measured");
    let prediction_error = memory
        .points
        .iter()
        .find(|point| point.probe_id == last.id)
        .and_then(|point| point.prediction_error);
    let longer = Task::Confirmation { steps };
    let ended = children
        .run_alone(spec(&definition, longer, batch_size.0, 0))
        .await;
    Confirmed {
        model,
        budget: definition.device.memory_budget_bytes.expect("resolved"),
        batch_size,
        probes: evidence.probes.len(),
        prediction_error,
        survived: ended.succeeded(),
        ended: format!(
            "{:?} {:?} {:?}",
            ended.state, ended.infeasible, ended.detail
        ),
    }
}

//! From a request to a definition: every default written out, none left implicit.

use super::{
    BatchSize, BatchSizes, Bytes, Dataset, DeviceChoice, Facts, GradientClipping, Grid, Loss,
    MaxFrom, Model, ModelFrom, Optimizer, Question, Runner, Shape, StudyDefinition, StudyRequest,
    Target, TargetRequest, Workload,
};

/// The part of the memory free on a device that a study uses when it names no budget.
const MEMORY_SHARE: f64 = 0.8;

/// What a live worker tells about its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFactsForDefaults {
    /// The device model.
    pub model: String,
    /// The host's cores.
    pub threads: u32,
    /// Memory free on the device: the host's for a processor.
    pub available_bytes: Bytes,
}

/// Fills in every default. Without a device its three facts stay open until
/// [`fill_device`] is called. `None` for an uploaded data set that the service does not know, which
/// [`validation`](super::validation) refuses before.
pub fn resolve(
    request: StudyRequest,
    device: Option<&DeviceFactsForDefaults>,
) -> Option<StudyDefinition> {
    let StudyRequest {
        name,
        labels,
        workload,
        runner,
        optimizer,
        schedule,
        gradient_clipping,
        batch_sizes,
        device: asked,
        objective,
        costs,
        project_phase,
        budget,
        search,
        design,
        quality,
        optimizers,
        batch_norm,
        questions,
        reuse,
        priority,
        seed,
    } = request;
    let dataset = workload.dataset.resolve()?;
    let facts = dataset.facts();
    let model_from = match workload.model {
        Some(_) => ModelFrom::Study,
        None => ModelFrom::Default,
    };
    let model = workload
        .model
        .unwrap_or_else(|| default_model_of(&runner, &facts));
    let max_from = match batch_sizes.max {
        Some(_) => MaxFrom::Range,
        None => MaxFrom::Dataset,
    };
    let optimizer = optimizer.unwrap_or_else(|| Optimizer::first_for(&model));
    let target = workload.target.map(TargetRequest::resolve);
    let mut definition = StudyDefinition {
        name: name.unwrap_or_else(|| default_name(&dataset, &model)),
        labels,
        search: search.resolve(&optimizer),
        questions: questions.unwrap_or_else(|| {
            let mut usual = Question::usual(target.is_some());
            // Whoever names what is to be looked into asks for it.
            if optimizers.candidates.is_some() {
                usual.push(Question::Optimizer);
            }
            if batch_norm.probe {
                usual.push(Question::BatchNorm);
            }
            usual
        }),
        model_from,
        optimizer,
        schedule,
        gradient_clipping: gradient_clipping.unwrap_or_else(|| GradientClipping::first_for(&model)),
        batch_sizes: BatchSizes {
            min: batch_sizes.min.unwrap_or(smallest(asked.count)),
            max: batch_sizes
                .max
                .unwrap_or(largest(facts.training_examples, asked.count)),
            max_from,
            grid: batch_sizes.grid,
            resolution: batch_sizes.resolution,
        },
        workload: Workload {
            dataset,
            model,
            loss: workload.loss.unwrap_or_else(|| Loss::of(&facts.target)),
            label_smoothing: workload.label_smoothing,
            dtype: workload.dtype,
            validation_examples: workload.validation_examples,
            input_pipeline: workload.input_pipeline,
            read_loss_every_step: workload.read_loss_every_step,
            target,
        },
        runner,
        device: DeviceChoice {
            backend: asked.backend,
            model: asked.model,
            count: asked.count,
            memory_budget_bytes: asked.memory_budget_bytes,
            threads: asked.threads,
        },
        objective,
        costs,
        project_phase,
        budget,
        design,
        quality,
        optimizers,
        batch_norm,
        reuse,
        priority,
        seed,
    };
    if let Some(facts) = device {
        fill_device(&mut definition, facts);
    }
    Some(definition)
}

/// Fills in what the study left open about its device. Does nothing when the study names another
/// device model than the facts are about.
pub fn fill_device(definition: &mut StudyDefinition, facts: &DeviceFactsForDefaults) {
    let device = &mut definition.device;
    if device
        .model
        .as_ref()
        .is_some_and(|model| *model != facts.model)
    {
        return;
    }
    device.model.get_or_insert_with(|| facts.model.clone());
    let count = device.count.max(1);
    device.threads.get_or_insert((facts.threads / count).max(1));
    // Processes on one processor share its memory; each GPU has its own.
    let sharing = if device.backend.is_gpu() { 1 } else { count };
    device.memory_budget_bytes.get_or_insert(Bytes(
        (facts.available_bytes.as_f64() * MEMORY_SHARE / f64::from(sharing)) as u64,
    ));
}

/// The smallest batch size of so many devices: one example for each.
pub(super) fn smallest(devices: u32) -> BatchSize {
    BatchSize(u64::from(devices.max(1)))
}

/// The largest batch size within so many examples that so many devices can share out evenly.
pub(super) fn largest(examples: u64, devices: u32) -> BatchSize {
    BatchSize(examples - examples % u64::from(devices.max(1)))
}

/// The simplest model that can read the data set.
pub fn default_model(facts: &Facts) -> Model {
    match facts.target {
        Target::NextToken { .. } => Model::transformer_lm(),
        Target::Classes { .. } | Target::Values { .. } => match facts.input {
            Shape::Tokens { .. } => Model::transformer_encoder(),
            _ => Model::mlp(vec![64]),
        },
    }
}

/// Another program has its own model; the service's own takes the simplest that can read the data set.
fn default_model_of(runner: &Runner, facts: &Facts) -> Model {
    if runner.is_burn() {
        default_model(facts)
    } else {
        Model::External {
            name: runner.name.clone(),
            parameters: None,
        }
    }
}

/// `digits · mlp 64`, `synthetic · mlp 512-512`, `markov_text · transformer_lm 64×2`.
fn default_name(dataset: &Dataset, model: &Model) -> String {
    format!("{} · {} {}", dataset.name(), model.family(), model.size())
}

impl BatchSizes {
    /// The batch sizes at which so many devices are measured, ascending, each once: the values asked for
    /// that are in the range, or its powers of two for each device and its smallest.
    fn grid(&self, devices: u32) -> Vec<BatchSize> {
        let devices = u64::from(devices.max(1));
        let in_range = |size: &BatchSize| (self.min..=self.max).contains(size);
        let mut sizes: Vec<BatchSize> = match &self.grid {
            Grid::PowersOfTwo => (0..u64::BITS)
                .filter_map(|exponent| devices.checked_mul(1 << exponent).map(BatchSize))
                .chain([self.min])
                .filter(in_range)
                .collect(),
            Grid::Values(values) => values.iter().copied().filter(in_range).collect(),
        };
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }
}

/// The batch size around which training begins: large enough to be quick, small enough to need few examples.
const FIRST: f64 = 48.0;

/// Of several batch sizes the one where training begins.
pub fn first_batch_size(candidates: &[BatchSize]) -> Option<BatchSize> {
    let distance = |size: &BatchSize| (size.as_f64() / FIRST).ln().abs();
    candidates
        .iter()
        .copied()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

impl StudyDefinition {
    /// The batch sizes at which throughput is measured, ascending, each once.
    pub fn grid_batch_sizes(&self) -> Vec<BatchSize> {
        self.batch_sizes.grid(self.device.count)
    }

    /// The batch sizes of the grid that an epoch holds.
    pub fn trainable_batch_sizes(&self) -> Vec<BatchSize> {
        let examples = self.workload.dataset.facts().training_examples;
        let mut sizes = self.grid_batch_sizes();
        sizes.retain(|size| size.0 <= examples);
        sizes
    }

    /// Where training begins, if memory allows.
    pub fn first_batch_size(&self) -> Option<BatchSize> {
        first_batch_size(&self.trainable_batch_sizes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(value: serde_json::Value) -> StudyRequest {
        crate::study::validation::parse(&value, &Default::default()).expect("valid")
    }

    fn resolved(request: StudyRequest, device: Option<&DeviceFactsForDefaults>) -> StudyDefinition {
        resolve(request, device).expect("a data set that is known")
    }

    fn facts() -> DeviceFactsForDefaults {
        DeviceFactsForDefaults {
            model: "Test CPU".into(),
            threads: 8,
            available_bytes: Bytes(10 * Bytes::GIB),
        }
    }

    #[test]
    fn a_data_set_alone_becomes_a_whole_definition() {
        let posted = request(json!({"workload": {"dataset": {"builtin": "digits"}}}));
        let definition = resolved(posted, Some(&facts()));
        assert_eq!(definition.name, "digits · mlp 64");
        assert_eq!(definition.optimizer, Optimizer::adam());
        assert_eq!(definition.workload.model, Model::mlp(vec![64]));
        assert_eq!(definition.model_from, ModelFrom::Default);
        assert_eq!(definition.batch_sizes.min, BatchSize(1));
        assert_eq!(definition.batch_sizes.max, BatchSize(1437));
        assert_eq!(definition.batch_sizes.max_from, MaxFrom::Dataset);
        let device = definition.device.resolved().expect("known");
        assert_eq!(device.memory_budget, Bytes(8 * Bytes::GIB));
        assert_eq!((device.model.as_str(), device.threads), ("Test CPU", 8));
    }

    #[test]
    fn what_was_asked_for_is_kept_and_a_device_that_turns_up_later_fills_the_rest() {
        let posted = request(json!({
            "workload": {"dataset": {"builtin": "digits"}, "model": {"family": "mlp", "hidden": []}},
            "batch_sizes": {"min": 3, "max": 64},
            "device": {"threads": 2}
        }));
        let mut definition = resolved(posted, None);
        assert_eq!(definition.name, "digits · mlp linear");
        assert_eq!(definition.batch_sizes.max_from, MaxFrom::Range);
        assert_eq!(definition.model_from, ModelFrom::Study);
        assert_eq!(definition.device.resolved(), None);
        fill_device(&mut definition, &facts());
        let device = definition.device.resolved().expect("known");
        assert_eq!(device.threads, 2);
        assert_eq!(
            definition.grid_batch_sizes(),
            [3, 4, 8, 16, 32, 64].map(BatchSize)
        );
    }

    #[test]
    fn facts_about_another_device_model_fill_nothing() {
        let posted = request(json!({
            "workload": {"dataset": {"builtin": "digits"}},
            "device": {"model": "Other CPU"}
        }));
        let mut definition = resolved(posted, None);
        fill_device(&mut definition, &facts());
        assert_eq!(definition.device.resolved(), None);
    }

    #[test]
    fn an_explicit_grid_is_sorted() {
        let posted = request(json!({
            "workload": {"dataset": {"builtin": "digits"}},
            "batch_sizes": {"grid": {"values": [192, 48, 96]}}
        }));
        let definition = resolved(posted, None);
        assert_eq!(definition.grid_batch_sizes(), [48, 96, 192].map(BatchSize));
    }
}

//! What a change makes stale: from the definitions before and after to the kinds of change between them, and
//! from each kind to the figures that have to be measured or worked out again.
//!
//! The table says what the identities of probes ([`crate::probe`]) do by themselves: a figure is kept exactly
//! when the probes behind it are found again under the new definition. It is here once, for people and for the
//! parts that must know before anything is planned: which advice no longer holds, which running probe is in vain,
//! and what changing one's mind will cost.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::definition::{Question, StudyDefinition};
use super::optimizer::{GradientClipping, Optimizer};
use super::search_space::Hyperparameter;
use super::{Dataset, Facts};

/// A kind of change.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(as = ChangeKind)]
pub enum Change {
    /// The network or one of its sizes.
    Model,
    /// What the numbers of training are.
    Dtype,
    /// The optimizer's family, or a setting that changes which arithmetic a step does.
    OptimizerFamily,
    /// Numbers of the optimizer or of the clipping of gradients that no search replaces.
    OptimizerSettings,
    /// The learning rate as posted, where it is searched for anyway.
    StartingLearningRate,
    /// How gradients are limited.
    GradientClipping,
    /// How the learning rate changes over training.
    Schedule,
    /// The examples, in the same shape and number; or which of them are validated on.
    DataSet,
    /// The shape of the examples, their number, or how they are stored.
    DataSetShape,
    /// What training is to reach.
    Target,
    /// How strongly labels are smoothed.
    Loss,
    /// The loss, or whether labels are smoothed at all.
    LossForm,
    /// The device model.
    DeviceModel,
    /// Threads of the training process.
    Threads,
    /// How many devices train together.
    DeviceCount,
    /// The same, where each may normalise over its own share of a batch.
    SharesOfBatches,
    /// Memory that training may use.
    MemoryBudget,
    /// How batches come to the training.
    InputPipeline,
    /// The service's own program that trains, its version or that of what it rests on.
    Runner,
    /// Which program trains, its version, or what it is told beside the workload.
    Program,
    /// The batch size that is trained with.
    BatchSize,
    /// The range of batch sizes that are considered.
    BatchSizes,
    /// The batch size at which training begins, which follows from range and grid.
    FirstBatchSize,
    /// What training costs.
    Prices,
    /// What is minimised.
    Objective,
    /// How far the project is.
    ProjectPhase,
    /// What is tuned and where it is looked for.
    Search,
    /// Which batch sizes are trained to the target.
    Design,
    /// How quality is compared.
    Quality,
    /// Whether the model is the study's own or left open, and so which sizes are tried first.
    ModelFrom,
    /// Which optimizers are compared.
    Candidates,
    /// How batch normalization is looked into.
    BatchNorm,
    /// Which questions are asked.
    Questions,
    /// What everything random is drawn from.
    Seed,
    /// Whether what others measured may serve.
    Reuse,
    /// What the study may spend.
    Budget,
    /// At which batch sizes it is measured, and how exactly the largest is sought.
    Grid,
    /// What it is called.
    NameOrLabels,
    /// Whose turn it is.
    Priority,
    /// Something that this table does not know.
    Other,
}

/// Something that was measured, or worked out from what was.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Peak memory against batch size.
    Memory,
    /// Time per step against batch size.
    Throughput,
    /// Time to gather a batch.
    LoaderTime,
    /// Which batch sizes fit.
    Feasibility,
    /// Which learning rates can be trained with, and which is the best.
    LearningRate,
    /// Momentum, weight decay and other regularisation, as tuned.
    Regularisation,
    /// Steps to target against batch size.
    StepsToTarget,
    /// The noise of the gradient.
    NoiseScale,
    /// How many steps training is to take, and the schedule over them.
    NumberOfSteps,
    /// The quality that training ends with.
    Quality,
    /// How optimizers compare.
    OptimizerComparison,
    /// The batch that batch normalization takes its statistics from.
    GhostBatch,
    /// The family of models to start from.
    StartingModel,
    /// The model, the learning rate and the number of steps to start with.
    InitialConfiguration,
    /// Which batch size to train with.
    Decision,
}

impl Figure {
    /// Every figure.
    pub const ALL: [Self; 15] = [
        Self::Memory,
        Self::Throughput,
        Self::LoaderTime,
        Self::Feasibility,
        Self::LearningRate,
        Self::Regularisation,
        Self::StepsToTarget,
        Self::NoiseScale,
        Self::NumberOfSteps,
        Self::Quality,
        Self::OptimizerComparison,
        Self::GhostBatch,
        Self::StartingModel,
        Self::InitialConfiguration,
        Self::Decision,
    ];

    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Throughput => "throughput",
            Self::LoaderTime => "loader_time",
            Self::Feasibility => "feasibility",
            Self::LearningRate => "learning_rate",
            Self::Regularisation => "regularisation",
            Self::StepsToTarget => "steps_to_target",
            Self::NoiseScale => "noise_scale",
            Self::NumberOfSteps => "number_of_steps",
            Self::Quality => "quality",
            Self::OptimizerComparison => "optimizer_comparison",
            Self::GhostBatch => "ghost_batch",
            Self::StartingModel => "starting_model",
            Self::InitialConfiguration => "initial_configuration",
            Self::Decision => "decision",
        }
    }
}

use Figure::{
    Decision, Feasibility, GhostBatch, InitialConfiguration, LearningRate, LoaderTime, Memory,
    NoiseScale, NumberOfSteps, OptimizerComparison, Regularisation, StartingModel, StepsToTarget,
    Throughput,
};

/// What training comes to, and what follows from it.
const LEARNING: &[Figure] = &[
    LearningRate,
    Regularisation,
    StepsToTarget,
    NoiseScale,
    NumberOfSteps,
    Figure::Quality,
    OptimizerComparison,
    GhostBatch,
    InitialConfiguration,
    Decision,
];
/// The same, and what fits.
const LEARNING_AND_FEASIBILITY: &[Figure] = &[
    Feasibility,
    LearningRate,
    Regularisation,
    StepsToTarget,
    NoiseScale,
    NumberOfSteps,
    Figure::Quality,
    OptimizerComparison,
    GhostBatch,
    InitialConfiguration,
    Decision,
];
/// What training comes to, and which model to start from.
const LEARNING_AND_MODEL: &[Figure] = &[
    LearningRate,
    Regularisation,
    StepsToTarget,
    NoiseScale,
    NumberOfSteps,
    Figure::Quality,
    OptimizerComparison,
    GhostBatch,
    StartingModel,
    InitialConfiguration,
    Decision,
];
/// Everything that is measured but the raw time of gathering a batch.
const ALL_BUT_LOADER: &[Figure] = &[
    Memory,
    Throughput,
    Feasibility,
    LearningRate,
    Regularisation,
    StepsToTarget,
    NoiseScale,
    NumberOfSteps,
    Figure::Quality,
    OptimizerComparison,
    GhostBatch,
    InitialConfiguration,
    Decision,
];
/// What a device and a program are like.
const HARDWARE: &[Figure] = &[Memory, Throughput, LoaderTime, Feasibility, Decision];

impl Change {
    /// The name used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dtype => "dtype",
            Self::OptimizerFamily => "optimizer_family",
            Self::OptimizerSettings => "optimizer_settings",
            Self::StartingLearningRate => "starting_learning_rate",
            Self::GradientClipping => "gradient_clipping",
            Self::Schedule => "schedule",
            Self::DataSet => "data_set",
            Self::DataSetShape => "data_set_shape",
            Self::Target => "target",
            Self::Loss => "loss",
            Self::LossForm => "loss_form",
            Self::DeviceModel => "device_model",
            Self::Threads => "threads",
            Self::DeviceCount => "device_count",
            Self::SharesOfBatches => "shares_of_batches",
            Self::MemoryBudget => "memory_budget",
            Self::InputPipeline => "input_pipeline",
            Self::Runner => "runner",
            Self::Program => "program",
            Self::BatchSize => "batch_size",
            Self::BatchSizes => "batch_sizes",
            Self::FirstBatchSize => "first_batch_size",
            Self::Prices => "prices",
            Self::Objective => "objective",
            Self::ProjectPhase => "project_phase",
            Self::Search => "search",
            Self::Design => "design",
            Self::Quality => "quality",
            Self::ModelFrom => "model_from",
            Self::Candidates => "candidates",
            Self::BatchNorm => "batch_norm",
            Self::Questions => "questions",
            Self::Seed => "seed",
            Self::Reuse => "reuse",
            Self::Budget => "budget",
            Self::Grid => "grid",
            Self::NameOrLabels => "name_or_labels",
            Self::Priority => "priority",
            Self::Other => "other",
        }
    }

    /// What it makes stale.
    pub fn stale(self) -> &'static [Figure] {
        match self {
            Self::Model
            | Self::Dtype
            | Self::DataSetShape
            | Self::LossForm
            | Self::Program
            | Self::SharesOfBatches
            | Self::Reuse
            | Self::Other => &Figure::ALL,
            Self::OptimizerFamily | Self::GradientClipping => ALL_BUT_LOADER,
            // Another data set of the same task may have another known result to start from.
            Self::DataSet => LEARNING_AND_MODEL,
            Self::FirstBatchSize => LEARNING_AND_FEASIBILITY,
            Self::OptimizerSettings | Self::Schedule | Self::Loss | Self::Search | Self::Seed => {
                LEARNING
            }
            // Which learning rates can be trained with at all has nothing to do with where training is to end.
            Self::Target => &[
                Regularisation,
                StepsToTarget,
                NoiseScale,
                NumberOfSteps,
                Figure::Quality,
                OptimizerComparison,
                Decision,
            ],
            Self::DeviceModel
            | Self::Threads
            | Self::DeviceCount
            | Self::InputPipeline
            | Self::Runner => HARDWARE,
            Self::MemoryBudget => &[Feasibility, Decision],
            // Ghost batches are tried at the sizes that can be chosen.
            Self::BatchSizes => &[Feasibility, GhostBatch, Decision],
            Self::Grid => &[GhostBatch],
            Self::BatchSize => &[
                LearningRate,
                Regularisation,
                NumberOfSteps,
                GhostBatch,
                Figure::Quality,
                OptimizerComparison,
                InitialConfiguration,
            ],
            Self::Prices | Self::Objective | Self::ProjectPhase => &[Decision],
            Self::Quality => &[Figure::Quality],
            Self::ModelFrom => &[StartingModel, InitialConfiguration],
            Self::Candidates => &[OptimizerComparison],
            Self::BatchNorm => &[GhostBatch],
            Self::StartingLearningRate
            | Self::Design
            | Self::Questions
            | Self::Budget
            | Self::NameOrLabels
            | Self::Priority => &[],
        }
    }

    /// Whether it makes a figure stale.
    pub fn invalidates(self, figure: Figure) -> bool {
        self.stale().contains(&figure)
    }

    /// Why, for people.
    pub fn why(self) -> &'static str {
        match self {
            Self::Model | Self::Dtype | Self::DataSetShape | Self::LossForm => {
                "another computation: nothing that was measured is about it"
            }
            Self::OptimizerFamily | Self::GradientClipping => {
                "another update rule takes another time and other memory, and learns at another pace; only gathering batches is as before"
            }
            Self::OptimizerSettings | Self::Schedule | Self::Loss => {
                "training takes another course; a step takes the same time and the same memory"
            }
            Self::DataSet => {
                "other examples are learned at another pace; a step on them takes the same time and the same memory"
            }
            Self::Target => {
                "steps, noise scale and decision are for one target; time and memory of a step are not"
            }
            Self::DeviceModel | Self::Threads => {
                "another device takes another time and other memory; training on it takes as many steps as before"
            }
            Self::DeviceCount => {
                "a share of a batch takes another time and other memory; training on averaged gradients takes as many steps as before"
            }
            Self::SharesOfBatches => {
                "each device sees another share of a batch, and the model may normalise over it: training may take another course"
            }
            Self::MemoryBudget => "what fits is for one budget; how much memory is taken is not",
            Self::InputPipeline => {
                "batches come in another way, which takes another time and other memory; training takes as many steps as before"
            }
            Self::Runner => {
                "another program takes another time and other memory; only one that computes the same bits takes as many steps for certain"
            }
            Self::Program => {
                "what another program, or another version of it, measures is its own: nothing is taken over"
            }
            Self::BatchSize => {
                "the best learning rate, momentum, regularisation, number of steps and schedule belong to one batch size; what memory and time grow like does not"
            }
            Self::FirstBatchSize => {
                "learning rates, number of steps and comparisons are of the batch size at which training begins, and that is another one now"
            }
            Self::BatchSizes => "other batch sizes can be chosen from what was measured",
            Self::Prices | Self::Objective | Self::ProjectPhase => {
                "only the decision rests on it: it is made anew from what was measured"
            }
            Self::Search => {
                "steps are the least over what is searched, which is something else now"
            }
            Self::ModelFrom => {
                "other sizes of the model are tried first; what was measured of this one stays true"
            }
            Self::Candidates | Self::BatchNorm => {
                "the comparison is another one; what was trained for it serves"
            }
            Self::Quality => "the comparison is another one; what was trained for it serves",
            Self::Seed => {
                "training draws other batches and other first parameters, so its figures are measured anew; times and memory do not depend on it"
            }
            Self::Reuse => "probes that nobody shares are another study's, so all are made anew",
            Self::StartingLearningRate => "the learning rate is searched for, wherever it starts",
            Self::Design | Self::Questions | Self::Budget | Self::Grid => {
                "what was measured stays true; more or less is measured beside it"
            }
            Self::NameOrLabels | Self::Priority => "nothing that is measured rests on it",
            Self::Other => "it is not known what rests on it, so nothing is taken over",
        }
    }
}

/// One thing that two definitions differ in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Where, as a JSON pointer into the definition.
    pub pointer: String,
    /// What kind of change it is.
    pub change: Change,
    /// What was there; null where nothing was.
    #[schema(value_type = Value)]
    pub before: Value,
    /// What is there now; null where nothing is.
    #[schema(value_type = Value)]
    pub after: Value,
}

/// Everything that two definitions differ in, in the order of the pointers.
pub fn between(old: &StudyDefinition, new: &StudyDefinition) -> Vec<Changed> {
    // A definition that cannot be JSON could not have been stored.
    let (Ok(before), Ok(after)) = (serde_json::to_value(old), serde_json::to_value(new)) else {
        return Vec::new();
    };
    let mut leaves = Vec::new();
    differences(String::new(), &before, &after, &mut leaves);
    leaves
        .into_iter()
        .map(|(pointer, before, after)| Changed {
            change: kind(&pointer, old, new),
            pointer,
            before,
            after,
        })
        .collect()
}

/// Objects are compared member by member, everything else as a whole.
fn differences(
    pointer: String,
    before: &Value,
    after: &Value,
    found: &mut Vec<(String, Value, Value)>,
) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let escaped = name.replace('~', "~0").replace('/', "~1");
                differences(
                    format!("{pointer}/{escaped}"),
                    old.get(name).unwrap_or(&Value::Null),
                    new.get(name).unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        _ if before != after => found.push((pointer, before.clone(), after.clone())),
        _ => {}
    }
}

/// What kind of change a difference at a pointer is.
fn kind(pointer: &str, old: &StudyDefinition, new: &StudyDefinition) -> Change {
    let mut parts = pointer.split('/').skip(1);
    let first = parts.next().unwrap_or_default();
    let second = parts.next().unwrap_or_default();
    match (first, second) {
        ("name" | "labels", _) => Change::NameOrLabels,
        ("workload", "dataset") => data_set(&old.workload.dataset, &new.workload.dataset),
        ("workload", "validation_examples") => Change::DataSet,
        ("workload", "model") => Change::Model,
        ("workload", "dtype") => Change::Dtype,
        ("workload", "loss") => Change::LossForm,
        ("workload", "label_smoothing") => {
            let smooths = |it: &StudyDefinition| it.workload.label_smoothing > 0.0;
            if smooths(old) == smooths(new) {
                Change::Loss
            } else {
                Change::LossForm
            }
        }
        ("workload", "input_pipeline" | "read_loss_every_step") => Change::InputPipeline,
        ("workload", "target") => Change::Target,
        ("optimizer", _) => optimizer(old, new),
        ("gradient_clipping", _) => {
            let same_kind = std::mem::discriminant::<GradientClipping>(&old.gradient_clipping)
                == std::mem::discriminant(&new.gradient_clipping);
            if same_kind {
                Change::OptimizerSettings
            } else {
                Change::GradientClipping
            }
        }
        ("schedule", _) => Change::Schedule,
        ("runner", _) => Change::Program,
        ("batch_sizes", "min" | "max" | "grid")
            if old.first_batch_size() != new.first_batch_size() =>
        {
            Change::FirstBatchSize
        }
        ("batch_sizes", "grid" | "resolution") => Change::Grid,
        ("batch_sizes", "min" | "max" | "max_from") => Change::BatchSizes,
        ("device", "backend" | "model") => Change::DeviceModel,
        ("device", "threads") => Change::Threads,
        ("device", "count") => {
            if [old, new]
                .iter()
                .any(|it| it.workload.may_look_across_examples())
            {
                Change::SharesOfBatches
            } else if old.first_batch_size() != new.first_batch_size() {
                // Batch sizes are multiples of the number of devices.
                Change::FirstBatchSize
            } else {
                Change::DeviceCount
            }
        }
        ("device", "memory_budget_bytes") => Change::MemoryBudget,
        ("objective", _) => Change::Objective,
        ("costs", _) => Change::Prices,
        ("project_phase", _) => Change::ProjectPhase,
        ("budget", _) => Change::Budget,
        ("search", _) => Change::Search,
        ("design", _) => Change::Design,
        ("quality", _) => Change::Quality,
        ("model_from", _) => Change::ModelFrom,
        ("optimizers", _) => Change::Candidates,
        ("batch_norm", _) => Change::BatchNorm,
        ("questions", _) => Change::Questions,
        ("reuse", _) => Change::Reuse,
        ("priority", _) => Change::Priority,
        ("seed", _) => Change::Seed,
        _ => Change::Other,
    }
}

fn data_set(old: &Dataset, new: &Dataset) -> Change {
    let shape = |dataset: &Dataset| -> (Facts, u64, &'static str) {
        (dataset.facts(), dataset.bytes(), dataset.storage())
    };
    if shape(old) != shape(new) {
        return Change::DataSetShape;
    }
    match (old, new) {
        // The same content under another name.
        (Dataset::Uploaded(old), Dataset::Uploaded(new))
            if old.content == new.content && old.sequence_length == new.sequence_length =>
        {
            Change::NameOrLabels
        }
        _ => Change::DataSet,
    }
}

fn optimizer(old: &StudyDefinition, new: &StudyDefinition) -> Change {
    if old.optimizer.form() != new.optimizer.form() {
        return Change::OptimizerFamily;
    }
    let at_new_rate = |optimizer: &Optimizer| {
        let mut optimizer = optimizer.clone();
        optimizer.set(Hyperparameter::LearningRate, new.optimizer.learning_rate());
        optimizer
    };
    let is_searched = [old, new].iter().all(|it| {
        let finds_one = it.tunes() || it.questions.contains(&Question::InitialConfiguration);
        let mut searched = it.search.hyperparameters.iter();
        finds_one && searched.any(|hyperparameter| *hyperparameter == Hyperparameter::LearningRate)
    });
    if is_searched && at_new_rate(&old.optimizer) == new.optimizer {
        Change::StartingLearningRate
    } else {
        Change::OptimizerSettings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{DeviceFactsForDefaults, resolve, validation};
    use serde_json::json;

    fn definition(change: impl FnOnce(&mut Value)) -> StudyDefinition {
        let mut body = json!({
            "workload": {"dataset": {"builtin": "synthetic", "examples": 1000, "seed": 1},
                         "target": {"metric": "validation_cross_entropy", "value": 0.2}},
            "optimizer": {"family": "sgd_nesterov"},
            "device": {"model": "a processor", "threads": 2, "memory_budget_bytes": 1 << 30}
        });
        change(&mut body);
        let request = validation::parse(&body, &Default::default()).expect("valid");
        let facts = DeviceFactsForDefaults {
            model: "a processor".into(),
            threads: 2,
            available_bytes: crate::study::Bytes(1 << 33),
        };
        resolve(request, Some(&facts)).expect("known")
    }

    fn kinds(change: impl FnOnce(&mut Value)) -> Vec<Change> {
        let mut kinds: Vec<Change> = between(&definition(|_| {}), &definition(change))
            .into_iter()
            .map(|changed| changed.change)
            .collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }

    #[test]
    fn every_difference_has_its_pointer_and_its_kind() {
        assert_eq!(kinds(|_| {}), []);
        let changed = between(
            &definition(|_| {}),
            &definition(|body| body["batch_sizes"] = json!({"min": 4})),
        );
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[0].pointer, "/batch_sizes/min");
        assert_eq!(
            (&changed[0].before, &changed[0].after),
            (&json!(1), &json!(4))
        );
        assert_eq!(
            kinds(|body| body["optimizer"] = json!({"family": "adam"})),
            [Change::OptimizerFamily, Change::Search]
        );
        assert_eq!(
            kinds(|body| body["optimizer"]["learning_rate"] = json!(0.5)),
            [Change::StartingLearningRate]
        );
        assert_eq!(
            kinds(|body| body["optimizer"]["momentum"] = json!(0.5)),
            [Change::OptimizerSettings]
        );
        // Weight decay is a further operation in every step.
        assert_eq!(
            kinds(|body| body["optimizer"]["weight_decay"] = json!(0.5)),
            [Change::OptimizerFamily]
        );
        assert_eq!(
            kinds(|body| body["workload"]["dataset"]["seed"] = json!(2)),
            [Change::DataSet]
        );
        assert_eq!(
            kinds(|body| body["workload"]["dataset"]["features"] = json!(20)),
            [Change::DataSetShape]
        );
        // Batch sizes are multiples of the number of devices: training begins at 64 on two and at 48 on six.
        let from_12 = |count: u64| {
            definition(|body| {
                body["batch_sizes"] = json!({"min": 12, "max": 768, "grid": "powers_of_two"});
                body["device"]["count"] = json!(count);
            })
        };
        let (two, four, six) = (from_12(2), from_12(4), from_12(6));
        let kind_of = |old, new| between(old, new).first().map(|it| it.change);
        assert_eq!(kind_of(&two, &four), Some(Change::DeviceCount));
        assert_eq!(kind_of(&two, &six), Some(Change::FirstBatchSize));
        // 64 is where training begins, unless it is left out.
        assert_eq!(
            kinds(|body| body["batch_sizes"] = json!({"max": 32})),
            [Change::BatchSizes, Change::FirstBatchSize]
        );
        assert_eq!(
            kinds(|body| body["batch_sizes"] = json!({"max": 512})),
            [Change::BatchSizes]
        );
        assert_eq!(
            kinds(|body| body["batch_sizes"] = json!({"grid": {"values": [16, 512]}})),
            [Change::FirstBatchSize]
        );
        assert_eq!(
            kinds(|body| body["costs"] = json!({"device_hour": 2})),
            [Change::Prices]
        );
        assert_eq!(
            kinds(|body| body["device"]["threads"] = json!(1)),
            [Change::Threads]
        );
    }

    #[test]
    fn the_table_knows_every_field_of_a_definition() {
        let definition = definition(|_| {});
        let Value::Object(fields) = serde_json::to_value(&definition).expect("JSON") else {
            panic!("an object");
        };
        for (name, value) in fields {
            let members: Vec<String> = match &value {
                Value::Object(members) if !members.is_empty() => members
                    .keys()
                    .map(|member| format!("/{name}/{member}"))
                    .collect(),
                _ => vec![format!("/{name}")],
            };
            for pointer in members {
                assert_ne!(
                    kind(&pointer, &definition, &definition),
                    Change::Other,
                    "{pointer}: say in `kind` what a change of it makes stale"
                );
            }
        }
    }
}

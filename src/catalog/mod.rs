//! What can be asked for, with provenance: the vocabulary of a study, as data that a client can
//! show. Pure, and left of `study` in the dependency rule, so it speaks of fields by their names in
//! JSON; a test holds it equal to the study's own types.

mod datasets;
mod measures;
mod models;
mod optimizers;
mod parameters;

use std::sync::LazyLock;

use serde::Serialize;
use utoipa::ToSchema;

/// Everything that a study may name.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Catalog {
    /// Model families (`workload.model.family`).
    pub model_families: Vec<ModelFamily>,
    /// Layers of a `sequential` model (`workload.model.layers[].layer`).
    pub layers: Vec<Component>,
    /// Normalizations (`kind`, wherever a model or a layer has one).
    pub normalizations: Vec<Component>,
    /// Ways to draw weights (`workload.model.initialisation`).
    pub initialisations: Vec<Component>,
    /// Optimizers (`optimizer.family`).
    pub optimizers: Vec<OptimizerFamily>,
    /// Learning-rate schedules (`schedule.kind`).
    pub schedules: Vec<Component>,
    /// Ways to limit gradients (`gradient_clipping.kind`).
    pub gradient_clipping: Vec<Component>,
    /// What else a workload may say (`workload`).
    pub workload_options: Vec<Parameter>,
    /// Data sets (`workload.dataset.builtin`).
    pub datasets: Vec<DatasetEntry>,
    /// Training losses (`workload.loss`).
    pub losses: Vec<LossEntry>,
    /// What a model is judged by on the validation examples.
    pub evaluation_metrics: Vec<EvaluationEntry>,
    /// What probes measure.
    pub metrics: Vec<MetricEntry>,
    /// What probes do.
    pub probe_kinds: Vec<ProbeKindEntry>,
}

/// Where something comes from.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Provenance {
    /// Authors, year and title.
    pub source: &'static str,
    /// Where to read it.
    #[schema(example = "https://arxiv.org/abs/1412.6980")]
    pub url: &'static str,
}

/// A family of models.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelFamily {
    /// Its name in a study.
    pub name: &'static str,
    /// What it is.
    pub summary: &'static str,
    /// Its hyperparameters.
    pub parameters: Vec<Parameter>,
    /// Default sizes, small to large.
    pub sizes: Vec<ModelSize>,
    /// Number of trainable parameters as a formula.
    pub trainable_parameters: &'static str,
    /// How the weights are initialised.
    pub initialisation: &'static str,
    /// The optimizer to start with, by its name here.
    pub first_optimizer: &'static str,
    /// What the examples may be.
    pub reads: &'static str,
    /// What a member of the family is known to reach, and by whom; absent where nothing is published.
    pub known_result: Option<KnownResult>,
    /// Results on data sets that need no upload, with every setting: a study can reproduce them.
    pub references: Vec<ReferenceResult>,
    /// Where it comes from.
    pub provenance: Vec<Provenance>,
}

/// A published result.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct KnownResult {
    /// Which member of the family, on what, reaches what.
    pub what: &'static str,
    /// Where it is published.
    pub provenance: Provenance,
}

/// A result that can be reproduced: training of this model on this data set, so optimised, needs so many steps to
/// the target.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ReferenceResult {
    /// Which result, in a sentence.
    pub what: &'static str,
    /// The data set, as a study names it.
    #[schema(value_type = Object)]
    pub dataset: serde_json::Value,
    /// The model, as a study names it.
    #[schema(value_type = Object)]
    pub model: serde_json::Value,
    /// The optimizer, as a study names it.
    #[schema(value_type = Object)]
    pub optimizer: serde_json::Value,
    /// Examples per step.
    pub batch_size: u64,
    /// The metric of the target.
    pub metric: &'static str,
    /// The value of the metric that is reached.
    pub target: f64,
    /// Optimizer steps to it, a typical run's.
    pub steps: f64,
    /// The median of a few runs is within this factor of `steps` when the result is reproduced.
    pub within_factor: f64,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// Something with parameters that a study names by its kind.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Component {
    /// Its name in a study.
    pub name: &'static str,
    /// What it is.
    pub summary: &'static str,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// Where it comes from.
    pub provenance: Vec<Provenance>,
}

/// A metric of the validation examples.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EvaluationEntry {
    /// Its name in a study and in measurements.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Whether less is better.
    pub minimized: bool,
    /// The tasks that have it.
    pub tasks: Vec<&'static str>,
    /// What it is.
    pub summary: &'static str,
}

/// The type of a parameter's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ParameterType {
    /// A whole number.
    Integer,
    /// A real number.
    Real,
    /// One of a list of names.
    Choice,
    /// A list of whole numbers.
    IntegerList,
    /// True or false.
    Boolean,
    /// A normalization, one of `normalizations` with its parameters.
    Normalization,
    /// A list of layers, each one of `layers` with its parameters.
    LayerList,
    /// How batches come to the training: an object with `threads` and `prefetch_batches`.
    InputPipeline,
    /// A name.
    Name,
}

/// A hyperparameter of a model or a parameter of a data set.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Parameter {
    /// Its name in a study.
    pub name: &'static str,
    /// The type of its values.
    #[serde(rename = "type")]
    pub value_type: ParameterType,
    /// What it is.
    pub summary: &'static str,
    /// The value that is used when none is given; null where one must be given or where the summary says
    /// what follows from leaving it out.
    #[schema(value_type = Value)]
    pub default: serde_json::Value,
    /// Whether one must be given.
    pub required: bool,
    /// What is allowed, in words.
    pub allowed: String,
    /// The smallest value allowed (of each element, for a list); null for no bound.
    pub minimum: Option<f64>,
    /// The largest value allowed.
    pub maximum: Option<f64>,
    /// Whether the lower bound itself is excluded.
    pub exclusive_minimum: bool,
    /// Whether the upper bound itself is excluded.
    pub exclusive_maximum: bool,
    /// The names to choose from; empty unless `type` is `choice`.
    pub choices: Vec<&'static str>,
}

/// One default size of a model family.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ModelSize {
    /// `S`, `M` or `L`.
    pub name: &'static str,
    /// The parameters that make it, ready to be put into a study.
    #[schema(value_type = Object)]
    pub parameters: serde_json::Value,
}

/// An optimizer with its update rule.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OptimizerFamily {
    /// Its name in a study.
    pub name: &'static str,
    /// What it is.
    pub summary: &'static str,
    /// One step, in formulae: θ parameters, g gradient, η learning rate, t step from 1.
    pub update_rule: &'static str,
    /// Every hyperparameter of the rule; none is implicit.
    pub hyperparameters: Vec<Hyperparameter>,
    /// Where sources differ in the rule, which form is meant.
    pub forms: Vec<Parameter>,
    /// Numbers of state kept for each trainable parameter.
    pub state_per_parameter: u64,
    /// Where it comes from.
    pub provenance: Vec<Provenance>,
}

/// A hyperparameter of an optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Hyperparameter {
    /// Its name in a study.
    pub name: &'static str,
    /// Its letter in the update rule.
    pub symbol: &'static str,
    /// The value that is used when none is given.
    pub default: f64,
    /// What is allowed, in words.
    pub allowed: &'static str,
    /// Where to search for it.
    pub search_space: SearchRange,
}

/// Where to search for a hyperparameter. A range belongs to its optimizer and is not shared.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SearchRange {
    /// The quantity that is searched, as a formula of the hyperparameters.
    #[schema(example = "1 - momentum")]
    pub quantity: &'static str,
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
    /// How points are spread.
    pub scale: Scale,
}

/// How points are spread over a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Evenly in the logarithm.
    Log,
}

/// A data set.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DatasetEntry {
    /// Its name in a study.
    pub name: &'static str,
    /// What it is.
    pub summary: &'static str,
    /// The kind of task.
    pub task: &'static str,
    /// Its parameters.
    pub parameters: Vec<Parameter>,
    /// What was done to the raw figures.
    pub preprocessing: &'static str,
    /// Its licence.
    pub licence: &'static str,
    /// Where it comes from.
    pub provenance: Vec<Provenance>,
}

/// A training loss.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LossEntry {
    /// Its name in a study.
    pub name: &'static str,
    /// What it is, as a formula.
    pub summary: &'static str,
    /// Its unit.
    pub unit: &'static str,
}

/// What a probe measures.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MetricEntry {
    /// Its name in measurements.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it is.
    pub summary: &'static str,
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ProbeKindEntry {
    /// Its name in probes.
    pub name: &'static str,
    /// The question that it answers.
    pub question: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Whether it has its device alone.
    pub exclusive: bool,
}

/// The optimizers.
pub fn optimizer_families() -> &'static [OptimizerFamily] {
    static ONCE: LazyLock<Vec<OptimizerFamily>> = LazyLock::new(optimizers::optimizers);
    &ONCE
}

/// The model families.
pub fn model_families() -> &'static [ModelFamily] {
    static ONCE: LazyLock<Vec<ModelFamily>> = LazyLock::new(models::families);
    &ONCE
}

/// The range over which a hyperparameter of an optimizer is searched, where it is known.
pub fn search_range(optimizer: &str, hyperparameter: &str) -> Option<SearchRange> {
    let family = optimizer_families()
        .iter()
        .find(|family| family.name == optimizer)?;
    let mut all = family.hyperparameters.iter();
    all.find(|it| it.name == hyperparameter)
        .map(|it| it.search_space.clone())
}

/// Everything that a study may name.
pub fn catalog() -> Catalog {
    Catalog {
        model_families: models::families(),
        layers: models::layers(),
        normalizations: models::normalizations(),
        initialisations: models::initialisations(),
        optimizers: optimizers::optimizers(),
        schedules: optimizers::schedules(),
        gradient_clipping: optimizers::gradient_clipping(),
        workload_options: measures::workload_options(),
        datasets: datasets::datasets(),
        losses: measures::losses(),
        evaluation_metrics: measures::evaluation_metrics(),
        metrics: measures::metrics(),
        probe_kinds: measures::probe_kinds(),
    }
}

//! What can be asked for, with provenance: the vocabulary of a study, as data that a client can
//! show. Pure, and left of `study` in the dependency rule, so it speaks of fields by their names in
//! JSON; a test holds it equal to the study's own types.

mod entries;

use serde::Serialize;
use utoipa::ToSchema;

/// Everything that a study may name.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Catalog {
    /// Model families (`workload.model.family`).
    pub model_families: Vec<ModelFamily>,
    /// Optimizers (`optimizer.family`).
    pub optimizers: Vec<OptimizerFamily>,
    /// Data sets (`workload.dataset.builtin`).
    pub datasets: Vec<DatasetEntry>,
    /// Training losses (`workload.loss`).
    pub losses: Vec<LossEntry>,
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
    /// Where it comes from.
    pub provenance: Vec<Provenance>,
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
    /// The value that is used when none is given.
    pub default: serde_json::Value,
    /// What is allowed, in words.
    pub allowed: &'static str,
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

/// Everything that a study may name.
pub fn catalog() -> Catalog {
    Catalog {
        model_families: entries::model_families(),
        optimizers: entries::optimizers(),
        datasets: entries::datasets(),
        losses: entries::losses(),
        metrics: entries::metrics(),
        probe_kinds: entries::probe_kinds(),
    }
}

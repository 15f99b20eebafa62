//! What to do, why, and how sure. Pure and deterministic.

mod accumulation;
mod batch_norm;
mod batch_size;
mod bells;
mod bottleneck;
mod critical_batch_size;
mod devices;
mod feasible;
mod initial;
mod optimizer;
mod quality;
pub mod report;
mod retuning;
pub mod staleness;
mod start_from;
mod tables;
mod throughput;
mod training_time;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::analysis::devices::SERIES;
use crate::analysis::{Analysis, Caveat, Evidence, ProbeRecord};
use crate::probe::ProbeKind;
use crate::study::{BatchSize, Hyperparameter, Optimizer, ProbeId, Question, StudyDefinition};

/// What a recommendation is about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// The batch sizes that fit the memory budget.
    FeasibleBatchSizes,
    /// The throughput of each and where it stops rising.
    TrainingThroughput,
    /// What keeps a step from being shorter.
    Bottleneck,
    /// What gradient accumulation brings.
    GradientAccumulation,
    /// The batch size to start with.
    BatchSize,
    /// Up to where larger batches save steps.
    CriticalBatchSize,
    /// What training uses up at each batch size.
    ResourceConsumption,
    /// Whether what has to be paid for larger batch sizes pays.
    UpfrontCost,
    /// Whether training ends with the same quality at every batch size.
    QualityAcrossBatchSizes,
    /// What must be measured and tuned again when something changes.
    Retuning,
    /// The model to start from.
    StartFrom,
    /// The configuration to start with.
    InitialConfiguration,
    /// The learning rate to start with.
    LearningRate,
    /// The number of steps to train for.
    NumberOfSteps,
    /// The optimizer to start with.
    Optimizer,
    /// Over how many examples batch normalization takes its statistics.
    BatchNorm,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 16] = [
        Self::FeasibleBatchSizes,
        Self::TrainingThroughput,
        Self::Bottleneck,
        Self::GradientAccumulation,
        Self::BatchSize,
        Self::CriticalBatchSize,
        Self::ResourceConsumption,
        Self::UpfrontCost,
        Self::QualityAcrossBatchSizes,
        Self::Retuning,
        Self::StartFrom,
        Self::InitialConfiguration,
        Self::LearningRate,
        Self::NumberOfSteps,
        Self::Optimizer,
        Self::BatchNorm,
    ];

    /// The name used in JSON, in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FeasibleBatchSizes => "feasible_batch_sizes",
            Self::TrainingThroughput => "training_throughput",
            Self::Bottleneck => "bottleneck",
            Self::GradientAccumulation => "gradient_accumulation",
            Self::BatchSize => "batch_size",
            Self::CriticalBatchSize => "critical_batch_size",
            Self::ResourceConsumption => "resource_consumption",
            Self::UpfrontCost => "upfront_cost",
            Self::QualityAcrossBatchSizes => "quality_across_batch_sizes",
            Self::Retuning => "retuning",
            Self::StartFrom => "start_from",
            Self::InitialConfiguration => "initial_configuration",
            Self::LearningRate => "learning_rate",
            Self::NumberOfSteps => "number_of_steps",
            Self::Optimizer => "optimizer",
            Self::BatchNorm => "batch_norm",
        }
    }

    /// Reads [`as_str`](Self::as_str) back.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.as_str() == name)
    }
}

/// Where advice comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Measurements of this workload.
    Measured,
    /// A rule of the field; what it rests on was not measured here.
    RuleOfThumb,
}

/// How sure a recommendation is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// Something it needs is missing or disturbed.
    Low,
    /// Probably right.
    Moderate,
    /// Very probably right.
    High,
}

impl Grade {
    /// The name used in JSON, in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Moderate => "moderate",
            Self::High => "high",
        }
    }
}

/// How sure a recommendation is, with the figures behind the grade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Confidence {
    /// The grade.
    pub grade: Grade,
    /// Why this grade, in a sentence.
    pub because: String,
    /// Probability that the value is the best of the candidates; null where it is not estimated.
    pub p_best: Option<f64>,
    /// Probability that the value is within 5% of the best; null where it is not estimated.
    pub p_within_5pct: Option<f64>,
    /// Other candidates that cannot be told apart from it.
    pub near_ties: Vec<BatchSize>,
}

/// A probe that a recommendation rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceRef {
    /// The probe.
    pub probe_id: ProbeId,
    /// Its kind.
    pub kind: ProbeKind,
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Whether it was made by another study.
    #[serde(default)]
    pub reused: bool,
}

/// One piece of advice, before it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Advice {
    /// What it is about.
    pub topic: Topic,
    /// The advice as data; the main figure has the topic's plain name.
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
    /// The advice in two or three sentences, with the figures.
    pub summary: String,
    /// Where it comes from.
    pub basis: Basis,
    /// How sure it is.
    pub confidence: Confidence,
    /// What it rests on.
    pub evidence: Vec<EvidenceRef>,
    /// What limits it.
    pub caveats: Vec<Caveat>,
    /// Section of the Deep Learning Tuning Playbook.
    pub playbook: String,
}

/// What the evidence so far allows to be said, on the topics that were asked about. Topics that
/// nothing can be said about yet are absent.
pub fn recommend(
    definition: &StudyDefinition,
    evidence: &Evidence,
    analysis: &Analysis,
) -> Vec<Advice> {
    type Advise = fn(&StudyDefinition, &Evidence, &Analysis) -> Option<Advice>;
    let topics: [(Question, Advise); 14] = [
        (Question::FeasibleBatchSizes, feasible::advise),
        (Question::Throughput, throughput::advise),
        (Question::Bottleneck, bottleneck::advise),
        (Question::GradientAccumulation, accumulation::advise),
        (Question::BatchSize, batch_size::advise),
        (Question::CriticalBatchSize, critical_batch_size::advise),
        (Question::BatchSize, training_time::resource_consumption),
        (Question::BatchSize, training_time::upfront_cost),
        (Question::QualityAcrossBatchSizes, quality::advise),
        (Question::BatchSize, retuning::advise),
        (Question::InitialConfiguration, start_from::advise),
        (Question::InitialConfiguration, initial::advise),
        (Question::InitialConfiguration, initial::learning_rate),
        (Question::InitialConfiguration, initial::number_of_steps),
    ];
    // These read the probes of comparisons, and the rest does not.
    let comparing: [(Question, Advise); 2] = [
        (Question::Optimizer, optimizer::advise),
        (Question::BatchNorm, batch_norm::advise),
    ];
    // What was timed on fewer devices stands beside the study's own times.
    let own = &Evidence {
        probes: evidence
            .probes
            .iter()
            .filter(|probe| [0, SERIES].contains(&probe.series()))
            .cloned()
            .collect(),
    };
    topics
        .into_iter()
        .map(|topic| (topic, own))
        .chain(comparing.map(|topic| (topic, evidence)))
        .filter(|((question, _), _)| definition.questions.contains(question))
        .filter_map(|((_, advise), read)| advise(definition, read, analysis))
        .collect()
}

/// References to the ended probes that match.
fn references(evidence: &Evidence, matches: impl Fn(&ProbeRecord) -> bool) -> Vec<EvidenceRef> {
    evidence
        .probes
        .iter()
        .filter(|probe| probe.state.has_ended() && matches(probe))
        .map(|probe| EvidenceRef {
            probe_id: probe.id,
            kind: probe.kind(),
            batch_size: probe.batch_size(),
            reused: probe.reused,
        })
        .collect()
}

/// What was drawn a few thousand times is never certain.
fn probability(value: f64) -> String {
    if value > 0.99 {
        "more than 0.99".to_owned()
    } else {
        format!("{value:.2}")
    }
}

/// Batch sizes in a sentence: `32, 64 and 128`.
fn sizes(sizes: &[BatchSize]) -> String {
    match sizes {
        [] => String::new(),
        [one] => one.to_string(),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(BatchSize::to_string).collect();
            format!("{} and {last}", first.join(", "))
        }
    }
}

/// An optimizer with the hyperparameters that are usually tuned.
fn optimizer_text(optimizer: &Optimizer) -> String {
    let mut text = optimizer.family().to_owned();
    for (index, hyperparameter) in Hyperparameter::ALL.into_iter().enumerate() {
        if let Some(value) = optimizer.get(hyperparameter)
            && (index < 3 || value != 0.0)
        {
            text.push_str(&format!(
                ", {} {}",
                hyperparameter.as_str().replace('_', " "),
                three_figures(value)
            ));
        }
    }
    text
}

/// A number with three significant figures, without needless zeros.
fn three_figures(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let exponent = value.abs().log10().floor();
    if !(-4.0..6.0).contains(&exponent) {
        return format!("{value:.2e}");
    }
    let decimals = (2.0 - exponent).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Whether something else ran on the host while times were taken: no grade above low then.
fn is_contended(caveats: &[Caveat]) -> bool {
    caveats
        .iter()
        .any(|caveat| matches!(caveat.code.as_str(), "W_HOST_CONTENDED" | "W_CANARY"))
}

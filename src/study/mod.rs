//! What is asked: the study definition, its parts, ids and states. Pure: no clock, no I/O.

pub mod changes;
pub mod comparison;
pub mod costs;
pub mod dataset;
pub mod defaults;
pub mod definition;
pub mod evaluation;
pub mod model;
pub mod network;
pub mod optimizer;
pub mod runner;
pub mod search_space;
pub mod shape;
pub mod states;
pub mod units;
pub mod upload;
pub mod validation;

pub use changes::{Change, Changed, Figure, between};
pub use comparison::{
    BatchNormProbe, LEAST_GHOST_BATCH, OptimizerComparison, Role, TreatedHyperparameter, Tuning,
};
pub use costs::{Costs, Design, Objective, ProjectPhase, UpfrontCost};
pub use dataset::{
    BuiltinDataset, Contents, Dataset, DatasetRequest, ExternalDataset, ExternalFacts,
    StoredDataset, UploadedDataset, UploadedRequest, is_noisy_quadratic,
};
pub use defaults::{DeviceFactsForDefaults, fill_device, first_batch_size, resolve};
pub use definition::*;
pub use evaluation::{EvaluationMetric, EvaluationTarget, Goal, TargetRequest};
pub use model::{Activation, Cell, Initialisation, Layer, Model, Normalization, ResnetStyle};
pub use network::{Network, NetworkError, Placed};
pub use optimizer::{
    AdamEpsilon, GradientClipping, InitialSquare, Optimizer, OptimizerForm, RmsPropEpsilon,
    Schedule,
};
pub use runner::{BURN, Runner, is_runner_name};
pub use search_space::{
    Axis, Configuration, Hyperparameter, Range, Regularisation, Search, SearchRequest, SearchSpace,
};
pub use shape::{Facts, Shape, Target};
pub use states::{EndedBecause, StudyState};
pub use units::{
    BatchSize, Bytes, DatasetId, DeviceId, LeaseId, ProbeId, RecommendationId, StudyId,
};
pub use validation::{DefinitionLimits, DefinitionRules, Rejected, Violation};

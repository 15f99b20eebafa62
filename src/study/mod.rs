//! What is asked: the study definition, its parts, ids and states. Pure: no clock, no I/O.

pub mod defaults;
pub mod definition;
pub mod states;
pub mod units;
pub mod validation;

pub use defaults::{DeviceFactsForDefaults, fill_device, resolve};
pub use definition::*;
pub use states::{EndedBecause, StudyState};
pub use units::{BatchSize, Bytes, DeviceId, LeaseId, ProbeId, RecommendationId, StudyId};
pub use validation::{DefinitionLimits, DefinitionRules, Rejected, Violation};

//! What is asked: the study definition, its parts, ids and states. Pure: no clock, no I/O.

pub mod definition;
pub mod states;
pub mod units;
pub mod validation;

pub use definition::*;
pub use states::{EndedBecause, StudyState};
pub use units::{BatchSize, Bytes, DeviceId, LeaseId, ProbeId, RecommendationId, StudyId};

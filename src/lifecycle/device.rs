//! Which device model a study is for. It resolves to one; several live ones that match are a
//! question back to the caller, none is something to wait for.

use crate::store::devices::DeviceRow;
use crate::study::defaults::DeviceFactsForDefaults;
use crate::study::validation::Violation;
use crate::study::{BURN, Backend, Bytes};

/// What the study says about its device.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub backend: Backend,
    pub model: Option<&'a str>,
    /// How many of one host must train together.
    pub count: u32,
    pub memory_budget: Option<Bytes>,
    /// The runner that must be offered on it.
    pub runner: &'a str,
}

/// What the live devices make of a wish.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// One device model can serve it.
    One(DeviceFactsForDefaults),
    /// No live worker can serve it; this is what is missing.
    None { waiting_for: String },
    /// Several device models match.
    Ambiguous { models: Vec<String> },
    /// The wish is larger than the device.
    TooSmall { model: String, memory: Bytes },
}

/// Chooses among the live devices.
pub fn choose(wish: Wish<'_>, live: &[DeviceRow]) -> Choice {
    let matching: Vec<&DeviceRow> = live
        .iter()
        .filter(|device| device.backend == wish.backend.as_str())
        .filter(|device| wish.model.is_none_or(|model| model == device.model))
        .filter(|device| device.count >= i32::try_from(wish.count).unwrap_or(i32::MAX))
        .filter(|device| device.runners.iter().any(|runner| runner == wish.runner))
        .collect();
    let mut models: Vec<String> = matching.iter().map(|device| device.model.clone()).collect();
    models.sort();
    models.dedup();
    if models.len() > 1 {
        return Choice::Ambiguous { models };
    }
    // Several hosts may have the same model: what holds on each is what the smallest allows.
    let Some(smallest) = matching.iter().min_by_key(|device| device.available_bytes) else {
        let backend = wish.backend.as_str();
        let mut waiting_for = match (wish.model, wish.count) {
            (Some(model), 0 | 1) => format!("a live worker with the {backend} device {model:?}"),
            (Some(model), count) => {
                format!(
                    "a live worker that offers {count} of the {backend} device {model:?} together"
                )
            }
            (None, 0 | 1) => format!("a live worker with a {backend} device"),
            (None, count) => {
                format!("a live worker that offers {count} {backend} devices together")
            }
        };
        if wish.runner != BURN {
            waiting_for.push_str(&format!(" that offers the runner {:?}", wish.runner));
        }
        return Choice::None { waiting_for };
    };
    let memory = Bytes(
        matching
            .iter()
            .map(|device| device.memory_bytes)
            .min()
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(0),
    );
    // Processes on one processor share its memory.
    let sharing = if wish.backend.is_gpu() {
        1
    } else {
        u64::from(wish.count.max(1))
    };
    let memory = Bytes(memory.0 / sharing);
    if wish.memory_budget.is_some_and(|budget| budget > memory) {
        return Choice::TooSmall {
            model: smallest.model.clone(),
            memory,
        };
    }
    Choice::One(DeviceFactsForDefaults {
        model: smallest.model.clone(),
        threads: u32::try_from(smallest.threads).unwrap_or(1).max(1),
        available_bytes: Bytes(u64::try_from(smallest.available_bytes).unwrap_or(0)),
    })
}

impl Choice {
    /// What a caller has to mend, if anything.
    pub fn violation(&self) -> Option<Violation> {
        match self {
            Self::One(_) | Self::None { .. } => None,
            Self::Ambiguous { models } => Some(Violation {
                pointer: "/device/model".into(),
                detail: format!(
                    "several live device models match; name one of: {}",
                    models.join(", ")
                ),
            }),
            Self::TooSmall { model, memory } => Some(Violation {
                pointer: "/device/memory_budget_bytes".into(),
                detail: format!(
                    "must be at most {} ({memory}), the memory of {model}: a larger budget would limit nothing",
                    memory.0
                ),
            }),
        }
    }
}

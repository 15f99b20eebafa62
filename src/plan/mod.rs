//! Which probes come next: a pure function of the study and the evidence so far.
//!
//! Planning goes in waves: a wave is planned when the one before it is complete, so the plan does
//! not depend on the order in which probes finish.

use crate::analysis::{Analysis, Evidence};
use crate::probe::ProbeSpec;
use crate::study::{EndedBecause, StudyDefinition};

/// A probe to be made, with the reason in a sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedProbe {
    /// What it is to do.
    pub spec: ProbeSpec,
    /// Why it was chosen, for people.
    pub why: String,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// The device is not known yet: no live worker can serve the study.
    WaitForDevice,
    /// Probes of the current wave are still open.
    WaitForProbes,
    /// The next wave, in the order it should run.
    Wave(Vec<PlannedProbe>),
    /// Nothing more is to be measured.
    Done {
        /// Why.
        because: EndedBecause,
        /// What that means here, for people.
        detail: String,
    },
}

/// The next step of a study, and how far it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What to do next.
    pub next: Next,
    /// What the study is doing, for people: `seeking the largest batch size that fits`, say.
    pub phase: String,
    /// Probes still to come, about (the open ones and the next wave included).
    pub remaining_probes: u64,
    /// Device time still to come, about, seconds.
    pub remaining_device_secs: f64,
}

/// Plans the next wave. Deterministic: the same study and evidence give the same plan.
pub fn plan(_definition: &StudyDefinition, _evidence: &Evidence, _analysis: &Analysis) -> Plan {
    Plan {
        next: Next::WaitForDevice,
        phase: String::new(),
        remaining_probes: 0,
        remaining_device_secs: 0.0,
    }
}

//! The unit of work: one bounded run of training code with one purpose, in a process of its own.
//!
//! This module is the contract of a runner. It reads a [`ProbeSpec`] as JSON on stdin and writes
//! [`Event`]s as JSON lines on the descriptor that `TRIALHEAD_EVENTS_FD` names; stdout and stderr
//! are logs. However it ends, [`classify`] turns the end into an [`Outcome`]. Pure: no I/O.

pub mod course;
pub mod event;
pub mod examples;
pub mod fingerprint;
pub mod gpu;
pub mod inputs;
pub mod metric;
pub mod outcome;
pub mod spec;
pub mod state;

pub use event::{Event, Measurement};
pub use gpu::{DEVICE_VARIABLE, GpuFacts};
pub use metric::{Metric, required_figures};
pub use outcome::{
    ChildEnd, Exit, FailureReason, InfeasibleReason, KilledFor, Outcome, classify, names_an_error,
};
pub use spec::{
    Accumulation, Batches, EVALUATION_RATIO, Limits, NoiseScaleRun, ProbeDevice, ProbeKind,
    ProbeSpec, RangeTest, StepTimeSampling, Task, TrainingRun, TurnSampling,
};
pub use state::ProbeState;

/// Version of the contract between service, worker and runner.
pub const PROTOCOL: u32 = 1;

/// The environment variable that marks a child and whatever it starts as belonging to one probe.
pub const PROBE_VARIABLE: &str = "TRIALHEAD_PROBE";

/// The environment variable that names the descriptor for events.
pub const EVENTS_FD_VARIABLE: &str = "TRIALHEAD_EVENTS_FD";

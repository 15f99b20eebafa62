//! How a probe ended, and how the end of a child process is read.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::event::Event;

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it was asked.
    Succeeded,
    /// It found that its task cannot be done: knowledge, never retried.
    Infeasible {
        /// Why.
        reason: InfeasibleReason,
        /// What happened, for people.
        detail: String,
    },
    /// Trouble that another attempt may not have.
    Failed {
        /// What kind of trouble.
        reason: FailureReason,
        /// What happened, for people.
        detail: String,
    },
    /// It was told to stop because no study wants it any more.
    Cancelled,
    /// Its worker is shutting down and hands it back: costs no attempt.
    HandedBack,
}

/// Why a probe's task cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InfeasibleReason {
    /// The memory limit was hit.
    OutOfMemory,
    /// The loss left the finite numbers.
    Diverged,
    /// The time limit was hit.
    TooSlow,
    /// The device cannot do it.
    DeviceUnsupported,
    /// The pipeline does not hold what training needs (`E_PIPELINE`): two evaluations of the same parameters differ, say.
    PipelineBroken,
}

impl InfeasibleReason {
    /// The name used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OutOfMemory => "out_of_memory",
            Self::Diverged => "diverged",
            Self::TooSlow => "too_slow",
            Self::DeviceUnsupported => "device_unsupported",
            Self::PipelineBroken => "pipeline_broken",
        }
    }

    /// Reads [`as_str`](Self::as_str) back.
    pub fn parse(name: &str) -> Option<Self> {
        [
            Self::OutOfMemory,
            Self::Diverged,
            Self::TooSlow,
            Self::DeviceUnsupported,
            Self::PipelineBroken,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == name)
    }
}

/// What kind of trouble a probe had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The child panicked, was killed by a signal, or ended without a word.
    Crashed,
    /// The child wrote something that is not the contract's.
    InvalidOutput,
    /// The child could not be started.
    NotStarted,
    /// Its worker vanished.
    Lost,
}

impl FailureReason {
    /// The name used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Crashed => "crashed",
            Self::InvalidOutput => "invalid_output",
            Self::NotStarted => "not_started",
            Self::Lost => "lost",
        }
    }

    /// Reads [`as_str`](Self::as_str) back.
    pub fn parse(name: &str) -> Option<Self> {
        [
            Self::Crashed,
            Self::InvalidOutput,
            Self::NotStarted,
            Self::Lost,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == name)
    }
}

/// How a child process ended, as its parent saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChildEnd {
    /// Exit code or signal.
    pub exit: Exit,
    /// The first line of stderr that names an error, if any: later ones are consequences.
    pub first_error_line: Option<String>,
    /// The last event, if it was one that ends a probe.
    pub last_event: Option<Event>,
    /// What was wrong with the child's events, if anything.
    pub invalid_output: Option<String>,
    /// Why the parent killed it, if it did.
    pub killed_for: Option<KilledFor>,
    /// Whether the kernel killed a process of the child's cgroup for memory.
    pub oom_killed: bool,
}

/// Exit code or signal of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It ended by itself.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

/// Why the parent killed a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KilledFor {
    /// The time limit.
    TimeLimit,
    /// Cancellation.
    Cancel,
    /// The lease was about to run out, or was lost.
    Lease,
    /// The worker is shutting down.
    Drain,
    /// Its events were more than the limit, or not the contract's.
    InvalidOutput,
}

/// Messages by which allocators and drivers say that memory ran out.
const OUT_OF_MEMORY_MESSAGES: [&str; 3] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "No pool handles allocation of size",
    "memory allocation of ",
];

const SIGKILL: i32 = 9;

/// Reads the end of a child process. What the parent did itself comes first, then what the child
/// said last, then what its first error line and its exit tell: out of memory is never caught
/// inside the process, and later error lines are consequences of the first.
pub fn classify(end: &ChildEnd) -> Outcome {
    match end.killed_for {
        Some(KilledFor::TimeLimit) => {
            return Outcome::Infeasible {
                reason: InfeasibleReason::TooSlow,
                detail: "the probe did not end within its time limit".into(),
            };
        }
        Some(KilledFor::Cancel) => return Outcome::Cancelled,
        Some(KilledFor::Drain | KilledFor::Lease) => return Outcome::HandedBack,
        Some(KilledFor::InvalidOutput) | None => {}
    }
    if let Some(detail) = &end.invalid_output {
        return Outcome::Failed {
            reason: FailureReason::InvalidOutput,
            detail: detail.clone(),
        };
    }
    match (&end.last_event, end.exit) {
        (Some(Event::Finished {}), Exit::Code(0)) => return Outcome::Succeeded,
        (Some(Event::Infeasible { reason, detail }), _) => {
            return Outcome::Infeasible {
                reason: *reason,
                detail: detail.clone(),
            };
        }
        _ => {}
    }
    let line = end.first_error_line.as_deref().unwrap_or_default();
    let ran_out = OUT_OF_MEMORY_MESSAGES
        .iter()
        .any(|message| line.contains(message));
    if ran_out || (end.oom_killed && end.exit == Exit::Signal(SIGKILL)) {
        return Outcome::Infeasible {
            reason: InfeasibleReason::OutOfMemory,
            detail: if ran_out {
                line.to_owned()
            } else {
                "the kernel killed the child because its memory limit was reached".into()
            },
        };
    }
    let how = match (&end.last_event, end.exit) {
        (Some(Event::Failed { detail }), _) => detail.clone(),
        (_, Exit::Code(0)) => "the child ended without saying that it had finished".to_owned(),
        (_, Exit::Code(code)) => format!("the child ended with exit code {code}"),
        (_, Exit::Signal(signal)) => format!("signal {signal} ended the child"),
    };
    Outcome::Failed {
        reason: FailureReason::Crashed,
        detail: if line.is_empty() {
            how
        } else {
            format!("{how}: {line}")
        },
    }
}

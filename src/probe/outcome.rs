//! How a probe ended, and how the end of a child process is read.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::event::Event;

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// What is told of a child's log with the detail of its end, characters.
const LOG_IN_DETAIL: usize = 600;

impl Outcome {
    /// With the end of the child's stderr in the detail, where the child is to blame: whoever reads why a pipeline
    /// is broken should not have to look for its log.
    pub fn with_log(mut self, stderr_tail: &str) -> Self {
        let detail = match &mut self {
            Self::Infeasible {
                reason: InfeasibleReason::PipelineBroken | InfeasibleReason::Diverged,
                detail,
            }
            | Self::Failed {
                reason: FailureReason::Crashed | FailureReason::InvalidOutput,
                detail,
            } => detail,
            _ => return self,
        };
        let log = stderr_tail.trim();
        let skipped = log.chars().count().saturating_sub(LOG_IN_DETAIL);
        let end: String = log.chars().skip(skipped).collect();
        if !end.is_empty() && !detail.contains(&end) {
            let cut = if skipped > 0 { "…" } else { "" };
            detail.push_str(&format!("; the child's log ends: {cut}{end}"));
        }
        self
    }
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
    /// The runner does not do probes of this kind, or not of this workload.
    RunnerUnsupported,
    /// The pipeline does not hold what training needs (`E_PIPELINE`): two evaluations of the same parameters differ, say.
    PipelineBroken,
    /// An uploaded file is no data set; only an inspection says this.
    DataRefused,
}

impl InfeasibleReason {
    /// The name used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OutOfMemory => "out_of_memory",
            Self::Diverged => "diverged",
            Self::TooSlow => "too_slow",
            Self::DeviceUnsupported => "device_unsupported",
            Self::RunnerUnsupported => "runner_unsupported",
            Self::PipelineBroken => "pipeline_broken",
            Self::DataRefused => "data_refused",
        }
    }

    /// Whether a runner may say so of itself. The time limit is the worker's to tell, and an upload is none of a
    /// probe's.
    pub fn may_be_told(self) -> bool {
        !matches!(self, Self::TooSlow | Self::DataRefused)
    }

    /// Reads [`as_str`](Self::as_str) back.
    pub fn parse(name: &str) -> Option<Self> {
        [
            Self::OutOfMemory,
            Self::Diverged,
            Self::TooSlow,
            Self::DeviceUnsupported,
            Self::RunnerUnsupported,
            Self::PipelineBroken,
            Self::DataRefused,
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

/// Messages by which allocators and drivers say that memory ran out. "memory allocation of N bytes
/// failed" is read apart ([`allocation_failed`]).
const OUT_OF_MEMORY_MESSAGES: [&str; 27] = [
    // CUDA, ROCm, Vulkan and CubeCL's pools.
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "hipErrorOutOfMemory",
    "VK_ERROR_OUT_OF_DEVICE_MEMORY",
    "VK_ERROR_OUT_OF_HOST_MEMORY",
    // burn's GPU runtime, CubeCL: `IoError` and `LaunchError` of cubecl-runtime 0.11, and pools before it.
    "out of device memory allocating ",
    "can't allocate buffer of size: ",
    "every page size the memory tracks still holds live allocations",
    "An out-of-memory error happened during launch",
    "No pool handles allocation of size",
    // wgpu 30: `Error::OutOfMemory`, and wgpu-core's `DeviceError::OutOfMemory` and
    // `CreateBufferError::MaxBufferSize`.
    "wgpu error: Out of Memory",
    "Not enough memory left.",
    "is greater than the maximum buffer size",
    // The C and C++ libraries.
    "Cannot allocate memory",
    "std::bad_alloc",
    // PyTorch and JAX, as other people's runners.
    "CUDA out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "RESOURCE_EXHAUSTED: Out of memory",
    "torch.OutOfMemoryError",
    "torch.cuda.OutOfMemoryError",
    "MPS backend out of memory",
    "HIP out of memory",
    "_ArrayMemoryError: Unable to allocate",
    // A thread needs nothing but room for its stack.
    "failed to map segment from shared object",
    "libgomp: Thread creation failed",
    "RuntimeError: can't start new thread",
    // Rust: an allocation larger than any address space.
    "capacity overflow",
];

/// Messages that say what a device cannot do, however often it is tried: what its driver does not understand, what
/// its kernels need more of than it has. A device that is lost, or that is away just now, is not among them.
const UNSUPPORTED_MESSAGES: [&str; 8] = [
    // CUDA's driver: too old for what was compiled, or for the card.
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    "hipErrorNoBinaryForGpu",
    // cudarc 0.19: no CUDA library on this host.
    "Unable to dynamically load the",
    // CubeCL: `LaunchError` of cubecl-runtime 0.11.
    "A compilation error happened during launch",
    "Too many resources were requested during launch",
];

/// Other beginnings of a line that names an error.
const ERROR_PREFIXES: [&str; 6] = [
    "error:",
    "error[",
    "fatal:",
    "terminate called",
    "segmentation fault",
    "assertion failed",
];

const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;

/// Whether a line of a log names an error: the first such line of a child's stderr is the cause of
/// its end, the later ones are consequences.
pub fn names_an_error(line: &str) -> bool {
    let line = line.trim();
    is_out_of_memory(line)
        || is_unsupported(line)
        || line.contains("panicked at")
        || line.contains("CUDA_ERROR_")
        || ERROR_PREFIXES.iter().any(|prefix| {
            line.get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        })
        || is_python_exception(line)
}

/// `torch.cuda.OutOfMemoryError: …`, `ValueError: …`: one dotted name that ends so, then a colon.
fn is_python_exception(line: &str) -> bool {
    line.split_once(':').is_some_and(|(name, _)| {
        (name.ends_with("Error") || name.ends_with("Exception"))
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_')
    })
}

fn is_out_of_memory(message: &str) -> bool {
    allocation_failed(message)
        || message.starts_with("MemoryError")
        || OUT_OF_MEMORY_MESSAGES
            .iter()
            .any(|known| message.contains(known))
}

fn is_unsupported(message: &str) -> bool {
    UNSUPPORTED_MESSAGES
        .iter()
        .any(|known| message.contains(known))
}

/// Rust's "memory allocation of N bytes failed", which comes before an abort. It is written in pieces, so
/// when several threads run out at once the pieces of one stand between those of another.
fn allocation_failed(line: &str) -> bool {
    const BEGINNING: &str = "memory allocation of ";
    const END: &str = " bytes failed";
    let Some((_, rest)) = line.split_once(BEGINNING) else {
        return false;
    };
    let counts = rest.replace(BEGINNING, "").replace(END, "");
    rest.contains(END) && !counts.is_empty() && counts.bytes().all(|byte| byte.is_ascii_digit())
}

impl Exit {
    /// The signal that ended the process, also one that a shell between has turned into a code of
    /// 128 and more.
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Signal(signal) => Some(signal),
            Self::Code(code @ 129..=192) => Some(code - 128),
            Self::Code(_) => None,
        }
    }
}

/// Reads the end of a child process. What the parent did itself comes first, then what the child
/// said last, then what its first error line and its exit tell: out of memory is never caught
/// inside the process, and later error lines are consequences of the first. A child that had said
/// and shown that it was done before a time limit or a drain could reach it has succeeded.
pub fn classify(end: &ChildEnd) -> Outcome {
    let is_done = matches!(
        (&end.last_event, end.exit, &end.invalid_output),
        (Some(Event::Finished {}), Exit::Code(0), None)
    );
    match end.killed_for {
        Some(KilledFor::TimeLimit) if !is_done => {
            return Outcome::Infeasible {
                reason: InfeasibleReason::TooSlow,
                detail: "the probe did not end within its time limit".into(),
            };
        }
        Some(KilledFor::Drain) if !is_done => return Outcome::HandedBack,
        Some(KilledFor::Lease) => return Outcome::HandedBack,
        Some(KilledFor::Cancel) => return Outcome::Cancelled,
        Some(KilledFor::TimeLimit | KilledFor::Drain | KilledFor::InvalidOutput) | None => {}
    }
    if let Some(detail) = &end.invalid_output {
        return Outcome::Failed {
            reason: FailureReason::InvalidOutput,
            detail: detail.clone(),
        };
    }
    if is_done {
        return Outcome::Succeeded;
    }
    if let Some(Event::Infeasible { reason, detail }) = &end.last_event {
        return Outcome::Infeasible {
            reason: *reason,
            detail: detail.clone(),
        };
    }
    if let Some(detail) = out_of_memory(end) {
        return Outcome::Infeasible {
            reason: InfeasibleReason::OutOfMemory,
            detail,
        };
    }
    if let Some(line) = end
        .first_error_line
        .as_deref()
        .filter(|it| is_unsupported(it))
    {
        return Outcome::Infeasible {
            reason: InfeasibleReason::DeviceUnsupported,
            detail: line.to_owned(),
        };
    }
    let how = match (&end.last_event, end.exit) {
        (Some(Event::Failed { detail }), _) => detail.clone(),
        (Some(Event::Finished {}), Exit::Code(code)) => {
            format!("the child said that it had finished, then ended with exit code {code}")
        }
        (Some(Event::Finished {}), Exit::Signal(signal)) => {
            format!("the child said that it had finished, then signal {signal} ended it")
        }
        (_, Exit::Code(0)) => "the child ended without saying that it had finished".to_owned(),
        (_, Exit::Code(code)) => format!("the child ended with exit code {code}"),
        (_, Exit::Signal(signal)) => format!("signal {signal} ended the child"),
    };
    let line = end.first_error_line.as_deref().unwrap_or_default();
    Outcome::Failed {
        reason: FailureReason::Crashed,
        detail: if line.is_empty() || how.contains(line) {
            how
        } else {
            format!("{how}: {line}")
        },
    }
}

/// Whether memory ended the child, and the words that say so.
fn out_of_memory(end: &ChildEnd) -> Option<String> {
    if let Some(line) = &end.first_error_line
        && is_out_of_memory(line)
        // Rust aborts after a failed allocation; a child that lived on after such a line had
        // another end.
        && (!allocation_failed(line) || end.exit.signal() == Some(SIGABRT))
    {
        return Some(line.clone());
    }
    if let Some(Event::Failed { detail }) = &end.last_event
        && end.first_error_line.is_none()
        && is_out_of_memory(detail)
    {
        return Some(detail.clone());
    }
    (end.oom_killed && end.exit.signal() == Some(SIGKILL)).then(|| {
        "the kernel killed the child because the memory of its control group ran out".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit: Exit) -> ChildEnd {
        ChildEnd {
            exit,
            first_error_line: None,
            last_event: None,
            invalid_output: None,
            killed_for: None,
            oom_killed: false,
        }
    }

    fn with_line(exit: Exit, line: &str) -> ChildEnd {
        assert!(names_an_error(line), "{line}");
        ChildEnd {
            first_error_line: Some(line.into()),
            ..end(exit)
        }
    }

    fn finished(exit: Exit) -> ChildEnd {
        ChildEnd {
            last_event: Some(Event::Finished {}),
            ..end(exit)
        }
    }

    fn infeasible(outcome: &Outcome) -> Option<InfeasibleReason> {
        match outcome {
            Outcome::Infeasible { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    fn failed(outcome: &Outcome) -> Option<FailureReason> {
        match outcome {
            Outcome::Failed { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    #[test]
    fn only_a_child_that_says_so_and_ends_cleanly_has_succeeded() {
        assert_eq!(classify(&finished(Exit::Code(0))), Outcome::Succeeded);
        for exit in [Exit::Code(1), Exit::Code(139), Exit::Signal(11)] {
            let outcome = classify(&finished(exit));
            assert_eq!(failed(&outcome), Some(FailureReason::Crashed), "{exit:?}");
        }
        let silent = classify(&end(Exit::Code(0)));
        assert_eq!(failed(&silent), Some(FailureReason::Crashed));
    }

    #[test]
    fn running_out_of_memory_is_known_by_the_first_error_line() {
        let known = [
            (
                "memory allocation of 1073741824 bytes failed",
                Exit::Signal(SIGABRT),
            ),
            ("memory allocation of 8 bytes failed", Exit::Code(134)),
            // Two threads at once.
            (
                "memory allocation of memory allocation of 15805440 bytes failed",
                Exit::Signal(SIGABRT),
            ),
            (
                "memory allocation of 1234memory allocation of 5678 bytes failed bytes failed",
                Exit::Signal(SIGABRT),
            ),
            (
                "thread 'main' (7) panicked at pool.rs:1:2: No pool handles allocation of size 9",
                Exit::Code(101),
            ),
            (
                "panicked at a.rs: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                Exit::Code(101),
            ),
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
                Exit::Code(1),
            ),
            (
                "thread 'x' panicked at a.rs:1:1: capacity overflow",
                Exit::Code(101),
            ),
        ];
        for (line, exit) in known {
            let outcome = classify(&with_line(exit, line));
            assert_eq!(
                infeasible(&outcome),
                Some(InfeasibleReason::OutOfMemory),
                "{line}"
            );
        }
        let other = [
            (
                "thread 'main' panicked at a.rs:1:2: index out of bounds",
                Exit::Code(101),
            ),
            (
                "error: memory allocation of a few bytes failed",
                Exit::Code(1),
            ),
            // It survived that.
            ("memory allocation of 8 bytes failed", Exit::Code(1)),
            ("Fatal: CUDA_ERROR_ILLEGAL_ADDRESS", Exit::Signal(SIGABRT)),
        ];
        for (line, exit) in other {
            let outcome = classify(&with_line(exit, line));
            assert_eq!(failed(&outcome), Some(FailureReason::Crashed), "{line}");
        }
    }

    #[test]
    fn a_kill_is_out_of_memory_only_if_the_kernel_counted_one() {
        let killed = end(Exit::Signal(SIGKILL));
        assert_eq!(failed(&classify(&killed)), Some(FailureReason::Crashed));
        let counted = ChildEnd {
            oom_killed: true,
            ..killed
        };
        assert_eq!(
            infeasible(&classify(&counted)),
            Some(InfeasibleReason::OutOfMemory)
        );
        let other_end = ChildEnd {
            oom_killed: true,
            ..end(Exit::Code(101))
        };
        assert_eq!(failed(&classify(&other_end)), Some(FailureReason::Crashed));
    }

    #[test]
    fn what_the_child_found_out_stands_however_it_ends() {
        for exit in [Exit::Code(0), Exit::Code(3), Exit::Signal(11)] {
            let diverged = ChildEnd {
                last_event: Some(Event::Infeasible {
                    reason: InfeasibleReason::Diverged,
                    detail: "the loss is NaN".into(),
                }),
                ..end(exit)
            };
            assert_eq!(
                infeasible(&classify(&diverged)),
                Some(InfeasibleReason::Diverged)
            );
        }
    }

    #[test]
    fn a_failure_keeps_the_words_of_the_child_and_of_its_first_error() {
        let said = ChildEnd {
            last_event: Some(Event::Failed {
                detail: "no such data set".into(),
            }),
            ..with_line(Exit::Code(1), "error: cannot open x")
        };
        let Outcome::Failed { reason, detail } = classify(&said) else {
            panic!("a failure");
        };
        assert_eq!(reason, FailureReason::Crashed);
        assert_eq!(detail, "no such data set: error: cannot open x");
        let out = ChildEnd {
            last_event: Some(Event::Failed {
                detail: "CUDA out of memory".into(),
            }),
            ..end(Exit::Code(1))
        };
        assert_eq!(
            infeasible(&classify(&out)),
            Some(InfeasibleReason::OutOfMemory)
        );
    }

    #[test]
    fn what_the_parent_did_comes_first() {
        let killed = |reason| ChildEnd {
            killed_for: Some(reason),
            ..with_line(Exit::Signal(SIGKILL), "memory allocation of 8 bytes failed")
        };
        assert_eq!(
            infeasible(&classify(&killed(KilledFor::TimeLimit))),
            Some(InfeasibleReason::TooSlow)
        );
        assert_eq!(classify(&killed(KilledFor::Cancel)), Outcome::Cancelled);
        assert_eq!(classify(&killed(KilledFor::Drain)), Outcome::HandedBack);
        assert_eq!(classify(&killed(KilledFor::Lease)), Outcome::HandedBack);
        let garbage = ChildEnd {
            invalid_output: Some("not an event".into()),
            ..killed(KilledFor::InvalidOutput)
        };
        assert_eq!(
            failed(&classify(&garbage)),
            Some(FailureReason::InvalidOutput)
        );
    }

    #[test]
    fn a_limit_that_comes_after_the_work_was_done_takes_nothing_away() {
        let late = |reason| ChildEnd {
            killed_for: Some(reason),
            ..finished(Exit::Code(0))
        };
        assert_eq!(classify(&late(KilledFor::TimeLimit)), Outcome::Succeeded);
        assert_eq!(classify(&late(KilledFor::Drain)), Outcome::Succeeded);
        assert_eq!(classify(&late(KilledFor::Cancel)), Outcome::Cancelled);
        assert_eq!(classify(&late(KilledFor::Lease)), Outcome::HandedBack);
    }

    /// What GPUs' drivers and runtimes say, with where it is said.
    #[test]
    fn a_gpu_that_runs_out_of_memory_is_known_by_its_runtimes_words() {
        let known = [
            // cubecl-runtime 0.11.3, server/base.rs: IoError::OutOfMemory, which cubecl-cuda, cubecl-hip and
            // cubecl-wgpu (Vulkan) make of their drivers' out-of-memory codes.
            "thread 'main' panicked at a.rs:1:2: out of device memory allocating 1073741824 bytes",
            // The same: IoError::BufferTooBig, PageSizesExhausted, StorageMappingFailed; LaunchError::OutOfMemory.
            "thread 'main' panicked at a.rs:1:2: can't allocate buffer of size: 4294967296",
            "panicked at a.rs: Can't allocate 64 bytes: every page size the memory tracks still holds live allocations",
            "panicked at a.rs: An out-of-memory error happened during launch",
            // cubecl-cuda through cudarc 0.19: the driver's own name of the code.
            "panicked at a.rs: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            // wgpu 30: api/device.rs Error::OutOfMemory in cubecl-wgpu's handler (compute/device_poison.rs), and
            // wgpu-core 30: DeviceError::OutOfMemory, CreateBufferError::MaxBufferSize.
            "panicked at a.rs: wgpu error: Out of Memory",
            "panicked at a.rs: Not enough memory left.",
            "panicked at a.rs: Buffer size 8589934592 is greater than the maximum buffer size (4294967296)",
        ];
        for line in known {
            let outcome = classify(&with_line(Exit::Code(101), line));
            assert_eq!(
                infeasible(&outcome),
                Some(InfeasibleReason::OutOfMemory),
                "{line}"
            );
        }
    }

    #[test]
    fn what_a_device_cannot_do_is_told_from_a_device_that_failed() {
        let unsupported = [
            // cudarc 0.19, src/lib.rs: panic_no_lib_found.
            "thread 'main' panicked at lib.rs:1:2: Unable to dynamically load the \"cuda\" shared library - searched for library names: []",
            // The CUDA driver's own names of its codes.
            "panicked at a.rs: DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"the provided PTX was compiled with an unsupported toolchain.\")",
            "panicked at a.rs: DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU, \"no kernel image is available\")",
            // cubecl-runtime 0.11.3, server/base.rs: LaunchError.
            "panicked at a.rs: A compilation error happened during launch",
            "panicked at a.rs: Too many resources were requested during launch",
        ];
        for line in unsupported {
            let outcome = classify(&with_line(Exit::Code(101), line));
            assert_eq!(
                infeasible(&outcome),
                Some(InfeasibleReason::DeviceUnsupported),
                "{line}"
            );
        }
        let trouble = [
            // cubecl-runtime 0.11.3: IoError::DevicePoisoned, LaunchError::DevicePoisoned. Another try may have another card.
            "panicked at a.rs: The device is poisoned: Unknown: device lost",
            "panicked at a.rs: The device was poisoned during launch",
            "panicked at a.rs: DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
            "panicked at a.rs: DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device is detected\")",
            // cubecl-wgpu 0.11.3, runtime.rs.
            "panicked at a.rs: Unable to acquire wgpu device: No adapter available for DiscreteGpu(0)",
        ];
        for line in trouble {
            let outcome = classify(&with_line(Exit::Code(101), line));
            assert_eq!(failed(&outcome), Some(FailureReason::Crashed), "{line}");
        }
    }

    #[test]
    fn ordinary_log_lines_name_no_error() {
        for line in [
            "",
            "training started",
            "0 errors, 3 warnings",
            "allocated memory of 5 bytes",
            "note: run with `RUST_BACKTRACE=1`",
            "Traceback (most recent call last):",
            "é",
        ] {
            assert!(!names_an_error(line), "{line}");
        }
        assert!(names_an_error("Error: cannot open x"));
        assert!(names_an_error("ValueError: shapes differ"));
    }
}

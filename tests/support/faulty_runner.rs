//! A runner that trains like the real one and is slow on purpose: `faulty_runner LOAD READBACK LAUNCH`, each in
//! microseconds.

use std::process::ExitCode;
use std::time::Duration;

use trialhead::trainer::memory::WatchedAllocator;
use trialhead::trainer::{Faults, run_probe_with};

/// As the real one has it: without, no peak of memory could be told.
#[global_allocator]
static ALLOCATOR: WatchedAllocator = WatchedAllocator;

fn main() -> ExitCode {
    let mut times = std::env::args()
        .skip(1)
        .map(|argument| Duration::from_micros(argument.parse().expect("a number of microseconds")));
    let mut next = || times.next().unwrap_or_default();
    run_probe_with(Faults {
        load: next(),
        readback: next(),
        launch: next(),
    })
}

//! Slowness on purpose, for tests of what finds it. A service's own children have none.

use std::time::Duration;

/// What takes longer than it must.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Gathering a batch.
    pub load: Duration,
    /// Reading a loss back.
    pub readback: Duration,
    /// Launching the work of a layer: once in the forward pass, twice in the backward pass, once in the
    /// optimizer's step.
    pub launch: Duration,
}

impl Faults {
    /// Waits for so many launches.
    pub(super) fn launch(&self, launches: u32) {
        wait(self.launch.saturating_mul(launches));
    }

    /// Waits for a loss.
    pub(super) fn read_back(&self) {
        wait(self.readback);
    }
}

fn wait(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

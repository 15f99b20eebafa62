//! Memory of a GPU: what its pool has reserved, against the budget.
//!
//! No `RLIMIT` reaches the memory of a GPU. What limits training there is the pool that burn takes memory from: it
//! grows by pages and keeps them, so what it has *reserved* decides, and what is *in use* explains. A driver that has
//! no more to give ends the child; a budget below that is compared with what is reserved whenever the device is
//! waited for anyway.

use burn::tensor::Device;

use super::session::SessionError;
use crate::study::Bytes;

/// The pool of a device, and its peaks so far. In-use bytes change within a step, so their peak is that of the
/// looks that were taken.
#[derive(Debug)]
pub(super) struct PoolMemory {
    device: Device,
    budget: Bytes,
    peak: PoolPeak,
}

/// Peaks of a pool, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PoolPeak {
    /// Taken from the driver: decides.
    pub(super) reserved_bytes: u64,
    /// Of that, held by tensors: explains.
    pub(super) in_use_bytes: u64,
}

impl PoolMemory {
    /// The pool of a device; none where it has none of its own (a processor).
    pub(super) fn of(device: &Device, budget: Bytes) -> Option<Self> {
        device.memory_pool_usage()?;
        Some(Self {
            device: device.clone(),
            budget,
            peak: PoolPeak::default(),
        })
    }

    /// Looks now; gives what tensors hold, bytes.
    pub(super) fn look(&mut self) -> u64 {
        let Some(usage) = self.device.memory_pool_usage() else {
            return 0;
        };
        self.peak.reserved_bytes = self.peak.reserved_bytes.max(usage.bytes_reserved);
        self.peak.in_use_bytes = self.peak.in_use_bytes.max(usage.bytes_in_use);
        usage.bytes_in_use
    }

    /// Looks now, and says so when the pool has reserved more than the budget.
    pub(super) fn check(&mut self) -> Result<(), SessionError> {
        self.look();
        over_budget(Bytes(self.peak.reserved_bytes), self.budget)
    }

    pub(super) fn peak(&self) -> PoolPeak {
        self.peak
    }
}

fn over_budget(reserved: Bytes, budget: Bytes) -> Result<(), SessionError> {
    if reserved > budget {
        return Err(SessionError::OverBudget { reserved, budget });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_may_fill_its_budget_and_no_more() {
        assert!(over_budget(Bytes(100), Bytes(100)).is_ok());
        let error =
            over_budget(Bytes(300 << 20), Bytes(200 << 20)).expect_err("more than the budget");
        let words = error.to_string();
        assert!(
            words.contains("314572800") && words.contains("209715200"),
            "{words}"
        );
    }

    #[test]
    fn a_processor_has_no_pool() {
        assert!(PoolMemory::of(&Device::flex(), Bytes(1)).is_none());
    }
}

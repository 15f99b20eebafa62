//! A GPU, as the program that can reach it describes it. The service itself never loads a driver's library: a
//! child process lists the GPUs, as JSON on its stdout.

use serde::{Deserialize, Serialize};

use crate::study::{Backend, Bytes};

/// Names the hardware id of the device that a child is to use, in its environment. Without it the child takes
/// the first device of its backend.
pub const DEVICE_VARIABLE: &str = "TRIALHEAD_DEVICE";

/// One GPU through one backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFacts {
    /// What runs the arithmetic on it.
    pub backend: Backend,
    /// Names the card whatever backend reaches it: its UUID, else its place on the PCI bus, else its place in
    /// the backend's list.
    pub hardware: String,
    /// The name that its driver gives it.
    pub name: String,
    /// Name and version of its driver.
    pub driver: Option<String>,
    /// Its memory; none where it uses that of its host and nothing tells how much.
    pub memory_bytes: Option<Bytes>,
    /// Of that, what was free when it was asked.
    pub available_bytes: Option<Bytes>,
    /// Whether it uses the memory of its host.
    pub shares_host_memory: bool,
    /// Whether a processor pretends to be it.
    pub is_software: bool,
}

impl GpuFacts {
    /// The variable by which a driver's own library is told to see this card alone, and its value. It works for
    /// any program, not only for this one.
    pub fn visibility(backend: Backend, hardware: &str) -> Option<(&'static str, &str)> {
        let is_uuid = hardware.starts_with("GPU-") || hardware.starts_with("MIG-");
        match backend {
            Backend::Cuda if is_uuid => Some(("CUDA_VISIBLE_DEVICES", hardware)),
            Backend::Rocm if is_uuid => Some(("ROCR_VISIBLE_DEVICES", hardware)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_with_a_uuid_is_made_the_only_visible_one_of_its_driver() {
        let uuid = "GPU-8f1c1c52-37a4-43d5-2cda-0fbb0a01a4f0";
        assert_eq!(
            GpuFacts::visibility(Backend::Cuda, uuid),
            Some(("CUDA_VISIBLE_DEVICES", uuid))
        );
        assert_eq!(
            GpuFacts::visibility(Backend::Rocm, "GPU-92e1"),
            Some(("ROCR_VISIBLE_DEVICES", "GPU-92e1"))
        );
        // Vulkan has no such variable, and an address on the bus is no value of these.
        assert_eq!(GpuFacts::visibility(Backend::Vulkan, uuid), None);
        assert_eq!(GpuFacts::visibility(Backend::Cuda, "0000:01:00.0"), None);
    }
}

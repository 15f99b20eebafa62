//! The GPUs that this build can reach: listed for the service, and opened for a probe.
//!
//! Nothing here runs in the service: a driver's library is loaded by the child process that lists GPUs
//! (`trialhead inventory`) and by those that train. A card that several backends reach has one hardware id, so
//! that it is never taken for two.

#[cfg(any(feature = "vulkan", feature = "metal"))]
mod adapters;
#[cfg(any(feature = "gpu", test))]
mod amdgpu;
#[cfg(any(feature = "cuda", feature = "rocm"))]
mod indexed;
#[cfg(feature = "gpu")]
pub(super) mod nvml;

use std::io::Write as _;
use std::process::ExitCode;

use burn::tensor::Device;

use super::session::SessionError;
use crate::probe::{DEVICE_VARIABLE, GpuFacts};
use crate::study::Backend;

/// Prints the GPUs that this build can reach, as JSON: the whole of `trialhead inventory`.
pub fn run_inventory() -> ExitCode {
    let listed = list();
    let mut out = std::io::stdout().lock();
    let written = serde_json::to_writer(&mut out, &listed)
        .map_err(std::io::Error::from)
        .and_then(|()| out.write_all(b"\n"));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Every GPU through every backend of this build.
#[cfg_attr(
    not(feature = "gpu"),
    expect(unused_mut, reason = "without a backend there is nothing to add")
)]
fn list() -> Vec<GpuFacts> {
    let mut listed: Vec<GpuFacts> = Vec::new();
    #[cfg(feature = "cuda")]
    listed.extend(indexed::list(Backend::Cuda));
    #[cfg(feature = "rocm")]
    listed.extend(indexed::list(Backend::Rocm));
    #[cfg(feature = "metal")]
    listed.extend(adapters::list(Backend::Metal).map(|adapter| adapter.facts));
    #[cfg(feature = "vulkan")]
    listed.extend(adapters::list(Backend::Vulkan).map(|adapter| adapter.facts));
    listed
}

/// The device that the worker chose, or the first of the backend.
pub(super) fn open(backend: Backend) -> Result<Device, SessionError> {
    let wanted = hardware();
    let wanted = wanted.as_deref();
    match backend {
        Backend::Cpu => Ok(Device::flex()),
        #[cfg(feature = "vulkan")]
        Backend::Vulkan => adapters::open(backend, wanted),
        #[cfg(feature = "metal")]
        Backend::Metal => adapters::open(backend, wanted),
        #[cfg(feature = "cuda")]
        Backend::Cuda => indexed::open(backend, wanted),
        #[cfg(feature = "rocm")]
        Backend::Rocm => indexed::open(backend, wanted),
        #[allow(unreachable_patterns, reason = "a build may have every backend")]
        other => {
            let _ = wanted;
            Err(SessionError::Unsupported(format!(
                "this program was built without the {0} backend (cargo build --release --features {0})",
                other.as_str()
            )))
        }
    }
}

/// The hardware id that the worker chose.
pub(super) fn hardware() -> Option<String> {
    std::env::var(DEVICE_VARIABLE)
        .ok()
        .filter(|hardware| !hardware.is_empty())
}

/// Memory of the chosen card that its driver counts for this process, where it tells.
pub(super) fn driver_memory() -> Option<u64> {
    #[cfg(feature = "gpu")]
    return nvml::Meter::of(&hardware()?)?.memory_of_this_process();
    #[cfg(not(feature = "gpu"))]
    None
}

/// Why a device cannot be opened.
#[cfg(feature = "gpu")]
fn absent(backend: Backend, wanted: Option<&str>) -> SessionError {
    SessionError::Unsupported(match wanted {
        Some(hardware) => format!(
            "there is no {} device {hardware} here that can be opened",
            backend.as_str()
        ),
        None => format!("there is no {} device here", backend.as_str()),
    })
}

//! GPUs that burn reaches by their index: CUDA and ROCm.

use burn::tensor::{Device, DeviceIndex, DeviceType};

use super::{absent, amdgpu, nvml};
use crate::probe::GpuFacts;
use crate::study::Backend;
use crate::trainer::session::SessionError;

/// The devices of a backend, in its order; none where its library is missing. Opens each.
pub(super) fn list(backend: Backend) -> Vec<GpuFacts> {
    let cards = nvml::cards();
    let devices = enumerate(backend);
    let describe = |(index, device): (usize, Device)| {
        let identity = device.identity();
        let address = identity
            .as_ref()
            .and_then(|identity| identity.physical.as_ref())
            .and_then(|physical| physical.pci_address)
            .map(|address| address.to_string());
        let card = address
            .as_deref()
            .and_then(|address| cards.iter().find(|card| card.pci_address == address));
        let radeon = address.as_deref().map(amdgpu::facts).unwrap_or_default();
        GpuFacts {
            backend,
            hardware: card
                .map(|card| card.uuid.clone())
                .or(radeon.uuid)
                .or(address)
                .unwrap_or_else(|| format!("{}-{index}", backend.as_str())),
            name: identity.map_or_else(
                || format!("{} device", backend.as_str()),
                |identity| identity.name,
            ),
            driver: card.map(|card| card.driver.clone()).or(radeon.driver),
            memory_bytes: card.map(|card| card.memory_bytes).or(radeon.memory_bytes),
            available_bytes: card
                .map(|card| card.available_bytes)
                .or(radeon.available_bytes),
            shares_host_memory: false,
            is_software: false,
        }
    };
    devices.into_iter().enumerate().map(describe).collect()
}

/// Opens a device. Where it has a UUID the worker has made it the only visible one, so that the contexts of the
/// others are left alone.
pub(super) fn open(backend: Backend, wanted: Option<&str>) -> Result<Device, SessionError> {
    let is_alone = wanted.is_none_or(|wanted| {
        GpuFacts::visibility(backend, wanted)
            .is_some_and(|(name, value)| std::env::var(name).is_ok_and(|set| set == value))
    });
    let mut devices = enumerate(backend).into_iter();
    let found = if is_alone {
        devices.next().map(|_| 0)
    } else {
        list(backend)
            .iter()
            .position(|facts| Some(facts.hardware.as_str()) == wanted)
    };
    let index = found.ok_or_else(|| absent(backend, wanted))?;
    match backend {
        #[cfg(feature = "cuda")]
        Backend::Cuda => Ok(Device::cuda(DeviceIndex::Specified(index))),
        #[cfg(feature = "rocm")]
        Backend::Rocm => Ok(Device::rocm(DeviceIndex::Specified(index))),
        _ => Err(absent(backend, wanted)),
    }
}

fn enumerate(backend: Backend) -> Vec<Device> {
    match backend {
        #[cfg(feature = "cuda")]
        Backend::Cuda => Device::enumerate(DeviceType::Cuda).into_vec(),
        #[cfg(feature = "rocm")]
        Backend::Rocm => Device::enumerate(DeviceType::Rocm).into_vec(),
        _ => Vec::new(),
    }
}

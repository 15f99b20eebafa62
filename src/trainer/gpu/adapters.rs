//! GPUs that burn reaches through wgpu: Vulkan and Metal.

use burn::tensor::{Device, DeviceKind};
use futures::executor::block_on;

use super::{absent, amdgpu, nvml};
use crate::probe::GpuFacts;
use crate::study::{Backend, Bytes};
use crate::trainer::session::SessionError;

/// An adapter, and how burn names it.
pub(super) struct Adapter {
    pub(super) facts: GpuFacts,
    kind: DeviceKind,
}

/// The adapters of a backend, in its order.
pub(super) fn list(backend: Backend) -> impl Iterator<Item = Adapter> {
    let backends = match backend {
        Backend::Metal => wgpu::Backends::METAL,
        _ => wgpu::Backends::VULKAN,
    };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = block_on(instance.enumerate_adapters(backends));
    let cards = nvml::cards();
    // burn counts each kind of adapter for itself.
    let (mut discrete, mut integrated, mut virtual_, mut software) = (0, 0, 0, 0);
    let count = |count: &mut usize| {
        *count += 1;
        *count - 1
    };
    let mut listed = Vec::new();
    for adapter in adapters {
        let info = adapter.get_info();
        let (kind, place) = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => {
                let index = count(&mut discrete);
                (DeviceKind::DiscreteGpu(index), format!("discrete-{index}"))
            }
            wgpu::DeviceType::IntegratedGpu => {
                let index = count(&mut integrated);
                let place = format!("integrated-{index}");
                (DeviceKind::IntegratedGpu(index), place)
            }
            wgpu::DeviceType::VirtualGpu => {
                let index = count(&mut virtual_);
                (DeviceKind::VirtualGpu(index), format!("virtual-{index}"))
            }
            // burn can name only the first one.
            wgpu::DeviceType::Cpu if count(&mut software) == 0 => {
                (DeviceKind::Cpu, "software".to_owned())
            }
            wgpu::DeviceType::Cpu | wgpu::DeviceType::Other => continue,
        };
        let address = Some(info.device_pci_bus_id.to_lowercase()).filter(|it| !it.is_empty());
        let card = address
            .as_deref()
            .and_then(|address| cards.iter().find(|card| card.pci_address == address));
        let radeon = address.as_deref().map(amdgpu::facts).unwrap_or_default();
        let hardware = card
            .map(|card| card.uuid.clone())
            .or(radeon.uuid)
            .or(address)
            .unwrap_or_else(|| format!("{}-{place}", backend.as_str()));
        listed.push(Adapter {
            facts: GpuFacts {
                backend,
                hardware,
                name: info.name,
                driver: card
                    .map(|card| card.driver.clone())
                    .or_else(|| driver(&info.driver, &info.driver_info)),
                memory_bytes: card
                    .map(|card| card.memory_bytes)
                    .or(radeon.memory_bytes)
                    .or_else(|| heap_bytes(&adapter).map(Bytes)),
                available_bytes: card
                    .map(|card| card.available_bytes)
                    .or(radeon.available_bytes),
                shares_host_memory: !matches!(
                    info.device_type,
                    wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu
                ),
                is_software: info.device_type == wgpu::DeviceType::Cpu,
            },
            kind,
        });
    }
    listed.into_iter()
}

/// Opens an adapter; without a wish the first that is no software.
pub(super) fn open(backend: Backend, wanted: Option<&str>) -> Result<Device, SessionError> {
    let mut adapters: Vec<Adapter> = list(backend).collect();
    adapters.sort_by_key(|adapter| adapter.facts.is_software);
    let adapter = adapters
        .into_iter()
        .find(|adapter| wanted.is_none_or(|wanted| wanted == adapter.facts.hardware))
        .ok_or_else(|| absent(backend, wanted))?;
    match backend {
        #[cfg(feature = "vulkan")]
        Backend::Vulkan => Ok(Device::vulkan(adapter.kind)),
        #[cfg(feature = "metal")]
        Backend::Metal => Ok(Device::metal(adapter.kind)),
        _ => Err(absent(backend, wanted)),
    }
}

/// Name and version of a driver, in the words of Vulkan (`VkPhysicalDeviceDriverProperties`).
fn driver(name: &str, info: &str) -> Option<String> {
    let words = [name.trim(), info.trim()];
    let said: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    (!said.is_empty()).then(|| said.join(" "))
}

/// The largest heap of a Vulkan device's own memory, bytes.
#[cfg(feature = "vulkan")]
fn heap_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handles live as long as the guard does, and memory properties are only read.
    let memory = unsafe {
        let raw = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        raw.shared_instance()
            .raw_instance()
            .get_physical_device_memory_properties(raw.raw_physical_device())
    };
    let heaps = usize::try_from(memory.memory_heap_count).ok()?;
    memory
        .memory_heaps
        .iter()
        .take(heaps)
        .filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0)
        .map(|heap| heap.size)
        .max()
}

#[cfg(not(feature = "vulkan"))]
fn heap_bytes(_adapter: &wgpu::Adapter) -> Option<u64> {
    None
}

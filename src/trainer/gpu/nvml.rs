//! What NVIDIA's management library tells of a card: identity, memory, energy. The library is loaded when it is
//! first asked; where there is none, nothing is known.

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::{Device, Nvml};

use crate::study::Bytes;

/// A card.
pub(super) struct Card {
    pub(super) uuid: String,
    /// `domain:bus:device.function`, as Linux writes it.
    pub(super) pci_address: String,
    pub(super) driver: String,
    pub(super) memory_bytes: Bytes,
    pub(super) available_bytes: Bytes,
}

/// Every card of the host that this process may see.
pub(super) fn cards() -> Vec<Card> {
    let Ok(nvml) = Nvml::init() else {
        return Vec::new();
    };
    let driver = nvml.sys_driver_version().unwrap_or_default();
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| card(&nvml.device_by_index(index).ok()?, &driver))
        .collect()
}

fn card(device: &Device<'_>, driver: &str) -> Option<Card> {
    let pci = device.pci_info().ok()?;
    let memory = device.memory_info().ok()?;
    Some(Card {
        uuid: device.uuid().ok()?,
        pci_address: format!("{:04x}:{:02x}:{:02x}.0", pci.domain, pci.bus, pci.device),
        driver: format!("NVIDIA {driver}"),
        memory_bytes: Bytes(memory.total),
        available_bytes: Bytes(memory.free),
    })
}

/// One card, asked again and again.
#[derive(Debug)]
pub(in crate::trainer) struct Meter {
    nvml: Nvml,
    uuid: String,
}

impl Meter {
    /// The card with this hardware id, if it is one of NVIDIA's.
    pub(in crate::trainer) fn of(hardware: &str) -> Option<Self> {
        let nvml = Nvml::init().ok()?;
        nvml.device_by_uuid(hardware).ok()?;
        Some(Self {
            nvml,
            uuid: hardware.to_owned(),
        })
    }

    /// Energy that the card has used since its driver was loaded, millijoules (Volta and later).
    pub(in crate::trainer) fn energy_millijoules(&self) -> Option<u64> {
        self.device()?.total_energy_consumption().ok()
    }

    /// Memory of the card that this process holds, contexts and code included. A container whose process ids are
    /// not the host's cannot tell.
    pub(in crate::trainer) fn memory_of_this_process(&self) -> Option<u64> {
        let me = std::process::id();
        let processes = self.device()?.running_compute_processes().ok()?;
        processes
            .into_iter()
            .find(|process| process.pid == me)
            .and_then(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            })
    }

    fn device(&self) -> Option<Device<'_>> {
        self.nvml.device_by_uuid(self.uuid.as_str()).ok()
    }
}

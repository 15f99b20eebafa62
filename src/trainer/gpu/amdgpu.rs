//! What the kernel's `amdgpu` driver tells of a card (https://docs.kernel.org/gpu/amdgpu/driver-misc.html).

use std::fs;
use std::path::Path;

use crate::study::Bytes;

/// What is known of a card; of another maker's, nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// As ROCm's libraries name it.
    pub(super) uuid: Option<String>,
    pub(super) driver: Option<String>,
    pub(super) memory_bytes: Option<Bytes>,
    pub(super) available_bytes: Option<Bytes>,
}

/// Asks for the card at an address of the bus.
#[cfg(feature = "gpu")]
pub(super) fn facts(address: &str) -> Facts {
    facts_in(Path::new("/sys/bus/pci/devices"), address)
}

fn facts_in(root: &Path, address: &str) -> Facts {
    let device = root.join(address);
    let read = |file: &str| {
        let text = fs::read_to_string(device.join(file)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let number = |file: &str| read(file)?.parse::<u64>().ok();
    let Some(total) = number("mem_info_vram_total") else {
        return Facts::default();
    };
    let used = number("mem_info_vram_used");
    Facts {
        uuid: read("unique_id").map(|id| format!("GPU-{id}")),
        driver: fs::read_to_string("/sys/module/amdgpu/version")
            .map(|version| format!("amdgpu {}", version.trim()))
            .ok()
            .or_else(|| Some("amdgpu".to_owned())),
        memory_bytes: Some(Bytes(total)),
        available_bytes: used.map(|used| Bytes(total.saturating_sub(used))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_and_the_name_of_a_card_are_read_and_another_makers_are_not() {
        let root = tempfile::tempdir().expect("a folder");
        let card = root.path().join("0000:03:00.0");
        fs::create_dir_all(&card).expect("a folder");
        for (file, text) in [
            ("mem_info_vram_total", "17163091968\n"),
            ("mem_info_vram_used", "163091968\n"),
            ("unique_id", "92e1a3bf0d1f6b1a\n"),
        ] {
            fs::write(card.join(file), text).expect("written");
        }
        let facts = facts_in(root.path(), "0000:03:00.0");
        assert_eq!(facts.uuid.as_deref(), Some("GPU-92e1a3bf0d1f6b1a"));
        assert_eq!(facts.memory_bytes, Some(Bytes(17_163_091_968)));
        assert_eq!(facts.available_bytes, Some(Bytes(17_000_000_000)));

        fs::create_dir_all(root.path().join("0000:04:00.0")).expect("a folder");
        assert_eq!(facts_in(root.path(), "0000:04:00.0"), Facts::default());
    }
}

//! What this host offers: who it is, and its devices.
//!
//! A measurement belongs to a device *model*, a lease to one device of one host. Two services on one
//! host, containers included, must come to the same identity, or each would think it had the
//! processor for itself. GPUs are asked for by a child ([`gpus`](super::gpus)).

use std::fs;
use std::num::NonZero;
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::cgroup::MemoryCgroup;
use crate::study::{Backend, Bytes};

/// The share of the available memory that a probe may use where a study says nothing: the rest is
/// for the service, its database and what else the host does meanwhile.
pub const DEFAULT_MEMORY_SHARE: f64 = 0.8;

/// What joins the hardware ids of cards that are offered together.
pub const JOINED: char = ',';

/// The hardware id of the processor.
pub const CPU: &str = "cpu";

/// One device, as the host sees it when asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceFacts {
    /// Identity of the host.
    pub host: String,
    /// Identity of the device within the host.
    pub hardware: String,
    /// What runs the arithmetic on it.
    pub backend: Backend,
    /// Measurements of one model are comparable: a processor's name and number of threads, a GPU's name and
    /// driver.
    pub model: String,
    /// Name and version of a GPU's driver.
    pub driver: Option<String>,
    /// Threads that may run at once: the processor affinity and the quota of the control group count.
    pub threads: u32,
    /// The memory of the device, or the limit of the control group if that is less.
    pub memory_bytes: Bytes,
    /// Of that, what was free when this was read.
    pub available_bytes: Bytes,
    /// Probes that may share it when none needs it alone.
    pub slots: u32,
    /// How many devices may train together in one probe: processes of a processor, or the cards that are offered
    /// as one device, whose hardware ids are then joined by commas. Memory is that of each card.
    #[serde(default = "one")]
    pub count: u32,
}

fn one() -> u32 {
    1
}

impl DeviceFacts {
    /// The hardware that it is made of.
    pub fn hardware_ids(&self) -> impl Iterator<Item = &str> {
        self.hardware.split(JOINED)
    }

    /// What a probe may use where a study sets no memory budget.
    pub fn default_memory_budget(&self) -> Bytes {
        Bytes((self.available_bytes.as_f64() * DEFAULT_MEMORY_SHARE) as u64)
    }
}

/// Identity of this host: `setting` if there is one, else a digest of what names the installation
/// (machine-id) and the running kernel (boot id). The boot id is what containers of one host share,
/// and what tells apart virtual machines cloned from one image. A digest, because the machine-id is
/// not for publishing.
pub fn host_identity(setting: Option<&str>) -> String {
    if let Some(name) = setting {
        return name.to_owned();
    }
    let read = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    };
    let machine = read("/etc/machine-id").or_else(|| read("/var/lib/dbus/machine-id"));
    let boot = read("/proc/sys/kernel/random/boot_id");
    if machine.is_none() && boot.is_none() {
        return nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_else(|_| "localhost".to_owned());
    }
    let mut digest = Sha256::new();
    digest.update("trialhead host\n");
    digest.update(machine.unwrap_or_default());
    digest.update("\n");
    digest.update(boot.unwrap_or_default());
    hex::encode(&digest.finalize()[..16])
}

/// The processor of this host; `slots` is how many probes may share it (default: one for every two
/// threads).
pub fn cpu(host: &str, slots: Option<u32>) -> DeviceFacts {
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u32;
    let (total, available) = host_memory();
    let room = MemoryCgroup::of_this_process().memory_room();
    let name = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| model_name(&text));
    DeviceFacts {
        host: host.to_owned(),
        hardware: CPU.to_owned(),
        backend: Backend::Cpu,
        model: format!(
            "{}, {threads} {}",
            name.as_deref().unwrap_or(std::env::consts::ARCH),
            if threads == 1 { "thread" } else { "threads" }
        ),
        driver: None,
        threads,
        memory_bytes: Bytes(room.map_or(total, |room| total.min(room.limit))),
        available_bytes: Bytes(room.map_or(available, |room| available.min(room.left))),
        slots: slots.unwrap_or(threads / 2).max(1),
        count: threads.max(1),
    }
}

/// Total and available memory of the host, in bytes.
fn host_memory() -> (u64, u64) {
    fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let total = meminfo(&text, "MemTotal")?;
            Some((total, meminfo(&text, "MemAvailable").unwrap_or(total)))
        })
        .unwrap_or_else(|| {
            let pages = |variable| nix::unistd::sysconf(variable).ok().flatten();
            let page = pages(nix::unistd::SysconfVar::PAGE_SIZE).unwrap_or(0);
            #[cfg(target_os = "linux")]
            let count = pages(nix::unistd::SysconfVar::_PHYS_PAGES).unwrap_or(0);
            #[cfg(not(target_os = "linux"))]
            let count = 0;
            let total = (page.max(0) as u64).saturating_mul(count.max(0) as u64);
            (total, total)
        })
}

/// A field of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, field: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kibibytes: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes.saturating_mul(1024))
}

/// The processor's name in `/proc/cpuinfo`, spaces collapsed. Most of ARM has none there.
fn model_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        (field.trim() == "model name").then_some(value)
    })?;
    let name = value.split_whitespace().collect::<Vec<_>>().join(" ");
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_names_the_host_and_else_the_identity_is_stable_and_secret() {
        assert_eq!(host_identity(Some("rack-7")), "rack-7");
        let identity = host_identity(None);
        assert_eq!(identity, host_identity(None));
        assert!(!identity.is_empty());
        if let Ok(machine) = fs::read_to_string("/etc/machine-id") {
            let machine = machine.trim();
            assert!(machine.is_empty() || !identity.contains(machine));
        }
    }

    #[test]
    fn the_processor_has_threads_memory_and_a_name() {
        let facts = cpu("here", None);
        assert_eq!(
            (facts.host.as_str(), facts.hardware.as_str()),
            ("here", "cpu")
        );
        assert!(facts.threads >= 1 && facts.slots >= 1);
        assert!(facts.available_bytes <= facts.memory_bytes);
        assert!(facts.available_bytes.0 > 0);
        assert!(facts.model.ends_with(" threads") || facts.model.ends_with(" thread"));
        let budget = facts.default_memory_budget().as_f64();
        assert!((budget / facts.available_bytes.as_f64() - 0.8).abs() < 1e-6);
        assert_eq!(cpu("here", Some(3)).slots, 3);
    }

    #[test]
    fn files_of_the_kernel_are_read() {
        let cpuinfo =
            "processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD  EPYC 9  \n\nmodel name\t: other\n";
        assert_eq!(model_name(cpuinfo).as_deref(), Some("AMD EPYC 9"));
        assert_eq!(model_name("CPU implementer : 0x41\n"), None);
        let memory = "MemTotal:        2048 kB\nMemAvailable:       1 kB\n";
        assert_eq!(meminfo(memory, "MemTotal"), Some(2 << 20));
        assert_eq!(meminfo(memory, "MemAvailable"), Some(1024));
        assert_eq!(meminfo(memory, "Mem"), None);
    }
}

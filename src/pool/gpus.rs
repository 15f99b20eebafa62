//! The GPUs of this host: a child process lists them, so that the service loads no driver's library and outlives
//! one that crashes or hangs; the settings say which of them are offered.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::child::{self, ChildConfig, ChosenGpu, Spawner};
use super::inventory::{self, DeviceFacts, JOINED};
use crate::probe::{Exit, GpuFacts};
use crate::settings::PoolSettings;
use crate::study::{Backend, Bytes};

/// Asks a child what this build can reach, as the account that probes run as. Whatever goes wrong with a driver,
/// the processor is still offered.
pub async fn list(
    spawner: &Spawner,
    config: &ChildConfig,
    settings: &PoolSettings,
) -> Vec<GpuFacts> {
    // Without a backend for them there is nothing to ask.
    if !cfg!(feature = "gpu") && settings.inventory_command.is_none() {
        return Vec::new();
    }
    let patience = Duration::from_secs_f64(settings.inventory_secs);
    let report = child::inventory(spawner, config, patience).await;
    let log = report.stderr_tail.trim();
    if report.exit != Some(Exit::Code(0)) {
        tracing::warn!(outcome = ?report.outcome, log, "the GPUs could not be listed; none is offered");
        return Vec::new();
    }
    match serde_json::from_str(report.stdout_tail.trim()) {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(%error, log, "the list of GPUs cannot be read; none is offered");
            Vec::new()
        }
    }
}

/// The devices to offer: the host's processor and GPUs, as far as the settings want them.
pub fn offered(
    processor: DeviceFacts,
    listed: &[GpuFacts],
    settings: &PoolSettings,
) -> Vec<DeviceFacts> {
    let mut unused: Vec<&String> = settings.devices.iter().collect();
    let mut wanted = |backend: Backend, hardware: &str| {
        let names = |name: &str| {
            name == backend.as_str() || name == hardware || (name == "gpu" && backend.is_gpu())
        };
        unused.retain(|name| !names(name));
        settings.devices.iter().any(|name| names(name))
            && !settings.exclude_devices.iter().any(|name| names(name))
    };
    let mut offered = Vec::new();
    if wanted(processor.backend, &processor.hardware) {
        offered.push(processor.clone());
    }
    // Its own driver's backend before one for every maker's cards.
    let order = [
        Backend::Cuda,
        Backend::Rocm,
        Backend::Metal,
        Backend::Vulkan,
    ];
    for gpu in order
        .iter()
        .flat_map(|backend| listed.iter().filter(move |gpu| gpu.backend == *backend))
    {
        let is_wanted = wanted(gpu.backend, &gpu.hardware);
        let is_known = offered
            .iter()
            .any(|device: &DeviceFacts| device.hardware == gpu.hardware);
        if is_wanted && !is_known && (settings.software_gpus || !gpu.is_software) {
            offered.push(facts(&processor, gpu, settings));
        }
    }
    let gpus = offered.split_off(offered.partition_point(|device| !device.backend.is_gpu()));
    offered.extend(together(gpus, settings.gpus_together));
    for name in unused {
        // What everybody has by default is no surprise.
        if name != "gpu" {
            tracing::warn!(
                device = name,
                "pool.devices names a device that this host does not have"
            );
        }
    }
    offered
}

/// Equal cards, so many as one device. What is left over makes a smaller one.
fn together(cards: Vec<DeviceFacts>, at_once: u32) -> Vec<DeviceFacts> {
    let mut groups: Vec<DeviceFacts> = Vec::new();
    for card in cards {
        let group = groups.iter_mut().find(|group| {
            group.count < at_once && group.backend == card.backend && group.model == card.model
        });
        match group {
            Some(group) => {
                group.hardware = format!("{}{JOINED}{}", group.hardware, card.hardware);
                group.count += 1;
                group.memory_bytes = group.memory_bytes.min(card.memory_bytes);
                group.available_bytes = group.available_bytes.min(card.available_bytes);
            }
            None => groups.push(card),
        }
    }
    groups
}

fn facts(processor: &DeviceFacts, gpu: &GpuFacts, settings: &PoolSettings) -> DeviceFacts {
    let memory_bytes = gpu.memory_bytes.unwrap_or(processor.memory_bytes);
    let available_bytes = match gpu.available_bytes {
        Some(free) => free,
        None if gpu.shares_host_memory => memory_bytes.min(processor.available_bytes),
        None => memory_bytes,
    };
    DeviceFacts {
        host: processor.host.clone(),
        hardware: gpu.hardware.clone(),
        backend: gpu.backend,
        // Another driver takes another time and other memory.
        model: match &gpu.driver {
            Some(driver) => format!("{}, {driver}", gpu.name),
            None => gpu.name.clone(),
        },
        driver: gpu.driver.clone(),
        threads: processor.threads,
        memory_bytes,
        available_bytes,
        slots: settings.gpu_slots,
        count: 1,
    }
}

/// The devices of this host, as the settings want them.
pub async fn devices_of_this_host(
    spawner: &Spawner,
    config: &ChildConfig,
    settings: &PoolSettings,
) -> Vec<DeviceFacts> {
    let host = inventory::host_identity(settings.host.as_deref());
    let processor = inventory::cpu(&host, Some(settings.slots));
    let listed = list(spawner, config, settings).await;
    let offered = offered(processor, &listed, settings);
    for device in offered.iter().filter(|device| device.backend.is_gpu()) {
        tracing::info!(
            device = device.model,
            backend = device.backend.as_str(),
            hardware = device.hardware,
            memory = %device.memory_bytes,
            "a GPU is offered"
        );
    }
    offered
}

/// How children are started on a device.
pub fn child_on(
    facts: &DeviceFacts,
    config: &ChildConfig,
    settings: &PoolSettings,
    kernels: Option<&Path>,
) -> ChildConfig {
    let gpu = facts.backend.is_gpu().then(|| ChosenGpu {
        backend: facts.backend,
        hardware: facts.hardware.clone(),
        cache_dir: kernels.map(Path::to_owned),
        host_memory_bytes: settings.gpu_host_memory_bytes.map(Bytes),
    });
    ChildConfig {
        gpu,
        ..config.clone()
    }
}

/// Makes the folder in which children keep the kernels that they have tuned for a GPU: theirs alone. `default` is
/// where it is when no setting says otherwise. None where no GPU is offered. A folder that is there already is left as
/// it is: a setting may name anything.
///
/// # Errors
/// When it cannot be made, or is somebody else's than the children's.
pub fn kernel_cache(
    default: &Path,
    settings: &PoolSettings,
    config: &ChildConfig,
    devices: &[DeviceFacts],
) -> io::Result<Option<PathBuf>> {
    if !devices.iter().any(|device| device.backend.is_gpu()) {
        return Ok(None);
    }
    let folder = std::path::absolute(settings.cache_dir.as_deref().unwrap_or(default))?;
    let named = |error: io::Error| {
        let text = format!(
            "pool.cache_dir: {} cannot be made: {error}",
            folder.display()
        );
        io::Error::new(error.kind(), text)
    };
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).map_err(named)?;
    }
    let is_new = match std::fs::create_dir(&folder) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(named(error)),
    };
    if let Some(user) = config.user.filter(|_| nix::unistd::geteuid().is_root()) {
        if is_new {
            std::os::unix::fs::chown(&folder, Some(user.uid), Some(user.gid)).map_err(named)?;
        }
        let owner = std::fs::metadata(&folder).map_err(named)?.uid();
        if owner != user.uid {
            return Err(io::Error::other(format!(
                "pool.cache_dir: {} belongs to the user {owner}, and probes run as {}: give it to them (chown), or name a folder that does not exist yet",
                folder.display(),
                user.uid
            )));
        }
    }
    Ok(Some(folder))
}

/// Names a worker of this process: host, process, the GPU if it is one's (of several together the first), number.
pub fn worker_name(facts: &DeviceFacts, number: usize) -> String {
    let (host, process) = (&facts.host, std::process::id());
    if facts.backend.is_gpu() {
        let first = facts.hardware.split(',').next().unwrap_or_default();
        format!("{host}/{process}/{first}/{number}")
    } else {
        format!("{host}/{process}/{number}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "GPU-8f1c1c52-37a4-43d5-2cda-0fbb0a01a4f0";

    #[test]
    fn a_worker_of_many_cards_has_a_name_that_the_service_takes() {
        let cards: Vec<String> = (0..16).map(|card| format!("{UUID}{card}")).collect();
        let facts = DeviceFacts {
            backend: Backend::Cuda,
            hardware: cards.join(","),
            ..inventory::cpu("863ff0913e06d2d435472014e113b5b2", Some(2))
        };
        let name = worker_name(&facts, 0);
        assert!(name.len() <= 200 && name.contains(UUID), "{name}");
    }

    fn processor() -> DeviceFacts {
        DeviceFacts {
            available_bytes: Bytes(10 * Bytes::GIB),
            memory_bytes: Bytes(16 * Bytes::GIB),
            ..inventory::cpu("here", Some(2))
        }
    }

    fn gpu(backend: Backend, hardware: &str) -> GpuFacts {
        GpuFacts {
            backend,
            hardware: hardware.into(),
            name: "A card".into(),
            driver: Some("driver 1.2".into()),
            memory_bytes: Some(Bytes(8 * Bytes::GIB)),
            available_bytes: None,
            shares_host_memory: false,
            is_software: false,
        }
    }

    fn software() -> GpuFacts {
        GpuFacts {
            name: "SwiftShader Device".into(),
            shares_host_memory: true,
            is_software: true,
            ..gpu(Backend::Vulkan, "vulkan-software")
        }
    }

    fn names(listed: &[GpuFacts], settings: &PoolSettings) -> Vec<(Backend, String)> {
        offered(processor(), listed, settings)
            .into_iter()
            .map(|device| (device.backend, device.hardware))
            .collect()
    }

    fn settings(devices: &[&str], excluded: &[&str]) -> PoolSettings {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        PoolSettings {
            devices: owned(devices),
            exclude_devices: owned(excluded),
            ..PoolSettings::default()
        }
    }

    #[test]
    fn a_card_that_two_backends_reach_is_one_device() {
        let listed = [gpu(Backend::Vulkan, UUID), gpu(Backend::Cuda, UUID)];
        let all = names(&listed, &PoolSettings::default());
        let cpu = (Backend::Cpu, "cpu".to_owned());
        assert_eq!(all, [cpu.clone(), (Backend::Cuda, UUID.to_owned())]);
        let vulkan = names(&listed, &settings(&["cpu", "vulkan"], &[]));
        assert_eq!(vulkan, [cpu, (Backend::Vulkan, UUID.to_owned())]);
    }

    #[test]
    fn settings_choose_among_the_devices() {
        let listed = [gpu(Backend::Cuda, UUID), gpu(Backend::Cuda, "0000:02:00.0")];
        let only = names(&listed, &settings(&["0000:02:00.0"], &[]));
        assert_eq!(only, [(Backend::Cuda, "0000:02:00.0".to_owned())]);
        let without = names(&listed, &settings(&["gpu"], &[UUID]));
        assert_eq!(without, [(Backend::Cuda, "0000:02:00.0".to_owned())]);
        let none = names(&listed, &settings(&["cpu", "gpu"], &["cuda"]));
        assert_eq!(none, [(Backend::Cpu, "cpu".to_owned())]);
    }

    #[test]
    fn equal_cards_are_offered_together_where_a_setting_says_so() {
        let other = GpuFacts {
            name: "Another card".into(),
            ..gpu(Backend::Cuda, "d")
        };
        let smaller = GpuFacts {
            available_bytes: Some(Bytes(Bytes::GIB)),
            ..gpu(Backend::Cuda, "b")
        };
        let listed = [
            gpu(Backend::Cuda, "a"),
            smaller,
            other,
            gpu(Backend::Cuda, "c"),
        ];
        let settings = PoolSettings {
            gpus_together: 2,
            ..settings(&["gpu"], &[])
        };
        let devices = offered(processor(), &listed, &settings);
        let told: Vec<_> = devices
            .iter()
            .map(|it| (it.hardware.as_str(), it.count, it.available_bytes))
            .collect();
        let whole = Bytes(8 * Bytes::GIB);
        assert_eq!(
            told,
            [
                ("a,b", 2, Bytes(Bytes::GIB)),
                ("d", 1, whole),
                ("c", 1, whole)
            ]
        );
        assert_eq!(devices[0].hardware_ids().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_folder_for_kernels_is_given_to_the_children_only_when_it_is_new() {
        let folder = tempfile::tempdir().expect("a folder");
        let devices = [facts(
            &processor(),
            &gpu(Backend::Cuda, UUID),
            &settings(&["gpu"], &[]),
        )];
        let config = ChildConfig::default();
        let cache = |name: &str| {
            let place = folder.path().join(name);
            kernel_cache(&place, &PoolSettings::default(), &config, &devices)
        };
        let owner = |name: &str| {
            std::fs::metadata(folder.path().join(name))
                .expect("there")
                .uid()
        };
        cache("a/b").expect("made");
        cache("a/b").expect("made before");
        if nix::unistd::geteuid().is_root() {
            assert_eq!(owner("a/b"), config.user.expect("an account").uid);
            std::fs::create_dir(folder.path().join("theirs")).expect("made");
            let error = cache("theirs").expect_err("somebody else's").to_string();
            assert!(error.contains("belongs to the user 0"), "{error}");
            assert_eq!(owner("theirs"), 0);
        }
    }

    #[test]
    fn a_processor_that_pretends_to_be_a_gpu_is_offered_only_when_a_setting_says_so() {
        assert_eq!(names(&[software()], &PoolSettings::default()).len(), 1);
        let settings = PoolSettings {
            software_gpus: true,
            ..PoolSettings::default()
        };
        let devices = offered(processor(), &[software()], &settings);
        assert_eq!(devices.len(), 2);
        let gpu = &devices[1];
        assert_eq!(gpu.model, "SwiftShader Device, driver 1.2");
        assert_eq!(gpu.slots, 1);
        // Its memory is the host's, of which not all is free.
        assert_eq!(gpu.memory_bytes, Bytes(8 * Bytes::GIB));
        assert_eq!(gpu.available_bytes, Bytes(8 * Bytes::GIB));
        let larger = GpuFacts {
            memory_bytes: Some(Bytes(16 * Bytes::GIB)),
            ..software()
        };
        let devices = offered(processor(), &[larger], &settings);
        assert_eq!(devices[1].available_bytes, Bytes(10 * Bytes::GIB));
    }
}

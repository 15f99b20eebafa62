//! The energy that training has used, as the device counts it itself: the host's processors (RAPL, through the
//! kernel's powercap interface: https://docs.kernel.org/power/powercap/powercap.html), or the GPU (NVML's total
//! energy counter) alone, without its host, whose processors may work for other cards too. Where nobody tells, or
//! not this user, there is no figure: energy is never guessed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::study::Backend;

/// Where the kernel shows the counters.
const ROOT: &str = "/sys/class/powercap";

/// The counters of a device.
#[derive(Debug)]
pub(super) enum EnergyCounters {
    /// Of a host: one for each processor package and each memory that counts apart.
    Host(Vec<Zone>),
    /// Of a card.
    Card(Card),
}

/// A counter of the kernel.
#[derive(Debug)]
pub(super) struct Zone {
    counter: PathBuf,
    /// The counter begins anew from 0 after this.
    range_microjoules: u64,
    last: u64,
    total: u64,
}

#[cfg(feature = "gpu")]
pub(super) use card::Card;

#[cfg(feature = "gpu")]
mod card {
    use crate::trainer::gpu::{self, nvml::Meter};

    /// The counter of a card.
    #[derive(Debug)]
    pub(in crate::trainer) struct Card {
        meter: Box<Meter>,
        first: u64,
    }

    impl Card {
        pub(super) fn start() -> Option<Self> {
            let meter = Box::new(Meter::of(&gpu::hardware()?)?);
            let first = meter.energy_millijoules()?;
            Some(Self { meter, first })
        }

        pub(super) fn joules(&self) -> Option<f64> {
            let used = self.meter.energy_millijoules()?.checked_sub(self.first)?;
            Some(used as f64 * 1e-3)
        }
    }
}

/// A build without a GPU backend knows no card.
#[cfg(not(feature = "gpu"))]
#[derive(Debug)]
pub(super) enum Card {}

#[cfg(not(feature = "gpu"))]
impl Card {
    fn start() -> Option<Self> {
        None
    }

    fn joules(&self) -> Option<f64> {
        match *self {}
    }
}

impl EnergyCounters {
    /// The counters of a device, started; `None` where there are none that can be read.
    pub(super) fn start(backend: Backend) -> Option<Self> {
        if backend.is_gpu() {
            Card::start().map(Self::Card)
        } else {
            Self::start_in(Path::new(ROOT))
        }
    }

    fn start_in(root: &Path) -> Option<Self> {
        let mut zones = Vec::new();
        for entry in fs::read_dir(root).ok()?.flatten() {
            let zone = entry.path();
            let Ok(name) = fs::read_to_string(zone.join("name")) else {
                continue;
            };
            // A package counts its cores; a memory beside it counts for itself, and `psys` counts all again.
            let name = name.trim();
            if !(name.starts_with("package") || name == "dram") {
                continue;
            }
            let counter = zone.join("energy_uj");
            // One that cannot be read would make the sum too small.
            let last = microjoules(&counter)?;
            zones.push(Zone {
                range_microjoules: microjoules(&zone.join("max_energy_range_uj")).unwrap_or(0),
                counter,
                last,
                total: 0,
            });
        }
        (!zones.is_empty()).then_some(Self::Host(zones))
    }

    /// Joules since the start. `None` when a counter has become unreadable.
    pub(super) fn joules(&mut self) -> Option<f64> {
        let zones = match self {
            Self::Host(zones) => zones,
            Self::Card(card) => return card.joules(),
        };
        let mut total = 0;
        for zone in zones {
            let now = microjoules(&zone.counter)?;
            let used = now.checked_sub(zone.last).unwrap_or_else(|| {
                // It has begun anew.
                (zone.range_microjoules.saturating_sub(zone.last)).saturating_add(now)
            });
            zone.total += used;
            zone.last = now;
            total += zone.total;
        }
        Some(total as f64 * 1e-6)
    }
}

fn microjoules(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zones as the kernel shows them.
    fn zones(root: &Path, zones: &[(&str, &str, u64)]) {
        for (folder, name, energy) in zones {
            let zone = root.join(folder);
            fs::create_dir_all(&zone).expect("a folder");
            fs::write(zone.join("name"), format!("{name}\n")).expect("written");
            fs::write(zone.join("energy_uj"), format!("{energy}\n")).expect("written");
            fs::write(zone.join("max_energy_range_uj"), "1000000000\n").expect("written");
        }
    }

    #[test]
    fn packages_and_memories_are_added_up_and_their_parts_are_not() {
        let root = tempfile::tempdir().expect("a folder");
        let at = |package: u64, memory: u64| {
            [
                ("intel-rapl:0", "package-0", package),
                ("intel-rapl:0:0", "core", 77),
                ("intel-rapl:0:1", "dram", memory),
                ("intel-rapl:1", "psys", 99),
            ]
        };
        zones(root.path(), &at(5_000_000, 1_000_000));
        let mut counters = EnergyCounters::start_in(root.path()).expect("counters");
        assert_eq!(counters.joules(), Some(0.0));
        zones(root.path(), &at(7_000_000, 1_500_000));
        assert_eq!(counters.joules(), Some(2.5));
    }

    #[test]
    fn a_counter_that_begins_anew_goes_on() {
        let root = tempfile::tempdir().expect("a folder");
        let at = |energy| [("intel-rapl:0", "package-0", energy)];
        zones(root.path(), &at(999_000_000));
        let mut counters = EnergyCounters::start_in(root.path()).expect("counters");
        zones(root.path(), &at(1_000_000));
        assert_eq!(counters.joules(), Some(2.0));
        zones(root.path(), &at(4_000_000));
        assert_eq!(counters.joules(), Some(5.0));
    }

    #[test]
    fn without_a_counter_nothing_is_said() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(EnergyCounters::start_in(root.path()).is_none());
        assert!(EnergyCounters::start_in(&root.path().join("none")).is_none());
        zones(root.path(), &[("intel-rapl:0", "package-0", 1)]);
        fs::write(
            root.path().join("intel-rapl:0/energy_uj"),
            "permission denied",
        )
        .expect("written");
        assert!(EnergyCounters::start_in(root.path()).is_none());
    }
}

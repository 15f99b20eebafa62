//! The control group this process lives in: its memory limit, and whether the kernel killed in it.
//!
//! A container's memory is limited by its control group, not by the host's memory, and when that
//! limit is hit the kernel kills a process without a word. Both generations are read: the unified
//! hierarchy (`memory.max`) and the older one (`memory.limit_in_bytes`), also where a machine mounts
//! both. Everything here is best effort: what cannot be read limits nothing and counts nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The memory control groups of this process, one directory for each hierarchy that has it.
#[derive(Debug, Clone, Default)]
pub struct MemoryCgroup {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone)]
struct Hierarchy {
    files: &'static Files,
    /// The group of this process.
    leaf: PathBuf,
    /// Where the hierarchy is mounted: the last ancestor that can be seen.
    mount: PathBuf,
}

/// The names that a generation of control groups gives its files.
#[derive(Debug)]
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: pages of files that the kernel drops before it kills.
    reclaimable: &'static str,
    kills: &'static str,
}

static UNIFIED: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file",
    kills: "memory.events",
};

static LEGACY: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
    kills: "memory.oom_control",
};

/// What a control group leaves to its processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRoom {
    /// The tightest limit of the group and its ancestors.
    pub limit: u64,
    /// The least that is left below any of these limits.
    pub left: u64,
}

impl MemoryCgroup {
    /// The groups of this process.
    pub fn of_this_process() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::read(
            &read("/proc/self/cgroup"),
            &read("/proc/self/mountinfo"),
            Path::new("/"),
        )
    }

    /// Reads membership and mounts; `root` is put before every mount point.
    fn read(membership: &str, mountinfo: &str, root: &Path) -> Self {
        let hierarchies = mountinfo
            .lines()
            .filter_map(|line| {
                // "31 23 0:28 ROOT MOUNT_POINT options … - TYPE source SUPER_OPTIONS"
                let (mount, filesystem) = line.split_once(" - ")?;
                let mut mount = mount.split(' ').skip(3);
                let (mounted_root, mount_point) = (mount.next()?, mount.next()?);
                let mut filesystem = filesystem.split(' ');
                let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
                let files = match kind {
                    "cgroup2" => &UNIFIED,
                    "cgroup" if options.split(',').any(|option| option == "memory") => &LEGACY,
                    _ => return None,
                };
                let path = membership.lines().find_map(|line| {
                    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                    let ours = match kind {
                        "cgroup2" => controllers.is_empty(),
                        _ => controllers.split(',').any(|one| one == "memory"),
                    };
                    ours.then_some(path)
                })?;
                // Without a namespace of its own a container sees the host's path, but only its own
                // part of the tree is mounted.
                let below = path.strip_prefix(mounted_root).unwrap_or(path);
                let mount = root.join(mount_point.trim_start_matches('/'));
                let leaf = mount.join(below.trim_start_matches('/'));
                let leaf = if leaf.is_dir() { leaf } else { mount.clone() };
                Some(Hierarchy { files, leaf, mount })
            })
            .collect();
        Self { hierarchies }
    }

    /// The room the groups leave; `None` where nothing limits.
    pub fn memory_room(&self) -> Option<MemoryRoom> {
        self.hierarchies
            .iter()
            .flat_map(|hierarchy| {
                hierarchy
                    .leaf
                    .ancestors()
                    .take_while(|group| group.starts_with(&hierarchy.mount))
                    .filter_map(|group| room_of(group, hierarchy.files))
            })
            .reduce(|a, b| MemoryRoom {
                limit: a.limit.min(b.limit),
                left: a.left.min(b.left),
            })
    }

    /// Tells the groups of this process from any made before or after them: a container that is started
    /// again gets new ones. `None` where none can be seen.
    pub fn identity(&self) -> Option<String> {
        let groups: Vec<String> = self
            .hierarchies
            .iter()
            .filter_map(|hierarchy| {
                let group = fs::metadata(&hierarchy.leaf).ok()?;
                Some(format!("{}:{}", group.dev(), group.ino()))
            })
            .collect();
        (!groups.is_empty()).then(|| groups.join(" "))
    }

    /// How many processes of the group the kernel has killed for memory so far.
    pub fn out_of_memory_kills(&self) -> u64 {
        self.hierarchies
            .iter()
            .filter_map(|hierarchy| keyed(&hierarchy.leaf.join(hierarchy.files.kills), "oom_kill"))
            .sum()
    }
}

fn room_of(group: &Path, files: &Files) -> Option<MemoryRoom> {
    /// The older hierarchy says "no limit" with the largest multiple of a page; no machine has this much.
    const UNLIMITED: u64 = 1 << 60;
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(group.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let limit = number(files.limit).filter(|limit| *limit < UNLIMITED)?;
    let usage = number(files.usage).unwrap_or(0);
    let reclaimable = keyed(&group.join("memory.stat"), files.reclaimable).unwrap_or(0);
    Some(MemoryRoom {
        limit,
        left: limit.saturating_sub(usage.saturating_sub(reclaimable)),
    })
}

/// The number behind a key in a file of `key number` lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.lines().find_map(|line| {
        let (name, number) = line.split_once(' ')?;
        (name == key).then(|| number.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("creates");
        fs::write(path, text).expect("writes");
    }

    const UNIFIED_MOUNT: &str =
        "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn the_tightest_ancestor_limits_and_file_pages_count_as_free() {
        let root = tempfile::tempdir().expect("creates");
        let write = |path: &str, text: &str| write(root.path(), path, text);
        write("sys/fs/cgroup/pod/memory.max", "1000\n");
        write("sys/fs/cgroup/pod/memory.current", "700\n");
        write(
            "sys/fs/cgroup/pod/memory.stat",
            "anon 1\ninactive_file 200\n",
        );
        write("sys/fs/cgroup/pod/app/memory.max", "max\n");
        write("sys/fs/cgroup/pod/app/memory.current", "600\n");
        write(
            "sys/fs/cgroup/pod/app/memory.events",
            "low 0\noom 2\noom_kill 3\n",
        );
        let group = MemoryCgroup::read("0::/pod/app\n", UNIFIED_MOUNT, root.path());
        assert_eq!(
            group.memory_room(),
            Some(MemoryRoom {
                limit: 1000,
                left: 500
            })
        );
        assert_eq!(group.out_of_memory_kills(), 3);
    }

    #[test]
    fn the_older_hierarchy_is_read_where_a_container_sees_the_path_of_its_host() {
        let root = tempfile::tempdir().expect("creates");
        let write = |path: &str, text: &str| write(root.path(), path, text);
        write("cg/memory/memory.limit_in_bytes", "4096\n");
        write("cg/memory/memory.usage_in_bytes", "96\n");
        write(
            "cg/memory/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
        );
        let group = MemoryCgroup::read(
            "4:memory:/docker/abc\n0::/\n",
            "35 31 0:32 /docker/abc /cg/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw",
            root.path(),
        );
        assert_eq!(
            group.memory_room(),
            Some(MemoryRoom {
                limit: 4096,
                left: 4000
            })
        );
        assert_eq!(group.out_of_memory_kills(), 5);
    }

    #[test]
    fn where_nothing_can_be_read_nothing_limits() {
        let root = tempfile::tempdir().expect("creates");
        let unlimited = "9223372036854771712";
        write(root.path(), "cg/memory.limit_in_bytes", unlimited);
        let mount = "35 31 0:32 / /cg rw - cgroup cgroup rw,memory";
        let group = MemoryCgroup::read("4:memory:/\n", mount, root.path());
        assert_eq!(group.memory_room(), None);
        let nothing = MemoryCgroup::read("", "", root.path());
        assert_eq!(nothing.memory_room(), None);
        assert_eq!(nothing.out_of_memory_kills(), 0);
    }
}

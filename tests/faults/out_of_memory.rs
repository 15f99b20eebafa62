//! A worker that the kernel kills for memory together with its child, in a control group with a real limit: nobody is left to
//! say so, and the journal says it after the restart.
//!
//! It takes root and a memory controller that may be used; where there is none, the test says so and passes. With the unified
//! hierarchy the whole group is killed, as Kubernetes has it. The older one kills one process at a time; there the worker is
//! made the likeliest, and its child ends with it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::postgres::TestDatabase;
use crate::server::ServerProcess;
use crate::worker::WorkProcess;

/// What the group may use in all when the worker starts, and so what a probe may.
const LIMIT: u64 = 256 << 20;

/// What is left of that once the child runs, as if something else in the container had taken the rest.
const LEFT: u64 = 128 << 20;

/// What the child takes: within its own limit, and too much for the group.
const TAKEN: &str = "2e8";

/// A control group with a limit on memory, for the processes of one test.
struct Group {
    folder: PathBuf,
    is_unified: bool,
}

impl Group {
    /// Makes one, or says why there is none.
    fn create(name: &str) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root may make control groups".into());
        }
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (parent, is_unified) =
            parent(&membership).ok_or("no memory controller is mounted where it can be used")?;
        let folder = parent.join(format!("trialhead-test-{}-{name}", std::process::id()));
        let failed = |what: &str, error: std::io::Error| format!("{what}: {error}");
        fs::create_dir(&folder).map_err(|error| failed("making a group", error))?;
        let group = Self { folder, is_unified };
        group
            .limit(LIMIT)
            .map_err(|error| failed("limiting it", error))?;
        if is_unified {
            group
                .set("memory.oom.group", "1")
                .map_err(|error| failed("having it killed as a whole", error))?;
        }
        Ok(group)
    }

    fn limit(&self, bytes: u64) -> std::io::Result<()> {
        let bytes = bytes.to_string();
        // Else a machine with swap would go on slowly. Best effort: not every kernel counts it.
        if self.is_unified {
            let _ = self.set("memory.swap.max", "0");
            return self.set("memory.max", &bytes);
        }
        let _ = self.set("memory.swappiness", "0");
        self.set("memory.limit_in_bytes", &bytes)
    }

    fn set(&self, file: &str, value: &str) -> std::io::Result<()> {
        fs::write(self.folder.join(file), value)
    }

    /// Processes in it that the kernel has killed for memory.
    fn kills(&self) -> u64 {
        let file = if self.is_unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.folder.join(file)).expect("it is there");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("a count").trim().parse().expect("a number")
    }

    fn members(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.parse().ok());
        pids.map(Pid::from_raw).collect()
    }
}

impl Drop for Group {
    /// A group goes when its processes have gone; all of them are this test's.
    fn drop(&mut self) {
        let since = Instant::now();
        while fs::remove_dir(&self.folder).is_err() {
            for member in self.members() {
                let _ = kill(member, Signal::SIGKILL);
            }
            if since.elapsed() > Duration::from_secs(10) {
                say(&format!("{} is left behind", self.folder.display()));
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where a group may be made: with the unified hierarchy below the nearest ancestor that gives its children the memory
/// controller, with the older one below the own group. The second says whether it is the unified one.
fn parent(membership: &str) -> Option<(PathBuf, bool)> {
    let own = |wanted: &str| {
        membership.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let is_it = controllers.split(',').any(|it| it == wanted);
            is_it.then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let unified = Path::new("/sys/fs/cgroup");
    if let Some(path) = own("")
        && unified.join("cgroup.controllers").is_file()
    {
        let own = unified.join(path);
        let gives_memory = |group: &&Path| {
            let given = fs::read_to_string(group.join("cgroup.subtree_control"));
            given.is_ok_and(|it| it.split_whitespace().any(|one| one == "memory"))
        };
        let mut ancestors = own.ancestors().take_while(|it| it.starts_with(unified));
        return Some((ancestors.find(gives_memory)?.to_owned(), true));
    }
    let older = unified.join("memory").join(own("memory")?);
    older
        .join("cgroup.procs")
        .is_file()
        .then_some((older, false))
}

/// Past the test harness, which keeps what a passing test prints.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "\n{line}\n");
}

/// A child that waits to be let go, and then takes its memory.
fn child(home: &Path) -> String {
    fs::set_permissions(home, fs::Permissions::from_mode(0o755)).expect("sets");
    let script = home.join("child");
    let text = format!(
        "while [ ! -e {} ]; do sleep 0.05; done\nexec {} simulate {TAKEN} 0 1e-3 1e-5\n",
        go(home).display(),
        crate::fake::executable().display()
    );
    fs::write(&script, text).expect("written");
    format!("/bin/sh,{}", script.display())
}

fn go(home: &Path) -> PathBuf {
    home.join("go")
}

fn likelihood(pid: Pid) -> String {
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    score.expect("it runs").trim().to_owned()
}

fn set_likelihood(pid: Pid, likelihood: &str) {
    fs::write(format!("/proc/{pid}/oom_score_adj"), likelihood).expect("root may");
}

fn study() -> Value {
    json!({
        "workload": {"dataset": {"builtin": "digits"}},
        "batch_sizes": {"min": 8, "max": 64},
        "device": {"memory_budget_bytes": LIMIT, "threads": 1},
        "questions": ["feasible_batch_sizes"]
    })
}

/// `is_inside`: the worker is started again in the group, where the kernel's count is still to be read; else in another, as a
/// container that is started again.
async fn killed_for_memory(name: &str, is_inside: bool) {
    let group = match Group::create(name) {
        Ok(group) => group,
        Err(why) => {
            return say(&format!(
                "SKIPPED: no worker was killed for memory by the kernel, for want of a control group ({why})"
            ));
        }
    };
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_with_lease(database.url(), 600.0);
    let path = crate::storm::post(&server, &study()).await;
    let probes = format!("{path}/probes");
    let command = child(home.path());
    let worker = WorkProcess::start_within(
        Some(&group.folder),
        &server.base,
        "host",
        &["sleep"],
        home.path(),
        &[("TRIALHEAD_POOL__CHILD_COMMAND", &command)],
    );
    let child = worker.with_child().await;
    if !group.is_unified {
        set_likelihood(worker.pid(), "1000");
        // The worker says of its child that it goes first, twice, and the last time a moment after it has started it.
        loop {
            set_likelihood(child, "0");
            tokio::time::sleep(Duration::from_millis(300)).await;
            if likelihood(child) == "0" {
                break;
            }
        }
    }
    assert_eq!(group.kills(), 0);
    group.limit(LEFT).expect("less is in use yet");
    fs::write(go(home.path()), "").expect("written");
    let (code, log) = worker.ended().await;
    assert_eq!(code, None, "it ended by itself: {log}");
    assert!(group.kills() >= 1, "{log}");
    let since = Instant::now();
    while !group.members().is_empty() {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "the child lives on"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // Its children sleep for ever: what ends now was not run again.
    let settings = [("TRIALHEAD_WORK__RESTART_IS_OUT_OF_MEMORY", "true")];
    let _worker = WorkProcess::start_within(
        is_inside.then_some(group.folder.as_path()),
        &server.base,
        "host",
        &["sleep"],
        home.path(),
        if is_inside { &[] } else { &settings },
    );
    let first = |list: &Value| list["items"][0]["probe"].clone();
    let list = server
        .until(&probes, |list| first(list)["state"] != "running")
        .await;
    let probe = first(&list);
    assert_eq!(probe["state"], "infeasible", "{probe}");
    assert_eq!(probe["reason"], "out_of_memory", "{probe}");
    assert_eq!(probe["attempt"], 1, "{probe}");
    assert_eq!(
        (&probe["losses"], &probe["crashes"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn what_the_kernel_killed_for_memory_with_its_worker_is_told_by_the_next_container() {
    killed_for_memory("outside", false).await;
}

#[tokio::test]
async fn what_the_kernel_killed_for_memory_with_its_worker_is_told_in_the_same_group() {
    killed_for_memory("inside", true).await;
}

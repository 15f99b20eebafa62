//! What a worker was running, written down before each child starts, so that a worker that was killed knows
//! it after its restart.
//!
//! Where a control group is killed as a whole (Kubernetes on cgroup v2 does that), a child that runs out of
//! memory takes its worker with it, and nobody is left to say so. But an end without a word is **not** by
//! itself an end for want of memory: hosts restart, people kill. Out of memory is knowledge that is never
//! measured again, so it is only said when something else says it:
//!
//! 1. Another boot of the host: lost.
//! 2. The same control group as then, and its count of out-of-memory kills has risen: out of memory. It has
//!    not risen: lost.
//! 3. Another control group, as in a container that was started again, whose predecessor's counts nobody can
//!    read any more: out of memory only where the settings say that nothing else restarts the worker without
//!    a signal to stop (`work.restart_is_out_of_memory`), a memory limit was in force, and no such signal had
//!    come. Else lost.
//! 4. Several children were running at once, those of other worker processes counted: nobody knows whose it was, so
//!    lost.
//! 5. No child had been started yet: lost.
//!
//! *Lost* gives the probe back at once, at the cost of one loss. When the news of a probe that ran out of
//! memory comes too late for its lease, it is kept here, and told when this worker claims the probe again.
//!
//! Every worker process has a folder of its own below the journal's, held by a lock for as long as it lives;
//! one that starts takes care of every folder that nobody holds.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::cgroup::MemoryCgroup;
use super::leases::{CompletionRequest, Lease, LeaseError, Leases};
use crate::probe::{FailureReason, InfeasibleReason, Outcome};
use crate::study::{LeaseId, ProbeId};

/// Most worker processes that share a journal's folder.
const SLOTS: usize = 1024;

/// First pause before news that did not arrive is told again; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Says that a signal to stop has come.
const STOPPING: &str = "stopping";

/// The journal of one worker process.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// Held for as long as this process lives; those of folders that are being taken care of too.
    _locks: Vec<Flock<File>>,
    here: Surroundings,
    cgroup: MemoryCgroup,
}

/// What tells one run of a worker from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Surroundings {
    boot: Option<String>,
    cgroup: Option<String>,
    /// Whether a control group limits memory.
    is_limited: bool,
    /// Processes of the control group that the kernel has killed for memory.
    out_of_memory_kills: u64,
}

impl Surroundings {
    fn of(cgroup: &MemoryCgroup) -> Self {
        Self {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .ok()
                .map(|id| id.trim().to_owned()),
            cgroup: cgroup.identity(),
            is_limited: cgroup.memory_room().is_some(),
            out_of_memory_kills: cgroup.out_of_memory_kills(),
        }
    }
}

/// A probe that was claimed, and its child once that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    lease_id: LeaseId,
    probe_id: ProbeId,
    attempt: i32,
    kind: String,
    started: Surroundings,
    /// Whether a child was about to start.
    #[serde(default = "yes")]
    has_child: bool,
    /// What its end came to, once a later run has judged it: what that was judged by is gone then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verdict: Option<Outcome>,
}

fn yes() -> bool {
    true
}

impl Entry {
    /// Whether a child may have run, of whose end nothing is known yet.
    fn is_open(&self) -> bool {
        self.has_child && self.verdict.is_none()
    }
}

/// An attempt that a killed worker left without an end.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfinished {
    /// Its lease.
    pub lease_id: LeaseId,
    /// Its probe.
    pub probe_id: ProbeId,
    /// Which attempt.
    pub attempt: i32,
    /// What its end comes to.
    pub outcome: Outcome,
    file: PathBuf,
}

impl Journal {
    /// Opens a journal below `base`, and gives what killed workers have left there. `restart_is_out_of_memory`
    /// says that nothing but a want of memory ends this worker without a signal.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(
        base: &Path,
        restart_is_out_of_memory: bool,
    ) -> io::Result<(Self, Vec<Unfinished>)> {
        let cgroup = MemoryCgroup::of_this_process();
        let here = Surroundings::of(&cgroup);
        let mut locks = Vec::new();
        let mut own = None;
        let mut found = Vec::new();
        let mut stopping = Vec::new();
        // Those of workers that live are children too that may have been killed.
        let mut open = 0;
        for slot in 0..SLOTS {
            let folder = base.join(slot.to_string());
            let is_new = !folder.is_dir();
            if is_new && own.is_some() {
                break;
            }
            fs::create_dir_all(&folder)?;
            let lock = try_lock(&folder.join("lock"))?;
            let left = entries(&folder);
            open += left.iter().filter(|(_, entry)| entry.is_open()).count();
            let Some(lock) = lock else {
                continue;
            };
            let was_stopping = folder.join(STOPPING).try_exists()?;
            for (file, entry) in left {
                found.push((file, entry, was_stopping));
            }
            stopping.push(folder.join(STOPPING));
            own.get_or_insert(folder);
            locks.push(lock);
        }
        let folder = own.ok_or_else(|| {
            io::Error::other(format!(
                "{} workers use {} already; name another folder with --data-dir",
                SLOTS,
                base.display()
            ))
        })?;
        let is_alone = open == 1;
        let mut unfinished = Vec::new();
        for (file, mut entry, was_stopping) in found {
            let judged = || {
                let setting = restart_is_out_of_memory;
                verdict(&entry, &here, is_alone, was_stopping, setting)
            };
            let outcome = entry.verdict.clone().unwrap_or_else(judged);
            // Should this worker end before it is told, the next one would know less.
            entry.verdict = Some(outcome.clone());
            let written = serde_json::to_vec(&entry)
                .map_err(io::Error::other)
                .and_then(|bytes| write(&file, &bytes));
            if let Err(error) = written {
                tracing::warn!(%error, "the journal could not be written");
                // What this run ends with is then taken for a stop too, which blames nobody.
                stopping.clear();
            }
            unfinished.push(Unfinished {
                outcome,
                lease_id: entry.lease_id,
                probe_id: entry.probe_id,
                attempt: entry.attempt,
                file,
            });
        }
        stopping.iter().for_each(|file| remove(file));
        let journal = Self {
            folder,
            _locks: locks,
            here,
            cgroup,
        };
        Ok((journal, unfinished))
    }

    /// Writes down that a probe was claimed, which has no child yet.
    pub fn note_claim(&self, lease: &Lease) {
        self.write_down(lease, false);
    }

    /// Writes down that a child is about to start.
    pub fn note(&self, lease: &Lease) {
        self.write_down(lease, true);
    }

    fn write_down(&self, lease: &Lease, has_child: bool) {
        let entry = Entry {
            lease_id: lease.lease_id,
            probe_id: lease.probe_id,
            attempt: lease.attempt,
            kind: lease.spec.kind().as_str().to_owned(),
            started: Surroundings {
                out_of_memory_kills: self.cgroup.out_of_memory_kills(),
                ..self.here.clone()
            },
            has_child,
            verdict: None,
        };
        self.write(&entry);
    }

    /// Forgets an attempt whose end has been dealt with, and, once that is stored, what was known of its probe.
    pub fn settle(&self, lease: &Lease, is_stored: bool) {
        remove(&self.entry(lease.lease_id));
        if is_stored {
            remove(&self.known(lease.probe_id));
        }
        // A kill that was seen and told must not be taken for the end of somebody else.
        let kills = self.cgroup.out_of_memory_kills();
        for mut entry in entries(&self.folder).into_iter().map(|(_, entry)| entry) {
            if entry.started.out_of_memory_kills != kills {
                entry.started.out_of_memory_kills = kills;
                self.write(&entry);
            }
        }
    }

    /// A signal to stop has come: from now on an end without a word is nothing to wonder at.
    pub fn stopping(&self) {
        if let Err(error) = write(&self.folder.join(STOPPING), b"") {
            tracing::debug!(%error, "the journal could not be written");
        }
    }

    /// What is known of a probe that killed a worker of this folder by running out of memory.
    pub fn known_out_of_memory(&self, probe: ProbeId) -> Option<String> {
        fs::read_to_string(self.known(probe)).ok()
    }

    /// Tells how the attempts ended that killed workers left behind; goes on until told to stop.
    pub async fn tell<L: Leases>(
        &self,
        leases: &L,
        unfinished: Vec<Unfinished>,
        stop: watch::Receiver<bool>,
    ) {
        for one in unfinished {
            let mut stop = stop.clone();
            tokio::select! {
                () = self.tell_one(leases, &one) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn tell_one<L: Leases>(&self, leases: &L, unfinished: &Unfinished) {
        let request = CompletionRequest {
            probe_id: unfinished.probe_id,
            attempt: unfinished.attempt,
            outcome: unfinished.outcome.clone(),
            measurements: Vec::new(),
            stderr_tail: String::new(),
            device_secs: 0.0,
        };
        let mut pause = FIRST_PAUSE;
        loop {
            match leases.complete(unfinished.lease_id, &request).await {
                Err(error @ (LeaseError::Away(_) | LeaseError::Refused(_))) => {
                    tracing::debug!(%error, "how an attempt ended before the restart could not be told; trying again");
                    tokio::time::sleep(pause).await;
                    // One that is refused is mended by people; one that is away should hear it soon.
                    let longest = match error {
                        LeaseError::Refused(_) => LONGEST_PAUSE,
                        _ => FIRST_PAUSE * 4,
                    };
                    pause = (pause * 2).min(longest);
                    continue;
                }
                Err(LeaseError::Lost) => {
                    if let Outcome::Infeasible { detail, .. } = &unfinished.outcome
                        && let Err(error) =
                            write(&self.known(unfinished.probe_id), detail.as_bytes())
                    {
                        tracing::warn!(%error, "the journal could not be written");
                    }
                }
                Err(error) => {
                    tracing::warn!(probe = %unfinished.probe_id, %error, "how an attempt ended before the restart could not be told");
                }
                Ok(answer) => {
                    tracing::info!(probe = %unfinished.probe_id, state = answer.state.as_str(), "told how an attempt ended before the restart");
                }
            }
            remove(&unfinished.file);
            return;
        }
    }

    fn entry(&self, lease: LeaseId) -> PathBuf {
        self.folder.join(format!("{lease}.json"))
    }

    /// Beside the folders, so that every worker process finds it.
    fn known(&self, probe: ProbeId) -> PathBuf {
        self.folder
            .with_file_name(format!("out-of-memory-{probe}.txt"))
    }

    fn write(&self, entry: &Entry) {
        let written = serde_json::to_vec(entry)
            .map_err(io::Error::other)
            .and_then(|bytes| write(&self.entry(entry.lease_id), &bytes));
        if let Err(error) = written {
            tracing::warn!(%error, "the journal could not be written: should this worker be killed, nobody will know what it was running");
        }
    }
}

fn try_lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    let file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Written whole or not at all, and there after a power cut.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

fn remove(path: &Path) {
    // Not there: nothing to do.
    let _ = fs::remove_file(path);
}

/// The entries of a folder with their files; what cannot be read is none.
fn entries(folder: &Path) -> Vec<(PathBuf, Entry)> {
    let Ok(listing) = fs::read_dir(folder) else {
        return Vec::new();
    };
    listing
        .filter_map(|file| {
            let path = file.ok()?.path();
            let is_entry = path.extension().is_some_and(|end| end == "json");
            let bytes = is_entry.then(|| fs::read(&path).ok()).flatten()?;
            Some((path, serde_json::from_slice(&bytes).ok()?))
        })
        .collect()
}

/// The rule of this module's head.
fn verdict(
    entry: &Entry,
    now: &Surroundings,
    is_alone: bool,
    was_stopping: bool,
    restart_is_out_of_memory: bool,
) -> Outcome {
    let lost = |why: &str| Outcome::Failed {
        reason: FailureReason::Lost,
        detail: format!("its worker ended while it ran: {why}"),
    };
    let out_of_memory = |why: &str| Outcome::Infeasible {
        reason: InfeasibleReason::OutOfMemory,
        detail: format!("its worker was killed with it for want of memory: {why}"),
    };
    let then = &entry.started;
    if !entry.has_child {
        return lost("no child had been started yet");
    }
    if then.boot.is_none() || then.boot != now.boot {
        return lost("the host was started again");
    }
    let is_same_group = then.cgroup.is_some() && then.cgroup == now.cgroup;
    let has_killed = now.out_of_memory_kills > then.out_of_memory_kills;
    if is_same_group && !has_killed {
        return lost("its control group has killed nothing for memory");
    }
    if !is_alone {
        return lost("other probes ran beside it, so whoever used too much memory is not known");
    }
    if is_same_group {
        return out_of_memory("the kernel has killed in its control group");
    }
    if was_stopping || !then.is_limited || !restart_is_out_of_memory {
        return lost("the worker was started again");
    }
    out_of_memory(
        "its container was killed without a signal to stop (work.restart_is_out_of_memory)",
    )
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn surroundings(boot: &str, cgroup: &str, kills: u64) -> Surroundings {
        Surroundings {
            boot: Some(boot.into()),
            cgroup: Some(cgroup.into()),
            is_limited: true,
            out_of_memory_kills: kills,
        }
    }

    fn entry(started: Surroundings) -> Entry {
        Entry {
            lease_id: LeaseId(Uuid::now_v7()),
            probe_id: ProbeId(Uuid::now_v7()),
            attempt: 3,
            kind: "memory".into(),
            started,
            has_child: true,
            verdict: None,
        }
    }

    fn is_out_of_memory(outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Infeasible { reason, .. } => *reason == InfeasibleReason::OutOfMemory,
            Outcome::Failed { reason, .. } => {
                assert_eq!(*reason, FailureReason::Lost);
                false
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_end_without_a_word_is_out_of_memory_only_when_something_says_so() {
        let then = surroundings("boot", "1:7", 2);
        let told = |now: &Surroundings, is_alone, was_stopping, setting| {
            let entry = entry(then.clone());
            is_out_of_memory(&verdict(&entry, now, is_alone, was_stopping, setting))
        };
        let killed = surroundings("boot", "1:7", 3);
        assert!(told(&killed, true, false, false));
        assert!(!told(&then, true, false, true), "the count has not risen");
        assert!(!told(&killed, false, false, true), "nobody knows whose");
        let other_boot = surroundings("later", "1:7", 3);
        assert!(!told(&other_boot, true, false, true));
        let container = surroundings("boot", "1:8", 0);
        assert!(!told(&container, true, false, false), "a restart alone");
        assert!(told(&container, true, false, true), "nothing else restarts");
        assert!(!told(&container, true, true, true), "it was told to stop");
        assert!(!told(&container, false, false, true));
        let unlimited = Surroundings {
            is_limited: false,
            ..then.clone()
        };
        let unlimited = entry(unlimited);
        assert!(!is_out_of_memory(&verdict(
            &unlimited, &container, true, false, true
        )));
        let waiting = Entry {
            has_child: false,
            ..entry(then.clone())
        };
        assert!(!is_out_of_memory(&verdict(
            &waiting, &killed, true, false, true
        )));
    }

    #[test]
    fn a_folder_belongs_to_one_process_and_what_it_left_is_found_by_the_next() {
        let base = tempfile::tempdir().expect("a folder");
        let (journal, unfinished) = Journal::open(base.path(), false).expect("opens");
        assert_eq!(unfinished, []);
        let noted = entry(journal.here.clone());
        let (lease, probe) = (noted.lease_id, noted.probe_id);
        journal.write(&noted);
        // While it lives, nobody else takes care of it.
        let (beside, unfinished) = Journal::open(base.path(), false).expect("opens");
        assert_eq!(unfinished, []);
        assert_ne!(beside.folder, journal.folder);
        drop(journal);
        let (_after, unfinished) = Journal::open(base.path(), false).expect("opens");
        let [one] = &unfinished[..] else {
            panic!("{unfinished:?}");
        };
        assert_eq!((one.lease_id, one.probe_id, one.attempt), (lease, probe, 3));
        assert!(!is_out_of_memory(&one.outcome));
    }

    /// A container that was started again, as a worker of another one sees what it has left.
    fn of_a_container_that_is_gone(journal: &Journal) -> Entry {
        entry(Surroundings {
            cgroup: Some("another".into()),
            is_limited: true,
            ..journal.here.clone()
        })
    }

    fn is_told_out_of_memory(base: &Path) -> Vec<bool> {
        let (_journal, unfinished) = Journal::open(base, true).expect("opens");
        let outcomes = unfinished.iter().map(|one| &one.outcome);
        outcomes.map(is_out_of_memory).collect()
    }

    #[test]
    fn children_of_workers_that_live_count_as_well() {
        let base = tempfile::tempdir().expect("a folder");
        let (beside, _) = Journal::open(base.path(), true).expect("opens");
        let (journal, _) = Journal::open(base.path(), true).expect("opens");
        journal.write(&of_a_container_that_is_gone(&journal));
        let claimed = Entry {
            has_child: false,
            ..entry(beside.here.clone())
        };
        beside.write(&claimed);
        let running = Entry {
            has_child: true,
            ..claimed.clone()
        };
        beside.write(&running);
        drop(journal);
        assert_eq!(is_told_out_of_memory(base.path()), [false]);

        // The same, and the one beside it has claimed something and runs nothing.
        let (journal, _) = Journal::open(base.path(), true).expect("opens");
        for (file, _) in entries(&journal.folder) {
            remove(&file);
        }
        journal.write(&of_a_container_that_is_gone(&journal));
        beside.write(&claimed);
        drop(journal);
        assert_eq!(is_told_out_of_memory(base.path()), [true]);
    }

    #[test]
    fn what_was_judged_once_is_not_judged_again() {
        let base = tempfile::tempdir().expect("a folder");
        let (journal, _) = Journal::open(base.path(), true).expect("opens");
        journal.write(&of_a_container_that_is_gone(&journal));
        journal.stopping();
        drop(journal);
        assert_eq!(is_told_out_of_memory(base.path()), [false]);
        // That worker was killed before it could tell, and nothing says any more that the first was told to stop.
        assert_eq!(is_told_out_of_memory(base.path()), [false]);
    }
}

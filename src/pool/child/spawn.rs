//! Starting a child so that it can be trusted to end.
//!
//! All spawns go through one thread that lives as long as anybody can spawn: Linux kills a child on
//! its parent's death when the *thread* that forked it dies (`PR_SET_PDEATHSIG`), so a child started
//! from a pool of threads could be killed by a thread that merely retired.
//!
//! Everything a child starts stays in its process group, which is killed as a whole. The group's
//! leader is first awaited without being reaped: as long as it is a zombie its process id, which is
//! the group's, cannot belong to anybody else. What has left the group (`setsid`) is known by a mark in its
//! environment, which is inherited, and killed too; only a program that takes pains to lose it gets away.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use nix::libc;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::probe::{EVENTS_FD_VARIABLE, Exit, PROBE_VARIABLE};

/// The descriptor a child finds its events on: small, so that a shell can write to it.
const EVENTS_FD: RawFd = 3;

/// Where the files that are passed on are found: the first, the second.
const FILE_FDS: [RawFd; 2] = [4, 5];

/// What is passed on is moved out of the way first, so that no number is taken twice.
const ASIDE_FD: RawFd = 64;

/// How readily the kernel takes a child when the host runs out of memory (−1000 to 1000): before the
/// service and its database, which run at 0 or below.
#[cfg(target_os = "linux")]
const OOM_SCORE: &[u8] = b"800";

/// The user a child runs as when the service is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What to start and what to set up before it runs.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) program: OsString,
    /// What the program sees as its own name.
    pub(super) name: OsString,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub(super) folder: PathBuf,
    pub(super) user: Option<ServiceUser>,
    /// `RLIMIT_DATA`.
    pub(super) data_bytes: u64,
    /// Open files that are passed on, on the descriptors 4 and 5; at most two.
    pub(super) files: Vec<OwnedFd>,
}

/// A child that runs.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) events: OwnedFd,
    pub(super) running: Running,
}

/// The child itself.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) group: ProcessGroup,
    /// Comes when the child has been reaped and its group killed.
    pub(super) exit: oneshot::Receiver<Exit>,
}

struct Request {
    launch: Launch,
    reply: oneshot::Sender<io::Result<Launched>>,
}

/// The thread that starts children. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        thread::Builder::new()
            .name("probe-spawner".into())
            .spawn(move || {
                while let Ok(Request { launch, reply }) = inbox.recv() {
                    // Nobody there any more to take it: dropping a launched child kills it.
                    let _ = reply.send(start(&launch));
                }
            })?;
        Ok(Self { requests })
    }

    pub(super) async fn spawn(&self, launch: Launch) -> io::Result<Launched> {
        let gone = || io::Error::other("the thread that starts children has ended");
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request { launch, reply })
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// The process group of a child; killed when dropped.
#[derive(Debug)]
pub(super) struct ProcessGroup {
    shared: Arc<Mutex<Leader>>,
}

/// The child whose process id names the group.
#[derive(Debug)]
struct Leader {
    pid: libc::pid_t,
    reaped: bool,
}

impl Leader {
    /// Kills every process of the group, if its id can still only be its own.
    fn kill_group(&self) {
        if !self.reaped {
            // SAFETY: no memory is involved. An error means that the group is gone already.
            unsafe { libc::kill(-self.pid, libc::SIGKILL) };
        }
    }
}

impl ProcessGroup {
    pub(super) fn kill(&self) {
        lock(&self.shared).kill_group();
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock(leader: &Mutex<Leader>) -> MutexGuard<'_, Leader> {
    leader.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs on the spawner's thread.
fn start(launch: &Launch) -> io::Result<Launched> {
    let (mut events, events_writer) = io::pipe()?;
    let mark = Uuid::now_v7().to_string();
    let mut command = Command::new(&launch.program);
    command
        .arg0(&launch.name)
        .args(&launch.arguments)
        .env_clear()
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .env(EVENTS_FD_VARIABLE, EVENTS_FD.to_string())
        .env(PROBE_VARIABLE, &mark)
        .current_dir(&launch.folder)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let files: Vec<OwnedFd> = launch
        .files
        .iter()
        .map(|file| {
            // SAFETY: duplicates an open descriptor.
            let aside = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ASIDE_FD) };
            if aside < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: made just now, and nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(aside) })
        })
        .collect::<io::Result<_>>()?;
    let file = |index: usize| files.get(index).map(AsRawFd::as_raw_fd);
    let preparation = Preparation {
        files: [file(0), file(1)],
        parent: nix::unistd::getpid().as_raw(),
        events: events_writer.as_raw_fd(),
        user: launch.user.filter(|_| nix::unistd::geteuid().is_root()),
        data_bytes: launch.data_bytes,
    };
    let groups = preparation.user.map(groups_of).unwrap_or_default();
    #[cfg(target_os = "linux")]
    let owner = preparation
        .user
        .map_or_else(|| nix::unistd::geteuid().as_raw(), |user| user.uid);
    // SAFETY: `prepare` only makes system calls on values it owns; it neither allocates nor locks.
    unsafe { command.pre_exec(move || preparation.prepare(&groups)) };

    // The pipe on which the standard library reports a failed exec must not be one of the descriptors
    // that the child's events and files get, so these numbers are taken while the pipe is made.
    let occupied = File::open("/dev/null")?;
    // SAFETY: duplicates an open descriptor.
    let reserved = [(); 1 + FILE_FDS.len()]
        .map(|()| unsafe { libc::fcntl(occupied.as_raw_fd(), libc::F_DUPFD_CLOEXEC, EVENTS_FD) });
    let spawned = command.spawn();
    for descriptor in reserved.into_iter().filter(|descriptor| *descriptor >= 0) {
        // SAFETY: made above, and nobody else knows it.
        unsafe { libc::close(descriptor) };
    }
    drop(files);
    drop(events_writer);
    let mut child = spawned.map_err(|error| {
        // What failed before the exec said so on the events pipe.
        let mut step = String::new();
        let _ = (&mut events).take(200).read_to_string(&mut step);
        let program = launch.program.to_string_lossy();
        if step.is_empty() {
            io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
        } else {
            io::Error::new(error.kind(), format!("cannot {step}: {error}"))
        }
    })?;

    #[cfg(target_os = "linux")]
    {
        // Again, from here: between fork and exec the child is as closed to itself as this process is
        // (`close_to_others`), unless that is root. Best effort.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE);
    }

    let leader = Arc::new(Mutex::new(Leader {
        pid: child.id() as libc::pid_t,
        reaped: false,
    }));
    let group = ProcessGroup {
        shared: Arc::clone(&leader),
    };
    let taken = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = taken else {
        return Err(io::Error::other("the child has no pipes"));
    };
    let (report, exit) = oneshot::channel();
    thread::Builder::new()
        .name("probe-wait".into())
        .spawn(move || {
            let exit = wait(child, &leader);
            #[cfg(target_os = "linux")]
            kill_marked(&mark, owner);
            let _ = report.send(exit);
        })?;
    Ok(Launched {
        stdin: stdin.into(),
        stdout: stdout.into(),
        stderr: stderr.into(),
        events: events.into(),
        running: Running { group, exit },
    })
}

/// Waits for the child's end, kills what it left behind, then reaps it.
fn wait(mut child: Child, leader: &Mutex<Leader>) -> Exit {
    loop {
        // SAFETY: `waitid` fills a struct for which zeroes are a valid value.
        let ended = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(
                libc::P_PID,
                child.id(),
                &mut info,
                libc::WEXITED | libc::WNOWAIT,
            )
        };
        if ended == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    let mut leader = lock(leader);
    leader.kill_group();
    let status = child.wait();
    leader.reaped = true;
    match status.map(|status| (status.code(), status.signal())) {
        Ok((Some(code), _)) => Exit::Code(code),
        Ok((None, Some(signal))) => Exit::Signal(signal),
        // Somebody else reaped it: it has ended, and nobody can say how.
        Ok((None, None)) | Err(_) => Exit::Signal(libc::SIGKILL),
    }
}

/// Most looks for marked processes: each kill may come after a fork.
#[cfg(target_os = "linux")]
const MOST_LOOKS: usize = 20;

/// Kills what a child of this user has started and what has left its group. Only root and the same user may read another
/// process's environment: one that cannot be read is none of ours.
#[cfg(target_os = "linux")]
fn kill_marked(mark: &str, owner: libc::uid_t) {
    use std::os::unix::fs::MetadataExt as _;

    let wanted = format!("{PROBE_VARIABLE}={mark}");
    let is_marked = |pid: libc::pid_t| {
        let place = format!("/proc/{pid}");
        // A look at the owner costs less than one at the environment, and a host has many processes.
        if std::fs::metadata(&place).map(|it| it.uid()).ok() != Some(owner) {
            return false;
        }
        std::fs::read(format!("{place}/environ")).is_ok_and(|environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == wanted.as_bytes())
        })
    };
    for _ in 0..MOST_LOOKS {
        let Ok(listing) = std::fs::read_dir("/proc") else {
            return;
        };
        // A zombie's environment is empty, so each process is found once.
        let marked: Vec<libc::pid_t> = listing
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| is_marked(*pid))
            .collect();
        if marked.is_empty() {
            return;
        }
        for pid in marked {
            // SAFETY: no memory is involved. An error means that it is gone already.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// Keeps other processes of the same user out of this one's memory and environment, where tokens and passwords are: a
/// runner is such a process when the service is not root. An exec ends it, so children are as open as ever.
pub fn close_to_others() {
    #[cfg(target_os = "linux")]
    // SAFETY: a system call on integers; it cannot fail with these.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
}

/// The groups of an account beside its own: what a GPU's device files belong to, say (`render`, `video`).
fn groups_of(user: ServiceUser) -> Vec<libc::gid_t> {
    use nix::unistd::{Gid, Uid, User, getgrouplist};

    let none = vec![user.gid];
    let Ok(Some(account)) = User::from_uid(Uid::from_raw(user.uid)) else {
        return none;
    };
    let Ok(name) = std::ffi::CString::new(account.name) else {
        return none;
    };
    getgrouplist(&name, Gid::from_raw(user.gid))
        .map_or(none, |groups| groups.into_iter().map(Gid::as_raw).collect())
}

/// What the child does between fork and exec, all of it safe in the copy of a process with threads.
#[derive(Debug, Clone, Copy)]
struct Preparation {
    parent: libc::pid_t,
    events: RawFd,
    user: Option<ServiceUser>,
    data_bytes: u64,
    files: [Option<RawFd>; 2],
}

impl Preparation {
    fn prepare(self, groups: &[libc::gid_t]) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        // SAFETY: system calls on constants.
        unsafe {
            // Best effort, and before the change of user, after which the file is root's.
            let path = c"/proc/self/oom_score_adj";
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, OOM_SCORE.as_ptr().cast(), OOM_SCORE.len());
                libc::close(fd);
            }
        }
        self.limit(libc::RLIMIT_CORE as _, 0, "forbid core dumps")?;
        self.limit(
            libc::RLIMIT_DATA as _,
            self.data_bytes,
            "set the memory limit (RLIMIT_DATA)",
        )?;
        if let Some(user) = self.user {
            // SAFETY: system calls on integers, and on a slice that outlives the call.
            unsafe {
                self.check(
                    libc::setgroups(groups.len() as _, groups.as_ptr()),
                    "change to the groups of the service",
                )?;
                self.check(libc::setgid(user.gid), "change to the group of the service")?;
                self.check(libc::setuid(user.uid), "change to the user of the service")?;
            }
        }
        #[cfg(target_os = "linux")]
        // SAFETY: system calls on integers.
        unsafe {
            self.check(
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                "forbid new privileges",
            )?;
            // After the change of user, which would clear it.
            self.check(
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL),
                "tie it to its parent",
            )?;
        }
        // The parent may have died before the tie was made.
        // SAFETY: a system call without arguments.
        if unsafe { libc::getppid() } != self.parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        #[cfg(target_os = "linux")]
        // Whatever else is open stays with the parent. Best effort: kernels before 5.11 refuse it, and
        // what Rust opens is closed on exec anyway.
        // SAFETY: sets a flag on descriptors and closes none.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                EVENTS_FD as libc::c_uint,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
        }
        // SAFETY: system calls on open descriptors.
        unsafe {
            if self.events == EVENTS_FD {
                self.check(libc::fcntl(EVENTS_FD, libc::F_SETFD, 0), "pass the events")
            } else {
                self.check(libc::dup2(self.events, EVENTS_FD), "pass the events")
            }?;
            for (file, number) in self.files.into_iter().zip(FILE_FDS) {
                if let Some(file) = file {
                    self.check(libc::dup2(file, number), "pass a file")?;
                }
            }
        }
        Ok(())
    }

    fn limit(self, resource: libc::c_int, bytes: u64, step: &'static str) -> io::Result<()> {
        let limit = libc::rlimit {
            rlim_cur: bytes as libc::rlim_t,
            rlim_max: bytes as libc::rlim_t,
        };
        // SAFETY: reads a struct that outlives the call.
        self.check(unsafe { libc::setrlimit(resource as _, &limit) }, step)
    }

    /// Turns the result of a system call into an error, and tells the parent which step it was.
    fn check(self, result: libc::c_int, step: &'static str) -> io::Result<()> {
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // SAFETY: writes a constant to an open descriptor.
        unsafe { libc::write(self.events, step.as_ptr().cast(), step.len()) };
        Err(error)
    }
}

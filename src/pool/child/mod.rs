//! Runs one probe in a child process and says how it ended.
//!
//! The contract with the child is [`crate::probe`]'s: the spec as JSON on its stdin, events as JSON
//! lines on the descriptor that `TRIALHEAD_EVENTS_FD` names, stdout and stderr as logs. The child is
//! not trusted with anything: it runs without the service's secrets, as another user if the service
//! is root, with limits on memory, time and output, tied to its parent's life, and when it ends,
//! however it does, everything it started is killed that still bears the probe's mark or is of its group.

mod output;
mod spawn;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{self, Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::sleep_until;

use self::output::{EventLimits, EventLog, Log};
use self::spawn::{Launch, Launched, Running};
use super::cgroup::MemoryCgroup;
use super::inventory::JOINED;
use crate::probe::{
    ChildEnd, DEVICE_VARIABLE, Exit, FailureReason, GpuFacts, KilledFor, Measurement, Metric,
    Outcome, ProbeSpec, classify, required_figures,
};
use crate::study::{Backend, Bytes};

pub(super) use self::output::{DETAIL_CHARS, PHASE_CHARS, check_measurement, clean, is_name};
pub use self::output::{Progress, Told, hear};
pub use self::spawn::{ServiceUser, Spawner, close_to_others};

/// What a child sees of the service's environment. Everything else stays here: it may hold secrets.
const PASSED_ON: [&str; 17] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "RUST_LOG",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "CUBECL_AUTOTUNE_LEVEL",
    "CUBECL_DEBUG_LOG",
];

/// `RLIM_INFINITY`.
const UNLIMITED: u64 = nix::libc::RLIM_INFINITY;

/// Longest time limit that is waited for: a year.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// How children are started and how much they may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildConfig {
    /// Program and arguments of the runner; `None` for this executable with `probe`.
    pub command: Option<Vec<String>>,
    /// Program and arguments of other people's runners, by the name that specs give them.
    pub runners: BTreeMap<String, Vec<String>>,
    /// Program and arguments of the inspection of uploads; `None` for this executable with `inspect`.
    pub inspect_command: Option<Vec<String>>,
    /// Program and arguments that list the GPUs; `None` for this executable with `inventory`.
    pub inventory_command: Option<Vec<String>>,
    /// The GPU that probes run on; `None` for the processor.
    pub gpu: Option<ChosenGpu>,
    /// Who the child is when the service is root.
    pub user: Option<ServiceUser>,
    /// What is kept of each log.
    pub log_tail_bytes: usize,
    /// Longest line of the events.
    pub max_event_line_bytes: usize,
    /// Most events.
    pub max_events: usize,
    /// How long the pipes of a child that has ended are still read, should something that left its
    /// process group hold them open.
    pub drain_grace: Duration,
}

impl Default for ChildConfig {
    fn default() -> Self {
        Self {
            command: None,
            runners: BTreeMap::new(),
            inspect_command: None,
            inventory_command: None,
            gpu: None,
            user: Some(unprivileged_user()),
            log_tail_bytes: 16 * 1024,
            max_event_line_bytes: 64 * 1024,
            max_events: 20_000,
            drain_grace: Duration::from_secs(2),
        }
    }
}

/// The GPU that a worker's probes run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenGpu {
    /// How it is reached.
    pub backend: Backend,
    /// Its hardware id; of several that are offered together, joined by commas.
    pub hardware: String,
    /// Where kernels that were tuned and compiled are kept from child to child.
    pub cache_dir: Option<PathBuf>,
    /// Limit of the child's memory on the host; none: that of its control group.
    pub host_memory_bytes: Option<Bytes>,
}

/// The user `nobody`, by the ids it has where no entry tells.
pub fn unprivileged_user() -> ServiceUser {
    match nix::unistd::User::from_name("nobody") {
        Ok(Some(user)) => ServiceUser {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        },
        _ => ServiceUser {
            uid: 65534,
            gid: 65534,
        },
    }
}

/// How a child ended and what it said.
#[derive(Debug, Clone)]
pub struct ChildReport {
    /// What it comes to.
    pub outcome: Outcome,
    /// Name and version that the runner gave.
    pub runner: Option<String>,
    /// What it measured; evidence only if it succeeded.
    pub measurements: Vec<Measurement>,
    /// The end of its standard output.
    pub stdout_tail: String,
    /// The end of its standard error.
    pub stderr_tail: String,
    /// Exit code or signal; `None` if it never started.
    pub exit: Option<Exit>,
    /// When it was started.
    pub started: Instant,
    /// Seconds from then until it was reaped.
    pub wall_secs: f64,
}

/// Runs one probe to its end.
///
/// `control` ends it early: the child and everything it started are killed as soon as it holds a
/// reason, and also when its sender is gone, since then nobody watches over the lease. `told`
/// shows what the child has said so far. Dropping the future kills the child as well.
///
/// `dataset` is the stored content of an uploaded data set, which the child finds on descriptor 4.
pub async fn run(
    spawner: &Spawner,
    config: &ChildConfig,
    spec: &ProbeSpec,
    dataset: Option<OwnedFd>,
    control: watch::Receiver<Option<KilledFor>>,
    told: &watch::Sender<Option<Told>>,
) -> ChildReport {
    let job = launch(config, spec).and_then(|launch| {
        Ok(Job {
            launch: Launch {
                files: dataset.into_iter().collect(),
                ..launch
            },
            input: serde_json::to_vec(spec)?,
            wall_secs: spec.limits.wall_secs,
            // The service's own runner is tested for what it tells; another may forget something.
            must_tell: if spec.runner.is_burn() {
                &[]
            } else {
                required_figures(spec.kind())
            },
            is_inspection: false,
        })
    });
    run_job(spawner, config, job, control, told).await
}

/// Runs the inspection of an uploaded file: `input` holds it, `output` gets its stored form. The child ends
/// at a limit like any other.
pub async fn inspect(
    spawner: &Spawner,
    config: &ChildConfig,
    inspection: &[u8],
    [input, output]: [OwnedFd; 2],
    memory: Bytes,
    wall_secs: f64,
) -> ChildReport {
    let job = program(config.inspect_command.as_deref(), "inspect").map(|program| Job {
        launch: Launch {
            program: program.path,
            name: program.name,
            arguments: program.arguments,
            environment: environment(1),
            folder: "/".into(),
            user: config.user,
            data_bytes: memory.0,
            files: vec![input, output],
        },
        input: inspection.to_vec(),
        wall_secs,
        must_tell: &[],
        is_inspection: true,
    });
    let (_keep, control) = watch::channel(None);
    let (told, _heard) = watch::channel(None);
    run_job(spawner, config, job, control, &told).await
}

/// Lists the GPUs that this build can reach: as JSON on the child's stdout.
pub async fn inventory(spawner: &Spawner, config: &ChildConfig, patience: Duration) -> ChildReport {
    let job = program(config.inventory_command.as_deref(), "inventory").map(|program| Job {
        launch: Launch {
            program: program.path,
            name: program.name,
            arguments: program.arguments,
            environment: environment(1),
            folder: "/".into(),
            user: config.user,
            data_bytes: UNLIMITED,
            files: vec![],
        },
        input: Vec::new(),
        wall_secs: patience.as_secs_f64(),
        must_tell: &[],
        is_inspection: false,
    });
    let (_keep, control) = watch::channel(None);
    let (progress, _told) = watch::channel(None);
    run_job(spawner, config, job, control, &progress).await
}

/// One child from start to end.
#[derive(Debug)]
struct Job {
    launch: Launch,
    /// What it finds on its stdin.
    input: Vec<u8>,
    wall_secs: f64,
    /// Figures without which it has not done what it was asked.
    must_tell: &'static [Metric],
    /// Whether it looks at an upload, and may find it wanting.
    is_inspection: bool,
}

async fn run_job(
    spawner: &Spawner,
    config: &ChildConfig,
    job: io::Result<Job>,
    mut control: watch::Receiver<Option<KilledFor>>,
    told: &watch::Sender<Option<Told>>,
) -> ChildReport {
    let started = Instant::now();
    let already = *control.borrow_and_update();
    let early = |outcome| ChildReport {
        outcome,
        runner: None,
        measurements: Vec::new(),
        stdout_tail: String::new(),
        stderr_tail: String::new(),
        exit: None,
        started,
        wall_secs: started.elapsed().as_secs_f64(),
    };
    let not_started = |error: String| {
        early(Outcome::Failed {
            reason: FailureReason::NotStarted,
            detail: error,
        })
    };
    match already {
        Some(KilledFor::Cancel) => return early(Outcome::Cancelled),
        Some(_) => return early(Outcome::HandedBack),
        None => {}
    }
    let Job {
        launch,
        input,
        wall_secs,
        must_tell,
        is_inspection,
    } = match job {
        Ok(job) => job,
        Err(error) => return not_started(error.to_string()),
    };
    let cgroup = MemoryCgroup::of_this_process();
    let kills_before = cgroup.out_of_memory_kills();
    let launched = spawner.spawn(launch).await;
    let (pipes, running) = match launched.and_then(Pipes::open) {
        Ok(both) => both,
        Err(error) => return not_started(error.to_string()),
    };

    let mut stdout = Log::new(config.log_tail_bytes);
    let mut stderr = Log::new(config.log_tail_bytes);
    let mut events = EventLog::new(EventLimits {
        line_bytes: config.max_event_line_bytes,
        events: config.max_events,
        is_inspection,
    });
    let wall = Duration::try_from_secs_f64(wall_secs)
        .unwrap_or(LONGEST_WAIT)
        .min(LONGEST_WAIT);
    let supervision = Supervision {
        running,
        deadline: started + wall,
        drain_grace: config.drain_grace,
    };
    let (exit, killed_for, mut invalid_output) = {
        let logs = async {
            tokio::join!(
                stdout.read(pipes.stdout),
                stderr.read(pipes.stderr),
                write_all(pipes.stdin, &input),
            );
        };
        let events = events.read(pipes.events, |word| {
            told.send_modify(|told| told.get_or_insert_default().hear(word));
        });
        supervision.watch(&mut control, logs, events).await
    };
    let wall_secs = started.elapsed().as_secs_f64();

    let ended_cleanly = exit == Exit::Code(0) && killed_for.is_none();
    if invalid_output.is_none() {
        invalid_output = events.finish(ended_cleanly, must_tell).err();
    }
    let (_, stdout_tail) = stdout.finish();
    let (first_error_line, stderr_tail) = stderr.finish();
    let outcome = classify(&ChildEnd {
        exit,
        first_error_line,
        last_event: events.last,
        invalid_output,
        killed_for,
        oom_killed: cgroup.out_of_memory_kills() > kills_before,
    });
    ChildReport {
        outcome,
        runner: events.runner,
        measurements: events.measurements,
        stdout_tail,
        stderr_tail,
        exit: Some(exit),
        started,
        wall_secs,
    }
}

/// A running child and its limits.
#[derive(Debug)]
struct Supervision {
    running: Running,
    deadline: Instant,
    drain_grace: Duration,
}

impl Supervision {
    /// Waits until the child has been reaped and its pipes are empty; kills it when it must end.
    async fn watch(
        mut self,
        control: &mut watch::Receiver<Option<KilledFor>>,
        logs: impl Future<Output = ()>,
        events: impl Future<Output = Result<(), String>>,
    ) -> (Exit, Option<KilledFor>, Option<String>) {
        tokio::pin!(logs, events);
        let (mut logs_done, mut events_done) = (false, false);
        let (mut exit, mut killed_for, mut invalid_output) = (None, None, None);
        let mut until = self.deadline;
        loop {
            if let (Some(exit), true, true) = (exit, logs_done, events_done) {
                return (exit, killed_for, invalid_output);
            }
            let may_kill = exit.is_none() && killed_for.is_none();
            tokio::select! {
                // An end comes before a reason to end it.
                biased;
                end = &mut self.running.exit, if exit.is_none() => {
                    // The waiting thread always answers; were it gone, the group is killed on drop.
                    exit = Some(end.unwrap_or(Exit::Signal(nix::libc::SIGKILL)));
                    until = Instant::now() + self.drain_grace;
                }
                result = &mut events, if !events_done => {
                    events_done = true;
                    invalid_output = result.err();
                    if invalid_output.is_some() && may_kill {
                        killed_for = Some(KilledFor::InvalidOutput);
                        self.running.group.kill();
                    }
                }
                () = &mut logs, if !logs_done => logs_done = true,
                reason = reason_to_end(control), if may_kill => {
                    killed_for = Some(reason);
                    self.running.group.kill();
                }
                () = sleep_until(until.into()), if may_kill || exit.is_some() => match exit {
                    Some(exit) => return (exit, killed_for, invalid_output),
                    None => {
                        killed_for = Some(KilledFor::TimeLimit);
                        self.running.group.kill();
                    }
                }
            }
        }
    }
}

async fn reason_to_end(control: &mut watch::Receiver<Option<KilledFor>>) -> KilledFor {
    match control.wait_for(Option::is_some).await.map(|held| *held) {
        Ok(Some(reason)) => reason,
        Ok(None) => pending().await,
        Err(_) => KilledFor::Lease,
    }
}

/// The parent's ends of a child's pipes.
#[derive(Debug)]
struct Pipes {
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    events: pipe::Receiver,
}

impl Pipes {
    fn open(launched: Launched) -> io::Result<(Self, Running)> {
        let pipes = Self {
            stdin: pipe::Sender::from_owned_fd(launched.stdin)?,
            stdout: pipe::Receiver::from_owned_fd(launched.stdout)?,
            stderr: pipe::Receiver::from_owned_fd(launched.stderr)?,
            events: pipe::Receiver::from_owned_fd(launched.events)?,
        };
        Ok((pipes, launched.running))
    }
}

/// Writes the spec and closes the pipe. A child that does not read it is its own affair: how it ends
/// tells.
async fn write_all(mut stdin: pipe::Sender, input: &[u8]) {
    let _ = stdin.write_all(input).await;
}

/// What to start for `spec`.
fn launch(config: &ChildConfig, spec: &ProbeSpec) -> io::Result<Launch> {
    let runner = &spec.runner;
    let command = if runner.is_burn() {
        config.command.as_deref()
    } else {
        let command = config.runners.get(&runner.name).ok_or_else(|| {
            io::Error::other(format!("this worker offers no runner {:?}", runner.name))
        })?;
        Some(command.as_slice())
    };
    let program = program(command, "probe")?;
    let mut environment = environment(spec.device.threads);
    let mut data_bytes = spec.limits.memory_bytes.0;
    if let Some(gpu) = &config.gpu {
        environment.extend(gpu.environment(spec.device.count));
        // The budget is the GPU's; drivers map far more than they use.
        data_bytes = gpu.host_memory_bytes.map_or(UNLIMITED, |bytes| bytes.0);
    }
    Ok(Launch {
        program: program.path,
        name: program.name,
        arguments: program.arguments,
        environment,
        // Somebody's command means files beside the worker that was started with it.
        folder: if runner.is_burn() {
            "/".into()
        } else {
            std::env::current_dir()?
        },
        user: config.user,
        data_bytes,
        files: vec![],
    })
}

impl ChosenGpu {
    /// What tells a child of it, or of the first few of several. Later entries replace earlier ones of the same name.
    fn environment(&self, count: u32) -> Vec<(OsString, OsString)> {
        let own = |name: &str, value: &OsStr| (OsString::from(name), value.to_owned());
        let cards: Vec<&str> = self
            .hardware
            .split(JOINED)
            .take(count.max(1) as usize)
            .collect();
        let hardware = cards.join(",");
        let mut environment = vec![own(DEVICE_VARIABLE, hardware.as_ref())];
        if let Some((name, value)) = GpuFacts::visibility(self.backend, &hardware) {
            environment.push(own(name, value.as_ref()));
        }
        if let Some(folder) = &self.cache_dir {
            // CubeCL, Mesa, Triton and others follow the first; CUDA's driver has its own.
            environment.push(own("XDG_CACHE_HOME", folder.as_os_str()));
            environment.push(own("CUDA_CACHE_PATH", folder.join("cuda").as_os_str()));
        }
        environment
    }
}

struct Program {
    path: OsString,
    /// What it sees as its own name.
    name: OsString,
    arguments: Vec<OsString>,
}

/// The program of a command; without one, this executable with a subcommand.
fn program(command: Option<&[String]>, subcommand: &str) -> io::Result<Program> {
    match command {
        Some([program, arguments @ ..]) => Ok(Program {
            path: absolute(program)?,
            name: OsString::from(program),
            arguments: arguments.iter().map(OsString::from).collect(),
        }),
        Some([]) => Err(io::Error::other("the runner's command is empty")),
        None => Ok(Program {
            path: this_executable()?,
            name: OsString::from("trialhead"),
            arguments: vec![OsString::from(subcommand)],
        }),
    }
}

/// This executable. On Linux by a name that leads to the very file that runs, whatever has replaced
/// it since and whether or not the child's user may walk to it.
fn this_executable() -> io::Result<OsString> {
    if cfg!(target_os = "linux") {
        Ok("/proc/self/exe".into())
    } else {
        Ok(std::env::current_exe()?.into())
    }
}

/// A path in a command is relative to the service's directory, a bare name is searched for. One that is nowhere is
/// told here: the child may be let into fewer folders of the search path, and could say only that.
fn absolute(program: &str) -> io::Result<OsString> {
    if program.contains('/') {
        return Ok(path::absolute(Path::new(program))?.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&folders).any(|folder| folder.join(program).is_file()) {
        return Ok(program.into());
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("cannot start {program}: it is not found in the folders of PATH"),
    ))
}

fn environment(threads: u32) -> Vec<(OsString, OsString)> {
    let threads = threads.to_string();
    let own = |name: &str, value: &OsStr| (OsString::from(name), value.to_owned());
    let mut environment = vec![
        own("HOME", std::env::temp_dir().as_os_str()),
        // Capturing a backtrace allocates, which a child at its memory limit cannot.
        own("RUST_BACKTRACE", OsStr::new("0")),
        own("RAYON_NUM_THREADS", OsStr::new(&threads)),
        own("OMP_NUM_THREADS", OsStr::new(&threads)),
    ];
    environment.extend(
        PASSED_ON
            .iter()
            .filter_map(|name| Some(own(name, &std::env::var_os(name)?))),
    );
    environment
}

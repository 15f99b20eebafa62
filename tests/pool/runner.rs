//! The fake runner, and specs for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

pub use crate::fake::executable;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use trialhead::pool::child::{ChildConfig, ChildReport, Spawner, Told, run};
use trialhead::probe::{KilledFor, Limits, PROTOCOL, ProbeDevice, ProbeSpec, Task};
use trialhead::study::{
    Backend, BatchSize, Bytes, Dataset, GradientClipping, Model, Optimizer, Schedule, Workload,
};

/// A bound on everything that a test waits for; nothing here should come near it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn config(arguments: &[&str]) -> ChildConfig {
    let mut command = vec![executable().to_string_lossy().into_owned()];
    command.extend(arguments.iter().map(|&one| one.to_owned()));
    ChildConfig {
        command: Some(command),
        ..ChildConfig::default()
    }
}

pub fn spec() -> ProbeSpec {
    ProbeSpec {
        protocol: PROTOCOL,
        runner: Default::default(),
        task: Task::Memory { steps: 5 },
        workload: Workload::new(Dataset::digits(), Model::mlp(vec![64])),
        optimizer: Optimizer::adam(),
        schedule: Schedule::default(),
        gradient_clipping: GradientClipping::default(),
        device: ProbeDevice {
            backend: Backend::Cpu,
            model: "test".into(),
            count: 1,
            threads: 3,
        },
        batch_size: BatchSize(8),
        replicate: 0,
        seed: 1,
        limits: Limits {
            memory_bytes: Bytes(256 * Bytes::MIB),
            wall_secs: PATIENCE.as_secs_f64(),
        },
    }
}

/// Runs the fake runner to its end, with nothing that ends it early.
pub async fn run_to_end(config: &ChildConfig, spec: &ProbeSpec) -> ChildReport {
    let (_control, controlled) = watch::channel(None::<KilledFor>);
    let (progress, _) = watch::channel(None::<Told>);
    let spawner = Spawner::new().expect("starts a thread");
    timeout(
        2 * PATIENCE,
        run(&spawner, config, spec, None, controlled, &progress),
    )
    .await
    .expect("the child's own limits end it first")
}

/// Runs the fake runner with these arguments.
pub async fn run_as(arguments: &[&str]) -> ChildReport {
    run_to_end(&config(arguments), &spec()).await
}

/// A socket on which fake runners say that they live: the connection ends when they do.
pub struct Lifelines {
    _directory: TempDir,
    pub path: String,
    listener: UnixListener,
}

impl Lifelines {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("creates");
        let open = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("sets");
        };
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).expect("binds");
        open(directory.path());
        open(&path);
        Self {
            path: path.to_string_lossy().into_owned(),
            _directory: directory,
            listener,
        }
    }

    /// The next process that connects.
    pub async fn next(&self) -> Lifeline {
        let (stream, _) = timeout(PATIENCE, self.listener.accept())
            .await
            .expect("a process starts")
            .expect("accepts");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        timeout(PATIENCE, stream.read_line(&mut line))
            .await
            .expect("it speaks")
            .expect("reads");
        Lifeline {
            pid: line.trim().parse().expect("a process id"),
            stream,
        }
    }
}

/// One process that lives.
pub struct Lifeline {
    pub pid: i32,
    stream: BufReader<UnixStream>,
}

impl Lifeline {
    /// Waits for its death.
    pub async fn end(mut self) {
        let mut rest = Vec::new();
        timeout(PATIENCE, self.stream.read_to_end(&mut rest))
            .await
            .expect("it dies")
            .expect("reads");
    }
}

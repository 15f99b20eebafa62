//! Puts a worker away from the service together: it needs no database and no shared disk, only the address
//! of a service. `trialhead work` and the tests start it through the same function.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::WorkerServer;
use crate::client::{Contents, RestLeases, Server};
use crate::metrics::{InstanceMetrics, Role};
use crate::pool::child::Spawner;
use crate::pool::gpus;
use crate::pool::journal::Journal;
use crate::pool::leases::LeaseError;
use crate::pool::worker::{Settled, Worker};
use crate::probe::ProbeState;
use crate::service::{self, Shared};
use crate::settings::{Settings, WorkSettings};

/// How a worker's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkEnd {
    /// It was told to stop and has given back what it ran.
    Stopped,
    /// It ran one probe, and its end is stored.
    Done,
    /// No probe came.
    Nothing,
    /// It claimed a probe, which has to be run again: given back, lost, or failed for now.
    NotDone,
}

impl WorkEnd {
    /// The exit code that tells.
    pub fn exit_code(self, settings: &WorkSettings) -> u8 {
        match self {
            Self::Stopped | Self::Done => 0,
            Self::Nothing => settings.once_empty_exit_code,
            Self::NotDone => 4,
        }
    }
}

/// Works until told to stop; `once` is one probe. `token` is the access token unless the settings name a file.
///
/// # Errors
/// When it cannot start, or the service does not admit it.
pub async fn work(
    settings: &Settings,
    token: Option<&str>,
    once: bool,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<WorkEnd> {
    let server = Server::new(&settings.work, token)?;
    let folder = settings.data_dir()?.join("work");
    let contents = Contents::new(folder.join("datasets"), settings.work.cache_bytes)
        .with_context(|| format!("the folder {}", folder.display()))?;
    let (journal, unfinished) = Journal::open(
        &folder.join("journal"),
        settings.work.restart_is_out_of_memory,
    )
    .with_context(|| format!("the journal in {}", folder.display()))?;
    let journal = Arc::new(journal);
    note_panics(&journal);
    // However this ends: what is killed with it was not killed for memory.
    let _leaving = Leaving(Arc::clone(&journal));
    let pool = &settings.pool;
    let heartbeat = Duration::from_secs_f64(pool.heartbeat_secs);
    let patience = Duration::from_secs_f64(settings.work.request_timeout_secs);
    tracing::info!(server = server.address(), "working");
    let leases = RestLeases::new(
        server,
        Arc::new(contents),
        patience,
        patience.min(heartbeat * 2),
    );
    let metrics = InstanceMetrics::new(Role::Work)?;
    // Before the devices are listed, which takes its time and is nothing to be restarted for.
    let listener = settings
        .work
        .listen
        .map(|listen| {
            WorkerServer::start(settings, listen, metrics.clone(), leases.answered())
                .with_context(|| format!("work.listen: listening on {listen}"))
        })
        .transpose()?;
    if let Some(listener) = &listener {
        let address = listener.address();
        tracing::info!("health and metrics, without tokens, on http://{address}");
    }
    let telling = {
        let (journal, leases, stop) = (Arc::clone(&journal), leases.clone(), stop.clone());
        tokio::spawn(async move { journal.tell(&leases, unfinished, stop).await })
    };
    let spawner = Arc::new(Spawner::new()?);
    let child = Arc::new(service::child_config(pool, &settings.datasets)?);
    let devices = gpus::devices_of_this_host(&spawner, &child, pool).await;
    let shared = Shared {
        leases,
        spawner,
        child,
        metrics,
        journal: Some(Arc::clone(&journal)),
    };
    let workers = service::workers(settings, &devices, &shared)?;
    anyhow::ensure!(
        !workers.is_empty(),
        "this host has none of the devices that pool.devices names ({}), or they cannot be listed",
        pool.devices.join(", ")
    );
    let noted = {
        let (journal, mut stop) = (Arc::clone(&journal), stop.clone());
        tokio::spawn(async move {
            if stop.wait_for(|stop| *stop).await.is_ok() {
                journal.stopping();
            }
        })
    };
    let end = if once {
        let patience = Duration::from_secs_f64(settings.work.once_wait_secs);
        // Before anything new is begun.
        let _ = tokio::time::timeout(patience, telling).await;
        once_on_any(workers, stop, patience).await
    } else {
        let drain = Duration::from_secs_f64(pool.drain_secs);
        let end = until_stopped(workers, stop, drain, &journal).await;
        telling.abort();
        end
    };
    noted.abort();
    if let Some(listener) = listener {
        listener.stop().await;
    }
    end
}

/// One probe, on the first device that gets one.
async fn once_on_any(
    workers: Vec<Worker<RestLeases>>,
    stop: watch::Receiver<bool>,
    patience: Duration,
) -> anyhow::Result<WorkEnd> {
    let mut end = WorkEnd::Nothing;
    // One device after the other: two claims at once could bring two probes. The rarer ones first.
    let (mut workers, others): (Vec<_>, Vec<_>) = workers
        .into_iter()
        .partition(|worker| worker.facts.backend.is_gpu());
    workers.extend(others);
    let share = patience / u32::try_from(workers.len()).unwrap_or(1).max(1);
    for worker in workers {
        let settled = worker
            .run_once(stop.clone(), share)
            .await
            .map_err(friendly)?;
        end = match settled {
            None => continue,
            Some(Settled::Stored(state)) if state.has_ended() => match state {
                ProbeState::Cancelled => WorkEnd::NotDone,
                _ => WorkEnd::Done,
            },
            Some(Settled::Stored(_) | Settled::NotRun | Settled::Lost) => WorkEnd::NotDone,
        };
        break;
    }
    if *stop.borrow() && end == WorkEnd::Nothing {
        return Ok(WorkEnd::Stopped);
    }
    Ok(end)
}

/// Notes in the journal that this process ends, when it is dropped.
struct Leaving(Arc<Journal>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.stopping();
    }
}

/// A panic may end the process before anything is dropped.
fn note_panics(journal: &Arc<Journal>) {
    let journal = Arc::downgrade(journal);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(journal) = journal.upgrade() {
            journal.stopping();
        }
        before(panic);
    }));
}

/// Works until told to stop, or until one of the workers ends with an error; then the others hand back what they
/// run before the error is told.
async fn until_stopped(
    workers: Vec<Worker<RestLeases>>,
    mut stop: watch::Receiver<bool>,
    drain: Duration,
    journal: &Journal,
) -> anyhow::Result<WorkEnd> {
    let (halt, halted) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for worker in workers {
        tasks.spawn(worker.run(halted.clone()));
    }
    let first = tokio::select! {
        ended = all_ended(&mut tasks) => ended,
        _ = stop.wait_for(|stop| *stop) => Ok(()),
    };
    // Noted before anything else: whoever reads the log, or kills this process, comes after it.
    journal.stopping();
    match &first {
        Ok(()) => tracing::info!("draining: running probes are handed back"),
        Err(error) => {
            tracing::error!(%error, "a worker ended; what the others run is handed back");
        }
    }
    halt.send_replace(true);
    let rest = tokio::time::timeout(drain, async {
        let mut rest = Ok(());
        while !tasks.is_empty() {
            rest = rest.and(all_ended(&mut tasks).await);
        }
        rest
    });
    let rest = rest.await.unwrap_or_else(|_| {
        tracing::warn!("some work did not end in time; its leases will run out");
        Ok(())
    });
    first.and(rest)?;
    Ok(WorkEnd::Stopped)
}

/// Waits until all have ended, or the first with an error.
async fn all_ended(tasks: &mut JoinSet<Result<(), LeaseError>>) -> anyhow::Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended.context("a worker")?.map_err(friendly)?;
    }
    Ok(())
}

fn friendly(error: LeaseError) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

//! Fifty workers against one service and one Postgres, over REST: 10,000 probes that do nothing, claimed and
//! completed by 8 and by 50 workers in turns. None is lost, none is done twice, the connections to the
//! database stay bounded. Goal: claims a second at 50 workers at least 0.7 of those at 8.
//!
//! `cargo bench --profile release --bench claims`

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "../tests/support/queue.rs"]
mod queue;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Barrier, watch};
use tokio_postgres::NoTls;
use trialhead::client::{Contents, RestLeases, Server};
use trialhead::pool::inventory::DeviceFacts;
use trialhead::pool::leases::{ClaimRequest, CompletionRequest, LeaseError, Leases};
use trialhead::probe::{Measurement, Outcome, PROTOCOL, ProbeState, Task};
use trialhead::service::Service;
use trialhead::settings::Settings;
use trialhead::store::connection::Database;
use trialhead::store::events;
use trialhead::study::{Backend, Bytes, LeaseId, StudyId};
use uuid::Uuid;

const STUDIES: u32 = 4;
const PROBES: u32 = 10_000;
const TURNS: u32 = 10;
const FEW: usize = 8;
const MANY: usize = 50;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let (folder, postgres, database) = queue::database_of_its_own().await;
    let mut settings = queue::settings_of_its_own(&folder, &postgres);
    let most_connections = settings.database.pool_size;
    let service = Service::start(settings.clone()).await.expect("serves");
    settings.work.server = Some(format!("http://{}", service.address));

    let mut studies = Vec::new();
    for _ in 0..STUDIES {
        let id = queue::study(&database, queue::MODEL, 0, PROBES / STUDIES, |_| {
            Task::Memory { steps: 1 }
        })
        .await;
        studies.push(id);
    }
    let seen = watch_connections(&postgres.url()).await;
    let workers: Vec<Loop> = (0..MANY)
        .map(|number| Loop::new(&settings, &folder, number))
        .collect();
    let completed = Arc::new(AtomicU32::new(0));
    let mut rates = Vec::new();
    // Half of each turn's probes by few, half by many.
    let share = PROBES / TURNS / 2;
    for turn in 0..TURNS {
        let few = turn_of(&workers[..FEW], &completed, share).await;
        let many = turn_of(&workers, &completed, share).await;
        println!(
            "turn {turn}: {few:.0}/s with {FEW} workers, {many:.0}/s with {MANY}, ratio {:.2}",
            many / few
        );
        rates.push(many / few);
    }
    rates.sort_by(f64::total_cmp);
    println!(
        "claims a second, {MANY} workers against {FEW}: median {:.2} ({:.2} to {:.2}) of {TURNS} turns; goal at least 0.7",
        rates[rates.len() / 2],
        rates[0],
        rates[rates.len() - 1]
    );
    let mut ends = HashMap::<String, u32>::new();
    for study in &studies {
        count_ends(&database, *study, &mut ends).await;
    }
    let twice = ends.values().filter(|count| **count > 1).count();
    println!(
        "{} of {PROBES} probes done, {twice} of them twice; {} completions told",
        ends.len(),
        completed.load(Ordering::Relaxed)
    );
    println!(
        "connections to Postgres at most {} (the service may have {most_connections}, and one that listens)",
        seen.load(Ordering::Relaxed)
    );
    drop(workers);
    service.stop().await;
    database.close();
    postgres.stop().await;
    let _ = std::fs::remove_dir_all(folder);
}

/// The most connections that services had at any look.
async fn watch_connections(url: &str) -> Arc<AtomicU32> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connects");
    tokio::spawn(connection);
    let most = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&most);
    tokio::spawn(async move {
        let count = "SELECT count(*)::int FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        while let Ok(row) = client.query_one(count, &[]).await {
            let now: i32 = row.get(0);
            seen.fetch_max(u32::try_from(now).unwrap_or(0), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    most
}

async fn count_ends(database: &Database, study: StudyId, ends: &mut HashMap<String, u32>) {
    let mut conn = database.connection().await.expect("a connection");
    let log = events::list_after(&mut conn, study, 0, i64::MAX)
        .await
        .expect("read");
    for (_, kind, data) in log {
        if kind == "probe" && data["state"] == "succeeded" {
            *ends.entry(data["probe_id"].to_string()).or_default() += 1;
        }
    }
}

/// Claims and completions a second until `share` probes are done.
async fn turn_of(workers: &[Loop], completed: &Arc<AtomicU32>, share: u32) -> f64 {
    let left = Arc::new(AtomicU32::new(share));
    let start = Arc::new(Barrier::new(workers.len() + 1));
    let tasks: Vec<_> = workers
        .iter()
        .map(|worker| {
            let worker = worker.clone();
            let (left, start, completed) =
                (Arc::clone(&left), Arc::clone(&start), Arc::clone(completed));
            tokio::spawn(async move {
                start.wait().await;
                let take = |left: u32| left.checked_sub(1);
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok()
                {
                    worker.one().await;
                    completed.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    start.wait().await;
    let since = Instant::now();
    for task in tasks {
        task.await.expect("a worker");
    }
    f64::from(share) / since.elapsed().as_secs_f64()
}

/// A worker's part of the protocol, without a child.
#[derive(Debug, Clone)]
struct Loop {
    leases: RestLeases,
    request: ClaimRequest,
    stop: watch::Receiver<bool>,
    _keep: Arc<watch::Sender<bool>>,
}

impl Loop {
    fn new(settings: &Settings, folder: &std::path::Path, number: usize) -> Self {
        let server = Server::new(&settings.work, None).expect("an address");
        let contents = Contents::new(folder.join("contents"), 1).expect("a folder");
        let patience = Duration::from_secs(30);
        let (keep, stop) = watch::channel(false);
        Self {
            leases: RestLeases::new(server, Arc::new(contents), patience, patience),
            request: ClaimRequest {
                lease_id: LeaseId(Uuid::nil()),
                worker: format!("worker {number}"),
                protocol: PROTOCOL,
                device: DeviceFacts {
                    driver: None,
                    host: format!("host {number}"),
                    hardware: "cpu".into(),
                    backend: Backend::Cpu,
                    model: queue::MODEL.into(),
                    threads: 2,
                    memory_bytes: Bytes(1 << 33),
                    available_bytes: Bytes(1 << 33),
                    slots: 2,
                    count: 1,
                },
                runners: vec!["burn".into()],
                wait_secs: 20.0,
            },
            stop,
            _keep: Arc::new(keep),
        }
    }

    async fn one(&self) {
        let mut request = self.request.clone();
        request.lease_id = LeaseId(Uuid::now_v7());
        let lease = loop {
            match self.leases.claim(&request, &mut self.stop.clone()).await {
                Ok(Some(lease)) => break lease,
                Ok(None) | Err(LeaseError::Away(_)) => {}
                Err(error) => panic!("{error}"),
            }
        };
        let completion = CompletionRequest {
            probe_id: lease.probe_id,
            attempt: lease.attempt,
            outcome: Outcome::Succeeded,
            measurements: vec![Measurement {
                seq: 0,
                metric: "peak_memory".into(),
                step: None,
                value: 1.0,
                unit: "bytes".into(),
                elapsed_secs: 0.1,
            }],
            stderr_tail: String::new(),
            device_secs: 0.1,
        };
        loop {
            match self.leases.complete(lease.lease_id, &completion).await {
                Ok(answer) => {
                    assert_eq!(answer.state, ProbeState::Succeeded);
                    return;
                }
                Err(LeaseError::Away(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

//! One worker: claims a probe in a short transaction, runs it in a child with no transaction open,
//! keeps its lease alive, and completes it. Whatever happens here, the lease protocol makes sure
//! that the probe is neither lost nor done twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::child::{self, ChildConfig, ChildReport, Progress, Spawner};
use super::host_lock::{HostLocks, LockMode};
use super::inventory::DeviceFacts;
use crate::library::Library;
use crate::lifecycle::Context;
use crate::metrics::InstanceMetrics;
use crate::probe::{FailureReason, KilledFor, Outcome, ProbeKind};
use crate::settings::PoolSettings;
use crate::store::StoreError;
use crate::store::leases::{self, Claim, Claimed, Completed, Completion, Heartbeat, RetryPolicy};
use crate::study::{Dataset, DeviceId, LeaseId};

/// Pause before a completion that did not reach the database is sent again.
const COMPLETE_RETRY: Duration = Duration::from_millis(500);

/// A completion that could not be stored for this long is given up: the reaper has long taken over.
const COMPLETE_GIVE_UP: Duration = Duration::from_secs(600);

/// What the workers of one service share.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Database, waker, limits.
    pub context: Context,
    /// Times and caps.
    pub settings: Arc<PoolSettings>,
    /// Starts children from one long-lived thread.
    pub spawner: Arc<Spawner>,
    /// How children are started.
    pub child: Arc<ChildConfig>,
    /// Host-wide locks on devices.
    pub locks: Arc<HostLocks>,
    /// The contents of uploaded data sets.
    pub library: Library,
    /// The device worked on.
    pub facts: Arc<DeviceFacts>,
    /// Its row.
    pub device: DeviceId,
    /// Counts what happens.
    pub metrics: InstanceMetrics,
    /// Name shown with the probes it runs.
    pub name: String,
}

/// How often a probe is tried, from the settings.
pub fn retry_policy(settings: &PoolSettings) -> RetryPolicy {
    RetryPolicy {
        max_crashes: i32::try_from(settings.max_crashes).unwrap_or(i32::MAX),
        max_losses: i32::try_from(settings.max_losses).unwrap_or(i32::MAX),
        delay_secs: settings.retry_delay_secs,
        max_delay_secs: settings.max_retry_delay_secs,
    }
}

impl Worker {
    /// Claims and runs probes until told to stop. A probe that runs then is handed back at no cost.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut wake = self.context.waker.subscribe();
        let tick = Duration::from_secs_f64(self.settings.tick_secs);
        while !*stop.borrow() {
            wake.mark_unchanged();
            match self.claim().await {
                Ok(Some(claimed)) => {
                    self.run_claimed(claimed, stop.clone()).await;
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(worker = self.name, %error, "no probe could be claimed; trying again");
                }
            }
            tokio::select! {
                _ = wake.changed() => {}
                () = tokio::time::sleep(tick) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn claim(&self) -> Result<Option<(Claimed, Instant)>, StoreError> {
        let mut conn = self.context.database.connection().await?;
        let sent = Instant::now();
        let claim = Claim {
            lease: LeaseId(Uuid::now_v7()),
            worker: &self.name,
            device: self.device,
            runners: &self.settings.offered_runners(),
            lease_secs: self.settings.lease_secs,
        };
        Ok(leases::claim(&mut conn, &claim)
            .await?
            .map(|claimed| (claimed, sent)))
    }

    async fn run_claimed(&self, (claimed, sent): (Claimed, Instant), stop: watch::Receiver<bool>) {
        let kind = claimed.spec.kind().as_str();
        tracing::info!(
            probe = %claimed.probe, study = %claimed.study, kind,
            batch_size = claimed.spec.batch_size.0, attempt = claimed.attempt, "probe started"
        );
        let (kill, killed) = watch::channel(None);
        let (progress, told) = watch::channel(None);
        let mut keeper = LeaseKeeper {
            worker: self,
            claimed: &claimed,
            acknowledged: sent,
            told,
            stop,
        };
        let report = {
            let run = self.run_on_device(&claimed, killed, progress);
            tokio::pin!(run);
            // The lease is kept while the device is waited for and while the child runs; a reason
            // to stop is passed on, and the child's end is always waited for.
            let reason = tokio::select! {
                report = &mut run => Ok(report),
                reason = keeper.keep() => Err(reason),
            };
            match reason {
                Ok(report) => report,
                Err(reason) => {
                    kill.send_replace(Some(reason));
                    run.await
                }
            }
        };
        let outcome = outcome_name(&report.outcome);
        self.metrics
            .probe_duration_seconds
            .with_label_values(&[kind, outcome])
            .observe(report.wall_secs);
        tracing::info!(
            probe = %claimed.probe, study = %claimed.study, kind, outcome,
            secs = report.wall_secs, "probe ended"
        );
        self.complete(&claimed, report).await;
    }

    /// Waits for the device, then runs the child.
    async fn run_on_device(
        &self,
        claimed: &Claimed,
        mut killed: watch::Receiver<Option<KilledFor>>,
        progress: watch::Sender<Option<Progress>>,
    ) -> ChildReport {
        let wait = Duration::from_secs_f64(self.settings.device_wait_secs);
        let mode = if claimed.exclusive {
            LockMode::Exclusive
        } else {
            LockMode::Shared
        };
        let lock = tokio::select! {
            lock = self.locks.acquire(&self.facts.hardware, mode, wait) => lock,
            reason = wait_for_reason(&mut killed) => {
                return not_run(outcome_of_stop(reason));
            }
        };
        let _lock = match lock {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                tracing::info!(probe = %claimed.probe, "another service of this host holds the device; handing the probe back");
                return not_run(Outcome::HandedBack);
            }
            Err(error) => {
                return not_run(Outcome::Failed {
                    reason: FailureReason::NotStarted,
                    detail: format!("the device lock cannot be taken: {error}"),
                });
            }
        };
        let running = self
            .metrics
            .children_running
            .with_label_values(&[&self.facts.model]);
        running.inc();
        let dataset = match &claimed.spec.workload.dataset {
            Dataset::Builtin(_) | Dataset::External(_) => None,
            Dataset::Uploaded(uploaded) => match self.library.open(&uploaded.content).await {
                Ok(file) => Some(file.into()),
                Err(error) => {
                    return not_run(Outcome::Failed {
                        reason: FailureReason::NotStarted,
                        detail: format!(
                            "the content of the data set {} cannot be opened: {error}",
                            uploaded.id
                        ),
                    });
                }
            },
        };
        let report = child::run(
            &self.spawner,
            &self.child,
            &claimed.spec,
            dataset,
            killed,
            &progress,
        )
        .await;
        running.dec();
        report
    }

    /// Stores the end of an attempt; goes on trying while the database is away.
    async fn complete(&self, claimed: &Claimed, report: ChildReport) {
        let measurements = report.measurements.len();
        let outcome = match claimed.spec.kind() {
            ProbeKind::Smoke => report.outcome.with_log(&report.stderr_tail),
            _ => report.outcome,
        };
        let completion = Completion {
            fence: claimed.fence(),
            outcome,
            measurements: report.measurements,
            stderr_tail: report.stderr_tail,
            device_secs: report.wall_secs,
        };
        let since = Instant::now();
        loop {
            match self.try_complete(&completion).await {
                Ok(Completed::Now(_)) => {
                    self.metrics
                        .measurements_stored_total
                        .inc_by(measurements as u64);
                    self.context.waker.wake();
                    return;
                }
                Ok(Completed::Already) => return,
                Ok(Completed::Fenced) => {
                    self.metrics.leases_lost_total.inc();
                    tracing::warn!(probe = %claimed.probe, attempt = claimed.attempt, "the lease was lost; what this attempt measured is dropped");
                    return;
                }
                Err(error) if error.is_transient() && since.elapsed() < COMPLETE_GIVE_UP => {
                    tracing::warn!(probe = %claimed.probe, %error, "the probe's end could not be stored; trying again");
                    tokio::time::sleep(COMPLETE_RETRY).await;
                }
                Err(error) => {
                    tracing::error!(probe = %claimed.probe, %error, "the probe's end could not be stored; it will be run again when its lease has run out");
                    return;
                }
            }
        }
    }

    async fn try_complete(&self, completion: &Completion) -> Result<Completed, StoreError> {
        let mut conn = self.context.database.connection().await?;
        leases::complete(&mut conn, completion, retry_policy(&self.settings)).await
    }
}

/// Keeps a lease alive, and knows when to give it up.
struct LeaseKeeper<'a> {
    worker: &'a Worker,
    claimed: &'a Claimed,
    /// When the last acknowledged claim or heartbeat was *sent*: the lease counts from later, so
    /// this errs on the safe side.
    acknowledged: Instant,
    told: watch::Receiver<Option<Progress>>,
    stop: watch::Receiver<bool>,
}

impl LeaseKeeper<'_> {
    /// Sends heartbeats until there is a reason to end the child.
    async fn keep(&mut self) -> KilledFor {
        let settings = &self.worker.settings;
        let period = Duration::from_secs_f64(settings.heartbeat_secs);
        let safe = Duration::from_secs_f64(settings.lease_secs - settings.lease_margin_secs);
        let mut stop = self.stop.clone();
        loop {
            let deadline = self.acknowledged + safe;
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = tokio::time::sleep_until(deadline) => return self.lost(),
                _ = stop.wait_for(|stop| *stop) => return KilledFor::Drain,
            }
            let sent = Instant::now();
            // A heartbeat that hangs must not outlast the lease.
            let answer = tokio::select! {
                answer = self.beat() => answer,
                () = tokio::time::sleep_until(deadline) => return self.lost(),
            };
            match answer {
                Ok(Heartbeat::Held {
                    cancel_requested: true,
                }) => return KilledFor::Cancel,
                Ok(Heartbeat::Held {
                    cancel_requested: false,
                }) => self.acknowledged = sent,
                Ok(Heartbeat::Lost) => return self.lost(),
                Err(error) => {
                    tracing::warn!(probe = %self.claimed.probe, %error, "a heartbeat did not reach the database");
                }
            }
        }
    }

    async fn beat(&mut self) -> Result<Heartbeat, StoreError> {
        let told = self.told.borrow_and_update().clone();
        let progress = told
            .as_ref()
            .map(|progress| (progress.phase.as_str(), progress.fraction));
        let mut conn = self.worker.context.database.connection().await?;
        leases::heartbeat(
            &mut conn,
            self.claimed.fence(),
            self.worker.settings.lease_secs,
            progress,
        )
        .await
    }

    fn lost(&self) -> KilledFor {
        tracing::warn!(probe = %self.claimed.probe, "the lease cannot be held; ending the child");
        KilledFor::Lease
    }
}

async fn wait_for_reason(killed: &mut watch::Receiver<Option<KilledFor>>) -> KilledFor {
    match killed.wait_for(Option::is_some).await {
        Ok(reason) => reason.unwrap_or(KilledFor::Drain),
        // The sender lives as long as the probe is run.
        Err(_) => KilledFor::Drain,
    }
}

/// The outcome of a probe that was stopped before its child started.
fn outcome_of_stop(reason: KilledFor) -> Outcome {
    match reason {
        KilledFor::Cancel => Outcome::Cancelled,
        _ => Outcome::HandedBack,
    }
}

/// The report of a probe whose child was never started.
fn not_run(outcome: Outcome) -> ChildReport {
    ChildReport {
        outcome,
        runner: None,
        measurements: Vec::new(),
        stdout_tail: String::new(),
        stderr_tail: String::new(),
        exit: None,
        started: std::time::Instant::now(),
        wall_secs: 0.0,
    }
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Infeasible { reason, .. } => reason.as_str(),
        Outcome::Failed { .. } => "failed",
        Outcome::Cancelled => "cancelled",
        Outcome::HandedBack => "handed_back",
    }
}

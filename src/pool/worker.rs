//! One worker: claims a probe, runs it in a child, keeps its lease alive, and completes it. Whatever
//! happens here, the lease protocol makes sure that the probe is neither lost nor done twice.
//!
//! The same worker runs inside `serve`, with the database behind its [`Leases`], and anywhere else, with the
//! service's REST routes behind them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::child::{self, ChildConfig, ChildReport, Spawner, Told};
use super::host_lock::{HostLocks, LockMode};
use super::inventory::{CPU, DeviceFacts};
use super::journal::Journal;
use super::keeper::{LeaseKeeper, batch};
use super::leases::{ClaimRequest, CompletionRequest, HeartbeatRequest, Lease, LeaseError, Leases};
use crate::metrics::InstanceMetrics;
use crate::probe::{
    FailureReason, InfeasibleReason, KilledFor, Outcome, PROTOCOL, ProbeKind, ProbeState,
};
use crate::settings::PoolSettings;
use crate::study::{Dataset, LeaseId};

/// Pause before a completion that did not arrive is sent again.
const COMPLETE_RETRY: Duration = Duration::from_millis(500);

/// A completion that could not be stored for this long is given up: the reaper has long taken over.
const COMPLETE_GIVE_UP: Duration = Duration::from_secs(600);

/// First pause after a claim that did not arrive; doubles up to the tick.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// A worker, and what it shares with the others of its process.
#[derive(Debug, Clone)]
pub struct Worker<L> {
    /// Where probes come from and their ends go to.
    pub leases: L,
    /// Times and caps.
    pub settings: Arc<PoolSettings>,
    /// How long one claim waits for a probe, seconds.
    pub wait_secs: f64,
    /// The runners it has.
    pub runners: Arc<[String]>,
    /// Starts children from one long-lived thread.
    pub spawner: Arc<Spawner>,
    /// How children are started.
    pub child: Arc<ChildConfig>,
    /// Host-wide locks on devices.
    pub locks: Arc<HostLocks>,
    /// The device worked on.
    pub facts: Arc<DeviceFacts>,
    /// Counts what happens.
    pub metrics: InstanceMetrics,
    /// Name shown with the probes it runs.
    pub name: String,
    /// Says after a restart what was running.
    pub journal: Option<Arc<Journal>>,
}

/// What became of a probe that a worker had claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Its end is stored, and made this of the probe.
    Stored(ProbeState),
    /// Nothing was run, because of something about this worker, and the probe was handed back.
    NotRun,
    /// The lease was lost, or nobody could be told: another attempt will be made.
    Lost,
}

impl<L: Leases> Worker<L> {
    /// Claims and runs probes until told to stop. A probe that runs then is handed back at no cost.
    ///
    /// # Errors
    /// [`LeaseError::Refused`], when the worker is not admitted; everything else is tried again.
    pub async fn run(self, mut stop: watch::Receiver<bool>) -> Result<(), LeaseError> {
        let mut troubles = 0;
        while let Some((lease, sent)) = self.next(&mut stop, None).await? {
            if self.run_lease(lease, sent, stop.clone()).await != Settled::NotRun {
                troubles = 0;
                continue;
            }
            troubles += 1;
            // Others get the probe meanwhile; somebody has to mend this worker.
            tokio::select! {
                () = tokio::time::sleep(self.trouble_pause(troubles)) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
        Ok(())
    }

    /// Pause before a worker claims again that could not run what it had claimed, so often in a row.
    fn trouble_pause(&self, troubles: i32) -> Duration {
        let secs = self.settings.retry_delay_secs * 2_f64.powi((troubles - 1).min(30));
        Duration::from_secs_f64(secs.min(self.settings.max_retry_delay_secs))
    }

    /// Claims one probe, runs it and completes it. `None` when nothing came within `patience`, or when told
    /// to stop.
    ///
    /// # Errors
    /// When the worker is not admitted, or nobody could be reached within `patience`.
    pub async fn run_once(
        &self,
        mut stop: watch::Receiver<bool>,
        patience: Duration,
    ) -> Result<Option<Settled>, LeaseError> {
        match self.next(&mut stop, Some(patience)).await? {
            Some((lease, sent)) => Ok(Some(self.run_lease(lease, sent, stop).await)),
            None => Ok(None),
        }
    }

    /// The next probe and when its claim was sent; tries again until told to stop, or until patience ends.
    async fn next(
        &self,
        stop: &mut watch::Receiver<bool>,
        patience: Option<Duration>,
    ) -> Result<Option<(Lease, Instant)>, LeaseError> {
        let until = patience.map(|patience| Instant::now() + patience);
        let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
        let longest_pause = Duration::from_secs_f64(self.settings.tick_secs);
        let mut pause = FIRST_PAUSE;
        let mut request = self.claim_request();
        while !*stop.borrow() {
            if let Some(left) = left() {
                request.wait_secs = self.wait_secs.min(left.as_secs_f64());
            }
            let sent = Instant::now();
            let trouble = match self.leases.claim(&request, stop).await {
                Ok(Some(lease)) => return Ok(Some((lease, sent))),
                // A claim that was broken off may still have taken something.
                Ok(None) if *stop.borrow() => break,
                Ok(None) => {
                    if left().is_some_and(|left| left.is_zero()) {
                        return Ok(None);
                    }
                    pause = FIRST_PAUSE;
                    request = self.claim_request();
                    continue;
                }
                Err(error @ LeaseError::Refused(_)) => return Err(error),
                Err(error) => error,
            };
            if left().is_some_and(|left| left < pause) {
                self.give_back(&request).await;
                return Err(trouble);
            }
            if pause == FIRST_PAUSE || pause == longest_pause {
                tracing::warn!(worker = self.name, error = %trouble, "no probe could be claimed; trying again");
            }
            // A claim that may have arrived is repeated as it was; one that was answered is not.
            if !trouble.is_transient() {
                request = self.claim_request();
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            pause = (pause * 2).min(longest_pause);
        }
        self.give_back(&request).await;
        Ok(None)
    }

    /// Whether or not the last claim took something: nobody is going to run it.
    async fn give_back(&self, request: &ClaimRequest) {
        let told = self.leases.release(request.lease_id);
        let patience = Duration::from_secs_f64(self.settings.lease_margin_secs);
        if !matches!(tokio::time::timeout(patience, told).await, Ok(Ok(()))) {
            tracing::debug!(worker = self.name, "the last claim could not be given back");
        }
    }

    fn claim_request(&self) -> ClaimRequest {
        ClaimRequest {
            lease_id: LeaseId(Uuid::now_v7()),
            worker: self.name.clone(),
            protocol: PROTOCOL,
            device: DeviceFacts::clone(&self.facts),
            runners: self.runners.to_vec(),
            wait_secs: self.wait_secs,
        }
    }

    async fn run_lease(&self, lease: Lease, sent: Instant, stop: watch::Receiver<bool>) -> Settled {
        let kind = lease.spec.kind().as_str();
        tracing::info!(
            probe = %lease.probe_id, study = %lease.study_id, kind,
            batch_size = lease.spec.batch_size.0, attempt = lease.attempt, "probe started"
        );
        let (told_to, told) = watch::channel(None);
        let mut keeper = LeaseKeeper::new(&self.leases, &self.settings, &lease, sent, told, stop);
        if let Some(journal) = &self.journal {
            journal.note_claim(&lease);
        }
        let mut report = self.run_kept(&lease, &mut keeper, &told_to).await;
        let stored = keeper.stored;
        // Its disk, its locks, its programs: nothing that the probe could be blamed for.
        let mut is_in_trouble = false;
        if let Outcome::Failed {
            reason: FailureReason::NotStarted,
            detail,
        } = &report.outcome
        {
            tracing::error!(
                probe = %lease.probe_id, worker = self.name, detail,
                "this worker cannot run the probe and hands it back; mend what the detail names"
            );
            report.outcome = Outcome::HandedBack;
            is_in_trouble = true;
        }
        let outcome = outcome_name(&report.outcome);
        self.metrics
            .probe_duration_seconds
            .with_label_values(&[kind, outcome])
            .observe(report.wall_secs);
        tracing::info!(
            probe = %lease.probe_id, study = %lease.study_id, kind, outcome,
            secs = report.wall_secs, "probe ended"
        );
        let settled = self.complete(&lease, report, stored).await;
        if let Some(journal) = &self.journal {
            journal.settle(&lease, matches!(settled, Settled::Stored(_)));
        }
        if is_in_trouble {
            Settled::NotRun
        } else {
            settled
        }
    }

    /// Runs a probe while its lease is kept.
    async fn run_kept(
        &self,
        lease: &Lease,
        keeper: &mut LeaseKeeper<'_, L>,
        told: &watch::Sender<Option<Told>>,
    ) -> ChildReport {
        if let Err(reason) = keeper.confirm().await {
            return not_run(outcome_of_stop(reason));
        }
        let known = self
            .journal
            .as_ref()
            .and_then(|journal| journal.known_out_of_memory(lease.probe_id));
        if let Some(detail) = known {
            return not_run(Outcome::Infeasible {
                reason: InfeasibleReason::OutOfMemory,
                detail,
            });
        }
        let (kill, killed) = watch::channel(None);
        let run = self.run_on_device(lease, killed, told);
        tokio::pin!(run);
        // The lease is kept while the device is waited for and while the child runs; a reason
        // to stop is passed on, and the child's end is always waited for.
        let reason = tokio::select! {
            report = &mut run => return report,
            reason = keeper.keep() => reason,
        };
        kill.send_replace(Some(reason));
        run.await
    }

    /// Waits for the device, then runs the child.
    async fn run_on_device(
        &self,
        lease: &Lease,
        mut killed: watch::Receiver<Option<KilledFor>>,
        told: &watch::Sender<Option<Told>>,
    ) -> ChildReport {
        let dataset = match &lease.spec.workload.dataset {
            Dataset::Builtin(_) | Dataset::External(_) => None,
            Dataset::Uploaded(uploaded) => {
                let content = tokio::select! {
                    content = self.leases.content(lease, uploaded) => content,
                    reason = wait_for_reason(&mut killed) => {
                        return not_run(outcome_of_stop(reason));
                    }
                };
                match content {
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
                }
            }
        };
        let wait = Duration::from_secs_f64(self.settings.device_wait_secs);
        let mode = if lease.exclusive {
            LockMode::Exclusive
        } else {
            LockMode::Shared
        };
        let lock = tokio::select! {
            lock = self.locks.acquire_all(self.facts.hardware_ids(), mode, wait) => lock,
            reason = wait_for_reason(&mut killed) => {
                return not_run(outcome_of_stop(reason));
            }
        };
        let _lock = match lock {
            // A GPU that is timed wants its host's processor quiet: no timing there meanwhile.
            Ok(Some(lock)) if lease.exclusive && self.facts.backend.is_gpu() => {
                let host = tokio::select! {
                    host = self.locks.acquire(CPU, LockMode::Shared, wait) => host,
                    reason = wait_for_reason(&mut killed) => {
                        return not_run(outcome_of_stop(reason));
                    }
                };
                match host {
                    Ok(Some(host)) => (lock, Some(host)),
                    Ok(None) => {
                        tracing::info!(probe = %lease.probe_id, "the processor is being timed; handing the probe of the GPU back");
                        return not_run(Outcome::HandedBack);
                    }
                    Err(error) => {
                        return not_run(Outcome::Failed {
                            reason: FailureReason::NotStarted,
                            detail: format!("the lock of the processor cannot be taken: {error}"),
                        });
                    }
                }
            }
            Ok(Some(lock)) => (lock, None),
            Ok(None) => {
                tracing::info!(probe = %lease.probe_id, "another service of this host holds the device; handing the probe back");
                return not_run(Outcome::HandedBack);
            }
            Err(error) => {
                return not_run(Outcome::Failed {
                    reason: FailureReason::NotStarted,
                    detail: format!("the device lock cannot be taken: {error}"),
                });
            }
        };
        if let Some(journal) = &self.journal {
            journal.note(lease);
        }
        let running = self
            .metrics
            .children_running
            .with_label_values(&[&self.facts.model]);
        running.inc();
        let report = child::run(
            &self.spawner,
            &self.child,
            &lease.spec,
            dataset,
            killed,
            told,
        )
        .await;
        running.dec();
        report
    }

    /// Stores the end of an attempt, of which the first `stored` measurements are stored already; goes on
    /// trying while nobody can be reached.
    async fn complete(&self, lease: &Lease, report: ChildReport, mut stored: usize) -> Settled {
        let outcome = match lease.spec.kind() {
            ProbeKind::Smoke => report.outcome.with_log(&report.stderr_tail),
            _ => report.outcome,
        };
        let since = Instant::now();
        // Nobody needs the figures of an attempt that is handed back.
        let is_evidence = !matches!(outcome, Outcome::HandedBack | Outcome::Cancelled);
        let measurements = if is_evidence {
            &report.measurements[..]
        } else {
            &[]
        };
        while measurements.len().saturating_sub(stored) > self.settings.measurements_per_batch {
            let request = HeartbeatRequest {
                probe_id: lease.probe_id,
                attempt: lease.attempt,
                progress: None,
                measurements: batch(measurements, stored, &self.settings),
            };
            match self.leases.heartbeat(lease.lease_id, &request).await {
                Ok(_) => stored += request.measurements.len(),
                Err(error) => {
                    if self.try_no_more(lease, since, error).await {
                        return Settled::Lost;
                    }
                }
            }
        }
        let request = CompletionRequest {
            probe_id: lease.probe_id,
            attempt: lease.attempt,
            outcome,
            measurements: batch(measurements, stored, &self.settings),
            stderr_tail: report.stderr_tail,
            device_secs: report.wall_secs * f64::from(lease.spec.device.count),
        };
        loop {
            match self.leases.complete(lease.lease_id, &request).await {
                Ok(answer) => return Settled::Stored(answer.state),
                Err(error) => {
                    if self.try_no_more(lease, since, error).await {
                        return Settled::Lost;
                    }
                }
            }
        }
    }

    /// After trouble with storing an end: whether to leave it; else a pause has passed.
    async fn try_no_more(&self, lease: &Lease, since: Instant, error: LeaseError) -> bool {
        if matches!(error, LeaseError::Lost) {
            self.metrics.leases_lost_total.inc();
            tracing::warn!(probe = %lease.probe_id, attempt = lease.attempt, "the lease was lost; what this attempt measured is dropped");
            return true;
        }
        // A token can be mended while the worker waits.
        let may_mend = error.is_transient() || matches!(error, LeaseError::Refused(_));
        if may_mend && since.elapsed() < COMPLETE_GIVE_UP {
            tracing::warn!(probe = %lease.probe_id, %error, "the probe's end could not be stored; trying again");
            tokio::time::sleep(COMPLETE_RETRY).await;
            return false;
        }
        tracing::error!(probe = %lease.probe_id, %error, "the probe's end could not be stored; it will be run again when its lease has run out");
        true
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

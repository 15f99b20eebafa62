//! Keeps one lease alive while its probe runs, sends what has been measured so far, and knows when to give
//! the lease up.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::child::Told;
use super::leases::{HeartbeatAnswer, HeartbeatRequest, Lease, LeaseError, Leases};
use crate::probe::{KilledFor, Measurement};
use crate::settings::PoolSettings;

/// Pause before a first heartbeat that did not arrive is sent again.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps a lease alive.
#[derive(Debug)]
pub(super) struct LeaseKeeper<'a, L> {
    leases: &'a L,
    settings: &'a PoolSettings,
    lease: &'a Lease,
    /// When the last acknowledged claim or heartbeat was *sent*: the lease counts from later, so
    /// this errs on the safe side.
    acknowledged: Instant,
    /// How long the lease holds from then.
    holds: Duration,
    told: watch::Receiver<Option<Told>>,
    stop: watch::Receiver<bool>,
    /// Measurements that have arrived.
    pub(super) stored: usize,
}

impl<'a, L: Leases> LeaseKeeper<'a, L> {
    pub(super) fn new(
        leases: &'a L,
        settings: &'a PoolSettings,
        lease: &'a Lease,
        sent: Instant,
        told: watch::Receiver<Option<Told>>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            leases,
            settings,
            lease,
            acknowledged: sent,
            holds: span(lease.expires_in_secs),
            told,
            stop,
            stored: 0,
        }
    }

    /// Until when the child may run, by this worker's own clock.
    fn deadline(&self) -> Instant {
        // A lease that is shorter than the margin twice is left earlier, but not at once.
        let margin = span(self.settings.lease_margin_secs).min(self.holds / 2);
        self.acknowledged + self.holds - margin
    }

    /// After a claim that waited long for its answer nobody knows how old the lease is: a heartbeat tells.
    pub(super) async fn confirm(&mut self) -> Result<(), KilledFor> {
        if self.acknowledged.elapsed() <= span(self.settings.heartbeat_secs) {
            return Ok(());
        }
        self.acknowledged = Instant::now();
        loop {
            let sent = Instant::now();
            match self.beat_in_time().await? {
                Ok(answer) => return self.hear(answer, sent),
                Err(LeaseError::Lost) => return Err(self.lost()),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Sends heartbeats until there is a reason to end the child.
    pub(super) async fn keep(&mut self) -> KilledFor {
        let period = span(self.settings.heartbeat_secs);
        let mut stop = self.stop.clone();
        loop {
            let deadline = self.deadline();
            // A short lease wants more heartbeats than the settings of this worker know.
            let pause = period.min(self.holds / 3);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = tokio::time::sleep_until(deadline) => return self.lost(),
                _ = stop.wait_for(|stop| *stop) => return KilledFor::Drain,
            }
            let sent = Instant::now();
            let answer = tokio::select! {
                answer = self.beat_in_time() => answer,
                _ = stop.wait_for(|stop| *stop) => return KilledFor::Drain,
            };
            match answer {
                Err(reason) => return reason,
                Ok(Ok(answer)) => {
                    if let Err(reason) = self.hear(answer, sent) {
                        return reason;
                    }
                }
                Ok(Err(LeaseError::Lost)) => return self.lost(),
                Ok(Err(error)) => {
                    tracing::warn!(probe = %self.lease.probe_id, %error, "a heartbeat did not arrive");
                }
            }
        }
    }

    fn hear(&mut self, answer: HeartbeatAnswer, sent: Instant) -> Result<(), KilledFor> {
        if answer.cancel_requested {
            return Err(KilledFor::Cancel);
        }
        self.acknowledged = sent;
        self.holds = span(answer.expires_in_secs);
        Ok(())
    }

    /// One heartbeat; one that hangs must not outlast the lease.
    async fn beat_in_time(&mut self) -> Result<Result<HeartbeatAnswer, LeaseError>, KilledFor> {
        let deadline = self.deadline();
        match tokio::time::timeout_at(deadline, self.beat()).await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.lost()),
        }
    }

    async fn beat(&mut self) -> Result<HeartbeatAnswer, LeaseError> {
        let request = {
            let told = self.told.borrow_and_update();
            let told = told.as_ref();
            HeartbeatRequest {
                probe_id: self.lease.probe_id,
                attempt: self.lease.attempt,
                progress: told.and_then(|told| told.progress.clone()),
                // What needs its device alone is being timed: its heartbeats are bare.
                measurements: told
                    .filter(|_| !self.lease.exclusive)
                    .map(|told| batch(&told.measurements, self.stored, self.settings))
                    .unwrap_or_default(),
            }
        };
        let answer = self.leases.heartbeat(self.lease.lease_id, &request).await?;
        self.stored += request.measurements.len();
        Ok(answer)
    }

    fn lost(&self) -> KilledFor {
        tracing::warn!(probe = %self.lease.probe_id, "the lease cannot be held; ending the child");
        KilledFor::Lease
    }
}

/// The next measurements to be sent.
pub(super) fn batch(
    measurements: &[Measurement],
    stored: usize,
    settings: &PoolSettings,
) -> Vec<Measurement> {
    measurements
        .iter()
        .skip(stored)
        .take(settings.measurements_per_batch)
        .cloned()
        .collect()
}

/// A span that somebody else has named.
fn span(secs: f64) -> Duration {
    Duration::try_from_secs_f64(secs.clamp(0.0, 86_400.0)).unwrap_or_default()
}

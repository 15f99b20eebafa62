//! The lease protocol by function calls: straight to the database. The pool inside `serve` uses it, and so
//! do the REST routes for everybody else.

use std::fs::File;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    ClaimRequest, CompletionAnswer, CompletionRequest, HeartbeatAnswer, HeartbeatRequest, Lease,
    LeaseError, Leases, check,
};
use crate::library::Library;
use crate::lifecycle::Context;
use crate::metrics::InstanceMetrics;
use crate::pool::housekeeping;
use crate::probe::PROTOCOL;
use crate::settings::PoolSettings;
use crate::store::leases::{
    self, Beat, Claim, Claimed, Claiming, Completed, Completion, Fence, Heartbeat, RetryPolicy,
};
use crate::store::{StoreError, devices};
use crate::study::{DeviceId, LeaseId, UploadedDataset};

/// Time between two looks of one claim that waits: wake-ups come faster when many probes end.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// How often a probe is tried, from the settings.
pub fn retry_policy(settings: &PoolSettings) -> RetryPolicy {
    RetryPolicy {
        max_crashes: i32::try_from(settings.max_crashes).unwrap_or(i32::MAX),
        max_losses: i32::try_from(settings.max_losses).unwrap_or(i32::MAX),
        delay_secs: settings.retry_delay_secs,
        max_delay_secs: settings.max_retry_delay_secs,
    }
}

/// Leases on the probes of a database.
#[derive(Debug, Clone)]
pub struct StoredLeases {
    context: Context,
    settings: PoolSettings,
    contents: Library,
    metrics: InstanceMetrics,
}

impl From<StoreError> for LeaseError {
    fn from(error: StoreError) -> Self {
        if error.is_transient() {
            Self::Away(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl StoredLeases {
    /// Leases by the settings; `library` has the contents of uploaded data sets.
    pub fn new(
        context: Context,
        settings: PoolSettings,
        contents: Library,
        metrics: InstanceMetrics,
    ) -> Self {
        Self {
            context,
            settings,
            contents,
            metrics,
        }
    }

    async fn try_claim(
        &self,
        request: &ClaimRequest,
        device: DeviceId,
        project: Option<&str>,
    ) -> Result<Claiming, StoreError> {
        let mut conn = self.context.database.connection().await?;
        let claim = Claim {
            lease: request.lease_id,
            worker: &request.worker,
            device,
            project,
            runners: &request.runners,
            lease_secs: self.settings.lease_secs,
        };
        leases::claim(&mut conn, &claim).await
    }

    fn lease(&self, claimed: Claimed) -> Lease {
        Lease {
            lease_id: claimed.lease,
            probe_id: claimed.probe,
            attempt: claimed.attempt,
            exclusive: claimed.exclusive,
            study_id: claimed.study,
            project: claimed.project,
            spec: claimed.spec,
            expires_in_secs: self.settings.lease_secs,
        }
    }

    /// As [`Leases::claim`], for a worker that may see one project only.
    ///
    /// # Errors
    /// As [`Leases::claim`].
    pub async fn claim_of(
        &self,
        project: Option<&str>,
        request: &ClaimRequest,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<Lease>, LeaseError> {
        if request.protocol != PROTOCOL {
            return Err(LeaseError::Refused(format!(
                "the worker speaks protocol {} and the service {PROTOCOL}: run the same version of Trialhead on both",
                request.protocol
            )));
        }
        check::claim(request)?;
        let until = Instant::now() + Duration::from_secs_f64(request.wait_secs.min(86_400.0));
        let tick = Duration::from_secs_f64(self.settings.tick_secs);
        // A device that is waited with must not be taken for gone.
        let fresh = Duration::from_secs_f64(self.context.alive_secs / 3.0);
        let mut wake = self.context.waker.subscribe();
        let mut device =
            housekeeping::register(&self.context, &request.device, &request.runners).await?;
        let mut registered = Instant::now();
        while !*stop.borrow() {
            wake.mark_unchanged();
            let next_look = Instant::now() + BETWEEN_LOOKS;
            match self.try_claim(request, device, project).await? {
                Claiming::Claimed(claimed) => {
                    self.context.waker.tell();
                    return Ok(Some(self.lease(*claimed)));
                }
                Claiming::Spent => return Err(LeaseError::Lost),
                Claiming::Nothing => {}
            }
            if Instant::now() >= until {
                break;
            }
            tokio::select! {
                _ = wake.changed() => {}
                () = tokio::time::sleep(tick) => {}
                () = tokio::time::sleep_until(until) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            tokio::time::sleep_until(next_look).await;
            if registered.elapsed() >= fresh {
                device = housekeeping::register(&self.context, &request.device, &request.runners)
                    .await?;
                registered = Instant::now();
            }
        }
        Ok(None)
    }
}

impl Leases for StoredLeases {
    async fn claim(
        &self,
        request: &ClaimRequest,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<Lease>, LeaseError> {
        self.claim_of(None, request, stop).await
    }

    async fn heartbeat(
        &self,
        lease: LeaseId,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatAnswer, LeaseError> {
        let mut request = request.clone();
        check::heartbeat(&mut request, &self.settings)?;
        let beat = Beat {
            fence: Fence {
                probe: request.probe_id,
                lease,
                attempt: request.attempt,
            },
            lease_secs: self.settings.lease_secs,
            progress: request
                .progress
                .as_ref()
                .map(|progress| (progress.phase.as_str(), progress.fraction)),
            measurements: &request.measurements,
        };
        let mut conn = self.context.database.connection().await?;
        let Heartbeat::Held { cancel_requested } = leases::heartbeat(&mut conn, beat).await? else {
            return Err(LeaseError::Lost);
        };
        self.metrics
            .measurements_stored_total
            .inc_by(request.measurements.len() as u64);
        // Apart from the heartbeat, which takes only its probe.
        let fresh = self.context.alive_secs / 3.0;
        devices::touch_of_probe(&mut conn, request.probe_id, fresh).await?;
        Ok(HeartbeatAnswer {
            expires_in_secs: self.settings.lease_secs,
            cancel_requested,
        })
    }

    async fn complete(
        &self,
        lease: LeaseId,
        request: &CompletionRequest,
    ) -> Result<CompletionAnswer, LeaseError> {
        let mut request = request.clone();
        check::completion(&mut request, &self.settings)?;
        let measured = request.measurements.len();
        let completion = Completion {
            fence: Fence {
                probe: request.probe_id,
                lease,
                attempt: request.attempt,
            },
            outcome: request.outcome,
            measurements: request.measurements,
            stderr_tail: request.stderr_tail,
            device_secs: request.device_secs,
        };
        let mut conn = self.context.database.connection().await?;
        let completed =
            leases::complete(&mut conn, &completion, retry_policy(&self.settings)).await?;
        drop(conn);
        match completed {
            Completed::Now(state) => {
                self.metrics
                    .measurements_stored_total
                    .inc_by(measured as u64);
                self.context.waker.wake();
                Ok(CompletionAnswer { state })
            }
            Completed::Already(state) => Ok(CompletionAnswer { state }),
            Completed::Fenced => Err(LeaseError::Lost),
        }
    }

    async fn release(&self, lease: LeaseId) -> Result<(), LeaseError> {
        let mut conn = self.context.database.connection().await?;
        leases::release(&mut conn, lease, retry_policy(&self.settings)).await?;
        self.context.waker.wake();
        Ok(())
    }

    async fn content(&self, _: &Lease, dataset: &UploadedDataset) -> Result<File, LeaseError> {
        self.contents
            .open(&dataset.content)
            .await
            .map_err(|error| LeaseError::Failed(error.to_string()))
    }
}

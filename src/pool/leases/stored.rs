//! The lease protocol by function calls: straight to the database. The pool inside `serve` uses it, and so
//! do the REST routes for everybody else.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
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
use crate::pool::inventory::DeviceFacts;
use crate::probe::PROTOCOL;
use crate::settings::PoolSettings;
use crate::store::leases::{
    self, Beat, Claim, Claimed, Claiming, Completed, Completion, Fence, Heartbeat, RetryPolicy,
};
use crate::store::{StoreError, devices};
use crate::study::{DeviceId, LeaseId, ProbeId, UploadedDataset};

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

/// Refuses a worker of another version.
///
/// # Errors
/// [`LeaseError::Refused`], which says what would mend it.
pub fn check_protocol(protocol: u32) -> Result<(), LeaseError> {
    if protocol == PROTOCOL {
        return Ok(());
    }
    Err(LeaseError::Refused(format!(
        "the worker speaks protocol {protocol} and the service {PROTOCOL}: run the same version of Trialhead on both"
    )))
}

/// Leases on the probes of a database.
#[derive(Debug, Clone)]
pub struct StoredLeases {
    context: Context,
    settings: PoolSettings,
    contents: Library,
    metrics: InstanceMetrics,
    registered: Arc<Mutex<HashMap<(String, String), Registered>>>,
}

/// What a worker said of its device, and when that was stored.
#[derive(Debug)]
struct Registered {
    facts: DeviceFacts,
    runners: Vec<String>,
    device: DeviceId,
    at: Instant,
}

/// Devices of which what was said last is kept; beyond that those that were not heard of lately make room.
const MANY_DEVICES: usize = 10_000;

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
            registered: Arc::default(),
        }
    }

    /// Makes a device known, unless just the same was said of it a moment ago. Gives when it was said.
    async fn register(&self, request: &ClaimRequest) -> Result<(DeviceId, Instant), StoreError> {
        let (facts, runners) = (&request.device, &request.runners);
        let place = (facts.host.clone(), facts.hardware.clone());
        let fresh = Duration::from_secs_f64(self.context.alive_secs / 6.0);
        let is_fresh = |it: &Registered| it.at.elapsed() < fresh;
        let known = || {
            self.registered
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(it) = known().get(&place)
            && is_fresh(it)
            && it.facts == *facts
            && it.runners == *runners
        {
            return Ok((it.device, it.at));
        }
        let at = Instant::now();
        let device = housekeeping::register(&self.context, facts, runners).await?;
        let mut known = known();
        if known.len() >= MANY_DEVICES {
            known.retain(|_, it| is_fresh(it));
        }
        let registered = Registered {
            facts: facts.clone(),
            runners: runners.clone(),
            device,
            at,
        };
        known.insert(place, registered);
        Ok((device, at))
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
            backend: request.device.backend.as_str(),
            model: &request.device.model,
            memory_bytes: i64::try_from(request.device.memory_bytes.0).unwrap_or(i64::MAX),
            count: i32::try_from(request.device.count).unwrap_or(i32::MAX),
            project,
            runners: &request.runners,
            lease_secs: self.settings.lease_secs,
            retries: retry_policy(&self.settings),
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
        check_protocol(request.protocol)?;
        check::claim(request)?;
        let until = Instant::now() + Duration::from_secs_f64(request.wait_secs.min(86_400.0));
        let tick = Duration::from_secs_f64(self.settings.tick_secs);
        // A device that is waited with must not be taken for gone.
        let fresh = Duration::from_secs_f64(self.context.alive_secs / 3.0);
        let mut wake = self.context.waker.subscribe();
        let (mut device, mut registered) = self.register(request).await?;
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
                (device, registered) = self.register(request).await?;
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
        self.heartbeat_of(None, lease, request).await
    }

    async fn complete(
        &self,
        lease: LeaseId,
        request: &CompletionRequest,
    ) -> Result<CompletionAnswer, LeaseError> {
        self.complete_of(None, lease, request).await
    }

    async fn release(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.release_of(None, lease).await
    }

    async fn content(&self, _: &Lease, dataset: &UploadedDataset) -> Result<File, LeaseError> {
        self.contents
            .open(&dataset.content)
            .await
            .map_err(|error| LeaseError::Failed(error.to_string()))
    }
}

impl StoredLeases {
    /// As [`Leases::heartbeat`], for a worker that may see one project only.
    ///
    /// # Errors
    /// As [`Leases::heartbeat`].
    pub async fn heartbeat_of(
        &self,
        project: Option<&str>,
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
        self.must_be_of(request.probe_id, project).await?;
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

    /// As [`Leases::complete`], for a worker that may see one project only.
    ///
    /// # Errors
    /// As [`Leases::complete`].
    pub async fn complete_of(
        &self,
        project: Option<&str>,
        lease: LeaseId,
        request: &CompletionRequest,
    ) -> Result<CompletionAnswer, LeaseError> {
        let mut request = request.clone();
        check::completion(&mut request, &self.settings)?;
        let measured = request.measurements.len();
        let fence = Fence {
            probe: request.probe_id,
            lease,
            attempt: request.attempt,
        };
        self.must_be_of(request.probe_id, project).await?;
        let mut conn = self.context.database.connection().await?;
        let completion = Completion {
            fence,
            outcome: request.outcome,
            measurements: request.measurements,
            stderr_tail: request.stderr_tail,
            device_secs: request.device_secs,
        };
        let missing =
            |kind: &str, told: &[String]| check::missing(kind, told, &completion.measurements);
        let policy = retry_policy(&self.settings);
        let completed = leases::complete_whole(&mut conn, &completion, policy, &missing).await?;
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

    /// As [`Leases::release`], for a worker that may see one project only.
    ///
    /// # Errors
    /// As [`Leases::release`]; [`LeaseError::Lost`] when it is another project's.
    pub async fn release_of(
        &self,
        project: Option<&str>,
        lease: LeaseId,
    ) -> Result<(), LeaseError> {
        let mut conn = self.context.database.connection().await?;
        let policy = retry_policy(&self.settings);
        if !leases::release(&mut conn, lease, project, policy).await? {
            return Err(LeaseError::Lost);
        }
        self.context.waker.wake();
        Ok(())
    }

    /// Whoever may see one project only holds nothing of another, whatever lease it names.
    async fn must_be_of(&self, probe: ProbeId, project: Option<&str>) -> Result<(), LeaseError> {
        let Some(project) = project else {
            return Ok(());
        };
        let mut conn = self.context.database.connection().await?;
        if leases::is_of_project(&mut conn, probe, project).await? {
            Ok(())
        } else {
            Err(LeaseError::Lost)
        }
    }
}

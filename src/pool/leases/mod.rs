//! The lease protocol: what a worker and the service say to each other, whatever carries it.
//!
//! A worker **claims** a probe under a lease whose id it has chosen, says with **heartbeats** that it is
//! still there, and **completes** it. Everything may be said twice, late or out of order: a lease claims
//! once, a measurement is stored once by (probe, attempt, seq), a completion counts once, and what comes
//! after a lease was lost changes nothing. Times are spans, never timestamps: the two clocks need not agree.
//!
//! Two carriers: function calls for the pool inside `serve` ([`StoredLeases`]), and REST for workers
//! anywhere else (`client`). The REST routes call [`StoredLeases`] too.

mod check;
mod stored;

use std::fs::File;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::child::Progress;
use super::inventory::DeviceFacts;
use crate::probe::{Measurement, Outcome, ProbeSpec, ProbeState};
use crate::study::{LeaseId, ProbeId, StudyId, UploadedDataset};

pub use self::stored::{StoredLeases, check_protocol, retry_policy};

/// What a worker says when it asks for a probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Names the lease; chosen by the worker (a UUID, version 7 best). The same id claims once: sent
    /// again, the answer is the probe that it holds.
    pub lease_id: LeaseId,
    /// Names the worker, for people; 1 to 200 characters.
    #[schema(min_length = 1, max_length = 200)]
    pub worker: String,
    /// Version of the contract that the worker speaks; another than the service's is refused.
    pub protocol: u32,
    /// The device that the worker offers. It is kept known while the worker asks and runs probes.
    pub device: DeviceFacts,
    /// The runners that the worker has.
    pub runners: Vec<String>,
    /// How long the answer may wait for a probe, seconds; capped by the service.
    #[schema(minimum = 0)]
    pub wait_secs: f64,
}

/// A probe that a worker holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// The lease, as the worker named it.
    pub lease_id: LeaseId,
    /// The probe.
    pub probe_id: ProbeId,
    /// Which claim of the probe this is, from 1.
    pub attempt: i32,
    /// Whether it needs its device alone.
    pub exclusive: bool,
    /// A study that waits for it.
    pub study_id: StudyId,
    /// The project that it belongs to, and its data set with it.
    pub project: String,
    /// What is to be done.
    pub spec: ProbeSpec,
    /// How long the lease holds without a heartbeat, seconds.
    pub expires_in_secs: f64,
}

/// What a worker says while it runs a probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// The probe.
    pub probe_id: ProbeId,
    /// The attempt.
    pub attempt: i32,
    /// How far it is.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// What has been measured, in batches of any size and order; each `seq` is stored once.
    #[serde(default)]
    pub measurements: Vec<Measurement>,
}

/// What a heartbeat brings back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatAnswer {
    /// How long the lease holds without another heartbeat, seconds.
    pub expires_in_secs: f64,
    /// No study wants the probe any more: end it.
    pub cancel_requested: bool,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompletionRequest {
    /// The probe.
    pub probe_id: ProbeId,
    /// The attempt.
    pub attempt: i32,
    /// How it ended.
    pub outcome: Outcome,
    /// What was measured and not yet acknowledged; what was stored before may come again.
    #[serde(default)]
    pub measurements: Vec<Measurement>,
    /// The end of the runner's standard error.
    #[serde(default)]
    pub stderr_tail: String,
    /// Device time of the attempt, seconds. At most the time since its claim is counted.
    #[schema(minimum = 0)]
    pub device_secs: f64,
}

/// What a completion made of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompletionAnswer {
    /// The state that the probe went to when this attempt completed; the same however often it is said.
    pub state: ProbeState,
}

/// Why something of the protocol did not come about.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// The other side cannot be reached just now: worth trying again.
    #[error("{0}")]
    Away(String),
    /// The lease holds nothing any more, or the probe is somebody else's: nothing was changed.
    #[error("the lease was lost")]
    Lost,
    /// The worker is not admitted: trying again helps only when somebody has mended that.
    #[error("{0}")]
    Refused(String),
    /// What the worker said is not the protocol's, each with its place.
    #[error("{}", .0.iter().map(|(place, wrong)| format!("{place} {wrong}")).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<(String, String)>),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl LeaseError {
    /// Whether a short wait may mend it.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Away(_))
    }
}

/// The worker's side of the lease protocol.
pub trait Leases: std::fmt::Debug + Clone + Send + Sync + 'static {
    /// Waits for a probe, as long as the request says. `None` when nothing came, or when told to stop:
    /// then nothing is held either.
    fn claim(
        &self,
        request: &ClaimRequest,
        stop: &mut watch::Receiver<bool>,
    ) -> impl Future<Output = Result<Option<Lease>, LeaseError>> + Send;

    /// Prolongs a lease.
    fn heartbeat(
        &self,
        lease: LeaseId,
        request: &HeartbeatRequest,
    ) -> impl Future<Output = Result<HeartbeatAnswer, LeaseError>> + Send;

    /// Ends an attempt.
    fn complete(
        &self,
        lease: LeaseId,
        request: &CompletionRequest,
    ) -> impl Future<Output = Result<CompletionAnswer, LeaseError>> + Send;

    /// Gives back what a lease holds, at no cost, and spends it: a claim of it that is still under way comes
    /// to nothing.
    fn release(&self, lease: LeaseId) -> impl Future<Output = Result<(), LeaseError>> + Send;

    /// The stored content of the uploaded data set that a lease's probe trains on.
    fn content(
        &self,
        lease: &Lease,
        dataset: &UploadedDataset,
    ) -> impl Future<Output = Result<File, LeaseError>> + Send;
}

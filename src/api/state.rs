//! What handlers need, shared by all of them.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use crate::lifecycle::Context;
use crate::metrics::InstanceMetrics;
use crate::pool::leases::StoredLeases;
use crate::uploads::Uploads;

/// What handlers need.
#[derive(Debug)]
pub struct Api {
    /// The way to studies and the database.
    pub context: Context,
    /// Takes uploads and has their contents.
    pub uploads: Uploads,
    /// Leases for workers elsewhere.
    pub leases: StoredLeases,
    /// How long a claim may wait.
    pub max_claim_wait_secs: f64,
    /// How long a request may wait for a study to change.
    pub max_study_wait: Duration,
    /// Such a request looks at the study at least so often: what several studies share may change by one alone.
    pub tick: Duration,
    /// Time between two signs of life in a stream of events.
    pub event_heartbeat: Duration,
    /// How long a stream of events lasts at most.
    pub max_event_stream: Duration,
    /// How long a listener may take nothing of what is there for it.
    pub slow_listener: Duration,
    /// How long a body may bring nothing, if there is a limit.
    pub max_silence: Option<Duration>,
    /// Says when the service stops: claims and listeners wait no longer then.
    pub stop: watch::Receiver<bool>,
    /// Metrics of this instance.
    pub metrics: InstanceMetrics,
    /// The service's metrics as last read, and when.
    pub service_metrics: Mutex<Option<(Instant, String)>>,
    /// How long they are cached.
    pub service_metrics_cache: Duration,
}

//! What handlers need, shared by all of them.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::lifecycle::Context;
use crate::metrics::InstanceMetrics;
use crate::uploads::Uploads;

/// What handlers need.
#[derive(Debug)]
pub struct Api {
    /// The way to studies and the database.
    pub context: Context,
    /// Takes uploads and has their contents.
    pub uploads: Uploads,
    /// Metrics of this instance.
    pub metrics: InstanceMetrics,
    /// The service's metrics as last read, and when.
    pub service_metrics: Mutex<Option<(Instant, String)>>,
    /// How long they are cached.
    pub service_metrics_cache: Duration,
}

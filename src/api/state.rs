//! What handlers need, shared by all of them.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::lifecycle::{Caller, Context};
use crate::metrics::InstanceMetrics;

/// What handlers need.
#[derive(Debug)]
pub struct Api {
    /// The way to studies and the database.
    pub context: Context,
    /// Who asks. There are no tokens yet: everybody is the same caller.
    pub caller: Caller,
    /// Metrics of this instance.
    pub metrics: InstanceMetrics,
    /// The service's metrics as last read, and when.
    pub service_metrics: Mutex<Option<(Instant, String)>>,
    /// How long they are cached.
    pub service_metrics_cache: Duration,
}

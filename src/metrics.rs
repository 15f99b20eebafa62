//! Prometheus metrics: those of this instance, counted where things happen, apart from those of the
//! service, read from the database. Labels are bounded; a study's id is never one.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

use crate::store::connection::Timings;
use crate::store::service_metrics::ServiceCounts;

/// What an instance is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It serves the REST API, and may run probes too.
    Serve,
    /// It runs probes for a service elsewhere.
    Work,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Work => "work",
        }
    }
}

/// Metrics of this instance (`/metrics`).
#[derive(Debug, Clone)]
pub struct InstanceMetrics {
    /// Where they are registered; HTTP metrics join them.
    pub registry: Registry,
    /// Wall time of probes that this instance ran.
    pub probe_duration_seconds: HistogramVec,
    /// Leases that this instance lost while a probe ran.
    pub leases_lost_total: IntCounter,
    /// Measurements that this instance stored.
    pub measurements_stored_total: IntCounter,
    /// Children running now.
    pub children_running: IntGaugeVec,
    /// Connections of the database pool, in use and idle.
    pub database_connections: IntGaugeVec,
    /// Requests that wait for a connection.
    pub database_waiting: IntGauge,
    /// Requests that were turned away for their access token, by the problem's code.
    pub refused_tokens_total: IntCounterVec,
    /// Requests that were turned away before any operation saw them, by the problem's code.
    pub refused_requests_total: IntCounterVec,
    /// Requests that got the first answer under their Idempotency-Key again, by operation.
    pub requests_replayed_total: IntCounterVec,
    /// Requests that wait for news of a study, by how they get it: `events` or `wait`.
    pub listeners: IntGaugeVec,
    /// Listeners that were sent away because they took events more slowly than they came.
    pub slow_listeners_total: IntCounter,
    /// Readings of what is new of all followed studies.
    pub study_event_reads_total: IntCounter,
}

/// Buckets for probes: a tenth of a second to ten minutes.
const PROBE_SECONDS: [f64; 11] = [0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0];

/// Buckets for the error of a predicted peak: half a percent to a half.
const PREDICTION_ERRORS: [f64; 8] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5];

impl InstanceMetrics {
    /// Registers everything, the process metrics too.
    ///
    /// # Errors
    /// When a name is registered twice: a defect.
    pub fn new(role: Role) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Self {
            probe_duration_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "trialhead_probe_duration_seconds",
                    "Wall time of probes that this instance ran, by kind and outcome",
                )
                .buckets(PROBE_SECONDS.to_vec()),
                &["kind", "outcome"],
            )?,
            leases_lost_total: IntCounter::new(
                "trialhead_leases_lost_total",
                "Leases that this instance lost while a probe ran",
            )?,
            measurements_stored_total: IntCounter::new(
                "trialhead_measurements_stored_total",
                "Measurements that this instance stored",
            )?,
            children_running: IntGaugeVec::new(
                Opts::new(
                    "trialhead_children_running",
                    "Training processes that this instance is running",
                ),
                &["device_model"],
            )?,
            database_connections: IntGaugeVec::new(
                Opts::new(
                    "trialhead_database_connections",
                    "Connections of the database pool, by whether they are in use",
                ),
                &["state"],
            )?,
            database_waiting: IntGauge::new(
                "trialhead_database_waiting",
                "Requests that wait for a database connection",
            )?,
            refused_tokens_total: IntCounterVec::new(
                Opts::new(
                    "trialhead_refused_tokens_total",
                    "Requests that were turned away for their access token, by the problem's code",
                ),
                &["code"],
            )?,
            refused_requests_total: IntCounterVec::new(
                Opts::new(
                    "trialhead_refused_requests_total",
                    "Requests that were turned away before any operation saw them, by the problem's code",
                ),
                &["code"],
            )?,
            requests_replayed_total: IntCounterVec::new(
                Opts::new(
                    "trialhead_requests_replayed_total",
                    "Requests that got the first answer under their Idempotency-Key again, by operation",
                ),
                &["operation"],
            )?,
            listeners: IntGaugeVec::new(
                Opts::new(
                    "trialhead_listeners",
                    "Requests that wait for news of a study, by how they get it: events or wait",
                ),
                &["by"],
            )?,
            slow_listeners_total: IntCounter::new(
                "trialhead_slow_listeners_total",
                "Listeners that were sent away because they took events more slowly than they came",
            )?,
            study_event_reads_total: IntCounter::new(
                "trialhead_study_event_reads_total",
                "Readings of what is new of all studies that somebody follows",
            )?,
            registry,
        };
        let build_info = IntGauge::with_opts(
            Opts::new(
                "trialhead_build_info",
                "Always 1; the labels tell the build",
            )
            .const_label("version", env!("CARGO_PKG_VERSION"))
            // A worker that is scraped must not be taken for a service that answers.
            .const_label("role", role.as_str())
            .const_label("runner", crate::probe::fingerprint::RUNNER),
        )?;
        build_info.set(1);
        let collectors: [Box<dyn Collector>; 13] = [
            Box::new(metrics.probe_duration_seconds.clone()),
            Box::new(metrics.leases_lost_total.clone()),
            Box::new(metrics.measurements_stored_total.clone()),
            Box::new(metrics.children_running.clone()),
            Box::new(metrics.database_connections.clone()),
            Box::new(metrics.database_waiting.clone()),
            Box::new(metrics.refused_tokens_total.clone()),
            Box::new(metrics.refused_requests_total.clone()),
            Box::new(metrics.requests_replayed_total.clone()),
            Box::new(metrics.listeners.clone()),
            Box::new(metrics.slow_listeners_total.clone()),
            Box::new(metrics.study_event_reads_total.clone()),
            Box::new(build_info),
        ];
        for collector in collectors {
            metrics.registry.register(collector)?;
        }
        #[cfg(target_os = "linux")]
        metrics.registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        Ok(metrics)
    }

    /// Adds those of the database that this instance uses.
    ///
    /// # Errors
    /// When a name is registered twice: a defect.
    pub fn watch_database(&self, timings: &Timings) -> Result<(), prometheus::Error> {
        self.registry
            .register(Box::new(timings.statements.clone()))?;
        self.registry.register(Box::new(timings.waits.clone()))?;
        self.registry.register(Box::new(timings.slow.clone()))
    }
}

/// Metrics of the whole service (`/metrics/service`), from what the database holds.
///
/// # Errors
/// When a name is registered twice: a defect.
pub fn service_registry(counts: &ServiceCounts) -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str, labels: &[&str]| {
        let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok::<_, prometheus::Error>(gauge)
    };
    let probes = gauge(
        "trialhead_probes",
        "Probes, by state and kind",
        &["state", "kind"],
    )?;
    for row in &counts.probes {
        probes
            .with_label_values(&[&row.first, &row.second])
            .set(row.count);
    }
    let studies = gauge("trialhead_studies", "Studies, by state", &["state"])?;
    for state in crate::study::StudyState::ALL {
        studies.with_label_values(&[state.as_str()]).set(0);
    }
    for row in &counts.studies {
        studies.with_label_values(&[&row.first]).set(row.count);
    }
    let busy = gauge(
        "trialhead_device_busy",
        "Probes running on devices of a model",
        &["backend", "device_model"],
    )?;
    for row in &counts.device_busy {
        busy.with_label_values(&[&row.first, &row.second])
            .set(row.count);
    }
    let waiting = gauge(
        "trialhead_studies_waiting",
        "Studies that wait for a live worker with a device for them and their runner",
        &["backend", "runner"],
    )?;
    for row in &counts.studies_waiting {
        waiting
            .with_label_values(&[&row.first, &row.second])
            .set(row.count);
    }
    let recommendations = gauge(
        "trialhead_recommendations",
        "Current recommendations, by topic and grade",
        &["topic", "grade"],
    )?;
    for row in &counts.recommendations {
        recommendations
            .with_label_values(&[&row.first, &row.second])
            .set(row.count);
    }
    let labels = &["backend", "device_model", "runner"];
    let depth = gauge(
        "trialhead_queue_depth",
        "Probes that wait for a worker",
        labels,
    )?;
    let oldest = prometheus::GaugeVec::new(
        Opts::new(
            "trialhead_queue_oldest_seconds",
            "Age of the oldest probe that waits for a worker",
        ),
        labels,
    )?;
    registry.register(Box::new(oldest.clone()))?;
    for queue in &counts.queue {
        let values = [
            queue.backend.as_str(),
            queue.device_model.as_str(),
            queue.runner.as_str(),
        ];
        depth.with_label_values(&values).set(queue.depth);
        oldest.with_label_values(&values).set(queue.oldest_secs);
    }
    let errors = prometheus::Histogram::with_opts(
        HistogramOpts::new(
            "trialhead_memory_prediction_error_ratio",
            "|predicted/measured - 1| of the peaks of memory predicted and measured in the last day",
        )
        .buckets(PREDICTION_ERRORS.to_vec()),
    )?;
    registry.register(Box::new(errors.clone()))?;
    for error in &counts.memory_prediction_errors {
        errors.observe(*error);
    }
    Ok(registry)
}

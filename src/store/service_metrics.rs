//! Counts over the whole database, for the service's own metrics.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::error::StoreError;
use super::statement::statement;

/// A count under one or two labels.
#[derive(Debug, Clone, QueryableByName)]
pub struct LabelledCount {
    #[diesel(sql_type = Text)]
    pub first: String,
    #[diesel(sql_type = Text)]
    pub second: String,
    #[diesel(sql_type = BigInt)]
    pub count: i64,
}

/// Queue of one device model and one runner: only a worker that offers it shortens it.
#[derive(Debug, Clone, QueryableByName)]
pub struct QueueDepth {
    #[diesel(sql_type = Text)]
    pub backend: String,
    #[diesel(sql_type = Text)]
    pub device_model: String,
    #[diesel(sql_type = Text)]
    pub runner: String,
    #[diesel(sql_type = BigInt)]
    pub depth: i64,
    #[diesel(sql_type = Double)]
    pub oldest_secs: f64,
}

/// What the database holds, in numbers.
#[derive(Debug, Clone)]
pub struct ServiceCounts {
    /// (state, kind)
    pub probes: Vec<LabelledCount>,
    /// (state, "")
    pub studies: Vec<LabelledCount>,
    /// (backend, device model): running probes
    pub device_busy: Vec<LabelledCount>,
    /// (backend, runner): studies that no live worker can serve
    pub studies_waiting: Vec<LabelledCount>,
    /// (topic, grade)
    pub recommendations: Vec<LabelledCount>,
    pub queue: Vec<QueueDepth>,
    /// |predicted/measured − 1| of the peaks of memory that the last day predicted and measured.
    pub memory_prediction_errors: Vec<f64>,
}

#[derive(QueryableByName)]
struct PredictionError {
    #[diesel(sql_type = Double)]
    error: f64,
}

/// Predictions that one reading looks at, at most: the latest.
const MOST_PREDICTIONS: i64 = 100_000;

/// Reads all counts.
pub async fn read(conn: &mut AsyncPgConnection) -> Result<ServiceCounts, StoreError> {
    Ok(ServiceCounts {
        probes: statement(
            "SELECT state AS first, kind AS second, count(*) AS count FROM probes GROUP BY 1, 2",
        )
        .load(conn)
        .await?,
        studies: statement(
            "SELECT state AS first, '' AS second, count(*) AS count FROM studies GROUP BY 1",
        )
        .load(conn)
        .await?,
        device_busy: statement(
            "SELECT d.backend AS first, d.model AS second, count(p.id) AS count FROM devices d \
             LEFT JOIN probes p ON p.device = d.id AND p.state = 'running' GROUP BY 1, 2",
        )
        .load(conn)
        .await?,
        studies_waiting: statement(
            "SELECT coalesce(r.definition #>> '{device,backend}', 'cpu') AS first, \
                coalesce(r.definition #>> '{runner,name}', 'burn') AS second, count(*) AS count \
             FROM studies s JOIN study_revisions r ON r.study = s.id AND r.revision = s.revision \
             WHERE s.state IN ('queued', 'running') AND s.waiting_for IS NOT NULL GROUP BY 1, 2",
        )
        .load(conn)
        .await?,
        recommendations: statement(
            "SELECT topic AS first, grade AS second, count(*) AS count FROM recommendations \
             WHERE NOT stale GROUP BY 1, 2",
        )
        .load(conn)
        .await?,
        queue: statement(
            "SELECT backend, device_model, runner, count(*) AS depth, \
                extract(epoch FROM now() - min(created_at))::float8 AS oldest_secs \
             FROM probes WHERE state = 'queued' GROUP BY 1, 2, 3",
        )
        .load(conn)
        .await?,
        memory_prediction_errors: statement(
            "SELECT abs(sp.predicted_bytes / m.value - 1) AS error FROM probes p \
             JOIN study_probes sp ON sp.probe = p.id AND sp.predicted_bytes IS NOT NULL AND NOT sp.reused \
             JOIN measurements m ON m.probe = p.id AND m.attempt = p.attempt \
                AND m.metric = 'peak_memory' AND m.value > 0 \
             WHERE p.state = 'succeeded' AND p.kind IN ('memory', 'confirmation') \
                AND p.ended_at > now() - interval '1 day' \
             ORDER BY p.ended_at DESC LIMIT $1",
        )
        .bind::<BigInt, _>(MOST_PREDICTIONS)
        .load::<PredictionError>(conn)
        .await?
        .into_iter()
        .map(|row| row.error)
        .collect(),
    })
}

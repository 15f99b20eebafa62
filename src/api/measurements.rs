//! Raw measurements: JSON in pages, or all of them as CSV or NDJSON, streamed.

use actix_web::http::header::ACCEPT;
use actix_web::web::{Bytes, Data, Path, Query, ReqData};
use actix_web::{HttpRequest, HttpResponse, get};
use futures::stream;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::pagination::{Page, PageRequest};
use super::problem::Problem;
use super::responses::{Always, InvalidQuery, Missing};
use super::state::Api;
use super::studies;
use crate::lifecycle::Caller;
use crate::probe::ProbeKind;
use crate::store::StoreError;
use crate::store::connection::Database;
use crate::store::probes::{self, MeasurementFilter, MeasurementRow};
use crate::store::studies::StudyRow;
use crate::study::{BatchSize, ProbeId, StudyId};

/// One measured figure of a study.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StudyMeasurement {
    /// The probe that measured it.
    pub probe_id: ProbeId,
    /// The probe's kind.
    pub kind: String,
    /// Examples per step.
    pub batch_size: BatchSize,
    /// Position among the probe's measurements.
    pub seq: i32,
    /// What was measured.
    pub metric: String,
    /// The step or block it belongs to; null for a figure of the whole probe.
    pub step: Option<i64>,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// Seconds since the probe's child started.
    pub elapsed_secs: f64,
}

impl From<&MeasurementRow> for StudyMeasurement {
    fn from(row: &MeasurementRow) -> Self {
        Self {
            probe_id: ProbeId(row.probe),
            kind: row.kind.clone(),
            batch_size: BatchSize(u64::try_from(row.batch_size).unwrap_or(0)),
            seq: row.seq,
            metric: row.metric.clone(),
            step: row.step,
            value: row.value,
            unit: row.unit.clone(),
            elapsed_secs: row.elapsed_secs,
        }
    }
}

/// Where a page of measurements starts: (wave, position, seq).
type Key = (i32, i32, i32);

fn key(row: &MeasurementRow) -> Key {
    (row.wave, row.position, row.seq)
}

/// Which measurements are read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListMeasurementsQuery {
    /// Only this metric, `time_per_step_median` say.
    pub metric: Option<String>,
    /// Only of probes of this kind.
    pub kind: Option<ProbeKind>,
    /// Only at this batch size.
    #[param(minimum = 1)]
    pub batch_size: Option<i64>,
    /// Items of a page, 1 to 500 (default 50); JSON only.
    #[param(minimum = 1, maximum = 500, default = 50)]
    pub page_size: Option<i64>,
    /// `next_page_token` of the page before; JSON only.
    pub page_token: Option<String>,
}

/// How measurements are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
    NdJson,
}

/// Rows read at a time while all are streamed.
const CHUNK: i64 = 2000;

/// Read a study's measurements
///
/// Of the completing attempts, in the order of the plan. JSON comes in pages; with
/// `Accept: text/csv` or `Accept: application/x-ndjson` all of them are streamed.
#[utoipa::path(
    operation_id = "list_measurements",
    tag = "measurements",
    security(("token" = ["read"])),
    params(("id" = StudyId, Path, description = "The study"), ListMeasurementsQuery),
    responses(
        (status = 200, description = "Measurements", content(
            (Page<StudyMeasurement> = "application/json"),
            (String = "text/csv"),
            (String = "application/x-ndjson"),
        )),
        (status = 406, description = "None of the accepted media types can be given", body = Problem, content_type = "application/problem+json"),
        Always,
        Missing,
        InvalidQuery,
    )
)]
#[get("/v1/studies/{id}/measurements")]
pub async fn list_measurements(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<StudyId>,
    query: Query<ListMeasurementsQuery>,
) -> Result<HttpResponse, Problem> {
    let format = format(&request)?;
    let query = query.into_inner();
    let page = PageRequest::<Key>::new(query.page_size, query.page_token.as_deref())?;
    Problem::unless_text("metric", query.metric.as_deref())?;
    if let Some(size) = query.batch_size.filter(|size| *size < 1) {
        return Err(Problem::invalid_parameter(
            "batch_size",
            format!("must be at least 1, is {size}"),
        ));
    }
    let study = studies::find(&api, &caller, *id).await?;
    let filter = MeasurementFilter {
        metric: query.metric,
        kind: query.kind,
        batch_size: query.batch_size,
        after: page.after,
    };
    if format == Format::Json {
        let mut conn = api.context.database.connection().await?;
        let rows = probes::list_measurements(&mut conn, &study, &filter, page.limit()).await?;
        let page = page.page(rows, key);
        return Ok(HttpResponse::Ok().json(Page {
            items: page.items.iter().map(StudyMeasurement::from).collect(),
            next_page_token: page.next_page_token,
        }));
    }
    let content_type = match format {
        Format::Csv => "text/csv; charset=utf-8",
        _ => "application/x-ndjson",
    };
    Ok(HttpResponse::Ok().content_type(content_type).streaming(all(
        api.context.database.clone(),
        study,
        filter,
        format,
    )))
}

/// The first media type of `Accept` that can be given; JSON without one.
fn format(request: &HttpRequest) -> Result<Format, Problem> {
    let Some(accept) = request.headers().get(ACCEPT) else {
        return Ok(Format::Json);
    };
    let accept = accept.to_str().unwrap_or_default().to_ascii_lowercase();
    accept
        .split(',')
        .filter_map(
            |part| match part.split(';').next().unwrap_or_default().trim() {
                "" | "*/*" | "application/*" | "application/json" => Some(Format::Json),
                "text/csv" | "text/*" => Some(Format::Csv),
                "application/x-ndjson" | "application/ndjson" => Some(Format::NdJson),
                _ => None,
            },
        )
        .next()
        .ok_or_else(|| {
            Problem::not_acceptable("application/json, text/csv or application/x-ndjson")
        })
}

/// Everything from the filter's start, a chunk at a time: no list is ever whole in memory.
fn all(
    database: Database,
    study: StudyRow,
    filter: MeasurementFilter,
    format: Format,
) -> impl futures::Stream<Item = Result<Bytes, StoreError>> {
    stream::try_unfold((Some(filter), true), move |(filter, first)| {
        let (database, study) = (database.clone(), study.clone());
        async move {
            let Some(filter) = filter else {
                return Ok(None);
            };
            let mut conn = database.connection().await?;
            let rows = probes::list_measurements(&mut conn, &study, &filter, CHUNK).await?;
            drop(conn);
            let next = (rows.len() as i64 == CHUNK)
                .then(|| rows.last().map(key))
                .flatten()
                .map(|after| MeasurementFilter {
                    after: Some(after),
                    ..filter
                });
            let chunk = write(&rows, format, first).map_err(|error| StoreError::Unreadable {
                what: format!("measurements of study {}", study.id),
                why: error.to_string(),
            })?;
            Ok(Some((Bytes::from(chunk), (next, false))))
        }
    })
}

fn write(rows: &[MeasurementRow], format: Format, first: bool) -> anyhow::Result<Vec<u8>> {
    let measurements = rows.iter().map(StudyMeasurement::from);
    if format == Format::Csv {
        let mut writer = csv::WriterBuilder::new()
            .has_headers(false)
            .from_writer(Vec::new());
        if first {
            writer.write_record([
                "probe_id",
                "kind",
                "batch_size",
                "seq",
                "metric",
                "step",
                "value",
                "unit",
                "elapsed_secs",
            ])?;
        }
        for measurement in measurements {
            writer.serialize(measurement)?;
        }
        return Ok(writer.into_inner()?);
    }
    let mut lines = Vec::new();
    for measurement in measurements {
        serde_json::to_writer(&mut lines, &measurement)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

//! Data sets: upload, list, read, fetch the content, delete.

use actix_web::http::StatusCode;
use actix_web::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue,
};
use actix_web::web::{Data, Path, Payload, Query, ReqData};
use actix_web::{HttpRequest, HttpResponse, delete, get, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::conditional::{self, IfNoneMatch, NotModified};
use super::idempotency::{self, IdempotencyKeyHeader};
use super::pagination::{Page, PageRequest};
use super::problem::{Problem, ProblemCode};
use super::ranges::{self, Wanted};
use super::responses::{Always, InvalidQuery, Missing};
use super::state::Api;
use crate::datasets::content::Description;
use crate::lifecycle::Caller;
use crate::store::StoreError;
use crate::store::datasets::{self, DatasetRow, Deleted};
use crate::store::kept_answers::Answer;
use crate::study::upload::{ArrayLayout, UploadFormat, UploadOptions, UploadTask};
use crate::study::{Contents, DatasetId};
use crate::uploads::{NewDataset, Uploaded};

/// An uploaded data set.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DatasetAnswer {
    /// Names the data set; a study names it so: `{"workload": {"dataset": {"id": …}}}`.
    pub id: DatasetId,
    /// A name for people.
    pub name: String,
    /// The format it was uploaded in.
    pub format: UploadFormat,
    /// What is predicted: classification, regression or language modelling.
    pub task: String,
    /// Shapes and sizes.
    pub contents: Contents,
    /// Columns, classes with their priors, missing values, normalization, split.
    pub description: Description,
    /// SHA-256 of the uploaded file.
    pub source_sha256: String,
    /// Bytes of the uploaded file.
    pub source_bytes: i64,
    /// SHA-256 of the stored form, as `content` gives it.
    pub content_sha256: String,
    /// Bytes of the stored form.
    pub content_bytes: i64,
    /// Who uploaded it.
    pub created_by: String,
    /// When it was uploaded.
    pub created_at: DateTime<Utc>,
}

impl DatasetAnswer {
    fn new(row: DatasetRow) -> Result<Self, StoreError> {
        let contents = row.contents()?;
        let unreadable = |error| StoreError::unreadable(format!("data set {}", row.id), error);
        Ok(Self {
            id: row.dataset_id(),
            task: contents.facts(None).target.task().to_owned(),
            contents,
            format: serde_json::from_value(row.format.clone().into()).map_err(unreadable)?,
            description: serde_json::from_value(row.description.clone()).map_err(unreadable)?,
            name: row.name,
            source_sha256: row.source_sha256,
            source_bytes: row.source_bytes,
            content_sha256: row.content,
            content_bytes: row.content_bytes,
            created_by: row.created_by,
            created_at: row.created_at,
        })
    }
}

/// How an upload is to be read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UploadQuery {
    /// A name for people, 1 to 200 characters. Default: the format.
    #[param(min_length = 1, max_length = 200)]
    pub name: Option<String>,
    /// The format. Default: by the Content-Type.
    pub format: Option<UploadFormat>,
    /// The column or array to be predicted. Default: the one called target, label, class or y.
    pub target: Option<String>,
    /// NPZ: the array of inputs. Default: the one called X, inputs, images, data or features.
    pub inputs: Option<String>,
    /// What is predicted. Default: classification for words and for few whole numbers, else regression.
    pub task: Option<UploadTask>,
    /// NPZ: what the axes of the inputs mean. Default: by the shape.
    pub layout: Option<ArrayLayout>,
    /// CSV, Parquet: columns to leave out, several separated by commas.
    pub drop: Option<String>,
    /// Text: the characters that are tokens, in their order. Default: bytes are tokens.
    pub vocabulary: Option<String>,
    /// The share of the examples that is kept for validation, unless the file says which. Default: 0.2.
    #[param(exclusive_minimum = 0.0, exclusive_maximum = 1.0, default = 0.2)]
    pub validation_fraction: Option<f64>,
    /// Draws the examples that are kept for validation. Default: 0.
    #[param(maximum = 9007199254740991u64)]
    pub split_seed: Option<u64>,
}

/// Upload a data set
///
/// The body is the file itself: NPZ, Parquet, CSV with a header line, or UTF-8 text. It is streamed to disk,
/// inspected in a process with a memory limit, and stored once in a form that training opens without parsing.
/// The same file uploaded again, to be read the same way, is the same data set. With `Repr-Digest:
/// sha-256=:…:` a known file is answered before its body is sent, and a file that was changed on the way is
/// refused. With an `Idempotency-Key` the request may be sent again; the file's SHA-256, how it is read and its name say
/// whether it is the same.
#[utoipa::path(
    operation_id = "upload_dataset",
    tag = "datasets",
    security(("token" = ["write"])),
    params(
        UploadQuery,
        IdempotencyKeyHeader,
        ("Repr-Digest" = Option<String>, Header, description = "`sha-256=:BASE64:`, the digest of the file (RFC 9530)"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The file"),
    responses(
        (status = 200, description = "The data set that this file became before", body = DatasetAnswer, headers(("Location" = String, description = "Where the data set is"), ("ETag" = String, description = "That of the data set there"), ("Idempotency-Replayed" = String, description = "`true`: this was the answer to the first request with the key"))),
        (status = 201, description = "The data set", body = DatasetAnswer, headers(("Location" = String, description = "Where the data set is"), ("ETag" = String, description = "That of the data set there"), ("Idempotency-Replayed" = String, description = "`true`: this was the answer to the first request with the key"))),
        (status = 408, description = "Nothing of the file came for too long", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The first request with the Idempotency-Key is being answered; try again after Retry-After", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The file is larger than allowed", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The file is no data set: what is wrong, where, and what would mend it; or `idempotency_key_reused`: the key was used for another file, or for another way to read it", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "As many uploads are under way as may be", body = Problem, content_type = "application/problem+json"),
        Always,
    )
)]
#[post("/v1/datasets")]
pub async fn upload_dataset(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    query: Query<UploadQuery>,
    body: Payload,
) -> Result<HttpResponse, Problem> {
    let uploads = &api.uploads;
    let length = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > uploads.max_bytes()) {
        return Err(crate::uploads::UploadError::TooLarge {
            limit: crate::study::Bytes(uploads.max_bytes()),
        }
        .into());
    }
    let key = idempotency::key(&api, &caller, &request, UPLOAD)?;
    let new = new_dataset(&caller, &request, query.into_inner())?;
    let answered = match uploads.known(&new, key.as_ref(), answer).await? {
        Some(known) => known,
        None => uploads.take(new, body, key.as_ref(), answer).await?,
    };
    Ok(idempotency::respond(&api, UPLOAD, answered))
}

/// The operation's id, for its keys.
const UPLOAD: &str = "upload_dataset";

fn answer(uploaded: Uploaded) -> Result<Answer, StoreError> {
    let dataset = DatasetAnswer::new(uploaded.dataset)?;
    let status = if uploaded.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let location = format!("/v1/datasets/{}", dataset.id);
    idempotency::answer(status, location, &dataset)
}

fn new_dataset(
    caller: &Caller,
    request: &HttpRequest,
    query: UploadQuery,
) -> Result<NewDataset, Problem> {
    let format = match query.format {
        Some(format) => format,
        None => format_of(request).ok_or_else(|| {
            Problem::invalid_parameter(
                "format",
                "must be given (npz, parquet, csv or text) when the Content-Type does not tell",
            )
        })?,
    };
    let name = query.name.unwrap_or_else(|| format.as_str().to_owned());
    let characters = name.chars().count();
    if !(1..=200).contains(&characters) || name.chars().any(char::is_control) || name.contains('/')
    {
        return Err(Problem::invalid_parameter(
            "name",
            "must be 1 to 200 characters without control characters and slashes",
        ));
    }
    let validation_fraction = query.validation_fraction.unwrap_or(0.2);
    if !(validation_fraction > 0.0 && validation_fraction < 1.0) {
        return Err(Problem::invalid_parameter(
            "validation_fraction",
            format!("must be above 0 and below 1, is {validation_fraction}"),
        ));
    }
    Ok(NewDataset {
        project: caller.project.clone(),
        created_by: caller.name.clone(),
        name,
        options: UploadOptions {
            format,
            target: query.target,
            inputs: query.inputs,
            task: query.task,
            layout: query.layout,
            drop: query
                .drop
                .iter()
                .flat_map(|names| names.split(','))
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect(),
            vocabulary: query.vocabulary,
            validation_fraction,
            split_seed: query.split_seed.unwrap_or(0),
        },
        announced_sha256: announced(request)?,
    })
}

/// The format that the Content-Type stands for.
fn format_of(request: &HttpRequest) -> Option<UploadFormat> {
    let kind = request.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next()?.trim().to_ascii_lowercase();
    Some(match kind.as_str() {
        "text/csv" => UploadFormat::Csv,
        "text/plain" => UploadFormat::Text,
        "application/vnd.apache.parquet" | "application/x-parquet" => UploadFormat::Parquet,
        "application/zip" | "application/x-npz" => UploadFormat::Npz,
        _ => return None,
    })
}

/// The digest that the client announces, in hexadecimal.
fn announced(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let Some(header) = request.headers().get("repr-digest") else {
        return Ok(None);
    };
    let digest = header
        .to_str()
        .ok()
        .into_iter()
        .flat_map(|text| text.split(','))
        .find_map(|entry| {
            let encoded = entry.trim().strip_prefix("sha-256=:")?.strip_suffix(':')?;
            BASE64_STANDARD.decode(encoded).ok()
        })
        .filter(|digest| digest.len() == 32);
    match digest {
        Some(digest) => Ok(Some(hex::encode(digest))),
        None => Err(Problem::invalid_parameter(
            "Repr-Digest",
            "must be sha-256=:BASE64: with the 32 bytes of a SHA-256",
        )),
    }
}

/// Which data sets are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListDatasetsQuery {
    /// Items of a page, 1 to 500 (default 50).
    #[param(minimum = 1, maximum = 500, default = 50)]
    pub page_size: Option<i64>,
    /// `next_page_token` of the page before.
    pub page_token: Option<String>,
}

/// List uploaded data sets
///
/// The newest first.
#[utoipa::path(
    operation_id = "list_datasets",
    tag = "datasets",
    security(("token" = ["read"])),
    params(ListDatasetsQuery, IfNoneMatch),
    responses(
        (status = 200, description = "A page of data sets", body = Page<DatasetAnswer>, headers(("ETag" = String, description = "Changes when the answer does; give it as If-None-Match"))),
        NotModified,
        Always,
        InvalidQuery,
    )
)]
#[get("/v1/datasets")]
pub async fn list_datasets(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    query: Query<ListDatasetsQuery>,
) -> Result<HttpResponse, Problem> {
    let page = PageRequest::<DatasetId>::new(query.page_size, query.page_token.as_deref())?;
    let mut conn = api.context.database.connection().await?;
    let rows = datasets::list(&mut conn, &caller.project, page.after, page.limit()).await?;
    let items = rows
        .into_iter()
        .map(DatasetAnswer::new)
        .collect::<Result<Vec<_>, _>>()?;
    conditional::answer(&request, &page.page(items, |dataset| dataset.id))
}

async fn find(api: &Api, caller: &Caller, id: DatasetId) -> Result<DatasetRow, Problem> {
    let mut conn = api.context.database.connection().await?;
    datasets::find(&mut conn, &caller.project, id)
        .await?
        .ok_or_else(|| Problem::not_found("data set"))
}

/// Read a data set
///
/// Shapes, types, classes with their priors, missing values, split and normalization; not the examples.
#[utoipa::path(
    operation_id = "get_dataset",
    tag = "datasets",
    security(("token" = ["read"])),
    params(("id" = DatasetId, Path, description = "The data set"), IfNoneMatch),
    responses(
        (status = 200, description = "The data set", body = DatasetAnswer, headers(("ETag" = String, description = "Changes when the answer does; give it as If-None-Match"))),
        NotModified,
        Always,
        Missing,
    )
)]
#[get("/v1/datasets/{id}")]
pub async fn get_dataset(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<DatasetId>,
) -> Result<HttpResponse, Problem> {
    let dataset = DatasetAnswer::new(find(&api, &caller, *id).await?)?;
    conditional::answer(&request, &dataset)
}

/// Fetch a data set's content
///
/// The stored form, whole or one range of it, for workers on other machines. Its ETag is its SHA-256, and a range whose
/// If-Range names another is answered with the whole. A worker that is bound to no project gets the content of any.
#[utoipa::path(
    operation_id = "get_dataset_content",
    tag = "datasets",
    security(("token" = ["work"])),
    params(("id" = DatasetId, Path, description = "The data set")),
    responses(
        (status = 200, description = "The stored form", body = Vec<u8>, content_type = "application/octet-stream", headers(("ETag" = String, description = "Its SHA-256, in quotes"))),
        (status = 206, description = "A part of it", body = Vec<u8>, content_type = "application/octet-stream", headers(("ETag" = String, description = "The SHA-256 of the whole, in quotes"), ("Content-Range" = String, description = "Which part"))),
        (status = 416, description = "The range is not in it; `Content-Range` says how long it is", body = Problem, content_type = "application/problem+json", headers(("Content-Range" = String, description = "`bytes */LENGTH`"))),
        Always,
        Missing,
    )
)]
#[get("/v1/datasets/{id}/content")]
pub async fn get_dataset_content(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<DatasetId>,
) -> Result<HttpResponse, Problem> {
    let row = {
        let mut conn = api.context.database.connection().await?;
        datasets::find_for_work(&mut conn, caller.project_filter(), *id)
            .await?
            .ok_or_else(|| Problem::not_found("data set"))?
    };
    let file = api
        .uploads
        .contents()
        .open(&row.content)
        .await
        .map_err(crate::uploads::UploadError::from)?;
    let unreadable =
        |error: std::io::Error| Problem::from(crate::uploads::UploadError::from(error));
    let length = file.metadata().map_err(unreadable)?.len();
    let etag = format!("\"{}\"", row.content);
    let (status, part) = match Wanted::of(request.headers(), &etag, length) {
        Wanted::Whole => (StatusCode::OK, 0..length),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Outside => return outside(&request, length),
    };
    let mut response = HttpResponse::build(status);
    response
        .insert_header((ETAG, etag))
        .insert_header((ACCEPT_RANGES, "bytes"))
        .content_type(mime::APPLICATION_OCTET_STREAM);
    if status == StatusCode::PARTIAL_CONTENT {
        let last = part.end - 1;
        response.insert_header((
            CONTENT_RANGE,
            format!("bytes {}-{last}/{length}", part.start),
        ));
    }
    let body = ranges::read(file, part).await.map_err(unreadable)?;
    Ok(response.body(body))
}

fn outside(request: &HttpRequest, length: u64) -> Result<HttpResponse, Problem> {
    let problem = Problem::new(
        ProblemCode::RangeNotSatisfiable,
        format!("the content has {length} bytes, and none in this range"),
    );
    let mut response = problem.response(Some(request.path()));
    let range = HeaderValue::from_str(&format!("bytes */{length}"));
    response
        .headers_mut()
        .insert(CONTENT_RANGE, range.map_err(|_| Problem::internal())?);
    Ok(response)
}

/// Delete a data set
///
/// Only one that no queued or running study needs. What was measured on it stays.
#[utoipa::path(
    operation_id = "delete_dataset",
    tag = "datasets",
    security(("token" = ["write"])),
    params(("id" = DatasetId, Path, description = "The data set")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 409, description = "A queued or running study needs it", body = Problem, content_type = "application/problem+json"),
        Always,
        Missing,
    )
)]
#[delete("/v1/datasets/{id}")]
pub async fn delete_dataset(
    api: Data<Api>,
    caller: ReqData<Caller>,
    id: Path<DatasetId>,
) -> Result<HttpResponse, Problem> {
    match api.uploads.delete(&caller.project, *id).await? {
        Deleted::WithContent(_) | Deleted::ContentStays => Ok(HttpResponse::NoContent().finish()),
        Deleted::NotFound => Err(Problem::not_found("data set")),
        Deleted::InUse(studies) => Err(Problem::new(
            ProblemCode::DatasetInUse,
            format!(
                "{studies} queued or running studies need it; cancel them or wait for their end"
            ),
        )),
    }
}

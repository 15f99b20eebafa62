//! Uploaded data sets.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::error::StoreError;
use super::schema::datasets;
use super::statement::statement;
use crate::study::{Contents, DatasetId, StoredDataset};

/// A data set as stored.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = datasets, check_for_backend(diesel::pg::Pg))]
pub struct DatasetRow {
    pub id: Uuid,
    pub project: String,
    pub created_by: String,
    pub name: String,
    pub format: String,
    pub source_sha256: String,
    pub source_bytes: i64,
    pub options: serde_json::Value,
    pub options_hash: String,
    pub content: String,
    pub content_bytes: i64,
    pub contents: serde_json::Value,
    pub description: serde_json::Value,
    pub created_at: DateTime<Utc>,
}

impl DatasetRow {
    /// Its id.
    pub fn dataset_id(&self) -> DatasetId {
        DatasetId(self.id)
    }

    /// What is in it.
    ///
    /// # Errors
    /// When a newer version stored something that this one cannot read.
    pub fn contents(&self) -> Result<Contents, StoreError> {
        serde_json::from_value(self.contents.clone())
            .map_err(|error| StoreError::unreadable(format!("data set {}", self.id), error))
    }

    /// What a study needs to know of it.
    ///
    /// # Errors
    /// As [`contents`](Self::contents).
    pub fn stored(&self) -> Result<StoredDataset, StoreError> {
        Ok(StoredDataset {
            name: self.name.clone(),
            content: self.content.clone(),
            contents: self.contents()?,
        })
    }
}

/// Stores a data set, unless the same file was stored before, read the same way: then that one comes back.
pub async fn insert(
    conn: &mut AsyncPgConnection,
    row: &DatasetRow,
) -> Result<(DatasetRow, bool), StoreError> {
    let inserted: Option<DatasetRow> = diesel::insert_into(datasets::table)
        .values(row)
        .on_conflict((
            datasets::project,
            datasets::source_sha256,
            datasets::options_hash,
        ))
        .do_nothing()
        .returning(DatasetRow::as_returning())
        .get_result(conn)
        .await
        .optional()?;
    match inserted {
        Some(row) => Ok((row, true)),
        None => find_source(conn, &row.project, &row.source_sha256, &row.options_hash)
            .await?
            .map(|row| (row, false))
            .ok_or_else(|| StoreError::Unavailable("the data set was deleted just now".into())),
    }
}

/// The data set that a file became before, read the same way.
pub async fn find_source(
    conn: &mut AsyncPgConnection,
    project: &str,
    source_sha256: &str,
    options_hash: &str,
) -> Result<Option<DatasetRow>, StoreError> {
    Ok(datasets::table
        .filter(datasets::project.eq(project))
        .filter(datasets::source_sha256.eq(source_sha256))
        .filter(datasets::options_hash.eq(options_hash))
        .select(DatasetRow::as_select())
        .first(conn)
        .await
        .optional()?)
}

/// One data set of a project.
pub async fn find(
    conn: &mut AsyncPgConnection,
    project: &str,
    id: DatasetId,
) -> Result<Option<DatasetRow>, StoreError> {
    Ok(datasets::table
        .filter(datasets::project.eq(project))
        .filter(datasets::id.eq(id.0))
        .select(DatasetRow::as_select())
        .first(conn)
        .await
        .optional()?)
}

/// One data set, for a worker: of the project that it works for, or of any.
pub async fn find_for_work(
    conn: &mut AsyncPgConnection,
    project: Option<&str>,
    id: DatasetId,
) -> Result<Option<DatasetRow>, StoreError> {
    let mut query = datasets::table
        .filter(datasets::id.eq(id.0))
        .select(DatasetRow::as_select())
        .into_boxed();
    if let Some(project) = project {
        query = query.filter(datasets::project.eq(project));
    }
    Ok(query.first(conn).await.optional()?)
}

/// The data sets of a project, newest first.
pub async fn list(
    conn: &mut AsyncPgConnection,
    project: &str,
    before: Option<DatasetId>,
    limit: i64,
) -> Result<Vec<DatasetRow>, StoreError> {
    let mut query = datasets::table
        .filter(datasets::project.eq(project))
        .select(DatasetRow::as_select())
        .order(datasets::id.desc())
        .limit(limit)
        .into_boxed();
    if let Some(before) = before {
        query = query.filter(datasets::id.lt(before.0));
    }
    Ok(query.load(conn).await?)
}

/// The contents that any data set has.
pub async fn contents(
    conn: &mut AsyncPgConnection,
) -> Result<std::collections::HashSet<String>, StoreError> {
    let all: Vec<String> = datasets::table
        .select(datasets::content)
        .distinct()
        .load(conn)
        .await?;
    Ok(all.into_iter().collect())
}

/// Keeps a data set from being deleted until the transaction ends; false if it is gone already.
pub async fn hold(conn: &mut AsyncPgConnection, id: DatasetId) -> Result<bool, StoreError> {
    let held: Option<Uuid> = datasets::table
        .filter(datasets::id.eq(id.0))
        .select(datasets::id)
        .for_share()
        .first(conn)
        .await
        .optional()?;
    Ok(held.is_some())
}

/// What became of a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone, and nobody else has its content.
    WithContent(String),
    /// It is gone; another data set has the same content.
    ContentStays,
    /// So many queued or running studies need it.
    InUse(i64),
    /// There was none.
    NotFound,
}

/// Deletes a data set that no queued or running study needs. In a transaction of the caller's.
pub async fn delete(
    conn: &mut AsyncPgConnection,
    project: &str,
    id: DatasetId,
) -> Result<Deleted, StoreError> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        count: i64,
    }
    let content: Option<String> = datasets::table
        .filter(datasets::project.eq(project))
        .filter(datasets::id.eq(id.0))
        .select(datasets::content)
        .for_update()
        .first(conn)
        .await
        .optional()?;
    let Some(content) = content else {
        return Ok(Deleted::NotFound);
    };
    let users: Count = statement(
        "SELECT count(*) AS count FROM studies s JOIN study_revisions r \
           ON r.study = s.id AND r.revision = s.revision \
         WHERE s.state IN ('queued', 'running') AND s.project = $1 \
           AND r.definition #>> '{workload,dataset,id}' = $2",
    )
    .bind::<diesel::sql_types::Text, _>(project)
    .bind::<diesel::sql_types::Text, _>(id.to_string())
    .get_result(conn)
    .await?;
    if users.count > 0 {
        return Ok(Deleted::InUse(users.count));
    }
    diesel::delete(datasets::table.filter(datasets::id.eq(id.0)))
        .execute(conn)
        .await?;
    let others: i64 = datasets::table
        .filter(datasets::content.eq(&content))
        .count()
        .get_result(conn)
        .await?;
    Ok(if others == 0 {
        Deleted::WithContent(content)
    } else {
        Deleted::ContentStays
    })
}

//! First answers to writes that may be sent again: kept under the caller's `Idempotency-Key` in the write's own
//! transaction, so that there is never a write without its answer, nor an answer without its write.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use super::age;
use super::error::StoreError;
use super::schema::kept_answers;
use super::statement::statement;

/// How long a request waits for its twin that is being answered.
const WAIT_FOR_TWIN: &str = "3s";

/// What an `Idempotency-Key` belongs to.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    pub project: String,
    /// The access token's id, or `anonymous`.
    pub caller: String,
    /// The operation's id.
    pub operation: &'static str,
    pub key: String,
    /// After so many hours it is forgotten.
    pub keep_hours: u32,
}

impl IdempotencyKey {
    fn hours(&self) -> i32 {
        i32::try_from(self.keep_hours).unwrap_or(i32::MAX)
    }
}

/// What a caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Those that belong to the answer itself, by their name.
    pub headers: BTreeMap<String, String>,
    /// JSON.
    pub body: String,
}

/// An answer, and whether it was given before.
#[derive(Debug, Clone)]
pub struct Answered {
    pub answer: Answer,
    pub is_replayed: bool,
}

/// Why a request is not answered under its key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Another request had the key.
    #[error("this Idempotency-Key was used with another request")]
    Reused,
    /// The first request with the key has no answer yet.
    #[error("the first request with this Idempotency-Key is being answered")]
    InUse,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DieselError> for KeyError {
    fn from(error: DieselError) -> Self {
        match error {
            DieselError::DatabaseError(_, information)
                if information.message().contains("lock timeout") =>
            {
                Self::InUse
            }
            other => Self::Store(other.into()),
        }
    }
}

type Row = (
    String,
    Option<i32>,
    Option<serde_json::Value>,
    Option<String>,
);

fn read(row: Row, request_sha256: &str) -> Result<Answer, KeyError> {
    let (stored_sha256, status, headers, body) = row;
    if stored_sha256 != request_sha256 {
        return Err(KeyError::Reused);
    }
    let (Some(status), Some(headers), Some(body)) = (status, headers, body) else {
        return Err(KeyError::InUse);
    };
    let unreadable = |why: String| StoreError::unreadable("kept answer", why);
    Ok(Answer {
        status: u16::try_from(status).map_err(|error| unreadable(error.to_string()))?,
        headers: serde_json::from_value(headers).map_err(|error| unreadable(error.to_string()))?,
        body,
    })
}

/// The first answer under a key, if there is one. Takes nothing: another request may be about to write it.
///
/// # Errors
/// [`KeyError::Reused`] when it was to another request.
pub async fn find(
    conn: &mut AsyncPgConnection,
    key: &IdempotencyKey,
    request_sha256: &str,
) -> Result<Option<Answer>, KeyError> {
    let row: Option<Row> = kept_answers::table
        .find((&key.project, &key.caller, key.operation, &key.key))
        .filter(
            kept_answers::created_at.gt(diesel::dsl::sql::<diesel::sql_types::Timestamptz>(
                "now() - make_interval(hours => ",
            )
            .bind::<Integer, _>(key.hours())
            .sql(")")),
        )
        .select((
            kept_answers::request_sha256,
            kept_answers::status,
            kept_answers::headers,
            kept_answers::body,
        ))
        .first(conn)
        .await
        .optional()?;
    row.map(|row| read(row, request_sha256)).transpose()
}

/// Takes a key for the write of the caller's transaction, which then must [`keep`] its answer. When another request
/// had it first, that one's answer; a twin that is being answered is waited for.
///
/// # Errors
/// See [`KeyError`]; the transaction is of no use then.
pub async fn claim(
    conn: &mut AsyncPgConnection,
    key: &IdempotencyKey,
    request_sha256: &str,
) -> Result<Option<Answer>, KeyError> {
    conn.batch_execute(&format!("SET LOCAL lock_timeout = '{WAIT_FOR_TWIN}'"))
        .await?;
    statement(
        "DELETE FROM kept_answers WHERE project = $1 AND caller = $2 AND operation = $3 AND key = $4 \
           AND created_at <= now() - make_interval(hours => $5)",
    )
    .bind::<Text, _>(&key.project)
    .bind::<Text, _>(&key.caller)
    .bind::<Text, _>(key.operation)
    .bind::<Text, _>(&key.key)
    .bind::<Integer, _>(key.hours())
    .execute(conn)
    .await?;
    let inserted = diesel::insert_into(kept_answers::table)
        .values((
            kept_answers::project.eq(&key.project),
            kept_answers::caller.eq(&key.caller),
            kept_answers::operation.eq(key.operation),
            kept_answers::key.eq(&key.key),
            kept_answers::request_sha256.eq(request_sha256),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    conn.batch_execute("SET LOCAL lock_timeout = DEFAULT")
        .await?;
    if inserted == 1 {
        return Ok(None);
    }
    // Swept away in this very moment: the caller's next try has it.
    find(conn, key, request_sha256)
        .await?
        .ok_or(KeyError::InUse)
        .map(Some)
}

/// Writes the answer under a key that this transaction has claimed.
pub async fn keep(
    conn: &mut AsyncPgConnection,
    key: &IdempotencyKey,
    answer: &Answer,
) -> Result<(), StoreError> {
    let headers = serde_json::to_value(&answer.headers)
        .map_err(|error| StoreError::unreadable("headers", error))?;
    diesel::update(kept_answers::table.find((&key.project, &key.caller, key.operation, &key.key)))
        .set((
            kept_answers::status.eq(i32::from(answer.status)),
            kept_answers::headers.eq(headers),
            kept_answers::body.eq(&answer.body),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

/// Forgets answers that were kept for so many hours. Gives how many.
pub async fn remove_old(
    conn: &mut AsyncPgConnection,
    older_than_hours: u32,
    at_once: i64,
) -> Result<usize, StoreError> {
    age::remove(
        conn,
        "DELETE FROM kept_answers WHERE ctid = ANY(ARRAY(\
            SELECT ctid FROM kept_answers WHERE created_at <= now() - make_interval(hours => $1) \
            ORDER BY created_at LIMIT $2))",
        older_than_hours,
        at_once,
    )
    .await
}

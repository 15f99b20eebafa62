//! Removing what was kept long enough.

use std::borrow::Cow;

use diesel::sql_types::{BigInt, Integer};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::error::StoreError;
use super::statement::statement;

/// Runs a deletion of what is older than `$1`, in the unit that it names, of at most `$2` rows. Gives how many.
pub(super) async fn remove(
    conn: &mut AsyncPgConnection,
    deletion: impl Into<Cow<'static, str>>,
    older_than: u32,
    at_once: i64,
) -> Result<usize, StoreError> {
    Ok(statement(deletion)
        .bind::<Integer, _>(i32::try_from(older_than).unwrap_or(i32::MAX))
        .bind::<BigInt, _>(at_once)
        .execute(conn)
        .await?)
}

/// Removes the oldest rows of a table that nothing else refers to, by the column that says their age, in days.
pub(super) async fn remove_rows(
    conn: &mut AsyncPgConnection,
    (table, aged_by): (&'static str, &'static str),
    older_than_days: u32,
    at_once: i64,
) -> Result<usize, StoreError> {
    let deletion = format!(
        "DELETE FROM {table} WHERE ctid = ANY(ARRAY(\
            SELECT ctid FROM {table} WHERE {aged_by} < now() - make_interval(days => $1) \
            ORDER BY {aged_by} LIMIT $2))"
    );
    remove(conn, deletion, older_than_days, at_once).await
}

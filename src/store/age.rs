//! Removing what was kept long enough.

use diesel::sql_types::{BigInt, Integer};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::error::StoreError;
use super::statement::statement;

/// Runs a deletion of what is older than `$1`, in the unit that it names, of at most `$2` rows. Gives how many.
pub(super) async fn remove(
    conn: &mut AsyncPgConnection,
    deletion: &'static str,
    older_than: u32,
    at_once: i64,
) -> Result<usize, StoreError> {
    Ok(statement(deletion)
        .bind::<Integer, _>(i32::try_from(older_than).unwrap_or(i32::MAX))
        .bind::<BigInt, _>(at_once)
        .execute(conn)
        .await?)
}

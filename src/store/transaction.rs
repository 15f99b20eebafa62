//! Transactions that span store functions, for those who compose them.

use diesel_async::{AsyncConnection, AsyncPgConnection, TransactionManager};

use super::error::StoreError;

/// What store functions take.
pub type Connection = AsyncPgConnection;

type Manager = <AsyncPgConnection as AsyncConnection>::TransactionManager;

/// Opens a transaction. What follows must end with [`finish`]; a connection that is dropped before
/// is not given to anybody again, and its server side rolls back.
///
/// # Errors
/// Those of the database.
pub async fn begin(conn: &mut Connection) -> Result<(), StoreError> {
    Ok(Manager::begin_transaction(conn).await?)
}

/// What makes a plan that is kept one that may be: each row is found by an index, one table after the other, in the order
/// of an index. Whatever the tables held when it was made, that is right when they have grown.
const BY_KEPT_PLANS: &str = "\
    BEGIN; SET LOCAL plan_cache_mode = force_generic_plan; \
    SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
    SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off";

/// The same for statements that look rows up by their keys: their plans, and those of the checks of their foreign keys,
/// are kept by the connection. Elsewhere they are made anew for each use (see the session's settings), which for such
/// statements takes two thirds of their time. It begins in the one way to the server that a transaction needs anyway.
///
/// # Errors
/// Those of the database.
pub async fn begin_by_kept_plans(conn: &mut Connection) -> Result<(), StoreError> {
    match Manager::begin_transaction_sql(conn, BY_KEPT_PLANS).await {
        // As part of another transaction it is planned as that one is.
        Err(diesel::result::Error::AlreadyInTransaction) => begin(conn).await,
        begun => Ok(begun?),
    }
}

/// Commits what succeeded, rolls back what failed.
///
/// # Errors
/// The work's own error, or the database's.
pub async fn finish<T, E: From<StoreError>>(
    conn: &mut Connection,
    work: Result<T, E>,
) -> Result<T, E> {
    match work {
        Ok(value) => {
            Manager::commit_transaction(conn)
                .await
                .map_err(StoreError::from)?;
            Ok(value)
        }
        Err(error) => {
            if let Err(rollback) = Manager::rollback_transaction(conn).await {
                tracing::debug!(error = %rollback, "a failed transaction could not be rolled back; its connection is given up");
            }
            Err(error)
        }
    }
}

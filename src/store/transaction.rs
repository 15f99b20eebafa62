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

//! Transactions that span store functions, for those who compose them, and those that go one way to the server.

use diesel::pg::Pg;
use diesel::query_builder::QueryFragment;
use diesel::{QueryResult, QueryableByName};
use diesel_async::{
    AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection, TransactionManager,
};
use futures::join;

use super::error::StoreError;
use super::statement::{Statement, statement};

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

/// Where nothing is to be done before.
pub(super) const NOTHING_FIRST: Option<Statement<()>> = None;

/// Sends statements in one way to the server, each of which may begin before the one before it has been answered. Each
/// sees what was committed until the server came to it: what the first locks, the last sees as it is now.
///
/// They go in the order in which they are polled first: the connection takes the lock of those that it has prepared for
/// each in turn, which is given in the order in which it is asked for, and sends a statement without another pause. The end
/// is such a statement too, and not plain text, or it would overtake one that has to be prepared. After a failed statement
/// the server answers the others with errors, and rolls back at the end: at this one, or where there is none, at one sent
/// after it.
async fn send<Row: QueryableByName<Pg> + Send + 'static>(
    conn: &mut Connection,
    begins: bool,
    first: Option<Statement<impl QueryFragment<Pg> + Send>>,
    last: Statement<impl QueryFragment<Pg> + Send>,
    ends: bool,
) -> Result<Vec<Row>, StoreError> {
    let shared: &Connection = conn;
    let (begun, first, rows, ended) = join!(
        async {
            if begins {
                (&mut &*shared).batch_execute(BY_KEPT_PLANS).await?;
            }
            QueryResult::Ok(())
        },
        async {
            if let Some(first) = first {
                first.execute(&mut &*shared).await?;
            }
            QueryResult::Ok(())
        },
        last.load(&mut &*shared),
        async {
            if ends {
                statement("COMMIT").execute(&mut &*shared).await?;
            }
            QueryResult::Ok(())
        },
    );
    if ends && ended.is_ok() {
        closed(conn);
    }
    // The first error: a statement after one that failed says only that.
    let rows = begun
        .and(first)
        .and(rows)
        .and_then(|rows| ended.map(|()| rows));
    if rows.is_err() {
        give_up(conn).await;
    }
    Ok(rows?)
}

/// One transaction by kept plans that goes one way to the server: its beginning, `first`, `last` and its end. Gives the row of
/// `last`, if it has one. Within another transaction it is a part of that.
///
/// # Errors
/// Those of the database: the first.
pub(super) async fn in_one_way<Row: QueryableByName<Pg> + Send + 'static>(
    conn: &mut Connection,
    first: Option<Statement<impl QueryFragment<Pg> + Send>>,
    last: Statement<impl QueryFragment<Pg> + Send>,
) -> Result<Option<Row>, StoreError> {
    let begins = opens(conn)?;
    let rows = send(conn, begins, first, last, begins).await?;
    Ok(rows.into_iter().next())
}

/// The same of one statement: gives all of its rows.
///
/// # Errors
/// Those of the database: the first.
pub(super) async fn all_in_one_way<Row: QueryableByName<Pg> + Send + 'static>(
    conn: &mut Connection,
    only: Statement<impl QueryFragment<Pg> + Send>,
) -> Result<Vec<Row>, StoreError> {
    let begins = opens(conn)?;
    send(conn, begins, NOTHING_FIRST, only, begins).await
}

/// The same as two: a transaction that begins with these statements and ends with [`end_with`], [`end`] or [`give_up`]. If none
/// comes to pass, its connection is not lent again, and its server side rolls back.
///
/// # Errors
/// Those of the database: the first. It was rolled back then, unless it is a part of another.
pub(super) async fn begin_with<Row: QueryableByName<Pg> + Send + 'static>(
    conn: &mut Connection,
    first: Option<Statement<impl QueryFragment<Pg> + Send>>,
    last: Statement<impl QueryFragment<Pg> + Send>,
) -> Result<Option<Row>, StoreError> {
    let begins = opens(conn)?;
    let rows = send(conn, begins, first, last, false).await?;
    Ok(rows.into_iter().next())
}

/// Ends what [`begin_with`] began, with statements.
///
/// # Errors
/// Those of the database: the first. It was rolled back then, unless it is a part of another.
pub(super) async fn end_with<Row: QueryableByName<Pg> + Send + 'static>(
    conn: &mut Connection,
    first: Option<Statement<impl QueryFragment<Pg> + Send>>,
    last: Statement<impl QueryFragment<Pg> + Send>,
) -> Result<Option<Row>, StoreError> {
    let ends = is_open(conn);
    let rows = send(conn, false, first, last, ends).await?;
    Ok(rows.into_iter().next())
}

/// Ends what [`begin_with`] began.
///
/// # Errors
/// Those of the database.
pub(super) async fn end(conn: &mut Connection) -> Result<(), StoreError> {
    if is_open(conn) {
        conn.batch_execute("COMMIT").await?;
        closed(conn);
    }
    Ok(())
}

/// Rolls back what [`begin_with`] began and no statement ends any more, so that its connection can be lent again.
pub(super) async fn give_up(conn: &mut Connection) {
    if is_open(conn) {
        match conn.batch_execute("ROLLBACK").await {
            Ok(()) => closed(conn),
            Err(error) => {
                tracing::debug!(%error, "a failed transaction could not be rolled back; its connection is given up");
            }
        }
    }
}

/// Marks a connection as one whose server side is in a transaction that its manager knows nothing of: if the work is dropped,
/// nobody knows how far the server has come, and it must not be lent again. Not so within another transaction.
fn opens(conn: &mut Connection) -> Result<bool, StoreError> {
    let status = Manager::transaction_manager_status_mut(conn);
    let begins = status.transaction_depth()?.is_none();
    if begins {
        status.set_in_error();
    }
    Ok(begins)
}

fn is_open(conn: &mut Connection) -> bool {
    let status = Manager::transaction_manager_status_mut(conn);
    status.transaction_depth().is_err()
}

fn closed(conn: &mut Connection) {
    *Manager::transaction_manager_status_mut(conn) = Default::default();
}

//! Ending a study by hand: cancel and delete.

use serde_json::json;

use super::{Caller, Context};
use crate::store::events::{self, EventKind};
use crate::store::studies::StudyRow;
use crate::store::{self, Connection, StoreError, probes, studies};
use crate::study::{EndedBecause, StudyId, StudyState};

/// Why a study was not ended or deleted.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The project has no such study.
    #[error("there is no such study")]
    NotFound,
    /// It has ended already, so it cannot be cancelled.
    #[error("the study has ended already ({})", .0.as_str())]
    AlreadyEnded(StudyState),
    /// It has not ended, so it cannot be deleted.
    #[error("the study is {}; cancel it first", .0.as_str())]
    StillActive(StudyState),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cancels a study: nothing more of it starts, and what runs for it alone is told to stop.
///
/// # Errors
/// See [`EndError`].
pub async fn cancel(context: &Context, caller: &Caller, id: StudyId) -> Result<StudyRow, EndError> {
    let mut conn = context.database.connection().await?;
    store::begin(&mut conn).await?;
    let work = mark_cancelled(&mut conn, &caller.project, id).await;
    store::finish(&mut conn, work).await?;
    context.waker.wake();
    tracing::info!(study = %id, "study cancelled");
    studies::find(&mut conn, &caller.project, id)
        .await?
        .ok_or(EndError::NotFound)
}

async fn mark_cancelled(conn: &mut Connection, project: &str, id: StudyId) -> Result<(), EndError> {
    let study = studies::lock(conn, project, id)
        .await?
        .ok_or(EndError::NotFound)?;
    let state = study.study_state();
    if state.has_ended() {
        return Err(EndError::AlreadyEnded(state));
    }
    studies::set_cancelled(conn, id).await?;
    probes::cancel_unwanted(conn, id).await?;
    let data = json!({"state": StudyState::Cancelled, "ended_because": EndedBecause::Cancelled});
    events::append(conn, id, &[(EventKind::Study, data)]).await?;
    Ok(())
}

/// Deletes a study that has ended. Its probes stay: other studies may rest on them.
///
/// # Errors
/// See [`EndError`].
pub async fn delete(context: &Context, caller: &Caller, id: StudyId) -> Result<(), EndError> {
    let mut conn = context.database.connection().await?;
    store::begin(&mut conn).await?;
    let work = remove_ended(&mut conn, &caller.project, id).await;
    store::finish(&mut conn, work).await?;
    context.waker.tell();
    Ok(())
}

async fn remove_ended(conn: &mut Connection, project: &str, id: StudyId) -> Result<(), EndError> {
    let study = studies::lock(conn, project, id)
        .await?
        .ok_or(EndError::NotFound)?;
    let state = study.study_state();
    if !state.has_ended() {
        return Err(EndError::StillActive(state));
    }
    studies::delete(conn, id).await?;
    Ok(())
}

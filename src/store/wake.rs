//! Wake-ups: NOTIFY, sent after commit and coalesced, never inside the writing transaction (a
//! transaction that notifies holds a global lock through its commit).

use std::time::Duration;

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::sync::mpsc;

use super::error::StoreError;

/// The channel that every instance listens on.
pub const CHANNEL: &str = "trialhead";

/// Wake-ups within this time become one.
pub const COALESCE: Duration = Duration::from_millis(20);

/// Asks for a wake-up of everybody; cheap, never blocks.
#[derive(Debug, Clone)]
pub struct Waker(mpsc::Sender<()>);

impl Waker {
    /// A waker and the end that [`send`] is called from.
    pub fn new() -> (Self, mpsc::Receiver<()>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }

    /// Something has been committed that others may be waiting for.
    pub fn wake(&self) {
        // A full channel means that a wake-up is already on its way.
        let _ = self.0.try_send(());
    }
}

/// Sends one wake-up.
pub async fn send(conn: &mut AsyncPgConnection) -> Result<(), StoreError> {
    diesel::sql_query("SELECT pg_notify($1, '')")
        .bind::<diesel::sql_types::Text, _>(CHANNEL)
        .execute(conn)
        .await?;
    Ok(())
}

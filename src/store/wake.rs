//! Wake-ups: whoever waits for work in this process is told at once, everybody else by NOTIFY,
//! which is sent after commit and coalesced, never inside the writing transaction (a transaction
//! that notifies holds a global lock through its commit).

use std::sync::Arc;
use std::time::Duration;

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::sync::{Notify, watch};

use super::error::StoreError;

/// The channel that every instance listens on.
pub const CHANNEL: &str = "trialhead";

/// Wake-ups within this time become one.
pub const COALESCE: Duration = Duration::from_millis(20);

/// Tells whoever waits that something has been committed. Cheap, never blocks.
#[derive(Debug, Clone)]
pub struct Waker {
    here: watch::Sender<u64>,
    elsewhere: Arc<Notify>,
}

impl Default for Waker {
    fn default() -> Self {
        Self {
            here: watch::Sender::new(0),
            elsewhere: Arc::new(Notify::new()),
        }
    }
}

impl Waker {
    /// Something has been committed that others may be waiting for.
    pub fn wake(&self) {
        self.wake_here();
        self.elsewhere.notify_one();
    }

    /// Another instance has said so.
    pub fn wake_here(&self) {
        self.here
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Resolves on wake-ups in this process.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.here.subscribe()
    }

    /// Resolves when other instances are to be told; then [`send`] after [`COALESCE`].
    pub async fn due_elsewhere(&self) {
        self.elsewhere.notified().await;
    }
}

/// Sends one wake-up to every instance.
pub async fn send(conn: &mut AsyncPgConnection) -> Result<(), StoreError> {
    diesel::sql_query("SELECT pg_notify($1, '')")
        .bind::<diesel::sql_types::Text, _>(CHANNEL)
        .execute(conn)
        .await?;
    Ok(())
}

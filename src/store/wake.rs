//! Wake-ups: whoever waits in this process is told at once, everybody else by NOTIFY, which is sent after commit and
//! coalesced, never inside the writing transaction (a transaction that notifies holds a global lock through its commit).
//!
//! There are two kinds. One says that there may be work: workers look for a probe, and the planner for a study that is
//! due. The other says no more than that something can be told to those who follow a study, and costs nobody else a look.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::sync::{Notify, watch};

use super::error::StoreError;
use super::statement::statement;

/// The channel that every instance listens on.
pub const CHANNEL: &str = "trialhead";

/// Wake-ups within this time become one.
pub const COALESCE: Duration = Duration::from_millis(20);

/// The payload of those that are for followers only; any other is for everybody.
const NEWS: &str = "news";

/// Tells whoever waits that something has been committed. Cheap, never blocks.
#[derive(Debug, Clone)]
pub struct Waker {
    work: watch::Sender<u64>,
    news: watch::Sender<u64>,
    elsewhere: Arc<Elsewhere>,
}

#[derive(Debug, Default)]
struct Elsewhere {
    due: Notify,
    /// Whether what is due may be work.
    is_work: AtomicBool,
}

impl Default for Waker {
    fn default() -> Self {
        Self {
            work: watch::Sender::new(0),
            news: watch::Sender::new(0),
            elsewhere: Arc::default(),
        }
    }
}

impl Waker {
    /// Something has been committed that others may be waiting for.
    pub fn wake(&self) {
        raise(&self.work);
        raise(&self.news);
        self.elsewhere.is_work.store(true, Ordering::Release);
        self.elsewhere.due.notify_one();
    }

    /// Something has been committed that is news to those who follow a study, and no work for anybody.
    pub fn tell(&self) {
        raise(&self.news);
        self.elsewhere.due.notify_one();
    }

    /// Another instance has said so, with this payload.
    pub fn hear(&self, payload: &str) {
        if payload != NEWS {
            raise(&self.work);
        }
        raise(&self.news);
    }

    /// Resolves on wake-ups in this process.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }

    /// Resolves when there may be news of a study.
    pub fn subscribe_news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Resolves when other instances are to be told; then [`send`](Self::send) after [`COALESCE`].
    pub async fn due_elsewhere(&self) {
        self.elsewhere.due.notified().await;
    }

    /// Sends what is due to every instance.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn send(&self, conn: &mut AsyncPgConnection) -> Result<(), StoreError> {
        let is_work = self.elsewhere.is_work.swap(false, Ordering::AcqRel);
        statement("SELECT pg_notify($1, $2)")
            .bind::<diesel::sql_types::Text, _>(CHANNEL)
            .bind::<diesel::sql_types::Text, _>(if is_work { "" } else { NEWS })
            .execute(conn)
            .await?;
        Ok(())
    }
}

fn raise(count: &watch::Sender<u64>) {
    count.send_modify(|count| *count = count.wrapping_add(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_no_work_and_work_is_news() {
        let waker = Waker::default();
        let (mut work, mut news) = (waker.subscribe(), waker.subscribe_news());
        let mut heard = |by: &dyn Fn()| {
            work.mark_unchanged();
            news.mark_unchanged();
            by();
            (
                work.has_changed().expect("open"),
                news.has_changed().expect("open"),
            )
        };
        assert_eq!(heard(&|| waker.tell()), (false, true));
        assert_eq!(heard(&|| waker.wake()), (true, true));
        assert_eq!(heard(&|| waker.hear(NEWS)), (false, true));
        assert_eq!(heard(&|| waker.hear("")), (true, true));
    }
}

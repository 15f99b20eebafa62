//! Following studies: any number of listeners in this process, told what was committed by whoever committed it.
//!
//! Wake-ups come over the one connection that listens ([`crate::store::wake`]). After them one loop reads what is new of
//! all followed studies in one statement, and every listener of a study gets the same piece of it from memory. A wake-up
//! that was lost is made up for by a slow tick.
//!
//! Nothing is missed or doubled: events are numbered without a gap, and become visible in their order. A listener first
//! joins, then reads the log from where it was, then takes what comes after that; the numbers say what it has had already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};

use super::Caller;
use crate::store::StoreError;
use crate::store::connection::Database;
use crate::store::events::{self, Event, News};
use crate::store::studies::{self, StudyRow};
use crate::store::wake::Waker;
use crate::study::StudyId;

/// Time between two looks: changes within it are told together.
const BETWEEN_LOOKS: Duration = Duration::from_millis(40);

/// Events of a study that are read at once.
const PAGE: i64 = 200;

/// Pieces of news that are kept for listeners of a study that lag behind.
const KEPT: usize = 64;

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The project has no such study.
    #[error("there is no such study")]
    NotFound,
    /// The study has no event of this number yet.
    #[error("the study's last event is {newest}, so it has none that comes after {after}")]
    NotYet {
        /// The number that was named.
        after: i64,
        /// The number of the last event.
        newest: i64,
    },
    /// As many listen as may.
    #[error("{limit} requests wait for news of studies, as many as may")]
    TooMany {
        /// As many as may.
        limit: usize,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The studies that somebody follows. Clones share them.
#[derive(Debug, Clone)]
pub struct Followers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    database: Database,
    feeds: Mutex<HashMap<StudyId, Feed>>,
    places: Arc<Semaphore>,
    limit: usize,
}

/// What the listeners of one study share.
#[derive(Debug)]
struct Feed {
    sender: broadcast::Sender<Told>,
    /// Everything up to this number was told.
    upto: i64,
    /// What the study looked like then.
    seen: Option<(DateTime<Utc>, bool)>,
}

#[derive(Debug, Clone)]
enum Told {
    News(Arc<News>),
    Deleted,
}

impl Followers {
    /// Nobody yet, and `limit` at most.
    pub fn new(database: Database, limit: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                database,
                feeds: Mutex::default(),
                places: Arc::new(Semaphore::new(limit)),
                limit,
            }),
        }
    }

    /// Follows a study of the caller's project: from the event after `after`, or from the oldest that is kept. None when the
    /// study has ended and its last event is `after`: there is nothing to wait for.
    ///
    /// # Errors
    /// See [`FollowError`].
    pub async fn follow(
        &self,
        caller: &Caller,
        study: StudyId,
        after: Option<i64>,
    ) -> Result<Option<Following>, FollowError> {
        let row = {
            let mut conn = self.shared.database.connection().await?;
            studies::find(&mut conn, &caller.project, study)
                .await?
                .ok_or(FollowError::NotFound)?
        };
        let newest = row.next_event_seq - 1;
        if let Some(after) = after
            && after > newest
        {
            return Err(FollowError::NotYet { after, newest });
        }
        if row.study_state().has_ended() && after == Some(newest) {
            return Ok(None);
        }
        Ok(Some(Following {
            watch: self.watch(&row)?,
            study,
            after,
            is_live: false,
            is_over: false,
        }))
    }

    /// Hears that a study has changed. The row must have been read before, and what it tells of is to be read after: then
    /// no change is between them.
    ///
    /// # Errors
    /// [`FollowError::TooMany`].
    pub fn watch(&self, row: &StudyRow) -> Result<Watch, FollowError> {
        let place = Arc::clone(&self.shared.places)
            .try_acquire_owned()
            .map_err(|_| FollowError::TooMany {
                limit: self.shared.limit,
            })?;
        let receiver = self
            .shared
            .lock()
            .entry(row.study_id())
            .or_insert_with(|| Feed {
                sender: broadcast::Sender::new(KEPT),
                upto: row.next_event_seq - 1,
                seen: None,
            })
            .sender
            .subscribe();
        Ok(Watch {
            receiver,
            database: self.shared.database.clone(),
            _place: place,
        })
    }

    /// Tells listeners what is new, on wake-ups and on a slow tick, until told to stop. `count` hears of every reading.
    pub async fn run(
        self,
        waker: Waker,
        tick: Duration,
        count: impl Fn() + Send + Sync,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut wake = waker.subscribe_news();
        loop {
            wake.mark_unchanged();
            match self.shared.look(&count).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "the news of studies could not be read; trying again");
                }
            }
            tokio::select! {
                _ = wake.changed() => {}
                () = tokio::time::sleep(tick) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<StudyId, Feed>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is new of every study that somebody follows, and tells it. True when there is more.
    async fn look(&self, count: impl Fn()) -> Result<bool, StoreError> {
        let asked: Vec<(StudyId, i64)> = {
            let mut feeds = self.lock();
            feeds.retain(|_, feed| feed.sender.receiver_count() > 0);
            feeds
                .iter()
                .map(|(study, feed)| (*study, feed.upto))
                .collect()
        };
        if asked.is_empty() {
            return Ok(false);
        }
        count();
        let mut conn = self.database.connection().await?;
        let mut all = events::news(&mut conn, &asked, PAGE).await?;
        drop(conn);
        let mut is_more = false;
        let mut feeds = self.lock();
        for (study, after) in asked {
            // One that was left and joined again meanwhile is for the next look.
            let Some(feed) = feeds.get_mut(&study).filter(|feed| feed.upto == after) else {
                continue;
            };
            let Some(news) = all.remove(&study) else {
                // Whoever is not there any more does not hear it.
                let _ = feed.sender.send(Told::Deleted);
                feeds.remove(&study);
                continue;
            };
            let seen = Some((news.updated_at, news.state.has_ended()));
            if news.events.is_empty() && feed.seen == seen {
                continue;
            }
            feed.upto = news.upto(after);
            feed.seen = seen;
            is_more |= feed.upto < news.newest && !news.events.is_empty();
            let _ = feed.sender.send(Told::News(Arc::new(news)));
        }
        Ok(is_more)
    }
}

/// Hears that a study has changed.
#[derive(Debug)]
pub struct Watch {
    receiver: broadcast::Receiver<Told>,
    database: Database,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// Resolves when the study has changed, or is gone. Nothing is lost if the call is given up before it ends.
    pub async fn changed(&mut self) {
        // To have missed something is to have heard of a change.
        let _ = self.receiver.recv().await;
    }
}

/// What a listener is told.
#[derive(Debug)]
pub enum Heard {
    /// The next events; never none.
    Events(Vec<Event>),
    /// Events up to this number, and after the last that was told, are not kept any more.
    Forgotten {
        /// The number of the last of them.
        upto: i64,
    },
    /// The study has ended, and its last event was told before.
    Ended,
    /// The study was deleted.
    Deleted,
    /// The listener takes events more slowly than they come: it is to come back and read on.
    TooSlow,
}

/// Follows one study.
#[derive(Debug)]
pub struct Following {
    watch: Watch,
    study: StudyId,
    /// Everything up to this number was told; none before the first.
    after: Option<i64>,
    /// Whether the log was read to its end since this listener joined.
    is_live: bool,
    /// Whether the last event of a study that has ended was told.
    is_over: bool,
}

impl Following {
    /// What comes next. Nothing is lost if the call is given up before it ends.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn next(&mut self) -> Result<Heard, StoreError> {
        while !self.is_over {
            let heard = if self.is_live {
                match self.watch.receiver.recv().await {
                    Ok(Told::News(news)) => self.take(&news),
                    Ok(Told::Deleted) | Err(RecvError::Closed) => Some(Heard::Deleted),
                    Err(RecvError::Lagged(_)) => Some(Heard::TooSlow),
                }
            } else {
                self.catch_up().await?
            };
            if let Some(heard) = heard {
                return Ok(heard);
            }
        }
        Ok(Heard::Ended)
    }

    /// Reads the next page of the log.
    async fn catch_up(&mut self) -> Result<Option<Heard>, StoreError> {
        let asked = [(self.study, self.after.unwrap_or(0))];
        let mut conn = self.watch.database.connection().await?;
        let mut news = events::news(&mut conn, &asked, PAGE).await?;
        drop(conn);
        let Some(news) = news.remove(&self.study) else {
            return Ok(Some(Heard::Deleted));
        };
        if self.after.is_none() {
            // Whoever starts has missed nothing of what is not kept any more.
            self.after = news.events.first().map(|first| first.seq - 1);
        }
        let heard = self.take(&news);
        self.is_live = self.after.unwrap_or(0) >= news.newest;
        Ok(heard)
    }

    /// What of some news is new to this listener.
    fn take(&mut self, news: &News) -> Option<Heard> {
        let after = self.after.unwrap_or(0);
        let events: Vec<Event> = news
            .events
            .iter()
            .filter(|event| event.seq > after)
            .cloned()
            .collect();
        let forgotten = match events.first() {
            Some(first) => first.seq - 1,
            // Nothing of the log is kept, or this news is older than what is known.
            None if news.events.is_empty() => news.newest,
            None => after,
        };
        let heard = if forgotten > after {
            // What comes after it is read from the log.
            self.is_live = false;
            self.after = Some(forgotten);
            Some(Heard::Forgotten { upto: forgotten })
        } else if let Some(last) = events.last() {
            self.after = Some(last.seq);
            Some(Heard::Events(events))
        } else {
            None
        };
        self.is_over = news.state.has_ended() && self.after.unwrap_or(0) == news.newest;
        heard
    }
}

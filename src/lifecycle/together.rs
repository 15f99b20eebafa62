//! Studies that are created at the same time are stored together.
//!
//! Most of what it costs to store a study is not the study: a statement, a transaction, a commit that waits for the disk. So
//! while some are being stored, those that come gather, and all of them are stored by the next statement. One that comes
//! alone waits for nobody.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::advance::{self, Creation};
use crate::store::StoreError;
use crate::store::connection::Database;
use crate::store::probes::LinkedWave;
use crate::store::studies::StudyRow;

/// Statements at once: what one waits for, a probe that is just being ended, does not hold up all.
const AT_ONCE: usize = 2;
/// Probes of the studies that are stored by one statement, at most. (A study that has more is stored otherwise.)
const PROBES: usize = 64;
/// The studies themselves.
const STUDIES: usize = 32;
/// Studies that wait, at most. Where something holds up all, the others are stored each by itself and wait for a connection
/// no longer than anybody.
const WAITING: usize = 4 * STUDIES;

/// What came of it: none where one of the study's probes is answered already, or too many wait; nothing is stored of it then.
type Begun = Option<(StudyRow, LinkedWave)>;

/// Where they gather.
#[derive(Debug, Clone)]
pub struct Together {
    gathered: Arc<Mutex<Gathered>>,
    /// Where they are stored.
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Gathered {
    waiting: VecDeque<Waiting>,
    /// Tasks that store what is waiting.
    storing: usize,
}

#[derive(Debug)]
struct Waiting {
    creation: Arc<Creation>,
    tell: oneshot::Sender<Result<Begun, StoreError>>,
}

impl Together {
    /// They are stored on a runtime that outlives those of the threads that serve requests, which stop one by one.
    pub fn on(runtime: Handle) -> Self {
        Self {
            gathered: Arc::default(),
            runtime,
        }
    }

    /// Stores a study whose first wave is likely to be unknown, see [`advance::begin_unknown`].
    ///
    /// # Errors
    /// Those of the database; nothing is stored of it then.
    pub async fn begin(
        &self,
        database: &Database,
        creation: Arc<Creation>,
    ) -> Result<Begun, StoreError> {
        let (tell, told) = oneshot::channel();
        let is_due = {
            let mut gathered = self.gathered();
            if gathered.waiting.len() >= WAITING {
                return Ok(None);
            }
            gathered.waiting.push_back(Waiting { creation, tell });
            let is_due = gathered.storing < AT_ONCE;
            gathered.storing += usize::from(is_due);
            is_due
        };
        if is_due {
            // Not by whoever asks: a client that goes away would take the others' studies along.
            let database = database.clone();
            let turn = Turn {
                of: self.clone(),
                is_held: true,
            };
            self.runtime
                .spawn(async move { turn.store_all(&database).await });
        }
        told.await.unwrap_or_else(|_| {
            let why = "the service is shutting down; the study may have been created";
            Err(StoreError::Unavailable(why.into()))
        })
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to store what is waiting, until it is given back or dropped.
struct Turn {
    of: Together,
    is_held: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_held {
            let mut gathered = self.of.gathered();
            gathered.storing -= 1;
            if gathered.storing == 0 {
                // The runtime stops: nobody would come for them.
                gathered.waiting.clear();
            }
        }
    }
}

impl Turn {
    async fn store_all(mut self, database: &Database) {
        while let Some(batch) = self.next() {
            store(database, batch).await;
        }
    }

    /// What is to be stored next. Where there is nothing, the turn is given back before anybody can come and find it taken.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut gathered = self.of.gathered();
        let batch = gathered.next();
        if batch.is_empty() {
            gathered.storing -= 1;
            drop(gathered);
            self.is_held = false;
            return None;
        }
        Some(batch)
    }
}

impl Gathered {
    /// Those that are stored next. Two that ask for the same probe go one after the other.
    fn next(&mut self) -> Vec<Waiting> {
        let mut batch: Vec<Waiting> = Vec::new();
        let (mut probes, mut asked) = (0, HashSet::new());
        while let Some(first) = self.waiting.front() {
            let wave = first.creation.wave();
            probes += wave.len();
            let is_new = wave.iter().all(|probe| !asked.contains(&probe.identity));
            if !batch.is_empty() && (!is_new || probes > PROBES || batch.len() == STUDIES) {
                break;
            }
            asked.extend(wave.iter().map(|probe| probe.identity.clone()));
            batch.extend(self.waiting.pop_front());
        }
        batch
    }
}

/// Stores them and tells each what came of it.
async fn store(database: &Database, batch: Vec<Waiting>) {
    let creations = batch.iter().map(|waiting| Arc::clone(&waiting.creation));
    match begin(database, &creations.collect::<Vec<_>>()).await {
        Ok(begun) => {
            for (waiting, begun) in batch.into_iter().zip(begun) {
                // Whoever asked may have gone.
                let _ = waiting.tell.send(Ok(begun));
            }
        }
        // What is wrong with one is not to be the others' fault.
        Err(StoreError::Other(error)) if batch.len() > 1 => {
            tracing::debug!(%error, studies = batch.len(), "studies could not be stored together; each is stored by itself");
            for waiting in batch {
                let alone = begin(database, std::slice::from_ref(&waiting.creation)).await;
                let alone = alone.map(|begun| begun.into_iter().flatten().next());
                let _ = waiting.tell.send(alone);
            }
        }
        Err(StoreError::Unavailable(why)) => {
            for waiting in batch {
                let _ = waiting.tell.send(Err(StoreError::Unavailable(why.clone())));
            }
        }
        Err(error) => {
            let alone = batch.into_iter().next();
            let _ = alone.map(|waiting| waiting.tell.send(Err(error)));
        }
    }
}

async fn begin(database: &Database, creations: &[Arc<Creation>]) -> Result<Vec<Begun>, StoreError> {
    let mut conn = database.connection().await?;
    advance::begin_unknown(&mut conn, creations).await
}

//! From the bytes of an upload to a data set: streamed to a file, inspected in a child with limits of its own,
//! kept under the hash of its stored form, and only then known to the database. Whatever ends it before
//! leaves nothing behind.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use chrono::Utc;
use futures::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::datasets::content::{Content, Header};
use crate::datasets::inspect::Inspection;
use crate::library::{Library, LibraryError};
use crate::pool::child::{self, ChildConfig, Spawner};
use crate::probe::{InfeasibleReason, Outcome};
use crate::settings::DatasetSettings;
use crate::store::connection::Database;
use crate::store::datasets::{self, DatasetRow};
use crate::store::kept_answers::{self, Answer, Answered, IdempotencyKey, KeyError};
use crate::store::{self, Connection, StoreError};
use crate::study::upload::{UploadLimits, UploadOptions};
use crate::study::{Bytes, DatasetId};

/// What an upload is to become.
#[derive(Debug, Clone)]
pub struct NewDataset {
    /// Whose it is.
    pub project: String,
    /// Who uploads it.
    pub created_by: String,
    /// A name for people.
    pub name: String,
    /// How it is to be read.
    pub options: UploadOptions,
    /// What the client says is the SHA-256 of the file.
    pub announced_sha256: Option<String>,
}

/// Why an upload became no data set.
#[derive(Debug, Error)]
pub enum UploadError {
    /// More bytes than allowed.
    #[error("the file is larger than {limit} (datasets.max_upload_bytes)")]
    TooLarge {
        /// The limit.
        limit: Bytes,
    },
    /// The file is no data set: what is wrong, where, and what would mend it.
    #[error("{0}")]
    Refused(String),
    /// The client went away or its connection broke.
    #[error("the upload broke off: {0}")]
    BrokenOff(String),
    /// As many uploads as may be under way.
    #[error("{0} uploads are under way, as many as may be; try again in a moment")]
    Busy(usize),
    /// The place where contents are kept.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The request's `Idempotency-Key`.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<std::io::Error> for UploadError {
    fn from(error: std::io::Error) -> Self {
        Self::Library(error.into())
    }
}

/// What became of an upload.
#[derive(Debug, Clone)]
pub struct Uploaded {
    /// The data set.
    pub dataset: DatasetRow,
    /// Whether this upload made it; else the same file had been uploaded before.
    pub is_new: bool,
}

/// Takes uploads. Clones share it.
#[derive(Debug, Clone)]
pub struct Uploads {
    database: Database,
    contents: Library,
    spawner: Arc<Spawner>,
    child: Arc<ChildConfig>,
    settings: Arc<DatasetSettings>,
    permits: Arc<Semaphore>,
}

impl Uploads {
    /// Takes uploads into a library.
    pub fn new(
        database: Database,
        contents: Library,
        spawner: Arc<Spawner>,
        child: Arc<ChildConfig>,
        settings: DatasetSettings,
    ) -> Self {
        Self {
            database,
            contents,
            spawner,
            child,
            permits: Arc::new(Semaphore::new(settings.max_uploads)),
            settings: Arc::new(settings),
        }
    }

    /// Bytes of an upload at most.
    pub fn max_bytes(&self) -> u64 {
        self.settings.max_upload_bytes
    }

    /// The contents of data sets.
    pub fn contents(&self) -> &Library {
        &self.contents
    }

    /// The answer to an upload of a file that is known, if the client says which file it is: then nobody needs its bytes.
    ///
    /// # Errors
    /// Those of the database and the key.
    pub async fn known(
        &self,
        new: &NewDataset,
        key: Option<&IdempotencyKey>,
        answer: impl Fn(Uploaded) -> Result<Answer, StoreError>,
    ) -> Result<Option<Answered>, UploadError> {
        let Some(sha256) = &new.announced_sha256 else {
            return Ok(None);
        };
        let (_, options_hash) = hash_of(&new.options)?;
        self.answered_before(new, sha256, &options_hash, key, answer)
            .await
    }

    /// Takes an upload from its first byte to the database, and says what `answer` makes of it. With a key the answer is
    /// kept in the same transaction.
    ///
    /// # Errors
    /// See [`UploadError`]; nothing is kept then.
    pub async fn take<B: AsRef<[u8]>, E: fmt::Display>(
        &self,
        new: NewDataset,
        bytes: impl Stream<Item = Result<B, E>>,
        key: Option<&IdempotencyKey>,
        answer: impl Fn(Uploaded) -> Result<Answer, StoreError>,
    ) -> Result<Answered, UploadError> {
        let _permit = self
            .permits
            .try_acquire()
            .map_err(|_| UploadError::Busy(self.settings.max_uploads))?;
        let source = self.contents.place();
        let (source_sha256, source_bytes) = self.receive(source.path(), bytes).await?;
        if let Some(announced) = &new.announced_sha256
            && *announced != source_sha256
        {
            return Err(UploadError::Refused(format!(
                "Repr-Digest says {announced}, but the file that came has the SHA-256 {source_sha256}: it was changed on the way"
            )));
        }
        let (options, options_hash) = hash_of(&new.options)?;
        let before = self
            .answered_before(&new, &source_sha256, &options_hash, key, &answer)
            .await?;
        if let Some(answered) = before {
            return Ok(answered);
        }
        let stored = self.contents.place();
        let header = self
            .inspect(&new.options, source.path(), stored.path())
            .await?;
        drop(source);
        let path = stored.path().to_owned();
        let (content, content_bytes) = tokio::task::spawn_blocking(move || hash_file(&path))
            .await
            .map_err(std::io::Error::other)??;
        self.contents.keep(&content, stored.path()).await?;
        let request = request_hash(&new, &source_sha256, &options_hash);
        let unreadable = |error| StoreError::unreadable("data set", error);
        let row = DatasetRow {
            id: DatasetId(Uuid::now_v7()).0,
            project: new.project,
            created_by: new.created_by,
            name: new.name,
            format: new.options.format.as_str().to_owned(),
            source_sha256,
            source_bytes: signed(source_bytes),
            options,
            options_hash,
            content,
            content_bytes: signed(content_bytes),
            contents: serde_json::to_value(header.contents).map_err(unreadable)?,
            description: serde_json::to_value(&header.description).map_err(unreadable)?,
            created_at: Utc::now(),
        };
        let mut conn = self.database.connection().await?;
        store::begin(&mut conn).await?;
        let work = once(&mut conn, key, &request, answer, async |conn| {
            let (dataset, is_new) = datasets::insert(conn, &row).await?;
            Ok(Uploaded { dataset, is_new })
        })
        .await;
        let answered = store::finish(&mut conn, work).await?;
        if !answered.is_replayed {
            tracing::info!(dataset = %row.id, name = row.name, bytes = source_bytes, "data set uploaded");
        }
        Ok(answered)
    }

    /// The answer to a request that was answered before, or to a file that was uploaded before.
    async fn answered_before(
        &self,
        new: &NewDataset,
        source_sha256: &str,
        options_hash: &str,
        key: Option<&IdempotencyKey>,
        answer: impl Fn(Uploaded) -> Result<Answer, StoreError>,
    ) -> Result<Option<Answered>, UploadError> {
        let request = request_hash(new, source_sha256, options_hash);
        let mut conn = self.database.connection().await?;
        if let Some(key) = key
            && let Some(answer) = kept_answers::find(&mut conn, key, &request).await?
        {
            return Ok(Some(Answered {
                answer,
                is_replayed: true,
            }));
        }
        let before =
            datasets::find_source(&mut conn, &new.project, source_sha256, options_hash).await?;
        let Some(dataset) = before else {
            return Ok(None);
        };
        let known = Uploaded {
            dataset,
            is_new: false,
        };
        store::begin(&mut conn).await?;
        let work = once(&mut conn, key, &request, answer, async |_| Ok(known)).await;
        Ok(Some(store::finish(&mut conn, work).await?))
    }

    /// Writes what comes to a file, and says its hash and its size.
    async fn receive<B: AsRef<[u8]>, E: fmt::Display>(
        &self,
        path: &Path,
        bytes: impl Stream<Item = Result<B, E>>,
    ) -> Result<(String, u64), UploadError> {
        let limit = self.settings.max_upload_bytes;
        let mut file = tokio::fs::File::create(path).await?;
        let mut digest = Sha256::new();
        let mut received = 0_u64;
        tokio::pin!(bytes);
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|error| UploadError::BrokenOff(error.to_string()))?;
            let piece = piece.as_ref();
            received += piece.len() as u64;
            if received > limit {
                return Err(UploadError::TooLarge {
                    limit: Bytes(limit),
                });
            }
            digest.update(piece);
            file.write_all(piece).await?;
        }
        file.flush().await?;
        Ok((hex::encode(digest.finalize()), received))
    }

    /// Has a child read the file and write its stored form.
    async fn inspect(
        &self,
        options: &UploadOptions,
        source: &Path,
        stored: &Path,
    ) -> Result<Header, UploadError> {
        let settings = &self.settings;
        let inspection = Inspection {
            options: options.clone(),
            limits: UploadLimits {
                max_content_bytes: settings.max_content_bytes,
                max_columns: settings.max_columns,
                max_classes: settings.max_classes,
            },
        };
        let json = serde_json::to_vec(&inspection).map_err(std::io::Error::from)?;
        let input = std::fs::File::open(source)?;
        let output = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(stored)?;
        let files = [input.into(), output.into()];
        let report = child::inspect(
            &self.spawner,
            &self.child,
            &json,
            files,
            Bytes(settings.inspect_memory_bytes),
            settings.inspect_secs,
        )
        .await;
        match report.outcome {
            Outcome::Succeeded => {}
            Outcome::Infeasible {
                reason: InfeasibleReason::DataRefused,
                detail,
            } => return Err(UploadError::Refused(detail)),
            Outcome::Infeasible {
                reason: InfeasibleReason::OutOfMemory,
                ..
            } => {
                return Err(UploadError::Refused(format!(
                    "reading the file takes more memory than {} (datasets.inspect_memory_bytes)",
                    Bytes(settings.inspect_memory_bytes)
                )));
            }
            Outcome::Infeasible {
                reason: InfeasibleReason::TooSlow,
                ..
            } => {
                return Err(UploadError::Refused(format!(
                    "reading the file takes longer than {} s (datasets.inspect_secs)",
                    settings.inspect_secs
                )));
            }
            other => {
                tracing::warn!(outcome = ?other, stderr = report.stderr_tail, "an inspection ended abnormally");
                return Err(UploadError::Refused(
                    "the file could not be read: its inspection ended abnormally, so it is damaged or not what its format says".into(),
                ));
            }
        }
        let content = Content::open(&std::fs::File::open(stored)?)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        let header = content.header().clone();
        if holds_nul(&serde_json::to_value(&header).unwrap_or_default()) {
            return Err(UploadError::Refused(
                "a column, a class or a word of the vocabulary has a NUL character in its name; take it out".into(),
            ));
        }
        Ok(header)
    }

    /// Deletes a data set that no queued or running study needs, and its content if nobody else has it.
    ///
    /// # Errors
    /// Those of the database and the library.
    pub async fn delete(
        &self,
        project: &str,
        id: DatasetId,
    ) -> Result<datasets::Deleted, UploadError> {
        let mut conn = self.database.connection().await?;
        store::begin(&mut conn).await?;
        let work = datasets::delete(&mut conn, project, id).await;
        let deleted = store::finish(&mut conn, work).await?;
        if let datasets::Deleted::WithContent(content) = &deleted {
            self.contents.remove(content).await?;
        }
        Ok(deleted)
    }
}

/// In the caller's transaction: the first answer under the key, or else the work is done and its answer kept.
async fn once(
    conn: &mut Connection,
    key: Option<&IdempotencyKey>,
    request: &str,
    answer: impl Fn(Uploaded) -> Result<Answer, StoreError>,
    work: impl AsyncFnOnce(&mut Connection) -> Result<Uploaded, StoreError>,
) -> Result<Answered, UploadError> {
    if let Some(key) = key
        && let Some(answer) = kept_answers::claim(conn, key, request).await?
    {
        return Ok(Answered {
            answer,
            is_replayed: true,
        });
    }
    let answer = answer(work(conn).await?)?;
    if let Some(key) = key {
        kept_answers::keep(conn, key, &answer).await?;
    }
    Ok(Answered {
        answer,
        is_replayed: false,
    })
}

/// Tells whether two uploads ask for the same: the same bytes, to be read the same way and to have the same name.
fn request_hash(new: &NewDataset, source_sha256: &str, options_hash: &str) -> String {
    let name = &new.name;
    hex::encode(Sha256::digest(format!(
        "{source_sha256} {options_hash} {name}"
    )))
}

/// Options as stored, and their hash.
fn hash_of(options: &UploadOptions) -> Result<(serde_json::Value, String), UploadError> {
    let value = serde_json::to_value(options).map_err(std::io::Error::from)?;
    let canonical = serde_json_canonicalizer::to_vec(&value).map_err(std::io::Error::from)?;
    Ok((value, hex::encode(Sha256::digest(canonical))))
}

fn hash_file(path: &Path) -> std::io::Result<(String, u64)> {
    let mut digest = Sha256::new();
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            return Ok((hex::encode(digest.finalize()), bytes));
        }
        bytes += read as u64;
        digest.update(&buffer[..read]);
    }
}

/// Sizes of files fit the database's integers.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
/// Whether a text of it cannot be stored: Postgres has no NUL in its texts.
fn holds_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(items) => items.iter().any(holds_nul),
        serde_json::Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains('\0') || holds_nul(value)),
        _ => false,
    }
}

//! Where the contents of uploaded data sets are kept: files named by the SHA-256 of what is in them, in a
//! folder or in an object store.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uuid::Uuid;

/// Written to the store at a time.
const CHUNK_BYTES: usize = 8 << 20;

/// Why a content cannot be had or kept.
#[derive(Debug, Error)]
pub enum LibraryError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The object store.
    #[error("the store of data sets: {0}")]
    Store(#[from] object_store::Error),
    /// The setting names no store.
    #[error("datasets.url: {0}")]
    Url(String),
}

/// The contents of data sets. Clones share it.
#[derive(Debug, Clone)]
pub struct Library {
    store: Arc<dyn ObjectStore>,
    /// Under which the store keeps them.
    prefix: Key,
    /// The folder of the store, when it is one on this machine: its files are opened where they are.
    folder: Option<PathBuf>,
    /// Where files are put together, and where those of a distant store are kept for use.
    workplace: PathBuf,
}

impl Library {
    /// Opens the store at `url` (`s3://bucket/prefix`, `gs://bucket/prefix`), else a folder of `data_dir`.
    ///
    /// # Errors
    /// When the folder cannot be made or the URL names no store.
    pub fn open_at(url: Option<&str>, data_dir: &Path) -> Result<Self, LibraryError> {
        let base = data_dir.join("datasets");
        let workplace = base.join("incoming");
        std::fs::create_dir_all(&workplace)?;
        let Some(url) = url else {
            let folder = base.join("content");
            std::fs::create_dir_all(&folder)?;
            return Ok(Self {
                store: Arc::new(
                    object_store::local::LocalFileSystem::new_with_prefix(&folder)?
                        .with_automatic_cleanup(false),
                ),
                prefix: Key::default(),
                folder: Some(folder),
                workplace,
            });
        };
        let parsed = url::Url::parse(url).map_err(|error| LibraryError::Url(error.to_string()))?;
        if !matches!(parsed.scheme(), "s3" | "gs") {
            return Err(LibraryError::Url(
                "must be s3://bucket/prefix or gs://bucket/prefix; leave it out for a local folder"
                    .into(),
            ));
        }
        // Credentials come from the environment, as the providers' own tools read them.
        let options = std::env::vars().filter_map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            (name.starts_with("aws_") || name.starts_with("google_")).then_some((name, value))
        });
        // The HTTP client takes the provider of the process; one that is there already is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (store, prefix) = object_store::parse_url_opts(&parsed, options)?;
        let cache = base.join("cache");
        std::fs::create_dir_all(&cache)?;
        Ok(Self {
            store: Arc::from(store),
            prefix,
            folder: None,
            workplace,
        })
    }

    fn key(&self, content: &str) -> Key {
        self.prefix.clone().join(content)
    }

    fn cached(&self, content: &str) -> PathBuf {
        self.workplace.with_file_name("cache").join(content)
    }

    /// A place for a new file, which is removed when the place is dropped.
    pub fn place(&self) -> Place {
        Place {
            path: self.workplace.join(Uuid::now_v7().to_string()),
        }
    }

    /// Keeps a file under its hash.
    ///
    /// # Errors
    /// When the store does not take it; nothing half-stored stays then.
    pub async fn keep(&self, content: &str, file: &Path) -> Result<(), LibraryError> {
        let key = self.key(content);
        if self.store.head(&key).await.is_ok() {
            return Ok(());
        }
        let mut reader = tokio::fs::File::open(file).await?;
        let upload = self.store.put_multipart(&key).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, CHUNK_BYTES);
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = reader.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            writer.wait_for_capacity(1).await?;
            writer.write(&buffer[..read]);
        }
        writer.finish().await?;
        Ok(())
    }

    /// Opens a content for reading, fetched to this machine before if need be.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn open(&self, content: &str) -> Result<File, LibraryError> {
        if let Some(folder) = &self.folder {
            return Ok(File::open(folder.join(content))?);
        }
        let cached = self.cached(content);
        if let Ok(file) = File::open(&cached) {
            return Ok(file);
        }
        let place = self.place();
        let mut stream = self.store.get(&self.key(content)).await?.into_stream();
        let mut file = tokio::fs::File::create(place.path()).await?;
        while let Some(piece) = stream.next().await {
            file.write_all(&piece?).await?;
        }
        file.sync_all().await?;
        std::fs::rename(place.path(), &cached)?;
        Ok(File::open(&cached)?)
    }

    /// Removes a content; one that is not there is no error.
    ///
    /// # Errors
    /// When the store does not do it.
    pub async fn remove(&self, content: &str) -> Result<(), LibraryError> {
        let _ = std::fs::remove_file(self.cached(content));
        match self.store.delete(&self.key(content)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what a service that was killed has left behind: files that were being put together, and
    /// contents in the folder of this machine that no data set `is_known` to have, if nobody has touched
    /// them for `older_than`. What is in a distant store is left alone: others may use it.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn tidy(&self, older_than: Duration, is_known: impl Fn(&str) -> bool) -> io::Result<u64> {
        let mut removed = remove_old(&self.workplace, older_than, |_| false)?;
        if let Some(folder) = &self.folder {
            removed += remove_old(folder, older_than, is_known)?;
        }
        Ok(removed)
    }
}

fn remove_old(
    folder: &Path,
    older_than: Duration,
    is_known: impl Fn(&str) -> bool,
) -> io::Result<u64> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        let is_wanted = entry.file_name().to_str().is_some_and(&is_known);
        if age > older_than && !is_wanted && std::fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

/// A place for a file; the file is removed with it.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
}

impl Place {
    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Not there when it was never made or has been moved.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn what_is_kept_can_be_opened_until_it_is_removed_and_nothing_else_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let library = Library::open_at(None, folder.path()).expect("opens");
        let place = library.place();
        std::fs::write(place.path(), b"numbers").expect("writes");
        library.keep("abc", place.path()).await.expect("keeps");
        library
            .keep("abc", place.path())
            .await
            .expect("keeps it once");
        drop(place);
        let mut text = String::new();
        let mut file = library.open("abc").await.expect("opens");
        file.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "numbers");
        let left = std::fs::read_dir(folder.path().join("datasets/incoming")).expect("reads");
        assert_eq!(left.count(), 0);
        library.remove("abc").await.expect("removes");
        library.remove("abc").await.expect("is gone already");
        assert!(library.open("abc").await.is_err());
    }

    #[tokio::test]
    async fn what_a_killed_service_left_behind_is_removed_and_the_rest_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let library = Library::open_at(None, folder.path()).expect("opens");
        let place = library.place();
        std::fs::write(place.path(), b"numbers").expect("writes");
        library.keep("known", place.path()).await.expect("keeps");
        library.keep("orphan", place.path()).await.expect("keeps");
        std::mem::forget(place);
        let hour = Duration::from_secs(3600);
        assert_eq!(
            library.tidy(hour, |name| name == "known").expect("tidies"),
            0
        );
        assert_eq!(
            library
                .tidy(Duration::ZERO, |name| name == "known")
                .expect("tidies"),
            2
        );
        assert!(library.open("known").await.is_ok());
        assert!(library.open("orphan").await.is_err());
    }

    #[test]
    fn only_known_stores_are_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        for url in ["ftp://host/x", "not a url", "file:///etc"] {
            let error = Library::open_at(Some(url), folder.path()).expect_err("refused");
            assert!(error.to_string().starts_with("datasets.url"), "{error}");
        }
        Library::open_at(Some("s3://bucket/prefix"), folder.path()).expect("is not asked yet");
    }
}

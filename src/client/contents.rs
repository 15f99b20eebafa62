//! Contents of uploaded data sets, fetched from the service once and kept by their SHA-256, up to a cap: the
//! ones not used for longest go first. What is fetched is checked against its name while it comes; a transfer
//! that breaks off goes on where it was.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use reqwest::header::{IF_RANGE, RANGE};
use reqwest::{Method, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::Server;
use crate::pool::leases::LeaseError;
use crate::study::UploadedDataset;

/// Pause before a transfer that broke off goes on.
const RETRY: Duration = Duration::from_secs(1);

/// A transfer that brings nothing for this long has broken off.
const SILENCE: Duration = Duration::from_secs(30);

/// Longest transfer without a break: a day.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Names the project of a request.
const PROJECT_HEADER: &str = "trialhead-project";

/// Files being fetched begin so.
const INCOMING: &str = "incoming-";

/// What nobody has written to for this long was left by a worker that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Contents kept in a folder.
#[derive(Debug)]
pub struct Contents {
    folder: PathBuf,
    limit: u64,
    /// One transfer at a time: two probes of one data set come together.
    fetching: Mutex<()>,
}

impl Contents {
    /// Keeps contents in `folder`, at most `limit` bytes of them.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: PathBuf, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let contents = Self {
            folder,
            limit,
            fetching: Mutex::new(()),
        };
        for (path, _, used) in contents.files()? {
            let is_incoming = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(INCOMING));
            if is_incoming && used.elapsed().unwrap_or_default() > ABANDONED {
                let _ = fs::remove_file(path);
            }
        }
        Ok(contents)
    }

    /// Opens a content, fetched before if need be. Goes on trying while the service cannot be reached: whoever
    /// asks ends that when the lease does.
    pub(super) async fn open(
        &self,
        server: &Server,
        project: &str,
        dataset: &UploadedDataset,
    ) -> Result<File, LeaseError> {
        let content = &dataset.content;
        // It becomes the name of a file.
        if content.len() != 64 || !content.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(LeaseError::Failed(format!(
                "{content:?} is no SHA-256 of a content"
            )));
        }
        let path = self.folder.join(content);
        if let Some(file) = open_known(&path) {
            return Ok(file);
        }
        let _turn = self.fetching.lock().await;
        if let Some(file) = open_known(&path) {
            return Ok(file);
        }
        let incoming = Incoming {
            path: self.folder.join(format!("{INCOMING}{}", Uuid::now_v7())),
        };
        self.fetch(server, project, dataset, &incoming.path).await?;
        fs::rename(&incoming.path, &path).map_err(disk)?;
        File::open(&path).map_err(disk)
    }

    async fn fetch(
        &self,
        server: &Server,
        project: &str,
        dataset: &UploadedDataset,
        place: &Path,
    ) -> Result<(), LeaseError> {
        let mut transfer = Transfer {
            file: tokio::fs::File::create(place).await.map_err(disk)?,
            digest: Sha256::new(),
            received: 0,
            expected: None,
        };
        // What broke off after its last byte is whole.
        while transfer.expected != Some(transfer.received) {
            match self.receive(server, project, dataset, &mut transfer).await {
                Ok(()) => break,
                Err(error) if error.is_transient() => {
                    tracing::warn!(dataset = %dataset.id, received = transfer.received, %error, "fetching a data set broke off; going on");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
        let digest = hex::encode(transfer.digest.finalize());
        if digest != dataset.content {
            return Err(LeaseError::Failed(format!(
                "what the service gave has the SHA-256 {digest} instead of {}",
                dataset.content
            )));
        }
        transfer.file.sync_all().await.map_err(disk)
    }

    /// Receives from where the transfer is to the end.
    async fn receive(
        &self,
        server: &Server,
        project: &str,
        dataset: &UploadedDataset,
        transfer: &mut Transfer,
    ) -> Result<(), LeaseError> {
        let path = format!("v1/datasets/{}/content", dataset.id);
        let mut request = server
            .request(Method::GET, &path, LONGEST)?
            // A worker of every project says whose data set it asks for.
            .header(PROJECT_HEADER, project);
        if transfer.received > 0 {
            request = request
                .header(RANGE, format!("bytes={}-", transfer.received))
                .header(IF_RANGE, format!("\"{}\"", dataset.content));
        }
        let sent = tokio::time::timeout(SILENCE, server.send(request)).await;
        let mut response = sent.map_err(|_| silent(server))??;
        if transfer.received > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            transfer.start_again().await.map_err(disk)?;
        }
        let length = response.content_length();
        transfer.expected = length.map(|length| transfer.received + length);
        self.make_room(transfer.expected.unwrap_or(transfer.received))?;
        loop {
            let piece = tokio::time::timeout(SILENCE, response.chunk())
                .await
                .map_err(|_| silent(server))?
                .map_err(|error| server.unreachable(&error))?;
            let Some(piece) = piece else { return Ok(()) };
            if transfer.received + piece.len() as u64 > self.limit {
                return Err(too_large(transfer.received, self.limit));
            }
            transfer.digest.update(&piece);
            transfer.file.write_all(&piece).await.map_err(disk)?;
            transfer.received += piece.len() as u64;
        }
    }

    /// Removes what was not used for longest until `size` more bytes fit. A file that is in use stays with
    /// whoever has opened it.
    fn make_room(&self, size: u64) -> Result<(), LeaseError> {
        if size > self.limit {
            return Err(too_large(size, self.limit));
        }
        let mut files = self.files().map_err(disk)?;
        files.retain(|(path, _, _)| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| !name.starts_with(INCOMING))
        });
        files.sort_by_key(|(_, _, used)| *used);
        let mut kept: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (path, bytes, _) in files {
            if kept + size <= self.limit {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                kept -= bytes;
            }
        }
        Ok(())
    }

    /// Path, bytes and last use of every file.
    fn files(&self) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // One that another worker has just removed is none.
            if let Ok(metadata) = entry.metadata()
                && let Ok(used) = metadata.modified()
            {
                files.push((entry.path(), metadata.len(), used));
            }
        }
        Ok(files)
    }
}

/// A file that is put together; removed unless it was moved away.
struct Incoming {
    path: PathBuf,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

struct Transfer {
    file: tokio::fs::File,
    digest: Sha256,
    received: u64,
    /// How many bytes it comes to, once that was said.
    expected: Option<u64>,
}

impl Transfer {
    async fn start_again(&mut self) -> io::Result<()> {
        use tokio::io::AsyncSeekExt as _;
        self.file.set_len(0).await?;
        self.file.rewind().await?;
        self.digest = Sha256::new();
        self.received = 0;
        Ok(())
    }
}

/// Opens a content that is there, and notes its use.
fn open_known(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    // Best effort: the order in which contents go.
    let _ = file.set_modified(SystemTime::now());
    Some(file)
}

fn disk(error: io::Error) -> LeaseError {
    LeaseError::Failed(format!("the worker's folder of data sets: {error}"))
}

fn silent(server: &Server) -> LeaseError {
    LeaseError::Away(format!(
        "the service at {} says nothing any more",
        server.address()
    ))
}

fn too_large(size: u64, limit: u64) -> LeaseError {
    LeaseError::Failed(format!(
        "it has {size} bytes or more, and this worker keeps {limit} at most (work.cache_bytes)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let contents = Contents::new(folder.path().to_owned(), 100).expect("opens");
        for (age, name) in ["oldest", "middle", "newest"].into_iter().enumerate() {
            let path = folder.path().join(name);
            fs::write(&path, [0; 30]).expect("writes");
            let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + age as u64);
            let file = File::options().write(true).open(&path).expect("opens");
            file.set_modified(then).expect("sets");
        }
        assert!(open_known(&folder.path().join("oldest")).is_some(), "used");
        contents.make_room(10).expect("fits");
        assert_eq!(contents.files().expect("reads").len(), 3);
        contents.make_room(50).expect("fits");
        let mut left: Vec<String> = contents
            .files()
            .expect("reads")
            .iter()
            .filter_map(|(path, _, _)| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        left.sort();
        assert_eq!(left, ["oldest"]);
        assert!(contents.make_room(101).is_err());
    }
}

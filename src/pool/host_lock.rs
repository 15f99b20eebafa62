//! One `flock` per device, for all services and workers of a host.
//!
//! Leases in the database keep the workers of *one* service apart. Two services with two databases
//! on one host know nothing of each other, and two timing probes at once would both be wrong; so a
//! worker also holds a lock in the file system. The kernel releases it when its holder dies.
//!
//! The directory is shared between users, so it gets the permissions of `/tmp` and the care that
//! `/tmp` needs: no symbolic links followed, only regular files opened, and existing files opened
//! without `O_CREAT`, which `fs.protected_regular` refuses for somebody else's file. Nothing is ever
//! written into a lock file.
//!
//! A turnstile beside each lock keeps a stream of shared holders from starving an exclusive one:
//! who waits for the device holds the turnstile, and who comes later waits there.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use thiserror::Error;
use tokio::time::{Instant, sleep};

/// Where the locks are if no setting says otherwise. Not `$TMPDIR`: every user of the host must come
/// to the same place.
pub const DEFAULT_DIRECTORY: &str = "/tmp/trialhead-locks";

/// `flock` has no way to wait without a thread, so a waiter looks again, more and more seldom.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(100);

/// How long another process may take between creating a file and opening it up for all.
const CREATION_PATIENCE: Duration = Duration::from_secs(2);

/// Why a lock could not be tried.
#[derive(Debug, Error)]
pub enum HostLockError {
    /// The directory or a file in it cannot be used.
    #[error("cannot use {} for locks between the services of this host: {source}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else is where the directory or a lock should be.
    #[error("{} cannot hold locks between the services of this host: {problem}", path.display())]
    Unsafe {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Alone, or with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Nobody else.
    Exclusive,
    /// Others who share.
    Shared,
}

/// The lock directory of this host.
#[derive(Debug)]
pub struct HostLocks {
    path: PathBuf,
    directory: File,
}

/// A held lock; dropping it, or dying, releases it.
#[derive(Debug)]
pub struct HostLock {
    _file: File,
}

impl HostLocks {
    /// Opens the lock directory (default [`DEFAULT_DIRECTORY`]) and creates it where it is missing.
    ///
    /// # Errors
    /// When it cannot be created or opened, or is no directory that users can safely share.
    pub fn open(directory: Option<&Path>) -> Result<Self, HostLockError> {
        let path = directory.unwrap_or(Path::new(DEFAULT_DIRECTORY)).to_owned();
        let unusable = |source| HostLockError::Unusable {
            path: path.clone(),
            source,
        };
        let name = c_string(&path).map_err(unusable)?;
        // SAFETY: `name` is a C string.
        let created = unsafe { libc::mkdir(name.as_ptr(), 0o700) } == 0;
        if !created {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EEXIST) {
                return Err(unusable(error));
            }
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let started = std::time::Instant::now();
        let directory = loop {
            // SAFETY: `name` is a C string.
            match owned(unsafe { libc::open(name.as_ptr(), flags) }) {
                Ok(fd) => break File::from(fd),
                // Made a moment ago by another user who has yet to open it up.
                Err(error)
                    if error.raw_os_error() == Some(libc::EACCES)
                        && started.elapsed() < CREATION_PATIENCE =>
                {
                    std::thread::sleep(FIRST_LOOK);
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
                    return Err(HostLockError::Unsafe {
                        path,
                        problem: "it is not a directory",
                    });
                }
                Err(error) => return Err(unusable(error)),
            }
        };
        if created {
            chmod(&directory, 0o1777).map_err(unusable)?;
        }
        let mode = directory.metadata().map_err(unusable)?.mode();
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            return Err(HostLockError::Unsafe {
                path,
                problem: "others may write to it and it has no sticky bit, so they could replace a lock (chmod 1777 it)",
            });
        }
        Ok(Self { path, directory })
    }

    /// Takes the lock of `hardware` if it is free now and nobody waits for it.
    ///
    /// # Errors
    /// When the lock's file cannot be used.
    pub fn try_acquire(
        &self,
        hardware: &str,
        mode: LockMode,
    ) -> Result<Option<HostLock>, HostLockError> {
        let Some(_turnstile) = self.try_turnstile(hardware)? else {
            return Ok(None);
        };
        self.try_file(&lock_name(hardware), mode)
    }

    /// Waits for the lock of `hardware`, `None` when `timeout` passes first. Other tasks of the
    /// runtime go on meanwhile.
    ///
    /// # Errors
    /// When the lock's file cannot be used.
    pub async fn acquire(
        &self,
        hardware: &str,
        mode: LockMode,
        timeout: Duration,
    ) -> Result<Option<HostLock>, HostLockError> {
        let deadline = Instant::now() + timeout;
        let Some(_turnstile) = wait_until(deadline, || self.try_turnstile(hardware)).await? else {
            return Ok(None);
        };
        let name = lock_name(hardware);
        wait_until(deadline, || self.try_file(&name, mode)).await
    }

    /// The same for all of several, taken in one order whoever asks, so that no two wait for each other.
    ///
    /// # Errors
    /// When a lock's file cannot be used.
    pub async fn acquire_all(
        &self,
        hardware: impl Iterator<Item = &str>,
        mode: LockMode,
        timeout: Duration,
    ) -> Result<Option<Vec<HostLock>>, HostLockError> {
        let deadline = Instant::now() + timeout;
        let mut ids: Vec<&str> = hardware.collect();
        ids.sort_unstable();
        let mut locks = Vec::with_capacity(ids.len());
        for id in ids {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.acquire(id, mode, left).await? {
                Some(lock) => locks.push(lock),
                None => return Ok(None),
            }
        }
        Ok(Some(locks))
    }

    fn try_turnstile(&self, hardware: &str) -> Result<Option<HostLock>, HostLockError> {
        self.try_file(
            &format!("{}.turn", file_stem(hardware)),
            LockMode::Exclusive,
        )
    }

    fn try_file(&self, name: &str, mode: LockMode) -> Result<Option<HostLock>, HostLockError> {
        let path = self.path.join(name);
        let unusable = |source| HostLockError::Unusable {
            path: path.clone(),
            source,
        };
        loop {
            let file = self.open_file(name)?;
            let opened = file.metadata().map_err(unusable)?;
            if !opened.is_file() {
                return Err(HostLockError::Unsafe {
                    path,
                    problem: "it is not a regular file",
                });
            }
            let operation = libc::LOCK_NB
                | match mode {
                    LockMode::Exclusive => libc::LOCK_EX,
                    LockMode::Shared => libc::LOCK_SH,
                };
            // SAFETY: the descriptor is open as long as `file` lives.
            if unsafe { libc::flock(file.as_raw_fd(), operation) } != 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EWOULDBLOCK) => return Ok(None),
                    Some(libc::EINTR) => continue,
                    _ => return Err(unusable(error)),
                }
            }
            // Somebody may have removed the file since it was opened (what cleans /tmp, say): then the
            // next to come locks another file, and this lock keeps nobody out.
            match std::fs::symlink_metadata(&path) {
                Ok(current) if (current.dev(), current.ino()) == (opened.dev(), opened.ino()) => {
                    return Ok(Some(HostLock { _file: file }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unusable(error)),
            }
        }
    }

    /// Opens a lock's file, creating it where it is missing.
    fn open_file(&self, name: &str) -> Result<File, HostLockError> {
        let path = self.path.join(name);
        let unusable = |source| HostLockError::Unusable {
            path: path.clone(),
            source,
        };
        let c_name = c_string(Path::new(name)).map_err(unusable)?;
        let open = |flags: libc::c_int| {
            // SAFETY: the directory is open and `c_name` is a C string.
            owned(unsafe {
                libc::openat(
                    self.directory.as_raw_fd(),
                    c_name.as_ptr(),
                    flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK,
                    0o600,
                )
            })
        };
        let started = std::time::Instant::now();
        loop {
            match open(libc::O_RDONLY) {
                Ok(fd) => return Ok(File::from(fd)),
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => {}
                    Some(libc::ELOOP) => {
                        return Err(HostLockError::Unsafe {
                            path,
                            problem: "it is a symbolic link",
                        });
                    }
                    Some(libc::EACCES) if started.elapsed() < CREATION_PATIENCE => {
                        std::thread::sleep(FIRST_LOOK);
                        continue;
                    }
                    _ => return Err(unusable(error)),
                },
            }
            match open(libc::O_RDONLY | libc::O_CREAT | libc::O_EXCL) {
                Ok(fd) => {
                    let file = File::from(fd);
                    // Readable is enough to lock it; the umask may have taken that from others.
                    chmod(&file, 0o444).map_err(unusable)?;
                    return Ok(file);
                }
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error)
                    if error.raw_os_error() == Some(libc::EACCES)
                        && started.elapsed() < CREATION_PATIENCE =>
                {
                    std::thread::sleep(FIRST_LOOK);
                }
                Err(error) => return Err(unusable(error)),
            }
        }
    }
}

async fn wait_until(
    deadline: Instant,
    mut attempt: impl FnMut() -> Result<Option<HostLock>, HostLockError>,
) -> Result<Option<HostLock>, HostLockError> {
    let mut pause = FIRST_LOOK;
    loop {
        if let Some(lock) = attempt()? {
            return Ok(Some(lock));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        sleep(pause.min(left)).await;
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// A file name for a hardware id, whatever is in it; different ids never share one.
fn file_stem(hardware: &str) -> String {
    hardware
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
            other => format!("_{other:02x}"),
        })
        .collect()
}

fn lock_name(hardware: &str) -> String {
    format!("{}.lock", file_stem(hardware))
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn chmod(file: &File, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_ids_become_file_names_that_differ_and_stay_in_the_directory() {
        assert_eq!(file_stem("cpu"), "cpu");
        assert_eq!(file_stem("GPU-0"), "_47_50_55-0");
        assert_eq!(file_stem("../x"), "_2e_2e_2fx");
        assert_ne!(file_stem("a_b"), file_stem("a b"));
    }
}

//! The files of a managed server: its directories and who owns them, the lock that keeps two services
//! apart, the cluster that `initdb` makes, and what `postmaster.pid` is worth.
//!
//! ```text
//! <data directory>/postgres.lock          held by the service for as long as it runs the server
//! <data directory>/postgres/              0700, of the database's account
//!                  postgres/cluster/      what Postgres calls its data directory
//!                  postgres/socket/       unless its path is too long for a socket
//!                  postgres/initialising.…/   a cluster in the making, renamed when complete
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use super::account::Account;
use super::binaries::Installation;
use super::process::{Spawner, command};
use super::{InContext, LocalServerError, SUPERUSER};

/// How long what a killed service left behind is tried to be removed.
const CLEAR_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a socket's path that the kernel takes, without the closing zero.
pub const SOCKET_PATH_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Where things are.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub data_dir: PathBuf,
    pub home: PathBuf,
    pub cluster: PathBuf,
}

impl Layout {
    /// Makes the data directory if need be, and resolves symbolic links, so that the way to it can be judged.
    pub fn prepare(data_dir: &Path) -> Result<Self, LocalServerError> {
        let absolute = std::path::absolute(data_dir).at("find", data_dir)?;
        make_way(&absolute).at("create", &absolute)?;
        let data_dir = fs::canonicalize(&absolute).at("find", &absolute)?;
        let home = data_dir.join("postgres");
        Ok(Self {
            cluster: home.join("cluster"),
            home,
            data_dir,
        })
    }

    /// Who owns the database's directory, if it exists.
    pub fn owner(&self) -> Option<u32> {
        fs::symlink_metadata(&self.home)
            .ok()
            .map(|metadata| metadata.uid())
    }

    /// Makes the database's own directory, or checks that it is what it should be.
    pub fn claim_home(&self, account: &Account) -> Result<(), LocalServerError> {
        match DirBuilder::new().mode(0o700).create(&self.home) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).at("create", &self.home),
        }
        let metadata = fs::symlink_metadata(&self.home).at("read", &self.home)?;
        if !metadata.is_dir() {
            return Err(LocalServerError::NotACluster(self.home.clone()));
        }
        if metadata.uid() != account.uid {
            if !account.dropped {
                return Err(LocalServerError::OtherOwner {
                    directory: self.home.clone(),
                    owner: metadata.uid(),
                });
            }
            account
                .own_all(&self.home)
                .at("change the owner of", &self.home)?;
        }
        fs::set_permissions(&self.home, Permissions::from_mode(0o700))
            .at("set the mode of", &self.home)?;
        if let Some(directory) = account
            .dropped
            .then(|| account.obstacle(&self.home))
            .flatten()
        {
            return Err(LocalServerError::Unreachable {
                directory,
                account: account.name.clone(),
            });
        }
        Ok(())
    }

    /// Makes the cluster unless it is there. It is made aside and renamed, so that a kill or a full disk on
    /// the way leaves no half of one.
    pub async fn initialise(
        &self,
        installation: &Installation,
        account: &Account,
        spawner: &Spawner,
        durable: bool,
    ) -> Result<(), LocalServerError> {
        // The `initdb` of a service that was killed may live for a moment yet and write into what is
        // being removed.
        let deadline = tokio::time::Instant::now() + CLEAR_PATIENCE;
        loop {
            match self.clear_unfinished() {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound
                    ) && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                cleared => break cleared.at("clear", &self.home)?,
            }
        }
        if self.cluster.join("PG_VERSION").is_file() {
            return Ok(());
        }
        // An empty directory is a mount point or a person's preparation; anything else is not ours to touch.
        match fs::remove_dir(&self.cluster) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => return Err(LocalServerError::NotACluster(self.cluster.clone())),
        }
        tracing::info!(cluster = %self.cluster.display(), major = installation.major, "creating a Postgres cluster");
        let unfinished = Unfinished(
            self.home
                .join(format!("initialising.{}", std::process::id())),
        );
        let mut initdb = command(&installation.initdb(), account, &self.home);
        initdb.arg("-D").arg(&unfinished.0).args([
            "-E",
            "UTF8",
            "--locale=C",
            "--data-checksums",
            "--no-instructions",
            "--auth-local=trust",
            "--auth-host=reject",
            "-U",
            SUPERUSER,
        ]);
        if !durable {
            initdb.arg("--no-sync");
        }
        let mut program = spawner
            .spawn(initdb)
            .await
            .at("run", &installation.initdb())?;
        let status = program
            .child
            .wait()
            .await
            .at("wait for", &installation.initdb())?;
        if !status.success() {
            return Err(LocalServerError::Initialise {
                cluster: self.cluster.clone(),
                said: program.output.tail().await,
            });
        }
        fs::rename(&unfinished.0, &self.cluster).at("rename to", &self.cluster)?;
        File::open(&self.home)
            .and_then(|home| home.sync_all())
            .at("write", &self.home)
    }

    fn clear_unfinished(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.home)? {
            let entry = entry?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"initialising.")
            {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes what `initdb` has made unless it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Creates the missing part of the way to `path`: passable for the database's account if we are root,
/// else ours alone.
fn make_way(path: &Path) -> io::Result<()> {
    let mode = if Uid::effective().is_root() {
        0o755
    } else {
        0o700
    };
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|directory| !directory.exists())
        .collect();
    for directory in missing.into_iter().rev() {
        match DirBuilder::new().mode(mode).create(directory) {
            // Set again: the mask of the process may have taken bits away.
            Ok(()) => fs::set_permissions(directory, Permissions::from_mode(mode))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    if path.is_dir() {
        Ok(())
    } else {
        Err(ErrorKind::NotADirectory.into())
    }
}

/// Keeps a second service away from the directory; let go by the kernel when this process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    pub fn take(data_dir: &Path) -> Result<Self, LocalServerError> {
        let path = data_dir.join("postgres.lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at("open", &path)?;
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(LocalServerError::InUse {
                    data_dir: data_dir.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err((_, error)) => return Err(io::Error::from(error)).at("lock", &path),
        };
        // Only a hint for people: the lock holds without it, also on a full disk.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

/// The directory of the server's socket, which only its account (and root) may enter.
pub(super) fn socket_directory(
    layout: &Layout,
    account: &Account,
    port: u16,
) -> Result<PathBuf, LocalServerError> {
    let beside = layout.home.join("socket");
    if fits(&beside, port) {
        make_private(&beside, account)?;
        return Ok(beside);
    }
    let shared = short_base(account)?;
    let digest = Sha256::digest(layout.cluster.as_os_str().as_encoded_bytes());
    let short = shared.join(hex::encode(&digest[..8]));
    if !fits(&short, port) {
        return Err(LocalServerError::SocketPath(short));
    }
    make_private(&short, account)?;
    Ok(short)
}

fn fits(directory: &Path, port: u16) -> bool {
    let socket = directory.join(format!(".s.PGSQL.{port}"));
    socket.as_os_str().len() <= SOCKET_PATH_BYTES
}

/// A directory with a short name that nobody else can put things into.
fn short_base(account: &Account) -> Result<PathBuf, LocalServerError> {
    let me = Uid::effective().as_raw();
    let run = Path::new("/run");
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|directory| {
            fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.uid() == me)
        })
        .filter(|directory| directory.as_os_str().len() < 40);
    let base = if account.dropped && run.is_dir() {
        run.join("trialhead")
    } else if let Some(runtime) = runtime.filter(|_| !account.dropped) {
        runtime.join("trialhead")
    } else {
        PathBuf::from(format!("/tmp/trialhead-{me}"))
    };
    let mode = if account.dropped { 0o755 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(&base) {
        Ok(()) => {
            fs::set_permissions(&base, Permissions::from_mode(mode)).at("set the mode of", &base)?
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).at("create", &base),
    }
    // In a directory that everybody may write to, the name may have been taken to spy on us.
    let metadata = fs::symlink_metadata(&base).at("read", &base)?;
    if !metadata.is_dir() || metadata.uid() != me || metadata.mode() & 0o022 != 0 {
        return Err(LocalServerError::UnsafeSocketDirectory(base));
    }
    Ok(base)
}

fn make_private(directory: &Path, account: &Account) -> Result<(), LocalServerError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => account
            .own(directory)
            .at("change the owner of", directory)?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).at("create", directory),
    }
    let metadata = fs::symlink_metadata(directory).at("read", directory)?;
    if !metadata.is_dir() || ![account.uid, Uid::effective().as_raw()].contains(&metadata.uid()) {
        return Err(LocalServerError::UnsafeSocketDirectory(
            directory.to_owned(),
        ));
    }
    account
        .own(directory)
        .at("change the owner of", directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o700)).at("set the mode of", directory)
}

/// What a server writes about itself; it outlives a server that was killed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pub pid: u32,
    pub ready: bool,
}

impl PidFile {
    pub fn read(cluster: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(cluster.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        // A negative number is a single-user backend's.
        let pid = lines.next()?.trim().parse::<i64>().ok()?.unsigned_abs();
        Some(Self {
            pid: u32::try_from(pid).ok()?,
            ready: lines.nth(6).is_some_and(|status| status.trim() == "ready"),
        })
    }
}

/// Whether process `pid` is a server on `cluster`: every server's working directory is its cluster.
/// `None` where that cannot be told.
#[cfg(target_os = "linux")]
pub(super) fn is_server_of(pid: u32, cluster: &Path) -> Option<bool> {
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(directory) => Some(directory == cluster),
        Err(error) if error.kind() == ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_server_of(_pid: u32, _cluster: &Path) -> Option<bool> {
    None
}

/// Removes the lock files of a killed server whose number now belongs to some other process, which Postgres
/// would take for a server that still runs. We hold the lock, and Postgres' own shared memory still guards
/// against a backend that lives on.
pub(super) fn clear_stale_files(cluster: &Path, socket: &Path, port: u16) -> io::Result<()> {
    let socket_lock = socket.join(format!(".s.PGSQL.{port}.lock"));
    for path in [cluster.join("postmaster.pid"), socket_lock] {
        let Some(file) = fs::read_to_string(&path)
            .ok()
            .and_then(|text| PidFile::parse(&text))
        else {
            continue;
        };
        if is_server_of(file.pid, cluster) == Some(false) {
            tracing::info!(pid = file.pid, path = %path.display(), "removing the lock file of a server that has gone");
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_says_ready_only_on_its_eighth_line() {
        let text = "4321\n/d/cluster\n1700000000\n5432\n/d/socket\n\n  123 4\nready   \n";
        let read = |text: &str| PidFile::parse(text).unwrap();
        assert_eq!(
            read(text),
            PidFile {
                pid: 4321,
                ready: true
            }
        );
        assert!(!read(&text.replace("ready   ", "starting")).ready);
        assert!(!read("4321\n/d/ready\n").ready);
        assert_eq!(PidFile::parse(""), None);
    }

    #[test]
    fn a_path_of_107_bytes_fits_and_one_of_108_does_not() {
        let name = ".s.PGSQL.5432".len() + 1;
        let of = |bytes: usize| PathBuf::from(format!("/{}", "d".repeat(bytes - name - 1)));
        assert!(fits(&of(SOCKET_PATH_BYTES), 5432));
        assert!(!fits(&of(SOCKET_PATH_BYTES + 1), 5432));
    }
}

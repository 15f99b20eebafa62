//! The managed local Postgres: what `serve` runs when no database was named, so that a first start needs
//! no preparation.
//!
//! It is a real server with durable settings, on a private cluster, reached through a Unix socket that
//! only its account may open; it listens on no TCP port. It is started again when it dies, and it never
//! outlives this process. Everything that is known to go wrong on the way has an error that names the mend.

mod account;
mod binaries;
mod cluster;
mod process;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use account::Account;
use binaries::Installation;
pub use binaries::OLDEST_MAJOR;
pub use cluster::SOCKET_PATH_BYTES;
use cluster::{Layout, Lock, PidFile};
use process::{Program, Spawner};

/// The role that owns everything in the cluster, and the service's database in it.
pub const SUPERUSER: &str = "trialhead";
/// The database that the service uses.
pub const DATABASE: &str = "trialhead";

/// How often the files of a starting server are looked at: it has no other way to say that it is ready.
const STARTING_TICK: Duration = Duration::from_millis(20);
/// The shortest and the longest pause before a dead server is started again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// After this time without trouble, earlier restarts no longer count.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// How to run the server.
#[derive(Debug, Clone)]
pub struct LocalServerConfig {
    /// The service's data directory; the server's files are below `postgres/` in it.
    pub data_dir: PathBuf,
    /// Where `initdb` and `postgres` are; looked for if not given.
    pub bin_dir: Option<PathBuf>,
    /// The account to run it as when the service runs as root.
    pub user: Option<String>,
    /// How long it may take to become ready, recovery after a crash included.
    pub start_timeout: Duration,
    /// How long a fast shutdown may take before it becomes an immediate one.
    pub stop_timeout: Duration,
    /// How long to wait for a killed server's remains to let go of the cluster.
    pub takeover_timeout: Duration,
    /// Starts in a row that may fail before it is given up.
    pub max_restarts: u32,
    /// Off only for data that may be lost, such as a test's.
    pub durable: bool,
    /// Names the socket; no TCP port is opened unless `parameters` say so.
    pub port: u16,
    /// Postgres' own parameters, over the ones set here.
    pub parameters: Vec<(String, String)>,
}

impl LocalServerConfig {
    /// The usual settings for a server in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            bin_dir: None,
            user: None,
            start_timeout: Duration::from_secs(120),
            stop_timeout: Duration::from_secs(20),
            takeover_timeout: Duration::from_secs(20),
            max_restarts: 10,
            durable: true,
            port: 5432,
            parameters: Vec::new(),
        }
    }
}

/// What the server is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerState {
    /// It takes connections.
    Ready {
        /// Of its main process.
        pid: u32,
    },
    /// It died and is being started again.
    Restarting {
        /// Starts since it was last stable.
        attempt: u32,
        /// What it said last.
        reason: String,
    },
    /// It died too often.
    GaveUp {
        /// What it said last.
        reason: String,
    },
    /// It was told to stop, and did.
    Stopped,
}

/// Why there is no local server.
#[derive(Debug, thiserror::Error)]
pub enum LocalServerError {
    #[error(
        "no Postgres found: install it (Debian/Ubuntu: `apt-get install postgresql`, Fedora: `dnf install postgresql-server`, \
         macOS: `brew install postgresql@17`), name its bin directory in the settings, or set DATABASE_URL to use another server"
    )]
    NotInstalled,
    #[error(
        "{0} holds no `initdb` and `postgres` that run: correct the setting, or leave it out to search the usual places"
    )]
    NotInSetting(PathBuf),
    #[error(
        "the only Postgres found is {}; {OLDEST_MAJOR} or newer is needed: install a newer one, or set DATABASE_URL",
        list(found)
    )]
    TooOld { found: Vec<u32> },
    #[error(
        "{cluster} was made by Postgres {needed}, and found here is {}: install that major (Debian/Ubuntu: \
         `apt-get install postgresql-{needed}`, Fedora: `dnf install postgresql{needed}-server`, macOS: `brew install postgresql@{needed}`)",
        list(found)
    )]
    OtherMajor {
        needed: u32,
        found: Vec<u32>,
        cluster: PathBuf,
    },
    #[error(
        "uid {uid} has no entry in the user database, without which Postgres' initdb refuses to run: run the service as a \
         named account, or set DATABASE_URL"
    )]
    NoPasswdEntry { uid: u32 },
    #[error("only root can run Postgres as `{wanted}`; this is `{me}`: leave the setting out")]
    CannotSwitch { wanted: String, me: String },
    #[error(
        "there is no account `{0}`: create it with `useradd --system {0}`, or leave the setting out"
    )]
    NoSuchAccount(String),
    #[error(
        "Postgres refuses to run as root: name another account in the settings, or leave it out"
    )]
    RootAccount,
    #[error(
        "Postgres refuses to run as root, and there is no account to run it as: create one with `useradd --system trialhead`"
    )]
    NoAccount,
    #[error(
        "another service (process {holder}) uses {data_dir}: stop it, or give this one a data directory of its own (TRIALHEAD_DATA_DIR)"
    )]
    InUse { data_dir: PathBuf, holder: String },
    #[error(
        "the account `{account}`, which Postgres runs as, may not pass {directory}: allow it with `chmod o+x {directory}`, or \
         choose another data directory (TRIALHEAD_DATA_DIR; for root the default is /var/lib/trialhead)"
    )]
    Unreachable { directory: PathBuf, account: String },
    #[error(
        "{directory} belongs to uid {owner}: run the service as that user or as root, or choose another data directory (TRIALHEAD_DATA_DIR)"
    )]
    OtherOwner { directory: PathBuf, owner: u32 },
    #[error(
        "{0} exists and is not a Postgres cluster: move it away, or choose another data directory (TRIALHEAD_DATA_DIR)"
    )]
    NotACluster(PathBuf),
    #[error(
        "{0} is too long for a socket ({SOCKET_PATH_BYTES} bytes with the file's name): choose a shorter data directory (TRIALHEAD_DATA_DIR)"
    )]
    SocketPath(PathBuf),
    #[error(
        "{0} is not ours alone, so no socket is put there: remove it, or choose a shorter data directory (TRIALHEAD_DATA_DIR)"
    )]
    UnsafeSocketDirectory(PathBuf),
    #[error(
        "Postgres could not create a cluster in {cluster}{}; nothing is left of it. It said:\n{said}",
        because(said)
    )]
    Initialise { cluster: PathBuf, said: String },
    #[error(
        "Postgres did not start on {cluster}{}. It said:\n{said}",
        because(said)
    )]
    Start { cluster: PathBuf, said: String },
    #[error("Postgres on {cluster} was not ready after {waited:?}. It said:\n{said}")]
    TooSlow {
        cluster: PathBuf,
        waited: Duration,
        said: String,
    },
    #[error(
        "another Postgres (process {pid}) runs on {cluster} and does not let go of it: stop it"
    )]
    HeldByServer { pid: u32, cluster: PathBuf },
    #[error("cannot {doing} {path}: {source}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the local Postgres runs, but its database could not be made: {0}")]
    Database(String),
    #[error("stopped while starting")]
    Stopped,
}

fn list(majors: &[u32]) -> String {
    match majors {
        [] => "none".to_owned(),
        _ => majors
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// The usual causes in plain words.
fn because(said: &str) -> &'static str {
    // A write that ends half-way has no error number, only the hint.
    if said.contains("No space left on device") || said.contains("Check free disk space") {
        ": the disk is full"
    } else if said.contains("Read-only file system") {
        ": the file system is read-only"
    } else {
        ""
    }
}

/// Says what was being done to what when the operating system refused.
trait InContext<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, LocalServerError>;
}

impl<T> InContext<T> for io::Result<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, LocalServerError> {
        self.map_err(|source| LocalServerError::Io {
            doing,
            path: path.to_owned(),
            source,
        })
    }
}

/// A running server. Dropping it stops the server too, without waiting.
#[derive(Debug)]
pub struct LocalServer {
    socket: PathBuf,
    port: u16,
    state: watch::Receiver<ServerState>,
    stop: watch::Sender<bool>,
    supervisor: JoinHandle<()>,
}

impl LocalServer {
    /// Starts the server, making its cluster and database if they are not there; returns when it is ready.
    pub async fn start(config: LocalServerConfig) -> Result<Self, LocalServerError> {
        let layout = Layout::prepare(&config.data_dir)?;
        let lock = Lock::take(&layout.data_dir)?;
        let installation = binaries::find(config.bin_dir.as_deref(), &layout.cluster)?;
        let account = Account::choose(config.user.as_deref(), layout.owner())?;
        layout.claim_home(&account)?;
        let spawner = Spawner::start().at("start a thread for", &layout.home)?;
        layout
            .initialise(&installation, &account, &spawner, config.durable)
            .await?;
        let socket = cluster::socket_directory(&layout, &account, config.port)?;
        let port = config.port;
        let (stop, stopped) = watch::channel(false);
        let mut supervised = Supervised {
            config,
            layout,
            installation,
            account,
            socket: socket.clone(),
            spawner,
            stopped,
            _lock: lock,
        };
        let mut program = supervised.launch().await?;
        if let Err(error) = create_database(&socket, port).await {
            program.stop(supervised.config.stop_timeout).await;
            return Err(error);
        }
        let (announce, state) = watch::channel(ready(&program));
        let supervisor = tokio::spawn(supervised.run(program, announce));
        Ok(Self {
            socket,
            port,
            state,
            stop,
            supervisor,
        })
    }

    /// The address of the service's database in it.
    pub fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    /// The address of a database in it.
    pub fn url_of(&self, database: &str) -> String {
        url(&self.socket, self.port, database)
    }

    /// The address of the service's database in the server that another process runs with the same settings.
    ///
    /// # Errors
    /// When its socket cannot be reached by this account.
    pub fn url_beside(config: &LocalServerConfig) -> Result<String, LocalServerError> {
        let layout = Layout::prepare(&config.data_dir)?;
        let account = Account::choose(config.user.as_deref(), layout.owner())?;
        let socket = cluster::socket_directory(&layout, &account, config.port)?;
        Ok(url(&socket, config.port, DATABASE))
    }

    /// The directory of its socket.
    pub fn socket_directory(&self) -> &Path {
        &self.socket
    }

    /// What it is doing, now and from now on.
    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.state.clone()
    }

    /// Stops it: clients are cut off and everything is written; after the configured time, by force.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // An error means that the supervisor is gone, and the server with the thread it was started from.
        let _ = self.supervisor.await;
    }
}

fn ready(program: &Program) -> ServerState {
    ServerState::Ready {
        pid: program.child.id().unwrap_or_default(),
    }
}

fn url(socket: &Path, port: u16, database: &str) -> String {
    let socket = encode(socket.as_os_str().as_encoded_bytes());
    let database = encode(database.as_bytes());
    format!("postgres://{SUPERUSER}@{socket}:{port}/{database}")
}

/// Percent-encodes everything that is not plainly allowed in a URL.
fn encode(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len() * 3);
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

async fn create_database(socket: &Path, port: u16) -> Result<(), LocalServerError> {
    let create = async {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(socket)
            .port(port)
            .user(SUPERUSER)
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(10));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        let driver = tokio::spawn(connection);
        let known = client
            .query_opt(
                "SELECT FROM pg_catalog.pg_database WHERE datname = $1",
                &[&DATABASE],
            )
            .await?;
        if known.is_none() {
            client
                .batch_execute(&format!("CREATE DATABASE {DATABASE}"))
                .await?;
        }
        drop(client);
        let _ = driver.await;
        Ok(())
    };
    create.await.map_err(|error: tokio_postgres::Error| {
        LocalServerError::Database(super::connection::with_causes(&error))
    })
}

/// All that is needed to start the server again.
struct Supervised {
    config: LocalServerConfig,
    layout: Layout,
    installation: Installation,
    account: Account,
    socket: PathBuf,
    spawner: Spawner,
    stopped: watch::Receiver<bool>,
    _lock: Lock,
}

impl Supervised {
    /// Keeps the server running until it is told to stop or dies too often.
    async fn run(mut self, mut program: Program, announce: watch::Sender<ServerState>) {
        let mut attempt = 0;
        'running: loop {
            let since = Instant::now();
            let stopped = self.stopped.clone();
            let status = tokio::select! {
                () = told_to_stop(&stopped) => break,
                status = program.child.wait() => status,
            };
            if since.elapsed() > STABLE_AFTER {
                attempt = 0;
            }
            let mut reason = match status {
                Ok(status) => format!("{status}\n{}", program.output.tail().await),
                Err(error) => error.to_string(),
            };
            program = loop {
                if attempt >= self.config.max_restarts {
                    tracing::error!(attempt, reason, "the local Postgres died too often");
                    announce.send_replace(ServerState::GaveUp { reason });
                    return;
                }
                attempt += 1;
                let pause = back_off(attempt);
                tracing::warn!(
                    attempt,
                    ?pause,
                    reason,
                    "the local Postgres died; starting it again"
                );
                announce.send_replace(ServerState::Restarting { attempt, reason });
                tokio::select! {
                    () = told_to_stop(&stopped) => break 'running,
                    () = sleep(pause) => {}
                }
                match self.launch().await {
                    Ok(program) => break program,
                    Err(LocalServerError::Stopped) => break 'running,
                    Err(error) => reason = error.to_string(),
                }
            };
            announce.send_replace(ready(&program));
        }
        program.stop(self.config.stop_timeout).await;
        if !self.socket.starts_with(&self.layout.home) {
            let _ = std::fs::remove_dir(&self.socket);
        }
        announce.send_replace(ServerState::Stopped);
    }

    /// Starts the server and waits until it is ready, waiting for the remains of a killed one to let go.
    async fn launch(&mut self) -> Result<Program, LocalServerError> {
        let patience = Instant::now() + self.config.takeover_timeout;
        loop {
            let cluster = &self.layout.cluster;
            cluster::clear_stale_files(cluster, &self.socket, self.config.port)
                .at("remove the stale lock files of", cluster)?;
            let postgres = self.installation.postgres();
            let mut program = self
                .spawner
                .spawn(self.command())
                .await
                .at("run", &postgres)?;
            let said = match self.wait_until_ready(&mut program).await? {
                Started::Ready => return Ok(program),
                Started::Ended => program.output.tail().await,
            };
            let held = said.contains("pre-existing shared memory block")
                || (said.contains("lock file \"")
                    && (said.contains("already exists") || said.contains("is empty")));
            if !held {
                return Err(LocalServerError::Start {
                    cluster: cluster.clone(),
                    said,
                });
            }
            if Instant::now() > patience {
                return Err(match PidFile::read(cluster) {
                    Some(file) => LocalServerError::HeldByServer {
                        pid: file.pid,
                        cluster: cluster.clone(),
                    },
                    None => LocalServerError::Start {
                        cluster: cluster.clone(),
                        said,
                    },
                });
            }
            tracing::info!("an earlier Postgres still holds the cluster; waiting for it to let go");
            let stopped = self.stopped.clone();
            tokio::select! {
                () = told_to_stop(&stopped) => return Err(LocalServerError::Stopped),
                () = sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    async fn wait_until_ready(&self, program: &mut Program) -> Result<Started, LocalServerError> {
        let deadline = Instant::now() + self.config.start_timeout;
        let stopped = self.stopped.clone();
        let pid = program.child.id();
        loop {
            // The file of a server that was killed says "ready" too: it must be of the one just started.
            let file = PidFile::read(&self.layout.cluster);
            if file.is_some_and(|file| file.ready && Some(file.pid) == pid) {
                return Ok(Started::Ready);
            }
            let overdue = tokio::select! {
                () = told_to_stop(&stopped) => {
                    program.stop(self.config.stop_timeout).await;
                    return Err(LocalServerError::Stopped);
                }
                _ = program.child.wait() => return Ok(Started::Ended),
                () = sleep(STARTING_TICK) => Instant::now() > deadline,
            };
            if overdue {
                program.stop(self.config.stop_timeout).await;
                return Err(LocalServerError::TooSlow {
                    cluster: self.layout.cluster.clone(),
                    waited: self.config.start_timeout,
                    said: program.output.tail().await,
                });
            }
        }
    }

    fn command(&self) -> std::process::Command {
        let mut command = process::command(
            &self.installation.postgres(),
            &self.account,
            &self.layout.home,
        );
        command.arg("-D").arg(&self.layout.cluster);
        let durable = if self.config.durable { "on" } else { "off" };
        let own = [
            ("listen_addresses", ""),
            ("unix_socket_permissions", "0700"),
            ("logging_collector", "off"),
            ("log_destination", "stderr"),
            ("log_line_prefix", ""),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("fsync", durable),
            ("full_page_writes", durable),
            ("synchronous_commit", durable),
        ];
        for (name, value) in own {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.arg("-c").arg(format!("port={}", self.config.port));
        // A list in Postgres' eyes, so a path with a comma or a space needs the quotes.
        let mut sockets = OsString::from("unix_socket_directories=\"");
        sockets.push(&self.socket);
        sockets.push("\"");
        command.arg("-c").arg(sockets);
        for (name, value) in &self.config.parameters {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
    }
}

/// Ends when the server is to stop; a dropped handle counts as having been told.
async fn told_to_stop(stop: &watch::Receiver<bool>) {
    let _ = stop.clone().wait_for(|stop| *stop).await;
}

enum Started {
    Ready,
    Ended,
}

fn back_off(attempt: u32) -> Duration {
    let (first, longest) = BACK_OFF;
    first
        .saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)))
        .min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_bound() {
        let pauses: Vec<u64> = [1, 2, 3, 7, 8, 1000]
            .map(|attempt| u64::try_from(back_off(attempt).as_millis()).unwrap_or(0))
            .to_vec();
        assert_eq!(pauses, [100, 200, 400, 6400, 10_000, 10_000]);
    }

    #[test]
    fn a_path_survives_the_url() {
        assert_eq!(encode(b"/a b/@%"), "%2Fa%20b%2F%40%25");
    }
}

//! A real Postgres for tests: one throwaway server per test process, a fresh migrated database per test.
//!
//! Include it with `#[path = "../support/postgres.rs"] mod postgres;`. The server ends with the process,
//! however that ends, and its files go with it.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;

use tokio::sync::oneshot;
use tokio_postgres::NoTls;
use trialhead::store::connection::{Database, DatabaseConfig, MigrateMode, migrate};
use trialhead::store::local_server::{LocalServer, LocalServerConfig};

const TEMPLATE: &str = "migrated";

/// A directory that a database's account may enter even when the test runs as root, removed with the
/// process or when dropped.
#[derive(Debug)]
pub struct ServerDirectory {
    pub path: PathBuf,
    /// Closing it lets a shell remove the directory: also after a kill -9 of this process.
    _remover: ChildStdin,
}

impl ServerDirectory {
    pub fn create() -> Self {
        Self::create_in(Path::new("/tmp"))
    }

    /// The same, below `parent`.
    pub fn create_in(parent: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("trialhead-test-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory for tests");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        // Waits for our end, then for the server's, and removes what is left.
        let script = r#"cat >/dev/null
            for _ in $(seq 200); do
                pid=$(head -n 1 "$1"/postgres/cluster/postmaster.pid 2>/dev/null) || break
                kill -0 "$pid" 2>/dev/null || break
                sleep 0.05
            done
            rm -rf "$1""#;
        let mut remover = Command::new("/bin/sh")
            .args(["-c", script, "remover"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell");
        let stdin = remover.stdin.take().expect("it is piped");
        // Reaps it, so that no test sees a child it has not started.
        thread::spawn(move || remover.wait());
        Self {
            path,
            _remover: stdin,
        }
    }
}

/// A server whose data may be lost, in `directory`.
pub fn throwaway(directory: &Path) -> LocalServerConfig {
    LocalServerConfig {
        durable: false,
        parameters: vec![
            // It would connect to the template while that is copied.
            ("autovacuum".to_owned(), "off".to_owned()),
            ("max_connections".to_owned(), "400".to_owned()),
        ],
        ..LocalServerConfig::new(directory)
    }
}

/// The server that the tests of this process share.
struct Shared {
    base: String,
    drop_database: Mutex<mpsc::Sender<String>>,
    _directory: ServerDirectory,
}

impl Shared {
    fn get() -> &'static Self {
        static SHARED: OnceLock<Shared> = OnceLock::new();
        SHARED.get_or_init(|| {
            let directory = ServerDirectory::create();
            let config = throwaway(&directory.path);
            let (started, base) = mpsc::channel();
            let (drop_database, dropped) = mpsc::channel::<String>();
            // A runtime of its own: the one of the test that came first ends with that test.
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .expect("a runtime");
                let server = runtime
                    .block_on(LocalServer::start(config))
                    .unwrap_or_else(|error| panic!("no Postgres for the tests: {error}"));
                runtime.block_on(async {
                    execute(&server.url_of("postgres"), &format!("CREATE DATABASE {TEMPLATE}")).await;
                    let template = Database::open(&DatabaseConfig::new(server.url_of(TEMPLATE)))
                        .expect("its own address");
                    migrate(&template, MigrateMode::Auto)
                        .await
                        .expect("the migrations apply");
                    template.close();
                });
                // The copy of a database fails while anybody is connected to it, also on the way out.
                runtime.block_on(execute(
                    &server.url_of("postgres"),
                    &format!(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{TEMPLATE}'"
                    ),
                ));
                let admin = server.url_of("postgres");
                started.send(admin.clone()).expect("somebody waits");
                for name in dropped {
                    let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                    runtime.block_on(execute(&admin, &drop));
                }
            });
            Self {
                base: base.recv().expect("the server started"),
                drop_database: Mutex::new(drop_database),
                _directory: directory,
            }
        })
    }

    fn url_of(&self, database: &str) -> String {
        let (server, _) = self.base.rsplit_once('/').expect("an address has a path");
        format!("{server}/{database}")
    }
}

/// Runs statements without a pool.
pub async fn execute(url: &str, statements: &str) {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("the server takes connections");
    let driver = tokio::spawn(connection);
    client
        .batch_execute(statements)
        .await
        .unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    drop(client);
    let _ = driver.await;
}

/// Counts the rows of a table, or of those that a condition after it names.
#[allow(dead_code, reason = "not every test binary needs it")]
pub async fn count(url: &str, what: &str) -> i64 {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("the server takes connections");
    let driver = tokio::spawn(connection);
    let statement = format!("SELECT count(*) FROM {what}");
    let row = client
        .query_one(&statement, &[])
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    drop(client);
    let _ = driver.await;
    row.get(0)
}

/// A migrated database that nobody else uses, dropped with this.
#[derive(Debug)]
pub struct TestDatabase {
    name: String,
    url: String,
    database: Database,
}

impl TestDatabase {
    /// With every migration applied.
    pub async fn create() -> Self {
        Self::copy_of(TEMPLATE).await
    }

    /// With nothing in it.
    pub async fn create_empty() -> Self {
        Self::copy_of("template0").await
    }

    async fn copy_of(template: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let (got, shared) = oneshot::channel();
        // Starting the server blocks, which a test's own runtime should not.
        thread::spawn(move || got.send(Shared::get()).is_ok());
        let shared = shared.await.expect("the shared server started");
        execute(
            &shared.base,
            &format!("CREATE DATABASE {name} TEMPLATE {template}"),
        )
        .await;
        let url = shared.url_of(&name);
        let database = Database::open(&DatabaseConfig::new(url.clone())).expect("a good address");
        Self {
            name,
            url,
            database,
        }
    }

    /// A pool on it.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Takes the database away: sessions end, new ones are refused.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub async fn sever(&self) {
        let base = &Shared::get().base;
        // Committed first: who is put out must not come in again.
        let closed = format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", self.name);
        execute(base, &closed).await;
        let out = format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{}'",
            self.name
        );
        execute(base, &out).await;
    }

    /// Gives it back.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub async fn mend(&self) {
        execute(
            &Shared::get().base,
            &format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", self.name),
        )
        .await;
    }

    /// Its address, for another process or other settings.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        self.database.close();
        if let Ok(sender) = Shared::get().drop_database.lock() {
            let _ = sender.send(self.name.clone());
        }
    }
}

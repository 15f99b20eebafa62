//! The way to Postgres: a pool of connections from an address, plain or over TLS, the one connection that
//! listens, and the migrations.
//!
//! Passwords are in the address and nowhere else: no `Debug`, no error and no log line shows one.

mod address;
mod listener;
mod migrations;
mod timings;
mod tls;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use diesel::ConnectionError;
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use futures::FutureExt;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::StoreError;
pub use address::AddressError;
pub use listener::{ListenEvent, Listener};
pub use migrations::{
    MIGRATIONS, MigrateError, MigrateMode, MigrationStatus, migrate, migrations_ready,
};
pub use timings::Timings;
pub use tls::{RootCertificates, SslMode, TlsError};

type TlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// A connection lent by the pool; it goes back when dropped, unless a transaction was left open in it.
pub type PooledConnection = Object<AsyncPgConnection>;

/// How to reach the database.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host:port/database?sslmode=…&sslrootcert=…`, or the keyword form. A secret.
    pub url: String,
    /// Connections kept at most.
    pub pool_size: usize,
    /// For a new connection: the network, TLS and the log-in together.
    pub connect_timeout: Duration,
    /// For a connection of the pool to become free or be made.
    pub acquire_timeout: Duration,
    /// For one statement of a pooled connection; zero for no limit.
    pub statement_timeout: Duration,
    /// After which a transaction that does nothing is ended; zero for no limit.
    pub idle_in_transaction_timeout: Duration,
    /// A statement that takes longer is logged.
    pub slow_statement: Duration,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
}

impl DatabaseConfig {
    /// The usual settings for the database at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            pool_size: 16,
            connect_timeout: Duration::from_secs(10),
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            idle_in_transaction_timeout: Duration::from_secs(60),
            slow_statement: Duration::from_secs(1),
            application_name: "trialhead".to_owned(),
        }
    }
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DatabaseConfig")
            .field("url", &"…")
            .field("pool_size", &self.pool_size)
            .field("connect_timeout", &self.connect_timeout)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field(
                "idle_in_transaction_timeout",
                &self.idle_in_transaction_timeout,
            )
            .field("slow_statement", &self.slow_statement)
            .field("application_name", &self.application_name)
            .finish()
    }
}

/// Why no [`Database`] can be made of the settings.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the pool of connections cannot be made: {0}")]
    Pool(String),
}

/// Where connections go to, and how they are secured.
#[derive(Clone)]
struct Target {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    connect_timeout: Duration,
}

impl Target {
    fn of(config: &DatabaseConfig) -> Result<Self, OpenError> {
        let address = address::parse(&config.url)?;
        let tls = tls::connector(address.ssl_mode, &address.roots)?;
        let mut connection = address.config;
        connection
            .ssl_mode(address.ssl_mode.negotiated())
            .application_name(&config.application_name)
            .connect_timeout(config.connect_timeout)
            // A peer that has silently gone is noticed in a minute, not in two hours.
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(3);
        Ok(Self {
            config: connection,
            tls,
            connect_timeout: config.connect_timeout,
        })
    }

    async fn connect(&self) -> Result<(Client, Connection<Socket, TlsStream>), String> {
        match timeout(self.connect_timeout, self.config.connect(self.tls.clone())).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) => Err(with_causes(&error)),
            Err(_) => Err(format!("no answer within {:?}", self.connect_timeout)),
        }
    }

    async fn establish(&self) -> Result<AsyncPgConnection, ConnectionError> {
        let (client, connection) = self
            .connect()
            .await
            .map_err(ConnectionError::BadConnection)?;
        AsyncPgConnection::try_from_client_and_connection(client, connection).await
    }
}

/// An error and what it came from, on one line; each part once.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

/// A database: cheap to clone, made without connecting.
#[derive(Clone)]
pub struct Database {
    pool: Pool<AsyncPgConnection>,
    target: Arc<Target>,
    acquire_timeout: Duration,
    timings: Timings,
}

impl fmt::Debug for Database {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Database")
            .field("pool", &self.pool.status())
            .finish_non_exhaustive()
    }
}

/// How busy the pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUse {
    /// Connections kept at most.
    pub max_size: usize,
    /// Connections that exist.
    pub size: usize,
    /// Of those, the ones nobody uses.
    pub available: usize,
    /// Callers that wait for one.
    pub waiting: usize,
}

impl Database {
    /// Reads the settings; the first connection is made when one is asked for.
    pub fn open(config: &DatabaseConfig) -> Result<Self, OpenError> {
        let target = Arc::new(Target::of(config)?);
        let session = session_settings(config);
        let mut manager = ManagerConfig::default();
        // The driver notices a connection that has closed, so a query just to ask costs more than it tells.
        manager.recycling_method = RecyclingMethod::Fast;
        let timings = Timings::new().map_err(|error| OpenError::Pool(error.to_string()))?;
        let (watched, slow) = (timings.clone(), config.slow_statement);
        let reached = Arc::clone(&target);
        manager.custom_setup = Box::new(move |_| {
            let target = Arc::clone(&reached);
            let session = session.clone();
            let watch = watched.watch(slow);
            async move {
                let mut connection = target.establish().await?;
                // Not as start-up options, which poolers such as pgbouncer refuse.
                connection
                    .batch_execute(&session)
                    .await
                    .map_err(|error| ConnectionError::BadConnection(error.to_string()))?;
                connection.set_instrumentation(watch);
                Ok(connection)
            }
            .boxed()
        });
        // The manager keeps this text and nothing else of the address.
        let manager = AsyncDieselConnectionManager::new_with_config("postgres", manager);
        let pool = Pool::builder(manager)
            .max_size(config.pool_size.max(1))
            .build()
            .map_err(|error| OpenError::Pool(error.to_string()))?;
        Ok(Self {
            pool,
            target,
            acquire_timeout: config.acquire_timeout,
            timings,
        })
    }

    /// Lends a connection; [`StoreError::Unavailable`] if none can be had in time.
    pub async fn connection(&self) -> Result<PooledConnection, StoreError> {
        let waited = self.timings.waits.start_timer();
        let lent = timeout(self.acquire_timeout, self.pool.get()).await;
        waited.observe_duration();
        match lent {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(StoreError::Unavailable(error.to_string())),
            Err(_) => Err(StoreError::Unavailable(format!(
                "no connection within {:?}",
                self.acquire_timeout
            ))),
        }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.connection().await?.batch_execute("SELECT 1").await?;
        Ok(())
    }

    /// Listens on `channels` with a connection of its own, for as long as the listener is kept. Needs a
    /// runtime.
    pub fn listen(&self, channels: &[&str]) -> Listener {
        Listener::start(Arc::clone(&self.target), channels)
    }

    /// How long its statements take, and its connections are waited for.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// How busy the pool is.
    pub fn pool_use(&self) -> PoolUse {
        let status = self.pool.status();
        PoolUse {
            max_size: status.max_size,
            size: status.size,
            available: status.available,
            waiting: status.waiting,
        }
    }

    /// Closes the pool: connections close as they come back, and none is lent from now on.
    pub fn close(&self) {
        self.pool.close();
    }
}

fn session_settings(config: &DatabaseConfig) -> String {
    // Plans are made anew for each statement: one that was made and kept while the tables were empty
    // walks through whole tables when they have grown, and the queue is slow for ever after. Nothing here takes so long
    // that compiling it would pay.
    format!(
        "SET plan_cache_mode = force_custom_plan; SET jit = off; SET statement_timeout = {}; SET idle_in_transaction_session_timeout = {}; SET timezone = 'UTC'",
        config.statement_timeout.as_millis(),
        config.idle_in_transaction_timeout.as_millis()
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn no_debug_output_shows_the_password() {
        let config = DatabaseConfig::new("postgres://user:hunter2@localhost/db");
        let database = Database::open(&config).unwrap();
        let shown = format!("{config:?} {database:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

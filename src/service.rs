//! Puts the service together: database, pool, REST; and takes it apart again in the right order.
//! `serve` and the tests start it through the same function.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api;
use crate::library::Library;
use crate::lifecycle::{self, Context};
use crate::metrics::InstanceMetrics;
use crate::pool::child::{ChildConfig, ServiceUser, Spawner};
use crate::pool::host_lock::HostLocks;
use crate::pool::housekeeping;
use crate::pool::worker::Worker;
use crate::settings::{DatasetSettings, Migrate, PoolSettings, Settings};
use crate::store::connection::{Database, DatabaseConfig, MigrateMode};
use crate::store::local_server::{LocalServer, LocalServerConfig};
use crate::store::wake::Waker;
use crate::study::validation::DefinitionRules;
use crate::uploads::Uploads;

/// A device that was not seen for this many leases is gone.
const ALIVE_LEASES: f64 = 1.0;

/// A file that nobody has touched for this long, and no data set has, is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A running service.
#[derive(Debug)]
pub struct Service {
    /// Where it listens; useful when the port was chosen by the system.
    pub address: SocketAddr,
    stop_intake: watch::Sender<bool>,
    server: api::Server,
    tasks: JoinSet<()>,
    drain: Duration,
    postgres: Option<LocalServer>,
}

/// Connects to the database that the settings name, or starts the managed one.
///
/// # Errors
/// When it cannot be reached or started; the message says what to do.
pub async fn open_database(settings: &Settings) -> anyhow::Result<(Database, Option<LocalServer>)> {
    let (url, postgres) = match &settings.database.url {
        Some(url) => (url.clone(), None),
        None => {
            let config = LocalServerConfig {
                bin_dir: settings.database.bin_dir.clone(),
                user: settings.database.user.clone(),
                ..LocalServerConfig::new(settings.data_dir()?)
            };
            let server = LocalServer::start(config).await?;
            (server.url(), Some(server))
        }
    };
    let database = Database::open(&DatabaseConfig {
        pool_size: settings.database.pool_size,
        acquire_timeout: Duration::from_secs_f64(settings.database.connect_timeout_secs),
        statement_timeout: Duration::from_secs_f64(settings.database.statement_timeout_secs),
        ..DatabaseConfig::new(url)
    })?;
    Ok((database, postgres))
}

/// How the settings want migrations handled.
pub fn migrate_mode(migrate: Migrate) -> MigrateMode {
    match migrate {
        Migrate::Auto => MigrateMode::Auto,
        Migrate::Check => MigrateMode::Check,
    }
}

/// How the settings want children started.
fn child_config(pool: &PoolSettings, datasets: &DatasetSettings) -> anyhow::Result<ChildConfig> {
    let user = nix::unistd::User::from_name(&pool.child_user)?;
    if user.is_none() && nix::unistd::Uid::effective().is_root() {
        anyhow::bail!(
            "pool.child_user: there is no account {:?}; probes must not run as root, so make it or name another",
            pool.child_user
        );
    }
    Ok(ChildConfig {
        command: pool.child_command.clone(),
        runners: pool.runner_commands()?,
        inspect_command: datasets.inspect_command.clone(),
        user: user.map(|user| ServiceUser {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }),
        log_tail_bytes: pool.log_tail_bytes,
        max_event_line_bytes: pool.max_event_line_bytes,
        max_events: pool.max_events,
        ..ChildConfig::default()
    })
}

impl Service {
    /// Starts everything.
    ///
    /// # Errors
    /// When anything cannot start; what was started is stopped again.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let (database, postgres) = open_database(&settings).await?;
        match Self::start_on(settings, database).await {
            Ok(service) => Ok(Self {
                postgres,
                ..service
            }),
            Err(error) => {
                if let Some(postgres) = postgres {
                    postgres.stop().await;
                }
                Err(error)
            }
        }
    }

    async fn start_on(settings: Settings, database: Database) -> anyhow::Result<Self> {
        crate::store::connection::migrate(&database, migrate_mode(settings.database.migrate))
            .await
            .context("the database's tables")?;
        let pool = &settings.pool;
        let context = Context {
            database,
            waker: Waker::default(),
            rules: Arc::new(DefinitionRules::new(settings.limits.clone())),
            max_active_studies: settings.api.max_active_studies,
            idempotency_hours: settings.api.idempotency_hours,
            alive_secs: pool.lease_secs * ALIVE_LEASES,
        };
        let metrics = InstanceMetrics::new()?;
        let (stop_intake, stop) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let library = Library::open_at(settings.datasets.url.as_deref(), &settings.data_dir()?)?;
        let known = {
            let mut conn = context.database.connection().await?;
            crate::store::datasets::contents(&mut conn).await?
        };
        library.tidy(ABANDONED, |content| known.contains(content))?;
        let spawner = Arc::new(Spawner::new()?);
        let child = Arc::new(child_config(pool, &settings.datasets)?);
        let uploads = Uploads::new(
            context.database.clone(),
            library.clone(),
            Arc::clone(&spawner),
            Arc::clone(&child),
            settings.datasets.clone(),
        );

        let facts = (settings.workers > 0).then(|| housekeeping::device_of_this_host(pool));
        if let Some(facts) = &facts {
            let device = housekeeping::register(&context, facts, &pool.offered_runners()).await?;
            let worker = Worker {
                context: context.clone(),
                settings: Arc::new(pool.clone()),
                spawner,
                child,
                library,
                locks: Arc::new(HostLocks::open(pool.lock_dir.as_deref())?),
                facts: Arc::new(facts.clone()),
                device,
                metrics: metrics.clone(),
                name: String::new(),
            };
            for number in 0..settings.workers {
                let worker = Worker {
                    name: format!("{}/{}/{number}", facts.host, std::process::id()),
                    ..worker.clone()
                };
                tasks.spawn(worker.run(stop.clone()));
            }
        }
        tasks.spawn(housekeeping::run(
            context.clone(),
            pool.clone(),
            settings.retention.clone(),
            facts,
            stop.clone(),
        ));
        tasks.spawn(housekeeping::send_wake_ups(context.clone(), stop.clone()));
        tasks.spawn(housekeeping::hear_wake_ups(context.clone(), stop.clone()));
        tasks.spawn(lifecycle::run_advancer(
            context.clone(),
            Duration::from_secs_f64(pool.tick_secs),
            stop,
        ));

        let drain = Duration::from_secs_f64(pool.drain_secs);
        let server = api::Server::start(&settings, context, uploads, metrics)
            .with_context(|| format!("listening on {}", settings.listen))?;
        Ok(Self {
            address: server.address(),
            stop_intake,
            server,
            tasks,
            drain,
            postgres: None,
        })
    }

    /// Resolves when the REST server has ended by itself: nothing else ends it but a defect.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        Ok(self.server.ended().await?)
    }

    /// Drains: takes no more requests, hands running probes back at no cost, stops the managed
    /// database last.
    pub async fn stop(mut self) {
        tracing::info!("draining: running probes are handed back");
        self.stop_intake.send_replace(true);
        self.server.stop().await;
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.drain, drained).await.is_err() {
            tracing::warn!("some work did not end in time; its leases will run out");
            self.tasks.shutdown().await;
        }
        if let Some(postgres) = self.postgres.take() {
            postgres.stop().await;
        }
        tracing::info!("stopped");
    }
}

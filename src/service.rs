//! Puts the service together: database, pool, REST; and takes it apart again in the right order.
//! `serve` and the tests start it through the same function.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api;
use crate::library::Library;
use crate::lifecycle::{self, Context, Followers, Live, Room, Together};
use crate::metrics::{InstanceMetrics, Role};
use crate::pool::child::{ChildConfig, ServiceUser, Spawner};
use crate::pool::gpus;
use crate::pool::host_lock::HostLocks;
use crate::pool::housekeeping;
use crate::pool::inventory::DeviceFacts;
use crate::pool::journal::Journal;
use crate::pool::leases::{Leases, StoredLeases};
use crate::pool::worker::Worker;
use crate::settings::{DatasetSettings, Migrate, PoolSettings, Settings, TokenRule};
use crate::store::connection::{Database, DatabaseConfig, MigrateMode};
use crate::store::local_server::{LocalServer, LocalServerConfig, LocalServerError};
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
    /// Where the metrics are, if they have a listener of their own.
    pub metrics_address: Option<SocketAddr>,
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
    match &settings.database.url {
        Some(url) => Ok((database_at(settings, url)?, None)),
        None => {
            let server = LocalServer::start(local_server(settings)?).await?;
            Ok((database_at(settings, &server.url())?, Some(server)))
        }
    }
}

/// The same for a command that may run beside the service: where that runs the managed database, it is used as it is.
///
/// # Errors
/// As [`open_database`].
pub async fn join_database(settings: &Settings) -> anyhow::Result<(Database, Option<LocalServer>)> {
    if settings.database.url.is_some() {
        return open_database(settings).await;
    }
    let config = local_server(settings)?;
    match LocalServer::start(config.clone()).await {
        Ok(server) => Ok((database_at(settings, &server.url())?, Some(server))),
        Err(LocalServerError::InUse { .. }) => {
            let url = LocalServer::url_beside(&config)?;
            Ok((database_at(settings, &url)?, None))
        }
        Err(error) => Err(error.into()),
    }
}

fn local_server(settings: &Settings) -> anyhow::Result<LocalServerConfig> {
    Ok(LocalServerConfig {
        bin_dir: settings.database.bin_dir.clone(),
        user: settings.database.user.clone(),
        ..LocalServerConfig::new(settings.data_dir()?)
    })
}

fn database_at(settings: &Settings, url: &str) -> anyhow::Result<Database> {
    Ok(Database::open(&DatabaseConfig {
        pool_size: settings.database.pool_size,
        acquire_timeout: Duration::from_secs_f64(settings.database.connect_timeout_secs),
        statement_timeout: Duration::from_secs_f64(settings.database.statement_timeout_secs),
        slow_statement: Duration::from_secs_f64(settings.database.slow_statement_secs),
        ..DatabaseConfig::new(url)
    })?)
}

/// Refuses to serve where everybody would be turned away.
async fn check_tokens(settings: &Settings, database: &Database) -> anyhow::Result<()> {
    if !settings.needs_token() {
        return Ok(());
    }
    let mut conn = database.connection().await?;
    if crate::store::tokens::any_live(&mut conn).await? {
        return Ok(());
    }
    let make =
        "make one with `trialhead token create --name admin --scope admin`, with the same settings";
    if settings.api.tokens == TokenRule::Required {
        anyhow::bail!(
            "access tokens are required (api.tokens), and the database has none that is live: {make}"
        );
    }
    anyhow::bail!(
        "listening on {} needs an access token, and the database has none that is live: {make}, or listen on 127.0.0.1, or pass --insecure if something else guards the port",
        settings.listen
    )
}

/// How the settings want migrations handled.
pub fn migrate_mode(migrate: Migrate) -> MigrateMode {
    match migrate {
        Migrate::Auto => MigrateMode::Auto,
        Migrate::Check => MigrateMode::Check,
    }
}

/// How the settings want children started.
///
/// # Errors
/// When the account that they are to run as does not exist.
pub fn child_config(
    pool: &PoolSettings,
    datasets: &DatasetSettings,
) -> anyhow::Result<ChildConfig> {
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
        inventory_command: pool.inventory_command.clone(),
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

/// What the workers of one process share.
#[derive(Debug, Clone)]
pub struct Shared<L> {
    /// Where probes come from and their ends go to.
    pub leases: L,
    /// Starts children from one long-lived thread.
    pub spawner: Arc<Spawner>,
    /// How children are started.
    pub child: Arc<ChildConfig>,
    /// Counts what happens.
    pub metrics: InstanceMetrics,
    /// Says after a restart what was running.
    pub journal: Option<Arc<Journal>>,
}

/// The workers of one process: `settings.workers` for each device.
///
/// # Errors
/// When the host's locks or the folder of compiled kernels cannot be used.
pub fn workers<L: Leases>(
    settings: &Settings,
    facts: &[DeviceFacts],
    shared: &Shared<L>,
) -> anyhow::Result<Vec<Worker<L>>> {
    let pool = Arc::new(settings.pool.clone());
    let locks = Arc::new(HostLocks::open(pool.lock_dir.as_deref())?);
    let runners: Arc<[String]> = pool.offered_runners().into();
    let kernels = settings.data_dir()?.join("kernel-cache");
    let kernels = gpus::kernel_cache(&kernels, &pool, &shared.child, facts)?;
    let mut workers = Vec::new();
    for facts in facts {
        let worker = Worker {
            leases: shared.leases.clone(),
            settings: Arc::clone(&pool),
            wait_secs: settings.work.wait_secs,
            runners: Arc::clone(&runners),
            spawner: Arc::clone(&shared.spawner),
            child: Arc::new(gpus::child_on(
                facts,
                &shared.child,
                &pool,
                kernels.as_deref(),
            )),
            locks: Arc::clone(&locks),
            facts: Arc::new(facts.clone()),
            metrics: shared.metrics.clone(),
            name: String::new(),
            journal: shared.journal.clone(),
        };
        workers.extend((0..settings.workers).map(|number| Worker {
            name: gpus::worker_name(facts, number),
            ..worker.clone()
        }));
    }
    Ok(workers)
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
        check_tokens(&settings, &database).await?;
        let pool = &settings.pool;
        let context = Context {
            followers: Followers::new(database.clone(), settings.api.max_listeners),
            database,
            waker: Waker::default(),
            rules: Arc::new(DefinitionRules::new(settings.limits.clone())),
            max_active_studies: settings.api.max_active_studies,
            room: Room::default(),
            together: Together::on(Handle::current()),
            idempotency_hours: settings.api.idempotency_hours,
            alive_secs: pool.lease_secs * ALIVE_LEASES,
            live: Live::default(),
        };
        let metrics = InstanceMetrics::new(Role::Serve)?;
        metrics.watch_database(context.database.timings())?;
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

        let leases = StoredLeases::new(context.clone(), pool.clone(), library, metrics.clone());
        let facts = if settings.workers > 0 {
            gpus::devices_of_this_host(&spawner, &child, pool).await
        } else {
            Vec::new()
        };
        let needed = settings.workers * facts.len() + 3;
        if settings.database.pool_size < needed {
            anyhow::bail!(
                "database.pool_size ({}) must be at least workers × devices + 3 ({needed}) with the {} devices of this host",
                settings.database.pool_size,
                facts.len()
            );
        }
        for facts in &facts {
            housekeeping::register(&context, facts, &pool.offered_runners()).await?;
        }
        let shared = Shared {
            leases: leases.clone(),
            spawner,
            child,
            metrics: metrics.clone(),
            journal: None,
        };
        for worker in workers(&settings, &facts, &shared)? {
            let stop = stop.clone();
            tasks.spawn(async move {
                if let Err(error) = worker.run(stop).await {
                    tracing::error!(%error, "a worker of the pool ended");
                }
            });
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
        let readings = metrics.study_event_reads_total.clone();
        tasks.spawn(context.followers.clone().run(
            context.waker.clone(),
            Duration::from_secs_f64(pool.tick_secs),
            move || readings.inc(),
            stop.clone(),
        ));
        tasks.spawn(lifecycle::run_advancer(
            context.clone(),
            Duration::from_secs_f64(pool.tick_secs),
            stop.clone(),
        ));

        let drain = Duration::from_secs_f64(pool.drain_secs);
        let server = api::Server::start(&settings, context, uploads, leases, metrics, stop)
            .with_context(|| format!("listening on {}", settings.listen))?;
        Ok(Self {
            address: server.address(),
            metrics_address: server.metrics_address(),
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

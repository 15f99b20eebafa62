//! Typed settings: defaults < TOML file < `TRIALHEAD_*` environment.
//!
//! Every limit is here with its default. Nested settings are reached from the environment with a
//! double underscore: `TRIALHEAD_POOL__LEASE_SECS=60` is `[pool] lease_secs = 60`. Keys that do
//! not exist are refused, and so are combinations that would hurt ([`Settings::check`]).
//! `DATABASE_URL` is read too; it is never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::study::validation::DefinitionLimits;
use crate::study::{BURN, is_runner_name};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address and port of the REST service.
    pub listen: SocketAddr,
    /// Serve beyond loopback without asking for access tokens.
    pub insecure: bool,
    /// Workers of the pool inside `serve`; 0 is the API alone.
    pub workers: usize,
    /// Where the managed Postgres and other state live. Default: the platform's; for root `/var/lib/trialhead`.
    pub data_dir: Option<PathBuf>,
    /// The database.
    pub database: DatabaseSettings,
    /// The job pool.
    pub pool: PoolSettings,
    /// What a study may ask for.
    pub limits: DefinitionLimits,
    /// The REST interface.
    pub api: ApiSettings,
    /// Uploaded data sets.
    pub datasets: DatasetSettings,
    /// A worker away from the service (`trialhead work`).
    pub work: WorkSettings,
    /// How long things are kept.
    pub retention: RetentionSettings,
    /// Log lines.
    pub log: LogSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            insecure: false,
            workers: 1,
            data_dir: None,
            database: DatabaseSettings::default(),
            pool: PoolSettings::default(),
            limits: DefinitionLimits::default(),
            api: ApiSettings::default(),
            datasets: DatasetSettings::default(),
            work: WorkSettings::default(),
            retention: RetentionSettings::default(),
            log: LogSettings::default(),
        }
    }
}

/// The database.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseSettings {
    /// An external Postgres (≥ 14). Default: `DATABASE_URL`, else a managed local Postgres.
    #[serde(skip_serializing)]
    pub url: Option<String>,
    /// Connections at most.
    pub pool_size: usize,
    /// How long a request waits for a connection.
    pub connect_timeout_secs: f64,
    /// How long a statement may run.
    pub statement_timeout_secs: f64,
    /// A statement that takes longer is logged, and counted.
    pub slow_statement_secs: f64,
    /// Whether `serve` runs missing migrations or refuses to start.
    pub migrate: Migrate,
    /// Folder of `initdb` and `postgres` for the managed server. Default: searched for.
    pub bin_dir: Option<PathBuf>,
    /// Account that the managed server runs as when the service is root. Default: `postgres`.
    pub user: Option<String>,
}

impl Default for DatabaseSettings {
    fn default() -> Self {
        Self {
            url: None,
            pool_size: 16,
            connect_timeout_secs: 5.0,
            statement_timeout_secs: 30.0,
            slow_statement_secs: 1.0,
            migrate: Migrate::Auto,
            bin_dir: None,
            user: None,
        }
    }
}

impl fmt::Debug for DatabaseSettings {
    /// Leaves the URL out: it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseSettings")
            .field("url", &self.url.as_ref().map(|_| "(set)"))
            .field("pool_size", &self.pool_size)
            .field("connect_timeout_secs", &self.connect_timeout_secs)
            .field("statement_timeout_secs", &self.statement_timeout_secs)
            .field("migrate", &self.migrate)
            .field("bin_dir", &self.bin_dir)
            .field("user", &self.user)
            .finish()
    }
}

/// What `serve` does about migrations that the database lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Migrate {
    /// Runs them.
    Auto,
    /// Refuses to start and lists them.
    Check,
}

/// The job pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSettings {
    /// How long a claimed probe is held without a heartbeat.
    pub lease_secs: f64,
    /// Time between heartbeats.
    pub heartbeat_secs: f64,
    /// A child is killed this long before its lease would run out.
    pub lease_margin_secs: f64,
    /// Fallback for a wake-up that never came.
    pub tick_secs: f64,
    /// Attempts at a probe that crashes.
    pub max_crashes: u32,
    /// Attempts at a probe whose worker vanishes.
    pub max_losses: u32,
    /// First pause before a probe is tried again; doubles each time.
    pub retry_delay_secs: f64,
    /// Longest pause before a probe is tried again.
    pub max_retry_delay_secs: f64,
    /// How long a worker waits for a device that another service of the host holds.
    pub device_wait_secs: f64,
    /// Training probes that may share a device.
    pub slots: u32,
    /// Devices that are offered: `cpu`, `gpu` for every GPU, a backend's name, a hardware id.
    pub devices: Vec<String>,
    /// Devices that are not offered although they are among those; in the same words.
    pub exclude_devices: Vec<String>,
    /// Whether a processor that pretends to be a GPU is offered as one.
    pub software_gpus: bool,
    /// Training probes that may share a GPU, each with the whole memory budget.
    pub gpu_slots: u32,
    /// Equal GPUs that are offered as one device, for studies with `device.count`. A probe has all of them.
    pub gpus_together: u32,
    /// Limit of the memory on the host of a probe on a GPU. Default: none but that of the control group.
    pub gpu_host_memory_bytes: Option<u64>,
    /// Program and arguments that list the GPUs. Default: this program's `inventory`.
    pub inventory_command: Option<Vec<String>>,
    /// How long listing the GPUs may take.
    pub inventory_secs: f64,
    /// Where kernels that were tuned for a GPU are kept. Default: `kernel-cache` in `data_dir`.
    pub cache_dir: Option<PathBuf>,
    /// Program and arguments of a probe's child. Default: this program's `probe`.
    pub child_command: Option<Vec<String>>,
    /// Whether the service's own runner, burn, is offered.
    pub offers_burn: bool,
    /// Other people's training programs that are offered: the command of each by the name that studies give it, split
    /// as a shell would.
    pub runners: BTreeMap<String, String>,
    /// Account that children run as when the service is root.
    pub child_user: String,
    /// Bytes of a child's log that are kept, from its end.
    pub log_tail_bytes: usize,
    /// Bytes of one event line at most.
    pub max_event_line_bytes: usize,
    /// Events of one probe at most.
    pub max_events: usize,
    /// Names this host. Default: made from machine id and boot id.
    pub host: Option<String>,
    /// Folder of the host-wide device locks. Default: `trialhead-locks` in the system's temporary folder.
    pub lock_dir: Option<PathBuf>,
    /// How long a shutdown waits for children to end.
    pub drain_secs: f64,
    /// Measurements sent with one heartbeat or completion.
    pub measurements_per_batch: usize,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            lease_secs: 30.0,
            heartbeat_secs: 5.0,
            lease_margin_secs: 5.0,
            tick_secs: 5.0,
            max_crashes: 3,
            max_losses: 20,
            retry_delay_secs: 1.0,
            max_retry_delay_secs: 60.0,
            device_wait_secs: 10.0,
            slots: 2,
            devices: vec!["cpu".into(), "gpu".into()],
            exclude_devices: Vec::new(),
            software_gpus: false,
            gpu_slots: 1,
            gpus_together: 1,
            gpu_host_memory_bytes: None,
            inventory_command: None,
            inventory_secs: 30.0,
            cache_dir: None,
            child_command: None,
            offers_burn: true,
            runners: BTreeMap::new(),
            child_user: "nobody".into(),
            log_tail_bytes: 16 << 10,
            max_event_line_bytes: 64 << 10,
            max_events: 20_000,
            host: None,
            lock_dir: None,
            drain_secs: 10.0,
            measurements_per_batch: 1000,
        }
    }
}

impl PoolSettings {
    /// The names of the runners that workers offer.
    pub fn offered_runners(&self) -> Vec<String> {
        let own = self.offers_burn.then(|| BURN.to_owned());
        own.into_iter()
            .chain(self.runners.keys().cloned())
            .collect()
    }

    /// Program and arguments of each of other people's runners.
    ///
    /// # Errors
    /// [`SettingsError::Risky`] with one sentence for each name or command that is none.
    pub fn runner_commands(&self) -> Result<BTreeMap<String, Vec<String>>, SettingsError> {
        let mut faults = Vec::new();
        let mut commands = BTreeMap::new();
        for (name, command) in &self.runners {
            if !is_runner_name(name) || name == BURN {
                faults.push(format!(
                    "pool.runners: {name:?} is no name for a runner; take 1 to 64 lowercase letters, digits, _ and -, and not {BURN}"
                ));
            }
            match shlex::split(command).filter(|words| !words.is_empty()) {
                Some(words) => {
                    commands.insert(name.clone(), words);
                }
                None => faults.push(format!(
                    "pool.runners: the command of {name:?} is not one: give a program and its arguments, quotes closed"
                )),
            }
        }
        if faults.is_empty() {
            Ok(commands)
        } else {
            Err(SettingsError::Risky(faults))
        }
    }
}

/// The REST interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// Bytes of a request body at most.
    pub max_body_bytes: usize,
    /// Threads that serve requests. Default: as many as cores.
    pub threads: Option<usize>,
    /// Requests under way at most, for each thread.
    pub max_connections: usize,
    /// How long a client may take to send a request's head, and then send nothing of its body; 0: any time.
    pub request_timeout_secs: u64,
    /// `Host` headers accepted besides loopback ones; with any, others are refused.
    pub allowed_hosts: Vec<String>,
    /// Queued or running studies of a project at most.
    pub max_active_studies: u64,
    /// How long an `Idempotency-Key` is remembered.
    pub idempotency_hours: u32,
    /// How long the service metrics are cached.
    pub service_metrics_cache_secs: f64,
    /// Who needs an access token.
    pub tokens: TokenRule,
    /// How long a token that was let in is remembered: within this time a revocation takes effect. 0: not at all.
    pub token_cache_secs: f64,
    /// Wrong tokens from one peer in a minute; more are refused unseen with 429.
    pub failed_tokens_per_minute: u32,
    /// Peers whose wrong tokens are counted apart; more share one count.
    pub max_failing_peers: usize,
    /// Certificate chain in PEM; with it and its key the service speaks TLS, and nothing else. Read again when it changes.
    pub tls_certificate_file: Option<PathBuf>,
    /// Its private key in PEM.
    pub tls_key_file: Option<PathBuf>,
    /// Origins (`https://host`) whose pages a browser may let read and write here. None: no other site's.
    pub cors_origins: Vec<String>,
    /// Requests of one caller (a token, else an address) in a second, on average; more are refused with 429. 0: any
    /// number. What workers send for their probes is not counted.
    pub requests_per_sec: f64,
    /// Requests of one caller that may come faster, after a pause.
    pub request_burst: u32,
    /// Requests of one caller under way at once, those of workers and those that wait on purpose aside; more are refused
    /// with 429. 0: any number.
    pub max_requests_at_once: usize,
    /// Address and port of a listener that serves only the metrics, without tokens. Default: they are at `listen`.
    pub metrics_listen: Option<SocketAddr>,
    /// How long a worker's claim may wait for a probe.
    pub max_claim_wait_secs: f64,
    /// How long a request may wait for a study to change.
    pub max_study_wait_secs: f64,
    /// Requests that wait for news of a study at most, event streams and long polls together.
    pub max_listeners: usize,
    /// Time between two signs of life in a stream of events that has none.
    pub event_heartbeat_secs: f64,
    /// How long a stream of events lasts at most; its listener comes back, with a token that still holds.
    pub max_event_stream_secs: f64,
    /// How long a listener may take nothing of what is there for it.
    pub slow_listener_secs: f64,
}

impl ApiSettings {
    /// Whether the service speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.tls_certificate_file.is_some() && self.tls_key_file.is_some()
    }
}

/// Whether a text is an origin as a browser sends it.
fn is_origin(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text
    })
}

/// Who needs an access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenRule {
    /// Everybody as soon as the service listens beyond loopback, unless it is `insecure`.
    Auto,
    /// Everybody, wherever it listens.
    Required,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            max_body_bytes: 1 << 20,
            threads: None,
            max_connections: 1024,
            request_timeout_secs: 30,
            allowed_hosts: Vec::new(),
            max_active_studies: 10_000,
            idempotency_hours: 24,
            service_metrics_cache_secs: 15.0,
            tokens: TokenRule::Auto,
            token_cache_secs: 5.0,
            failed_tokens_per_minute: 60,
            max_failing_peers: 10_000,
            tls_certificate_file: None,
            tls_key_file: None,
            cors_origins: Vec::new(),
            requests_per_sec: 200.0,
            request_burst: 400,
            max_requests_at_once: 64,
            metrics_listen: None,
            max_claim_wait_secs: 60.0,
            max_study_wait_secs: 60.0,
            max_listeners: 500,
            event_heartbeat_secs: 15.0,
            max_event_stream_secs: 3600.0,
            slow_listener_secs: 10.0,
        }
    }
}

/// Uploaded data sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatasetSettings {
    /// Where contents are kept: `s3://bucket/prefix` or `gs://bucket/prefix`, with credentials from the
    /// provider's environment variables. Default: a folder of the data directory.
    pub url: Option<String>,
    /// Bytes of an upload at most.
    pub max_upload_bytes: u64,
    /// Bytes of a stored form at most: what a small file may expand to.
    pub max_content_bytes: u64,
    /// Program and arguments that inspect an upload. Default: this executable with `inspect`.
    pub inspect_command: Option<Vec<String>>,
    /// Memory of the process that inspects an upload.
    pub inspect_memory_bytes: u64,
    /// How long an inspection may take.
    pub inspect_secs: f64,
    /// Uploads under way at once.
    pub max_uploads: usize,
    /// Columns of a table.
    pub max_columns: u64,
    /// Classes.
    pub max_classes: u64,
}

impl Default for DatasetSettings {
    fn default() -> Self {
        Self {
            url: None,
            max_upload_bytes: 4 << 30,
            max_content_bytes: 16 << 30,
            inspect_command: None,
            inspect_memory_bytes: 512 << 20,
            inspect_secs: 900.0,
            max_uploads: 4,
            max_columns: 100_000,
            max_classes: 10_000,
        }
    }
}

/// A worker away from the service (`trialhead work`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkSettings {
    /// Address of the service: `http://HOST:PORT` or `https://…`.
    pub server: Option<String>,
    /// File with the access token, read again for every request. Default: `TRIALHEAD_TOKEN`, else none.
    pub token_file: Option<PathBuf>,
    /// PEM file with certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long one claim waits for a probe.
    pub wait_secs: f64,
    /// How long `--once` waits for a probe.
    pub once_wait_secs: f64,
    /// Exit code of `--once` when none came.
    pub once_empty_exit_code: u8,
    /// How long the service may take to answer, beyond what a claim waits.
    pub request_timeout_secs: f64,
    /// Bytes of data sets kept for use again; the ones not used for longest go first.
    pub cache_bytes: u64,
    /// Nothing but a want of memory ends this worker without a signal to stop, as in a container that is
    /// restarted only then.
    pub restart_is_out_of_memory: bool,
    /// Address and port at which the worker tells, without tokens, whether it is alive and ready, and its metrics.
    /// Default: it listens nowhere.
    pub listen: Option<SocketAddr>,
}

/// What a worker's exit code may be when no probe came: success, or one that says nothing else (1 is trouble, 2 wrong
/// arguments, 4 a probe to be run again; from 126 on they are the shell's).
fn is_free_exit_code(code: u8) -> bool {
    matches!(code, 0 | 3 | 5..=125)
}

impl Default for WorkSettings {
    fn default() -> Self {
        Self {
            server: None,
            token_file: None,
            ca_file: None,
            wait_secs: 20.0,
            once_wait_secs: 30.0,
            once_empty_exit_code: 3,
            request_timeout_secs: 10.0,
            cache_bytes: 20 << 30,
            restart_is_out_of_memory: false,
            listen: None,
        }
    }
}

/// How long things are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionSettings {
    /// Days that events of studies are kept.
    pub event_days: u32,
    /// Days that a study is kept after it has ended. None: for ever.
    pub study_days: Option<u32>,
    /// Days that probes of no study are kept for reuse.
    pub unlinked_probe_days: u32,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self {
            event_days: 7,
            study_days: None,
            unlinked_probe_days: 90,
        }
    }
}

/// Log lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// What is logged: a level, or directives like `info,trialhead::pool=debug`.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            filter: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file or a variable does not parse, or names a key that does not exist.
    #[error("settings: {0}")]
    Invalid(#[from] config::ConfigError),
    /// Each is fine, together they would hurt.
    #[error("settings: {}", .0.join("; "))]
    Risky(Vec<String>),
    /// No place for the data.
    #[error(
        "no home folder is known for this account: set TRIALHEAD_DATA_DIR to a folder for Trialhead's data"
    )]
    NoDataDir,
}

/// Variables with the `TRIALHEAD_` prefix that are not settings of the service.
const NOT_SETTINGS: [&str; 6] = [
    "TRIALHEAD_CONFIG",
    "TRIALHEAD_SERVER",
    "TRIALHEAD_TOKEN",
    crate::probe::EVENTS_FD_VARIABLE,
    crate::probe::DEVICE_VARIABLE,
    crate::probe::PROBE_VARIABLE,
];

impl Settings {
    /// Reads the file, if any, and the given environment.
    ///
    /// # Errors
    /// When a value does not parse, a key does not exist, or a combination is risky.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let settings = Self::read(file, environment)?;
        settings.check()?;
        Ok(settings)
    }

    /// The same unchecked, for whoever has more to add: what is missing may be among that.
    ///
    /// # Errors
    /// When a value does not parse or a key does not exist.
    pub fn read(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let mut database_url = None;
        let mut variables = std::collections::HashMap::new();
        for (name, value) in environment {
            if name == "DATABASE_URL" {
                database_url = Some(value);
            } else if name.starts_with("TRIALHEAD_") && !NOT_SETTINGS.contains(&name.as_str()) {
                variables.insert(name, value);
            }
        }
        let mut builder = config::Config::builder();
        if let Some(path) = file {
            builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
        }
        let environment = config::Environment::with_prefix("TRIALHEAD")
            .prefix_separator("_")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("api.allowed_hosts")
            .with_list_parse_key("api.cors_origins")
            .with_list_parse_key("pool.child_command")
            .with_list_parse_key("pool.devices")
            .with_list_parse_key("pool.exclude_devices")
            .with_list_parse_key("pool.inventory_command")
            .with_list_parse_key("datasets.inspect_command")
            .source(Some(variables));
        let mut settings: Self = builder.add_source(environment).build()?.try_deserialize()?;
        if settings.database.url.is_none() {
            settings.database.url = database_url.filter(|url| !url.is_empty());
        }
        Ok(settings)
    }

    /// Refuses combinations that would hurt, with every reason.
    ///
    /// # Errors
    /// [`SettingsError::Risky`] with one sentence for each.
    pub fn check(&self) -> Result<(), SettingsError> {
        let mut risks = Vec::new();
        let pool = &self.pool;
        for (name, value) in [
            ("pool.lease_secs", pool.lease_secs),
            ("pool.heartbeat_secs", pool.heartbeat_secs),
            ("pool.tick_secs", pool.tick_secs),
            ("pool.retry_delay_secs", pool.retry_delay_secs),
            ("pool.max_retry_delay_secs", pool.max_retry_delay_secs),
            ("pool.device_wait_secs", pool.device_wait_secs),
            ("pool.lease_margin_secs", pool.lease_margin_secs),
            ("pool.drain_secs", pool.drain_secs),
            ("pool.inventory_secs", pool.inventory_secs),
            ("datasets.inspect_secs", self.datasets.inspect_secs),
            ("api.max_claim_wait_secs", self.api.max_claim_wait_secs),
            ("api.max_study_wait_secs", self.api.max_study_wait_secs),
            ("api.event_heartbeat_secs", self.api.event_heartbeat_secs),
            ("api.max_event_stream_secs", self.api.max_event_stream_secs),
            ("api.slow_listener_secs", self.api.slow_listener_secs),
            ("work.wait_secs", self.work.wait_secs),
            ("work.once_wait_secs", self.work.once_wait_secs),
            ("work.request_timeout_secs", self.work.request_timeout_secs),
            (
                "database.connect_timeout_secs",
                self.database.connect_timeout_secs,
            ),
            (
                "database.statement_timeout_secs",
                self.database.statement_timeout_secs,
            ),
            (
                "database.slow_statement_secs",
                self.database.slow_statement_secs,
            ),
        ] {
            if !(value.is_finite() && value > 0.0 && value <= 86_400.0) {
                risks.push(format!(
                    "{name} must be above 0 and at most 86400, is {value}"
                ));
            }
        }
        if pool.lease_secs <= 2.0 * pool.heartbeat_secs + pool.lease_margin_secs {
            risks.push(format!(
                "pool.lease_secs ({}) must be longer than two heartbeats and the margin (2 × {} + {}): one late heartbeat would lose the probe",
                pool.lease_secs, pool.heartbeat_secs, pool.lease_margin_secs
            ));
        }
        if pool.max_crashes == 0 || pool.max_losses == 0 {
            risks.push("pool.max_crashes and pool.max_losses must be at least 1: every probe would fail untried".into());
        }
        if pool.measurements_per_batch == 0 {
            risks.push(
                "pool.measurements_per_batch must be at least 1: nothing could be sent".into(),
            );
        }
        if pool.devices.is_empty() && self.workers > 0 {
            risks.push("pool.devices must name a device: cpu, gpu, a backend or a hardware id; or set workers = 0".into());
        }
        if pool.slots == 0 || pool.gpu_slots == 0 {
            risks.push(
                "pool.slots and pool.gpu_slots must be at least 1: no probe could ever run".into(),
            );
        }
        if pool.gpus_together == 0 {
            risks.push("pool.gpus_together must be at least 1: no GPU could be offered".into());
        }
        for (name, command) in [
            ("pool.child_command", &pool.child_command),
            ("pool.inventory_command", &pool.inventory_command),
        ] {
            if command.as_ref().is_some_and(Vec::is_empty) {
                risks.push(format!("{name} must name a program"));
            }
        }
        if let Err(SettingsError::Risky(faults)) = pool.runner_commands() {
            risks.extend(faults);
        }
        if !pool.offers_burn && pool.runners.is_empty() {
            risks.push("pool.runners must name a runner when pool.offers_burn is false: no probe could ever run".into());
        }
        if self.workers > 64 {
            risks.push(format!("workers must be at most 64, is {}", self.workers));
        }
        let needed = self.workers + 3;
        if self.database.pool_size < needed {
            risks.push(format!(
                "database.pool_size ({}) must be at least workers + 3 ({needed}): the pool's own work would starve requests",
                self.database.pool_size
            ));
        }
        if self.api.max_body_bytes < 1024 {
            risks.push("api.max_body_bytes must be at least 1024: no study fits".into());
        }
        if !(self.api.requests_per_sec.is_finite() && self.api.requests_per_sec >= 0.0) {
            risks.push(format!(
                "api.requests_per_sec must be at least 0, is {}",
                self.api.requests_per_sec
            ));
        }
        if self.api.tls_certificate_file.is_some() != self.api.tls_key_file.is_some() {
            risks.push(
                "api.tls_certificate_file and api.tls_key_file belong together: set both or none"
                    .into(),
            );
        }
        for origin in &self.api.cors_origins {
            if !is_origin(origin) {
                risks.push(format!(
                    "api.cors_origins: {origin:?} is no origin; write scheme and host as a browser does, without a path: https://dashboard.example"
                ));
            }
        }
        if self.api.request_burst == 0 {
            risks.push("api.request_burst must be at least 1: no request would be answered".into());
        }
        if self.api.max_listeners >= self.api.max_connections {
            risks.push(format!(
                "api.max_listeners ({}) must be below api.max_connections ({}): listeners would leave no connection for other requests",
                self.api.max_listeners, self.api.max_connections
            ));
        }
        let cache = self.api.token_cache_secs;
        if !(0.0..=60.0).contains(&cache) {
            risks.push(format!(
                "api.token_cache_secs must be 0 to 60, is {cache}: so long a revoked token would still be let in"
            ));
        }
        if self.api.failed_tokens_per_minute == 0 || self.api.max_failing_peers == 0 {
            risks.push("api.failed_tokens_per_minute and api.max_failing_peers must be at least 1: no token could ever be checked".into());
        }
        if self.api.metrics_listen == Some(self.listen) && self.listen.port() != 0 {
            risks.push(format!(
                "api.metrics_listen ({}) must differ from listen: leave it out to have the metrics there, with tokens",
                self.listen
            ));
        }
        let code = self.work.once_empty_exit_code;
        if !is_free_exit_code(code) {
            risks.push(format!(
                "work.once_empty_exit_code must be 0, 3, or 5 to 125, is {code}: that code says something else already"
            ));
        }
        if risks.is_empty() {
            Ok(())
        } else {
            Err(SettingsError::Risky(risks))
        }
    }

    /// Whether a request without an access token is turned away.
    pub fn needs_token(&self) -> bool {
        match self.api.tokens {
            TokenRule::Required => true,
            TokenRule::Auto => !self.listen.ip().is_loopback() && !self.insecure,
        }
    }

    /// Where state lives: the setting, else the platform's folder, for root `/var/lib/trialhead`.
    ///
    /// # Errors
    /// When the account has no home folder.
    pub fn data_dir(&self) -> Result<PathBuf, SettingsError> {
        if let Some(path) = &self.data_dir {
            return Ok(path.clone());
        }
        #[cfg(unix)]
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/trialhead"));
        }
        directories::ProjectDirs::from("", "", "trialhead")
            .map(|folders| folders.data_local_dir().to_owned())
            .ok_or(SettingsError::NoDataDir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::load(
            None,
            variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    #[test]
    fn defaults_pass_their_own_check() {
        assert_eq!(load(&[]).expect("defaults"), Settings::default());
    }

    #[test]
    fn the_environment_overrides_the_file_and_the_file_the_defaults() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("trialhead.toml");
        std::fs::write(
            &path,
            "workers = 3\n[pool]\nlease_secs = 60.0\nheartbeat_secs = 4\n",
        )
        .expect("written");
        let settings = Settings::load(
            Some(&path),
            [("TRIALHEAD_POOL__LEASE_SECS".into(), "45".into())],
        )
        .expect("loads");
        assert_eq!(settings.workers, 3);
        assert_eq!(settings.pool.lease_secs, 45.0);
        assert_eq!(settings.pool.heartbeat_secs, 4.0);
        assert_eq!(settings.pool.tick_secs, 5.0);
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = load(&[("TRIALHEAD_POOL__LEESE_SECS", "45")]).expect_err("refused");
        assert!(error.to_string().contains("leese_secs"), "{error}");
        let error = load(&[("TRIALHEAD_WORKRES", "4")]).expect_err("refused");
        assert!(error.to_string().contains("workres"), "{error}");
    }

    #[test]
    fn risky_combinations_are_refused_with_every_reason() {
        let error = load(&[
            ("TRIALHEAD_POOL__LEASE_SECS", "10"),
            ("TRIALHEAD_API__TOKEN_CACHE_SECS", "3600"),
            ("TRIALHEAD_API__METRICS_LISTEN", "127.0.0.1:8080"),
            ("TRIALHEAD_DATABASE__POOL_SIZE", "2"),
            ("TRIALHEAD_API__MAX_LISTENERS", "1024"),
        ])
        .expect_err("refused")
        .to_string();
        assert!(error.contains("two heartbeats"), "{error}");
        assert!(error.contains("token_cache_secs"), "{error}");
        assert!(error.contains("metrics_listen"), "{error}");
        assert!(error.contains("pool_size"), "{error}");
        assert!(error.contains("max_listeners"), "{error}");
        for (code, is_free) in [("0", true), ("3", true), ("1", false), ("4", false)] {
            let loaded = load(&[("TRIALHEAD_WORK__ONCE_EMPTY_EXIT_CODE", code)]);
            assert_eq!(loaded.is_ok(), is_free, "{code}: {loaded:?}");
        }
    }

    /// What has only a runner of somebody's own gets it from a flag, after everything else was read.
    #[test]
    fn what_is_read_is_checked_when_it_is_whole() {
        let alone = [("TRIALHEAD_POOL__OFFERS_BURN".to_owned(), "false".to_owned())];
        assert!(Settings::load(None, alone.clone()).is_err());
        let mut settings = Settings::read(None, alone).expect("reads");
        let runner = ("python".to_owned(), "python3 train.py".to_owned());
        settings.pool.runners.extend([runner]);
        settings.check().expect("whole");
    }

    #[test]
    fn a_token_is_needed_beyond_loopback_and_where_it_is_required() {
        let needs = |variables: &[(&str, &str)]| load(variables).expect("loads").needs_token();
        let beyond = ("TRIALHEAD_LISTEN", "0.0.0.0:8080");
        let insecure = ("TRIALHEAD_INSECURE", "true");
        let required = ("TRIALHEAD_API__TOKENS", "required");
        assert!(!needs(&[]));
        assert!(!needs(&[("TRIALHEAD_LISTEN", "[::1]:8080")]));
        assert!(needs(&[beyond]));
        assert!(!needs(&[beyond, insecure]));
        assert!(needs(&[required]));
        assert!(needs(&[beyond, insecure, required]), "the stricter wins");
    }

    /// Every key, with a dot between section and name.
    fn keys(value: &serde_json::Value, prefix: &str, into: &mut Vec<String>) {
        for (name, value) in value.as_object().expect("a section") {
            let key = format!("{prefix}{name}");
            if value.is_object() {
                keys(value, &format!("{key}."), into);
            } else {
                into.push(key);
            }
        }
    }

    #[test]
    fn every_setting_is_documented() {
        let page = include_str!("../docs/settings.md");
        let settings = serde_json::to_value(Settings::default()).expect("settings as JSON");
        let mut all = vec!["database.url".to_owned()];
        keys(&settings, "", &mut all);
        let missing: Vec<_> = all
            .iter()
            .filter(|key| !page.contains(&format!("| `{key}` |")))
            .collect();
        assert!(missing.is_empty(), "docs/settings.md lacks {missing:?}");
    }

    #[test]
    fn the_database_url_is_read_and_never_printed() {
        let settings = load(&[("DATABASE_URL", "postgres://u:s3cret@h/d")]).expect("loads");
        assert_eq!(
            settings.database.url.as_deref(),
            Some("postgres://u:s3cret@h/d")
        );
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}

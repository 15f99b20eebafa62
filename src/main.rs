//! The command line: `serve`, `work`, `probe`, `inspect` and `inventory` (the children), `migrate`, `token`, `study`,
//! `doctor`, `openapi`, `completion`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use trialhead::access::{self, NewToken, Scope, listing};
use trialhead::cli;
use trialhead::runners;
use trialhead::service::{Service, join_database, migrate_mode, open_database};
use trialhead::settings::{LogSettings, Settings};
use trialhead::store::connection::Database;
use trialhead::store::tokens;
use trialhead::trainer::memory::WatchedAllocator;
use trialhead::work::WorkEnd;

/// The system's allocator, which a probe can watch to know its exact peak; off, it costs a flag.
#[global_allocator]
static ALLOCATOR: WatchedAllocator = WatchedAllocator;

/// Measures where a deep-learning project should start: which batch sizes fit, what throughput
/// each gives, and which one to begin with.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Start with:  trialhead serve\nThen open:   http://127.0.0.1:8080/docs"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the REST API and run probes.
    #[command(after_long_help = SETTINGS_HELP)]
    Serve(ServeArgs),
    /// Run probes for a service elsewhere: no database and no shared disk needed.
    #[command(after_long_help = WORK_HELP)]
    Work(WorkArgs),
    /// Run one probe: the spec as JSON on stdin, events as JSON lines on the descriptor that
    /// TRIALHEAD_EVENTS_FD names (else stdout). The service starts this itself.
    Probe,
    /// About other people's training programs.
    #[command(subcommand)]
    Runner(RunnerCommand),
    /// Inspect one uploaded file. The service starts this itself.
    #[command(hide = true)]
    Inspect,
    /// List the GPUs that this build can reach, as JSON. The service starts this itself.
    #[command(hide = true)]
    Inventory,
    /// Bring the database's tables up to date, or say what is missing.
    Migrate(MigrateArgs),
    /// Make, list and revoke access tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Submit, watch, list and read studies, of a service anywhere.
    #[command(after_long_help = cli::EXIT_CODES)]
    Study(cli::StudyArgs),
    /// Print what makes a shell complete these commands, such as: source <(trialhead completion bash)
    Completion(cli::CompletionArgs),
    /// Look at everything that the service needs on this host, and say what to mend. Exits with 1 when something
    /// keeps it from working.
    Doctor(DoctorArgs),
    /// Print the OpenAPI document.
    Openapi,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it, this once: only a hash of it is kept.
    Create(TokenCreateArgs),
    /// List all tokens, without their secrets.
    List(TokenListArgs),
    /// Revoke a token for good.
    Revoke(TokenRevokeArgs),
}

#[derive(Debug, Args)]
struct TokenCreateArgs {
    /// A name for people; kept as `created_by` with what the token makes.
    #[arg(long)]
    name: String,
    /// What it allows: read, write, work or admin (everything). Repeat for several.
    #[arg(long, required = true, value_name = "SCOPE")]
    scope: Vec<Scope>,
    /// The one project that it sees and makes things in [default: any].
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Days after which it expires [default: never].
    #[arg(long, value_name = "DAYS")]
    expires_in_days: Option<u32>,
    /// A TOML file with settings.
    #[arg(long, env = "TRIALHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct TokenListArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// A TOML file with settings.
    #[arg(long, env = "TRIALHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct TokenRevokeArgs {
    /// Its id, as `token list` shows it.
    id: uuid::Uuid,
    /// A TOML file with settings.
    #[arg(long, env = "TRIALHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

const SETTINGS_HELP: &str = "\
Settings: defaults < the file of --config (TOML) < TRIALHEAD_* variables < the flags above.
A double underscore reaches into a section: TRIALHEAD_POOL__LEASE_SECS=60 is [pool] lease_secs = 60.

  DATABASE_URL                     an external Postgres (14 or later); without it a local one is
                                   started and kept under the data folder
  TRIALHEAD_DATA_DIR               where state lives (root: /var/lib/trialhead)
  TRIALHEAD_DATABASE__BIN_DIR      folder of initdb and postgres, if they are not found
  TRIALHEAD_DATABASE__MIGRATE      auto | check
  TRIALHEAD_API__TOKENS            auto: access tokens are needed beyond loopback | required: always
  TRIALHEAD_POOL__CHILD_USER       account that probes run as when the service is root
  TRIALHEAD_LOG__FILTER            info, debug, or directives such as info,trialhead::pool=debug
  TRIALHEAD_LOG__FORMAT            text | json

docs/settings.md lists them all with their defaults.";

const WORK_HELP: &str = "\
Access: TRIALHEAD_TOKEN holds a token with the scope work, or --token-file names a file with it.

Exit codes: 0 it was told to stop, or (--once) a probe was run and its end stored; 1 it could not start,
could not reach the service (--once), or was refused; 3 (--once) no probe came; 4 (--once) the probe has to
be run again. TRIALHEAD_WORK__ONCE_EMPTY_EXIT_CODE=0 makes it 0 when no probe came, for a scheduler to which
anything else is a failure, such as a Kubernetes Job.

With --listen it answers /healthz, /readyz (the service has answered it lately) and /metrics, to anybody who
reaches the address.

Settings come as for `serve`: a file (--config), then TRIALHEAD_* variables, then flags.
docs/settings.md lists them; those of a worker are [work] and [pool].";

#[derive(Debug, Args)]
struct WorkArgs {
    /// A TOML file with settings.
    #[arg(long, env = "TRIALHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The service: http://HOST:PORT or https://HOST.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Claim one probe, run it, end; the exit code tells.
    #[arg(long)]
    once: bool,
    /// Somebody's own training program, by the name that studies give as their runner; may be repeated.
    #[arg(long = "runner", value_name = "NAME=COMMAND", value_parser = name_and_command)]
    runners: Vec<(String, String)>,
    /// Address and port at which it tells whether it is alive and ready, and its metrics [default: none].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Probes to run at once on each device [default: 1]; those that need a device alone still get it so.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: Option<u64>,
    /// File with the access token, read again for every request.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where data sets are kept for use again, and the journal.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

fn name_and_command(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, command)) if !name.trim().is_empty() && !command.trim().is_empty() => {
            Ok((name.trim().to_owned(), command.trim().to_owned()))
        }
        _ => Err("write NAME=COMMAND, such as --runner 'pytorch=python3 train.py'".to_owned()),
    }
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// A TOML file with settings.
    #[arg(long, env = "TRIALHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port to listen on [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Workers that run probes here; 0 is the API alone [default: 1].
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Where the managed Postgres and other state live.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Offer somebody's own training program under a name, as NAME=COMMAND; may be given several times.
    #[arg(long = "runner", value_name = "NAME=COMMAND", value_parser = name_and_command)]
    runners: Vec<(String, String)>,
    /// Listen beyond loopback without asking for access tokens: anyone who reaches the port can run
    /// studies.
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, Subcommand)]
enum RunnerCommand {
    /// Start a program with a small probe of each kind, as a worker would, and say whether it keeps the contract
    /// (docs/runners.md). Exits with 1 when it does not.
    Check(runners::CheckArgs),
}

#[derive(Debug, Args)]
struct MigrateArgs {
    /// A TOML file with settings.
    #[arg(long, env = "TRIALHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change nothing; exit with 1 and list the missing migrations if there are any.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// A TOML file with settings.
    #[arg(long, env = "TRIALHEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // The rest hold tokens and the database's password; the children hold nothing, and may be looked into.
    if !matches!(
        command,
        Command::Probe | Command::Inspect | Command::Inventory | Command::Openapi
    ) {
        trialhead::pool::child::close_to_others();
    }
    let result = match command {
        Command::Work(args) => match block_on(work(args)) {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error),
        },
        // The child must not start a runtime: its threads would count as its memory.
        Command::Probe => return trialhead::trainer::run_probe(),
        Command::Inspect => return trialhead::datasets::inspect::run(),
        Command::Inventory => return trialhead::trainer::run_inventory(),
        Command::Openapi => print_openapi(),
        Command::Study(args) => return study(args),
        Command::Doctor(args) => match block_on(doctor(args)) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Command::Completion(args) => {
            let name = env!("CARGO_PKG_NAME");
            clap_complete::generate(
                args.shell,
                &mut Cli::command(),
                name,
                &mut std::io::stdout(),
            );
            Ok(())
        }
        Command::Serve(args) => block_on(serve(args)),
        Command::Migrate(args) => block_on(migrate(args)),
        Command::Token(command) => block_on(token(command)),
        Command::Runner(RunnerCommand::Check(args)) => match block_on(runners::check(args)) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, 1),
    }
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    #[expect(
        clippy::print_stderr,
        reason = "the last word of a command that failed"
    )]
    {
        eprintln!("trialhead: {error:#}");
    }
    ExitCode::from(code)
}

fn study(args: cli::StudyArgs) -> ExitCode {
    match block_on(async { Ok(cli::study(args).await) }) {
        Ok(Ok(done)) => ExitCode::from(done.exit_code()),
        Ok(Err(error)) => {
            let code = error.exit_code();
            failed(&error.into(), code)
        }
        Err(error) => failed(&error, 1),
    }
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(command)
}

fn print_openapi() -> anyhow::Result<()> {
    let mut document = serde_json::to_string_pretty(&trialhead::api::openapi::document())?;
    document.push('\n');
    std::io::stdout().write_all(document.as_bytes())?;
    Ok(())
}

fn settings(config: Option<PathBuf>) -> anyhow::Result<Settings> {
    Ok(Settings::load(config.as_deref(), std::env::vars())?)
}

impl ServeArgs {
    /// The settings with the flags on top, checked again.
    fn settings(self) -> anyhow::Result<Settings> {
        let flags = [
            ("TRIALHEAD_LISTEN", self.listen.map(|it| it.to_string())),
            ("TRIALHEAD_WORKERS", self.workers.map(|it| it.to_string())),
            (
                "TRIALHEAD_DATA_DIR",
                self.data_dir.map(|it| it.to_string_lossy().into_owned()),
            ),
            ("TRIALHEAD_INSECURE", self.insecure.then(|| "true".into())),
        ];
        with_flags(self.config.as_deref(), flags, self.runners)
    }
}

/// Flags are variables that win, and runners besides: one way in, one check of them all.
fn with_flags<const N: usize>(
    config: Option<&std::path::Path>,
    flags: [(&str, Option<String>); N],
    runners: Vec<(String, String)>,
) -> anyhow::Result<Settings> {
    let flags = flags
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let mut settings = Settings::read(config, std::env::vars().chain(flags))?;
    settings.pool.runners.extend(runners);
    settings.check()?;
    Ok(settings)
}

impl WorkArgs {
    /// The settings with the flags on top, checked again.
    fn settings(self) -> anyhow::Result<Settings> {
        let path = |path: Option<PathBuf>| path.map(|it| it.to_string_lossy().into_owned());
        let flags = [
            ("TRIALHEAD_WORK__SERVER", self.server),
            ("TRIALHEAD_WORK__TOKEN_FILE", path(self.token_file)),
            (
                "TRIALHEAD_WORK__LISTEN",
                self.listen.map(|it| it.to_string()),
            ),
            ("TRIALHEAD_DATA_DIR", path(self.data_dir)),
        ];
        let mut settings = with_flags(self.config.as_deref(), flags, self.runners)?;
        // What the service's connections to its database allow is not this worker's concern.
        settings.workers = match self.workers {
            Some(workers) => usize::try_from(workers)?,
            None => settings.workers.max(1),
        };
        Ok(settings)
    }
}

/// Gives the exit code.
async fn work(args: WorkArgs) -> anyhow::Result<u8> {
    let once = args.once;
    let settings = args.settings()?;
    trialhead::telemetry::start(&settings.log)?;
    let mut signals = Signals::new()?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let token = std::env::var("TRIALHEAD_TOKEN").ok();
    let working = trialhead::work::work(&settings, token.as_deref(), once, stopped);
    tokio::pin!(working);
    let end = tokio::select! {
        end = &mut working => end?,
        () = signals.next() => {
            stop.send_replace(true);
            // A second signal ends the drain.
            tokio::select! {
                end = &mut working => end?,
                () = signals.next() => WorkEnd::Stopped,
            }
        }
    };
    Ok(end.exit_code(&settings.work))
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    trialhead::telemetry::start(&settings.log)?;
    let mut signals = Signals::new()?;
    let is_tls = settings.api.is_tls();
    let starting = Service::start(settings);
    let mut service = tokio::select! {
        started = starting => started?,
        () = signals.next() => anyhow::bail!("stopped before it had started"),
    };
    let scheme = if is_tls { "https" } else { "http" };
    tracing::info!(
        "serving on {scheme}://{address}; API docs at {scheme}://{address}/docs",
        address = service.address
    );
    if let Some(address) = service.metrics_address {
        tracing::info!("metrics, without tokens, on http://{address}/metrics");
    }
    tokio::select! {
        () = signals.next() => {}
        ended = service.ended() => ended?,
    }
    // A second signal ends the drain.
    tokio::select! {
        () = service.stop() => {}
        () = signals.next() => {}
    }
    Ok(())
}

async fn migrate(args: MigrateArgs) -> anyhow::Result<()> {
    let settings = settings(args.config)?;
    trialhead::telemetry::start(&settings.log)?;
    let (database, postgres) = open_database(&settings).await?;
    let mode = if args.check {
        trialhead::store::connection::MigrateMode::Check
    } else {
        // Whoever says it means it, whatever the service may do when it starts.
        trialhead::store::connection::MigrateMode::Auto
    };
    let result = trialhead::store::connection::migrate(&database, mode).await;
    if let Some(postgres) = postgres {
        postgres.stop().await;
    }
    result?;
    tracing::info!("the database's tables are up to date");
    Ok(())
}

async fn doctor(args: DoctorArgs) -> anyhow::Result<bool> {
    let mut settings = settings(args.config)?;
    // What the database says while it starts and stops is of no use here.
    if settings.log == LogSettings::default() {
        settings.log.filter = "error,postgres=off".into();
    }
    trialhead::telemetry::start(&settings.log)?;
    let findings = trialhead::doctor::examine(&settings, args.json).await;
    Ok(trialhead::doctor::is_well(&findings))
}

async fn token(command: TokenCommand) -> anyhow::Result<()> {
    let config = match &command {
        TokenCommand::Create(args) => &args.config,
        TokenCommand::List(args) => &args.config,
        TokenCommand::Revoke(args) => &args.config,
    };
    let mut settings = settings(config.clone())?;
    // What the database says while it starts and stops is of no use here.
    if settings.log == LogSettings::default() {
        settings.log.filter = "warn,postgres=off".into();
    }
    trialhead::telemetry::start(&settings.log)?;
    let (database, postgres) = join_database(&settings).await?;
    let done = async {
        let mode = migrate_mode(settings.database.migrate);
        trialhead::store::connection::migrate(&database, mode).await?;
        token_on(&database, command).await
    };
    let result = done.await;
    database.close();
    if let Some(postgres) = postgres {
        postgres.stop().await;
    }
    let (output, explanation) = result?;
    std::io::stdout().write_all(output.as_bytes())?;
    std::io::stderr().write_all(explanation.as_bytes())?;
    Ok(())
}

/// What goes to stdout, and what to stderr.
async fn token_on(database: &Database, command: TokenCommand) -> anyhow::Result<(String, String)> {
    Ok(match command {
        TokenCommand::Create(args) => {
            let new = NewToken {
                name: args.name,
                scopes: args.scope,
                project: args.project,
                expires_in_days: args.expires_in_days,
            };
            let (text, row) = access::create(database, &new).await?;
            let explanation = format!(
                "This is the token {} ({}), scopes {}, project {}, expires {}.\nKeep it now: it is not shown again. Send it as `Authorization: Bearer …`; revoke it with `trialhead token revoke {}`.\n",
                row.id,
                row.name,
                row.scopes.join(", "),
                row.project.as_deref().unwrap_or("any"),
                row.expires_at
                    .map_or("never".to_owned(), |at| at.to_rfc3339()),
                row.id
            );
            (format!("{}\n", text.reveal()), explanation)
        }
        TokenCommand::List(args) => {
            let mut conn = database.connection().await?;
            let rows = tokens::list(&mut conn).await?;
            let listing = if args.json {
                listing::json(&rows)?
            } else {
                listing::table(&rows)
            };
            (listing, String::new())
        }
        TokenCommand::Revoke(args) => {
            let mut conn = database.connection().await?;
            let row = tokens::revoke(&mut conn, args.id).await?.with_context(|| {
                format!(
                    "there is no token {}; `trialhead token list` shows them",
                    args.id
                )
            })?;
            let explanation = format!(
                "The token {} ({}) is revoked; running services let it in no more within seconds (api.token_cache_secs).\n",
                row.id, row.name
            );
            (String::new(), explanation)
        }
    })
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

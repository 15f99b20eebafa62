//! The command line: `serve`, `probe` and `inspect` (the children), `migrate`, `openapi`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use trialhead::runners;
use trialhead::service::{Service, migrate_mode, open_database};
use trialhead::settings::Settings;
use trialhead::trainer::memory::WatchedAllocator;

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
    /// Run one probe: the spec as JSON on stdin, events as JSON lines on the descriptor that
    /// TRIALHEAD_EVENTS_FD names (else stdout). The service starts this itself.
    Probe,
    /// About other people's training programs.
    #[command(subcommand)]
    Runner(RunnerCommand),
    /// Inspect one uploaded file. The service starts this itself.
    #[command(hide = true)]
    Inspect,
    /// Bring the database's tables up to date, or say what is missing.
    Migrate(MigrateArgs),
    /// Print the OpenAPI document.
    Openapi,
}

const SETTINGS_HELP: &str = "\
Settings: defaults < the file of --config (TOML) < TRIALHEAD_* variables < the flags above.
A double underscore reaches into a section: TRIALHEAD_POOL__LEASE_SECS=60 is [pool] lease_secs = 60.

  DATABASE_URL                     an external Postgres (14 or later); without it a local one is
                                   started and kept under the data folder
  TRIALHEAD_DATA_DIR               where state lives (root: /var/lib/trialhead)
  TRIALHEAD_DATABASE__BIN_DIR      folder of initdb and postgres, if they are not found
  TRIALHEAD_DATABASE__MIGRATE      auto | check
  TRIALHEAD_POOL__CHILD_USER       account that probes run as when the service is root
  TRIALHEAD_LOG__FILTER            info, debug, or directives such as info,trialhead::pool=debug
  TRIALHEAD_LOG__FORMAT            text | json

docs/settings.md lists them all with their defaults.";

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
    #[arg(long = "runner", value_name = "NAME=COMMAND")]
    runners: Vec<String>,
    /// Listen beyond loopback although there are no access tokens yet: anyone who reaches the port
    /// can run studies.
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

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        // The child must not start a runtime: its threads would count as its memory.
        Command::Probe => return trialhead::trainer::run_probe(),
        Command::Inspect => return trialhead::datasets::inspect::run(),
        Command::Openapi => print_openapi(),
        Command::Serve(args) => run(serve(args)),
        Command::Migrate(args) => run(migrate(args)),
        Command::Runner(RunnerCommand::Check(args)) => match run_for(runners::check(args)) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "the last word of a command that failed"
            )]
            {
                eprintln!("trialhead: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    run_for(command)
}

fn run_for<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(command)
}

fn print_openapi() -> anyhow::Result<()> {
    use std::io::Write as _;
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
        // Flags are variables that win: one way in, one check.
        let flags = flags
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let mut settings = Settings::load(self.config.as_deref(), std::env::vars().chain(flags))?;
        // A name may hold what no variable's can.
        for given in &self.runners {
            let (name, command) = given
                .split_once('=')
                .context("--runner must be NAME=COMMAND, such as pytorch=\"python3 train.py\"")?;
            settings
                .pool
                .runners
                .insert(name.to_owned(), command.to_owned());
        }
        settings.check()?;
        Ok(settings)
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    trialhead::telemetry::start(&settings.log)?;
    let mut signals = Signals::new()?;
    let starting = Service::start(settings);
    let mut service = tokio::select! {
        started = starting => started?,
        () = signals.next() => anyhow::bail!("stopped before it had started"),
    };
    tracing::info!(
        "serving on http://{address}; API docs at http://{address}/docs",
        address = service.address
    );
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
        migrate_mode(settings.database.migrate)
    };
    let result = trialhead::store::connection::migrate(&database, mode).await;
    if let Some(postgres) = postgres {
        postgres.stop().await;
    }
    result?;
    tracing::info!("the database's tables are up to date");
    Ok(())
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

//! Commands for people: studies from a terminal. They speak REST like anybody else, and know nothing of the inside.

mod file;
mod study;
mod table;
mod watch;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::client::rest::RestError;
use crate::client::{ClientError, Server};
use crate::settings::WorkSettings;

pub use study::StudyCommand;

/// What every command about studies takes.
#[derive(Debug, Args)]
pub struct Connection {
    /// The service: http://HOST:PORT or https://HOST.
    #[arg(
        long,
        global = true,
        env = "TRIALHEAD_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    server: String,
    /// File with the access token [default: what TRIALHEAD_TOKEN holds].
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with certificates to trust besides the system's.
    #[arg(long, global = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How answers are shown.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// As the service gives it.
    Json,
}

impl Connection {
    fn server(&self) -> Result<Server, CliError> {
        let settings = WorkSettings {
            server: Some(self.server.clone()),
            token_file: self.token_file.clone(),
            ca_file: self.ca_file.clone(),
            ..WorkSettings::default()
        };
        let token = std::env::var("TRIALHEAD_TOKEN").ok();
        Ok(Server::new(&settings, token.as_deref())?)
    }
}

/// What the exit codes say, for `--help`.
pub const EXIT_CODES: &str = "\
Access: TRIALHEAD_TOKEN holds a token, or --token-file names a file with it.

Exit codes: 0 done (--watch: the study was answered); 1 something failed; 2 the command line or the study is not
valid; 3 the study ended without an answer; 4 it was cancelled; 5 the service cannot be reached, is busy, or is
stopping: try again; 6 it lets this token not in; 7 there is no such study.";

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The service said no, or nothing.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// No client can be made.
    #[error("{}", what(.0))]
    Client(#[from] ClientError),
    /// A file cannot be read, or is no study.
    #[error("{0}")]
    File(String),
    /// What was found cannot be written.
    #[error("cannot write {to}")]
    Write {
        to: String,
        #[source]
        error: std::io::Error,
    },
}

fn what(error: &ClientError) -> String {
    // The same setting has another name here.
    error.to_string().replace("work.ca_file", "--ca-file")
}

impl CliError {
    /// See [`EXIT_CODES`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Rest(RestError::Invalid { .. }) | Self::File(_) | Self::Client(_) => 2,
            Self::Rest(RestError::Away(_)) => 5,
            Self::Rest(RestError::Refused(_)) => 6,
            Self::Rest(RestError::Missing(_)) => 7,
            Self::Rest(RestError::Conflict(_) | RestError::Failed(_)) | Self::Write { .. } => 1,
        }
    }
}

/// About studies.
#[derive(Debug, Args)]
pub struct StudyArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: StudyCommand,
}

/// How a command ended that came to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// As it should.
    Well,
    /// The study ended without an answer.
    Unanswered,
    /// The study was cancelled.
    Cancelled,
}

impl Done {
    /// See [`EXIT_CODES`].
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Well => 0,
            Self::Unanswered => 3,
            Self::Cancelled => 4,
        }
    }
}

/// Runs a command about studies.
///
/// # Errors
/// See [`CliError`].
pub async fn study(args: StudyArgs) -> Result<Done, CliError> {
    let server = args.connection.server()?;
    study::run(&server, args.connection.output, args.command).await
}

/// Shells that complete commands.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Whose.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

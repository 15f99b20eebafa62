//! `trialhead study …`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use reqwest::header::HeaderName;
use serde_json::Value;
use uuid::Uuid;

use super::table::{columns, minute, plain, span, table, text};
use super::watch::{ended, watch};
use super::{CliError, Done, Output, file};
use crate::client::Server;
use crate::client::rest::Ask;

/// Times that a write is repeated while the service is away; its key keeps it from being done twice.
const TRIES: u32 = 5;

/// What to do about studies.
#[derive(Debug, Subcommand)]
pub enum StudyCommand {
    /// Post a study from a .json, .yaml or .toml file, or from standard input (-).
    Submit {
        /// The file.
        file: PathBuf,
        /// Follow it to its end, then print what it recommends.
        #[arg(long)]
        watch: bool,
        /// Only say what it would do and cost.
        #[arg(long, conflicts_with = "watch")]
        dry_run: bool,
        /// Names this submission: sent again with the same key, it makes no second study.
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Show where a study stands.
    Show {
        /// The study.
        id: Uuid,
        /// Follow it to its end.
        #[arg(long)]
        watch: bool,
    },
    /// List studies, the newest first.
    List {
        /// Only those in this state: queued, running, succeeded, failed, cancelled.
        #[arg(long)]
        state: Option<String>,
        /// Only those with this label; several separated by commas.
        #[arg(long, value_name = "KEY:VALUE")]
        label: Option<String>,
        /// So many at most.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
        limit: u64,
    },
    /// Cancel a study: what runs is told to stop.
    Cancel {
        /// The study.
        id: Uuid,
    },
    /// Show what a study recommends.
    Recommendations {
        /// The study.
        id: Uuid,
        /// Only this topic, such as batch_size.
        #[arg(long)]
        topic: Option<String>,
        /// Also what no longer holds.
        #[arg(long)]
        include_stale: bool,
    },
    /// Write what a study measured, all of it.
    Export {
        /// The study.
        id: Uuid,
        /// The form.
        #[arg(long, value_enum, default_value_t = Form::Csv)]
        format: Form,
        /// Into this file [default: standard output].
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// A form of measurements, or the whole answer for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Comma-separated values.
    Csv,
    /// A JSON object a line.
    Ndjson,
    /// The report, in Markdown.
    Markdown,
}

pub async fn run(server: &Server, output: Output, command: StudyCommand) -> Result<Done, CliError> {
    match command {
        StudyCommand::Submit {
            file,
            watch,
            dry_run,
            idempotency_key,
        } => submit(server, output, &file, watch, dry_run, idempotency_key).await,
        StudyCommand::Show { id, watch: false } => {
            let study = server
                .ask(Ask::get(&format!("v1/studies/{id}")))
                .await?
                .body;
            show(output, &study)?;
            Ok(Done::Well)
        }
        StudyCommand::Show { id, watch: true } => {
            let study = watch(server, &id.to_string()).await?;
            show(output, &study)?;
            Ok(ended(&study))
        }
        StudyCommand::List {
            state,
            label,
            limit,
        } => list(server, output, state, label, limit).await,
        StudyCommand::Cancel { id } => {
            let path = format!("v1/studies/{id}/cancel");
            let study = server.ask(Ask::post(&path, Vec::new())).await?.body;
            show(output, &study)?;
            Ok(Done::Well)
        }
        StudyCommand::Recommendations {
            id,
            topic,
            include_stale,
        } => {
            recommendations(
                server,
                output,
                &id.to_string(),
                topic.as_deref(),
                include_stale,
            )
            .await?;
            Ok(Done::Well)
        }
        StudyCommand::Export { id, format, file } => export(server, id, format, file).await,
    }
}

async fn submit(
    server: &Server,
    output: Output,
    path: &std::path::Path,
    follow: bool,
    dry_run: bool,
    key: Option<String>,
) -> Result<Done, CliError> {
    let body = file::read(path)?.to_string().into_bytes();
    if dry_run {
        let answer = server
            .ask(Ask::post("v1/studies?dry_run=true", body))
            .await?
            .body;
        match output {
            Output::Json => print(&pretty(&answer))?,
            Output::Text => print(&plan(&answer["plan"]))?,
        }
        return Ok(Done::Well);
    }
    // With a key of its own a submission that broke off can be repeated.
    let key = key.unwrap_or_else(|| Uuid::now_v7().to_string());
    let name = HeaderName::from_static("idempotency-key");
    let mut tries = 0;
    let study = loop {
        let ask = Ask::post("v1/studies", body.clone()).with(name.clone(), &key);
        match server.ask(ask).await {
            Ok(answer) => break answer.body,
            Err(crate::client::rest::RestError::Away(why)) if tries + 1 < TRIES => {
                tries += 1;
                let _ = writeln!(std::io::stderr(), "{}; trying again", plain(&why));
                tokio::time::sleep(std::time::Duration::from_secs(1 << tries)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let id = study["id"].as_str().unwrap_or_default().to_owned();
    if !follow {
        show(output, &study)?;
        if output == Output::Text {
            print(&format!(
                "\nFollow it with:  trialhead study show {id} --watch\n"
            ))?;
        }
        return Ok(Done::Well);
    }
    let _ = writeln!(std::io::stderr(), "study {id}");
    let study = watch(server, &id).await?;
    let done = ended(&study);
    if output == Output::Text {
        print(&format!(
            "{}: {}\n\n",
            text(&study, "state"),
            text(&study, "ended_detail")
        ))?;
    }
    recommendations(server, output, &id, None, false).await?;
    Ok(done)
}

fn plan(plan: &Value) -> String {
    let mut lines = format!(
        "{} probes, about {} of device time; {} probes are taken over\n",
        plan["probes"],
        span(plan["estimated_device_secs"].as_f64().unwrap_or(f64::NAN)),
        plan["reused_probes"]
    );
    for warning in plan["warnings"].as_array().into_iter().flatten() {
        lines.push_str(&format!(
            "warning: {}\n",
            plain(warning.as_str().unwrap_or_default())
        ));
    }
    lines
}

fn show(output: Output, study: &Value) -> Result<(), CliError> {
    if output == Output::Json {
        return print(&pretty(study));
    }
    let progress = &study["progress"];
    let secs = |name: &str| span(progress[name].as_f64().unwrap_or(0.0));
    let mut rows = vec![
        ("id", text(study, "id")),
        ("name", text(study, "name")),
        ("workload", text(study, "workload")),
        ("state", text(study, "state")),
        ("phase", text(study, "phase")),
    ];
    if !study["waiting_for"].is_null() {
        rows.push(("waiting for", text(study, "waiting_for")));
    }
    if !study["ended_detail"].is_null() {
        rows.push(("ended", text(study, "ended_detail")));
    }
    rows.push((
        "probes",
        format!(
            "{} done, about {} to come",
            progress["probes_done"], progress["remaining_probes"]
        ),
    ));
    rows.push((
        "device time",
        format!(
            "{}, about {} to come",
            secs("device_secs"),
            secs("remaining_device_secs")
        ),
    ));
    rows.push(("created", minute(study, "created_at")));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = rows
        .into_iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect();
    print(&lines.concat())
}

async fn list(
    server: &Server,
    output: Output,
    state: Option<String>,
    label: Option<String>,
    limit: u64,
) -> Result<Done, CliError> {
    let mut items: Vec<Value> = Vec::new();
    let mut token: Option<String> = None;
    while (items.len() as u64) < limit {
        let size = (limit - items.len() as u64).min(500).to_string();
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("page_size", &size);
        for (name, value) in [("state", &state), ("label", &label), ("page_token", &token)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        let path = format!("v1/studies?{}", query.finish());
        let mut page = server.ask(Ask::get(&path)).await?.body;
        token = page["next_page_token"].as_str().map(str::to_owned);
        if let Some(page) = page["items"].as_array_mut() {
            items.append(page);
        }
        if token.is_none() {
            break;
        }
    }
    if output == Output::Json {
        print(&pretty(&Value::Array(items)))?;
        return Ok(Done::Well);
    }
    let rows = items
        .iter()
        .map(|study| {
            vec![
                text(study, "id"),
                text(study, "name"),
                text(study, "state"),
                text(&study["progress"], "probes_done"),
                minute(study, "created_at"),
            ]
        })
        .collect();
    print(&table(
        &["id", "name", "state", "probes", "created"],
        rows,
        columns(),
    ))?;
    if token.is_some() {
        let _ = writeln!(std::io::stderr(), "There are more: --limit shows them.");
    }
    Ok(Done::Well)
}

async fn recommendations(
    server: &Server,
    output: Output,
    id: &str,
    topic: Option<&str>,
    include_stale: bool,
) -> Result<(), CliError> {
    let path = format!("v1/studies/{id}/recommendations?include_stale={include_stale}");
    let mut answer = server.ask(Ask::get(&path)).await?.body;
    if let (Some(topic), Some(items)) = (topic, answer["items"].as_array_mut()) {
        items.retain(|it| it["topic"] == topic);
    }
    if output == Output::Json {
        return print(&pretty(&answer));
    }
    let rows: Vec<Vec<String>> = answer["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| {
            let stale = if it["stale"] == true { " (stale)" } else { "" };
            let caveats: Vec<&str> = it["caveats"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|caveat| caveat["code"].as_str())
                .collect();
            vec![
                format!("{}{stale}", text(it, "topic")),
                text(&it["confidence"], "grade"),
                text(it, "summary"),
                caveats.join(" "),
            ]
        })
        .collect();
    if rows.is_empty() {
        return print("Nothing can be said yet.\n");
    }
    print(&table(
        &["topic", "grade", "what to do, and why", "caveats"],
        rows,
        columns(),
    ))
}

async fn export(
    server: &Server,
    id: Uuid,
    format: Form,
    file: Option<PathBuf>,
) -> Result<Done, CliError> {
    let (path, form) = match format {
        Form::Csv => (format!("v1/studies/{id}/measurements"), "text/csv"),
        Form::Ndjson => (
            format!("v1/studies/{id}/measurements"),
            "application/x-ndjson",
        ),
        Form::Markdown => (format!("v1/studies/{id}/report"), "text/markdown"),
    };
    let mut response = server.stream(&path, form).await?;
    // Named only when it is whole: half an export looks like one.
    let (mut out, place): (Box<dyn std::io::Write + Send>, _) = match &file {
        Some(file) => {
            let part = file.with_added_extension("part");
            let created = std::fs::File::create(&part).map_err(unwritten(&part.display()))?;
            (Box::new(created), Some((part, file)))
        }
        None => (Box::new(std::io::stdout()), None),
    };
    let to = match &place {
        Some((part, _)) => part.display().to_string(),
        None => OUTPUT.to_owned(),
    };
    loop {
        match response.chunk().await {
            Ok(Some(piece)) => {
                if !is_read(out.write_all(&piece)).map_err(unwritten(&to))? {
                    return Ok(Done::Well);
                }
            }
            Ok(None) => break,
            Err(error) => return Err(server.broken(&error).into()),
        }
    }
    is_read(out.flush()).map_err(unwritten(&to))?;
    if let Some((part, file)) = place {
        std::fs::rename(part, file).map_err(unwritten(&file.display()))?;
    }
    Ok(Done::Well)
}

fn pretty(value: &Value) -> String {
    // What came as JSON can be written as JSON.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    is_read(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
        .map_err(unwritten(&OUTPUT))?;
    Ok(())
}

const OUTPUT: &str = "to standard output";

fn unwritten(to: &impl std::fmt::Display) -> impl Fn(std::io::Error) -> CliError {
    let to = to.to_string();
    move |error| CliError::Write {
        to: to.clone(),
        error,
    }
}

/// Whether somebody still reads what was written; who had enough is no error.
fn is_read(written: std::io::Result<()>) -> std::io::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

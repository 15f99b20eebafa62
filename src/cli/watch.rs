//! Follows a study to its end: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::header::IF_NONE_MATCH;
use serde_json::Value;

use super::table::{plain, span, text};
use super::{CliError, Done};
use crate::client::Server;
use crate::client::rest::{Ask, RestError};

/// How long one question waits for news.
const WAIT_SECS: u64 = 20;
/// Pause where the answer came at once.
const PAUSE: Duration = Duration::from_millis(500);
/// A service that is away for longer is given up.
const GIVE_UP: Duration = Duration::from_secs(300);
/// Time between two plain lines about the same phase.
const QUIET: Duration = Duration::from_secs(10);

/// Waits until the study has ended, and gives it as it is then.
pub async fn watch(server: &Server, id: &str) -> Result<Value, CliError> {
    let path = format!("v1/studies/{id}");
    let waiting = format!("{path}?wait_secs={WAIT_SECS}");
    let definition = server
        .ask(Ask::get(&format!("v1/studies/{id}/definition")))
        .await?
        .body;
    let budget = definition["budget"]["device_secs"].as_f64();
    let mut shown = Shown::new(budget);
    let mut etag: Option<String> = None;
    let mut away: Option<Instant> = None;
    loop {
        let ask = match &etag {
            Some(etag) => Ask::get(&waiting)
                .waiting(Duration::from_secs(WAIT_SECS))
                .with(IF_NONE_MATCH, etag),
            None => Ask::get(&path),
        };
        let asked = Instant::now();
        match server.ask(ask).await {
            Ok(answer) => {
                away = None;
                if answer.status == reqwest::StatusCode::OK {
                    etag = answer.etag;
                    shown.show(&answer.body);
                    if !answer.body["ended_at"].is_null() {
                        shown.end();
                        return Ok(answer.body);
                    }
                }
            }
            // A service that restarts loses nothing.
            Err(RestError::Away(why)) => {
                let since = *away.get_or_insert(asked);
                if since.elapsed() > GIVE_UP {
                    shown.end();
                    return Err(RestError::Away(why).into());
                }
                shown.say(&format!("{why}; trying again"));
                tokio::time::sleep(4 * PAUSE).await;
            }
            Err(error) => {
                shown.end();
                return Err(error.into());
            }
        }
        if asked.elapsed() < PAUSE {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// How a study ended.
pub fn ended(study: &Value) -> Done {
    match (study["state"].as_str(), study["ended_because"].as_str()) {
        (Some("cancelled"), _) => Done::Cancelled,
        (Some("succeeded"), Some("answered")) => Done::Well,
        _ => Done::Unanswered,
    }
}

struct Shown {
    bar: Option<ProgressBar>,
    budget: Option<f64>,
    last: String,
    at: Option<Instant>,
}

impl Shown {
    fn new(budget: Option<f64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {wide_bar} {pos}/{len} probes\n  {msg}")
            {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            bar,
            budget,
            last: String::new(),
            at: None,
        }
    }

    fn show(&mut self, study: &Value) {
        let progress = &study["progress"];
        let count = |name: &str| progress[name].as_u64().unwrap_or(0);
        let secs = |name: &str| progress[name].as_f64().unwrap_or(0.0);
        let (done, left) = (count("probes_done"), count("remaining_probes"));
        let doing = match study["waiting_for"].as_str() {
            Some(what) => format!("waiting for {}", plain(what)),
            None => text(study, "phase"),
        };
        let of_budget = self
            .budget
            .map_or_else(String::new, |budget| format!(" of {}", span(budget)));
        let spent = format!(
            "{doing} · {}{of_budget} of device time · about {} left",
            span(secs("device_secs")),
            span(secs("remaining_device_secs"))
        );
        match &self.bar {
            Some(bar) => {
                bar.set_length(done + left);
                bar.set_position(done);
                bar.set_message(spent);
            }
            None => {
                let is_new = doing != self.last;
                if is_new || self.at.is_none_or(|at| at.elapsed() >= QUIET) {
                    line(&format!("{done} of about {} probes · {spent}", done + left));
                    self.last = doing;
                    self.at = Some(Instant::now());
                }
            }
        }
    }

    fn say(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(plain(text)),
            None if self.last != text => {
                line(&plain(text));
                self.last = text.to_owned();
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress is for people: what a pipe reads on standard output is the answer alone.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

//! How long statements take and connections are waited for. A slow statement is logged in the span of the request or the
//! probe that made it: its text, and never what was bound to it.

use std::time::{Duration, Instant};

use diesel::connection::{Instrumentation, InstrumentationEvent};
use prometheus::{Histogram, HistogramOpts, IntCounter};

/// Buckets of both: half a millisecond to half a minute.
const SECONDS: [f64; 11] = [
    0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0,
];

/// Characters of a statement that are logged.
const SHOWN: usize = 600;

/// What is counted of one pool.
#[derive(Debug, Clone)]
pub struct Timings {
    /// Time of each statement.
    pub statements: Histogram,
    /// Time until a connection was lent, or none could be.
    pub waits: Histogram,
    /// Statements that took longer than is usual.
    pub slow: IntCounter,
}

impl Timings {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))
        };
        Ok(Self {
            statements: histogram(
                "trialhead_database_statement_seconds",
                "Time of each statement to the database",
            )?,
            waits: histogram(
                "trialhead_database_wait_seconds",
                "Time until a connection of the pool was lent",
            )?,
            slow: IntCounter::new(
                "trialhead_database_slow_statements_total",
                "Statements that took longer than database.slow_statement_secs; each is logged",
            )?,
        })
    }

    pub(super) fn watch(&self, slow_after: Duration) -> impl Instrumentation + use<> {
        let timings = self.clone();
        // Of several that were sent together each begins where the one before it has ended.
        let mut began = Instant::now();
        move |event: InstrumentationEvent<'_>| match event {
            InstrumentationEvent::StartQuery { .. } => began = Instant::now(),
            InstrumentationEvent::FinishQuery { query, .. } => {
                let took = std::mem::replace(&mut began, Instant::now()).elapsed();
                timings.statements.observe(took.as_secs_f64());
                if took > slow_after {
                    timings.slow.inc();
                    tracing::warn!(
                        secs = took.as_secs_f64(),
                        statement = shown(&query.to_string()),
                        "a statement was slow"
                    );
                }
            }
            _ => {}
        }
    }
}

/// The statement on one line, without what was bound to it.
fn shown(statement: &str) -> String {
    let text = statement
        .split_once("-- binds")
        .map_or(statement, |(text, _)| text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        None => line,
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_shown_without_what_was_bound_to_it() {
        let statement = "SELECT *\n  FROM tokens WHERE hash = $1 -- binds: [\"secret\"]";
        assert_eq!(shown(statement), "SELECT * FROM tokens WHERE hash = $1");
        let long = shown(&"é ".repeat(SHOWN));
        assert_eq!(long.chars().count(), SHOWN + 1);
    }
}

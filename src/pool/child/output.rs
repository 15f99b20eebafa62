//! What a child says: log tails that stay small, and its events, checked.
//!
//! A child is not trusted: it may be somebody else's program, or ours gone wild. Every buffer here has
//! a bound, and what the database cannot hold (NUL bytes) never leaves this module.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use utoipa::ToSchema;

use crate::probe::{Event, InfeasibleReason, Measurement, Metric, PROTOCOL, names_an_error};

/// Of a log line, what is looked at for an error.
const LOG_LINE_BYTES: usize = 4096;
/// Longest text of an event: details and phases are for people.
pub(in crate::pool) const DETAIL_CHARS: usize = 4000;
pub(in crate::pool) const PHASE_CHARS: usize = 200;
/// Longest names of an event; the database's columns rely on it.
const METRIC_CHARS: usize = 100;
const UNIT_CHARS: usize = 32;
const RUNNER_CHARS: usize = 200;

/// The end of a log, and the first line in all of it that names an error: later ones are
/// consequences, and the tail may have lost it.
#[derive(Debug)]
pub(super) struct Log {
    limit: usize,
    /// The last `limit` bytes, and at most as many before them.
    tail: Vec<u8>,
    line: Vec<u8>,
    first_error: Option<String>,
    follows: Follows,
}

/// What still belongs to the first error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    Nothing,
    /// A panic's message is on the line after the one that says "panicked at".
    Message,
    /// "Caused by:", and lines below the message that are indented: an error that was handed on names its reason
    /// there, as a GPU's runtime does.
    Causes,
}

const CAUSED_BY: &str = "Caused by:";

impl Log {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            tail: Vec::new(),
            line: Vec::new(),
            first_error: None,
            follows: Follows::Nothing,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > 2 * self.limit {
            self.tail.drain(..self.tail.len() - self.limit);
        }
        if self.first_error.is_some() && self.follows == Follows::Nothing {
            return;
        }
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LOG_LINE_BYTES {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = clean(&String::from_utf8_lossy(&line), LOG_LINE_BYTES);
        let text = line.trim();
        if let Some(first) = &mut self.first_error {
            let belongs = match self.follows {
                Follows::Nothing => false,
                Follows::Message => true,
                Follows::Causes => {
                    first.len() < LOG_LINE_BYTES
                        && (text.is_empty()
                            || text == CAUSED_BY
                            || line.starts_with(char::is_whitespace))
                }
            };
            if !belongs {
                self.follows = Follows::Nothing;
                return;
            }
            self.follows = Follows::Causes;
            if !text.is_empty() && text != CAUSED_BY {
                first.push(' ');
                first.push_str(text);
            }
        } else if names_an_error(text) {
            if text.contains("panicked at") && text.ends_with(':') {
                self.follows = Follows::Message;
            }
            self.first_error = Some(text.to_owned());
        }
    }

    /// The first line that names an error, then the tail.
    pub(super) fn finish(mut self) -> (Option<String>, String) {
        if !self.line.is_empty() {
            self.end_line();
        }
        let from = self.tail.len().saturating_sub(self.limit);
        // A cut within a character would show as a replacement; start at the next whole one.
        let tail = &self.tail[from..];
        let whole = if from == 0 {
            0
        } else {
            tail.iter()
                .take(3)
                .take_while(|byte| *byte & 0b1100_0000 == 0b1000_0000)
                .count()
        };
        let tail = String::from_utf8_lossy(&tail[whole..]).replace('\0', "\u{fffd}");
        (self.first_error, tail)
    }

    /// Reads `source` to its end.
    pub(super) async fn read(&mut self, mut source: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 16 * 1024];
        // An error on a pipe is as good as its end: there is nothing more to know.
        while let Ok(count @ 1..) = source.read(&mut chunk).await {
            self.push(&chunk[..count]);
        }
    }
}

/// How languages write what JSON cannot.
const NOT_A_NUMBER: [&str; 3] = ["NaN", "Infinity", "nan"];

/// How many and how long a child's events may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventLimits {
    pub(super) line_bytes: usize,
    pub(super) events: usize,
    /// Only an inspection finds data wanting.
    pub(super) is_inspection: bool,
}

/// The events of a child so far.
#[derive(Debug)]
pub(super) struct EventLog {
    limits: EventLimits,
    partial: Vec<u8>,
    /// Lines so far, the one being read included.
    lines: u64,
    count: usize,
    pub(super) runner: Option<String>,
    pub(super) measurements: Vec<Measurement>,
    pub(super) last: Option<Event>,
}

/// How far a probe is, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WorkerProgress)]
pub struct Progress {
    /// What it is doing, a few words.
    pub phase: String,
    /// 0 to 1.
    pub fraction: f64,
}

/// What a child has said so far that is of use before its end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// Its last word on how far it is.
    pub progress: Option<Progress>,
    /// What it has measured.
    pub measurements: Vec<Measurement>,
}

/// One thing that a child says.
#[derive(Debug)]
pub(super) enum Word<'a> {
    Progress(Progress),
    Measurement(&'a Measurement),
}

impl Told {
    pub(super) fn hear(&mut self, word: Word<'_>) {
        match word {
            Word::Progress(progress) => self.progress = Some(progress),
            Word::Measurement(measurement) => self.measurements.push(measurement.clone()),
        }
    }
}

/// What a stream of events tells that comes in pieces of `piece` bytes, as it is taken from a child; `Err` says how it
/// breaks the contract.
///
/// # Errors
/// For people.
pub fn hear(stream: &[u8], piece: usize, line_bytes: usize, events: usize) -> Result<Told, String> {
    let mut log = EventLog::new(EventLimits {
        line_bytes,
        events,
        is_inspection: false,
    });
    let mut told = Told::default();
    for bytes in stream.chunks(piece.max(1)) {
        log.push(bytes, &mut |word| told.hear(word))?;
    }
    log.finish(true, &[])?;
    // The last line may have come without its end.
    told.measurements = log.measurements;
    Ok(told)
}

impl EventLog {
    pub(super) fn new(limits: EventLimits) -> Self {
        Self {
            limits,
            partial: Vec::new(),
            lines: 0,
            count: 0,
            runner: None,
            measurements: Vec::new(),
            last: None,
        }
    }

    /// Takes the next bytes of the stream; `Err` says how they break the contract.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        told: &mut impl FnMut(Word<'_>),
    ) -> Result<(), String> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if self.partial.len() + text.len() > self.limits.line_bytes {
                return Err(format!(
                    "line {} of its events is longer than {} bytes",
                    self.lines + 1,
                    self.limits.line_bytes
                ));
            }
            self.partial.extend_from_slice(text);
            if ended {
                let line = std::mem::take(&mut self.partial);
                self.line(&line, told)?;
            }
        }
        Ok(())
    }

    /// The stream has ended. A last line without its end counts if it is whole; if not, what broke it
    /// off decides what it means: only a child that ended by its own will is to blame for it. One that has finished
    /// must have told every figure in `must_tell`.
    pub(super) fn finish(
        &mut self,
        ended_cleanly: bool,
        must_tell: &[Metric],
    ) -> Result<(), String> {
        let line = std::mem::take(&mut self.partial);
        match self.line(&line, &mut |_| {}) {
            Err(problem) if ended_cleanly => return Err(problem),
            _ => {}
        }
        if self.last != Some(Event::Finished {}) {
            return Ok(());
        }
        let is_told = |metric: &Metric| {
            let mut told = self.measurements.iter();
            told.any(|it| it.step.is_none() && it.metric == metric.as_str())
        };
        let missing: Vec<&str> = must_tell
            .iter()
            .filter(|metric| !is_told(metric))
            .map(|metric| metric.as_str())
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "it finished without a measurement, with no step, of {}",
                missing.join(", ")
            ))
        }
    }

    fn line(&mut self, line: &[u8], told: &mut impl FnMut(Word<'_>)) -> Result<(), String> {
        self.lines += 1;
        let number = self.lines;
        // The reader of JSON repeats names as it finds them, however long and with whatever is in them.
        self.event(line, told).map_err(|problem| {
            clean(
                &format!("line {number} of its events: {problem}"),
                DETAIL_CHARS,
            )
        })
    }

    fn event(&mut self, line: &[u8], told: &mut impl FnMut(Word<'_>)) -> Result<(), String> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        self.count += 1;
        if self.count > self.limits.events {
            return Err(format!("there are more than {} events", self.limits.events));
        }
        let event: Event = serde_json::from_slice(line).map_err(|error| {
            let start = clean(&String::from_utf8_lossy(line), 80);
            let hint = if NOT_A_NUMBER.iter().any(|word| start.contains(word)) {
                "; JSON has no NaN and no infinity: leave such a measurement out, or say infeasible with the reason diverged"
            } else {
                ""
            };
            format!("not an event: {error}, in: {start}{hint}")
        })?;
        if self.last.is_some() {
            return Err("nothing may come after `finished`, `infeasible` or `failed`".to_owned());
        }
        if self.runner.is_none() && !matches!(event, Event::Started { .. }) {
            return Err("the first event must be `started`".to_owned());
        }
        match event {
            Event::Started { .. } if self.runner.is_some() => {
                return Err("`started` must come only once".to_owned());
            }
            Event::Started { protocol, .. } if protocol != PROTOCOL => {
                return Err(format!(
                    "the runner speaks protocol {protocol}, the service {PROTOCOL}"
                ));
            }
            Event::Started { runner, .. } => self.runner = Some(clean(&runner, RUNNER_CHARS)),
            Event::Measurement(measurement) => {
                self.measurement(measurement)?;
                if let Some(measurement) = self.measurements.last() {
                    told(Word::Measurement(measurement));
                }
            }
            Event::Progress { phase, fraction } => told(Word::Progress(Progress {
                phase: clean(&phase, PHASE_CHARS),
                fraction: fraction.clamp(0.0, 1.0),
            })),
            Event::Finished {} => self.last = Some(event),
            Event::Infeasible { reason, .. }
                if !(reason.may_be_told()
                    || (self.limits.is_inspection && reason == InfeasibleReason::DataRefused)) =>
            {
                return Err(format!(
                    "`infeasible` with the reason {:?}, which is not a runner's to give; docs/runners.md lists those that are",
                    reason.as_str()
                ));
            }
            Event::Infeasible { reason, detail } => {
                let detail = clean(&detail, DETAIL_CHARS);
                self.last = Some(Event::Infeasible { reason, detail });
            }
            Event::Failed { detail } => {
                let detail = clean(&detail, DETAIL_CHARS);
                self.last = Some(Event::Failed { detail });
            }
        }
        Ok(())
    }

    fn measurement(&mut self, measurement: Measurement) -> Result<(), String> {
        let seq = measurement.seq;
        if seq as usize != self.measurements.len() {
            return Err(format!(
                "measurement {} has seq {seq}: they count from 0",
                self.measurements.len()
            ));
        }
        check_measurement(&measurement)?;
        self.measurements.push(measurement);
        Ok(())
    }

    /// Reads `source` to its end, or to the first breach of the contract.
    pub(super) async fn read(
        &mut self,
        mut source: impl AsyncRead + Unpin,
        mut told: impl FnMut(Word<'_>),
    ) -> Result<(), String> {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = source.read(&mut chunk).await {
            self.push(&chunk[..count], &mut told)?;
        }
        Ok(())
    }
}

/// Whether the database can hold a measurement; `Err` says what is wrong with it.
pub(in crate::pool) fn check_measurement(measurement: &Measurement) -> Result<(), String> {
    let Measurement {
        seq,
        metric,
        unit,
        step,
        elapsed_secs,
        ..
    } = measurement;
    if !is_name(metric, METRIC_CHARS) || !(unit.is_empty() || is_name(unit, UNIT_CHARS)) {
        return Err(format!("measurement {seq} has no proper metric or unit"));
    }
    if let Some(known) = Metric::parse(metric) {
        if known.unit() != unit {
            return Err(format!(
                "measurement {seq}: {metric} is in {}, not in {unit:?}",
                known.unit()
            ));
        }
        if let Some(allowed) = known.refuses(measurement.value) {
            return Err(format!(
                "measurement {seq}: {metric} must be {allowed}, is {}",
                measurement.value
            ));
        }
    }
    // The database counts steps with a signed integer.
    if step.is_some_and(|step| i64::try_from(step).is_err()) {
        return Err(format!("measurement {seq} has an absurd step"));
    }
    if elapsed_secs.is_sign_negative() && *elapsed_secs != 0.0 {
        return Err(format!("measurement {seq} was made before the start"));
    }
    Ok(())
}

/// A name of printable characters without spaces at its ends.
pub(in crate::pool) fn is_name(text: &str, chars: usize) -> bool {
    !text.is_empty()
        && text.trim() == text
        && text.chars().count() <= chars
        && !text.chars().any(char::is_control)
}

/// The first `chars` characters, without what the database refuses.
pub(in crate::pool) fn clean(text: &str, chars: usize) -> String {
    text.chars()
        .take(chars)
        .map(|c| if c == '\0' { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{ChildEnd, Exit, Outcome, classify};

    const STARTED: &str = "{\"event\":\"started\",\"protocol\":1,\"runner\":\"r\"}\n";
    const FINISHED: &str = "{\"event\":\"finished\"}\n";

    fn measurement(seq: u32) -> String {
        format!(
            "{{\"event\":\"measurement\",\"seq\":{seq},\"metric\":\"my_own\",\"value\":1.5,\"unit\":\"s\",\"elapsed_secs\":0.1}}\n"
        )
    }

    fn log() -> EventLog {
        EventLog::new(EventLimits {
            line_bytes: 300,
            events: 5,
            is_inspection: false,
        })
    }

    fn read(text: &str) -> Result<EventLog, String> {
        let mut log = log();
        log.push(text.as_bytes(), &mut |_| {})?;
        Ok(log)
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let text = format!(
            "{STARTED}{}\n{}{{\"event\":\"progress\",\"phase\":\"sampling\",\"fraction\":7}}\n{FINISHED}",
            measurement(0),
            measurement(1)
        );
        for size in [1, 2, 7, 64, 10_000] {
            let mut log = log();
            let mut seen = Told::default();
            for chunk in text.as_bytes().chunks(size) {
                log.push(chunk, &mut |word| seen.hear(word))
                    .expect("keeps the contract");
            }
            log.finish(true, &[]).expect("nothing is left");
            assert_eq!(log.measurements.len(), 2);
            assert_eq!(log.measurements[1].metric, "my_own");
            assert_eq!(log.last, Some(Event::Finished {}));
            assert_eq!(log.runner.as_deref(), Some("r"));
            let progress = Progress {
                phase: "sampling".into(),
                fraction: 1.0,
            };
            assert_eq!(seen.progress, Some(progress));
            assert_eq!(seen.measurements, log.measurements);
        }
    }

    #[test]
    fn every_breach_of_the_contract_is_named() {
        let long = "x".repeat(301);
        let many = STARTED.to_owned() + &(0..5).map(measurement).collect::<String>();
        let nul = STARTED.to_owned() + &measurement(0).replace("my_own", "a\\u0000b");
        let null = STARTED.to_owned() + &measurement(0).replace("1.5", "null");
        let nan = STARTED.to_owned() + &measurement(0).replace("1.5", "NaN");
        let known = |metric: &str, value: &str, unit: &str| {
            let line = measurement(0)
                .replace("my_own", metric)
                .replace("1.5", value);
            STARTED.to_owned() + &line.replace("\"unit\":\"s\"", &format!("\"unit\":\"{unit}\""))
        };
        let cases: [(&str, &str); 15] = [
            (&nan, "JSON has no NaN"),
            (
                &known("time_per_step_median", "12", "ms"),
                "time_per_step_median is in s, not in \"ms\"",
            ),
            (&known("time_per_step_median", "0", "s"), "must be above 0"),
            (
                &known("validation_accuracy", "71", "ratio"),
                "must be from 0 to 1, is 71",
            ),
            ("hello\n", "not an event"),
            ("{\"event\":\"dance\"}\n", "not an event"),
            (&null, "not an event"),
            (&nul, "no proper metric"),
            (&long, "longer than 300 bytes"),
            (&many, "more than 5 events"),
            (FINISHED, "must be `started`"),
            (
                &format!("{STARTED}{STARTED}"),
                "line 2 of its events: `started` must come only once",
            ),
            (&STARTED.replace(":1", ":2"), "protocol 2"),
            (&format!("{STARTED}{}", measurement(1)), "count from 0"),
            (
                &format!("{STARTED}{FINISHED}{FINISHED}"),
                "nothing may come after",
            ),
        ];
        for (text, expected) in cases {
            let problem = read(text).expect_err(text);
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn a_last_line_without_its_end_counts_if_it_is_whole() {
        let mut whole = read(&format!("{STARTED}{}", FINISHED.trim_end())).expect("reads");
        whole.finish(true, &[]).expect("is whole");
        assert_eq!(whole.last, Some(Event::Finished {}));
        let cut = format!("{STARTED}{{\"event\":\"fini");
        assert!(read(&cut).expect("reads").finish(true, &[]).is_err());
        assert!(read(&cut).expect("reads").finish(false, &[]).is_ok());
    }

    #[test]
    fn a_tail_keeps_the_end_and_the_first_error_survives_it() {
        let mut log = Log::new(100);
        log.push(b"starting\nthread 'main' (7) panicked at src/x.rs:1:2:\n");
        log.push(b"No pool handles allocation of size 9\nnote: run with\nerror: second\n");
        for _ in 0..1000 {
            log.push("žluťoučký kůň\n".as_bytes());
        }
        assert!(log.tail.capacity() < 1000);
        let (first, tail) = log.finish();
        assert_eq!(
            first.as_deref(),
            Some(
                "thread 'main' (7) panicked at src/x.rs:1:2: No pool handles allocation of size 9"
            )
        );
        assert!(tail.len() <= 100 && tail.ends_with("kůň\n"));
        assert!(!tail.contains('\u{fffd}'));
    }

    /// What a child said on an NVIDIA H200 whose memory another program had taken.
    #[test]
    fn what_caused_a_panic_belongs_to_it() {
        let mut log = Log::new(100);
        log.push(
            b"thread '<unnamed>' (1192) panicked at src/trainer/tasks.rs:239:20:\n\
              Error while reading data: Execution(An error happened during execution\n\
              Caused by:\n  Several failures at once\nCaused by:\n  An IO error happened\n\
              Caused by:\n  out of device memory allocating 1074790400 bytes\n\
              No backtrace available\nAsked at:\n  error: second\n",
        );
        let (first, _) = log.finish();
        assert_eq!(
            first.as_deref(),
            Some(
                "thread '<unnamed>' (1192) panicked at src/trainer/tasks.rs:239:20: Error while reading data: \
                 Execution(An error happened during execution Several failures at once An IO error happened \
                 out of device memory allocating 1074790400 bytes"
            )
        );
        let end = ChildEnd {
            exit: Exit::Code(101),
            first_error_line: first,
            last_event: None,
            invalid_output: None,
            killed_for: None,
            oom_killed: false,
        };
        assert!(matches!(
            classify(&end),
            Outcome::Infeasible {
                reason: InfeasibleReason::OutOfMemory,
                ..
            }
        ));
    }

    #[test]
    fn what_breaks_the_contract_is_told_in_words_that_can_be_stored() {
        for event in [
            r#"{"event":"\u0000?:started"}"#.to_owned(),
            r#"{"event":"started","\u0000":1}"#.to_owned(),
            format!(r#"{{"event":"{}"}}"#, "a".repeat(3 * DETAIL_CHARS)),
        ] {
            let problem = hear(event.as_bytes(), usize::MAX, usize::MAX, 10).expect_err("no event");
            assert!(problem.starts_with("line 1 of its events: "), "{problem}");
            assert!(!problem.contains('\0'), "{problem:?}");
            assert!(problem.chars().count() <= DETAIL_CHARS, "{problem}");
        }
    }

    #[test]
    fn an_error_on_a_line_without_end_is_found_and_nul_bytes_are_replaced() {
        let mut log = Log::new(100);
        log.push(b"\0memory allocation of 512 bytes failed");
        let (first, tail) = log.finish();
        assert!(first.is_some_and(|line| line.ends_with("bytes failed")));
        assert!(!tail.contains('\0'));
    }
}

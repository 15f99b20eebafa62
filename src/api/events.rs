//! What happens to a study, as it happens: Server-Sent Events, and answers that wait for a change.
//!
//! Every stream has a task that hears from [`crate::lifecycle::follow`] and fills a short queue; the connection empties
//! it. A listener that takes nothing costs that queue and no more, and after a while not even its place.

use std::convert::Infallible;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use actix_web::web::{Bytes, Data, Path, Query, ReqData};
use actix_web::{HttpRequest, HttpResponse, get};
use chrono::{DateTime, Utc};
use prometheus::IntGauge;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use super::problem::{Problem, ProblemCode};
use super::responses::{Always, Missing};
use super::state::Api;
use crate::lifecycle::{Caller, Following, Heard};
use crate::store::events::Event;
use crate::study::StudyId;

const EVENT_STREAM: &str = "text/event-stream";

/// Nginx, among others, would else keep events back until it has a page full of them.
const NO_BUFFER: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Pieces of a stream that wait for their listener to take them.
const QUEUE: usize = 16;

/// After so long a listener comes back: usually, and when it was too slow.
const COME_BACK: Duration = Duration::from_secs(2);
const COME_BACK_LATER: Duration = Duration::from_secs(5);

/// What an event of a stream tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StudyEventKind {
    /// The study moved on: its state, phase, revision, or what it waits for.
    Study,
    /// A probe of it was started, or an attempt at one has ended.
    Probe,
    /// Its recommendations changed.
    Recommendations,
    /// Events between the one that was heard last and this one are not kept any more: read the study anew, then go on.
    Reset,
    /// The study was deleted; nothing comes after this.
    Deleted,
}

/// What each `data:` line of a stream of events holds.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "seq": 12,
    "kind": "probe",
    "at": "2026-11-23T18:00:41Z",
    "data": {
        "probe_id": "01981f6e-6f2a-7c3e-9a51-0d6e4b1f2a33", "kind": "step_time", "batch_size": 64,
        "state": "succeeded", "reason": null, "attempt": 1
    }
}))]
pub struct StudyEvent {
    /// Its number within the study, from 1, without a gap: also the event's `id`. Null for `deleted`.
    pub seq: Option<i64>,
    /// What it tells of: also the event's `event`.
    pub kind: StudyEventKind,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// What is new. `study`: those of `state`, `ended_because`, `phase`, `probes_planned`, `waiting_for`, `revision`, `changes`
    /// and `stale` that the event is about, where a `state` of null is the one before. `probe`: `probe_id`, `kind`,
    /// `batch_size`, `state`, `reason`, `attempt`. `recommendations`: the `topics` that have one now. More may come with
    /// later versions.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}

impl StudyEvent {
    /// As lines of a stream. JSON has no line breaks of its own.
    fn write(&self, into: &mut String) {
        use std::fmt::Write as _;

        let kind = match self.kind {
            StudyEventKind::Study => "study",
            StudyEventKind::Probe => "probe",
            StudyEventKind::Recommendations => "recommendations",
            StudyEventKind::Reset => "reset",
            StudyEventKind::Deleted => "deleted",
        };
        let data = serde_json::to_string(self).unwrap_or_default();
        if let Some(seq) = self.seq {
            let _ = writeln!(into, "id: {seq}");
        }
        let _ = write!(into, "event: {kind}\ndata: {data}\n\n");
    }

    fn of(event: Event) -> Option<Self> {
        Some(Self {
            seq: Some(event.seq),
            // What a newer version tells is left out by this one.
            kind: serde_json::from_value(event.kind.into()).ok()?,
            at: event.created_at,
            data: event.data,
        })
    }

    /// One that the stream itself tells.
    fn here(kind: StudyEventKind, seq: Option<i64>) -> Self {
        Self {
            seq,
            kind,
            at: Utc::now(),
            data: serde_json::json!({}),
        }
    }
}

/// From where events are read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// The number of the event that was heard last, for those who cannot send the header. The header wins.
    #[param(value_type = Option<i64>, minimum = 0, nullable = false)]
    pub last_event_id: Option<String>,
}

/// Listen to a study
///
/// Server-Sent Events: what has happened to the study from its beginning, or after `Last-Event-ID`, and then what happens,
/// as it happens. Each has its number as `id`, so a listener that comes back with the last one misses nothing and hears
/// nothing twice; browsers do so by themselves. Events are kept for some days (`retention.event_days`); whoever asks for ones
/// that are not kept any more gets a `reset` first, and should read the study anew. A comment comes when nothing else does.
///
/// The stream ends after the last event of a study that has ended, and after `deleted`. It also ends when the service stops,
/// when the listener is too slow, and after some time in any case (`api.max_event_stream_secs`): then come back. Whoever comes
/// back to a study that has ended and has heard everything gets 204, which tells a browser to stop. A study that is revised
/// goes on, under the next numbers.
#[utoipa::path(
    operation_id = "stream_study_events",
    tag = "studies",
    security(("token" = ["read"])),
    params(
        ("id" = StudyId, Path, description = "The study"),
        EventsQuery,
        ("Last-Event-ID" = Option<i64>, Header, description = "The number of the event that was heard last; 0 for none", minimum = 0),
    ),
    responses(
        Always,
        Missing,
        (status = 200, description = "The events; each `data` is a `StudyEvent`", body = String, content_type = "text/event-stream"),
        (status = 204, description = "The study has ended, and its last event is the one that was heard last: do not come back"),
        (status = 400, description = "The request is not understood; or `last_event_id_invalid`: Last-Event-ID is no number of an event of this study", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "As many requests wait for news of studies as may (`too_many_listeners`), the database is away or the service is shutting down; try again after Retry-After", body = Problem, content_type = "application/problem+json"),
    )
)]
#[get("/v1/studies/{id}/events")]
pub async fn stream_study_events(
    api: Data<Api>,
    caller: ReqData<Caller>,
    request: HttpRequest,
    id: Path<StudyId>,
    query: Query<EventsQuery>,
) -> Result<HttpResponse, Problem> {
    let after = last_event_id(&request, query.last_event_id.as_deref())?;
    let following = api.context.followers.follow(&caller, *id, after).await?;
    let Some(following) = following else {
        return Ok(HttpResponse::NoContent().finish());
    };
    let (queue, taken) = mpsc::channel(QUEUE);
    tokio::spawn(fill(api.into_inner(), following, queue));
    let pieces = futures::stream::unfold(taken, |mut taken| async {
        let piece: String = taken.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), taken))
    });
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, EVENT_STREAM))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((NO_BUFFER, "no"))
        .streaming(pieces))
}

/// The number of the event that was heard last, if the caller names one. Both have to be numbers; the header wins.
fn last_event_id(request: &HttpRequest, query: Option<&str>) -> Result<Option<i64>, Problem> {
    let header = match request.headers().get("last-event-id") {
        Some(value) => Some(value.to_str().unwrap_or("what is no text")),
        None => None,
    };
    let header = header.map(event_number).transpose()?;
    let query = query.map(event_number).transpose()?;
    Ok(header.or(query))
}

fn event_number(text: &str) -> Result<i64, Problem> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if is_number => Ok(number),
        _ => Err(Problem::new(
            ProblemCode::LastEventIdInvalid,
            format!(
                "Last-Event-ID must be the id of an event of this study, a whole number, and is {text:?}; leave it out to hear all that is kept"
            ),
        )),
    }
}

/// One that listens or waits, as the metrics count it.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    /// `by` is how it gets its news.
    pub fn new(api: &Api, by: &str) -> Self {
        let gauge = api.metrics.listeners.with_label_values(&[by]);
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn come_back(after: Duration, why: &str) -> String {
    format!("retry: {}\n: {why}\n\n", after.as_millis())
}

/// Fills the queue of a stream until that is over, or its listener has gone.
async fn fill(api: std::sync::Arc<Api>, mut following: Following, queue: mpsc::Sender<String>) {
    let counted = Counted::new(&api, "events");
    let until = Instant::now() + api.max_event_stream;
    let mut stop = api.stop.clone();
    let mut piece = come_back(COME_BACK, "listening");
    let mut is_last = false;
    loop {
        let sent = tokio::select! {
            biased;
            sent = queue.send_timeout(piece, api.slow_listener) => sent,
            // There is no room: the listener takes what is in the queue, and then finds its end.
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match sent {
            Ok(()) if is_last => return,
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Closed(_)) => return,
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => break,
        }
        let heard = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => {
                is_last = true;
                piece = come_back(COME_BACK, "the service stops");
                continue;
            }
            () = queue.closed() => return,
            () = tokio::time::sleep_until(until) => {
                is_last = true;
                piece = come_back(Duration::ZERO, "long enough");
                continue;
            }
            heard = following.next() => heard,
            () = tokio::time::sleep(api.event_heartbeat) => {
                piece = ": still there\n\n".to_owned();
                continue;
            }
        };
        piece = String::new();
        match heard {
            Ok(Heard::Events(events)) => {
                for event in events.into_iter().filter_map(StudyEvent::of) {
                    event.write(&mut piece);
                }
            }
            Ok(Heard::Forgotten { upto }) => {
                StudyEvent::here(StudyEventKind::Reset, Some(upto)).write(&mut piece);
            }
            Ok(Heard::Deleted) => {
                is_last = true;
                StudyEvent::here(StudyEventKind::Deleted, None).write(&mut piece);
            }
            Ok(Heard::Ended) => return,
            Ok(Heard::TooSlow) => break,
            Err(error) => {
                tracing::warn!(%error, "the events of a study could not be read");
                is_last = true;
                piece = come_back(COME_BACK, "the database is away");
            }
        }
    }
    api.metrics.slow_listeners_total.inc();
    // Its place is free; whenever it takes what is left, it is told to come back.
    drop((following, counted));
    let goodbye = come_back(COME_BACK_LATER, "too slow");
    let _ = queue.send(goodbye).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn the_last_event_is_a_number_and_the_header_wins() {
        let read = |header: Option<&str>, query: Option<&str>| {
            let mut request = TestRequest::default();
            if let Some(header) = header {
                request = request.insert_header(("last-event-id", header));
            }
            last_event_id(&request.to_http_request(), query)
        };
        assert_eq!(read(None, None).expect("none"), None);
        assert_eq!(read(Some("7"), None).expect("a number"), Some(7));
        assert_eq!(read(None, Some("8")).expect("a number"), Some(8));
        assert_eq!(read(Some("7"), Some("8")).expect("a number"), Some(7));
        for bad in ["", "-1", "+1", "x", "1.5", " 1", "99999999999999999999"] {
            assert_eq!(read(None, Some(bad)).expect_err("refused").status, 400);
        }
        assert_eq!(read(Some("x"), Some("8")).expect_err("refused").status, 400);
    }

    #[test]
    fn an_event_is_four_lines() {
        let mut text = String::new();
        let event = StudyEvent {
            data: serde_json::json!({"detail": "two\nlines"}),
            ..StudyEvent::here(StudyEventKind::Probe, Some(3))
        };
        event.write(&mut text);
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!(lines[..2], ["id: 3", "event: probe"]);
        let data = lines[2].strip_prefix("data: ").expect("data");
        let read: StudyEvent = serde_json::from_str(data).expect("JSON");
        assert_eq!((read.kind, read.seq), (event.kind, Some(3)));
        assert_eq!(lines[3..], ["", ""]);
        text.clear();
        StudyEvent::here(StudyEventKind::Deleted, None).write(&mut text);
        assert!(text.starts_with("event: deleted\n"), "{text}");
    }
}

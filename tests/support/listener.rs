//! One that listens to a stream of Server-Sent Events.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use serde_json::Value;

/// How long a test waits for an event that must come.
const PATIENCE: Duration = Duration::from_secs(120);

/// One event of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    pub id: Option<i64>,
    pub event: String,
    pub data: Value,
}

/// Reads a stream event by event.
pub struct Listener {
    stream: Pin<Box<dyn Stream<Item = reqwest::Result<Vec<u8>>> + Send>>,
    text: String,
    /// The comments that came.
    pub comments: Vec<String>,
    /// The last time to come back that the service gave, ms.
    pub retry: Option<u64>,
}

impl Listener {
    /// Listens; the request must be answered with a stream.
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        Self::if_any(request).await.expect("there is more to come")
    }

    /// Listens, if there is anything to come.
    pub async fn if_any(request: reqwest::RequestBuilder) -> Option<Self> {
        let response = request.send().await.expect("an answer");
        if response.status().as_u16() == 204 {
            return None;
        }
        assert_eq!(response.status().as_u16(), 200);
        let kind = response.headers().get("content-type").expect("a type");
        assert_eq!(kind, "text/event-stream");
        Some(Self {
            stream: Box::pin(
                response
                    .bytes_stream()
                    .map(|piece| piece.map(|bytes| bytes.to_vec())),
            ),
            text: String::new(),
            comments: Vec::new(),
            retry: None,
        })
    }

    /// The next event; none at the end of the stream, however that came.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.block().await? {
                return Some(heard);
            }
        }
    }

    /// Reads on until this comment comes, and gives the events before it.
    pub async fn until_comment(&mut self, comment: &str) -> Vec<Heard> {
        let mut all = Vec::new();
        while !self.comments.iter().any(|it| it == comment) {
            all.extend(self.block().await.expect("the stream goes on"));
        }
        all
    }

    /// The next block of lines, with its event if it has one.
    async fn block(&mut self) -> Option<Option<Heard>> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                return Some(self.read(&block));
            }
            let piece = tokio::time::timeout(PATIENCE, self.stream.next())
                .await
                .expect("something comes");
            match piece {
                Some(Ok(bytes)) => self
                    .text
                    .push_str(std::str::from_utf8(&bytes).expect("text")),
                Some(Err(_)) | None => return None,
            }
        }
    }

    fn read(&mut self, block: &str) -> Option<Heard> {
        let mut heard = Heard {
            id: None,
            event: String::new(),
            data: Value::Null,
        };
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("", comment)) => self.comments.push(comment.to_owned()),
                Some(("id", id)) => heard.id = Some(id.parse().expect("a number")),
                Some(("event", event)) => event.clone_into(&mut heard.event),
                Some(("data", data)) => heard.data = serde_json::from_str(data).expect("JSON"),
                Some(("retry", retry)) => self.retry = Some(retry.parse().expect("a number")),
                _ => assert!(line.is_empty(), "{line:?}"),
            }
        }
        (!heard.event.is_empty()).then_some(heard)
    }

    /// Everything up to the end.
    pub async fn rest(&mut self) -> Vec<Heard> {
        let mut all = Vec::new();
        while let Some(heard) = self.next().await {
            all.push(heard);
        }
        all
    }

    /// Everything up to the event with this number.
    pub async fn until(&mut self, id: i64) -> Vec<Heard> {
        let mut all = Vec::new();
        while all.last().is_none_or(|last: &Heard| last.id != Some(id)) {
            all.push(self.next().await.expect("the stream goes on"));
        }
        all
    }
}

/// The numbers of events.
pub fn ids(heard: &[Heard]) -> Vec<i64> {
    heard.iter().filter_map(|heard| heard.id).collect()
}

//! The events of a request as server-sent events: a chunk for each, `[DONE]` at the end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use serde_json::Value;

use super::Usage;
use crate::http::error::{ApiError, ApiResult};
use crate::serve::{Event, Events};

/// After how much silence a comment is sent, so that nobody on the way takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What every chunk of a stream says, and a whole reply too.
#[derive(Clone)]
pub(in crate::http) struct Envelope {
    /// Id of the reply.
    pub id: String,
    /// What it is.
    pub object: &'static str,
    /// Unix seconds.
    pub created: i64,
    /// As the client named it.
    pub model: String,
}

/// Says what a route makes of events.
pub(in crate::http) trait Choices: Send + 'static {
    /// The entries in `choices` that an event comes to, each of which is sent in a chunk of its own.
    fn of(&mut self, event: Event) -> Vec<Value>;
}

/// A chunk.
#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: Vec<Value>,
    /// Null but in the last chunk, if the client wants to know it; else it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// Streams `answers` answers. What fails before the first token is an ordinary error.
pub(in crate::http) async fn stream<C: Choices>(
    mut events: Events,
    answers: usize,
    envelope: Envelope,
    choices: C,
    includes_usage: bool,
) -> ApiResult<Response> {
    let mut first = Vec::new();
    // That it has begun is not yet that the model can read the prompt.
    while first.iter().all(|event| matches!(event, Event::Started { .. } | Event::Reused { .. })) {
        match events.next().await {
            Some(Event::Failed(error)) => return Err(error.into()),
            Some(event) => first.push(event),
            None => return Err(ended_early()),
        }
    }
    let mut streamer = Streamer {
        events,
        envelope,
        choices,
        includes_usage,
        unfinished: answers,
        usage: Usage::default(),
        unsent: VecDeque::new(),
    };
    for event in first {
        streamer.take(event);
    }
    let chunks = stream::unfold(streamer, |mut streamer| async move {
        let data = streamer.next().await?;
        Some((Ok::<sse::Event, Infallible>(sse::Event::default().data(data)), streamer))
    });
    let keep_alive = sse::KeepAlive::new().interval(HEARTBEAT).text("the answer goes on");
    let mut response = sse::Sse::new(chunks).keep_alive(keep_alive).into_response();
    // A proxy that collects a reply before it passes it on would hold the tokens back.
    let buffering = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(buffering, HeaderValue::from_static("no"));
    Ok(response)
}

/// A stream in progress. When the client goes it is dropped, and `events` with it, which ends the
/// generation.
struct Streamer<C> {
    events: Events,
    envelope: Envelope,
    choices: C,
    includes_usage: bool,
    /// Answers whose ends are still to come.
    unfinished: usize,
    usage: Usage,
    unsent: VecDeque<String>,
}

impl<C: Choices> Streamer<C> {
    /// The data of the next chunk; `None` closes the stream.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.unsent.pop_front() {
                return Some(data);
            }
            if self.unfinished == 0 {
                return None;
            }
            match self.events.next().await {
                Some(Event::Failed(error)) => self.fail(error.into()),
                Some(event) => self.take(event),
                None => self.fail(ended_early()),
            }
        }
    }

    fn take(&mut self, event: Event) {
        self.usage.count(&event);
        if matches!(event, Event::Finished { .. }) {
            self.unfinished = self.unfinished.saturating_sub(1);
        }
        for choice in self.choices.of(event) {
            self.push(vec![choice], None);
        }
        if self.unfinished == 0 {
            if self.includes_usage {
                self.push(Vec::new(), Some(self.usage));
            }
            self.unsent.push_back("[DONE]".to_owned());
        }
    }

    fn push(&mut self, choices: Vec<Value>, usage: Option<Usage>) {
        let chunk = Chunk {
            id: &self.envelope.id,
            object: self.envelope.object,
            created: self.envelope.created,
            model: &self.envelope.model,
            choices,
            usage: self.includes_usage.then_some(usage),
        };
        self.unsent.push_back(serde_json::json!(chunk).to_string());
    }

    /// Tells of an error in a reply that has begun; nothing follows.
    fn fail(&mut self, error: ApiError) {
        self.unfinished = 0;
        self.unsent.push_back(error.into_json());
    }
}

/// Whoever answered is gone.
pub(super) fn ended_early() -> ApiError {
    ApiError::internal("whoever made the answers ended before they were complete")
}

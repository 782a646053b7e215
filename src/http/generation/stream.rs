//! Streams the events of a request: a chunk for each choice, `[DONE]` at the end.

use std::collections::VecDeque;

use axum::response::{Response, sse};
use serde::Serialize;
use serde_json::Value;

use super::events::next_event;
use super::format::{CompletionFormat, CompletionMetadata};
use super::usage::Usage;
use crate::http::error::{ApiError, ApiResult};
use crate::http::reply::event_stream::{EventStream, event_stream};
use crate::serve::{Event, Events};

/// A chunk.
#[derive(Serialize)]
struct CompletionChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: Vec<Value>,
    /// Absent unless the client requested it. Null except in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// A stream in progress. When the client disconnects, the stream is dropped and `events` with it, which
/// ends the generation.
pub(super) struct CompletionStream<F> {
    events: Events,
    metadata: CompletionMetadata,
    format: F,
    includes_usage: bool,
    /// Completions that have not ended yet.
    unfinished: usize,
    usage: Usage,
    unsent: VecDeque<String>,
}

impl<F: CompletionFormat> CompletionStream<F> {
    /// A stream of `count` completions.
    pub(super) fn new(
        events: Events,
        count: usize,
        metadata: CompletionMetadata,
        format: F,
        includes_usage: bool,
    ) -> Self {
        let (usage, unsent) = (Usage::default(), VecDeque::new());
        Self { events, metadata, format, includes_usage, unfinished: count, usage, unsent }
    }

    /// The reply. What fails before the first token is an error with its own HTTP status.
    pub(super) async fn respond(mut self) -> ApiResult<Response> {
        loop {
            let event = next_event(&mut self.events).await?;
            // The prompt can still be refused after the generation has started.
            let has_begun = !matches!(event, Event::Started { .. } | Event::PrefixCacheHit { .. });
            self.take(event);
            if has_begun {
                return Ok(event_stream(self));
            }
        }
    }

    /// The data of the next chunk; `None` closes the stream.
    async fn next_data(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.unsent.pop_front() {
                return Some(data);
            }
            if self.unfinished == 0 {
                return None;
            }
            match next_event(&mut self.events).await {
                Ok(event) => self.take(event),
                Err(error) => self.fail(error),
            }
        }
    }

    fn take(&mut self, event: Event) {
        self.usage.count(&event);
        if matches!(event, Event::Finished { .. }) {
            self.unfinished = self.unfinished.saturating_sub(1);
        }
        for choice in self.format.chunk_choices(event) {
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
        let chunk = CompletionChunk {
            id: &self.metadata.id,
            object: self.metadata.object,
            created: self.metadata.created,
            model: &self.metadata.model,
            choices,
            usage: self.includes_usage.then_some(usage),
        };
        self.unsent.push_back(serde_json::json!(chunk).to_string());
    }

    /// Reports an error in a reply that has begun. Nothing follows it.
    fn fail(&mut self, error: ApiError) {
        self.unfinished = 0;
        self.unsent.push_back(error.into_json());
    }
}

impl<F: CompletionFormat> EventStream for CompletionStream<F> {
    const HEARTBEAT_TEXT: &'static str = "the answer goes on";

    async fn next(&mut self) -> Option<sse::Event> {
        Some(sse::Event::default().data(self.next_data().await?))
    }
}

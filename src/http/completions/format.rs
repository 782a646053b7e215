//! The replies of completions. A chunk has the shape of a whole reply.

use serde_json::{Value, json};

use super::logprobs::TextLogprobs;
use super::object::{TextCompletion, finish_reason};
use crate::domain::ids;
use crate::http::generation::collect::GeneratedCompletions;
use crate::http::generation::format::{CompletionFormat, CompletionMetadata};
use crate::serve::Event;

/// The replies to one request.
pub(super) struct TextFormat {
    /// Whether log-probabilities were requested.
    pub has_logprobs: bool,
}

impl CompletionFormat for TextFormat {
    type Reply = TextCompletion;

    const OBJECT: &'static str = "text_completion";

    const CHUNK_OBJECT: &'static str = "text_completion";

    fn new_id() -> String {
        ids::new_text_completion_id()
    }

    fn reply(self, metadata: CompletionMetadata, generated: GeneratedCompletions) -> Self::Reply {
        TextCompletion::new(metadata, generated, self.has_logprobs)
    }

    fn chunk_choices(&mut self, event: Event) -> Vec<Value> {
        match event {
            Event::Delta { index, text, tokens } => {
                let logprobs = self.has_logprobs.then(|| TextLogprobs::of(tokens));
                vec![json!({
                    "text": text, "index": index, "logprobs": logprobs, "finish_reason": null,
                })]
            }
            Event::Finished { index, reason, .. } => vec![json!({
                "text": "", "index": index, "logprobs": null,
                "finish_reason": finish_reason(reason),
            })],
            Event::Started { .. }
            | Event::PrefixCacheHit { .. }
            | Event::Reasoning { .. }
            | Event::ToolCall { .. }
            | Event::Failed(_) => Vec::new(),
        }
    }
}

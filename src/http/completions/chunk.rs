//! The chunks of a streamed completion, which look like whole ones.

use serde_json::{Value, json};

use super::logprobs::TextLogprobs;
use super::object::finish_reason;
use crate::http::generation::Choices;
use crate::serve::Event;

/// Makes chunks of events.
pub(super) struct TextChoices {
    /// Whether there are log-probabilities.
    pub has_logprobs: bool,
}

impl Choices for TextChoices {
    fn of(&mut self, event: Event) -> Vec<Value> {
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
            | Event::Reused { .. }
            | Event::ToolCall { .. }
            | Event::Failed(_) => Vec::new(),
        }
    }
}

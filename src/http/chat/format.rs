//! The replies of chat. In a stream the first chunk of a choice holds the role, the last one the finish
//! reason.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::logprobs::ChoiceLogprobs;
use super::object::{Call, ChatCompletion, FunctionCall, finish_reason};
use super::request::ChatReplyOptions;
use crate::domain::ids;
use crate::http::generation::collect::GeneratedCompletions;
use crate::http::generation::format::{CompletionFormat, CompletionMetadata};
use crate::serve::Event;

/// The replies to one chat request.
pub(super) struct ChatFormat {
    options: ChatReplyOptions,
    /// Tool calls so far in each choice that has begun.
    calls: HashMap<usize, usize>,
}

impl ChatFormat {
    /// The format that a request asks for.
    pub fn new(options: ChatReplyOptions) -> Self {
        Self { options, calls: HashMap::new() }
    }

    /// Adds the first chunk of a choice, unless the choice has begun.
    fn begin(&mut self, index: usize, choices: &mut Vec<Value>) {
        if self.calls.insert(index, self.calls.get(&index).copied().unwrap_or(0)).is_none() {
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            choices.push(choice(index, delta, None, None));
        }
    }
}

impl CompletionFormat for ChatFormat {
    type Reply = ChatCompletion;

    const OBJECT: &'static str = "chat.completion";

    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";

    fn new_id() -> String {
        ids::new_completion_id()
    }

    fn reply(self, metadata: CompletionMetadata, generated: GeneratedCompletions) -> Self::Reply {
        ChatCompletion::new(metadata, generated, self.options)
    }

    fn chunk_choices(&mut self, event: Event) -> Vec<Value> {
        let mut choices = Vec::new();
        match event {
            Event::Started { .. } | Event::PrefixCacheHit { .. } | Event::Failed(_) => {}
            // Chat does not show the token that ends a turn, so nothing is left to send.
            Event::Delta { text, tokens, .. }
                if text.is_empty() && tokens.iter().all(|token| token.is_end) => {}
            Event::Delta { index, text, tokens } => {
                self.begin(index, &mut choices);
                let logprobs = self.options.has_logprobs.then(|| ChoiceLogprobs::of(tokens));
                choices.push(choice(index, json!({"content": text}), logprobs, None));
            }
            Event::Reasoning { index, text } => {
                self.begin(index, &mut choices);
                choices.push(choice(index, json!({"reasoning_content": text}), None, None));
            }
            Event::ToolCall { index, call } => {
                self.begin(index, &mut choices);
                let number = self.calls.entry(index).or_default();
                let delta = if self.options.is_function {
                    json!({"function_call": FunctionCall::of(call)})
                } else {
                    let mut call = json!(Call::of(call));
                    call["index"] = json!(*number);
                    json!({"tool_calls": [call]})
                };
                *number += 1;
                choices.push(choice(index, delta, None, None));
            }
            Event::Finished { index, reason, .. } => {
                self.begin(index, &mut choices);
                let reason = finish_reason(reason, self.options);
                choices.push(choice(index, json!({}), None, Some(reason)));
            }
        }
        choices
    }
}

fn choice(
    index: usize,
    delta: Value,
    logprobs: Option<ChoiceLogprobs>,
    finish_reason: Option<&str>,
) -> Value {
    json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})
}

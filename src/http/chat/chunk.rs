//! The chunks of a streamed answer: the first one of a choice says the role, the last one why it
//! ended.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::logprobs::ChoiceLogprobs;
use super::object::{Call, FunctionCall, finish_reason};
use super::request::Style;
use crate::http::generation::Choices;
use crate::serve::Event;

/// Makes chunks of events.
pub(super) struct ChatChoices {
    style: Style,
    /// Calls so far in each choice that has begun.
    calls: HashMap<usize, usize>,
}

impl ChatChoices {
    /// For a request of this style.
    pub fn new(style: Style) -> Self {
        Self { style, calls: HashMap::new() }
    }

    /// The chunk with which a choice begins, unless it has.
    fn begin(&mut self, index: usize, choices: &mut Vec<Value>) {
        if self.calls.insert(index, self.calls.get(&index).copied().unwrap_or(0)).is_none() {
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            choices.push(choice(index, delta, None, None));
        }
    }
}

impl Choices for ChatChoices {
    fn of(&mut self, event: Event) -> Vec<Value> {
        let mut choices = Vec::new();
        match event {
            Event::Started { .. } | Event::Reused { .. } | Event::Failed(_) => {}
            // The token that ended an answer is not shown here, so nothing is left to say of it.
            Event::Delta { text, tokens, .. }
                if text.is_empty() && tokens.iter().all(|token| token.is_end) => {}
            Event::Delta { index, text, tokens } => {
                self.begin(index, &mut choices);
                let logprobs = self.style.has_logprobs.then(|| ChoiceLogprobs::of(tokens));
                choices.push(choice(index, json!({"content": text}), logprobs, None));
            }
            Event::ToolCall { index, call } => {
                self.begin(index, &mut choices);
                let number = self.calls.entry(index).or_default();
                let delta = if self.style.is_function {
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
                let reason = finish_reason(reason, self.style);
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

//! Texts of training data that are spelled like control tokens of the model.

use crate::dataset::Message;
use crate::train::model::tokenizer::Tokenizer;
use crate::util::exact_json::ExactJson;

/// Texts of the tokens that begin and end turns, longest first.
pub(super) struct TurnTokens(Vec<String>);

/// A text that is spelled like one.
pub(super) struct ControlText {
    /// The message that it stands in, if it stands in one.
    pub message_index: Option<usize>,
    /// Where it stands.
    pub key: String,
    /// The token.
    pub token: String,
}

impl TurnTokens {
    /// Those of a tokenizer.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        Self(tokenizer.turn_tokens().into_iter().map(|(text, _)| text).collect())
    }

    /// The longest of them that stands in a text.
    pub(super) fn first_in(&self, text: &str) -> Option<&str> {
        self.0.iter().map(String::as_str).find(|token| text.contains(token))
    }

    /// The first text of a conversation that holds one.
    pub(super) fn find(&self, messages: &[Message], tools: &[ExactJson]) -> Option<ControlText> {
        let owned = |text: &str| self.first_in(text).map(str::to_owned);
        for (index, message) in messages.iter().enumerate() {
            for (key, text) in texts(message) {
                if let Some(token) = owned(text) {
                    let key = format!("messages[{index}].{key}");
                    return Some(ControlText { message_index: Some(index), key, token });
                }
            }
        }
        for (index, tool) in tools.iter().enumerate() {
            if let Some(token) = tool.find_in_texts(&owned) {
                return Some(ControlText {
                    message_index: None,
                    key: format!("tools[{index}]"),
                    token,
                });
            }
        }
        None
    }
}

/// The texts of a message with their keys.
fn texts(message: &Message) -> impl Iterator<Item = (&'static str, &str)> {
    let content = message.content.iter().map(|text| ("content", text.as_str()));
    let reasoning = message.reasoning.iter().map(|text| ("reasoning_content", text.as_str()));
    let name = message.name.iter().map(|name| ("name", name.as_str()));
    let id = message.tool_call_id.iter().map(|id| ("tool_call_id", id.as_str()));
    let calls = message.tool_calls.iter();
    let calls = calls.flat_map(|call| [&call.id, &call.name, &call.arguments]);
    let calls = calls.map(|text| ("tool_calls", text.as_str()));
    content.chain(reasoning).chain(name).chain(id).chain(calls)
}

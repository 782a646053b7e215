//! Chat templates: a conversation to text, and which of its bytes the assistant wrote.

use std::ops::Range;

use crate::dataset::Message;

/// A model's chat template (Jinja).
pub struct ChatTemplate {}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges that carry loss: each trained assistant message through its end-of-turn token.
    pub learnt: Vec<Range<usize>>,
}

/// Why a conversation cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refuses or fails.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The assistant's span or its end-of-turn token cannot be located.
    #[error("message {message_index}: {reason}")]
    NotLocated {
        /// Which message.
        message_index: usize,
        /// What was looked for and not found.
        reason: String,
    },
    /// The template has no place for tools.
    #[error("the model's chat template does not support tools")]
    NoTools,
}

impl ChatTemplate {
    /// For training: the whole conversation, with the assistant's spans.
    pub fn render_for_training(
        &self,
        _messages: &[Message],
        _tools: &[serde_json::Value],
    ) -> Result<Rendered, TemplateError> {
        todo!()
    }

    /// For inference: the conversation and the beginning of the assistant's answer.
    pub fn render_prompt(
        &self,
        _messages: &[Message],
        _tools: &[serde_json::Value],
    ) -> Result<String, TemplateError> {
        todo!()
    }
}

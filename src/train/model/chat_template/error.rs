//! Why a conversation cannot be rendered, or its supervised spans not be found.

/// Why a conversation cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template cannot be read: {0}")]
    Invalid(String),
    /// The template itself refuses or fails.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// What the template does with a conversation has no end, or needs more memory than a template may have.
    #[error("the chat template does not come to an end with this conversation: {0}")]
    Limit(String),
    /// A message cannot be used: the template leaves out a part of it, or the assistant's span or
    /// its end-of-turn token cannot be located.
    #[error("message {message_index}: {reason}")]
    Message {
        /// Which message.
        message_index: usize,
        /// The key of the message that it is about, if it is about one.
        key: Option<&'static str>,
        /// What was looked for and not found.
        reason: String,
    },
    /// The model has several templates, and none for a conversation like this.
    #[error(
        "the model has several chat templates and none of them is called \"default\": name one of them \
         in chat_template ({names})"
    )]
    NoDefault {
        /// Those that there are.
        names: String,
    },
    /// The model has no template of this name.
    #[error("the model has no chat template called {name:?}; it has {names}")]
    UnknownName {
        /// The name.
        name: String,
        /// Those that there are.
        names: String,
    },
    /// The template has no place for tools.
    #[error("the model's chat template does not write tools: leave them out, or use another model")]
    NoTools,
    /// The tools cannot be used.
    #[error("the tools cannot be used: {0}")]
    Tools(String),
    /// The template has no place for tool calls.
    #[error("message {message_index}: {NO_TOOL_CALLS}")]
    NoToolCalls {
        /// Which message.
        message_index: usize,
    },
}

/// What is said of tool calls that a template does not write.
const NO_TOOL_CALLS: &str = "the model's chat template does not write tool calls: leave the \
                             conversation out, or use another model";

impl TemplateError {
    /// The message that it is about, if it is about one, the key of it, and what is said of it.
    pub fn into_parts(self) -> (Option<usize>, Option<&'static str>, String) {
        match self {
            Self::Message { message_index, key, reason } => (Some(message_index), key, reason),
            Self::NoToolCalls { message_index } => {
                (Some(message_index), Some("tool_calls"), NO_TOOL_CALLS.to_owned())
            }
            other => (None, None, other.to_string()),
        }
    }

    /// Something about one message.
    pub(super) fn message(message_index: usize, reason: impl Into<String>) -> Self {
        Self::Message { message_index, key: None, reason: reason.into() }
    }
}

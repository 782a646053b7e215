//! One training example: a conversation, or a prompt with its completion.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the examples of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `{"messages": […]}`.
    Chat,
    /// `{"prompt": "…", "completion": "…"}`.
    PromptCompletion,
    /// `{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}`.
    Preference,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions, in OpenAI's newer word; templates see `system`.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
    /// The result of a legacy function call.
    Function,
}

/// A tool call of the assistant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The id that the tool's answer names.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// Arguments as the JSON text that the model writes.
    pub arguments: String,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; `None` for null or absent, as with tool calls.
    pub content: Option<String>,
    /// Name of the speaker.
    pub name: Option<String>,
    /// For assistant messages: whether the model learns this message (`weight` is not 0).
    pub trained: bool,
    /// Tool calls of the assistant.
    pub tool_calls: Vec<ToolCall>,
    /// For tool messages: the call that is answered.
    pub tool_call_id: Option<String>,
}

/// One training example.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// A conversation; the model learns the assistant's messages.
    Chat {
        /// In order.
        messages: Vec<Message>,
        /// JSON schemas of the tools, as OpenAI writes them.
        tools: Vec<serde_json::Value>,
    },
    /// A text and what follows it; the model learns the completion.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// A conversation with two answers; the model learns to prefer one.
    Preference {
        /// What comes before the answer.
        messages: Vec<Message>,
        /// JSON schemas of the tools, as OpenAI writes them.
        tools: Vec<serde_json::Value>,
        /// The answer to prefer, and the other one.
        answers: Box<[Message; 2]>,
    },
}

impl Format {
    /// In words, for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Chat => "a chat (\"messages\")",
            Self::PromptCompletion => "a \"prompt\" with its \"completion\"",
            Self::Preference => "a preference (\"input\" with two answers)",
        }
    }
}

impl Example {
    /// Which format it is.
    pub fn format(&self) -> Format {
        match self {
            Self::Chat { .. } => Format::Chat,
            Self::PromptCompletion { .. } => Format::PromptCompletion,
            Self::Preference { .. } => Format::Preference,
        }
    }
}

impl Role {
    /// Every role, as it is spelt.
    pub const ALL: &'static [(&'static str, Role)] = &[
        ("system", Role::System),
        ("developer", Role::Developer),
        ("user", Role::User),
        ("assistant", Role::Assistant),
        ("tool", Role::Tool),
        ("function", Role::Function),
    ];

    /// The role as templates know it: `developer` is a newer word for `system`.
    pub fn in_templates(self) -> &'static str {
        match self {
            Self::System | Self::Developer => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Function => "function",
        }
    }
}

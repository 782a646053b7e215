//! One training example: a conversation, or a prompt with its completion.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::util::exact_json::ExactJson;

/// The format of the examples of a file.
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

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions, under OpenAI's newer name. Templates see `system`.
    Developer,
    /// The user.
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
    /// The id that the result of the tool names.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// Arguments as the JSON text that the model writes.
    pub arguments: String,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The author.
    pub role: Role,
    /// The text; `None` for null or absent, as with tool calls.
    pub content: Option<String>,
    /// The texts of its parts, where the content is a list of parts; `content` is all of them joined.
    pub content_parts: Vec<String>,
    /// What an assistant thought before its answer (`reasoning_content`, or `reasoning`).
    pub reasoning: Option<String>,
    /// Name of the author.
    pub name: Option<String>,
    /// For assistant messages: whether its tokens are supervised (`weight` is not 0).
    pub trained: bool,
    /// Tool calls of the assistant.
    pub tool_calls: Vec<ToolCall>,
    /// For tool messages: the call of which this is the result.
    pub tool_call_id: Option<String>,
}

/// One training example.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// A conversation. The assistant's messages are supervised.
    Chat {
        /// In order.
        messages: Vec<Message>,
        /// JSON schemas of the tools, as OpenAI writes them.
        tools: Vec<ExactJson>,
    },
    /// A prompt and its completion. The completion is supervised.
    PromptCompletion {
        /// The prompt.
        prompt: String,
        /// The completion.
        completion: String,
    },
    /// A conversation with two answers, one preferred over the other.
    Preference {
        /// The messages before the answer.
        messages: Vec<Message>,
        /// JSON schemas of the tools, as OpenAI writes them.
        tools: Vec<ExactJson>,
        /// The preferred answer, and the other one.
        answers: Box<[Message; 2]>,
    },
}

impl Message {
    /// A message of plain text. An assistant's is supervised.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(text.into()),
            content_parts: Vec::new(),
            reasoning: None,
            name: None,
            trained: role == Role::Assistant,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

impl Format {
    /// A description for texts to the user.
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
    /// Every role with its name in files.
    pub const ALL: &'static [(&'static str, Role)] = &[
        ("system", Role::System),
        ("developer", Role::Developer),
        ("user", Role::User),
        ("assistant", Role::Assistant),
        ("tool", Role::Tool),
        ("function", Role::Function),
    ];

    /// The role's name in chat templates: `developer` is a newer name of `system`.
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

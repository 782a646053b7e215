//! What is asked of a model, checked already for ranges by whoever asks.

use crate::dataset::Message;

/// A request for one or more answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the answers continue.
    pub prompt: Prompt,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Most tokens of an answer; `None`: until the context is full. 0 reads the prompt alone.
    pub max_tokens: Option<u32>,
    /// Seed of the sampling; `None` draws one.
    pub seed: Option<u64>,
    /// Texts that end an answer and are not part of it.
    pub stop: Vec<String>,
    /// How many answers to each prompt.
    pub n: u32,
    /// Whether an answer begins with its prompt.
    pub echo: bool,
    /// Whether log-probabilities are wanted, and of how many of the likeliest tokens beside the one
    /// that was chosen.
    pub log_probabilities: Option<usize>,
}

/// What answers continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A conversation, which the model's chat template turns into text.
    Chat {
        /// In order.
        messages: Vec<Message>,
        /// JSON schemas of tools, for templates that support them.
        tools: Vec<serde_json::Value>,
        /// Whether one answer may call several tools.
        parallel_tool_calls: bool,
    },
    /// Texts as they are, each with answers of its own.
    Texts(Vec<TextPrompt>),
}

impl Prompt {
    /// The field of a request that it comes from.
    pub(super) fn field(&self) -> &'static str {
        match self {
            Self::Chat { .. } => "messages",
            Self::Texts(_) => "prompt",
        }
    }
}

/// A text to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextPrompt {
    /// To be turned into tokens. Texts of control tokens in it become control tokens.
    Text(String),
    /// As the model reads it; nothing is put before it.
    Tokens(Vec<u32>),
}

/// How a token is chosen from the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f64,
    /// Nucleus: the smallest set of the likeliest tokens whose probability reaches this; 0 is greedy.
    pub top_p: f64,
    /// Taken off a token's logit for each time that the answer has it already.
    pub frequency_penalty: f64,
    /// Taken off once if the answer has it already.
    pub presence_penalty: f64,
    /// Added to the logits of tokens; -100 and less bans one.
    pub logit_bias: Vec<(u32, f32)>,
}

//! A request to a model. The HTTP handlers have checked the ranges of its fields.

use chrono::NaiveDate;
use serde_json::{Map, Value};

use crate::dataset::Message;
use crate::util::exact_json::ExactJson;

/// A request for one or more outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt, or several.
    pub prompt: Prompt,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// Most tokens to generate for each output; `None`: until the context is full. 0: prefill only.
    pub max_tokens: Option<u32>,
    /// Seed of the sampling; `None`: a random one.
    pub seed: Option<u64>,
    /// Stop strings. They end an output and are not part of it.
    pub stop: Vec<String>,
    /// Number of outputs for each prompt.
    pub n: u32,
    /// Whether an output begins with its prompt.
    pub echo: bool,
    /// `Some` if log-probabilities are requested: of the sampled token and of so many of the likeliest
    /// tokens.
    pub log_probabilities: Option<usize>,
}

/// What the model continues.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A conversation, rendered by the model's chat template.
    Chat {
        /// In order.
        messages: Vec<Message>,
        /// JSON schemas of tools, for templates that support them.
        tools: Vec<ExactJson>,
        /// Whether one output may call several tools.
        parallel_tool_calls: bool,
        /// How it is rendered, where the request says so.
        template: TemplateOverrides,
    },
    /// Plain texts, each with its own outputs.
    Texts(Vec<TextPrompt>),
}

/// What a request says of the chat template. It goes before what the model's job has set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TemplateOverrides {
    /// The name of the template, where the model has several.
    pub name: Option<String>,
    /// Variables of the template, each in the place of the job's of that name.
    pub kwargs: Map<String, Value>,
    /// The day that `strftime_now` writes; `Some(None)`: that of the request, `None`: that of the job if it
    /// sets one, else that of the request.
    pub date: Option<Option<NaiveDate>>,
}

impl Prompt {
    /// The field of the HTTP request that it comes from.
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
    /// A text to tokenize. Names of control tokens in it become control tokens.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

/// How a token is sampled from the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f64,
    /// Nucleus: the smallest set of the likeliest tokens whose probability reaches this; 0 is greedy.
    pub top_p: f64,
    /// Subtracted from a token's logit for each time that the output contains it.
    pub frequency_penalty: f64,
    /// Subtracted once if the output contains the token.
    pub presence_penalty: f64,
    /// Added to the logits of tokens; -100 or less bans a token.
    pub logit_bias: Vec<(u32, f32)>,
}

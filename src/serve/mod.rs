//! Stage 5: answer chat with a base model and an adapter.
//!
//! Called by `http::chat`. The base model is loaded at the first request for it and kept; adapters
//! attach to it without reloading it.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::base_models::BaseModelEntry;
use crate::dataset::Message;
use crate::error_code::ErrorCode;

/// The bytes of an adapter in PEFT layout.
#[derive(Debug, Clone)]
pub struct AdapterBytes {
    /// `adapter_config.json`.
    pub config: Bytes,
    /// `adapter_model.safetensors`.
    pub weights: Bytes,
}

/// An adapter by name, whose bytes are fetched only when it is not attached yet.
pub struct AdapterSource {
    /// The fine-tuned model's or checkpoint's name.
    pub id: String,
    /// Brings the bytes.
    pub load: BoxFuture<'static, Result<AdapterBytes, String>>,
}

/// The model that a request names.
pub struct ModelSource {
    /// The base model.
    pub base: BaseModelEntry,
    /// The adapter of a fine-tuned model or checkpoint.
    pub adapter: Option<AdapterSource>,
}

/// What is asked, checked already for ranges.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Message>,
    /// JSON schemas of tools, for templates that support them.
    pub tools: Vec<serde_json::Value>,
    /// Most tokens of an answer; `None`: until the context is full.
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus: the smallest set of tokens whose probability reaches this.
    pub top_p: f64,
    /// Seed of the sampling; `None` draws one.
    pub seed: Option<u64>,
    /// Texts that end an answer and are not part of it, at most four.
    pub stop: Vec<String>,
    /// How many answers.
    pub n: u32,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or wrote a stop text.
    Stop,
    /// The token limit or the context ended it.
    Length,
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The answers and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatReply {
    /// `n` of them.
    pub choices: Vec<Choice>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of all answers together.
    pub completion_tokens: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ServeError {
    /// Public code.
    pub code: ErrorCode,
    /// For the client; for [`ErrorCode::InternalError`] for the log only.
    pub message: String,
}

/// Base models in memory and the adapters attached to them.
pub struct ModelServer {}

impl ModelServer {
    /// Nothing is loaded before the first request.
    pub fn new() -> Self {
        Self {}
    }

    /// Answers; waits for its turn on the device.
    pub async fn chat(
        &self,
        _source: ModelSource,
        _request: ChatRequest,
    ) -> Result<ChatReply, ServeError> {
        todo!()
    }
}

impl Default for ModelServer {
    fn default() -> Self {
        Self::new()
    }
}

//! Stage 5: answer chat with a base model and an adapter.
//!
//! Called by `http::chat`. A base model, or a whole model that a job made, is loaded at the first
//! request for it and kept; adapters attach to a base without reloading it.

mod generate;
mod loaded;
mod worker;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

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

/// A model that stands by itself.
pub enum BaseSource {
    /// One of the models folder.
    Entry(BaseModelEntry),
    /// One that a job made, whose files are fetched only when it is not loaded yet.
    Made {
        /// The fine-tuned model's or checkpoint's name.
        id: String,
        /// Brings the files, into a folder that goes when it is dropped.
        load: BoxFuture<'static, Result<TempDir, String>>,
    },
}

/// The model that a request names.
pub struct ModelSource {
    /// The base model, or the whole model itself.
    pub base: BaseSource,
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

/// Requests that wait for their turn before further ones are told to come back.
const WAITING_REQUESTS: usize = 256;

/// Base models in memory and the adapters attached to them, owned by one thread.
pub struct ModelServer {
    inbox: mpsc::Sender<worker::Work>,
}

impl ModelServer {
    /// Starts the thread; nothing is loaded before the first request. `runtime` runs the futures
    /// that fetch models.
    pub fn start(runtime: Handle) -> std::io::Result<Self> {
        let (inbox, requests) = mpsc::channel(WAITING_REQUESTS);
        std::thread::Builder::new()
            .name("inference".to_owned())
            .spawn(move || worker::run(requests, &runtime))?;
        Ok(Self { inbox })
    }

    /// Answers; waits for its turn on the device. Dropping the future ends the generation within
    /// one token.
    pub async fn chat(
        &self,
        source: ModelSource,
        request: ChatRequest,
    ) -> Result<ChatReply, ServeError> {
        let (reply, answer) = oneshot::channel();
        let work = worker::Work { source, request, reply };
        self.inbox.try_send(work).map_err(|_full_or_closed| ServeError {
            code: ErrorCode::RateLimitExceeded,
            message: format!("{WAITING_REQUESTS} chat requests wait already: try again later"),
        })?;
        answer.await.map_err(|_thread_gone| ServeError {
            code: ErrorCode::InternalError,
            message: "the inference thread has ended".to_owned(),
        })?
    }
}

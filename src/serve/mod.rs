//! Stage 5: answer with a base model and an adapter.
//!
//! Called by `http::chat` and `http::completions`. A base model, or a whole model that a job made, is
//! loaded at the first request for it and kept; adapters attach to a base without reloading it.
//!
//! A [`Request`] waits for the thread of [`worker`], which turns it into answers ([`begin`]) and runs
//! the model for each of them; an [`answer`] chooses its tokens ([`sample`]), collects its text
//! ([`text`], [`tools`]) and tells the client ([`events`]).

mod answer;
mod begin;
mod events;
mod loaded;
mod request;
mod sample;
mod text;
mod tools;
mod worker;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub use self::events::{CalledTool, Event, Events, FinishReason, LikelyToken, ScoredToken};
pub use self::request::{Prompt, Request, Sampling, TextPrompt};
use crate::base_models::BaseModelEntry;
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

    /// Answers, in its turn on the device. Dropping the events ends the generation within one token.
    ///
    /// # Errors
    /// When too many requests wait already.
    pub fn answer(&self, source: ModelSource, request: Request) -> Result<Events, ServeError> {
        let (events, receiver) = events::channel();
        let work = worker::Work { source, request, events };
        self.inbox.try_send(work).map_err(|_full_or_closed| ServeError {
            code: ErrorCode::RateLimitExceeded,
            message: format!(
                "{WAITING_REQUESTS} requests wait for answers already: try again later"
            ),
        })?;
        Ok(receiver)
    }
}

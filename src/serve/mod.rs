//! Stage 5: answer with a base model and an adapter.
//!
//! Called by `http::chat` and `http::completions`. A base model, or a whole model that a job made, is
//! loaded at the first request for it and kept; adapters attach to a base without reloading it.
//!
//! A [`Request`] is prepared ([`prepare`]): its model is found among the [`bases`] and its prompts
//! become answers ([`begin`]). The thread of [`worker`] then runs the models for all answers together
//! ([`schedule`]), those that begin alike from what is [`kept`]; an [`answer`] chooses its tokens ([`sample`]), collects its text
//! ([`text`], [`tools`]) and tells the client ([`events`]).

mod answer;
mod bases;
mod begin;
mod events;
mod kept;
mod loaded;
mod prepare;
mod request;
mod running;
mod sample;
mod schedule;
mod serving_load;
mod statistics;
mod text;
mod tools;
mod worker;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub use self::events::{CalledTool, Event, Events, FinishReason, LikelyToken, ScoredToken};
pub use self::request::{Prompt, Request, Sampling, TextPrompt};
pub use self::serving_load::ServingLoad;
pub use self::statistics::Statistics;
use crate::base_models::BaseModelEntry;
use crate::domain::error_code::ErrorCode;

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
    /// The field of the request that it is about, as OpenAI names it.
    pub param: Option<&'static str>,
}

impl ServeError {
    fn new(code: ErrorCode, message: String) -> Self {
        Self { code, message, param: None }
    }

    /// One that a field of the request has caused.
    fn about(param: &'static str, code: ErrorCode, message: String) -> Self {
        Self { code, message, param: Some(param) }
    }
}

/// Requests that wait for their turn before further ones are told to come back.
const WAITING_REQUESTS: usize = 256;

/// Base models in memory and the adapters attached to them, and the thread that runs them.
pub struct ModelServer {
    inbox: mpsc::Sender<worker::Work>,
    demand: ServingLoad,
    statistics: Arc<Statistics>,
}

impl ModelServer {
    /// Starts the thread; nothing is loaded before the first request. `runtime` runs the futures
    /// that fetch models. `memory` is what models, adapters and the texts in progress may take, in
    /// bytes; half of what is free without it.
    pub fn start(runtime: Handle, memory: Option<u64>) -> std::io::Result<Self> {
        let (inbox, requests) = mpsc::channel(WAITING_REQUESTS);
        let (demand, statistics) = (ServingLoad::default(), Arc::new(Statistics::default()));
        let shared = worker::Shared {
            memory: memory.unwrap_or_else(bases::default_budget),
            demand: demand.clone(),
            statistics: Arc::clone(&statistics),
        };
        std::thread::Builder::new()
            .name("inference".to_owned())
            .spawn(move || worker::run(requests, &runtime, &shared))?;
        Ok(Self { inbox, demand, statistics })
    }

    /// Whether requests are being answered.
    pub fn demand(&self) -> &ServingLoad {
        &self.demand
    }

    /// What answering has come to.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Answers, in its turn on the device. Dropping the events ends the generation within one token.
    ///
    /// # Errors
    /// When too many requests wait already.
    pub fn answer(&self, source: ModelSource, request: Request) -> Result<Events, ServeError> {
        let (events, receiver) = events::channel();
        let work = worker::Work { source, request, events };
        self.inbox.try_send(work).map_err(|_full_or_closed| {
            let message =
                format!("{WAITING_REQUESTS} requests wait for answers already: try again later");
            ServeError::new(ErrorCode::RateLimitExceeded, message)
        })?;
        Ok(receiver)
    }
}

//! Stage 5: serve a base model, alone or with an adapter.
//!
//! Called by `http::chat` and `http::completions`. A request takes this path:
//!
//! 1. [`request`]: a request, with the [`source`] of its model, comes to the [`ModelServer`] and waits in the
//!    queue of the [`inference_thread`];
//! 2. [`request_preparer`]: the model comes from the [`model_cache`] (a [`loaded_model`] with its adapters),
//!    and the [`request_encoder`] renders conversations with the [`model_template`] and tokenizes the
//!    prompts: one [`sequence_group`] for each;
//! 3. [`scheduler`]: the sequences are admitted, from what is in the [`prefix_cache`], and run;
//! 4. [`step`]: the model computes tokens of many sequences together;
//! 5. [`sequence`] and [`sequence_output`]: logits become the next token ([`sample`]), text
//!    ([`detokenizer`]) and tool calls ([`tool_call_parser`], [`tool_format`]);
//! 6. [`events`]: the client is told.

mod detokenizer;
mod error;
mod events;
mod inference_thread;
mod loaded_model;
mod model_cache;
mod model_template;
mod prefix_cache;
mod reasoning_parser;
mod request;
mod request_encoder;
mod request_preparer;
mod sample;
mod scheduler;
mod sequence;
mod sequence_group;
mod sequence_output;
mod serving_load;
mod source;
mod statistics;
mod step;
mod tenant;
mod tool_call_parser;
mod tool_format;
mod waiting_requests;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub use self::error::ServeError;
pub use self::events::{CalledTool, Event, Events, FinishReason, LikelyToken, ScoredToken};
use self::inference_thread::ThreadContext;
use self::model_cache::ModelCache;
pub use self::request::{Prompt, Request, Sampling, TemplateOverrides, TextPrompt};
use self::request_preparer::QueuedRequest;
pub use self::serving_load::ServingLoad;
pub use self::source::{AdapterBytes, AdapterSource, BaseSource, ModelSource};
pub use self::statistics::Statistics;
pub use self::tenant::Tenant;
use self::waiting_requests::WaitingRequests;
use crate::domain::error_code::ErrorCode;

/// The models in memory, and the thread that runs them.
pub struct ModelServer {
    /// Has no bound of its own: each request in it has a place among `waiting`.
    inbox: mpsc::UnboundedSender<QueuedRequest>,
    waiting: Arc<WaitingRequests>,
    models: Arc<ModelCache>,
    serving_load: ServingLoad,
    statistics: Arc<Statistics>,
}

/// The memory of the models that answer, as those see it who need memory beside them.
#[derive(Clone)]
pub struct ServingMemory(Arc<ModelCache>);

impl ServingMemory {
    /// Unloads models that answer nothing until `bytes` of the machine's memory are free, and loads none into
    /// these for as long as `time`. Later calls replace earlier ones. Blocks while models are unloaded.
    pub fn keep_free(&self, bytes: u64, time: Duration) {
        self.0.keep_free(bytes, time);
    }
}

impl ModelServer {
    /// Starts the thread. Nothing is loaded before the first request. `runtime` runs the futures that
    /// fetch models. `memory` is the limit for models, adapters and key/value caches, in bytes; `None`:
    /// half of the free memory.
    pub fn start(runtime: Handle, memory: Option<u64>) -> std::io::Result<Self> {
        let (inbox, requests) = mpsc::unbounded_channel();
        let (serving_load, statistics) = (ServingLoad::default(), Arc::new(Statistics::default()));
        let budget = memory.unwrap_or_else(model_cache::default_budget);
        let models = Arc::new(ModelCache::new(budget));
        let context = ThreadContext {
            models: Arc::clone(&models),
            serving_load: serving_load.clone(),
            statistics: Arc::clone(&statistics),
        };
        std::thread::Builder::new()
            .name("inference".to_owned())
            .spawn(move || inference_thread::run(requests, &runtime, &context))?;
        Ok(Self { inbox, waiting: Arc::default(), models, serving_load, statistics })
    }

    /// The memory of the models.
    pub fn memory(&self) -> ServingMemory {
        ServingMemory(Arc::clone(&self.models))
    }

    /// Whether requests are being served.
    pub fn serving_load(&self) -> &ServingLoad {
        &self.serving_load
    }

    /// Counters and gauges of serving.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Queues a request of `tenant`; its events. Dropping the events ends its sequences within one token.
    ///
    /// # Errors
    /// When too many requests wait already, or too many of this project.
    pub fn answer(
        &self,
        tenant: Tenant,
        source: ModelSource,
        request: Request,
    ) -> Result<Events, ServeError> {
        let (events, receiver) = events::channel();
        let busy = || {
            let message = "too many requests wait for answers already: try again later".to_owned();
            ServeError::new(ErrorCode::RateLimitExceeded, message)
        };
        let place = Arc::new(self.waiting.take(&tenant.project).ok_or_else(busy)?);
        let queued = QueuedRequest { tenant: Arc::new(tenant), place, source, request, events };
        self.inbox.send(queued).map_err(|_closed| busy())?;
        Ok(receiver)
    }
}

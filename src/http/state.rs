//! The state that every handler shares.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::middleware::concurrency_limit::RunningRequests;
use super::middleware::rate_limit::RequestLimiter;
use crate::base_models::SharedCatalog;
use crate::blobs::Blobs;
use crate::config::PrefixCacheScope;
use crate::executor::DryRuns;
use crate::queue::Queue;
use crate::serve::ModelServer;
use crate::store::Store;
use crate::util::clock::Clock;
use crate::webhooks::WebhookClient;

/// The state as handlers and middleware extract it.
pub type AppState = Arc<ServerState>;

/// Shared by all requests.
pub struct ServerState {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The contents of files.
    pub blobs: Blobs,
    /// The queue of jobs, whose waiters are woken from here.
    pub queue: Arc<Queue>,
    /// The base models.
    pub base_models: SharedCatalog,
    /// Dry runs of jobs.
    pub dry_runs: Arc<DryRuns>,
    /// Generation for chat and completions.
    pub models: Arc<ModelServer>,
    /// Which requests share computed prefixes of prompts.
    pub prefix_cache_scope: PrefixCacheScope,
    /// Sends webhook deliveries.
    pub webhook_client: Arc<WebhookClient>,
    /// The rate limit of each key.
    pub limiter: Arc<RequestLimiter>,
    /// Requests at once of each key.
    pub running_requests: Arc<RunningRequests>,
    /// Most queued jobs of a project.
    pub most_queued_jobs: u32,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Cancelled when the server shuts down: `/readyz` fails from then on, and streams close.
    pub shutdown: CancellationToken,
}

//! What every handler can reach.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::middleware::rate_limit::RequestLimiter;
use crate::base_models::Catalog;
use crate::blobs::Blobs;
use crate::executor::DryRuns;
use crate::queue::Queue;
use crate::serve::ModelServer;
use crate::store::Store;
use crate::util::clock::Clock;
use crate::webhooks::WebhookClient;

/// What a request takes along; layers and handlers each take one.
pub type AppState = Arc<Shared>;

/// Shared by all requests.
pub struct Shared {
    /// What the product remembers.
    pub store: Arc<dyn Store>,
    /// Big bytes.
    pub blobs: Blobs,
    /// Who waits for work.
    pub queue: Arc<Queue>,
    /// Which base models there are.
    pub base_models: Catalog,
    /// Who says what a job would be.
    pub dry_runs: Arc<DryRuns>,
    /// Who answers chat.
    pub models: Arc<ModelServer>,
    /// Who brings webhooks to their endpoints.
    pub courier: Arc<WebhookClient>,
    /// How many requests come with each key.
    pub limiter: Arc<RequestLimiter>,
    /// Most jobs of a project that wait.
    pub most_queued_jobs: u32,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Cancelled when the server is about to end: `/readyz` says so, and streams close.
    pub shutdown: CancellationToken,
}

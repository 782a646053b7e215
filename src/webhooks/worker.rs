//! Takes due deliveries from the outbox and attempts them concurrently, until the server shuts down.
//!
//! A delivery stays due until its attempt is recorded: a server that dies in between attempts it again after
//! its next start. So a receiver may get an event twice, under the same `webhook-id`, but never not at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{OutgoingDelivery, WebhookClient};
use super::retry_schedule;
use crate::domain::project::Project;
use crate::domain::webhook::{DeliveryAttempt, DeliveryStatus, WebhookDelivery, WebhookEndpoint};
use crate::store::{DueDeliveries, WebhookStore};
use crate::util::clock::Clock;

/// How often the outbox is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Most attempts at once. The first one of a project is made in any case, whatever hangs of others.
const MAX_CONCURRENT: usize = 256;

/// Most attempts at once of one project.
const MAX_CONCURRENT_PER_PROJECT: usize = 32;

/// Most attempts at once to one endpoint, so that a slow endpoint does not delay the others of its project.
const MAX_CONCURRENT_PER_ENDPOINT: usize = 4;

/// How long finished deliveries are retained.
const RETENTION_SECONDS: i64 = 30 * 24 * 3600;

/// How often older deliveries are removed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(3600);

/// First and longest wait after the store has failed.
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Attempts the deliveries of the outbox.
pub struct DeliveryWorker {
    store: Arc<dyn WebhookStore>,
    client: Arc<WebhookClient>,
    clock: Arc<dyn Clock>,
}

/// An attempt, with the status of its delivery after it.
struct AttemptRecord {
    attempt: DeliveryAttempt,
    status: DeliveryStatus,
    /// `None` when there is no further attempt.
    next_attempt_at: Option<i64>,
}

/// The attempts in progress.
#[derive(Default)]
struct RunningAttempts {
    tasks: JoinSet<()>,
    /// What each task delivers.
    deliveries: HashMap<task::Id, RunningAttempt>,
}

/// An attempt in progress.
struct RunningAttempt {
    delivery: String,
    endpoint: String,
    project: Project,
}

impl DeliveryWorker {
    /// A worker on this outbox.
    pub fn new(
        store: Arc<dyn WebhookStore>,
        client: Arc<WebhookClient>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self { store, client, clock })
    }

    /// Works until `shutdown`. Attempts in progress are finished and recorded then.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut attempts = RunningAttempts::default();
        let mut cleanup_due = Instant::now();
        while !shutdown.is_cancelled() {
            if cleanup_due <= Instant::now() {
                self.remove_old().await;
                cleanup_due += CLEANUP_INTERVAL;
            }
            self.start_due(&mut attempts, &shutdown).await;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = attempts.wait_for_one(), if !attempts.tasks.is_empty() => {}
            }
        }
        while !attempts.tasks.is_empty() {
            attempts.wait_for_one().await;
        }
    }

    /// Starts an attempt for each delivery that is due and not in progress.
    async fn start_due(
        self: &Arc<Self>,
        attempts: &mut RunningAttempts,
        shutdown: &CancellationToken,
    ) {
        let due = match self.store.due_webhook_deliveries(&attempts.room()).await {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(%error, "the outbox of webhooks cannot be read");
                return;
            }
        };
        for (delivery, endpoint) in due {
            if !attempts.has_room(&endpoint) {
                continue;
            }
            let (worker, shutdown) = (Arc::clone(self), shutdown.clone());
            let running = RunningAttempt {
                delivery: delivery.id.clone(),
                endpoint: endpoint.id.clone(),
                project: endpoint.project.clone(),
            };
            let task = attempts.tasks.spawn(async move {
                worker.attempt(&delivery, &endpoint, &shutdown).await;
            });
            attempts.deliveries.insert(task.id(), running);
        }
    }

    /// Makes one attempt and records it.
    async fn attempt(
        &self,
        delivery: &WebhookDelivery,
        endpoint: &WebhookEndpoint,
        shutdown: &CancellationToken,
    ) {
        let at = self.clock.now();
        let secrets = endpoint.signing_secrets(at);
        let outgoing =
            OutgoingDelivery { id: &delivery.id, event: &delivery.event, secrets: &secrets };
        let attempt = match self.client.deliver(&endpoint.url, outgoing, at).await {
            Ok(status) => {
                DeliveryAttempt { at, status_code: Some(status), error: status_error(status) }
            }
            Err(error) => DeliveryAttempt { at, status_code: None, error: Some(error.to_string()) },
        };
        let (status, next_attempt_at) = self.status_after(delivery, &attempt);
        tracing::info!(
            webhook.endpoint = endpoint.id,
            webhook.delivery = delivery.id,
            event = delivery.event.kind.as_str(),
            job.id = delivery.event.subject,
            attempt = delivery.attempts.len() + 1,
            status_code = attempt.status_code,
            error = attempt.error,
            "webhook {}",
            status.as_str()
        );
        let record = AttemptRecord { attempt, status, next_attempt_at };
        self.record(&delivery.id, &record, shutdown).await;
    }

    /// The status of a delivery after an attempt, and the time of the next attempt.
    fn status_after(
        &self,
        delivery: &WebhookDelivery,
        attempt: &DeliveryAttempt,
    ) -> (DeliveryStatus, Option<i64>) {
        if attempt.error.is_none() {
            return (DeliveryStatus::Delivered, None);
        }
        // Without random bytes there is no jitter.
        let random = getrandom::u32().unwrap_or(u32::MAX / 2);
        match retry_schedule::backoff(delivery.attempts.len() + 1, random) {
            Some(wait) => (DeliveryStatus::Pending, Some(self.clock.now().saturating_add(wait))),
            None => (DeliveryStatus::Failed, None),
        }
    }

    /// Records an attempt. Retries while the store fails, because an attempt without a record is made again.
    /// A shutdown ends the retries; then the attempt is made again after the next start.
    async fn record(
        &self,
        delivery_id: &str,
        record: &AttemptRecord,
        shutdown: &CancellationToken,
    ) {
        let mut backoff = BACKOFF;
        loop {
            let AttemptRecord { attempt, status, next_attempt_at } = record;
            let recorded =
                self.store.record_webhook_attempt(delivery_id, attempt, *status, *next_attempt_at);
            let Err(error) = recorded.await else {
                return;
            };
            tracing::error!(webhook.delivery = delivery_id, %error, "an attempt cannot be recorded");
            if shutdown.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
                return;
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn remove_old(&self) {
        match self.store.remove_old_webhook_deliveries(RETENTION_SECONDS).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "old webhook deliveries removed"),
            Err(error) => tracing::warn!(%error, "old webhook deliveries cannot be removed"),
        }
    }
}

impl RunningAttempts {
    /// What may be attempted beside them.
    fn room(&self) -> DueDeliveries {
        let mut wanted = DueDeliveries {
            limit: MAX_CONCURRENT as u32,
            for_each_endpoint: MAX_CONCURRENT_PER_ENDPOINT as u32,
            for_each_project: MAX_CONCURRENT_PER_PROJECT as u32,
            ..DueDeliveries::default()
        };
        for running in self.deliveries.values() {
            wanted.in_progress.push(running.delivery.clone());
            if self.of_endpoint(&running.endpoint) >= MAX_CONCURRENT_PER_ENDPOINT {
                wanted.busy_endpoints.push(running.endpoint.clone());
            }
            let is_full = self.tasks.len() >= MAX_CONCURRENT;
            if is_full || self.of_project(&running.project) >= MAX_CONCURRENT_PER_PROJECT {
                wanted.busy_projects.push(running.project.clone());
            }
        }
        wanted
    }

    /// Whether another attempt to this endpoint may be made.
    fn has_room(&self, endpoint: &WebhookEndpoint) -> bool {
        let of_project = self.of_project(&endpoint.project);
        self.of_endpoint(&endpoint.id) < MAX_CONCURRENT_PER_ENDPOINT
            && of_project < MAX_CONCURRENT_PER_PROJECT
            && (of_project == 0 || self.tasks.len() < MAX_CONCURRENT)
    }

    fn of_endpoint(&self, id: &str) -> usize {
        self.deliveries.values().filter(|running| running.endpoint == id).count()
    }

    fn of_project(&self, project: &Project) -> usize {
        self.deliveries.values().filter(|running| running.project == *project).count()
    }

    /// Returns when one of them has ended.
    async fn wait_for_one(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            None => return,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => {
                tracing::error!(%error, "an attempt to deliver a webhook panicked");
                error.id()
            }
        };
        self.deliveries.remove(&id);
    }
}

/// Why a status code means that the delivery was not accepted; `None` when it was.
fn status_error(status: u16) -> Option<String> {
    match status {
        200..=299 => None,
        300..=399 => Some(format!("the endpoint answered {status}: redirects are not followed")),
        _ => Some(format!("the endpoint answered {status}")),
    }
}

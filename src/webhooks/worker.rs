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
use crate::domain::webhook::{DeliveryAttempt, DeliveryStatus, WebhookDelivery, WebhookEndpoint};
use crate::store::WebhookStore;
use crate::util::clock::Clock;

/// How often the outbox is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Most attempts at once.
const MAX_CONCURRENT: u32 = 64;

/// Most attempts at once to one endpoint, so that a slow endpoint does not delay the others.
const MAX_CONCURRENT_PER_ENDPOINT: u32 = 4;

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
    /// The delivery of each task.
    deliveries: HashMap<task::Id, String>,
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
        let due = match self
            .store
            .due_webhook_deliveries(MAX_CONCURRENT_PER_ENDPOINT, MAX_CONCURRENT)
            .await
        {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(%error, "the outbox of webhooks cannot be read");
                return;
            }
        };
        for (delivery, endpoint) in due {
            if attempts.deliveries.values().any(|id| *id == delivery.id) {
                continue;
            }
            if attempts.tasks.len() >= MAX_CONCURRENT as usize {
                return;
            }
            let (worker, shutdown, id) = (Arc::clone(self), shutdown.clone(), delivery.id.clone());
            let task = attempts.tasks.spawn(async move {
                worker.attempt(&delivery, &endpoint, &shutdown).await;
            });
            attempts.deliveries.insert(task.id(), id);
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

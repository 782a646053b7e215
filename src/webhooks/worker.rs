//! Takes due deliveries from the outbox and has them delivered, side by side, until the server ends.
//!
//! A row stays due until its attempt is recorded: a server that dies in between tries it again at its
//! next start. So receivers may be told twice, under the same `webhook-id`, and never not at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{Parcel, WebhookClient};
use super::schedule;
use crate::domain::webhook::{DeliveryAttempt, DeliveryStatus, WebhookDelivery, WebhookEndpoint};
use crate::store::WebhookStore;
use crate::util::clock::Clock;

/// How often the outbox is looked at.
const POLL: Duration = Duration::from_secs(1);

/// Most attempts at once.
const MOST: u32 = 64;

/// Most of them to one endpoint: one that is slow does not hold back the others.
const MOST_FOR_EACH: u32 = 4;

/// How long deliveries that came to an end stay readable.
const KEPT_SECONDS: i64 = 30 * 24 * 3600;

/// How often older ones are removed.
const CHORES: Duration = Duration::from_secs(3600);

/// First and longest wait after the store has failed.
const BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Delivers what the outbox holds.
pub struct Worker {
    store: Arc<dyn WebhookStore>,
    courier: Arc<WebhookClient>,
    clock: Arc<dyn Clock>,
}

/// Attempts under way.
#[derive(Default)]
struct Attempts {
    tasks: JoinSet<()>,
    /// The delivery of each task.
    deliveries: HashMap<task::Id, String>,
}

impl Worker {
    /// A worker on this outbox.
    pub fn new(
        store: Arc<dyn WebhookStore>,
        courier: Arc<WebhookClient>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self { store, courier, clock })
    }

    /// Delivers until `shutdown`; attempts under way are ended and recorded then.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut attempts = Attempts::default();
        let mut chores_due = Instant::now();
        while !shutdown.is_cancelled() {
            if chores_due <= Instant::now() {
                self.remove_old().await;
                chores_due += CHORES;
            }
            self.begin_due(&mut attempts, &shutdown).await;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(POLL) => {}
                () = attempts.one_ends(), if !attempts.tasks.is_empty() => {}
            }
        }
        while !attempts.tasks.is_empty() {
            attempts.one_ends().await;
        }
    }

    /// Begins attempts at what is due and not under way.
    async fn begin_due(self: &Arc<Self>, attempts: &mut Attempts, shutdown: &CancellationToken) {
        let due = match self.store.due_webhook_deliveries(MOST_FOR_EACH, MOST).await {
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
            if attempts.tasks.len() >= MOST as usize {
                return;
            }
            let (worker, shutdown, id) = (Arc::clone(self), shutdown.clone(), delivery.id.clone());
            let task = attempts.tasks.spawn(async move {
                worker.attempt(&delivery, &endpoint, &shutdown).await;
            });
            attempts.deliveries.insert(task.id(), id);
        }
    }

    /// One attempt, and its record.
    async fn attempt(
        &self,
        delivery: &WebhookDelivery,
        endpoint: &WebhookEndpoint,
        shutdown: &CancellationToken,
    ) {
        let at = self.clock.now();
        let secrets = endpoint.signing_secrets(at);
        let parcel = Parcel { id: &delivery.id, event: &delivery.event, secrets: &secrets };
        let attempt = match self.courier.deliver(&endpoint.url, parcel, at).await {
            Ok(status) => DeliveryAttempt { at, status_code: Some(status), error: refusal(status) },
            Err(error) => DeliveryAttempt { at, status_code: None, error: Some(error.to_string()) },
        };
        let (status, next) = self.standing_after(delivery, &attempt);
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
        self.record(&delivery.id, &attempt, status, next, shutdown).await;
    }

    /// Where a delivery stands after an attempt, and when the next one is.
    fn standing_after(
        &self,
        delivery: &WebhookDelivery,
        attempt: &DeliveryAttempt,
    ) -> (DeliveryStatus, Option<i64>) {
        if attempt.error.is_none() {
            return (DeliveryStatus::Delivered, None);
        }
        // Without random bytes the waits are merely not spread.
        let chance = getrandom::u32().unwrap_or(u32::MAX / 2);
        match schedule::wait_after(delivery.attempts.len() + 1, chance) {
            Some(wait) => (DeliveryStatus::Pending, Some(self.clock.now().saturating_add(wait))),
            None => (DeliveryStatus::Failed, None),
        }
    }

    /// Writes an attempt down, again and again while the store fails: else it would be made again. A
    /// shutdown ends the wait; the next start makes the attempt again.
    async fn record(
        &self,
        delivery_id: &str,
        attempt: &DeliveryAttempt,
        status: DeliveryStatus,
        next_attempt_at: Option<i64>,
        shutdown: &CancellationToken,
    ) {
        let mut backoff = BACKOFF;
        loop {
            let recorded =
                self.store.record_webhook_attempt(delivery_id, attempt, status, next_attempt_at);
            let Err(error) = recorded.await else {
                return;
            };
            tracing::error!(webhook.delivery = delivery_id, %error, "an attempt cannot be recorded");
            if shutdown.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
                return;
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn remove_old(&self) {
        match self.store.remove_old_webhook_deliveries(KEPT_SECONDS).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "old deliveries of webhooks are removed"),
            Err(error) => tracing::warn!(%error, "old deliveries of webhooks stay"),
        }
    }
}

impl Attempts {
    /// Returns when one of them has ended.
    async fn one_ends(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            None => return,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => {
                tracing::error!(%error, "an attempt to deliver a webhook broke off");
                error.id()
            }
        };
        self.deliveries.remove(&id);
    }
}

/// Why an endpoint's answer is not that of one that has taken the delivery.
fn refusal(status: u16) -> Option<String> {
    match status {
        200..=299 => None,
        300..=399 => Some(format!("the endpoint answered {status}: redirects are not followed")),
        _ => Some(format!("the endpoint answered {status}")),
    }
}

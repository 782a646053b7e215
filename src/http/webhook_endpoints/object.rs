//! The endpoint and delivery objects.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::webhook::{DeliveryAttempt, EventType, WebhookDelivery, WebhookEndpoint};

/// `object: "webhook_endpoint"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndpointObject {
    /// `whe_…`.
    id: String,
    /// `webhook_endpoint`.
    object: &'static str,
    /// Unix seconds.
    created_at: i64,
    /// Unix seconds of the last change of the endpoint or its secret.
    updated_at: i64,
    /// For people.
    name: String,
    /// Where deliveries go.
    url: String,
    /// Subscribed event types.
    event_types: Vec<String>,
    /// Those of `event_types` that hone never sends.
    never_sent_event_types: Vec<String>,
    /// The last characters of the secret.
    signing_secret_hint: String,
}

/// `object: "webhook_endpoint"` with the secret, which is shown this once.
// No `Debug`: it would show the secret.
#[derive(Serialize, ToSchema)]
pub struct EndpointWithSecret {
    #[serde(flatten)]
    endpoint: EndpointObject,
    /// `whsec_…`: verifies deliveries.
    signing_secret: String,
}

impl From<WebhookEndpoint> for EndpointObject {
    fn from(endpoint: WebhookEndpoint) -> Self {
        let never_sent =
            endpoint.event_types.iter().filter(|name| EventType::parse(name).is_none());
        Self {
            never_sent_event_types: never_sent.cloned().collect(),
            signing_secret_hint: endpoint.secret.hint(),
            id: endpoint.id,
            object: "webhook_endpoint",
            created_at: endpoint.created_at,
            updated_at: endpoint.updated_at,
            name: endpoint.name,
            url: endpoint.url,
            event_types: endpoint.event_types,
        }
    }
}

impl EndpointWithSecret {
    /// The endpoint with the secret that it has now.
    pub(super) fn new(endpoint: WebhookEndpoint) -> Self {
        let signing_secret = endpoint.secret.expose().to_owned();
        Self { endpoint: endpoint.into(), signing_secret }
    }
}

/// `object: "webhook_endpoint.delivery"`: an event, and the attempts to deliver it.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryObject {
    /// `wh_…`: the `webhook-id` of every attempt.
    id: String,
    /// `webhook_endpoint.delivery`.
    object: &'static str,
    /// The endpoint.
    webhook_endpoint_id: String,
    /// The event.
    event: WebhookEventObject,
    /// `pending`, `delivered`, or `failed` after the last attempt.
    status: &'static str,
    /// The attempts so far, the oldest first.
    attempts: Vec<AttemptObject>,
    /// Unix seconds of the next attempt, while it is pending.
    next_attempt_at: Option<i64>,
}

/// The event of a delivery.
#[derive(Debug, Serialize, ToSchema)]
struct WebhookEventObject {
    /// `evt_…`, the same for all endpoints.
    id: String,
    /// Unix seconds.
    created_at: i64,
    /// What happened.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The id of the job that it happened to.
    data_id: String,
}

/// One attempt.
#[derive(Debug, Serialize, ToSchema)]
struct AttemptObject {
    /// Unix seconds at which it began.
    at: i64,
    /// HTTP status of the endpoint's reply, if there was one.
    status_code: Option<u16>,
    /// Why the attempt failed.
    error: Option<String>,
}

impl From<DeliveryAttempt> for AttemptObject {
    fn from(attempt: DeliveryAttempt) -> Self {
        Self { at: attempt.at, status_code: attempt.status_code, error: attempt.error }
    }
}

impl From<WebhookDelivery> for DeliveryObject {
    fn from(delivery: WebhookDelivery) -> Self {
        Self {
            id: delivery.id,
            object: "webhook_endpoint.delivery",
            webhook_endpoint_id: delivery.endpoint_id,
            event: WebhookEventObject {
                id: delivery.event.id,
                created_at: delivery.event.created_at,
                kind: delivery.event.kind.as_str(),
                data_id: delivery.event.subject,
            },
            status: delivery.status.as_str(),
            attempts: delivery.attempts.into_iter().map(AttemptObject::from).collect(),
            next_attempt_at: delivery.next_attempt_at,
        }
    }
}

//! The event types that an endpoint can subscribe to.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::webhook::EventType;

/// The event types that hone sends.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookEventTypeList {
    /// `list`.
    object: &'static str,
    /// Their names.
    data: Vec<&'static str>,
}

/// Lists the event types that hone sends.
#[utoipa::path(
    get, path = "/webhook_event_types", tag = "webhooks", operation_id = "listWebhookEventTypes",
    responses((status = 200, body = WebhookEventTypeList))
)]
pub async fn event_types() -> Json<WebhookEventTypeList> {
    let data = EventType::ALL.iter().map(|one| one.as_str()).collect();
    Json(WebhookEventTypeList { object: "list", data })
}

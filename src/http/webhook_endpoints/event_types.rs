//! What an endpoint can ask for.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::webhook::EventType;

/// The event types that hone tells.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookEventTypeList {
    /// `list`.
    object: &'static str,
    /// Their names.
    data: Vec<&'static str>,
}

/// Lists the event types that hone tells.
#[utoipa::path(
    get, path = "/webhook_event_types", tag = "webhooks", operation_id = "listWebhookEventTypes",
    responses((status = 200, body = WebhookEventTypeList))
)]
pub async fn event_types() -> Json<WebhookEventTypeList> {
    let data = EventType::ALL.iter().map(|one| one.as_str()).collect();
    Json(WebhookEventTypeList { object: "list", data })
}

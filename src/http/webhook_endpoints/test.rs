//! Sends a test event to an endpoint.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::error_code::ErrorCode;
use crate::domain::ids;
use crate::domain::webhook::WebhookEvent;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{JsonObject, PathId};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::validate::webhook_request;
use crate::webhooks::OutgoingDelivery;

/// The job of a test event. No job has this id.
const SAMPLE_JOB: &str = "ftjob-sample";

/// What a client sends, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct TestWebhookEndpoint {
    /// Type of the test event: one that hone sends.
    event_type: String,
}

/// The reply of an endpoint to a test event.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookTestResult {
    /// `webhook_endpoint.test`.
    object: &'static str,
    /// The endpoint.
    webhook_endpoint_id: String,
    /// Type of the test event.
    event_type: &'static str,
    /// HTTP status of the reply.
    status_code: u16,
    /// Always true: the endpoint replied.
    success: bool,
}

/// Sends a test event about the job `ftjob-sample` to a webhook endpoint, in one attempt, which its list of
/// deliveries does not show. When the endpoint does not reply, the reply is an error with the reason.
#[utoipa::path(
    post, path = "/webhook_endpoints/{webhook_endpoint_id}/test", tag = "webhooks",
    operation_id = "testWebhookEndpoint",
    params(("webhook_endpoint_id" = String, Path, description = "whe_…")),
    request_body(content = TestWebhookEndpoint, content_type = "application/json"),
    responses(
        (status = 200, body = WebhookTestResult), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn test(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<WebhookTestResult>> {
    let endpoint = super::find(&state, &caller, &id).await?;
    let kind = webhook_request::read_test(&body)?;
    let now = state.clock.now();
    let event = WebhookEvent {
        id: ids::new_webhook_event_id(),
        kind,
        subject: SAMPLE_JOB.to_owned(),
        created_at: now,
    };
    let delivery = OutgoingDelivery {
        id: &ids::new_webhook_delivery_id(),
        event: &event,
        secrets: &endpoint.signing_secrets(now),
    };
    let status_code =
        state.webhook_client.deliver(&endpoint.url, delivery, now).await.map_err(|error| {
            let message = format!("the test event did not reach the endpoint: {error}");
            ApiError::new(ErrorCode::WebhookUnreachable, message).with_param("webhook_endpoint_id")
        })?;
    Ok(Json(WebhookTestResult {
        object: "webhook_endpoint.test",
        webhook_endpoint_id: id,
        event_type: kind.as_str(),
        status_code,
        success: true,
    }))
}

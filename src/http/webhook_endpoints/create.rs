//! Creates an endpoint.

use axum::Json;
use axum::extract::State;

use super::object::EndpointWithSecret;
use crate::domain::ids;
use crate::domain::webhook::{MAX_ENDPOINTS, WebhookEndpoint};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::JsonObject;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::validate::webhook_request;

/// What a client sends, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct CreateWebhookEndpoint {
    /// For people, 1 to 256 characters.
    name: String,
    /// Where deliveries go: https at a public address, unless the operator allows more.
    url: String,
    /// At least one that hone sends; types that only OpenAI sends are accepted beside it.
    event_types: Vec<String>,
}

/// Creates a webhook endpoint. Its secret is shown only in this reply.
#[utoipa::path(
    post, path = "/webhook_endpoints", tag = "webhooks", operation_id = "createWebhookEndpoint",
    request_body(content = CreateWebhookEndpoint, content_type = "application/json"),
    responses((status = 200, body = EndpointWithSecret), (status = 400, body = ErrorBody))
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<EndpointWithSecret>> {
    let request = webhook_request::read(&body)?;
    state.webhook_client.check_url(&request.url).await.map_err(|error| super::bad_url(&error))?;
    let now = state.clock.now();
    let endpoint = WebhookEndpoint {
        id: ids::new_webhook_endpoint_id(),
        project: caller.project,
        created_at: now,
        updated_at: now,
        name: request.name,
        url: request.url,
        event_types: request.event_types,
        secret: super::new_secret()?,
        previous_secret: None,
    };
    if !state.store.insert_webhook_endpoint(&endpoint).await? {
        let message = format!(
            "there are {MAX_ENDPOINTS} webhook endpoints already, which is the most: delete one first"
        );
        return Err(ApiError::field("url", message));
    }
    Ok(Json(EndpointWithSecret::new(endpoint)))
}

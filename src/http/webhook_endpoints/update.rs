//! Changes an endpoint.

use axum::Json;
use axum::extract::State;

use super::object::EndpointObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::{JsonObject, PathId};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::validate::webhook_request;

/// What a client sends, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct UpdateWebhookEndpoint {
    /// For people.
    name: Option<String>,
    /// Where deliveries go from now on, those that are pending too.
    url: Option<String>,
    /// All subscribed event types from now on; pending deliveries of other types are dropped.
    event_types: Option<Vec<String>>,
}

/// Changes a webhook endpoint.
#[utoipa::path(
    post, path = "/webhook_endpoints/{webhook_endpoint_id}", tag = "webhooks",
    operation_id = "updateWebhookEndpoint",
    params(("webhook_endpoint_id" = String, Path, description = "whe_…")),
    request_body(content = UpdateWebhookEndpoint, content_type = "application/json"),
    responses(
        (status = 200, body = EndpointObject), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn update(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<EndpointObject>> {
    super::find(&state, &caller, &id).await?;
    let change = webhook_request::read_change(&body)?;
    if let Some(url) = &change.url {
        state.webhook_client.check_url(url).await.map_err(|error| super::bad_url(&error))?;
    }
    let changed = state.store.update_webhook_endpoint(&caller.project, &id, &change).await?;
    Ok(Json(changed.ok_or_else(|| super::no_such_endpoint(&id))?.into()))
}

//! Deletes an endpoint. Reads no body.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// What was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedWebhookEndpoint {
    /// Its id.
    id: String,
    /// `webhook_endpoint.deleted`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// Deletes a webhook endpoint with its deliveries, those that are pending too.
#[utoipa::path(
    delete, path = "/webhook_endpoints/{webhook_endpoint_id}", tag = "webhooks",
    operation_id = "deleteWebhookEndpoint",
    params(("webhook_endpoint_id" = String, Path, description = "whe_…")),
    responses((status = 200, body = DeletedWebhookEndpoint), (status = 404, body = ErrorBody))
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<DeletedWebhookEndpoint>> {
    if !state.store.delete_webhook_endpoint(&caller.project, &id).await? {
        return Err(super::no_such_endpoint(&id));
    }
    Ok(Json(DeletedWebhookEndpoint { id, object: "webhook_endpoint.deleted", deleted: true }))
}

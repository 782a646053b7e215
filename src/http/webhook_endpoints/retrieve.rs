//! One endpoint.

use axum::Json;
use axum::extract::State;

use super::object::EndpointObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// One webhook endpoint, without its secret.
#[utoipa::path(
    get, path = "/webhook_endpoints/{webhook_endpoint_id}", tag = "webhooks",
    operation_id = "retrieveWebhookEndpoint",
    params(("webhook_endpoint_id" = String, Path, description = "whe_…")),
    responses((status = 200, body = EndpointObject), (status = 404, body = ErrorBody))
)]
pub async fn retrieve(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<EndpointObject>> {
    Ok(Json(super::find(&state, &caller, &id).await?.into()))
}

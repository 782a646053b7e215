//! Rotates the secret of an endpoint.

use axum::Json;
use axum::extract::State;

use super::object::EndpointWithSecret;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::{OptionalJsonObject, PathId};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::validate::webhook_request;

/// How long the old secret signs beside the new one when a client requests it.
const OVERLAP_SECONDS: i64 = 24 * 3600;

/// What a client may send, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct RotateWebhookSecret {
    /// Deliveries are signed with both secrets for a day; false when left out.
    keep_old_secret_active_for_24_hours: Option<bool>,
}

/// Gives a webhook endpoint a new secret, which is shown only in this reply. The old one stops signing at
/// once, or signs beside the new one for 24 hours. There are never more than two valid secrets.
#[utoipa::path(
    post, path = "/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", tag = "webhooks",
    operation_id = "rotateWebhookSecret",
    params(("webhook_endpoint_id" = String, Path, description = "whe_…")),
    request_body(content = Option<RotateWebhookSecret>, content_type = "application/json"),
    responses(
        (status = 200, body = EndpointWithSecret), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn rotate_secret(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    OptionalJsonObject(body): OptionalJsonObject,
) -> ApiResult<Json<EndpointWithSecret>> {
    super::find(&state, &caller, &id).await?;
    let overlap = match webhook_request::read_rotation(&body)? {
        true => OVERLAP_SECONDS,
        false => 0,
    };
    let (project, secret) = (&caller.project, super::new_secret()?);
    let rotated = state.store.rotate_webhook_secret(project, &id, &secret, overlap).await?;
    Ok(Json(EndpointWithSecret::new(rotated.ok_or_else(|| super::no_such_endpoint(&id))?)))
}

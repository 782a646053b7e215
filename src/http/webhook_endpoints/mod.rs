//! `/v1/webhook_endpoints`: endpoints that get a delivery when a job ends.

pub(super) mod create;
pub(super) mod delete;
pub(super) mod deliveries;
pub(super) mod event_types;
pub(super) mod list;
mod object;
pub(super) mod retrieve;
pub(super) mod rotate_secret;
pub(super) mod test;
pub(super) mod update;

use super::error::{ApiError, ApiResult};
use super::middleware::authenticate::Caller;
use super::state::AppState;
use crate::domain::error_code::ErrorCode;
use crate::domain::webhook::{SigningSecret, WebhookEndpoint};
use crate::webhooks::TargetError;

/// Most items of a page.
const MOST: u32 = 100;

/// The caller's endpoint, or a 404.
async fn find(state: &AppState, caller: &Caller, id: &str) -> ApiResult<WebhookEndpoint> {
    let endpoint = state.store.webhook_endpoint(&caller.project, id).await?;
    endpoint.ok_or_else(|| no_such_endpoint(id))
}

fn no_such_endpoint(id: &str) -> ApiError {
    ApiError::not_found(ErrorCode::WebhookEndpointNotFound, "webhook endpoint", id)
        .with_param("webhook_endpoint_id")
}

fn bad_url(error: &TargetError) -> ApiError {
    ApiError::field("url", error.to_string())
}

fn new_secret() -> ApiResult<SigningSecret> {
    SigningSecret::random().map_err(ApiError::internal)
}

//! `/v1/webhook_endpoints`: who is told when a job ends.

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
use super::state::AppState;
use crate::error_code::ErrorCode;
use crate::webhook::{DEFAULT_PROJECT, SigningSecret, WebhookEndpoint};
use crate::webhooks::TargetError;

/// Most items of a page.
const MOST: u32 = 100;

/// The project whose endpoints a request is about: the one place where these routes take it.
fn project(_state: &AppState) -> &'static str {
    DEFAULT_PROJECT
}

/// The endpoint, or a 404.
async fn find(state: &AppState, id: &str) -> ApiResult<WebhookEndpoint> {
    let endpoint = state.store.webhook_endpoint(project(state), id).await?;
    endpoint.ok_or_else(|| no_such_endpoint(id))
}

fn no_such_endpoint(id: &str) -> ApiError {
    ApiError::new(
        ErrorCode::WebhookEndpointNotFound,
        format!("there is no webhook endpoint {id:?}"),
    )
    .with_param("webhook_endpoint_id")
}

fn bad_url(error: &TargetError) -> ApiError {
    ApiError::field("url", error.to_string())
}

fn new_secret() -> ApiResult<SigningSecret> {
    SigningSecret::random().map_err(ApiError::internal)
}

//! Lists endpoints, newest first.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::MOST;
use super::object::EndpointObject;
use crate::domain::webhook::WebhookEndpoint;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::{Limit, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// A page of endpoints.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookEndpointList {
    /// `list`.
    object: &'static str,
    /// The endpoints.
    data: Vec<EndpointObject>,
    /// Of the first one here.
    first_id: Option<String>,
    /// Of the last one here: the cursor of the next page.
    last_id: Option<String>,
    /// Whether there is another page.
    has_more: bool,
}

/// Lists webhook endpoints.
#[utoipa::path(
    get, path = "/webhook_endpoints", tag = "webhooks", operation_id = "listWebhookEndpoints",
    params(
        ("after" = Option<String>, Query, description = "Id of the last one of the page before"),
        ("limit" = inline(Option<Limit>), Query, description = "1 to 100, default 20")
    ),
    responses((status = 200, body = WebhookEndpointList), (status = 400, body = ErrorBody))
)]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> ApiResult<Json<WebhookEndpointList>> {
    let request = query.page(20, MOST)?;
    let page = state.store.list_webhook_endpoints(&caller.project, &request).await?;
    let id = |endpoint: &WebhookEndpoint| endpoint.id.clone();
    Ok(Json(WebhookEndpointList {
        object: "list",
        first_id: page.items.first().map(id),
        last_id: page.items.last().map(id),
        data: page.items.into_iter().map(EndpointObject::from).collect(),
        has_more: page.has_more,
    }))
}

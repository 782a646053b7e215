//! An endpoint's deliveries and their attempts. OpenAI has no such route.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::MOST;
use super::object::DeliveryObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::{Limit, PathId, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryList {
    /// `list`.
    object: &'static str,
    /// The deliveries.
    data: Vec<DeliveryObject>,
    /// Whether there is another page.
    has_more: bool,
}

/// Lists a webhook endpoint's deliveries with their attempts, newest first. Finished ones are kept for
/// 30 days.
#[utoipa::path(
    get, path = "/webhook_endpoints/{webhook_endpoint_id}/deliveries", tag = "webhooks",
    operation_id = "listWebhookDeliveries",
    params(
        ("webhook_endpoint_id" = String, Path, description = "whe_…"),
        ("after" = Option<String>, Query, description = "Id of the last one of the page before"),
        ("limit" = inline(Option<Limit>), Query, description = "1 to 100, default 20")
    ),
    responses(
        (status = 200, body = DeliveryList), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn deliveries(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    query: Query,
) -> ApiResult<Json<DeliveryList>> {
    super::find(&state, &caller, &id).await?;
    let page = state.store.list_webhook_deliveries(&id, &query.page(20, MOST)?).await?;
    let data = page.items.into_iter().map(DeliveryObject::from).collect();
    Ok(Json(DeliveryList { object: "list", data, has_more: page.has_more }))
}

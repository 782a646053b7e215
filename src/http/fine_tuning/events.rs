//! A job's events, newest first.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::MOST;
use super::object::EventObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::{PathId, Query};
use crate::http::state::AppState;

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventList {
    /// `list`.
    object: &'static str,
    /// The events.
    data: Vec<EventObject>,
    /// Whether there is another page.
    has_more: bool,
}

/// Lists a job's events.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/events", tag = "fine-tuning",
    operation_id = "listFineTuningEvents",
    params(
        ("fine_tuning_job_id" = String, Path, description = "ftjob-…"),
        ("after" = Option<String>, Query, description = "Id of the last event of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 20")
    ),
    responses(
        (status = 200, body = EventList), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn events(
    State(state): State<AppState>,
    PathId(id): PathId,
    query: Query,
) -> ApiResult<Json<EventList>> {
    super::find(&state, &id).await?;
    let page = state.store.list_events(&id, &query.page(20, MOST)?).await?;
    let data = page.items.into_iter().map(EventObject::from).collect();
    Ok(Json(EventList { object: "list", data, has_more: page.has_more }))
}

//! A job's checkpoints, newest first.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::MOST;
use super::object::CheckpointObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::{Limit, PathId, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// A page of checkpoints.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointList {
    /// `list`.
    object: &'static str,
    /// The checkpoints.
    data: Vec<CheckpointObject>,
    /// Of the first one here.
    first_id: Option<String>,
    /// Of the last one here: the cursor of the next page.
    last_id: Option<String>,
    /// Whether there is another page.
    has_more: bool,
}

/// Lists a job's checkpoints.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", tag = "fine-tuning",
    operation_id = "listFineTuningJobCheckpoints",
    params(
        ("fine_tuning_job_id" = String, Path, description = "ftjob-…"),
        ("after" = Option<String>, Query, description = "Id of the last one of the page before"),
        ("limit" = inline(Option<Limit>), Query, description = "1 to 100, default 10")
    ),
    responses(
        (status = 200, body = CheckpointList), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn checkpoints(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    query: Query,
) -> ApiResult<Json<CheckpointList>> {
    super::find(&state, &caller, &id).await?;
    let page = state.store.list_checkpoints(&id, &query.page(10, MOST)?).await?;
    Ok(Json(CheckpointList {
        object: "list",
        first_id: page.items.first().map(|checkpoint| checkpoint.id.clone()),
        last_id: page.items.last().map(|checkpoint| checkpoint.id.clone()),
        data: page.items.into_iter().map(CheckpointObject::from).collect(),
        has_more: page.has_more,
    }))
}

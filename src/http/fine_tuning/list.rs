//! Lists jobs, newest first.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::MOST;
use super::object::JobObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::Query;
use crate::http::state::AppState;

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobList {
    /// `list`.
    object: &'static str,
    /// The jobs.
    data: Vec<JobObject>,
    /// Whether there is another page.
    has_more: bool,
}

/// Lists jobs.
#[utoipa::path(
    get, path = "/fine_tuning/jobs", tag = "fine-tuning", operation_id = "listFineTuningJobs",
    params(
        ("after" = Option<String>, Query, description = "Id of the last job of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 20"),
        ("metadata[k]" = Option<String>, Query, description = "Only jobs with this pair; repeatable")
    ),
    responses((status = 200, body = JobList), (status = 400, body = ErrorBody))
)]
pub async fn list(State(state): State<AppState>, query: Query) -> ApiResult<Json<JobList>> {
    let mut metadata = BTreeMap::new();
    for (key, value) in query.pairs() {
        let inner = key.strip_prefix("metadata[").and_then(|key| key.strip_suffix(']'));
        if let Some(key) = inner {
            metadata.insert(key.to_owned(), value.to_owned());
        }
    }
    let page = state.store.list_jobs(&metadata, &query.page(20, MOST)?).await?;
    let data = page.items.into_iter().map(JobObject::from).collect();
    Ok(Json(JobList { object: "list", data, has_more: page.has_more }))
}

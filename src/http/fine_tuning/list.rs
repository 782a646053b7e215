//! Lists jobs, newest first.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::MOST;
use super::object::JobObject;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{Limit, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::MetadataFilter;
use crate::util::excerpt::excerpt;

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
        ("limit" = inline(Option<Limit>), Query, description = "1 to 100, default 20"),
        ("metadata[k]" = Option<String>, Query, description = "Only jobs with this pair; repeatable"),
        ("metadata" = Option<String>, Query, description = "`null`: only jobs without metadata")
    ),
    responses((status = 200, body = JobList), (status = 400, body = ErrorBody))
)]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> ApiResult<Json<JobList>> {
    let (filter, page) = (metadata(&query)?, query.page(20, MOST)?);
    let page = state.store.list_jobs(&caller.project, &filter, &page).await?;
    let data = page.items.iter().map(JobObject::from).collect();
    Ok(Json(JobList { object: "list", data, has_more: page.has_more }))
}

/// The filter by metadata. Clients write it in several ways: `metadata[k]=v` for each pair, a bare
/// `metadata=null` for jobs without any, a bare `metadata=` for no filter.
fn metadata(query: &Query) -> ApiResult<MetadataFilter> {
    let mut pairs = BTreeMap::new();
    let mut is_absent = false;
    for (name, value) in query.pairs() {
        let Some(rest) = name.strip_prefix("metadata") else {
            continue;
        };
        match (rest, value) {
            ("", "") => continue,
            ("", "null") => {
                is_absent = true;
                continue;
            }
            _ => {}
        }
        let Some(key) = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else {
            let (name, value) = (excerpt(name), excerpt(value));
            let message = format!(
                "{name}={value} is no filter: write metadata[KEY]=VALUE for each pair, or \
                 metadata=null for jobs without metadata"
            );
            return Err(ApiError::field("metadata", message));
        };
        let earlier = pairs.insert(key.to_owned(), value.to_owned());
        if earlier.is_some_and(|earlier| earlier != value) {
            let key = excerpt(key);
            let message = format!("the key {key:?} is asked for with two values; no job has both");
            return Err(ApiError::field(name, message));
        }
    }
    match (is_absent, pairs.is_empty()) {
        (false, _) => Ok(MetadataFilter::Pairs(pairs)),
        (true, true) => Ok(MetadataFilter::Absent),
        (true, false) => Err(ApiError::field(
            "metadata",
            "metadata=null and metadata[KEY]=VALUE exclude each other: no job fits both",
        )),
    }
}

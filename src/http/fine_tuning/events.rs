//! A job's events: a page of them, newest first, or a stream.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::object::EventObject;
use super::{MOST, event_stream};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{Limit, PathId, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::StoreError;

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventList<'a> {
    /// `list`.
    object: &'static str,
    /// The events.
    data: Vec<EventObject<'a>>,
    /// Whether there is another page.
    has_more: bool,
}

/// The header in which a client that reconnects names the last event it has seen.
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// Lists a job's events, or streams them.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/events", tag = "fine-tuning",
    operation_id = "listFineTuningEvents",
    params(
        ("fine_tuning_job_id" = String, Path, description = "ftjob-…"),
        ("after" = Option<String>, Query, description = "Id of the last event of the page before"),
        ("limit" = inline(Option<Limit>), Query, description = "1 to 100, default 20"),
        (
            "stream" = Option<bool>, Query,
            description = "Server-sent events instead of a page: every event from the first on, or \
                           from after the one that `Last-Event-ID` or `after` names, until the job \
                           has ended; then `[DONE]`"
        ),
        ("Last-Event-ID" = Option<String>, Header, description = "With `stream`: the last event seen")
    ),
    responses(
        (status = 200, content((EventList = "application/json"), (Object = "text/event-stream"))), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn events(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    query: Query,
    headers: HeaderMap,
) -> ApiResult<Response> {
    super::find(&state, &caller, &id).await?;
    if query.switch("stream")? {
        return stream(state, caller, id, &query, &headers).await;
    }
    let page = state.store.list_events(&id, &query.page(20, MOST)?).await?;
    super::reply(&page, |page| {
        let data = page.items.iter().map(EventObject::from).collect();
        serde_json::to_vec(&EventList { object: "list", data, has_more: page.has_more })
    })
}

async fn stream(
    state: AppState,
    caller: Caller,
    id: String,
    query: &Query,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    if query.get("limit").is_some() {
        return Err(ApiError::field("limit", "a stream has no limit: it ends with the job"));
    }
    let from_header = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let (after, param) = match from_header {
        Some(id) => (Some(id), LAST_EVENT_ID),
        None => (query.get("after"), "after"),
    };
    let after = after.filter(|after| !after.is_empty()).map(str::to_owned);
    event_stream::stream_events(state, caller, id, after).await.map_err(|error| match error {
        StoreError::UnknownCursor(_) => ApiError::from(error).with_param(param),
        other => other.into(),
    })
}

//! One job.

use axum::extract::State;
use axum::response::Response;

use super::object::JobObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// One job.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}", tag = "fine-tuning",
    operation_id = "retrieveFineTuningJob",
    params(("fine_tuning_job_id" = String, Path, description = "ftjob-…")),
    responses((status = 200, body = JobObject), (status = 404, body = ErrorBody))
)]
pub async fn retrieve(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Response> {
    let job = super::find(&state, &caller, &id).await?;
    super::reply(&job, |job| serde_json::to_vec(&JobObject::from(job)))
}

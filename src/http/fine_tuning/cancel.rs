//! Cancels a job. Reads no body: clients send an empty one, with or without a content type.

use axum::Json;
use axum::extract::State;

use super::object::JobObject;
use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::CancelOutcome;

/// Cancels a job.
#[utoipa::path(
    post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/cancel", tag = "fine-tuning",
    operation_id = "cancelFineTuningJob",
    params(("fine_tuning_job_id" = String, Path, description = "ftjob-…")),
    responses(
        (status = 200, body = JobObject), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn cancel(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<JobObject>> {
    super::find(&state, &caller, &id).await?;
    let Some(outcome) = state.store.request_cancel(&id).await? else {
        return Err(super::no_such_job(&id));
    };
    let job = match outcome {
        CancelOutcome::Cancelled(job) => {
            state.queue.announce_garbage();
            job
        }
        CancelOutcome::AlreadyCancelled(job) => job,
        CancelOutcome::Requested(job) => {
            state.queue.announce_control_request();
            super::wait_while(&state, job, |job| !job.status.is_terminal()).await?
        }
        CancelOutcome::TooLate(job) => {
            let message = format!("the job has ended already: it is {}", job.status.as_str());
            return Err(ApiError::new(ErrorCode::JobNotCancellable, message));
        }
    };
    Ok(Json((&job).into()))
}

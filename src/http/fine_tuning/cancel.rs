//! Ends a job as its user wishes. Reads no body: clients send an empty one, with or without a
//! content type.

use std::time::Duration;

use axum::Json;
use axum::extract::State;

use super::object::JobObject;
use crate::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::state::AppState;
use crate::job::Job;
use crate::store::CancelOutcome;

/// How long the reply waits for a running job to end, so that it can say `cancelled`.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);

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
    PathId(id): PathId,
) -> ApiResult<Json<JobObject>> {
    let Some(outcome) = state.store.request_cancel(&id).await? else {
        return Err(super::no_such_job(&id));
    };
    let job = match outcome {
        CancelOutcome::Cancelled(job) | CancelOutcome::AlreadyCancelled(job) => job,
        CancelOutcome::Requested(job) => {
            state.queue.announce_cancel();
            wait_for_end(&state, job).await?
        }
        CancelOutcome::TooLate(job) => {
            let message = format!("the job has ended already: it is {}", job.status.as_str());
            return Err(ApiError::new(ErrorCode::JobNotCancellable, message));
        }
    };
    Ok(Json(job.into()))
}

async fn wait_for_end(state: &AppState, mut job: Job) -> ApiResult<Job> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !job.status.is_terminal() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        job = super::find(state, &job.id).await?;
    }
    Ok(job)
}

//! Resumes a paused job: it returns to its old place in the queue. Reads no body, like `cancel`.

use axum::Json;
use axum::extract::State;

use super::object::JobObject;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{EventLevel, NewEvent};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::ResumeOutcome;

/// Resumes a job.
#[utoipa::path(
    post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/resume", tag = "fine-tuning",
    operation_id = "resumeFineTuningJob",
    params(("fine_tuning_job_id" = String, Path, description = "ftjob-…")),
    responses(
        (status = 200, body = JobObject), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn resume(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<JobObject>> {
    super::find(&state, &caller, &id).await?;
    let event = NewEvent::message(EventLevel::Info, "The job was resumed");
    match state.store.resume(&id, &[event]).await? {
        None => Err(super::no_such_job(&id)),
        Some(ResumeOutcome::Resumed(job)) => {
            state.queue.announce_work();
            Ok(Json((&job).into()))
        }
        Some(ResumeOutcome::NotPaused(job)) => Ok(Json((&job).into())),
        Some(ResumeOutcome::Refused(job)) => {
            let message = format!(
                "a job can be resumed while it is paused; this one {}",
                super::describe_status(&job)
            );
            Err(ApiError::new(ErrorCode::JobNotResumable, message))
        }
    }
}

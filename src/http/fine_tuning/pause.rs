//! Pauses a job: a queued one at once, a running one after its step. Reads no body, like `cancel`.

use axum::Json;
use axum::extract::State;

use super::object::JobObject;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{EventLevel, Job, NewEvent};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::PauseOutcome;

/// Pauses a job.
#[utoipa::path(
    post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/pause", tag = "fine-tuning",
    operation_id = "pauseFineTuningJob",
    params(("fine_tuning_job_id" = String, Path, description = "ftjob-…")),
    responses(
        (status = 200, body = JobObject), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn pause(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<JobObject>> {
    super::find(&state, &caller, &id).await?;
    let event = NewEvent::message(EventLevel::Info, "A pause of the job was requested");
    let Some(outcome) = state.store.request_pause(&id, &[event]).await? else {
        return Err(super::no_such_job(&id));
    };
    let job = match outcome {
        PauseOutcome::Paused(job) | PauseOutcome::AlreadyPaused(job) => job,
        PauseOutcome::Requested(job) => {
            state.queue.announce_control_request();
            let job = super::wait_while(&state, job, |job| job.pause_requested).await?;
            if job.status.is_terminal() {
                return Err(refused(&job));
            }
            job
        }
        PauseOutcome::Refused(job) => return Err(refused(&job)),
    };
    Ok(Json((&job).into()))
}

fn refused(job: &Job) -> ApiError {
    let message = format!(
        "a job can be paused while it is queued or running; this one {}",
        super::describe_status(job)
    );
    ApiError::new(ErrorCode::JobNotPausable, message)
}

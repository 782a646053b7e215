//! The report of a job that has succeeded.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use crate::domain::error_code::ErrorCode;
use crate::domain::file::FileRecord;
use crate::domain::job::{Job, JobStatus};
use crate::executor::REPORT_FILE;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// A job's report.
///
/// Extension of hone: `report.json` among the job's result files. It says what the run came to,
/// what was found on the way and what every value was.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/report", tag = "extensions",
    operation_id = "retrieveFineTuningJobReport",
    params(("fine_tuning_job_id" = String, Path, description = "ftjob-…")),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody))
)]
pub async fn report(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Response> {
    let job = super::find(&state, &caller, &id).await?;
    let Some(file) = find(&state, &job).await? else {
        return Err(no_report(&job));
    };
    let (size, bytes) = state.blobs.stream(&file.blob_key, None).await?;
    let mut response = Response::new(Body::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    Ok(response)
}

/// The report among the job's result files.
async fn find(state: &AppState, job: &Job) -> ApiResult<Option<FileRecord>> {
    for id in job.result_files.iter().rev() {
        let file = state.store.file(id).await?;
        if let Some(file) = file.filter(|file| file.filename == REPORT_FILE) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// The error of a job without a report. It says when there is one.
fn no_report(job: &Job) -> ApiError {
    let message = match job.status {
        JobStatus::Succeeded => "the job's report was deleted".to_owned(),
        status if status.is_terminal() => format!(
            "the job ended as {:?}: only a job that succeeds writes a report",
            status.as_str()
        ),
        _ => format!(
            "the job {}: its report is written when it succeeds; until then \
             /v1/fine_tuning/jobs/{}/metrics shows its progress",
            super::describe_status(job),
            job.id
        ),
    };
    ApiError::new(ErrorCode::FileNotFound, message)
}

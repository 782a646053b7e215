//! `/v1/fine_tuning/jobs` and what belongs to jobs: graders, permissions of checkpoints.

pub(super) mod adapter;
pub(super) mod cancel;
pub(super) mod checkpoints;
pub(super) mod create;
mod dry_run;
mod event_stream;
pub(super) mod events;
pub(super) mod graders;
mod idempotency_key;
pub(super) mod list;
pub(super) mod metrics;
mod object;
pub(super) mod pause;
pub(super) mod permissions;
pub(super) mod report;
pub(super) mod resume;
pub(super) mod retrieve;
mod validated_job;

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, ApiResult};
use super::middleware::authenticate::Caller;
use super::state::AppState;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::Job;
use crate::store::CachedReply;

/// Most items of a page.
const MOST: u32 = 100;

/// How long a reply waits for a running job to cancel or pause, so that it can show the result.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the job is polled meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The caller's job, or OpenAI's 404.
async fn find(state: &AppState, caller: &Caller, id: &str) -> ApiResult<Arc<CachedReply<Job>>> {
    let job = state.store.job(id).await?.filter(|job| job.project == caller.project);
    job.ok_or_else(|| no_such_job(id))
}

/// A JSON reply that is serialised once for all requests.
fn reply<T>(
    cached: &CachedReply<T>,
    write: impl FnOnce(&T) -> serde_json::Result<Vec<u8>>,
) -> ApiResult<Response> {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let body = cached.written(write).map_err(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
}

fn no_such_job(id: &str) -> ApiError {
    ApiError::not_found(ErrorCode::FineTuneNotFound, "fine-tuning job", id)
        .with_param("fine_tune_id")
}

/// The job as soon as `is_pending` no longer holds, or as it is after [`WAIT_TIMEOUT`].
async fn wait_while(
    state: &AppState,
    mut job: Job,
    is_pending: fn(&Job) -> bool,
) -> ApiResult<Job> {
    let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
    while is_pending(&job) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(POLL_INTERVAL).await;
        let now = state.store.job(&job.id).await?.ok_or_else(|| no_such_job(&job.id))?;
        job = Job::clone(&now);
    }
    Ok(job)
}

/// The state of a job as the end of a sentence about it.
fn describe_status(job: &Job) -> String {
    if job.cancel_requested && !job.status.is_terminal() {
        return "is about to be cancelled".to_owned();
    }
    format!("is {}", job.status.as_str())
}

//! `/v1/fine_tuning/jobs`.

pub(super) mod cancel;
pub(super) mod checkpoints;
pub(super) mod create;
pub(super) mod events;
pub(super) mod list;
mod object;
pub(super) mod retrieve;

use super::error::{ApiError, ApiResult};
use super::state::AppState;
use crate::error_code::ErrorCode;
use crate::job::Job;

/// Most items of a page.
const MOST: u32 = 100;

/// The job, or OpenAI's 404.
async fn find(state: &AppState, id: &str) -> ApiResult<Job> {
    state.store.job(id).await?.ok_or_else(|| no_such_job(id))
}

fn no_such_job(id: &str) -> ApiError {
    ApiError::new(ErrorCode::FineTuneNotFound, format!("there is no fine-tuning job {id:?}"))
        .with_param("fine_tune_id")
}

//! `/v1/files`: what clients upload and what jobs produce.

pub(super) mod content;
pub(super) mod create;
pub(super) mod delete;
pub(super) mod list;
pub(super) mod object;
pub(super) mod retrieve;

use super::error::{ApiError, ApiResult};
use super::middleware::authenticate::Caller;
use super::state::AppState;
use crate::domain::error_code::ErrorCode;
use crate::domain::file::FileRecord;

/// The caller's file, or OpenAI's 404.
async fn find(state: &AppState, caller: &Caller, id: &str) -> ApiResult<FileRecord> {
    let file = state.store.file(id).await?.filter(|file| file.project == caller.project);
    file.ok_or_else(|| no_such_file(id))
}

fn no_such_file(id: &str) -> ApiError {
    ApiError::not_found(ErrorCode::FileNotFound, "file", id).with_param("id")
}

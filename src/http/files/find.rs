//! A file by its id: the caller's own, or the 404 that also stands for a file of another project.

use crate::domain::error_code::ErrorCode;
use crate::domain::file::FileRecord;
use crate::http::error::{ApiError, ApiResult};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// The caller's file, or OpenAI's 404.
pub(super) async fn find(state: &AppState, caller: &Caller, id: &str) -> ApiResult<FileRecord> {
    let file = state.store.file(id).await?.filter(|file| file.project == caller.project);
    file.ok_or_else(|| no_such_file(id))
}

pub(super) fn no_such_file(id: &str) -> ApiError {
    ApiError::not_found(ErrorCode::FileNotFound, "file", id).with_param("id")
}

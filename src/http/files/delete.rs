//! Deletes a file that no job and no model uses.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::DeleteFileOutcome;

/// What was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedFile {
    /// Its id.
    id: String,
    /// `file`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// Deletes a file.
#[utoipa::path(
    delete, path = "/files/{file_id}", tag = "files", operation_id = "deleteFile",
    params(("file_id" = String, Path, description = "file-…")),
    responses(
        (status = 200, body = DeletedFile), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<DeletedFile>> {
    let in_use = |by: String| {
        let message = format!("the file {id:?} is used by {by} first");
        ApiError::new(ErrorCode::InvalidFile, message).with_param("id")
    };
    super::find::find(&state, &caller, &id).await?;
    match state.store.delete_file(&id).await? {
        DeleteFileOutcome::Deleted(file) => state.blobs.delete(&file.blob_key).await?,
        DeleteFileOutcome::UsedByJob(job) => {
            return Err(in_use(format!("the job {job:?}: let it end, or cancel it,")));
        }
        DeleteFileOutcome::UsedByModel(model) => {
            return Err(in_use(format!("the model {model:?}: delete that")));
        }
        DeleteFileOutcome::NotFound => return Err(super::find::no_such_file(&id)),
    }
    Ok(Json(DeletedFile { id, object: "file", deleted: true }))
}

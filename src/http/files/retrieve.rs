//! One file's object.

use axum::Json;
use axum::extract::State;

use super::object::FileObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;

/// One file's object.
#[utoipa::path(
    get, path = "/files/{file_id}", tag = "files", operation_id = "retrieveFile",
    params(("file_id" = String, Path, description = "file-…")),
    responses((status = 200, body = FileObject), (status = 404, body = ErrorBody))
)]
pub async fn retrieve(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<FileObject>> {
    Ok(Json(super::find::find(&state, &caller, &id).await?.into()))
}

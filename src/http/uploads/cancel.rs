//! Cancels an upload. Reads no body: clients send an empty one, with or without a content type.

use axum::Json;
use axum::extract::State;

use super::object::UploadObject;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::CancelUploadOutcome;

/// Cancels an upload.
#[utoipa::path(
    post, path = "/uploads/{upload_id}/cancel", tag = "uploads", operation_id = "cancelUpload",
    params(("upload_id" = String, Path, description = "upload_…")),
    responses(
        (status = 200, body = UploadObject), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn cancel(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
) -> ApiResult<Json<UploadObject>> {
    super::find(&state, &caller, &id).await?;
    let upload = match state.store.cancel_upload(&id).await? {
        None => return Err(super::no_such_upload(&id)),
        Some(CancelUploadOutcome::Cancelled(upload, unneeded)) => {
            super::remove_blobs(&state, unneeded).await;
            upload
        }
        Some(CancelUploadOutcome::AlreadyCancelled(upload)) => upload,
        Some(CancelUploadOutcome::NotPending(upload)) => return Err(super::not_pending(&upload)),
    };
    Ok(Json(UploadObject::new(upload, None)))
}
